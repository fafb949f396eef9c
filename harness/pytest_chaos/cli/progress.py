"""The progress of an exploration: a bar on a terminal, else a line from time to time.

Both say how many states of how many were judged, and the time left. It is estimated from the pace
of the family so far. A family that takes longer than ten seconds is announced as soon as its pace
is known, with what a budget leaves out of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import TaskID

    from pytest_chaos.explore.session import Progress

EVERY_S: Final = 10.0
_PACE_S: Final = 2.0
"""The pace of the first states says little: they pay for what is made once."""


class Pace(NamedTuple):
    """When a family began, and how much of it was done then: an earlier run may have begun it."""

    since_s: float
    done: int

    def left_s(self, now: Progress, now_s: float) -> float | None:
        """Return the estimated seconds to the end of the family; None if they are not known."""
        took_s, done = now_s - self.since_s, now.done - self.done
        if not now.total or done <= 0 or took_s < _PACE_S:
            return None
        return took_s / done * max(0, now.total - now.done)


class Lines:
    """A line each ten seconds, and one at once for a family that takes longer than that.

    ``budget_s`` is the time of the whole exploration, if that is bounded.
    """

    def __init__(
        self,
        budget_s: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = lambda line: click.echo(line, err=True),
    ) -> None:
        self._clock = clock
        self._say = say
        self._told_s = clock()
        self._until_s = None if budget_s is None else self._told_s + budget_s
        self._paces: dict[str, Pace] = {}
        self._announced: set[str] = set()

    def listen(self, now: Progress) -> None:
        """Print a line, unless one was printed within the last ten seconds."""
        now_s = self._clock()
        pace = self._paces.setdefault(now.family, Pace(now_s, now.done))
        left_s = pace.left_s(now, now_s)
        is_long = left_s is not None and left_s > EVERY_S and now.family not in self._announced
        if now_s - self._told_s < EVERY_S and not is_long:
            return
        self._told_s = now_s
        if left_s is not None:
            self._announced.add(now.family)
        done = f"{now.done:,} of {now.total:,}" if now.total else f"{now.done:,}"
        self._say(f"{now.family}: {done}, {counted(now)}{self._estimate(now, left_s, now_s)}")

    def _estimate(self, now: Progress, left_s: float | None, now_s: float) -> str:
        if left_s is None:
            return ""
        budget_s = None if self._until_s is None else max(0.0, self._until_s - now_s)
        if budget_s is None or left_s <= budget_s:
            return f", some {shown(left_s)} left"
        out = round((now.total - now.done) * (1 - budget_s / left_s))
        return f", some {shown(left_s)} left, of which the budget leaves out some {out:,} of {now.total:,}"


def counted(now: Progress) -> str:
    """Return the numbers of states and findings in words."""
    states = "1 state" if now.states == 1 else f"{now.states:,} states"
    return f"{states}, " + ("1 finding" if now.findings == 1 else f"{now.findings:,} findings")


def shown(seconds: float) -> str:
    """Return an estimated time as it is said.

    >>> shown(41.7), shown(125.0), shown(7300.0)
    ('42 s', '2 min 5 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Bar:
    """A bar for each family, with the numbers and the time left, for a terminal."""

    def __enter__(self) -> Callable[[Progress], None]:
        """Show the bars, and return what updates them."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()
        self._tasks: dict[str, TaskID] = {}
        return self._listen

    def __exit__(self, *_: object) -> None:
        """Remove the bars."""
        self._progress.stop()

    def _listen(self, now: Progress) -> None:
        if now.family not in self._tasks:
            self._tasks[now.family] = self._progress.add_task(now.family, total=None, count="", done="")
        done = f"{now.done:,} of {now.total:,}" if now.total else f"{now.done:,}"
        self._progress.update(
            self._tasks[now.family], total=now.total or None, completed=now.done, count=counted(now), done=done
        )
