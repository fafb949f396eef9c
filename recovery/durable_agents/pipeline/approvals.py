"""Approvals that a tracker still shows: which of them were spent on a gate before, and are no answer to this one.

A webhook says that somebody has approved; a poll says that an issue *is* Approved, and it goes on
to say so until somebody changes it. In a pipeline with several human gates the answer to the first
would open the others as the task comes to them, with no human near. So an approval that is polled
counts once: after a task has left a human gate, the tracker has to have shown the issue as In
Progress before another one counts. That it has is a row of the audit trail, which a restart does
not forget.

When an issue was changed the tracker does say, but a comment changes it, too; nothing follows from
that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import Audit

if TYPE_CHECKING:
    from durable_agents.clock import Microseconds
    from durable_agents.jobs.stages import StageEngine
    from durable_agents.store.rows import Task

APPROVAL_OVER: Final = "approval_over"
"""The event of the audit row that says that the tracker no longer shows the approval of an earlier gate."""


class Approvals:
    """What is known of the polled approvals of an engine's tasks. May be shared by threads."""

    def __init__(self, engine: StageEngine) -> None:
        """Look up the human gates; with fewer than two there is nothing to tell apart, and nothing is ever read."""
        self._store = engine.store
        self._gates = frozenset(stage.name for stage in engine.pipeline.stages if stage.is_human_gated)

    def is_spent(self, task: Task) -> bool:
        """Tell whether an approval that the tracker shows was already the answer to an earlier gate of this task."""
        return len(self._gates) > 1 and task.stage in self._gates and self._spent_at(task) is not None

    def note_in_progress(self, task: Task, *, asked_at: Microseconds, now: Microseconds) -> bool:
        """Keep that the tracker, asked then, showed the issue as In Progress; return whether that was news.

        What it said before the task left its gate is none. Raises StoreErrors.
        """
        if len(self._gates) < 2:
            return False
        spent_at = self._spent_at(task)
        if spent_at is None or spent_at >= asked_at:
            return False
        with self._store.transaction() as transaction:
            found = transaction.task(task.task_id)
            if found is None or (found.stage, found.stage_entered_at) != (task.stage, task.stage_entered_at):
                return False
            transaction.insert_audit(Audit(task.task_id, APPROVAL_OVER, None, None, "the issue is In Progress", now))
        return True

    def _spent_at(self, task: Task) -> Microseconds | None:
        """Return when the task left a human gate, unless the tracker has shown since that the approval is over."""
        audits = self._store.audits(task.task_id)
        for audit in reversed(audits):
            if audit.event == APPROVAL_OVER:
                return None
            if audit.event == "stage_changed" and audit.before in self._gates:
                return audit.created_at
        is_whole = len(audits) < PAGE_ROWS_MAX
        return None if is_whole else audits[0].created_at  # who knows what came before: a human can say it again
