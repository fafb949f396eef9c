"""Handlers: the reactions to events, from a webhook or from a poll.

A handler decides first, from what it reads and from the answer of a gate. It returns an
``EventOutcome`` where there is nothing to do, or an ``EventChange``, which does it within a
transaction if it still holds by then. So the inbox can put the change and its note "handled" into
one commit. The reconciler, which has no note to make, calls ``handle``.

A handler may see its event late, twice, out of order, or never:

- *start*: the task of an issue exists once. Its row, its source and the job of its first stage are
  one transaction, and the tracker's key is unique in the store; no lock of a process is involved.
- *verdict*: a person's approval or rejection counts in a stage with a human gate, and nowhere else.
- *CI status*: a green status is a reason to ask the gate; a red one is no reason to do anything.
- *push*: the newest commit of a task's branch, so that a status that names only a commit finds its
  task.
"""

from __future__ import annotations

import enum
import logging
import re
import secrets
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from durable_agents.clock import Clock, SystemClock
from durable_agents.errors import InvalidSetting
from durable_agents.jobs.stages import Advance, Advanced, Move
from durable_agents.store.protocol import Transaction
from durable_agents.store.rows import Audit, Task, TaskSource, TaskStatus
from durable_agents.webhooks import events
from durable_agents.webhooks.events import CiState, CiStatus, Event, Pushed, StartRequested, VerdictGiven

if TYPE_CHECKING:
    from durable_agents.jobs.stages import StageEngine
    from durable_agents.store.rows import StoredDelivery

CI_GATE: Final = "ci_green"
"""The gate of the stages that a CI status may leave."""


class HandlerPoint(enum.StrEnum):
    """The crash points of creating a task, in order; other changes pass the first and the last."""

    BEFORE_CHANGE = "recovery.handlers.before_change"
    AFTER_TASK = "recovery.handlers.after_task"
    AFTER_FIRST_JOB = "recovery.handlers.after_first_job"
    AFTER_CHANGE = "recovery.handlers.after_change"


_NOT_IN_A_BRANCH: Final = re.compile(r"[^A-Za-z0-9_-]+")
_CANDIDATES_MAX: Final = 100
_OPEN: Final = frozenset({TaskStatus.CREATED, TaskStatus.RUNNING})
_LOGGER: Final = logging.getLogger(__name__)


class Handled(enum.StrEnum):
    """The result of an event: ``known`` was done before, ``unresolved`` belongs to no one task."""

    CREATED = "created"
    MOVED = "moved"
    CANCELLED = "cancelled"
    NOTED = "noted"
    KNOWN = "known"
    RED = "red"
    UNRESOLVED = "unresolved"


class EventOutcome(msgspec.Struct, frozen=True):
    """The result of an event, with its task as it was when the event was looked at."""

    handled: Handled
    task: Task | None = None
    reason: str = ""


EventChange: TypeAlias = Callable[[Transaction], EventOutcome]
"""A decision of a handler: does it in the transaction if it still holds, and returns the result."""

Decision: TypeAlias = EventChange | EventOutcome


def branch_of(tracker_key: str) -> str:
    """Return the branch of an issue: ``feature/`` and its key, in characters that git takes.

    >>> branch_of("ORCH 1")
    'feature/ORCH-1'
    """
    return f"feature/{_NOT_IN_A_BRANCH.sub('-', tracker_key)}"


