"""Job queue: runs of agents that are queued, claimed, and end once.

A job is queued, running, done or failed; the last two are final. It is started at most
``max_attempts`` times. Each start is a *claim* and a row of ``agent_runs``. The claim is a number
that rises and fences as a lease's token does: each write about a running job names it, and the
store compares it in the same transaction. If a reaper has ended the job, or another process has
claimed it, the write raises ``JobLost`` and changes nothing.

``settle`` ends a claim in one transaction: the status of the job, the intended advance of its task,
and the alert of a failure. Advance and alert are rows of the outbox, acted on afterwards by
whichever process comes first. So a process that dies in between loses nothing, and nothing is done
twice (D16, docs/design.md).

The outcome depends on how the run ended, by one table for the monitor and for each tier of the
reaper:

| the run | the job | besides |
|---|---|---|
| exit 0, and the agent may not leave the stage (past it, or a human decides) | done | |
| exit 0, and the gate of the stage is green | done | the task is to leave the stage |
| exit 0, and the gate is red | as below | nothing |
| another exit, or an unknown one, and attempts remain | queued | |
| the same, and no attempts remain | failed | one alert |
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from durable_agents.claim import Owner, lost
from durable_agents.clock import Microseconds
from durable_agents.errors import InvalidJob, JobLost, UnknownJob
from durable_agents.jobs.crash_points import JobCrashPoint
from durable_agents.jobs.stages import MAX_ATTEMPTS
from durable_agents.manager import Manager
from durable_agents.store.rows import AgentRun, Audit, Job, JobStatus, OutboxEntry, OutboxKind, RunningJob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from durable_agents.jobs.stages import StageEngine
    from durable_agents.store import Transaction

__all__ = ["AgentRun", "Job", "JobClaim", "JobOutcome", "JobQueue", "JobStatus"]

Attempt: TypeAlias = Job | RunningJob
Executor: TypeAlias = tuple[int | None, str | None]
"""The process that executes a job: its pid and its start, each None before it is recorded."""

EXIT_CODES: Final = range(-64, 256)
"""Exit codes: 0 to 255, or -n for an end by signal n."""

ATTEMPTS_MAX: Final = 1_000_000
_ENDS: Final = (JobStatus.QUEUED, JobStatus.DONE, JobStatus.FAILED)
_TEXT_CHARACTERS_MAX: Final = 2000


JOB_VARIABLE: Final = "RECOVERY_JOB_ID"
"""The environment variable that marks an executor and the processes that it starts."""
_CLAIM_VARIABLE: Final = "RECOVERY_JOB_CLAIM"


class JobClaim(msgspec.Struct, frozen=True):
    """The right to work on a job, until there is a newer claim.

    An executor finds its own in its environment.

    >>> JobClaim.from_environment(JobClaim(7, claim=2).environment())
    JobClaim(job_id=7, claim=2)
    """

    job_id: int
    claim: int

    def environment(self) -> dict[str, str]:
        """Return the variables that tell an executor its claim."""
        return {JOB_VARIABLE: str(self.job_id), _CLAIM_VARIABLE: str(self.claim)}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> JobClaim:
        """Return the claim that this process was started for. Raises InvalidJob without one."""
        try:
            return cls(int(environment[JOB_VARIABLE]), int(environment[_CLAIM_VARIABLE]))
        except (KeyError, ValueError) as error:
            message = (
                f"there must be {JOB_VARIABLE} and {_CLAIM_VARIABLE} in the environment; got {error}. Start this "
                "program by a Monitor."
            )
            raise InvalidJob(message) from error


class JobOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The intended end of a claim.

    ``leaves`` is the stage that the task is to leave, entered at ``entered_at``; None for no
    advance. ``alert`` is the text of an alert, empty for none. ``executor`` is the one that was
    judged, by pid and start: the outcome is void once there is another one.
    """

    job_id: int
    claim: int
    agent: str
    repo: str
    task_id: str | None
    status: JobStatus
    error: str = ""
    leaves: str | None = None
    entered_at: Microseconds = 0
    alert: str = ""
    executor: Executor | None = None

    @classmethod
    def of(cls, job: Attempt, status: JobStatus, *, claim: int | None = None, **rest: Any) -> JobOutcome:
        """Return an outcome of this job, under its own claim unless another is given."""
        held = job.claim if claim is None else claim
        return cls(
            job_id=job.job_id, claim=held, agent=job.agent, repo=job.repo, task_id=job.task_id, status=status, **rest
        )


