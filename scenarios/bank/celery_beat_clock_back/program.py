"""Celery's scheduler, turned minute by minute with a clock that is set back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.beat import Scheduler
from celery.schedules import schedule

if TYPE_CHECKING:
    from pytest_chaos import Marks

MINUTE = timedelta(minutes=1)
BACK = timedelta(hours=12)
BEFORE, AFTER = 3, 10
"""Minutes before and after the clock is set back."""


class Clock:
    """A clock that its owner moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 10, 25, 14, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Return the time."""
        return self.time


def serve(marks: Marks, *, is_mended: bool) -> None:
    """Turn the scheduler once a minute; set the clock back in between."""
    clock = Clock()
    app = Celery("shop", broker="memory://")
    app.conf.beat_schedule = {"report": {"task": "report", "schedule": schedule(MINUTE, nowfun=clock, app=app)}}
    kind = MendedBeat if is_mended else Beat
    scheduler = kind(app=app, marks=marks, clock=clock)
    for minute in range(BEFORE + AFTER):
        if minute == BEFORE:
            clock.time -= BACK
            marks.note("set back", value=str(clock.time))
        clock.time += MINUTE
        while scheduler.tick() == 0:
            pass
        marks.note("minute", minute)


class Beat(Scheduler):  # type: ignore[misc, unused-ignore]  # the library is in the entry's own environment
    """The library's scheduler, which says what it sends."""

    def __init__(self, *, marks: Marks, clock: Clock, **options: Any) -> None:
        self.marks, self.clock, self.before = marks, clock, clock()
        super().__init__(**options)

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Say it, in place of sending it to a broker."""
        self.marks.note("sent", value=str(self.clock()))


class MendedBeat(Beat):
    """Begins anew when its clock goes back."""

    def tick(self, *arguments: Any, **options: Any) -> Any:
        """Forget the last runs and the heap if the clock has gone back."""
        now = self.clock()
        if now < self.before:
            for entry in self.schedule.values():
                entry.last_run_at = now - MINUTE
            self._heap = None
        self.before = now
        return super().tick(*arguments, **options)
