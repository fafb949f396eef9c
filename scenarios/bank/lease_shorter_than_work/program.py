"""A queue with a visibility timeout, and workers that send a mail for a task."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

DATABASE = "queue.db"
VISIBILITY_TIMEOUT_S = 0.2
SCHEMA = """
CREATE TABLE tasks (id INTEGER PRIMARY KEY, visible_s REAL, token INTEGER, done INTEGER);
CREATE TABLE mails (task INTEGER, worker TEXT);
INSERT INTO tasks VALUES (1, 0, 0, 0);
"""


def connect() -> closing[sqlite3.Connection]:
    """Open the database; each statement is a transaction, unless one is begun."""
    return closing(sqlite3.connect(DATABASE, isolation_level=None, timeout=30))


def make() -> None:
    """Make the tables, with one task."""
    with connect() as database:
        database.executescript(SCHEMA)


def work(marks: Marks, *, worker: str, is_mended: bool) -> None:
    """Take the task as soon as it can be seen, and do it."""
    with connect() as database:
        while (token := take(database)) is None:
            time.sleep(0.02)  # sleeps because it plays a worker that polls
        marks.note("begun", token)
        database.execute("BEGIN IMMEDIATE")
        (newest,) = database.execute("SELECT token FROM tasks").fetchone()
        if newest == token or not is_mended:
            database.execute("INSERT INTO mails VALUES (1, ?)", (worker,))
            database.execute("UPDATE tasks SET done = 1")
        database.execute("COMMIT")
        marks.ack("work", token)


def take(database: sqlite3.Connection) -> int | None:
    """Take the task if it can be seen; return its new token."""
    now_s = time.time()
    taken = database.execute(
        "UPDATE tasks SET visible_s = ?, token = token + 1 WHERE visible_s <= ? AND done = 0 RETURNING token",
        (now_s + VISIBILITY_TIMEOUT_S, now_s),
    ).fetchall()
    return int(taken[0][0]) if taken else None
