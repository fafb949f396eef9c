"""Job queues and monitors with one known bug each.

| variant | bug | seen by |
|---|---|---|
| AdvancesAfterwards | the monitor ends the job without its intention, and advances after it (D16) | a kill between |
| StartsUnseen | the executor begins before anybody knows its process | a kill between the two |
| BeginsTheCancelled | a job is begun though its task was cancelled while it waited | a rejection before the work |
| UnfencedEnd | a claim is ended whoever has the job by now (D17) | a monitor whose job was taken |
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import msgspec
from durable_agents import JobClaim, JobCrashPoint, JobQueue, Monitor
from durable_agents.errors import JobLost
from durable_agents.jobs.queue import settle
from durable_agents.processes import start_of
from durable_agents.store.sqlite.jobs import _CLAIM, _INSERT_RUN, OLDEST

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from durable_agents import Job
    from durable_agents.jobs.queue import JobOutcome


class AdvancesAfterwards(Monitor):
    """Keeps the intended advance in its head."""

    def _finalise(self, job: Job, claim: JobClaim, exit_code: int) -> JobOutcome:
        outcome = super()._finalise(job, claim, exit_code)
        self._intended = outcome
        deliver = self._engine.deliver

        def advance() -> int:
            self._engine.deliver = deliver  # type: ignore[method-assign]
            if outcome.leaves is None or outcome.task_id is None:
                return 0
            return self._engine.advance_stage(outcome.task_id, outcome.leaves, finished_agent=outcome.agent).is_moved

        self._engine.deliver = advance  # type: ignore[method-assign]
        return msgspec.structs.replace(outcome, leaves=None)


class StartsUnseen(Monitor):
    """Opens the gate first."""

    def _started(self, job: Job, claim: JobClaim) -> subprocess.Popen[bytes]:
        process = super()._started(job, claim)
        self._open_gate(process)
        return process

    @staticmethod
    def _open_gate(process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None and not process.stdin.closed:
            Monitor._open_gate(process)


class BeginsTheCancelled(JobQueue):
    """Begins what is there to begin."""

    def claim(self, *, agents: Sequence[str] | None = None) -> Job | None:
        """Claim the oldest job, and do not ask what became of its task."""
        del agents
        pid, now = os.getpid(), self._clock.now()
        with self._store.transaction() as transaction:
            execute = transaction.execute  # type: ignore[attr-defined]
            if (oldest := execute(OLDEST, ()).fetchone()) is None:
                return None
            (run_id,) = execute(_INSERT_RUN, (now, *oldest)).fetchone()
            execute(_CLAIM, (run_id, pid, start_of(pid), now, now, *oldest)).fetchone()
            return transaction.job(*oldest)


class UnfencedEnd(JobQueue):
    """Ends the newest claim of the job, since it is the job that has ended."""

    def check(self, claim: JobClaim) -> None:
        """Ask nobody."""

    def record_exit(self, claim: JobClaim, exit_code: int) -> None:
        """Record it for whatever run is there."""
        with self._store.transaction() as transaction:
            job = transaction.job(claim.job_id)
            assert job is not None
            transaction.record_exit(job.job_id, job.claim, exit_code=exit_code, now=self._clock.now())

    def settle(self, outcome: JobOutcome) -> None:
        """End it whoever has it."""
        sys.audit(JobCrashPoint.JOB_BEFORE_SETTLE, outcome.job_id)
        with self._store.transaction() as transaction:
            job = transaction.job(outcome.job_id)
            assert job is not None
            if not settle(transaction, msgspec.structs.replace(outcome, claim=job.claim), self._clock.now()):
                raise JobLost
        sys.audit(JobCrashPoint.JOB_AFTER_SETTLE, outcome.job_id)
