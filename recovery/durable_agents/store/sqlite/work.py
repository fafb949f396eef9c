"""The statements on tasks, audit trails, checkpoints, evidence, work items and leases."""

# ruff: noqa: S608 - statements are put together from the constants of this module alone

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from durable_agents.store.protocol import NUMBER_MAX, PAGE_ROWS_MAX
from durable_agents.store.rows import (
    Audit,
    ExpiredLease,
    Expiry,
    StoredCheckpoint,
    StoredEvidence,
    Task,
    TaskStatus,
    WorkItem,
    WorkStatus,
)
from durable_agents.store.sqlite.statements import Parameters, Queries, Writes, columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_agents.clock import Microseconds

_TASK = f"SELECT {columns(Task)} FROM tasks "
_TASK_BY_ID: Final = _TASK + "WHERE task_id = ?"
_TASK_BY_TRACKER_KEY: Final = _TASK + "WHERE tracker_key = ?"
_TASKS: Final = _TASK + "WHERE task_id > ? ORDER BY task_id LIMIT ?"
_TASKS_BY_STATUS: Final = _TASK + "WHERE status = ? AND task_id > ? ORDER BY task_id LIMIT ?"
_INSERT_TASK: Final = f"INSERT INTO tasks ({columns(Task)}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_CHANGE_STATUS: Final = "UPDATE tasks SET status = ?, updated_at = ? WHERE task_id = ? AND status = ?"
_INSERT_AUDITS: Final = f"INSERT INTO task_audits ({columns(Audit)}) VALUES {{rows}}"
_INSERT_AUDIT: Final = _INSERT_AUDITS.format(rows="(?, ?, ?, ?, ?, ?)")
_AUDITS: Final = f"SELECT {columns(Audit)} FROM task_audits WHERE task_id = ? ORDER BY audit_id DESC LIMIT ?"
_LAST_NUMBER: Final = "SELECT max(sequence_number) FROM checkpoints WHERE task_id = ?"
_INSERT_CHECKPOINTS: Final = f"INSERT INTO checkpoints ({columns(StoredCheckpoint)}) VALUES {{rows}}"
_INSERT_CHECKPOINT: Final = _INSERT_CHECKPOINTS.format(rows="(?, ?, ?, ?, ?, ?)")
# The cast returns the stored bytes as they are: the hash is over them, and the decoder wants them.
_CHECKPOINT = (
    "SELECT task_id, sequence_number, type, CAST(snapshot AS BLOB), content_hash, created_at FROM checkpoints "
    "WHERE task_id = ? AND sequence_number "
)
_LATEST: Final = _CHECKPOINT + "< ? ORDER BY sequence_number DESC LIMIT 1"
_CHECKPOINTS: Final = _CHECKPOINT + "> ? ORDER BY sequence_number LIMIT ?"
_INSERT_EVIDENCE: Final = f"INSERT INTO checkpoint_evidence ({columns(StoredEvidence)}) VALUES (?, ?, ?, ?, ?)"
# Oldest first, so that the numbers which remain are contiguous after every batch. Evidence goes
# with its checkpoint.
_DELETE_BELOW: Final = (
    "DELETE FROM checkpoints WHERE task_id = ? AND sequence_number < min(?, coalesce((SELECT sequence_number FROM "
    "checkpoints WHERE task_id = ? ORDER BY sequence_number LIMIT 1 OFFSET ?), ?))"
)
_EVIDENCE: Final = (
    "SELECT c.task_id, c.sequence_number, coalesce(e.required, 0), coalesce(e.verified, 0), "
    "CAST(coalesce(e.verdicts, '') AS BLOB) "
    "FROM checkpoints AS c LEFT JOIN checkpoint_evidence AS e USING (task_id, sequence_number) "
    "WHERE c.task_id = ? AND c.sequence_number < ? ORDER BY c.sequence_number DESC LIMIT ?"
)


def task_of(row: tuple[Any, ...]) -> Task:
    """Return the task of a row with its columns."""
    task_id, tracker_key, status, *others = row
    return Task(task_id, tracker_key, TaskStatus(status), *others)


