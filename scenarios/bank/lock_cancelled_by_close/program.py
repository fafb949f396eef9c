"""A process that checks the header of its database before each commit, and another writer."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

DATABASE = "state.db"
TIMEOUT_S = 60


def connect(timeout_s: float = TIMEOUT_S) -> closing[sqlite3.Connection]:
    """Open the database with a rollback journal."""
    return closing(sqlite3.connect(DATABASE, isolation_level=None, timeout=timeout_s))


def make() -> None:
    """Make the table."""
    with connect() as database:
        database.execute("CREATE TABLE messages (author TEXT)")


def save(marks: Marks, *, is_mended: bool) -> None:
    """Save a message in a transaction that looks at the header before it commits."""
    with connect() as database:
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO messages VALUES ('first')")
        if is_mended:
            database.execute("PRAGMA application_id").fetchone()
        else:
            with Path(DATABASE).open("rb") as file:
                file.seek(68)
                file.read(4)
        marks.note("looked")
        database.execute("COMMIT")
        marks.ack("save", "first")


def save_too(marks: Marks) -> None:
    """Save a message; say that it is settled once that is done, or must wait for the lock."""
    with connect(timeout_s=0) as database:
        try:
            database.execute("INSERT INTO messages VALUES ('second')")
        except sqlite3.OperationalError:
            marks.note("settled", value="has to wait")
        else:
            marks.ack("save", "second")
            marks.note("settled", value="saved")
            return
    with connect() as database:
        database.execute("INSERT INTO messages VALUES ('second')")
        marks.ack("save", "second")
