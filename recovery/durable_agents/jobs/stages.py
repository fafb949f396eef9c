"""Stages: the pipeline of a task, and the one function that advances it.

A pipeline is data: stages, each with its successor, the gate between the two, the agent that gets a
job when the stage is entered, and the agents whose successful end may leave it. Another pipeline is
one ``Pipeline`` value, given to the engine.

Every advance goes through ``advance_stage``: a webhook and the reconciler call it with
``finished_agent=None``, the monitor and the reaper by way of the outbox, with the agent whose job
ended. It changes the stage by compare-and-set on the stage *and the moment it was entered*, and
writes the job of the next stage in the same transaction. So of any number of callers one moves the
task, and one job is written (D19, D22, docs/design.md). The moment is compared because a pipeline
may lead a task back to a stage that it has left.

A stage with a human gate is left by ``approve`` alone, which names the human.
"""

from __future__ import annotations

import enum
import logging
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.clock import Clock, Microseconds, SystemClock
from durable_agents.errors import (
    InvalidPipeline,
    InvalidSetting,
    RecoveryError,
    UnknownAgent,
    UnknownStage,
    unknown_task,
)
from durable_agents.jobs.crash_points import JobCrashPoint
from durable_agents.jobs.gates import TIMEOUT_S, Gate, GateResult, Gates
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import Audit, OutboxEntry, OutboxKind, Task, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable_agents.store import Store, Transaction

__all__ = ["DEFAULT_PIPELINE", "Advance", "Advanced", "Pipeline", "Stage", "StageEngine"]

MAX_ATTEMPTS: Final = 2
"""Default number of times that a job may be started."""


