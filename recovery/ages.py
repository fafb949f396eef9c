"""Ages of running jobs, which a clock that is set back cannot hold up: by the wall clock, or by what was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recovery.clock import Clock, Microseconds
    from recovery.store.job_rows import RunningJob


class Ages:
    """How long something has been so: by the wall clock, or by how long it was seen so, whichever is longer."""

    def __init__(self, clock: Clock) -> None:
        """Begin to see."""
        self._clock = clock
        self._seen: dict[tuple[int, Microseconds, bool], Microseconds] = {}

    def see(self, jobs: Sequence[RunningJob]) -> None:
        """Remember since when these are as they are, and forget all others."""
        now = self._clock.monotonic()
        keys = [_key(job, has_exited=job.exit_code is not None) for job in jobs]
        keys += [_key(job, has_exited=False) for job in jobs if job.exit_code is not None]
        self._seen = {key: self._seen.get(key, now) for key in keys}

    def running(self, job: RunningJob, now: Microseconds) -> Microseconds:
        """Return since when the job runs, in microseconds."""
        return self._age(_key(job, has_exited=False), now)

    def exited(self, job: RunningJob, now: Microseconds) -> Microseconds:
        """Return since when its exit code is there, in microseconds."""
        return self._age(_key(job, has_exited=True), now)

    def _age(self, key: tuple[int, Microseconds, bool], now: Microseconds) -> Microseconds:
        return max(now - key[1], self._clock.monotonic() - self._seen[key])


def _key(job: RunningJob, *, has_exited: bool) -> tuple[int, Microseconds, bool]:
    since = job.finished_at if has_exited else job.started_at
    return (job.job_id, job.started_at if since is None else since, has_exited)
