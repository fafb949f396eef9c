"""Reapers with one known bug each.

| variant | bug | seen by |
|---|---|---|
| AdvancesAfterwards | the claim is committed without the intended advance, done after it (D16) | a kill between |
| RequeuesTheLiving | past the ceiling a job is requeued while its process lives (D17) | the lock of its executors |
| AsksSignalZero | a process lives if a signal 0 reaches its number (D18) | a zombie, a used number, pid 0 |
| AdvancesBeforeClaim | gate, advance, and only then the claim, without compare-and-set (D19) | a webhook in between |
| ForgetsStreaks | dead ticks are counted in memory (D20) | a restart between two looks |
| ReapsFinalising | nobody asks whether the monitor lives (the seed's own defect) | a monitor that stands still |
| CountsLostClaims | what another reaper has ended is ended again, by id, and counted | reapers at once |
| NeverResets | a living look leaves the count of dead ticks as it is | a dead look, a living one, and a dead one |
| OverlooksTheStarted | an executor that is recorded after the look is overlooked | a monitor that starts meanwhile |
| Impatient | a claim that met somebody else's write lock is counted | a lock that is held before a claim |
| GraceFromTheStart | the grace counts from the job's start, not from its exit | an exit late in a job's life |
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, cast

import msgspec
from durable_agents import JobCrashPoint, JobReaper
from durable_agents.errors import DatabaseLocked
from durable_agents.jobs.queue import settle
from durable_agents.processes import Liveness, ProcessTable
from durable_agents.store import SqliteStore
from durable_agents.store.sqlite.connections import factory_for

from tests.planted.jobs.stages import advance_blindly

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence

    from durable_agents import JobQueue, JobStatus, StageEngine
    from durable_agents.clock import Microseconds
    from durable_agents.jobs.queue import Executor, JobOutcome
    from durable_agents.jobs.reaper import Tier, _Case
    from durable_agents.store.rows import RunningJob


class AdvancesAfterwards(JobReaper):
    """Ends the job, and then, in a transaction of its own, remembers what it wanted to do."""

    def _settle(
        self,
        found: Sequence[JobOutcome],
        tier: Tier,
        now: Microseconds,
        errors: list[str],
        ended: Counter[JobStatus] | None = None,
    ) -> int:
        won = super()._settle([msgspec.structs.replace(each, leaves=None) for each in found], tier, now, errors, ended)
        for outcome in found:
            if outcome.leaves is not None and outcome.task_id is not None and won:
                self._engine.advance_stage(
                    outcome.task_id, outcome.leaves, finished_agent=outcome.agent, repo=outcome.repo
                )
        return won


class Impatient(JobReaper):
    """Gives up on a write lock that somebody else has, and counts what it wanted to end."""

    def __init__(self, queue: JobQueue, engine: StageEngine, **settings: Any) -> None:
        """Open the same file with a timeout that is shorter than a lock may be held."""
        super().__init__(queue, engine, **settings)
        self._store = SqliteStore(factory_for(cast("SqliteStore", queue.store).path, 0.05))

    def _settle(
        self,
        found: Sequence[JobOutcome],
        tier: Tier,
        now: Microseconds,
        errors: list[str],
        ended: Counter[JobStatus] | None = None,
    ) -> int:
        try:
            return super()._settle(found, tier, now, errors, ended)
        except DatabaseLocked:
            self._note(found, tier, now)
            return len(found)


class RequeuesTheLiving(JobReaper):
    """Gives the job away, and hopes."""

    def _fence_and_end(self, job: RunningJob, now: Microseconds, errors: list[str]) -> int | None:
        del now, errors
        return job.claim


class _Signalled(ProcessTable):
    """A table that knows numbers only."""

    def look(self, pid: int | None, start: str | None) -> Liveness:
        """Ask the kernel whether anybody has this number."""
        del start
        with contextlib.suppress(OSError, OverflowError):
            if pid is not None:
                os.kill(pid, 0)
                return Liveness.ALIVE
        return Liveness.DEAD


class AsksSignalZero(JobReaper):
    """Takes a number for a process."""

    def _processes(self) -> ProcessTable:
        return _Signalled(())


class AdvancesBeforeClaim(JobReaper):
    """Looks at the gate, leaves the stage, and claims what it then has done already."""

    def _of_succeeded(self, looks: Sequence[_Case], errors: list[str]) -> Iterator[list[JobOutcome]]:
        for batch in super()._of_succeeded(looks, errors):
            sys.audit(JobCrashPoint.REAPER_BEFORE_CLAIM, len(batch))
            for outcome in batch:
                if outcome.leaves is not None and outcome.task_id is not None:
                    advance_blindly(self._engine, outcome.task_id, outcome.leaves)
            yield [msgspec.structs.replace(outcome, leaves=None) for outcome in batch]


class ForgetsStreaks(JobReaper):
    """Keeps its counts to itself."""

    def _count(self, looks: Sequence[_Case]) -> None:
        self._kept = {look.job.job_id: look.ticks for look in looks}

    def _running(self) -> Iterator[RunningJob]:
        kept = getattr(self, "_kept", {})
        for job in super()._running():
            yield msgspec.structs.replace(job, dead_ticks=kept.get(job.job_id, 0))


class ReapsFinalising(JobReaper):
    """Takes a monitor that says nothing for a dead one."""

    def _running(self) -> Iterator[RunningJob]:
        for job in super()._running():
            yield msgspec.structs.replace(job, monitor_pid=None, monitor_start=None)


class CountsLostClaims(JobReaper):
    """Ends jobs by their id, whoever has them, and whatever became of them since they were looked
    at.
    """

    def _settle(
        self,
        found: Sequence[JobOutcome],
        tier: Tier,
        now: Microseconds,
        errors: list[str],
        ended: Counter[JobStatus] | None = None,
    ) -> int:
        del errors
        if not found:
            return 0
        sys.audit(JobCrashPoint.REAPER_BEFORE_CLAIM, len(found))
        with self._store.transaction() as transaction:
            for outcome in found:
                transaction.execute(  # type: ignore[attr-defined]
                    "UPDATE jobs SET status = 'running' WHERE job_id = ? AND claim = ?", (outcome.job_id, outcome.claim)
                )
                transaction.execute("DELETE FROM outbox WHERE job_id = ?", (outcome.job_id,))  # type: ignore[attr-defined]
                settle(transaction, outcome, now)
            sys.audit(JobCrashPoint.REAPER_BEFORE_COMMIT, len(found))
        self._note(found, tier, now)
        if ended is not None:
            ended.update(outcome.status for outcome in found)
        sys.audit(JobCrashPoint.REAPER_AFTER_CLAIM, len(found))
        return len(found)


class NeverResets(JobReaper):
    """Counts dead ticks, consecutive or not."""

    def _judge(self, job: RunningJob, table: ProcessTable, now: Microseconds) -> _Case:
        case = super()._judge(job, table, now)
        return msgspec.structs.replace(case, ticks=max(case.ticks, job.dead_ticks))


class OverlooksTheStarted(JobReaper):
    """Takes a job that had no executor a moment ago for one that has none."""

    def _executor_of(self, _: RunningJob) -> Executor | None:
        return None


class GraceFromTheStart(JobReaper):
    """Gives a monitor less time, the longer its job has run."""

    def _running(self) -> Iterator[RunningJob]:
        for job in super()._running():
            yield job if job.exit_code is None else msgspec.structs.replace(job, finished_at=job.started_at)
