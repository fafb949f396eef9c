"""Jobs: runs of agents that are queued, claimed, and end once.

A job is queued, running, done or failed; the last two are final. It is started at most
``max_attempts`` times; each start is a *claim* and a row of ``agent_runs``. The claim is a number
that rises, and a fence as a lease's token is: what is written about a running job names it, and the
store compares it in the same transaction. Whoever lost a job, since a reaper ended it or somebody
claimed it anew, is refused with ``JobLost`` and has changed nothing.

How a claim ends is decided by whoever knows how its run ended (``durable_agents.jobs.queue``), and
``settle`` makes it so: the job's status, what follows from it for the task's stage, and the alert
of a failure, in one transaction. What follows is not done there but written down (the outbox), and
done right after by whoever comes first; so a process that dies in between loses nothing, and
nothing is done twice (D16).

What is to become of a job, judged by how its run went: one table for the monitor and for every tier
of the reaper.

| the run | the job | besides |
|---|---|---|
| exit 0, and the agent may not leave the task's stage (it is past it, or a human decides) | done | |
| exit 0, and the gate of the stage is green | done | the task is to leave the stage |
| exit 0, and the gate is red | as below | nothing at all |
| another exit, or none that anybody knows, and attempts remain | queued | |
| the same, and no attempts remain | failed | one alert |
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.claim import Owner, lost
from durable_agents.clock import Microseconds
from durable_agents.errors import InvalidJob, JobLost, UnknownJob
from durable_agents.manager import Manager
from durable_agents.store.rows import AgentRun, Audit, Job, JobStatus, OutboxEntry, OutboxKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from durable_agents.jobs.gates import GateResult
    from durable_agents.jobs.stages import StageEngine
    from durable_agents.store import Transaction

__all__ = ["JOB_CRASH_POINTS", "AgentRun", "Job", "JobClaim", "JobQueue", "JobStatus", "Outcome"]

MAX_ATTEMPTS: Final = 2
EXIT_CODES: Final = range(-64, 256)
"""What an exit code can be: 0 to 255, or -n for an end by signal n."""

ATTEMPTS_MAX: Final = 1_000_000
_ENDS: Final = (JobStatus.QUEUED, JobStatus.DONE, JobStatus.FAILED)
_TEXT_CHARACTERS_MAX: Final = 2000

CLAIM_CRASH_POINTS: Final = (
    "recovery.job.before_claim",
    "recovery.job.after_claim_update",
    "recovery.job.after_claim",
)
EXIT_CRASH_POINTS: Final = (
    "recovery.job.before_exit_code",
    "recovery.job.after_exit_code_update",
    "recovery.job.after_exit_code",
)
SETTLE_CRASH_POINTS: Final = (
    "recovery.job.before_settle",
    "recovery.job.after_end_update",
    "recovery.job.after_outbox",
    "recovery.job.after_settle",
)
JOB_CRASH_POINTS: Final = CLAIM_CRASH_POINTS + EXIT_CRASH_POINTS + SETTLE_CRASH_POINTS
"""The audit events of ``claim``, of ``record_exit`` and of the end of a claim, each in order.

