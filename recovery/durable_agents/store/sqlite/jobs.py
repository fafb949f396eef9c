"""The statements on jobs, runs, dead ticks, the outbox and stages."""

# ruff: noqa: S608 - statements are put together from the constants of this module alone

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import AgentRun, Audit, DeadTicks, Job, JobStatus, OutboxEntry, OutboxKind, RunningJob
from durable_agents.store.sqlite.statements import Queries, columns
from durable_agents.store.sqlite.work import TaskWrites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_agents.clock import Microseconds

_INSERT: Final = (
    "INSERT INTO jobs (agent, repo, task_id, status, attempts, max_attempts, claim, error, created_at, updated_at) "
    f"VALUES (?, ?, ?, 'queued', 0, ?, 0, '', ?, ?) RETURNING {columns(Job)}"
)
JOB: Final = f"SELECT {columns(Job)} FROM jobs WHERE job_id = ?"
OLDEST: Final = "SELECT job_id FROM jobs WHERE status = 'queued' ORDER BY job_id LIMIT 1"
OLDEST_OF_AGENT: Final = "SELECT job_id FROM jobs WHERE status = 'queued' AND agent = ? ORDER BY job_id LIMIT 1"
_INSERT_RUN: Final = (
    "INSERT INTO agent_runs (job_id, claim, task_id, agent, started_at) "
    "SELECT job_id, claim + 1, task_id, agent, ? FROM jobs WHERE job_id = ? RETURNING run_id"
)
_CLAIM: Final = (
    "UPDATE jobs SET status = 'running', attempts = attempts + 1, claim = claim + 1, run_id = ?, pid = NULL, "
    "process_start = NULL, monitor_pid = ?, monitor_start = ?, started_at = ?, error = '', updated_at = ? "
    f"WHERE job_id = ? AND status = 'queued' RETURNING {columns(Job)}"
)
_DROP: Final = (
    "UPDATE jobs SET status = 'failed', error = ?, updated_at = ? WHERE job_id = ? AND status = 'queued' "
    "AND task_id IN (SELECT task_id FROM tasks WHERE task_id = jobs.task_id AND status = 'cancelled') "
    "RETURNING task_id, agent"
)
_DROPPED: Final = "its task was cancelled before it began"
_HELD = "WHERE job_id = ? AND status = 'running' AND claim = ?"
_HOLDS: Final = f"SELECT 1 FROM jobs {_HELD}"
_SET_EXECUTOR: Final = f"UPDATE jobs SET pid = ?, process_start = ?, updated_at = ? {_HELD}"
_RECORD_EXIT: Final = (
    "UPDATE agent_runs SET exit_code = ?, finished_at = ? WHERE exit_code IS NULL "
    f"AND run_id = (SELECT run_id FROM jobs {_HELD})"
)
_FENCE: Final = f"UPDATE jobs SET claim = claim + 1, updated_at = ? {_HELD}"
_END: Final = f"UPDATE jobs SET status = ?, error = ?, updated_at = ? {_HELD}"
_FORGET_TICKS: Final = "DELETE FROM job_dead_ticks WHERE job_id = ?"
_FORGET_TICK: Final = "DELETE FROM job_dead_ticks WHERE job_id = ? AND reaper = ?"
_SET_TICKS: Final = (
    f"INSERT INTO job_dead_ticks (job_id, reaper, claim, ticks) SELECT job_id, ?, claim, ? FROM jobs {_HELD} "
    "ON CONFLICT DO UPDATE SET claim = excluded.claim, ticks = excluded.ticks"
)
RUNNING: Final = (
    "SELECT j.job_id, j.agent, j.repo, j.task_id, j.attempts, j.max_attempts, j.claim, j.pid, j.process_start, "
    "j.monitor_pid, j.monitor_start, j.started_at, r.exit_code, r.finished_at, coalesce(d.ticks, 0), "
    "coalesce(r.claim, j.claim) "
    "FROM jobs AS j LEFT JOIN agent_runs AS r ON r.run_id = j.run_id "
    "LEFT JOIN job_dead_ticks AS d ON d.job_id = j.job_id AND d.reaper = ? AND d.claim = j.claim "
    "WHERE j.status = 'running' AND j.job_id > ? ORDER BY j.job_id LIMIT ?"
)
ACTIVE: Final = f"SELECT {columns(Job)} FROM jobs WHERE task_id = ? AND status IN ('queued', 'running') ORDER BY job_id"
COUNTS: Final = {
    status: f"SELECT count(*) FROM jobs WHERE status = '{status}'" for status in (JobStatus.QUEUED, JobStatus.RUNNING)
}
RUNS: Final = f"SELECT {columns(AgentRun)} FROM agent_runs WHERE job_id = ? ORDER BY run_id"
_OUTBOX = "kind, job_id, claim, agent, repo, task_id, stage, entered_at, text, tries, taken_by, created_at"
_INSERT_OUTBOX: Final = f"INSERT INTO outbox ({_OUTBOX}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, NULL, ?)"
# SQLite gives the number of a deleted row to a later one: by the number alone, a late sender would
# take another entry.
_ENTRY = "WHERE outbox_id = ? AND job_id = ? AND claim = ?"
_DELETE_OUTBOX: Final = f"DELETE FROM outbox {_ENTRY}"
_TAKE_OUTBOX: Final = f"UPDATE outbox SET taken_by = ?, tries = tries + ? {_ENTRY} AND taken_by IS ?"
OUTBOX: Final = f"SELECT outbox_id, {_OUTBOX} FROM outbox WHERE kind = ? AND outbox_id > ? ORDER BY outbox_id LIMIT ?"
_CHANGE_STAGE: Final = (
    "UPDATE tasks SET stage = ?, stage_entered_at = ?, updated_at = ? "
    "WHERE task_id = ? AND stage = ? AND stage_entered_at = ?"
)


