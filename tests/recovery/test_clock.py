"""Clocks tell the time in microseconds, and a manual one only moves when it is told to."""

from __future__ import annotations

import time

import pytest
from durable_agents.clock import ManualClock, SystemClock, is_duration, microseconds
from durable_agents.errors import InvalidSetting


def test_the_system_clock_tells_microseconds() -> None:
    """The wall clock lies between two readings of the kernel's."""
    before = time.time_ns() // 1000
    now = SystemClock().now()
    assert before <= now <= time.time_ns() // 1000


def test_the_monotonic_reading_never_goes_back() -> None:
    """Two readings in turn are in order."""
    clock = SystemClock()
    assert clock.monotonic() <= clock.monotonic()


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    """Both readings move by what the clock is advanced by, and by nothing else."""
    clock = ManualClock(5)
    assert (clock.now(), clock.now(), clock.monotonic()) == (5, 5, 0)
    clock.advance(1.5)
    assert (clock.now(), clock.monotonic()) == (1_500_005, 1_500_000)


def test_a_jump_moves_the_wall_clock_alone() -> None:
    """The time can be set back; what measures durations does not notice."""
    clock = ManualClock(5)
    clock.advance(1)
    clock.jump(2)
    assert (clock.now(), clock.monotonic()) == (2, 1_000_000)


@pytest.mark.parametrize("duration_s", [-1.0, float("nan"), float("inf")])
def test_time_cannot_be_advanced_by_what_is_no_duration(duration_s: float) -> None:
    """Negative, endless and undefined durations are refused and move nothing."""
    clock = ManualClock(5)
    with pytest.raises(InvalidSetting, match="duration_s must be finite and 0 or more"):
        clock.advance(duration_s)
    assert clock.now() == 5


def test_seconds_become_whole_microseconds() -> None:
    """A duration is rounded to the nearest microsecond."""
    assert microseconds(0.0000014) == 1
    assert microseconds(7 * 24 * 3600) == 604_800_000_000


@pytest.mark.parametrize("length", [-1, float("nan"), float("inf"), 1e300, 10**400, -(10**400), True, "5", None])
def test_what_is_no_length_of_time_is_told(length: object) -> None:
    """A number that no float can hold is one more, not an error of its own."""
    assert not is_duration(length, 0, 3600)
    assert is_duration(5, 5, 5)
