"""The execution of statements and the meaning of their errors: the base of all statements.

``work``, ``jobs``, ``webhooks``, ``state`` and ``once`` have the statements of one room of the core
each. Their ``Reads`` are mixed into the store and the transaction, their ``Writes`` into the
transaction. A write names in its WHERE all that must still hold (status, token, expiry): no row
changed means that another transaction was faster, never that it worked.
"""

from __future__ import annotations

import functools
import sqlite3
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from durable_agents.errors import unknown_task
from durable_agents.store.rows import Scalar
from durable_agents.store.sqlite.connections import REFUSALS, is_unknown_parent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import msgspec

    from durable_agents.store.sqlite.store import SqliteStore

Parameters: TypeAlias = tuple[Scalar | bytes, ...]

_ROWS: Final = 100
"""How many rows one statement has when there are as many; the rest go one by one."""

_HAS_TASK: Final = "SELECT 1 FROM tasks WHERE task_id = ?"


def columns(kind: type[msgspec.Struct], prefix: str = "") -> str:
    """Return the columns of a table in the order of the fields of its row."""
    return ", ".join(prefix + name for name in kind.__struct_fields__)


class Queries:
    """Queries that do not change anything."""

    __slots__ = ()

    def _read(self, statement: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Return all rows. The store and the transaction have a connection each for it."""
        raise NotImplementedError

    def _read_one(self, statement: str, parameters: Parameters) -> tuple[Any, ...] | None:
        rows = self._read(statement, parameters)
        return rows[0] if rows else None


class Writes(Queries):
    """Statements on the connection of a transaction. All raise what SQLite's error means."""

    __slots__ = ()

    connection: sqlite3.Connection
    _store: SqliteStore

    def execute(self, statement: str, parameters: Parameters) -> sqlite3.Cursor:
        """Execute one statement."""
        try:
            return self.connection.execute(statement, parameters)
        except REFUSALS as error:
            raise self._store.translated(error) from error

    def execute_all(self, statement: str, rows: Sequence[Parameters]) -> int:
        """Execute one statement for each row; return how many rows it changed."""
        try:
            return self.connection.executemany(statement, rows).rowcount
        except REFUSALS as error:
            raise self._store.translated(error) from error

    def execute_rows(self, statement: str, rows: Sequence[Parameters]) -> int:
        """Execute a statement with ``{rows}`` after its VALUES; return how many rows it changed.

        Many rows to a statement, since starting one costs more than one row of it (measured: 2 of
        5 us).
        """
        try:
            return sum(self._execute_rows(statement, rows))
        except REFUSALS as error:
            raise self._store.translated(error) from error

    def _read(self, statement: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        return self.execute(statement, parameters).fetchall()

    def _changes_one(self, statement: str, parameters: Parameters) -> bool:
        return self.execute(statement, parameters).rowcount == 1

    def _execute_rows(self, statement: str, rows: Sequence[Parameters]) -> Iterator[int]:
        whole = len(rows) - len(rows) % _ROWS
        for first in range(0, whole, _ROWS):
            values = [value for row in rows[first : first + _ROWS] for value in row]
            yield self.connection.execute(_with_rows(statement, _ROWS, len(rows[0])), values).rowcount
        if whole < len(rows):
            yield self.connection.executemany(_with_rows(statement, 1, len(rows[0])), rows[whole:]).rowcount

    def _insert_of_tasks(self, statement: str, rows: Sequence[Parameters]) -> None:
        """Insert rows whose first column is the id of a task. Raises UnknownTask."""
        try:
            sum(self._execute_rows(statement, rows))
        except REFUSALS as error:
            if isinstance(error, sqlite3.Error) and is_unknown_parent(error):
                unknown = next((row[0] for row in rows if self._read_one(_HAS_TASK, (row[0],)) is None), "")
                raise unknown_task(str(unknown)) from error
            raise self._store.translated(error) from error

    def _insert_of_task(self, statement: str, row: Parameters, task_id: str) -> sqlite3.Cursor:
        """Insert one row that refers to this task. Raises UnknownTask."""
        try:
            return self.connection.execute(statement, row)
        except REFUSALS as error:
            if isinstance(error, sqlite3.Error) and is_unknown_parent(error):
                raise unknown_task(task_id) from error
            raise self._store.translated(error) from error


@functools.cache
def _with_rows(statement: str, count: int, width: int) -> str:
    """Return the statement with so many rows of so many parameters; each has two counts."""
    row = f"({', '.join('?' * width)})"
    return statement.format(rows=", ".join([row] * count))
