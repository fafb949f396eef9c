"""Tasks: created once, however many callers try. Their status moves by compare-and-set."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from durable_agents.bounds import is_text
from durable_agents.errors import InvalidTask, InvalidTransition, StatusConflict, TaskConflict, unknown_task
from durable_agents.manager import Manager
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import Audit, Task, TaskStatus

if TYPE_CHECKING:
    from durable_agents.store import Transaction

__all__ = ["TRANSITIONS", "Audit", "Task", "TaskManager", "TaskStatus"]

TRANSITIONS: Final = {
    TaskStatus.CREATED: frozenset({TaskStatus.RUNNING, TaskStatus.FAILED, TaskStatus.CANCELLED}),
    TaskStatus.RUNNING: frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED}),
    TaskStatus.SUCCEEDED: frozenset[TaskStatus](),
    TaskStatus.FAILED: frozenset[TaskStatus](),
    TaskStatus.CANCELLED: frozenset[TaskStatus](),
}
"""The allowed changes of status. A task that is tried again stays running."""


class TaskManager(Manager):
    """Creates and follows tasks, in a store or in the database at ``db_path``.

    It opens and closes the store of ``db_path`` itself. Raises InvalidSetting, and any StoreError
    on opening. May be shared by threads.
    """

    def create(self, task_id: str | None = None, *, tracker_key: str | None = None, stage: str = "") -> Task:
        """Create a task and return it; if it exists already, return it unchanged.

        Without a ``task_id``, generate one; generated ids sort by age. Two callers with the same
        ``tracker_key`` get one task: the key is unique in the store. Raises InvalidTask;
        TaskConflict if id and key belong to different tasks; any StoreError.
        """
        _check_text("task_id", task_id)
        _check_text("tracker_key", tracker_key)
        if stage:
            _check_text("stage", stage)
        now = self._clock.now()
        new_id = f"{now:016x}-{secrets.token_hex(6)}" if task_id is None else task_id
        task = Task(new_id, tracker_key, TaskStatus.CREATED, stage, now, now, now)
        with self._store.transaction() as transaction:
            if transaction.insert_task(task):
                transaction.insert_audit(Audit(new_id, "created", None, task.status.value, "", now))
                return task
            return _existing(transaction, task_id, tracker_key)

    def get(self, task_id: str) -> Task:
        """Return the task. Raises UnknownTask, or any StoreError."""
        task = self._store.task(task_id)
        if task is None:
            raise unknown_task(task_id)
        return task

    def audits(self, task_id: str, *, limit: int = PAGE_ROWS_MAX) -> list[Audit]:
        """Return the newest ``limit`` rows of the task's audit trail, oldest first.

        Raises UnknownTask.
        """
        rows = self._store.audits(task_id, limit=limit)
        if not rows:
            self.get(task_id)
        return rows

    def list(self, *, status: TaskStatus | None = None, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[Task]:
        """Return up to ``limit`` tasks with ids above ``after``, in the order of ids.

        ``status`` limits them to tasks with that status.
        """
        return self._store.tasks(status=status, after=after, limit=limit)

    def set_status(self, task_id: str, status: TaskStatus, *, expected: TaskStatus, detail: str = "") -> Task:
        """Move the task from ``expected`` to ``status``, with an audit row, and return it.

        Of several callers who expect the same status, one succeeds. Raises InvalidTransition,
        UnknownTask, StatusConflict, or any StoreError.
        """
        if status not in TRANSITIONS[expected]:
            allowed = ", ".join(sorted(TRANSITIONS[expected])) or "nothing, it is final"
            message = f"The next status must be one that may follow {expected}; got {status}. Use one of: {allowed}."
            raise InvalidTransition(message)
        now = self._clock.now()
        with self._store.transaction() as transaction:
            changed = transaction.change_status(task_id, expected=expected, status=status, now=now)
            task = transaction.task(task_id)
            if task is None:
                raise unknown_task(task_id)
            if not changed:
                message = f"Task {task_id!r} must be {expected}; got {task.status}. Read it and decide again."
                raise StatusConflict(message)
            transaction.insert_audit(Audit(task_id, "status_changed", expected.value, status.value, detail, now))
        return task


def _existing(transaction: Transaction, task_id: str | None, tracker_key: str | None) -> Task:
    """Return the existing task if it has this id and key. Raises TaskConflict."""
    by_id = None if task_id is None else transaction.task(task_id)
    by_key = None if tracker_key is None else transaction.task_with_tracker_key(tracker_key)
    found = by_key if by_id is None else by_id
    if found is None:  # a generated id is taken: as likely as a repeated 48-bit number in one microsecond
        message = "A generated task id must be new; got one that is taken. Check the clock and create the task again."
        raise TaskConflict(message)
    if (task_id is not None and found.task_id != task_id) or found.tracker_key != tracker_key:
        message = (
            f"The task must have id {task_id!r} and tracker key {tracker_key!r}; got an existing one with id "
            f"{found.task_id!r} and tracker key {found.tracker_key!r}. Use that one, or another id and key."
        )
        raise TaskConflict(message)
    return found


def _check_text(name: str, text: object) -> None:
    if text is not None and not is_text(text):
        message = f"{name} must be non-empty text of valid UTF-8 without NUL; got {text!r}. Give another one."
        raise InvalidTask(message)
