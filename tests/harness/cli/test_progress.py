"""The progress of an exploration in a log: how much of how much, the time left, and no flood."""

from __future__ import annotations

from pytest_chaos.cli.progress import Lines
from pytest_chaos.explore.session import Progress


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        """Start at an arbitrary time."""
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def told(events: list[tuple[float, str, int, int]], budget_s: float | None = None) -> list[str]:
    """Return the lines of events: seconds since the one before, family, done, total."""
    clock, said = Clock(), list[str]()
    lines = Lines(budget_s, clock=clock, say=said.append)
    for after_s, family, done, total in events:
        clock.now_s += after_s
        lines.listen(Progress(family=family, states=done, done=done, total=total, findings=0))
    return said


def test_a_long_family_is_announced_at_once_and_then_each_ten_seconds() -> None:
    """The pace of the first seconds says how long it takes; short steps are not told."""
    found = told([(0.0, "crash", 0, 600), (3.0, "crash", 30, 600), (1.0, "crash", 40, 600), (9.0, "crash", 130, 600)])
    assert found == [
        "crash: 30 of 600, 30 states, 0 findings, some 57 s left",
        "crash: 130 of 600, 130 states, 0 findings, some 47 s left",
    ]


def test_a_short_exploration_says_nothing() -> None:
    """What ends within ten seconds needs no line."""
    assert told([(0.0, "crash", 0, 15), (2.5, "crash", 10, 15), (1.0, "power", 0, 90), (2.5, "power", 60, 90)]) == []


def test_what_a_budget_leaves_out_is_said() -> None:
    """A budget of 30 s at ten states a second ends before 600: the rest is named."""
    (line,) = told([(0.0, "power", 0, 600), (10.0, "power", 100, 600)], budget_s=30.0)
    assert line.endswith("some 50 s left, of which the budget leaves out some 300 of 600")


def test_a_family_that_goes_on_counts_its_own_pace() -> None:
    """States that an earlier exploration judged took no time in this one."""
    (line,) = told([(0.0, "io", 500, 1000), (10.0, "io", 510, 1000)])
    assert line.endswith("some 8 min 10 s left")


def test_without_a_total_there_is_no_estimate() -> None:
    """A family whose states are not counted yet has the numbers alone."""
    assert told([(0.0, "recovery", 1, 0), (11.0, "recovery", 20, 0)]) == ["recovery: 20, 20 states, 0 findings"]
