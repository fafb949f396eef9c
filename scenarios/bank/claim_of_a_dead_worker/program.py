"""A queue in SQLite with claims and heartbeats, and a tracker that a page shows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

DATABASE = "jobs.db"
DEAD_AFTER_S = 300
ATTEMPTS_MAX = 3
SCHEMA = """
CREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, attempts INTEGER, heartbeat_s INTEGER);
CREATE TABLE trackers (job INTEGER PRIMARY KEY, shown TEXT);
INSERT INTO jobs VALUES (1, 'ready', 0, 0);
INSERT INTO trackers VALUES (1, 'Queued');
"""


def connect() -> closing[sqlite3.Connection]:
    """Open the database; each statement is a transaction, unless one is begun."""
    return closing(sqlite3.connect(DATABASE, isolation_level=None, timeout=30))


def make() -> None:
    """Make the tables, with one job."""
    with connect() as database:
        database.executescript(SCHEMA)


def work(marks: Marks, *, now_s: int, is_mended: bool) -> None:
    """Prune claims, as a supervisor does when it starts; then claim a job and do it."""
    with connect() as database:
        prune(database, now_s, is_mended=is_mended)
        claim = "UPDATE jobs SET state = 'claimed', heartbeat_s = ? WHERE state = 'ready' RETURNING id"
        for (job,) in database.execute(claim, (now_s,)).fetchall():
            database.execute("UPDATE trackers SET shown = 'Processing' WHERE job = ?", (job,))
            marks.note("begun", job)
            database.execute("BEGIN IMMEDIATE")
            database.execute("UPDATE jobs SET state = 'done' WHERE id = ?", (job,))
            database.execute("UPDATE trackers SET shown = 'Done' WHERE job = ?", (job,))
            database.execute("COMMIT")


def prune(database: sqlite3.Connection, now_s: int, *, is_mended: bool) -> None:
    """End the claims of workers whose heartbeat is old; mended, the job goes back."""
    old = "state = 'claimed' AND heartbeat_s < ?"
    if not is_mended:
        database.execute(f"UPDATE jobs SET state = 'failed' WHERE {old}", (now_s - DEAD_AFTER_S,))  # noqa: S608 - ours
        return
    database.execute("BEGIN IMMEDIATE")
    again = f"UPDATE jobs SET state = 'ready', attempts = attempts + 1 WHERE {old}"  # noqa: S608 - as above
    database.execute(again, (now_s - DEAD_AFTER_S,))
    given_up = "UPDATE jobs SET state = 'failed' WHERE attempts >= ? RETURNING id"
    for (job,) in database.execute(given_up, (ATTEMPTS_MAX,)).fetchall():
        database.execute("UPDATE trackers SET shown = 'Failed' WHERE job = ?", (job,))
    database.execute("COMMIT")
