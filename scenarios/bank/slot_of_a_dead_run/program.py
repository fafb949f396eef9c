"""Runs that need a slot, of which there is one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

DATABASE = "slots.db"
LEASE_S = 60
TRIES = 5
SCHEMA = """
CREATE TABLE counter (used INTEGER);
CREATE TABLE leases (run TEXT PRIMARY KEY, until_s INTEGER);
CREATE TABLE runs (run TEXT PRIMARY KEY, state TEXT);
INSERT INTO counter VALUES (0);
"""


def connect() -> closing[sqlite3.Connection]:
    """Open the database; each statement is a transaction, unless one is begun."""
    return closing(sqlite3.connect(DATABASE, isolation_level=None, timeout=30))


def make() -> None:
    """Make the tables."""
    with connect() as database:
        database.executescript(SCHEMA)


def execute(marks: Marks, *, run: str, now_s: int, is_mended: bool) -> None:
    """Wait for the slot, some times; then run, and give the slot back."""
    with connect() as database:
        for attempt in range(TRIES):
            if take(database, run, now_s + attempt, is_mended=is_mended):
                break
        else:
            marks.note("gave up", run)
            return
        database.execute("INSERT INTO runs VALUES (?, 'Running')", (run,))
        marks.note("begun", run)
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE runs SET state = 'Completed' WHERE run = ?", (run,))
        database.execute("UPDATE counter SET used = used - 1")
        database.execute("DELETE FROM leases WHERE run = ?", (run,))
        database.execute("COMMIT")
        marks.ack("run", run)


def take(database: sqlite3.Connection, run: str, now_s: int, *, is_mended: bool) -> bool:
    """Take the slot if it is free; mended, also one whose lease has ended."""
    database.execute("BEGIN IMMEDIATE")
    if is_mended:
        ended = [name for (name,) in database.execute("SELECT run FROM leases WHERE until_s < ?", (now_s,))]
        for name in ended:
            database.execute("DELETE FROM leases WHERE run = ?", (name,))
            database.execute("UPDATE runs SET state = 'Crashed' WHERE run = ?", (name,))
        free = not database.execute("SELECT run FROM leases").fetchall()
        if free:
            database.execute("INSERT INTO leases VALUES (?, ?)", (run, now_s + LEASE_S))
    else:
        free = database.execute("UPDATE counter SET used = used + 1 WHERE used < 1").rowcount == 1
    database.execute("COMMIT")
    return free