class JobQueue(Manager):
    """The jobs of a store, given as a store or as the path of a database file.

    Raises InvalidSetting, and any StoreError when it opens the file. May be shared by threads.
    """

    def enqueue(
        self, agent: str, repo: str = "", *, task_id: str | None = None, max_attempts: int = MAX_ATTEMPTS
    ) -> Job:
        """Add a queued job and return it; ``max_attempts`` bounds its starts.

        Raises InvalidJob, UnknownTask, or any StoreError.
        """
        _check_name("agent", agent)
        if repo:
            _check_name("repo", repo)
        if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or not 1 <= max_attempts <= ATTEMPTS_MAX:
            message = f"max_attempts must be from 1 to {ATTEMPTS_MAX}; got {max_attempts!r}. Give a number."
            raise InvalidJob(message)
        with self._store.transaction() as transaction:
            return transaction.insert_job(
                agent=agent, repo=repo, task_id=task_id, max_attempts=max_attempts, now=self._clock.now()
            )

    def get(self, job_id: int) -> Job:
        """Return a job. Raises UnknownJob, or any StoreError."""
        job = self._store.job(job_id) if _is_number(job_id) else None
        if job is None:
            raise _unknown(job_id)
        return job

    def counts(self) -> dict[str, int]:
        """Return the numbers of ``queued`` and ``running`` jobs. Raises any StoreError."""
        return {status.value: count for status, count in self._store.active_job_counts().items()}

    def runs(self, job_id: int) -> list[AgentRun]:
        """Return the runs of a job, oldest first. Raises UnknownJob, or any StoreError."""
        runs = self._store.runs(job_id) if _is_number(job_id) else []
        if not runs:
            self.get(job_id)
        return runs

    def claim(self, *, agents: Sequence[str] | None = None) -> Job | None:
        """Claim the oldest queued job for this process, or return None.

        ``agents`` limits the choice to their jobs. A job whose task was cancelled is not begun: it
        fails at its turn, without an alert. Raises InvalidJob, or any StoreError.
        """
        for agent in agents or ():
            _check_name("agent", agent)
        monitor = Owner.this_process()
        sys.audit(JobCrashPoint.JOB_BEFORE_CLAIM, 0)
        with self._store.transaction() as transaction:
            now = self._clock.now()
            job = transaction.claim_job(agents, monitor_pid=monitor.pid, monitor_start=monitor.process_start, now=now)
            sys.audit(JobCrashPoint.JOB_AFTER_CLAIM_UPDATE, 0 if job is None else job.job_id)
        sys.audit(JobCrashPoint.JOB_AFTER_CLAIM, 0 if job is None else job.job_id)
        return job

    def started(self, claim: JobClaim, pid: int) -> None:
        """Record the process that executes the job. It must not begin its work before this returns.

        Raises JobLost, InvalidJob for a pid out of range, or any StoreError.
        """
        if isinstance(pid, bool) or not isinstance(pid, int) or not 0 < pid < 2**31:
            message = f"pid must be the number of a process; got {pid!r}. Give the pid of the executor."
            raise InvalidJob(message)
        executor = Owner.of(pid)
        with self._store.transaction() as transaction:
            now = self._clock.now()
            if not transaction.set_executor(
                claim.job_id, claim.claim, pid=pid, process_start=executor.process_start, now=now
            ):
                raise _lost(transaction, claim)

    def record_exit(self, claim: JobClaim, exit_code: int) -> None:
        """Record the exit code of the executor, once for each run, before the job is settled.

        Raises InvalidJob for a code out of range, JobLost, or any StoreError.
        """
        if isinstance(exit_code, bool) or not isinstance(exit_code, int) or exit_code not in EXIT_CODES:
            message = (
                f"exit_code must be an exit code from 0 to 255, or -1 to -64 for a signal; got {exit_code!r}. Give the "
                "return code of the executor."
            )
            raise InvalidJob(message)
        sys.audit(JobCrashPoint.JOB_BEFORE_EXIT_CODE, claim.job_id)
        with self._store.transaction() as transaction:
            now = self._clock.now()
            if not transaction.record_exit(claim.job_id, claim.claim, exit_code=exit_code, now=now):
                raise _lost(transaction, claim)
            sys.audit(JobCrashPoint.JOB_AFTER_EXIT_CODE_UPDATE, claim.job_id)
        sys.audit(JobCrashPoint.JOB_AFTER_EXIT_CODE, claim.job_id)

    def check(self, claim: JobClaim) -> None:
        """Raise JobLost unless the job runs under this claim.

        ``require`` does so in a transaction.
        """
        job = self._store.job(claim.job_id)
        if not _is_held(job, claim):
            raise _refusal(job, claim)

    def settle(self, outcome: JobOutcome) -> None:
        """End a claim: status, intended advance and alert are written in one transaction.

        Raises JobLost, or any StoreError.
        """
        sys.audit(JobCrashPoint.JOB_BEFORE_SETTLE, outcome.job_id)
        with self._store.transaction() as transaction:
            if not settle(transaction, outcome, self._clock.now()):
                raise _lost(transaction, JobClaim(outcome.job_id, outcome.claim))
        sys.audit(JobCrashPoint.JOB_AFTER_SETTLE, outcome.job_id)

    def reap_running_job(self, job_id: int, status: JobStatus, *, error: str = "") -> bool:
        """End a job by hand, whatever its claim; False unless it is running.

        Its executor is fenced off and not killed. Raises InvalidJob, or any StoreError.
        """
        if status not in _ENDS:
            message = f"status must be one of {', '.join(_ENDS)}; got {status!r}. Give one that ends a claim."
            raise InvalidJob(message)
        if not _is_number(job_id):
            return False
        with self._store.transaction() as transaction:
            job = transaction.job(job_id)
            if job is None or job.status is not JobStatus.RUNNING:
                return False
            return settle(transaction, JobOutcome.of(job, JobStatus(status), error=error), self._clock.now())


