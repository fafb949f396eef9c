"""The clock of the recovery core.

Times are integers, microseconds since 1970-01-01 UTC: unlike floats, they compare exactly after a
round trip through a database column, as compare-and-set on an expiry needs. Durations in signatures
are seconds (``_s``).
"""

from __future__ import annotations

import functools
import math
import os
import time
from typing import Final, Protocol, TypeAlias

from durable_agents.errors import InvalidSetting

Microseconds: TypeAlias = int
"""A moment: microseconds since 1970-01-01 UTC. As a duration: microseconds."""

_MICROSECONDS_PER_SECOND: Final = 1_000_000
_SINCE_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """A source of time: any object with these two methods.

    One whose ``monotonic`` all processes of a machine share has a method ``boot``, too, as
    ``SystemClock`` has: then leases do not depend on ``now`` (``work.lease_time``).
    """

    def now(self) -> Microseconds:
        """Return the wall-clock time, which rows store. It may jump, forwards or back."""
        ...

    def monotonic(self) -> Microseconds:
        """Return a reading that never goes back, for durations within this process."""
        ...


class SystemClock:
    """The clock of the machine."""

    __slots__ = ()

    def now(self) -> Microseconds:
        """Return the wall clock's time."""
        return time.time_ns() // 1000

    def monotonic(self) -> Microseconds:
        """Return the time since boot, in which the machine's sleep counts, where there is one."""
        return time.clock_gettime_ns(_SINCE_BOOT) // 1000

    def boot(self) -> str | None:
        """Return what tells this boot of this machine from others: its id, and our time namespace.

        All processes with the same one read the same ``monotonic``. None where there is no such id.
        """
        return _boot()


@functools.cache
def _boot() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - as in processes
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return None


class ManualClock:
    """A clock that stands still until it is moved: tests need not wait."""

    __slots__ = ("_elapsed", "_now")

    def __init__(self, now: Microseconds = 1_700_000_000 * _MICROSECONDS_PER_SECOND) -> None:
        """Start at ``now``, by default in November 2023."""
        self._now = now
        self._elapsed = 0

    def now(self) -> Microseconds:
        """Return the time that was set."""
        return self._now

    def monotonic(self) -> Microseconds:
        """Return the sum of all advances."""
        return self._elapsed

    def advance(self, duration_s: float) -> None:
        """Move both readings forward by ``duration_s`` seconds.

        Raises InvalidSetting unless it is 0 or more.
        """
        if not (math.isfinite(duration_s) and duration_s >= 0):
            message = f"duration_s must be finite and 0 or more; got {duration_s!r}. Set the time back by jump()."
            raise InvalidSetting(message)
        step = round(duration_s * _MICROSECONDS_PER_SECOND)
        self._now += step
        self._elapsed += step

    def jump(self, now: Microseconds) -> None:
        """Set the wall clock to any moment, as an administrator can.

        The monotonic reading stays.
        """
        self._now = now


def is_duration(duration_s: object, least_s: float, most_s: float) -> bool:
    """Whether this is a number of seconds from ``least_s`` to ``most_s``: no bool and no NaN.

    Compared directly: ``math.isfinite`` fails for integers larger than any float.
    """
    is_number = isinstance(duration_s, int | float) and not isinstance(duration_s, bool)
    return is_number and least_s <= duration_s <= most_s  # type: ignore[operator]


def microseconds(duration_s: float) -> Microseconds:
    """Return a duration in seconds as whole microseconds."""
    return round(duration_s * _MICROSECONDS_PER_SECOND)
