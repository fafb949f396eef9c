"""Two processes that save findings into one session of a database."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

DATABASE = "findings.db"
TIMEOUT_S = 60


def connect(timeout_s: float = TIMEOUT_S) -> closing[sqlite3.Connection]:
    """Open the database with a write-ahead log and a busy timeout."""
    database = sqlite3.connect(DATABASE, isolation_level=None, timeout=timeout_s)
    database.execute("PRAGMA journal_mode = WAL")
    return closing(database)


def make() -> None:
    """Make the table."""
    with connect() as database:
        database.execute("CREATE TABLE findings (author TEXT)")


def save(marks: Marks, *, author: str, is_mended: bool) -> None:
    """Read how many findings there are, and save one."""
    with connect() as database:
        database.execute("BEGIN IMMEDIATE" if is_mended else "BEGIN")
        (count,) = database.execute("SELECT count(*) FROM findings").fetchone()
        marks.note("read", value=count)
        try:
            database.execute("INSERT INTO findings VALUES (?)", (author,))
            database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            marks.note("refused", author, str(error))
            return
        marks.ack("save", author)


def save_too(marks: Marks) -> None:
    """Save a finding in one statement; say that it is settled once that is done, or must wait."""
    with connect(timeout_s=0) as database:
        try:
            database.execute("INSERT INTO findings VALUES ('second')")
        except sqlite3.OperationalError:
            marks.note("settled", value="has to wait")
        else:
            marks.ack("save", "second")
            marks.note("settled", value="saved")
            return
    with connect() as database:
        database.execute("INSERT INTO findings VALUES ('second')")
        marks.ack("save", "second")
