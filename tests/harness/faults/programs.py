"""Programs that faults are fired at: agents of the tests beside this file."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks


def write_rows(marks: Marks, database: str, total: int) -> None:
    """Insert rows one after the other, with a point before each transaction and one within it."""
    with contextlib.closing(sqlite3.connect(database, timeout=10, isolation_level=None)) as connection:
        for number in range(1, total + 1):
            sys.audit("programs.row.before", number)
            connection.execute("BEGIN IMMEDIATE")
            sys.audit("programs.row.within", number)
            connection.execute("INSERT INTO rows VALUES (?)", (number,))
            connection.execute("COMMIT")
            marks.ack("row", number)


def count_in_a_thread(marks: Marks, total: int) -> None:
    """Mark steps in another thread than the first, with a point in each."""

    def count() -> None:
        for number in range(1, total + 1):
            marks.intent("step", number)
            sys.audit("programs.step", number)
            marks.ack("step", number)
            time.sleep(0.001)  # sleeps because this is the pace of the program

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
