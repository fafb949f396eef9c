"""A queue whose first message kills its worker, and workers that a supervisor starts again."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

DATABASE = "messages.db"
TRIES_MAX = 3
SCHEMA = """
CREATE TABLE messages (id INTEGER PRIMARY KEY, body TEXT, tries INTEGER);
CREATE TABLE dead (id INTEGER, body TEXT);
INSERT INTO messages VALUES (1, 'poison', 0), (2, 'plain', 0);
"""


def connect() -> closing[sqlite3.Connection]:
    """Open the database; each statement is a transaction, unless one is begun."""
    return closing(sqlite3.connect(DATABASE, isolation_level=None, timeout=30))


def make() -> None:
    """Make the tables, with two messages."""
    with connect() as database:
        database.executescript(SCHEMA)


def work(marks: Marks, *, is_mended: bool) -> None:
    """Handle the messages, the oldest first."""
    with connect() as database:
        while (message := deliver(database, is_mended=is_mended)) is not None:
            number, body = message
            marks.note("delivered", number)
            try:
                handle(body)
            except Exception:  # noqa: BLE001 - a handler may raise anything
                database.execute("UPDATE messages SET tries = tries + 1 WHERE id = ?", (number,))
                continue
            database.execute("DELETE FROM messages WHERE id = ?", (number,))
            marks.ack("handle", number)


def deliver(database: sqlite3.Connection, *, is_mended: bool) -> tuple[int, str] | None:
    """Return the oldest message that may be tried; mended, the try is counted before it begins."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO dead SELECT id, body FROM messages WHERE tries >= ?", (TRIES_MAX,))
    database.execute("DELETE FROM messages WHERE tries >= ?", (TRIES_MAX,))
    found: tuple[int, str] | None = database.execute("SELECT id, body FROM messages ORDER BY id LIMIT 1").fetchone()
    if found is not None and is_mended:
        database.execute("UPDATE messages SET tries = tries + 1 WHERE id = ?", (found[0],))
    database.execute("COMMIT")
    return found


def handle(body: str) -> None:
    """Handle a message; this one takes all memory, and the kernel ends the process."""
    if body == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
