"""Bounds on sizes, checked where they are given: one that compares as nothing does would bound nothing."""

from __future__ import annotations

from typing import Final

from durable_agents.errors import InvalidSetting

BYTES_MOST: Final = 2**60
"""The largest bound on a size in bytes: what is larger is no file, and a sum of such no longer fits into a column."""


def check_bytes(name: str, bytes_max: int | None, *, least: int = 0, is_optional: bool = False) -> None:
    """Raise InvalidSetting unless this is a whole number of bytes, ``least`` or more, or None where ``is_optional``."""
    if bytes_max is None and is_optional:
        return
    is_whole = isinstance(bytes_max, int) and not isinstance(bytes_max, bool)
    if is_whole and least <= bytes_max <= BYTES_MOST:  # type: ignore[operator]
        return
    remedy = "give bytes, or None for no bound" if is_optional else "give bytes"
    message = f"Expected {name} to be a whole number from {least} to {BYTES_MOST} but got {bytes_max!r:.80}; {remedy}."
    raise InvalidSetting(message)
