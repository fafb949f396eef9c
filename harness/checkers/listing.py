"""Lists in findings: the first ten entries and how many more there are.

One bug may touch every key of a run; a finding that lists a million of them helps nobody and fills the evidence.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LISTED_MAX: Final = 10

Name = TypeVar("Name")

_CHARACTERS_MAX: Final = 80


def listed(values: Collection[object]) -> str:
    """Return ``1, 'two', 3``, and for more than ten values ``..., 10 and 32 more``; long entries are cut."""
    shown = [_short(value) for value in itertools.islice(values, LISTED_MAX)]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def listed_counts(times: Mapping[Name, int]) -> str:
    """Return ``7: 2, 'x': 3`` of keys and how often each was seen, bounded like any list."""
    return listed([Bare(f"{key!r}: {count}") for key, count in times.items()])


class Bare(str):
    """Text that a list shows as it is, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return the text itself."""
        return str(self)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _CHARACTERS_MAX else f"{text[: _CHARACTERS_MAX - 3]}..."
