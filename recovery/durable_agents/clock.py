"""Where the recovery core gets the time from.

Times are integers, microseconds since 1970-01-01 UTC: they compare exactly after a trip through a
database column, which a compare-and-set on an expiry depends on and a float cannot promise.
Durations in signatures are seconds (``_s``).
"""

from __future__ import annotations

import math
import time
from typing import Final, Protocol, TypeAlias

from durable_agents.errors import InvalidSetting

Microseconds: TypeAlias = int
"""A moment: microseconds since 1970-01-01 UTC. As a duration: microseconds."""

_MICROSECONDS_PER_SECOND: Final = 1_000_000


class Clock(Protocol):
    """What tells the time. Anything with these two methods will do."""

    def now(self) -> Microseconds:
        """Return the moment that is written into rows. It may jump, forwards or back."""
        ...

    def monotonic(self) -> Microseconds:
        """Return a reading that never goes back, for measuring how long something took in this process."""
        ...


class SystemClock:
    """The clock of the machine."""

    __slots__ = ()

    def now(self) -> Microseconds:
        """Return the wall clock's time."""
        return time.time_ns() // 1000

    def monotonic(self) -> Microseconds:
        """Return the kernel's monotonic clock."""
        return time.monotonic_ns() // 1000


class ManualClock:
    """A clock that stands still until it is moved, so that tests need not wait."""

    __slots__ = ("_elapsed", "_now")

    def __init__(self, now: Microseconds = 1_700_000_000 * _MICROSECONDS_PER_SECOND) -> None:
        """Start at ``now``; unless told otherwise, in November 2023."""
        self._now = now
        self._elapsed = 0

    def now(self) -> Microseconds:
        """Return where the clock was put."""
        return self._now

    def monotonic(self) -> Microseconds:
        """Return the sum of what the clock was advanced by."""
        return self._elapsed

    def advance(self, duration_s: float) -> None:
        """Let ``duration_s`` seconds pass: both readings move. Raises InvalidSetting for a negative duration."""
        if not (math.isfinite(duration_s) and duration_s >= 0):
            message = (
                f"Expected a finite duration of 0 s or more but got {duration_s!r}; use jump() to set the time back."
            )
            raise InvalidSetting(message)
        step = round(duration_s * _MICROSECONDS_PER_SECOND)
        self._now += step
        self._elapsed += step

    def jump(self, now: Microseconds) -> None:
        """Set the wall clock as an administrator would, to any moment; the monotonic reading does not move."""
        self._now = now


def is_duration(duration_s: object, least_s: float, most_s: float) -> bool:
    """Tell whether this is a length of time from ``least_s`` to ``most_s`` seconds: a number, no truth value, no NaN.

    Compared as it is: to ask whether a whole number is finite fails for one that is larger than any
    float.
    """
    is_number = isinstance(duration_s, int | float) and not isinstance(duration_s, bool)
    return is_number and least_s <= duration_s <= most_s  # type: ignore[operator]


def microseconds(duration_s: float) -> Microseconds:
    """Return a duration in seconds as whole microseconds."""
    return round(duration_s * _MICROSECONDS_PER_SECOND)
