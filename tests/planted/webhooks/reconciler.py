"""Reconcilers with one known bug each.

| variant | bug | seen by |
|---|---|---|
| AgesTheRow | the grace counts from the last write to the row, not from the entry into the stage (D21) | a busy task |
| ReadsOnePage | of the tracker's issues those of the first page are seen | a verdict on the second |
| OpensTheHumanGate | a stage with a human gate is left like any other | an issue that nobody has approved |
| SpeaksOnRed | each look at a red gate is told to people | a gate that is red for hours |
| StopsAtTheFirst | one issue that cannot be handled ends the round | an issue with a key that is no key |
| DisturbsWork | whether anybody is at work on the task is not asked | a job that waits for its worker |
| HasNoGrace | a stage is left as soon as its gate is green | the time that a lost status costs |
| ForgetsGatesBehindTheTracker | the tracker is asked first, and its errors end the round | a tracker out of order |
| TakesOneAnswerTwice | an approval that the tracker still shows counts for each human gate | a pipeline with two |
| TrustsMemory | what was looked at once is not looked at again | a gate that turns green after a look |
| AgesTheTask | the grace counts from the creation of the task | a task that has just entered its second stage |
| OverlooksTheQueued | a job that waits does not count as active | a task whose job waits for a worker |
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from durable_agents.clock import microseconds
from durable_agents.pipeline.reconciler import Approvals, Reconciler, Round, Unblocked
from durable_agents.pipeline.tracker import PAGE_LIMIT
from durable_agents.store.rows import TaskStatus, WaitingTask
from durable_agents.store.sqlite import webhooks
from durable_agents.webhooks.events import TrackerState

from tests.planted.restated import restate

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator

    from durable_agents.clock import Microseconds
    from durable_agents.pipeline.handlers import Handlers
    from durable_agents.store.rows import Task


class AgesTheRow(Reconciler):
    """Waits until nobody has written for a while."""

    def _overdue(self, stage: str, now: Microseconds) -> Iterator[WaitingTask]:
        until = now - microseconds(self.grace_for_stage(stage))
        for waiting in self._store.waiting_tasks(stage, entered_until=now, limit=1000):
            if waiting.task.updated_at <= until:
                yield waiting


class ReadsOnePage(Reconciler):
    """Takes what comes first for all there is."""

    def _replay(self, project: str, found: Counter[str]) -> bool:
        assert self._tracker is not None
        now = self._clock.now()
        for state in TrackerState:
            for issue in itertools.islice(self._tracker.issues(project, state.value), PAGE_LIMIT):
                self._isolated(issue.key, lambda: self._handle(issue, now, found))  # noqa: B023 - called at once
        return True


class OpensTheHumanGate(Reconciler):
    """Knows what people want."""

    def reconcile_gates_once(self, now: Microseconds | None = None) -> Round:
        """Leave human gates, too."""
        moment = self._clock.now() if now is None else now
        for stage in self._engine.pipeline.stages:
            if stage.is_human_gated:
                for waiting in self._overdue(stage.name, moment):
                    self._engine.approve(waiting.task.task_id, stage.name, by="the reconciler", repo=waiting.repo)
        return super().reconcile_gates_once(now)


class SpeaksOnRed(Reconciler):
    """Says what there is to be said, each time."""

    def _leave(self, waiting: WaitingTask) -> bool:
        is_moved = super()._leave(waiting)
        if not is_moved and self._notifier is not None:
            task = waiting.task
            self._notifier(Unblocked(task.task_id, task.tracker_key or "", task.stage, "it is still red"))
        return is_moved


class StopsAtTheFirst(Reconciler):
    """Has no isolation but the outermost."""

    def _isolated(self, what: str, do: Callable[[], Any]) -> Any:
        return super()._isolated(what, do) if what.startswith("project") else do()


class DisturbsWork(Reconciler):
    """Looks at all tasks of a stage."""

    def _overdue(self, stage: str, now: Microseconds) -> Iterator[WaitingTask]:
        until = now - microseconds(self.grace_for_stage(stage))
        for task in self._store.tasks(status=TaskStatus.CREATED):
            if task.stage == stage and task.stage_entered_at <= until:
                yield WaitingTask(task, "core/app")


class HasNoGrace(Reconciler):
    """Leaves nothing to webhooks."""

    def grace_for_stage(self, stage: str) -> float:
        """Return no time."""
        del stage
        return 0.0


class ForgetsGatesBehindTheTracker(Reconciler):
    """Does one thing after the other, and lets the first one's errors through."""

    def reconcile_gates_once(self, now: Microseconds | None = None) -> Round:
        """Look at gates, where the tracker can be asked."""
        if self._tracker is not None:
            try:
                list(self._tracker.issues(self._projects[0], TrackerState.REJECTED))
            except Exception:  # noqa: BLE001 - that is the bug
                return Round(troubles=1)
        return super().reconcile_gates_once(now)


class TrustsMemory(Reconciler):
    """Remembers what it has seen red."""

    def _leave(self, waiting: WaitingTask) -> bool:
        seen: set[str] = self.__dict__.setdefault("seen", set())
        if waiting.task.task_id in seen:
            return False
        seen.add(waiting.task.task_id)
        return super()._leave(waiting)


class _KnowsNoGate(Approvals):
    """Keeps nothing of what an approval was the answer to."""

    def is_spent(self, task: Task) -> bool:
        """Say no."""
        del task
        return False


class TakesOneAnswerTwice(Reconciler):
    """Takes what the tracker shows for what somebody has just said."""

    def __init__(self, handlers: Handlers, **arguments: Any) -> None:
        """Forget, from the start."""
        super().__init__(handlers, **arguments)
        self._approvals = _KnowsNoGate(handlers.engine)


class AgesTheTask(Reconciler):
    """Measures the grace from the start."""

    def _overdue(self, stage: str, now: Microseconds) -> Iterator[WaitingTask]:
        until = now - microseconds(self.grace_for_stage(stage))
        for waiting in self._store.waiting_tasks(stage, entered_until=now, limit=1000):
            if waiting.task.created_at <= until:
                yield waiting


class OverlooksTheQueued(Reconciler):
    """Asks whether somebody is at work now."""

    def __init__(self, handlers: Handlers, **arguments: Any) -> None:
        """Take a job that waits for none."""
        restate(webhooks, "j.status IN ('queued', 'running')", "j.status IN ('running')", "WAITING")
        super().__init__(handlers, **arguments)
