"""Checks of numbers and texts where they are given.

NaN compares false, and would disable a limit.
"""

from __future__ import annotations

from typing import Final

from durable_agents.errors import InvalidSetting

BYTES_MOST: Final = 2**60
"""The largest bound on a size in bytes: no file is larger,
and sums of such sizes fit into a column.
"""


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether this is an int from ``least`` to ``most``. True and False are no numbers here."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_text(value: object) -> bool:
    """Whether a text column keeps this value unchanged.

    It must be a non-empty str of valid UTF-8 without NUL.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def check_bytes(name: str, bytes_max: int | None, *, least: int = 0, is_optional: bool = False) -> None:
    """Raise InvalidSetting unless this is an int from ``least`` to ``BYTES_MOST``.

    With ``is_optional``, None is valid too.
    """
    if (bytes_max is None and is_optional) or is_whole(bytes_max, least, BYTES_MOST):
        return
    fix = "Give bytes, or None for no bound." if is_optional else "Give bytes."
    message = f"{name} must be a whole number from {least} to {BYTES_MOST}; got {bytes_max!r:.80}. {fix}"
    raise InvalidSetting(message)
