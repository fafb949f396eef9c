"""What is to become of a job, judged by how its run went: one table for the monitor and for every tier of the reaper.

| the run | the job | besides |
|---|---|---|
| exit 0, and the agent may not leave the task's stage (it is past it, or a human decides) | done | |
| exit 0, and the gate of the stage is green | done | the task is to leave the stage |
| exit 0, and the gate is red | as below | nothing at all |
| another exit, or none that anybody knows, and attempts remain | queued | |
| the same, and no attempts remain | failed | one alert |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from recovery.jobs import Outcome
from recovery.store.job_rows import JobStatus

if TYPE_CHECKING:
    from recovery.gates import GateResult
    from recovery.stages import StageEngine


class Attempt(Protocol):
    """What has to be known of a running job: a Job and a RunningJob both do."""

    @property
    def job_id(self) -> int: ...  # noqa: D102 - the names of columns
    @property
    def claim(self) -> int: ...  # noqa: D102 - the names of columns
    @property
    def agent(self) -> str: ...  # noqa: D102 - the names of columns
    @property
    def repo(self) -> str: ...  # noqa: D102 - the names of columns
    @property
    def task_id(self) -> str | None: ...  # noqa: D102 - the names of columns
    @property
    def attempts(self) -> int: ...  # noqa: D102 - the names of columns
    @property
    def max_attempts(self) -> int: ...  # noqa: D102 - the names of columns


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