_ENDED: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED})
_LOGGER: Final = logging.getLogger(__name__)


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a pipeline. ``next`` names its successor, None for a final stage.

    ``gate`` names the gate that must be green to leave it; empty for none. ``starts`` is the agent
    that gets a job when a task enters. ``leavers`` are the agents whose successful end may leave
    the stage; a stage without leavers is left by a webhook or the reconciler.
    """

    name: str
    next: str | None = None
    gate: str = ""
    starts: str | None = None
    leavers: tuple[str, ...] = ()
    is_human_gated: bool = False


class Pipeline(msgspec.Struct, frozen=True):
    """Stages in order. Raises InvalidPipeline, which lists all problems.

    >>> stages = (Stage(name="build", next="ship", leavers=("builder",)), Stage(name="ship"))
    >>> Pipeline(stages).leaves("builder")
    ('build',)
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        """Check that each stage leads to a final one, and that names are unique and not empty."""
        problems = [*self._wrong_names(), *self._wrong_ways()]
        if problems:
            message = f"a pipeline must lead to a final stage; got one where {'; '.join(problems)}. Correct its stages."
            raise InvalidPipeline(message)

    @property
    def agents(self) -> frozenset[str]:
        """All agents that the stages name."""
        starts = {stage.starts for stage in self.stages if stage.starts is not None}
        return frozenset(starts.union(*(stage.leavers for stage in self.stages)))

    def stage(self, name: str) -> Stage:
        """Return the stage of this name. Raises UnknownStage."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        known = ", ".join(stage.name for stage in self.stages)
        message = f"stage must be one of the pipeline; got {name!r}. Use one of {known}."
        raise UnknownStage(message)

    def leaves(self, agent: str) -> tuple[str, ...]:
        """Return the stages that this agent may leave. Raises UnknownAgent."""
        if agent not in self.agents:
            message = f"agent must be one of the pipeline; got {agent!r}. Use one of {', '.join(sorted(self.agents))}."
            raise UnknownAgent(message)
        return tuple(stage.name for stage in self.stages if agent in stage.leavers)

    def _wrong_names(self) -> list[str]:
        names = [stage.name for stage in self.stages]
        problems = [] if names else ["it has no stage"]
        problems += [f"{name!r} is there {names.count(name)} times" for name in set(names) if names.count(name) > 1]
        agents = [agent for stage in self.stages for agent in (*stage.leavers, stage.starts) if agent is not None]
        return problems + ["a name is empty" for name in (*names, *agents) if not name]

    def _wrong_ways(self) -> list[str]:
        following = {stage.name: stage.next for stage in self.stages}
        problems = []
        for stage in self.stages:
            name: str | None = stage.name
            for _ in self.stages:
                name = following.get(name) if name is not None else None
            if name is not None:
                problems.append(f"{stage.name!r} leads in a circle")
            if stage.next is not None and stage.next not in following:
                problems.append(f"{stage.name!r} leads to {stage.next!r}, which is no stage")
            if stage.next is None and (stage.gate or stage.leavers or stage.is_human_gated):
                problems.append(f"{stage.name!r} is final and has a gate, leavers or a human gate")
        return problems


DEFAULT_PIPELINE: Final = Pipeline(
    (
        Stage(name="analysis", next="architecture", starts="analyst", is_human_gated=True),
        # As in the original documents, the developer leaves the stage before its own.
        Stage(
            name="architecture",
            next="development",
            gate="architecture_done",
            starts="architect",
            leavers=("architect", "developer"),
        ),
        # No leavers: continuous integration judges the push later. Its webhook leaves this stage,
        # or the reconciler if the webhook was lost.
        Stage(name="development", next="review", gate="ci_green", starts="developer"),
        Stage(name="review", next="testing", gate="review_approved", starts="reviewer", leavers=("reviewer",)),
        Stage(name="testing", next="deploy-staging", gate="tests_passed", starts="tester", leavers=("tester",)),
        Stage(name="deploy-staging", next="deploy", gate="staging_healthy", starts="deployer", leavers=("deployer",)),
        Stage(name="deploy", next="done", gate="production_healthy", starts="deployer", leavers=("deployer",)),
        Stage(name="done"),
    )
)
"""The pipeline of the original documents. The user gives a gate for each of its names."""


class Advanced(enum.StrEnum):
    """The result of an attempt to advance a task."""

    MOVED = "moved"
    GATE_RED = "gate_red"
    STALE = "stale"
    HUMAN_GATED = "human_gated"
    NOT_THEIRS = "not_theirs"
    FINAL = "final"
    TASK_ENDED = "task_ended"


class Advance(msgspec.Struct, frozen=True):
    """What one call did: the last known stage of the task, and the job that was written."""

    task_id: str
    result: Advanced
    stage: str
    job_id: int | None = None
    reason: str = ""

    @property
    def is_moved(self) -> bool:
        """Whether this call moved the task."""
        return self.result is Advanced.MOVED


class Move(msgspec.Struct, frozen=True):
    """A decision to move a task whose gate was green, void once the task has left the stage."""

    task: Task
    stage: Stage
    repo: str
    why: str


class StageEngine:
    """The mover of tasks through a pipeline. ``gates`` has a gate for each name in the pipeline.

    ``max_attempts`` bounds the starts of each job that it writes. Raises InvalidPipeline and
    InvalidSetting. May be shared by threads.
    """

    def __init__(
        self,
        store: Store,
        *,
        pipeline: Pipeline = DEFAULT_PIPELINE,
        gates: Mapping[str, Gate],
        clock: Clock | None = None,
        max_attempts: int = MAX_ATTEMPTS,
        gate_timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.store: Final = store
        self.pipeline: Final = pipeline
        self._gates = Gates(gates, timeout_s=gate_timeout_s)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._max_attempts = max_attempts
        missing = sorted({stage.gate for stage in pipeline.stages if stage.gate and stage.gate not in self._gates})
        if missing:
            message = (
                f"gates must have all gates of the pipeline; got none for {', '.join(missing)}. Add a function each."
            )
            raise InvalidPipeline(message)
        if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or max_attempts < 1:
            message = f"max_attempts must be 1 or more; got {max_attempts!r}. Say how often a job may be started."
            raise InvalidSetting(message)

    def evaluate(self, task_id: str) -> GateResult:
        """Evaluate the gate of the task's stage.

        Raises UnknownTask, UnknownStage, or any StoreError.
        """
        return self.evaluate_for(self._task(task_id))

    def evaluate_for(self, task: Task) -> GateResult:
        """Evaluate the gate for a task that was read before. Raises UnknownStage."""
        return self._gate(self.pipeline.stage(task.stage), task)

    def advance_stage(self, task_id: str, stage: str, *, finished_agent: str | None, repo: str = "") -> Advance:
        """Move the task from ``stage`` to the next one if its gate is green; write the next job.

        ``finished_agent`` is the agent whose job ended successfully, which must be a leaver of the
        stage; None for a webhook or the reconciler. If the task does not move, nothing is written.
        Raises UnknownTask, UnknownStage, UnknownAgent, or any StoreError.
        """
        return self._advance(self.decide(task_id, stage, finished_agent=finished_agent, repo=repo))

    def approve(self, task_id: str, stage: str, *, by: str, repo: str = "") -> Advance:
        """Leave a stage with a human gate, in the name of this human.

        Its other gate must be green, too. Raises as ``advance_stage``, and InvalidSetting.
        """
        return self._advance(self.decide_approval(task_id, stage, by=by, repo=repo))

    def decide(self, task_id: str, stage: str, *, finished_agent: str | None, repo: str = "") -> Move | Advance:
        """Do the first half of ``advance_stage``: return a move, or the refusal. Writes nothing.

        A caller that has more to write in the same transaction passes the move to ``apply`` there:
        a slow gate must not keep a transaction open.
        """
        here = self.pipeline.stage(stage)
        task = self._task(task_id)
        why = f"{finished_agent} has ended" if finished_agent else "the gate is green"
        return self._decided(Move(task, here, repo, why), self.refusal(task, here, finished_agent))

    def decide_approval(self, task_id: str, stage: str, *, by: str, repo: str = "") -> Move | Advance:
        """Do the first half of ``approve``, which writes nothing. Raises as ``approve``."""
        here = self.pipeline.stage(stage)
        if not here.is_human_gated or not by:
            message = (
                f"an approval must name a stage with a human gate, and a human; got {stage!r} and {by!r}. Name both."
            )
            raise InvalidSetting(message)
        task = self._task(task_id)
        refusal = self.refusal(task, here, None)
        is_refused = refusal is not None and refusal.result is not Advanced.HUMAN_GATED
        return self._decided(Move(task, here, repo, f"approved by {by}"), refusal if is_refused else None)

    def _decided(self, move: Move, refusal: Advance | None) -> Move | Advance:
        """Return the refusal, else the move if its gate is green."""
        if refusal is None and not (answer := self._gate(move.stage, move.task)).is_green:
            return Advance(move.task.task_id, Advanced.GATE_RED, move.task.stage, reason=answer.reason)
        return move if refusal is None else refusal

    def apply(self, transaction: Transaction, move: Move) -> Advance:
        """Move the task, if it has not left its stage meanwhile, and write the next job."""
        task, here, now = move.task, move.stage, self._clock.now()
        if not self._move(transaction, task, here, task.stage_entered_at, move.why, now):
            found = transaction.task(task.task_id)
            return Advance(task.task_id, Advanced.STALE, found.stage if found else task.stage)
        job_id = self._write_next_job(transaction, task.task_id, here, move.repo, now)
        return Advance(task.task_id, Advanced.MOVED, here.next or "", job_id)

    def write_first_job(self, transaction: Transaction, task_id: str, *, repo: str = "") -> int | None:
        """Write the first stage's job, if any, in the transaction that creates the task."""
        return self._write_job(transaction, task_id, self.pipeline.stages[0], repo, self._clock.now())

    def refusal(self, task: Task, stage: Stage, finished_agent: str | None) -> Advance | None:
        """Return why no machine may move this task, its gate aside. Raises UnknownAgent."""
        is_leaver = finished_agent is None or stage.name in self.pipeline.leaves(finished_agent)
        reasons = (
            (task.stage != stage.name, Advanced.STALE),
            (task.status in _ENDED, Advanced.TASK_ENDED),
            (stage.next is None, Advanced.FINAL),
            (stage.is_human_gated, Advanced.HUMAN_GATED),
            (not is_leaver, Advanced.NOT_THEIRS),
        )
        result = next((reason for applies, reason in reasons if applies), None)
        return None if result is None else Advance(task.task_id, result, task.stage)

    def may_leave(self, task: Task, agent: str) -> bool:
        """Tell whether this agent's end may move the task; False if its stage is unknown."""
        try:
            return self.refusal(task, self.pipeline.stage(task.stage), agent) is None
        except (UnknownStage, UnknownAgent) as error:
            _LOGGER.warning("task %s stays where it is: %s", task.task_id, error)
            return False

    def deliver(self) -> int:
        """Do the advances in the outbox; return how many tasks were moved.

        Any process may call it at any time: an entry is deleted in the transaction that moves the
        task, so it is done once. An entry that fails stops no other. Raises a StoreError only if
        the outbox cannot be read.
        """
        moved, after = 0, 0
        while entries := self.store.outbox(OutboxKind.ADVANCE, after=after, limit=PAGE_ROWS_MAX):
            for entry in entries:
                try:
                    moved += self.deliver_one(entry)
                except RecoveryError as error:
                    _LOGGER.warning("the advance of task %s is left for the next look: %s", entry.task_id, error)
            after = entries[-1].outbox_id
        return moved

    def deliver_one(self, entry: OutboxEntry) -> bool:
        """Do one advance of the outbox, unless it is done; return whether it moved the task."""
        now = self._clock.now()
        sys.audit(JobCrashPoint.STAGE_BEFORE_ADVANCE, entry.task_id)
        with self.store.transaction() as transaction:
            task = transaction.task(entry.task_id or "")
            if not transaction.delete_outbox(entry) or task is None:
                return False
            try:
                here = self._left_by_agents(entry.stage)
            except UnknownStage as error:  # the pipeline was changed since: this entry can never be done
                transaction.insert_audit(Audit(task.task_id, "advance_dropped", entry.stage, None, str(error), now))
                return False
            visit = msgspec.structs.replace(task, stage_entered_at=entry.entered_at)
            move = Move(visit, here, entry.repo, f"job {entry.job_id} of {entry.agent} has ended")
            if task.status in _ENDED or not self.apply(transaction, move).is_moved:
                return False
        sys.audit(JobCrashPoint.STAGE_AFTER_ADVANCE, entry.task_id)
        return True

    def _left_by_agents(self, name: str) -> Stage:
        """Return a stage that the end of a job may leave. Raises UnknownStage for any other."""
        stage = self.pipeline.stage(name)
        if stage.next is None or stage.is_human_gated:
            what = "a final stage" if stage.next is None else "a stage that humans leave"
            message = f"stage must be one that agents leave; got {name!r}, {what}. Leave the task where it is."
            raise UnknownStage(message)
        return stage

    def _advance(self, decided: Move | Advance) -> Advance:
        if isinstance(decided, Advance):
            return decided
        sys.audit(JobCrashPoint.STAGE_BEFORE_ADVANCE, decided.task.task_id)
        with self.store.transaction() as transaction:
            advance = self.apply(transaction, decided)
        if advance.is_moved:
            sys.audit(JobCrashPoint.STAGE_AFTER_ADVANCE, decided.task.task_id)
        return advance

    def _move(
        self, transaction: Transaction, task: Task, here: Stage, entered_at: Microseconds, why: str, now: Microseconds
    ) -> bool:
        following = here.next or here.name
        if not transaction.change_stage(
            task.task_id, expected=here.name, entered_at=entered_at, stage=following, now=now
        ):
            return False
        transaction.insert_audit(Audit(task.task_id, "stage_changed", here.name, following, why, now))
        sys.audit(JobCrashPoint.STAGE_AFTER_MOVE, task.task_id)
        return True

    def _write_next_job(
        self, transaction: Transaction, task_id: str, here: Stage, repo: str, now: Microseconds
    ) -> int | None:
        job_id = self._write_job(transaction, task_id, self.pipeline.stage(here.next or here.name), repo, now)
        sys.audit(JobCrashPoint.STAGE_AFTER_NEXT_JOB, task_id)
        return job_id

    def _write_job(
        self, transaction: Transaction, task_id: str, stage: Stage, repo: str, now: Microseconds
    ) -> int | None:
        if stage.starts is None:
            return None
        job = transaction.insert_job(
            agent=stage.starts, repo=repo, task_id=task_id, max_attempts=self._max_attempts, now=now
        )
        return job.job_id

    def _gate(self, stage: Stage, task: Task) -> GateResult:
        return self._gates.evaluate(stage.gate, task) if stage.gate else GateResult(is_green=True)

    def _task(self, task_id: str) -> Task:
        task = self.store.task(task_id)
        if task is None:
            raise unknown_task(task_id)
        return task
