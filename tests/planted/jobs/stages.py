"""Stage engines with one known bug each.

| variant | bug | seen by |
|---|---|---|
| AdvancesBlindly | the stage is written without a look at what it is by then (D22) | a webhook and a monitor at once |
| SpeaksOnRed | each look at a red gate leaves a row | thousands of looks |
| AdvancesFirst | stage in one transaction, next job in another | a kill between the two |
| IgnoresTheGate | what a gate that is red says is not heard | any look at a red gate |
| CountsAllThatHangs | what hangs is counted for the gate, and not by its task | a gate that hangs for one task |
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from durable_agents import JobCrashPoint, StageEngine
from durable_agents.jobs.gates import TIMEOUT_S, GateResult, Gates
from durable_agents.store.rows import Audit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable_agents.clock import Microseconds
    from durable_agents.jobs.gates import Gate
    from durable_agents.jobs.stages import Stage
    from durable_agents.store import Store
    from durable_agents.store.protocol import Transaction
    from durable_agents.store.rows import Task


def advance_blindly(engine: StageEngine, task_id: str, stage: str) -> None:
    """Set the stage that follows, and write its job, whatever the task is in by now."""
    following = engine.pipeline.stage(engine.pipeline.stage(stage).next or stage)
    with engine.store.transaction() as transaction:
        write_stage(transaction, task_id, stage, following.name)
        if following.starts is not None:
            transaction.insert_job(agent=following.starts, repo="", task_id=task_id, max_attempts=2, now=1)


def write_stage(transaction: Transaction, task_id: str, before: str, after: str) -> None:
    """Write a stage without comparing."""
    transaction.execute("UPDATE tasks SET stage = ? WHERE task_id = ?", (after, task_id))  # type: ignore[attr-defined]
    transaction.insert_audit(Audit(task_id, "stage_changed", before, after, "", 1))


class AdvancesBlindly(StageEngine):
    """Updates by id alone."""

    def _move(
        self, transaction: Transaction, task: Task, here: Stage, entered_at: Microseconds, why: str, now: Microseconds
    ) -> bool:
        del entered_at, why, now
        write_stage(transaction, task.task_id, here.name, here.next or here.name)
        sys.audit(JobCrashPoint.STAGE_AFTER_MOVE, task.task_id)
        return True


class SpeaksOnRed(StageEngine):
    """Says each time that it is still red."""

    def _gate(self, stage: Stage, task: Task) -> GateResult:
        answer = super()._gate(stage, task)
        if not answer.is_green:
            with self.store.transaction() as transaction:
                transaction.insert_audit(Audit(task.task_id, "gate_red", None, None, answer.reason, 1))
        return answer


class AdvancesFirst(StageEngine):
    """Commits the stage before it writes the job."""

    def _write_next_job(
        self, transaction: Transaction, task_id: str, here: Stage, repo: str, now: Microseconds
    ) -> int | None:
        agent = self.pipeline.stage(here.next or here.name).starts
        if agent is None:
            return None
        connection = transaction.connection  # type: ignore[attr-defined]
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        sys.audit(JobCrashPoint.STAGE_AFTER_NEXT_JOB, task_id)
        job = transaction.insert_job(agent=agent, repo=repo, task_id=task_id, max_attempts=2, now=now)
        return job.job_id


class IgnoresTheGate(StageEngine):
    """Is of good cheer."""

    def _gate(self, stage: Stage, task: Task) -> GateResult:
        super()._gate(stage, task)
        return GateResult(is_green=True)


class _OneBound(Gates):
    """Forgets for whom an evaluation hangs, so the same task is asked about, and counted,
    again and again.
    """

    def _hanging(self, name: str) -> frozenset[str]:
        super()._hanging(name)
        with self._lock:
            self._hung[name] = {f"number {place}": each for place, each in enumerate(self._hung[name].values())}
            return frozenset(self._hung[name])


class CountsAllThatHangs(StageEngine):
    """Takes one task that makes a gate hang for a gate that hangs."""

    def __init__(self, store: Store, *, gates: Mapping[str, Gate], **others: Any) -> None:
        """Bound the gates, and not the tasks."""
        super().__init__(store, gates=gates, **others)
        self._gates = _OneBound(gates, timeout_s=others.get("gate_timeout_s", TIMEOUT_S))
