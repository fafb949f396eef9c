"""SQLite in configurations whose durability is known, from its documentation and measured."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

LOST = "lost"
DAMAGED = "damaged"
BODY = b"the body of a row " * 200


class Database:
    """Puts rows, each in a transaction of its own, and acknowledges them."""

    def __init__(self, mode: str, synchronous: str, *, rows: int = 10) -> None:
        self.name = f"SQLite {mode}+{synchronous}"
        self._mode = mode
        self._synchronous = synchronous
        self._rows = rows

    def run(self, directory: Path, marks: Marks) -> None:
        """Put the rows."""
        connection = sqlite3.connect(directory / "rows.db", isolation_level=None)
        connection.execute(f"PRAGMA journal_mode={self._mode}")
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        connection.execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, body BLOB)")
        for number in range(1, self._rows + 1):
            marks.intent("put", number)
            connection.execute("INSERT INTO rows VALUES (?, ?)", (number, BODY))
            marks.ack("put", number)
        connection.close()

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find damage, rows that were acknowledged and are gone, and rows that nobody put."""
        with contextlib.closing(sqlite3.connect(directory / "rows.db")) as connection:
            try:
                found = self._read(connection)
            except sqlite3.DatabaseError as error:
                yield Finding(signature=DAMAGED, text=f"SQLite says: {error}")
                return
        if found is None:
            yield Finding(signature=DAMAGED, text="the integrity check fails, or a row is not what was put")
            return
        acknowledged = {mark.key for mark in marks if mark.kind == "ack"}
        intended = {mark.key for mark in marks if mark.kind == "intent"}
        if gone := sorted(acknowledged - found, key=str):
            yield Finding(signature=LOST, text=f"acknowledged and gone: {gone}")
        if phantoms := sorted(found - intended, key=str):
            yield Finding(signature="phantom", text=f"there, and put by nobody: {phantoms}")

    def _read(self, connection: sqlite3.Connection) -> set[object] | None:
        """Return the rows, or None if they cannot be read."""
        if connection.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            return None
        if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'rows'").fetchone()[0]:
            return set()
        rows = connection.execute("SELECT number, body FROM rows").fetchall()
        return None if any(body != BODY for _, body in rows) else {number for number, _ in rows}


WAL_FULL = Database("wal", "full", rows=2)
WAL_NORMAL = Database("wal", "normal", rows=2)
DELETE_FULL = Database("delete", "full", rows=2)
DELETE_EXTRA = Database("delete", "extra", rows=2)
