"""The statements on evidence and on what retention deletes: a part of the SQLite store.

They are mixed into the store and its transaction (``sqlite``), which lend them ``execute`` and ``_read``.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from recovery.errors import QueryRefused
from recovery.store.protocol import NUMBER_MAX, PAGE_ROWS_MAX
from recovery.store.rows import Scalar, StoredEvidence
from recovery.store.translation import REFUSALS, result_code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recovery.errors import RecoveryError
    from recovery.store.connections import ConnectionFactory
    from recovery.store.translation import Refusal

_INSERT_EVIDENCE: Final = (
    "INSERT INTO checkpoint_evidence (task_id, sequence_number, required, verified, verdicts) VALUES (?, ?, ?, ?, ?)"
)
# Oldest first, so that the numbers which remain are contiguous after every batch. Evidence goes with its checkpoint.
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

        Waits for the query at most ``timeout_s``. Raises QueryRefused for a table or column that is not there and for
        a query that takes too long.
        """
        # A column is named through the table: SQLite takes a bare "name" that it does not know for a text.
        conditions = " AND ".join(f"t.{_quoted(column)} IS ?" for column in values)
        statement = f"SELECT 1 FROM {_quoted(table)} AS t WHERE {conditions} LIMIT 1"  # noqa: S608 - quoted, and read-only
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
