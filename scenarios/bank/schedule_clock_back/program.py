"""The library ``schedule``, called minute by minute with a clock that is set back."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any
from unittest import mock

import schedule

if TYPE_CHECKING:
    from pytest_chaos import Marks

MINUTE = datetime.timedelta(minutes=1)
BACK = datetime.timedelta(hours=12)
BEFORE, AFTER = 3, 10
"""Minutes before and after the clock is set back."""


class Moved(datetime.datetime):
    """The library's clock: it stands where its owner has put it."""

    moment = datetime.datetime(2026, 10, 25, 14, 0)  # noqa: DTZ001 - the library's own clock has no zone, either

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:  # noqa: ARG003 - as the library calls it
        """Return the time."""
        return cls.moment


def serve(marks: Marks, *, is_mended: bool) -> None:
    """Run what is pending, once a minute; set the clock back in between."""
    with mock.patch.object(schedule.datetime, "datetime", Moved):
        jobs = schedule.Scheduler()
        jobs.every(1).minutes.do(lambda: marks.note("ran", value=str(Moved.moment)))
        before = Moved.moment
        for minute in range(BEFORE + AFTER):
            if minute == BEFORE:
                Moved.moment -= BACK
                marks.note("set back", value=str(Moved.moment))
            Moved.moment += MINUTE
            if is_mended and Moved.moment < before:
                anew(jobs)
            before = Moved.moment
            jobs.run_pending()
            marks.note("minute", minute)


def anew(jobs: schedule.Scheduler) -> None:
    """Schedule all jobs anew, as from now."""
    for job in jobs.get_jobs():
        job.next_run = Moved.moment