class JobReads(Queries):
    """Queries on jobs, runs and the outbox."""

    __slots__ = ()

    def job(self, job_id: int) -> Job | None:
        """Return the job, or None."""
        row = self._read_one(JOB, (job_id,))
        return None if row is None else _job(row)

    def running_jobs(self, reaper: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[RunningJob]:
        """Return running jobs in the order of their ids, those behind ``after``."""
        return [RunningJob(*row) for row in self._read(RUNNING, (reaper, after, limit))]

    def active_jobs(self, task_id: str) -> list[Job]:
        """Return the queued and running jobs of a task, oldest first."""
        return [_job(row) for row in self._read(ACTIVE, (task_id,))]

    def active_job_counts(self) -> dict[JobStatus, int]:
        """Return how many jobs are queued, and how many running."""
        return {status: self._read(statement, ())[0][0] for status, statement in COUNTS.items()}

    def runs(self, job_id: int) -> list[AgentRun]:
        """Return the runs of a job, oldest first."""
        return [AgentRun(*row) for row in self._read(RUNS, (job_id,))]

    def outbox(self, kind: OutboxKind, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[OutboxEntry]:
        """Return entries of this kind, oldest first."""
        return [_entry(row) for row in self._read(OUTBOX, (kind.value, after, limit))]


class JobWrites(JobReads, TaskWrites):
    """Changes of jobs, dead ticks, the outbox and stages."""

    __slots__ = ()

    def insert_job(self, *, agent: str, repo: str, task_id: str | None, max_attempts: int, now: Microseconds) -> Job:
        """Insert a queued job and return it. Raises UnknownTask."""
        row = (agent, repo, task_id, max_attempts, now, now)
        return _job(self._insert_of_task(_INSERT, row, task_id or "").fetchone())

    def claim_job(
        self, agents: Sequence[str] | None, *, monitor_pid: int, monitor_start: str | None, now: Microseconds
    ) -> Job | None:
        """Set the oldest queued job running, with a new claim and a new run; return it, or None."""
        while (job_id := self._oldest_queued(agents)) is not None and self._drop(job_id, now):
            pass
        if job_id is None:
            return None
        (run_id,) = self.execute(_INSERT_RUN, (now, job_id)).fetchone()
        return _job(self.execute(_CLAIM, (run_id, monitor_pid, monitor_start, now, now, job_id)).fetchone())

    def _drop(self, job_id: int, now: Microseconds) -> bool:
        """Fail a queued job whose task was cancelled; False for any other."""
        found = self._read_one(_DROP, (_DROPPED, now, job_id))
        if found is None:
            return False
        task_id, agent = found
        detail = f"job {job_id} of {agent}: {_DROPPED}"
        self.insert_audit(Audit(task_id, "job_ended", JobStatus.QUEUED.value, JobStatus.FAILED.value, detail, now))
        return True

    def _oldest_queued(self, agents: Sequence[str] | None) -> int | None:
        """Return the oldest queued job, by one query for each agent.

        One query for all agents would sort the whole queue.
        """
        if agents is None:
            found = [self._read_one(OLDEST, ())]
        else:
            found = [self._read_one(OLDEST_OF_AGENT, (agent,)) for agent in agents]
        return min((row[0] for row in found if row is not None), default=None)

    def set_executor(self, job_id: int, claim: int, *, pid: int, process_start: str | None, now: Microseconds) -> bool:
        """Record the process that executes a job running under this claim."""
        return self._changes_one(_SET_EXECUTOR, (pid, process_start, now, job_id, claim))

    def record_exit(self, job_id: int, claim: int, *, exit_code: int, now: Microseconds) -> bool:
        """Record how the executor ended, once, if the job is running under this claim."""
        return self._changes_one(_RECORD_EXIT, (exit_code, now, job_id, claim))

    def holds_job(self, job_id: int, claim: int) -> bool:
        """Tell whether the job is running under this claim: the fence of every write."""
        return bool(self._read(_HOLDS, (job_id, claim)))

    def fence_job(self, job_id: int, claim: int, *, now: Microseconds) -> bool:
        """Raise the claim of a running job by one."""
        return self._changes_one(_FENCE, (now, job_id, claim))

    def end_claim(self, job_id: int, claim: int, *, status: JobStatus, error: str, now: Microseconds) -> bool:
        """Make a job queued, done or failed, and forget its dead ticks.

        False unless it is running under this claim.
        """
        if not self._changes_one(_END, (status.value, error, now, job_id, claim)):
            return False
        self.execute(_FORGET_TICKS, (job_id,))
        return True

    def set_dead_ticks(self, reaper: str, ticks: Sequence[DeadTicks]) -> None:
        """Set the dead ticks of a reaper, each if the job is still running under that claim."""
        self.execute_all(_FORGET_TICK, [(each.job_id, reaper) for each in ticks if not each.ticks])
        self.execute_all(_SET_TICKS, [(reaper, each.ticks, each.job_id, each.claim) for each in ticks if each.ticks])

    def insert_outbox(self, entry: OutboxEntry) -> int:
        """Add an entry and return its id."""
        row = (entry.kind.value, entry.job_id, entry.claim, entry.agent, entry.repo, entry.task_id)
        said = (entry.stage, entry.entered_at, entry.text, entry.created_at)
        number = self.execute(_INSERT_OUTBOX, (*row, *said)).lastrowid
        assert number is not None  # noqa: S101 - a row was inserted
        return number

    def delete_outbox(self, entry: OutboxEntry) -> bool:
        """Remove an entry as it was read; False if it is gone."""
        return self._changes_one(_DELETE_OUTBOX, (entry.outbox_id, entry.job_id, entry.claim))

    def take_outbox(self, entry: OutboxEntry, *, expected: str | None, taken_by: str | None) -> bool:
        """Record the sender of an entry; False if it is not held by ``expected``."""
        tries = int(taken_by is not None)
        row = (taken_by, tries, entry.outbox_id, entry.job_id, entry.claim, expected)
        return self._changes_one(_TAKE_OUTBOX, row)

    def change_stage(
        self, task_id: str, *, expected: str, entered_at: Microseconds, stage: str, now: Microseconds
    ) -> bool:
        """Set the stage; False if it is not the one that was entered then."""
        return self._changes_one(_CHANGE_STAGE, (stage, now, now, task_id, expected, entered_at))


def _job(row: tuple[Any, ...]) -> Job:
    job_id, agent, repo, task_id, status, *others = row
    return Job(job_id, agent, repo, task_id, JobStatus(status), *others)


def _entry(row: tuple[Any, ...]) -> OutboxEntry:
    outbox_id, kind, *others = row
    return OutboxEntry(outbox_id, OutboxKind(kind), *others)