Those between the first and the last of each lie before the COMMIT. Their argument is the id of the
job, or 0.
"""

BEFORE_CLAIM, AFTER_CLAIM_UPDATE, AFTER_CLAIM = CLAIM_CRASH_POINTS
BEFORE_EXIT_CODE, AFTER_EXIT_CODE_UPDATE, AFTER_EXIT_CODE = EXIT_CRASH_POINTS
BEFORE_SETTLE, AFTER_END_UPDATE, AFTER_OUTBOX, AFTER_SETTLE = SETTLE_CRASH_POINTS

JOB_VARIABLE: Final = "RECOVERY_JOB_ID"
"""By this variable an executor, and what it starts, is known."""
_CLAIM_VARIABLE: Final = "RECOVERY_JOB_CLAIM"


class JobClaim(msgspec.Struct, frozen=True):
    """The right to work on a job, as long as nobody has a newer one. An executor finds its own in its environment."""

    job_id: int
    claim: int

    def environment(self) -> dict[str, str]:
        """Return the variables by which an executor is told."""
        return {JOB_VARIABLE: str(self.job_id), _CLAIM_VARIABLE: str(self.claim)}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> JobClaim:
        """Return the claim that this process was started for. Raises InvalidJob where it was started for none."""
        try:
            return cls(int(environment[JOB_VARIABLE]), int(environment[_CLAIM_VARIABLE]))
        except (KeyError, ValueError) as error:
            message = (
                f"Expected {JOB_VARIABLE} and {_CLAIM_VARIABLE} in the environment but they say {error}; start this "
                "program by a Monitor."
            )
            raise InvalidJob(message) from error


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What is to become of a claim. ``leaves`` is the stage that the task is to leave then, entered at ``entered_at``.

    ``alert`` is what somebody has to be told, empty for nothing.
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


class JobQueue(Manager):
    """The jobs of a store. Give it the store, or the path of a database file, which it opens and will close.

    Raises InvalidSetting, and any StoreError when it opens the file. May be shared by threads.
    """

    def enqueue(
        self, agent: str, repo: str = "", *, task_id: str | None = None, max_attempts: int = MAX_ATTEMPTS
    ) -> Job:
        """Add a queued job and return it; ``max_attempts`` is how often it may be started in all.

        Raises InvalidJob, UnknownTask, or any StoreError.
        """
        _check_name("agent", agent)
        if repo:
            _check_name("repo", repo)
        if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or not 1 <= max_attempts <= ATTEMPTS_MAX:
            message = f"Expected max_attempts from 1 to {ATTEMPTS_MAX} but got {max_attempts!r}; give a number."
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
        """Return how many jobs are ``queued``, and how many ``running``. Raises StoreErrors."""
        return {status.value: count for status, count in self._store.active_job_counts().items()}

    def runs(self, job_id: int) -> list[AgentRun]:
        """Return the runs of a job, oldest first. Raises UnknownJob, or any StoreError."""
        runs = self._store.runs(job_id) if _is_number(job_id) else []
        if not runs:
            self.get(job_id)
        return runs

    def claim(self, *, agents: Sequence[str] | None = None) -> Job | None:
        """Claim the oldest queued job, of these agents or of any, for this process; None where there is none.

        One whose task was cancelled is not begun: it fails at its turn, and nobody is alerted.
        Raises InvalidJob, or any StoreError.
        """
        for agent in agents or ():
            _check_name("agent", agent)
        monitor = Owner.this_process()
        sys.audit(BEFORE_CLAIM, 0)
        with self._store.transaction() as transaction:
            now = self._clock.now()
            job = transaction.claim_job(agents, monitor_pid=monitor.pid, monitor_start=monitor.process_start, now=now)
            sys.audit(AFTER_CLAIM_UPDATE, 0 if job is None else job.job_id)
        sys.audit(AFTER_CLAIM, 0 if job is None else job.job_id)
        return job

    def started(self, claim: JobClaim, pid: int) -> None:
        """Say which process executes the job. Raises JobLost, InvalidJob for a number that is none, or any StoreError.

        It should not have begun to do anything before this returns: until then nobody knows of it.
        """
        if isinstance(pid, bool) or not isinstance(pid, int) or not 0 < pid < 2**31:
            message = f"Expected the number of a process but got {pid!r}; give the pid of the executor."
            raise InvalidJob(message)
        executor = Owner.of(pid)
        with self._store.transaction() as transaction:
            now = self._clock.now()
            if not transaction.set_executor(
                claim.job_id, claim.claim, pid=pid, process_start=executor.process_start, now=now
            ):
                raise _lost(transaction, claim)

    def record_exit(self, claim: JobClaim, exit_code: int) -> None:
        """Record how the executor ended, before anything is made of it; once for each run.

        Raises InvalidJob for a code out of range, JobLost, or any StoreError.
        """
        if isinstance(exit_code, bool) or not isinstance(exit_code, int) or exit_code not in EXIT_CODES:
            message = (
                f"Expected an exit code from 0 to 255, or -1 to -64 for a signal, but got {exit_code!r}; give what "
                "wait returned."
            )
            raise InvalidJob(message)
        sys.audit(BEFORE_EXIT_CODE, claim.job_id)
        with self._store.transaction() as transaction:
            now = self._clock.now()
            if not transaction.record_exit(claim.job_id, claim.claim, exit_code=exit_code, now=now):
                raise _lost(transaction, claim)
            sys.audit(AFTER_EXIT_CODE_UPDATE, claim.job_id)
        sys.audit(AFTER_EXIT_CODE, claim.job_id)

    def check(self, claim: JobClaim) -> None:
        """Raise JobLost unless the job is running under this claim. What is written to the store wants ``require``."""
        job = self._store.job(claim.job_id)
        if not _is_held(job, claim):
            raise _refusal(job, claim)

    def settle(self, outcome: Outcome) -> None:
        """End a claim as decided: its status, the intended advance and the alert are there together, or not at all.

        Raises JobLost, or any StoreError.
        """
        sys.audit(BEFORE_SETTLE, outcome.job_id)
        with self._store.transaction() as transaction:
            if not settle(transaction, outcome, self._clock.now()):
                raise _lost(transaction, JobClaim(outcome.job_id, outcome.claim))
        sys.audit(AFTER_SETTLE, outcome.job_id)

    def reap_running_job(self, job_id: int, status: JobStatus, *, error: str = "") -> bool:
        """End a job by hand, whatever its claim; False unless it is running. Raises InvalidJob, or any StoreError.

        Its executor is not ended, only fenced off.
        """
        if status not in _ENDS:
            message = f"Expected a status that ends a claim, {', '.join(_ENDS)}, but got {status!r}; give one of these."
            raise InvalidJob(message)
        if not _is_number(job_id):
            return False
        with self._store.transaction() as transaction:
            job = transaction.job(job_id)
            if job is None or job.status is not JobStatus.RUNNING:
                return False
            outcome = Outcome(
                job_id=job_id,
                claim=job.claim,
                agent=job.agent,
                repo=job.repo,
                task_id=job.task_id,
                status=JobStatus(status),
                error=error,
            )
            return settle(transaction, outcome, self._clock.now())


def settle(transaction: Transaction, outcome: Outcome, now: Microseconds) -> bool:
    """End a claim in the caller's transaction; False, and no change, when it is not held any more."""
    key = (outcome.job_id, outcome.claim)
    if not transaction.end_claim(*key, status=outcome.status, error=outcome.error, now=now):
        return False
    sys.audit(AFTER_END_UPDATE, outcome.job_id)
    if outcome.task_id is not None:
        audit = Audit(outcome.task_id, "job_ended", "running", outcome.status.value, _detail(outcome), now)
        transaction.insert_audit(audit)
    if outcome.leaves is not None:
        transaction.insert_outbox(_entry(outcome, OutboxKind.ADVANCE, now))
    if outcome.alert:
        transaction.insert_outbox(_entry(outcome, OutboxKind.ALERT, now))
    sys.audit(AFTER_OUTBOX, outcome.job_id)
    return True


