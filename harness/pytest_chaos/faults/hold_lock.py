"""Contention: somebody else has SQLite's write lock, for a while or for too long.

A backup, an analyst's shell, a process that was stopped in the middle of a transaction: to a writer
they look the same, and it has to wait, with a bound, and go on. The lock is a real one, taken by a
real process on the real file.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pytest_chaos.faults.firing import Firing
    from pytest_chaos.runtime.marks import Marks

OPERATION: Final = "write-lock"
_TARGET: Final = "pytest_chaos.faults.hold_lock:hold_write_lock"
_WAIT_S: Final = 30.0


class HoldLock:
    """Another process takes the write lock of a SQLite file and keeps it. Parameters: ``database``, ``duration_s``."""

    kind = "hold-lock"
    needs_life = False

    def fire(self, firing: Firing) -> None:
        """Start the process that takes the lock."""
        parameters = firing.fault.parameters
        database = firing.stage.directory / parameters["database"]
        kwargs = {"database": str(database), "duration_s": parameters["duration_s"]}
        firing.helper = firing.stage.start_helper("lock-holder", _TARGET, kwargs)

    def evidence(self, firing: Firing) -> str | None:
        """See that it has the lock, and that another connection was refused it."""
        if firing.helper is None:
            return None
        for mark in firing.helper.marks:
            if mark.operation == OPERATION and mark.kind == "ack":
                return f"pid {firing.helper.pid} held the write lock; another connection was told: {mark.value}"
        return None


def hold_write_lock(marks: Marks, database: str, duration_s: float) -> None:
    """Take a database's write lock, see that nobody else gets it, keep it for ``duration_s`` seconds, let go."""
    with contextlib.closing(sqlite3.connect(database, timeout=_WAIT_S, isolation_level=None)) as connection:
        marks.intent(OPERATION)
        connection.execute("BEGIN IMMEDIATE")
        marks.ack(OPERATION, value=_refusal(database))
        time.sleep(duration_s)  # to be in the way for that long is what this process is for
        connection.execute("ROLLBACK")
    marks.note("write-lock-released")


def _refusal(database: str) -> str:
    with contextlib.closing(sqlite3.connect(database, timeout=0.0, isolation_level=None)) as other:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            return str(error)
        other.execute("ROLLBACK")
    return "nothing: the lock was not held"
