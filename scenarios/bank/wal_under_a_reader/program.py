"""A scan that reads a table for long, and a writer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

DATABASE = "files.db"
COMMITS = 800
PAGES_BETWEEN_CHECKPOINTS = 100


def connect() -> closing[sqlite3.Connection]:
    """Open the database with a write-ahead log."""
    database = sqlite3.connect(DATABASE, isolation_level=None, timeout=30)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    database.execute(f"PRAGMA wal_autocheckpoint = {PAGES_BETWEEN_CHECKPOINTS}")
    return closing(database)


def make() -> None:
    """Make a table with files to scan."""
    with connect() as database:
        database.execute("CREATE TABLE files (id INTEGER PRIMARY KEY, hash BLOB)")
        database.executemany("INSERT INTO files VALUES (?, zeroblob(100))", [(number,) for number in range(1, 200)])


def scan(marks: Marks, *, is_mended: bool) -> None:
    """Read a batch, and hash it; mended, the transaction has ended by then."""
    with connect() as database:
        database.execute("BEGIN")
        batch = database.execute("SELECT id FROM files LIMIT 10").fetchall()
        if is_mended:
            database.execute("COMMIT")
        marks.note("hashing", value=len(batch))
        if database.in_transaction:
            database.execute("COMMIT")


def write(marks: Marks) -> None:
    """Change the hash of one file after the other."""
    with connect() as database:
        for number in range(COMMITS):
            database.execute("UPDATE files SET hash = randomblob(3000) WHERE id = ?", (number % 199 + 1,))
        marks.ack("write", value=COMMITS)