def settle(transaction: Transaction, outcome: JobOutcome, now: Microseconds) -> bool:
    """End a claim in the caller's transaction; False, and no change, if it is lost or void."""
    key = (outcome.job_id, outcome.claim)
    if not is_executed_by(transaction, outcome.job_id, outcome.executor):
        return False
    if not transaction.end_claim(*key, status=outcome.status, error=outcome.error, now=now):
        return False
    sys.audit(JobCrashPoint.JOB_AFTER_END_UPDATE, outcome.job_id)
    if outcome.task_id is not None:
        audit = Audit(outcome.task_id, "job_ended", "running", outcome.status.value, _detail(outcome), now)
        transaction.insert_audit(audit)
    if outcome.leaves is not None:
        transaction.insert_outbox(_entry(outcome, OutboxKind.ADVANCE, now))
    if outcome.alert:
        transaction.insert_outbox(_entry(outcome, OutboxKind.ALERT, now))
    sys.audit(JobCrashPoint.JOB_AFTER_OUTBOX, outcome.job_id)
    return True


def is_executed_by(transaction: Transaction, job_id: int, executor: Executor | None) -> bool:
    """Tell whether the job still has this executor; None is any.

    A monitor records its executor some time after its claim. A reaper that found none, and ended
    the claim for that, would let the next one start beside it.
    """
    job = transaction.job(job_id) if executor is not None else None
    return executor is None or (job is not None and (job.pid, job.process_start) == executor)


