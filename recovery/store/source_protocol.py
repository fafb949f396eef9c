"""What handlers and the reconciler ask of a store: where tasks come from, and which of them wait.

A part of ``Transaction`` and ``Store``. A task that has ended belongs to no branch any more: another may follow on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from recovery.clock import Microseconds
    from recovery.store.rows import Task, TaskSource, WaitingTask


class SourceTransaction(Protocol):
    """The inside of a transaction, as far as the sources of tasks are concerned."""

    def insert_source(self, source: TaskSource) -> bool:
        """Say where a task comes from; False, and no change, where that was said. Raises UnknownTask."""
        ...

    def set_sha(self, repo: str, branch: str, sha: str) -> int:
        """Set the newest commit of a branch, for the tasks on it that have not ended; return for how many it is new."""
        ...


class SourceStore(Protocol):
    """What a store can tell about the sources of tasks, and about tasks that wait."""

    def task_with_tracker_key(self, tracker_key: str) -> Task | None:
        """Return the one task with this tracker key, ended or not, or None."""
        ...

    def source(self, task_id: str) -> TaskSource | None:
        """Return where a task comes from, or None."""
        ...

    def tasks_of_branch(self, repo: str, branch: str, *, limit: int) -> list[Task]:
        """Return the tasks on a branch that have not ended, in the order of their ids."""
        ...

    def tasks_of_commit(self, repo: str, sha: str, *, limit: int) -> list[Task]:
        """Return the tasks whose branch has this commit for its newest and that have not ended, by their ids."""
        ...

    def tasks_of_repo(self, repo: str, stage: str, *, limit: int) -> list[Task]:
        """Return the tasks of a repository that are in this stage and have not ended, in the order of their ids."""
        ...

    def waiting_tasks(
        self, stage: str, *, entered_until: Microseconds, after: tuple[Microseconds, str] = (0, ""), limit: int
    ) -> list[WaitingTask]:
        """Return tasks that entered the stage by then, have not ended, and that nobody is about to move.

        Those with a job that is queued or running, or with an advance in the outbox, are somebody's.
        In the order in which they entered it, those behind ``after``: the moment and the id of the last one seen.
        """
        ...