class Handlers:
    """The four handlers, on an engine's store and pipeline. May be shared by threads.

    ``branch_of`` returns the branch of an issue; ``ci_gate`` is the gate of the stages that a CI
    status may leave. Raises InvalidSetting for a pipeline without such a stage.
    """

    def __init__(
        self,
        engine: StageEngine,
        *,
        branch_of: Callable[[str], str] = branch_of,
        ci_gate: str = CI_GATE,
        clock: Clock | None = None,
    ) -> None:
        """Look up the stages; nothing is handled yet."""
        self.engine = engine
        self._store = engine.store
        self._branch_of = branch_of
        self._clock: Clock = SystemClock() if clock is None else clock
        self._ci_stages = tuple(
            stage.name for stage in engine.pipeline.stages if stage.gate == ci_gate and not stage.is_human_gated
        )
        if not self._ci_stages:
            gates = ", ".join(sorted({stage.gate for stage in engine.pipeline.stages if stage.gate}))
            message = (
                f"ci_gate must be the gate of a stage without a human gate; got {ci_gate!r}. Name one of: {gates}."
            )
            raise InvalidSetting(message)

    def decide_delivery(self, delivery: StoredDelivery) -> EventChange | None:
        """Decide about a delivery of an inbox. Raises InvalidDelivery, or any StoreError."""
        event = events.parse(delivery.source, delivery.event, delivery.body)
        decision = None if event is None else self.decide(event)
        return None if isinstance(decision, EventOutcome) else decision

    def handle(self, event: Event) -> EventOutcome:
        """Decide, and apply the change in a transaction of its own. Raises any StoreError."""
        decision = self.decide(event)
        if isinstance(decision, EventOutcome):
            return decision
        sys.audit(HandlerPoint.BEFORE_CHANGE)
        with self._store.transaction() as transaction:
            outcome = decision(transaction)
        sys.audit(HandlerPoint.AFTER_CHANGE)
        return outcome

    def decide(self, event: Event) -> Decision:
        """Return the decision about an event, and write nothing. Raises any StoreError."""
        match event:
            case StartRequested():
                return self.start(event)
            case VerdictGiven():
                return self.verdict(event)
            case CiStatus():
                return self.ci_status(event)
            case Pushed():
                return self.push(event)

    def start(self, event: StartRequested) -> Decision:
        """Create the task of an issue, unless it exists, in any state."""
        known = self._store.task_with_tracker_key(event.tracker_key)
        if known is not None:
            return EventOutcome(Handled.KNOWN, known)
        return lambda transaction: self._create(transaction, event)

    def verdict(self, event: VerdictGiven) -> Decision:
        """Leave a stage with a human gate, or cancel the task in it."""
        task = self._store.task_with_tracker_key(event.tracker_key)
        if task is None:
            return EventOutcome(Handled.UNRESOLVED, reason=f"there is no task of {event.tracker_key}")
        if task.status not in _OPEN or not self.engine.pipeline.stage(task.stage).is_human_gated:
            return EventOutcome(Handled.KNOWN, task)
        if not event.is_approved:
            return lambda transaction: self._cancel(transaction, task)
        decided = self.engine.decide_approval(task.task_id, task.stage, by="the tracker", repo=self._repo(task))
        return self._moving(task, decided)

    def ci_status(self, event: CiStatus) -> Decision:
        """Ask the gate of a green commit's task, and move the task if the gate is green, too."""
        if event.state is not CiState.SUCCESS:
            return EventOutcome(Handled.KNOWN, reason=f"CI says {event.state}")
        task = self._task_of(event)
        if task is None:
            reason = f"commit {event.sha:.12} of {event.repo} belongs to no one task in {' or '.join(self._ci_stages)}"
            _LOGGER.info("a CI status is not resolved: %s", reason)
            return EventOutcome(Handled.UNRESOLVED, reason=reason)
        return self._moving(task, self.engine.decide(task.task_id, task.stage, finished_agent=None, repo=event.repo))

    def push(self, event: Pushed) -> Decision:
        """Keep the newest commit of a task's branch."""
        if not self._store.tasks_of_branch(event.repo, event.branch, limit=1):
            return EventOutcome(Handled.UNRESOLVED, reason=f"no task is on {event.branch} of {event.repo}")

        def note(transaction: Transaction) -> EventOutcome:
            is_new = transaction.set_sha(event.repo, event.branch, event.sha) > 0
            return EventOutcome(Handled.NOTED if is_new else Handled.KNOWN)

        return note

    def _task_of(self, event: CiStatus) -> Task | None:
        """Return the one task in a CI stage that a commit belongs to.

        It is found by its branch, else by the commit. Where the sender names no branch and no push
        named the commit, it is the only task that waits for CI in the repository; of two, neither.
        """
        repo = event.repo
        if event.branch:
            return self._only(self._store.tasks_of_branch(repo, event.branch, limit=_CANDIDATES_MAX))
        known = self._store.tasks_of_commit(repo, event.sha, limit=_CANDIDATES_MAX)
        if known:
            return self._only(known)
        found = self._only(
            [task for stage in self._ci_stages for task in self._store.tasks_of_repo(repo, stage, limit=2)]
        )
        if found is not None:
            whose = found.tracker_key or found.task_id
            _LOGGER.info("commit %.12s of %s is taken for that of %s, which alone waits for CI", event.sha, repo, whose)
        return found

    def _only(self, tasks: list[Task]) -> Task | None:
        found = [task for task in tasks if task.stage in self._ci_stages]
        return found[0] if len(found) == 1 else None

    def _repo(self, task: Task) -> str:
        source = self._store.source(task.task_id)
        return "" if source is None else source.repo

    def _moving(self, task: Task, decided: Move | Advance) -> Decision:
        if isinstance(decided, Advance):
            return _outcome(task, decided)
        return lambda transaction: _outcome(task, self.engine.apply(transaction, decided))

    def _create(self, transaction: Transaction, event: StartRequested) -> EventOutcome:
        now = self._clock.now()
        first = self.engine.pipeline.stages[0]
        task_id = f"{now:016x}-{secrets.token_hex(6)}"
        task = Task(task_id, event.tracker_key, TaskStatus.CREATED, first.name, now, now, now)
        if not transaction.insert_task(task):
            return EventOutcome(Handled.KNOWN, transaction.task_with_tracker_key(event.tracker_key))
        transaction.insert_audit(Audit(task_id, "created", None, task.status.value, event.tracker_key, now))
        if event.repo:
            transaction.insert_source(TaskSource(task_id, event.repo, self._branch_of(event.tracker_key)))
        sys.audit(HandlerPoint.AFTER_TASK, task_id)
        self.engine.write_first_job(transaction, task_id, repo=event.repo)
        sys.audit(HandlerPoint.AFTER_FIRST_JOB, task_id)
        return EventOutcome(Handled.CREATED, task)

    def _cancel(self, transaction: Transaction, task: Task) -> EventOutcome:
        """Cancel the task if it is still in the stage in which the verdict found it."""
        found = transaction.task(task.task_id)
        now = self._clock.now()
        is_there = found is not None and (found.stage, found.stage_entered_at) == (task.stage, task.stage_entered_at)
        if found is None or not is_there or found.status not in _OPEN:
            return EventOutcome(Handled.KNOWN, found)
        status = TaskStatus.CANCELLED
        transaction.change_status(task.task_id, expected=found.status, status=status, now=now)
        why = f"rejected by the tracker in {task.stage}"
        transaction.insert_audit(Audit(task.task_id, "status_changed", found.status.value, status.value, why, now))
        return EventOutcome(Handled.CANCELLED, task, why)


def _outcome(task: Task, advance: Advance) -> EventOutcome:
    if advance.is_moved:
        return EventOutcome(Handled.MOVED, task)
    is_red = advance.result is Advanced.GATE_RED
    return EventOutcome(Handled.RED if is_red else Handled.KNOWN, task, advance.reason or advance.result.value)
