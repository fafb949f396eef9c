"""What jobs, the reaper and the stage engine ask of a store: a part of ``Transaction`` and ``Store``.

Every change of a running job names its claim: of two who believe that it is theirs, one changes a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recovery.clock import Microseconds
    from recovery.store.job_rows import AgentRun, DeadTicks, Job, JobStatus, OutboxEntry, OutboxKind, RunningJob


class JobTransaction(Protocol):
    """The inside of a transaction, as far as jobs are concerned."""

    def insert_job(self, *, agent: str, repo: str, task_id: str | None, max_attempts: int, now: Microseconds) -> Job:
        """Insert a queued job and return it. Raises UnknownTask."""
        ...

    def job(self, job_id: int) -> Job | None:
        """Return the job, or None."""
        ...

    def claim_job(
        self, agents: Sequence[str] | None, *, monitor_pid: int, monitor_start: str | None, now: Microseconds
    ) -> Job | None:
        """Set the oldest queued job (of these agents, or of any) running, with a new claim and a new run; return it.

        Two transactions never claim one job. One whose task was cancelled is never begun: at its turn it fails, with
        that for its error and a row in the task's audit trail, and the next one is claimed.
        """
        ...

    def set_executor(self, job_id: int, claim: int, *, pid: int, process_start: str | None, now: Microseconds) -> bool:
        """Say which process executes the job, if it is running under this claim; False, and no change, if not."""
        ...

    def record_exit(self, job_id: int, claim: int, *, exit_code: int, now: Microseconds) -> bool:
        """Record how the executor ended, once, if the job is running under this claim; False, and no change, if not."""
        ...

    def holds_job(self, job_id: int, claim: int) -> bool:
        """Tell whether the job is running under this claim; it stays so until the transaction ends."""
        ...

    def fence_job(self, job_id: int, claim: int, *, now: Microseconds) -> bool:
        """Raise the claim of a running job by one, so that its holder is refused from now on; False if not his."""
        ...

    def end_claim(self, job_id: int, claim: int, *, status: JobStatus, error: str, now: Microseconds) -> bool:
        """Make a job that is running under this claim queued, done or failed; False, and no change, if it is not.

        What reapers counted of it goes.
        """
        ...

    def set_dead_ticks(self, reaper: str, ticks: Sequence[DeadTicks]) -> None:
        """Set what a reaper has counted, each if the job is still running under that claim."""
        ...

    def insert_outbox(self, entry: OutboxEntry) -> int:
        """Add an entry, whose id is made here, and return the id."""
        ...

    def delete_outbox(self, entry: OutboxEntry) -> bool:
        """Remove an entry as it was read; False where it is gone, so that of several who deliver it one goes on.

        Its number may be another entry's by then: an entry is known by its number, job and claim together.
        """
        ...

    def take_outbox(self, entry: OutboxEntry, *, expected: str | None, taken_by: str | None) -> bool:
        """Say who is sending an entry, if it is held by ``expected``, and count the try; False, and no change, if not.

        To give it back, taken_by None, is no try.
        """
        ...

    def change_stage(
        self, task_id: str, *, expected: str, entered_at: Microseconds, stage: str, now: Microseconds
    ) -> bool:
        """Set the stage if it is still the one that was entered then (compare-and-set); False, and no change, if not.

        The task enters the new stage at ``now``.
        """
        ...


class JobStore(Protocol):
    """What a store can tell about jobs."""

    def job(self, job_id: int) -> Job | None:
        """Return the job, or None."""
        ...

    def running_jobs(self, reaper: str, *, after: int = 0, limit: int) -> list[RunningJob]:
        """Return running jobs in the order of their ids, those behind ``after``, with the dead ticks of this reaper."""
        ...

    def active_jobs(self, task_id: str) -> list[Job]:
        """Return the queued and running jobs of a task, oldest first."""
        ...

    def active_job_counts(self) -> dict[JobStatus, int]:
        """Return how many jobs are queued, and how many running; what has ended is not counted."""
        ...

    def runs(self, job_id: int) -> list[AgentRun]:
        """Return the runs of a job, oldest first."""
        ...

    def outbox(self, kind: OutboxKind, *, after: int = 0, limit: int) -> list[OutboxEntry]:
        """Return what is still to be done of this kind, oldest first, what is behind ``after``."""
        ...