def require(transaction: Transaction, claim: JobClaim) -> None:
    """Raise JobLost unless the job runs under this claim.

    This is the fence of all that the transaction writes.
    """
    if not transaction.holds_job(claim.job_id, claim.claim):
        raise _lost(transaction, claim)


def _entry(outcome: JobOutcome, kind: OutboxKind, now: Microseconds) -> OutboxEntry:
    return OutboxEntry(
        outbox_id=0,
        kind=kind,
        job_id=outcome.job_id,
        claim=outcome.claim,
        agent=outcome.agent,
        repo=outcome.repo,
        task_id=outcome.task_id,
        stage=outcome.leaves or "",
        entered_at=outcome.entered_at,
        text=outcome.alert,
        tries=0,
        taken_by=None,
        created_at=now,
    )


def _detail(outcome: JobOutcome) -> str:
    text = f"job {outcome.job_id} of {outcome.agent}, claim {outcome.claim}"
    return f"{text}: {outcome.error}"[:_TEXT_CHARACTERS_MAX] if outcome.error else text


def _lost(transaction: Transaction, claim: JobClaim) -> JobLost | UnknownJob:
    return _refusal(transaction.job(claim.job_id), claim)


def _refusal(job: Job | None, claim: JobClaim) -> JobLost | UnknownJob:
    if job is None:
        return _unknown(claim.job_id)
    state = "one that has an exit code already" if _is_held(job, claim) else f"{job.status}, with claim {job.claim}"
    return lost(JobLost, f"Job {claim.job_id} with claim {claim.claim}", state)


def _is_held(job: Job | None, claim: JobClaim) -> bool:
    return job is not None and job.status is JobStatus.RUNNING and job.claim == claim.claim


def _unknown(job_id: int) -> UnknownJob:
    return UnknownJob(f"job_id must be the id of a job; got {job_id!r}. Enqueue the job first.")


def _is_number(job_id: object) -> bool:
    """Tell whether this can be the id of a job: a column of the store holds 64 bits."""
    return isinstance(job_id, int) and 0 < job_id < 2**63


def _check_name(what: str, name: object) -> None:
    is_text = isinstance(name, str) and bool(name) and "\0" not in name
    if not is_text or any("\ud800" <= character <= "\udfff" for character in str(name)):
        message = f"{what} must be text without NUL and lone surrogates, and not empty; got {name!r}. Name it."
        raise InvalidJob(message)


def of_failure(job: Attempt, error: str, *, claim: int | None = None) -> JobOutcome:
    """Return the outcome of a failed attempt: queued while attempts remain, else failed."""
    if job.attempts < job.max_attempts:
        return JobOutcome.of(job, JobStatus.QUEUED, claim=claim, error=error)
    subject = f"Job {job.job_id} of {job.agent}" + ("" if job.task_id is None else f" for task {job.task_id}")
    alert = f"{subject} failed after {job.attempts} of {job.max_attempts} attempts: {error}."
    return JobOutcome.of(job, JobStatus.FAILED, claim=claim, error=error, alert=alert)


def of_exit(job: Attempt, exit_code: int, engine: StageEngine, *, claim: int | None = None) -> JobOutcome:
    """Return the outcome of a run that ended with this exit code. May evaluate the gate, read only.

    Raises any StoreError.
    """
    if exit_code != 0:
        how = f"ended by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        return of_failure(job, f"its executor had {how}", claim=claim)
    task = None if job.task_id is None else engine.store.task(job.task_id)
    if task is None or not engine.may_leave(task, job.agent):
        return JobOutcome.of(job, JobStatus.DONE, claim=claim)
    answer = engine.evaluate_for(task)
    if not answer.is_green:
        because = f": {answer.reason}" if answer.reason else ""
        return of_failure(job, f"the gate of {task.stage} is red{because}", claim=claim)
    return JobOutcome.of(job, JobStatus.DONE, claim=claim, leaves=task.stage, entered_at=task.stage_entered_at)