def require(transaction: Transaction, claim: JobClaim) -> None:
    """Raise JobLost unless the job is running under this claim: the fence, in the transaction of what it guards."""
    if not transaction.holds_job(claim.job_id, claim.claim):
        raise _lost(transaction, claim)


def _entry(outcome: Outcome, kind: OutboxKind, now: Microseconds) -> OutboxEntry:
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


def _detail(outcome: Outcome) -> str:
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
    return UnknownJob(f"Expected the id of a job but none has the id {job_id!r}; enqueue it first.")


def _is_number(job_id: object) -> bool:
    """Tell whether this can be the id of a job at all; a column of a store holds 64 bits."""
    return isinstance(job_id, int) and 0 < job_id < 2**63


def _check_name(what: str, name: object) -> None:
    is_text = isinstance(name, str) and bool(name) and "\0" not in name
    if not is_text or any("\ud800" <= character <= "\udfff" for character in str(name)):
        message = f"Expected {what} to be text that a column can hold and that is not empty but got {name!r}; name it."
        raise InvalidJob(message)


class Attempt(Protocol):
    """What has to be known of a running job: a Job and a RunningJob both do."""

    @property
    def job_id(self) -> int: ...
    @property
    def claim(self) -> int: ...
    @property
    def agent(self) -> str: ...
    @property
    def repo(self) -> str: ...
    @property
    def task_id(self) -> str | None: ...
    @property
    def attempts(self) -> int: ...
    @property
    def max_attempts(self) -> int: ...


def of_failure(job: Attempt, error: str, *, claim: int | None = None) -> Outcome:
    """Return what becomes of an attempt that came to nothing: another one while there are any, else a failure."""
    remain = job.attempts < job.max_attempts
    alert = f"Job {job.job_id} of {job.agent}{_of_task(job)} failed after {job.attempts} of {job.max_attempts} attempts"
    return Outcome(
        job_id=job.job_id,
        claim=job.claim if claim is None else claim,
        agent=job.agent,
        repo=job.repo,
        task_id=job.task_id,
        status=JobStatus.QUEUED if remain else JobStatus.FAILED,
        error=error,
        alert="" if remain else f"{alert}: {error}.",
    )


def of_exit(job: Attempt, exit_code: int, engine: StageEngine, *, claim: int | None = None) -> Outcome:
    """Return what becomes of a job whose executor has ended so. Evaluates the gate, read only, if it comes to that.

    Raises any StoreError.
    """
    if exit_code != 0:
        how = f"ended by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        return of_failure(job, f"its executor had {how}", claim=claim)
    task = None if job.task_id is None else engine.store.task(job.task_id)
    if task is None or not engine.may_leave(task, job.agent):
        return _done(job, None, 0, claim)
    answer = engine.evaluate_for(task)
    if not answer.is_green:
        return of_failure(job, f"the gate of {task.stage} is red{_because(answer)}", claim=claim)
    return _done(job, task.stage, task.stage_entered_at, claim)


def _done(job: Attempt, leaves: str | None, entered_at: int, claim: int | None) -> Outcome:
    return Outcome(
        job_id=job.job_id,
        claim=job.claim if claim is None else claim,
        agent=job.agent,
        repo=job.repo,
        task_id=job.task_id,
        status=JobStatus.DONE,
        leaves=leaves,
        entered_at=entered_at,
    )


def _of_task(job: Attempt) -> str:
    return "" if job.task_id is None else f" for task {job.task_id}"


def _because(answer: GateResult) -> str:
    return f": {answer.reason}" if answer.reason else ""
