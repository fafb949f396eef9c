"""The statements on the inbox, on the sources of tasks, and on tasks that wait in a stage."""

# ruff: noqa: S608 - statements are put together from the constants of this module alone

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import DeliveryStatus, StoredDelivery, Task, TaskSource, WaitingTask
from durable_agents.store.sqlite.statements import Queries, Writes, columns
from durable_agents.store.sqlite.work import task_of

if TYPE_CHECKING:
    from durable_agents.clock import Microseconds

_ACCEPT: Final = (
    "INSERT INTO webhook_inbox (source, identity, delivery_id, event, received_at, status, attempts, error, body) "
    "VALUES (?, ?, ?, ?, ?, 'pending', 0, '', ?) ON CONFLICT (source, identity) DO NOTHING"
)
_PENDING: Final = (
    f"SELECT {columns(StoredDelivery)} "
    "FROM webhook_inbox WHERE status = 'pending' AND delivery_number > ? ORDER BY delivery_number LIMIT ?"
)
_END: Final = (
    "UPDATE webhook_inbox SET status = ?, error = ?, attempts = attempts + 1 "
    "WHERE delivery_number = ? AND status = 'pending'"
)
_DELETE: Final = (
    "DELETE FROM webhook_inbox WHERE delivery_number IN (SELECT delivery_number FROM webhook_inbox "
    "WHERE status = 'handled' AND received_at < ? ORDER BY received_at LIMIT ?)"
)
_OLDEST: Final = "SELECT min(received_at) FROM webhook_inbox WHERE status = 'handled'"
# Written out and not bound: SQLite uses a partial index only where it can see that its condition
# holds.
COUNTS: Final = {status: f"SELECT count(*) FROM webhook_inbox WHERE status = '{status}'" for status in DeliveryStatus}


class InboxWrites(Writes):
    """Changes of the inbox."""

    __slots__ = ()

    def accept_delivery(self, delivery: StoredDelivery) -> bool:
        """Put a delivery into the inbox; False if its identity is there."""
        known = (delivery.source, delivery.identity, delivery.delivery_id, delivery.event)
        return self._changes_one(_ACCEPT, (*known, delivery.received_at, delivery.body))

    def end_delivery(self, number: int, *, status: DeliveryStatus, error: str) -> bool:
        """Count an attempt at a pending delivery and set its status; False if it is not pending."""
        return self._changes_one(_END, (status.value, error, number))

    def delete_deliveries(self, *, before: Microseconds, limit: int) -> int:
        """Delete handled deliveries that were received before; return how many."""
        return self.execute(_DELETE, (before, limit)).rowcount


class InboxReads(Queries):
    """Queries on the inbox."""

    __slots__ = ()

    def pending_deliveries(self, *, after: int, limit: int) -> list[StoredDelivery]:
        """Return pending deliveries in the order in which they were accepted."""
        return [_delivery(row) for row in self._read(_PENDING, (after, limit))]

    def oldest_handled_delivery(self) -> Microseconds | None:
        """Return when the oldest handled delivery was received, or None."""
        oldest: Microseconds | None = self._read(_OLDEST, ())[0][0]
        return oldest

    def deliveries(self, status: DeliveryStatus) -> int:
        """Return how many deliveries in the inbox have this status."""
        count: int = self._read(COUNTS[status], ())[0][0]
        return count


def _delivery(row: tuple[Any, ...]) -> StoredDelivery:
    number, source, identity, delivery_id, event, body, received_at, status, *others = row
    known = (number, source, identity, delivery_id, event, body, received_at)
    return StoredDelivery(*known, DeliveryStatus(status), *others)