class TaskReads(Queries):
    """Queries on tasks, audit trails, checkpoints and their evidence."""

    __slots__ = ()

    def task(self, task_id: str) -> Task | None:
        """Return the task, or None."""
        row = self._read_one(_TASK_BY_ID, (task_id,))
        return None if row is None else task_of(row)

    def task_with_tracker_key(self, tracker_key: str) -> Task | None:
        """Return the one task with this tracker key, or None."""
        row = self._read_one(_TASK_BY_TRACKER_KEY, (tracker_key,))
        return None if row is None else task_of(row)

    def tasks(self, *, status: TaskStatus | None = None, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[Task]:
        """Return tasks in the order of their ids."""
        if status is None:
            return [task_of(row) for row in self._read(_TASKS, (after, limit))]
        return [task_of(row) for row in self._read(_TASKS_BY_STATUS, (status.value, after, limit))]

    def audits(self, task_id: str, *, limit: int = PAGE_ROWS_MAX) -> list[Audit]:
        """Return the newest rows of the task's audit trail, oldest first."""
        return [Audit(*row) for row in reversed(self._read(_AUDITS, (task_id, limit)))]

    def latest_checkpoint(self, task_id: str, before: int = NUMBER_MAX) -> StoredCheckpoint | None:
        """Return the checkpoint with the largest number below ``before``, or None."""
        row = self._read_one(_LATEST, (task_id, before))
        return None if row is None else StoredCheckpoint(*row)

    def checkpoints(self, task_id: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[StoredCheckpoint]:
        """Return checkpoints in the order of their numbers."""
        return [StoredCheckpoint(*row) for row in self._read(_CHECKPOINTS, (task_id, after, limit))]

    def evidence(self, task_id: str, *, before: int = NUMBER_MAX, limit: int = PAGE_ROWS_MAX) -> list[StoredEvidence]:
        """Return the evidence of all checkpoints below ``before``, newest first."""
        rows = self._read(_EVIDENCE, (task_id, before, limit))
        return [StoredEvidence(row[0], row[1], row[2], bool(row[3]), row[4]) for row in rows]


class TaskWrites(TaskReads, Writes):
    """Changes of tasks, audit trails, checkpoints and their evidence."""

    __slots__ = ()

    def insert_task(self, task: Task) -> bool:
        """Insert the task; False if its id or its tracker key is taken."""
        row = (task.task_id, task.tracker_key, task.status.value, task.stage, task.stage_entered_at)
        return self._changes_one(_INSERT_TASK, (*row, task.created_at, task.updated_at))

    def change_status(self, task_id: str, *, expected: TaskStatus, status: TaskStatus, now: Microseconds) -> bool:
        """Set the status; False if it is not the expected one."""
        return self._changes_one(_CHANGE_STATUS, (status.value, now, task_id, expected.value))

    def insert_audit(self, audit: Audit) -> None:
        """Add a row to the task's audit trail. Raises UnknownTask."""
        self._insert_of_task(_INSERT_AUDIT, _audit_row(audit), audit.task_id)

    def insert_audits(self, audits: Sequence[Audit]) -> None:
        """Add several rows. Raises UnknownTask."""
        self._insert_of_tasks(_INSERT_AUDITS, [_audit_row(audit) for audit in audits])

    def next_checkpoint_number(self, task_id: str) -> int:
        """Return one more than the task's newest number; the write lock keeps it ours."""
        number: int | None = self._read(_LAST_NUMBER, (task_id,))[0][0]
        return 1 if number is None else number + 1

    def insert_checkpoint(self, checkpoint: StoredCheckpoint) -> None:
        """Insert the checkpoint. Raises UnknownTask."""
        self._insert_of_task(_INSERT_CHECKPOINT, _checkpoint_row(checkpoint), checkpoint.task_id)

    def insert_checkpoints(self, checkpoints: Sequence[StoredCheckpoint]) -> None:
        """Insert several checkpoints. Raises UnknownTask."""
        self._insert_of_tasks(_INSERT_CHECKPOINTS, [_checkpoint_row(checkpoint) for checkpoint in checkpoints])

    def insert_evidence(self, evidence: StoredEvidence) -> None:
        """Insert the evidence of a checkpoint, with its verdicts."""
        key = (evidence.task_id, evidence.sequence_number)
        verdicts = evidence.verdicts.decode()
        self.execute(_INSERT_EVIDENCE, (*key, evidence.required, int(evidence.verified), verdicts))

    def delete_checkpoints(self, task_id: str, below: int, limit: int) -> int:
        """Delete up to ``limit`` checkpoints below ``below``, oldest first; return how many."""
        return self.execute(_DELETE_BELOW, (task_id, below, task_id, limit, below)).rowcount


def _audit_row(audit: Audit) -> Parameters:
    return (audit.task_id, audit.event, audit.before, audit.after, audit.detail, audit.created_at)


def _checkpoint_row(checkpoint: StoredCheckpoint) -> Parameters:
    key = (checkpoint.task_id, checkpoint.sequence_number, checkpoint.type)
    return (*key, checkpoint.snapshot.decode(), checkpoint.content_hash, checkpoint.created_at)


_INSERT_ITEM: Final = (
    "INSERT INTO work_items (task_id, type, priority, status, retries, max_retries, lease_token, error, created_at, "
    f"updated_at) VALUES (?, ?, ?, 'pending', 0, ?, 0, '', ?, ?) RETURNING {columns(WorkItem)}"
)
_ITEM: Final = f"SELECT {columns(WorkItem)} FROM work_items WHERE work_item_id = ?"
# Each choice of filters is a statement of its own, so that each is answered by its own index of
# pending items.
_NEWEST_GRANT = "(SELECT max(lease_token) FROM work_items WHERE lease_token > 0)"
_CHOSEN = (
    "SELECT work_item_id FROM work_items WHERE status = 'pending' {filters} ORDER BY priority DESC, work_item_id LIMIT "
)
_GRANT_ONE: Final = (
    f"UPDATE work_items SET status = 'in_progress', lease_token = 1 + coalesce({_NEWEST_GRANT}, 0), lease_holder = ?, "
    f"lease_expires_at = ?, heartbeat_at = ?, updated_at = ? WHERE work_item_id = ({_CHOSEN}1) "
    f"RETURNING {columns(WorkItem)}"
)
_GRANT_MANY: Final = (
    f"UPDATE work_items SET status = 'in_progress', lease_token = chosen.place + coalesce({_NEWEST_GRANT}, 0), "
    "lease_holder = ?, lease_expires_at = ?, heartbeat_at = ?, updated_at = ? "
    f"FROM (SELECT work_item_id AS id, row_number() OVER () AS place FROM ({_CHOSEN}?)) AS chosen "
    f"WHERE work_item_id = chosen.id RETURNING {columns(WorkItem)}"
)
_GRANTS: Final = {
    (by_type, by_task, is_one): (_GRANT_ONE if is_one else _GRANT_MANY).format(
        filters="AND type = ? " * by_type + "AND task_id = ?" * by_task
    )
    for by_type in (False, True)
    for by_task in (False, True)
    for is_one in (False, True)
}
"""By whether a type and a task are asked for, and whether it is one item."""

_HELD = "WHERE work_item_id = ? AND status = 'in_progress' AND lease_token = ? AND lease_expires_at > ?"
_RENEW: Final = f"UPDATE work_items SET lease_expires_at = ?, heartbeat_at = ?, updated_at = ? {_HELD}"
_HOLDS: Final = f"SELECT 1 FROM work_items {_HELD}"
_END: Final = (
    "UPDATE work_items SET status = ?, retries = retries + ?, lease_holder = NULL, lease_expires_at = NULL, error = ?, "
    f"updated_at = ? {_HELD}"
)
_EXPIRE: Final = (
    "UPDATE work_items SET status = ended.status, retries = work_items.retries + ended.retries, lease_holder = NULL, "
    "lease_expires_at = NULL, error = ended.error, updated_at = ended.now "
    "FROM (SELECT column1 AS id, column2 AS token, column3 AS expires_at, column4 AS status, column5 AS retries, "
    "column6 AS error, column7 AS now FROM (VALUES {rows})) AS ended WHERE work_item_id = ended.id "
    "AND work_items.status = 'in_progress' AND lease_token = ended.token AND lease_expires_at = ended.expires_at"
)
EXPIRED: Final = (
    f"SELECT {columns(ExpiredLease)} FROM work_items WHERE status = 'in_progress' AND lease_expires_at <= ? "
    "AND (lease_expires_at, work_item_id) > (?, ?) ORDER BY lease_expires_at, work_item_id LIMIT ?"
)
# An enum computes both ways each time that it is asked, which shows where it is asked for each of
# many rows.
_TEXTS: Final = {status: status.value for status in WorkStatus}
_STATUSES: Final = {status.value: status for status in WorkStatus}


class LeaseReads(Queries):
    """Queries on work items."""

    __slots__ = ()

    def work_item(self, work_item_id: int) -> WorkItem | None:
        """Return the work item, or None."""
        row = self._read_one(_ITEM, (work_item_id,))
        return None if row is None else _item(row)


class LeaseWrites(LeaseReads, Writes):
    """Changes of work items."""

    __slots__ = ()

    def insert_work_item(
        self,
        *,
        task_id: str,
        type: str,  # noqa: A002 - the field's name
        priority: int,
        max_retries: int,
        now: Microseconds,
    ) -> WorkItem:
        """Insert a pending work item and return it. Raises UnknownTask."""
        row = (task_id, type, priority, max_retries, now, now)
        return _item(self._insert_of_task(_INSERT_ITEM, row, task_id).fetchone())

    def grant_leases(
        self,
        *,
        holder: str,
        type: str | None,  # noqa: A002 - the field's name
        task_id: str | None,
        limit: int,
        expires_at: Microseconds,
        now: Microseconds,
    ) -> list[WorkItem]:
        """Grant up to ``limit`` pending items to the holder, in one statement."""
        given = [value for value in (type, task_id) if value is not None]
        statement = _GRANTS[type is not None, task_id is not None, limit == 1]
        parameters: Parameters = (holder, expires_at, now, now, *given)
        if limit == 1:
            return [_item(row) for row in self._read(statement, parameters)]
        items = [_item(row) for row in self._read(statement, (*parameters, limit))]
        return sorted(items, key=lambda item: (-item.priority, item.work_item_id))

    def renew_lease(self, work_item_id: int, token: int, *, expires_at: Microseconds, now: Microseconds) -> bool:
        """Move the expiry of a lease; False if the token does not hold the item."""
        return self._changes_one(_RENEW, (expires_at, now, now, work_item_id, token, now))

    def holds_lease(self, work_item_id: int, token: int, *, now: Microseconds) -> bool:
        """Tell whether this token holds the item and has not expired: the fence of every write."""
        return bool(self._read(_HOLDS, (work_item_id, token, now)))

    def end_lease(
        self, work_item_id: int, token: int, *, status: WorkStatus, retries: int, error: str, now: Microseconds
    ) -> bool:
        """End a lease and add to the retries; False if the token does not hold the item."""
        return self._changes_one(_END, (_TEXTS[status], retries, error, now, work_item_id, token, now))

    def expire_leases(self, expiries: Sequence[Expiry], *, now: Microseconds) -> int:
        """End expired leases; return how many were ended."""
        rows = [(e.work_item_id, e.token, e.expires_at, _TEXTS[e.status], e.retries, e.error, now) for e in expiries]
        return self.execute_rows(_EXPIRE, rows)

    def expired_leases(self, *, now: Microseconds, after: tuple[Microseconds, int], limit: int) -> list[ExpiredLease]:
        """Return items with an expired lease, in the order of expiry and id."""
        return [ExpiredLease(*row) for row in self._read(EXPIRED, (now, *after, limit))]


def _item(row: tuple[Any, ...]) -> WorkItem:
    work_item_id, task_id, type_, priority, status, *others = row
    return WorkItem(work_item_id, task_id, type_, priority, _STATUSES[status], *others)
