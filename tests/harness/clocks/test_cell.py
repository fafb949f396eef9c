"""The arithmetic of moved clocks, and the cell that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.clocks.cell import MOTIONS, RATE_MAX, ClockCell, Motion, motion_in
from pytest_chaos.errors import ClockNotMoved

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_796_000_000 * 10**9
moments = st.integers(10**18, 4 * 10**18)


@given(moments, moments, st.floats(0, RATE_MAX))
def test_a_change_of_speed_is_no_jump(now: int, later: int, rate: float) -> None:
    """A clock shows the same right before and right after it is frozen or sped up."""
    moved = Motion().jumped(-86_400, now_ns=now)
    assert moved.running(rate, now_ns=later).at(later) == moved.at(later)


@given(moments, st.integers(0, 10**15))
def test_a_clock_at_half_speed_shows_half_the_time(now: int, passed: int) -> None:
    """The error is below a nanosecond."""
    half = Motion().running(0.5, now_ns=now)
    assert half.at(now + passed) == now + passed // 2


def test_a_healed_clock_is_the_machines() -> None:
    """Whatever was done to it before, and it is no moved clock any more."""
    moved = Motion(tai_ns=37).jumped(10**6, now_ns=NOW).running(3.0, now_ns=NOW)
    assert moved.is_moved
    assert not moved.healed().is_moved
    assert moved.healed().at(NOW + 5) == NOW + 5
    assert moved.healed().tai_ns == 37


@pytest.mark.parametrize(("by_s", "year"), [(-100 * 365.25 * 86_400, "1927"), (250 * 365.25 * 86_400, "2277")])
def test_a_time_beyond_64_bits_is_refused(by_s: float, year: str) -> None:
    """The message has the year that the clock would show."""
    with pytest.raises(
        ClockNotMoved, match=f"^a moved clock must show a time from 1970 to 2261; got the year {year}. Jump less far$"
    ):
        Motion().jumped(by_s, now_ns=NOW)


def test_each_motion_counts_once_it_is_whole(tmp_path: Path) -> None:
    """A cell holds the last of many motions, and another end of it sees the same."""
    cell = ClockCell(tmp_path / "cell")
    for number in range(MOTIONS * 2 + 3):
        motion = Motion(base_ns=number, shown_ns=2 * number, rate=number)
        cell.move(motion)
        assert cell.motion == motion
        assert motion_in((tmp_path / "cell").read_bytes()) == motion
    assert ClockCell(tmp_path / "cell").motion == cell.motion