_INSERT: Final = f"INSERT INTO task_sources ({columns(TaskSource)}) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_OPEN = "status IN ('created', 'running')"
_SET_SHA: Final = (
    "UPDATE task_sources SET sha = ? WHERE repo = ? AND branch = ? AND sha <> ? "
    f"AND EXISTS (SELECT 1 FROM tasks AS t WHERE t.task_id = task_sources.task_id AND t.{_OPEN})"
)
_SOURCE: Final = f"SELECT {columns(TaskSource)} FROM task_sources WHERE task_id = ?"
_COLUMNS = columns(Task, "t.")
_OF_REPO = f"SELECT {_COLUMNS} FROM task_sources AS s JOIN tasks AS t USING (task_id) WHERE t.{_OPEN} AND s.repo = ? "
_OF_BRANCH: Final = f"{_OF_REPO} AND s.branch = ? ORDER BY t.task_id LIMIT ?"
_OF_SHA: Final = f"{_OF_REPO} AND s.sha = ? AND s.sha <> '' ORDER BY t.task_id LIMIT ?"
_OF_STAGE: Final = f"{_OF_REPO} AND t.stage = ? ORDER BY t.task_id LIMIT ?"
# The index on stages is walked from its oldest;
# a task with an active job costs one look at the index of jobs.
WAITING: Final = (
    f"SELECT {_COLUMNS}, coalesce(s.repo, '') FROM tasks AS t INDEXED BY tasks_waiting "
    "LEFT JOIN task_sources AS s USING (task_id) "
    f"WHERE t.{_OPEN} AND t.stage = ? AND t.stage_entered_at <= ? AND (t.stage_entered_at, t.task_id) > (?, ?) "
    "AND NOT EXISTS (SELECT 1 FROM jobs AS j WHERE j.task_id = t.task_id AND j.status IN ('queued', 'running')) "
    "AND NOT EXISTS (SELECT 1 FROM outbox AS o WHERE o.task_id = t.task_id AND o.kind = 'advance') "
    "ORDER BY t.stage_entered_at, t.task_id LIMIT ?"
)


class SourceWrites(Writes):
    """Changes of the sources of tasks."""

    __slots__ = ()

    def insert_source(self, source: TaskSource) -> bool:
        """Record the source of a task; False if it has one. Raises UnknownTask."""
        row = (source.task_id, source.repo, source.branch, source.sha)
        return bool(self._insert_of_task(_INSERT, row, source.task_id).rowcount)

    def set_sha(self, repo: str, branch: str, sha: str) -> int:
        """Set the newest commit of a branch, for the tasks on it that have not ended."""
        return self.execute(_SET_SHA, (sha, repo, branch, sha)).rowcount


class SourceReads(Queries):
    """Queries on the sources of tasks, and on tasks that wait."""

    __slots__ = ()

    def source(self, task_id: str) -> TaskSource | None:
        """Return the source of a task, or None."""
        row = self._read_one(_SOURCE, (task_id,))
        return None if row is None else TaskSource(*row)

    def tasks_of_branch(self, repo: str, branch: str, *, limit: int = PAGE_ROWS_MAX) -> list[Task]:
        """Return the tasks on a branch that have not ended."""
        return [task_of(row) for row in self._read(_OF_BRANCH, (repo, branch, limit))]

    def tasks_of_commit(self, repo: str, sha: str, *, limit: int = PAGE_ROWS_MAX) -> list[Task]:
        """Return the tasks whose branch has this newest commit and that have not ended."""
        return [task_of(row) for row in self._read(_OF_SHA, (repo, sha, limit))]

    def tasks_of_repo(self, repo: str, stage: str, *, limit: int = PAGE_ROWS_MAX) -> list[Task]:
        """Return the tasks of a repository that are in this stage and have not ended."""
        return [task_of(row) for row in self._read(_OF_STAGE, (repo, stage, limit))]

    def waiting_tasks(
        self,
        stage: str,
        *,
        entered_until: Microseconds,
        after: tuple[Microseconds, str] = (0, ""),
        limit: int = PAGE_ROWS_MAX,
    ) -> list[WaitingTask]:
        """Return tasks that wait in a stage, in the order of their entry.

        A task with an active job, or with an advance in the outbox, does not wait.
        """
        rows = self._read(WAITING, (stage, entered_until, *after, limit))
        return [WaitingTask(task_of(row[:-1]), row[-1]) for row in rows]
