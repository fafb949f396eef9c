"""The fault ``hold-lock``: another process has SQLite's write lock, for a while or for too long.

A backup, an analyst's shell, a process that was stopped in the middle of a transaction: to a writer
they look the same. It has to wait, with a bound, and go on. The lock is a real one, taken by a real
process on the real file.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Final

from pytest_chaos.faults.kind import FaultKind, Parameter
from pytest_chaos.model.plan import TIME_S_MAX
from pytest_chaos.model.values import Fault, Now

if TYPE_CHECKING:
    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import When
    from pytest_chaos.runtime.marks import Marks

OPERATION: Final = "write-lock"
_TARGET: Final = "pytest_chaos.faults.hold_lock:hold_write_lock"
_WAIT_S: Final = 30.0
_WAIT_WHILE_HELD_S: Final = 2.0
"""Shorter: an agent that stands at a point may hold the lock itself, and cannot release it."""


def hold_lock(agent: str, when: When | None = None, *, database: str, duration_s: float) -> Fault:
    """Plan that another process takes the write lock of a SQLite file for ``duration_s`` seconds.

    ``agent`` is the one whose points, marks or start say when. At a point, or after a mark, it
    stands still until the lock is taken. ``database`` is relative to the run's directory, so that
    the plan is the same in every run.

    >>> hold_lock("writer", database="app.db", duration_s=0.5).parameters
    {'database': 'app.db', 'duration_s': 0.5}
    """
    parameters = {"database": str(database), "duration_s": duration_s}
    return Fault(kind=HoldLock.kind, agent=agent, when=when or Now(), parameters=parameters)


class HoldLock(FaultKind):
    """Another process takes the write lock of a SQLite file and keeps it."""

    kind = "hold-lock"
    parameters = {"database": Parameter(str), "duration_s": Parameter(float, high=TIME_S_MAX)}
    needs_life = False

    def fire(self, firing: Firing) -> None:
        """Start the process that takes the lock."""
        parameters = firing.fault.parameters
        kwargs = {
            "database": str(firing.context.directory / parameters["database"]),
            "duration_s": parameters["duration_s"],
            "wait_s": _WAIT_WHILE_HELD_S if firing.held_pid else _WAIT_S,
        }
        firing.helper = firing.context.start_helper("lock-holder", _TARGET, kwargs)

    def evidence(self, firing: Firing) -> str | None:
        """See that it has the lock, and that another connection was refused it."""
        if firing.helper is None:
            return None
        for mark in firing.helper.marks:
            if mark.operation == OPERATION and mark.kind == "ack":
                return f"pid {firing.helper.pid} held the write lock; another connection was told: {mark.value}"
        return None


def hold_write_lock(marks: Marks, database: str, duration_s: float, wait_s: float) -> None:
    """Take a database's write lock, check that no other connection gets it, keep it, release it."""
    with contextlib.closing(sqlite3.connect(database, timeout=wait_s, isolation_level=None)) as connection:
        marks.intent(OPERATION)
        connection.execute("BEGIN IMMEDIATE")
        marks.ack(OPERATION, value=_refusal(database))
        time.sleep(duration_s)  # being in the way is the fault
        connection.execute("ROLLBACK")
    marks.note("write-lock-released")


def _refusal(database: str) -> str:
    with contextlib.closing(sqlite3.connect(database, timeout=0.0, isolation_level=None)) as other:
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            return str(error)
    msg = f"another connection must be refused the write lock of {database}; got the lock"
    raise RuntimeError(msg)
