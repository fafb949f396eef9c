"""The statements on work items and their leases: a part of the SQLite store, mixed into it and its transaction.

Every change of a lease is one UPDATE whose WHERE names what must still be so: the status, the
token, the expiry. Zero rows changed means that somebody else was faster, never that it worked.

The statements on evidence and on what retention deletes: a part of the SQLite store.

They are mixed into the store and its transaction (``sqlite``), which lend them ``execute`` and
``_read``.
"""

# ruff: noqa: S608 - statements are put together from the constants of this module alone

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from durable_agents.errors import QueryRefused
from durable_agents.store.protocol import NUMBER_MAX, PAGE_ROWS_MAX
from durable_agents.store.rows import ExpiredLease, Expiry, Scalar, StoredEvidence, WorkItem, WorkStatus
from durable_agents.store.sqlite.connections import REFUSALS, result_code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from durable_agents.clock import Microseconds
    from durable_agents.errors import RecoveryError
    from durable_agents.store.sqlite.connections import ConnectionFactory, Refusal

_COLUMNS: Final = (
    "work_item_id, task_id, type, priority, status, retries, max_retries, lease_token, lease_holder, lease_expires_at, "
    "heartbeat_at, error, created_at, updated_at"
)
_INSERT: Final = (
    "INSERT INTO work_items (task_id, type, priority, status, retries, max_retries, lease_token, error, created_at, "
    "updated_at) VALUES (?, ?, ?, 'pending', 0, ?, 0, '', ?, ?) RETURNING " + _COLUMNS
)
_ITEM: Final = f"SELECT {_COLUMNS} FROM work_items WHERE work_item_id = ?"
# Each choice of filters is a statement of its own, so that each is answered by its own index of
# pending items.
_NEWEST_GRANT = "(SELECT max(lease_token) FROM work_items WHERE lease_token > 0)"
_CHOSEN = (
    "SELECT work_item_id FROM work_items WHERE status = 'pending' {filters} ORDER BY priority DESC, work_item_id LIMIT "
)
_GRANT_ONE: Final = (
    f"UPDATE work_items SET status = 'in_progress', lease_token = 1 + coalesce({_NEWEST_GRANT}, 0), lease_holder = ?, "
    f"lease_expires_at = ?, heartbeat_at = ?, updated_at = ? WHERE work_item_id = ({_CHOSEN}1) RETURNING {_COLUMNS}"
)
_GRANT_MANY: Final = (
    f"UPDATE work_items SET status = 'in_progress', lease_token = chosen.place + coalesce({_NEWEST_GRANT}, 0), "
    "lease_holder = ?, lease_expires_at = ?, heartbeat_at = ?, updated_at = ? "
    f"FROM (SELECT work_item_id AS id, row_number() OVER () AS place FROM ({_CHOSEN}?)) AS chosen "
    f"WHERE work_item_id = chosen.id RETURNING {_COLUMNS}"
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

_RENEW: Final = (
    "UPDATE work_items SET lease_expires_at = ?, heartbeat_at = ?, updated_at = ? "
    "WHERE work_item_id = ? AND status = 'in_progress' AND lease_token = ? AND lease_expires_at > ?"
)
_HOLDS: Final = (
    "SELECT 1 FROM work_items WHERE work_item_id = ? AND status = 'in_progress' AND lease_token = ? "
    "AND lease_expires_at > ?"
)
_END: Final = (
    "UPDATE work_items SET status = ?, retries = retries + ?, lease_holder = NULL, lease_expires_at = NULL, error = ?, "
    "updated_at = ? WHERE work_item_id = ? AND status = 'in_progress' AND lease_token = ? AND lease_expires_at > ?"
)
_EXPIRE: Final = (
    "UPDATE work_items SET status = ended.status, retries = work_items.retries + ended.retries, lease_holder = NULL, "
    "lease_expires_at = NULL, error = ended.error, updated_at = ended.now "
    "FROM (SELECT column1 AS id, column2 AS token, column3 AS expires_at, column4 AS status, column5 AS retries, "
    "column6 AS error, column7 AS now FROM (VALUES {rows})) AS ended WHERE work_item_id = ended.id "
    "AND work_items.status = 'in_progress' AND lease_token = ended.token AND lease_expires_at = ended.expires_at"
)
EXPIRED: Final = (
    "SELECT work_item_id, task_id, lease_holder, lease_token, lease_expires_at, retries, max_retries "
    "FROM work_items WHERE status = 'in_progress' AND lease_expires_at <= ? "
    "AND (lease_expires_at, work_item_id) > (?, ?) ORDER BY lease_expires_at, work_item_id LIMIT ?"
)
# An enum computes both ways each time that it is asked, which shows where it is asked for each of
# many rows.
_TEXTS: Final = {status: status.value for status in WorkStatus}
_STATUSES: Final = {status.value: status for status in WorkStatus}


class LeaseWrites:
    """What a transaction can do with work items."""

    __slots__ = ()

    def execute(self, statement: str, parameters: tuple[Scalar, ...]) -> sqlite3.Cursor:
        """Execute one statement; the transaction itself knows how."""
        raise NotImplementedError

    def execute_rows(self, statement: str, rows: Sequence[tuple[Scalar, ...]]) -> int:
        """Execute a statement on many rows; the transaction itself knows how."""
        raise NotImplementedError

    def _insert_for_task(self, statement: str, row: tuple[Scalar, ...], task_id: str) -> Any:
        raise NotImplementedError

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
        return _item(self._insert_for_task(_INSERT, row, task_id).fetchone())

    def work_item(self, work_item_id: int) -> WorkItem | None:
        """Return the work item, or None."""
        row = self.execute(_ITEM, (work_item_id,)).fetchone()
        return None if row is None else _item(row)

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
        """Grant up to ``limit`` pending items to the holder, best first, in one statement; return them."""
        given = [value for value in (type, task_id) if value is not None]
        statement = _GRANTS[type is not None, task_id is not None, limit == 1]
        parameters: tuple[Scalar, ...] = (holder, expires_at, now, now, *given)
        if limit == 1:
            return [_item(row) for row in self.execute(statement, parameters).fetchall()]
        items = [_item(row) for row in self.execute(statement, (*parameters, limit)).fetchall()]
        return sorted(items, key=lambda item: (-item.priority, item.work_item_id))

    def renew_lease(self, work_item_id: int, token: int, *, expires_at: Microseconds, now: Microseconds) -> bool:
        """Move the expiry of a lease that is still held; False, and no change, when it is not."""
        return self.execute(_RENEW, (expires_at, now, now, work_item_id, token, now)).rowcount == 1

    def holds_lease(self, work_item_id: int, token: int, *, now: Microseconds) -> bool:
        """Tell whether this token is the one that holds the item, and has not expired: the fence of every write."""
        return self.execute(_HOLDS, (work_item_id, token, now)).fetchone() is not None

    def end_lease(
        self, work_item_id: int, token: int, *, status: WorkStatus, retries: int, error: str, now: Microseconds
    ) -> bool:
        """End a lease that is still held, adding to the retries; False, and no change, when it is not."""
        return self.execute(_END, (_TEXTS[status], retries, error, now, work_item_id, token, now)).rowcount == 1

    def expire_leases(self, expiries: Sequence[Expiry], *, now: Microseconds) -> int:
        """End leases that ran out, each if token and expiry are still those given; return how many were."""
        rows = [(e.work_item_id, e.token, e.expires_at, _TEXTS[e.status], e.retries, e.error, now) for e in expiries]
        return self.execute_rows(_EXPIRE, rows)

    def expired_leases(self, *, now: Microseconds, after: tuple[Microseconds, int], limit: int) -> list[ExpiredLease]:
        """Return items whose lease has run out, in the order of expiry and id, those behind ``after``."""
        return [ExpiredLease(*row) for row in self.execute(EXPIRED, (now, *after, limit)).fetchall()]


class LeaseReads:
    """What a store can tell about work items."""

    def _read(self, statement: str, parameters: tuple[Scalar, ...]) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def work_item(self, work_item_id: int) -> WorkItem | None:
        """Return the work item, or None."""
        rows = self._read(_ITEM, (work_item_id,))
        return _item(rows[0]) if rows else None


def _item(row: tuple[Any, ...]) -> WorkItem:
    work_item_id, task_id, type_, priority, status, *others = row
    return WorkItem(work_item_id, task_id, type_, priority, _STATUSES[status], *others)


_INSERT_EVIDENCE: Final = (
    "INSERT INTO checkpoint_evidence (task_id, sequence_number, required, verified, verdicts) VALUES (?, ?, ?, ?, ?)"
)
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
_OPERATIONS_PER_LOOK: Final = 10_000
"""How many steps of SQLite's machine lie between two looks at the clock; some tenths of a millisecond."""


class EvidenceWrites:
    """What a transaction can do with evidence."""

    __slots__ = ()

    def execute(self, statement: str, parameters: tuple[Scalar, ...]) -> sqlite3.Cursor:
        """Execute one statement; the transaction itself knows how."""
        raise NotImplementedError

    def insert_evidence(self, evidence: StoredEvidence) -> None:
        """Insert the evidence of a checkpoint and how it was judged."""
        key = (evidence.task_id, evidence.sequence_number)
        verdicts = evidence.verdicts.decode()
        self.execute(_INSERT_EVIDENCE, (*key, evidence.required, int(evidence.verified), verdicts))

    def delete_checkpoints(self, task_id: str, below: int, limit: int) -> int:
        """Delete up to ``limit`` of the oldest checkpoints with numbers below ``below``; return how many."""
        return self.execute(_DELETE_BELOW, (task_id, below, task_id, limit, below)).rowcount


class EvidenceReads:
    """What a store can tell about evidence."""

    _factory: ConnectionFactory

    def _read(self, statement: str, parameters: tuple[Scalar, ...]) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def translated(self, error: Refusal) -> RecoveryError:
        """Return what an error means; the store itself knows."""
        raise NotImplementedError

    def evidence(self, task_id: str, *, before: int = NUMBER_MAX, limit: int = PAGE_ROWS_MAX) -> list[StoredEvidence]:
        """Return the evidence of the checkpoints below ``before``, newest first, of those without any too."""
        rows = self._read(_EVIDENCE, (task_id, before, limit))
        return [StoredEvidence(row[0], row[1], row[2], bool(row[3]), row[4]) for row in rows]

    def has_row(self, table: str, values: Mapping[str, Scalar], *, timeout_s: float) -> bool:
        """Tell whether the table has a row with these values, on a connection that cannot write.

        Waits for the query at most ``timeout_s``. Raises QueryRefused for a table or column that is
        not there and for a query that takes too long.
        """
        # A column is named through the table: SQLite takes a bare "name" that it does not know for
        # a text.
        conditions = " AND ".join(f"t.{_quoted(column)} IS ?" for column in values)
        statement = f"SELECT 1 FROM {_quoted(table)} AS t WHERE {conditions} LIMIT 1"
        uri = f"{Path(self._factory.path).as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=self._factory.busy_timeout_s)) as connection:
                connection.execute("PRAGMA query_only = 1")
                connection.execute("PRAGMA trusted_schema = 0")
                deadline = time.monotonic() + timeout_s
                connection.set_progress_handler(lambda: time.monotonic() > deadline, _OPERATIONS_PER_LOOK)
                return connection.execute(statement, tuple(values.values())).fetchone() is not None
        except REFUSALS as error:
            raise self._refusal(error, timeout_s) from error

    def _refusal(self, error: Exception, timeout_s: float) -> RecoveryError:
        if isinstance(error, sqlite3.Error):
            if result_code(error) == sqlite3.SQLITE_INTERRUPT:
                return QueryRefused(f"Expected an answer within {timeout_s:g} s but there was none; add an index.")
            if result_code(error) != sqlite3.SQLITE_ERROR:
                return self.translated(error)
        return QueryRefused(f"Expected a table and columns of the database but '{error}'; name ones that it has.")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
