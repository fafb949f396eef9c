"""Three orders, sent through huey's queue in SQLite, and a worker that takes them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

from huey import SqliteHuey

if TYPE_CHECKING:
    from pytest_chaos import Marks

ORDERS = 3
TABLES = "CREATE TABLE IF NOT EXISTS done (number INTEGER); CREATE TABLE IF NOT EXISTS open (number INTEGER)"


def connect() -> closing[sqlite3.Connection]:
    """Open the shop's own database."""
    connection = sqlite3.connect("shop.db", isolation_level=None)
    connection.executescript(TABLES)
    return closing(connection)


def shop(marks: Marks) -> tuple[SqliteHuey, Any]:
    """Return the queue and its task."""
    queue = SqliteHuey(filename="queue.db", fsync=True)

    def pack(number: int) -> None:
        marks.note("begun", number)
        with connect() as database:
            database.execute("BEGIN")
            database.execute("INSERT INTO done SELECT ? WHERE ? NOT IN (SELECT number FROM done)", (number, number))
            database.execute("DELETE FROM open WHERE number = ?", (number,))
            database.execute("COMMIT")

    return queue, queue.task(name="pack")(pack)


def send(marks: Marks, *, is_mended: bool) -> None:
    """Enqueue the orders; mended, note each as open before."""
    _, pack = shop(marks)
    for number in range(1, ORDERS + 1):
        if is_mended:
            with connect() as database:
                database.execute("INSERT INTO open VALUES (?)", (number,))
        pack(number)
        marks.ack("enqueue", number)


def work(marks: Marks, *, is_mended: bool) -> None:
    """Do what is in the queue, task by task; mended, what is open goes into it first."""
    queue, pack = shop(marks)
    if is_mended:
        with connect() as database:
            unfinished = [number for (number,) in database.execute("SELECT number FROM open ORDER BY number")]
        queue.flush()
        for number in unfinished:
            pack(number)
    while (task := queue.dequeue()) is not None:
        queue.execute(task)
