"""The write lock queue: writers of one file get SQLite's write lock in turn, so none starves.

SQLite's busy handler sleeps and tries again, ever more slowly, so the writer that comes back first
wins: of ten processes, one may commit three thousand times while another commits once. Here a
writer first waits in the queue of a lock file beside the database (``durable_agents.file_lock``).
The holder of that lock is the *head*: the only one of the queue that tries for the write lock,
often, and that leaves the queue once it has it. So while one process writes, another is awake as
the head, and those behind it sleep. For a moment after its turn a writer may begin again without
queueing (a *burst*): waking another process costs as much as a commit on a fast disk, and several
commits in a row are as fair as one.

The queue decides about the order alone. A writer that does without it, another program say, is
excluded by SQLite as ever, and a process that dies leaves both locks at once. One that is stopped
in its transaction stops everybody, as it does anyway. So the wait has a bound, and the error that
ends it names the process that began last.

Rejected: holding the lock for the whole transaction. Each turn then begins with waking a process,
while nobody writes: 0.5 of the commits of a plain busy timeout where this gets 0.9
(``benchmark_writers``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import time
from typing import Final

from durable_agents.errors import DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable
from durable_agents.file_lock import FileLock, sign
from durable_agents.store.sqlite.connections import is_busy

SUFFIX: Final = "-queue"
"""The lock file's name is that of the database and this;
it holds the pid of the process that began last.
"""

BURST_S: Final = 0.003
"""For how long after its turn a writer may begin without queueing."""

_LOOK_S: Final = 0.000_5
_LOOK_S_MAX: Final = 0.002


class WriteLockQueue:
    """The writers' queue of the database at ``path``, as one store sees it.

    One thread at a time may use it.
    """

    __slots__ = ("_burst_until_s", "_lock", "_timeout_s")

    def __init__(self, path: str, timeout_s: float) -> None:
        """Prepare the queue.

        ``timeout_s`` bounds each wait, in the queue and at its head together.
        """
        self._lock = FileLock(path + SUFFIX)
        self._timeout_s = timeout_s
        self._burst_until_s = 0.0

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a write transaction when its turn comes, on a connection with a busy timeout of 0.

        Raises DatabaseLocked, which names the process that began last, DatabaseReadOnly and
        DatabaseUnavailable for the lock file, and sqlite3.Error.
        """
        if time.monotonic() > self._burst_until_s or not _begins(connection):
            self._begin_in_turn(connection, time.monotonic() + self._timeout_s)

    def _begin_in_turn(self, connection: sqlite3.Connection, deadline_s: float) -> None:
        descriptor = self._at_head(deadline_s)
        try:
            self._begin_at_head(connection, deadline_s)
            sign(descriptor)
        finally:
            try:  # as ``release`` does; an interrupt could come before its first line
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            finally:
                os.close(descriptor)
        self._burst_until_s = time.monotonic() + BURST_S

    def _begin_at_head(self, connection: sqlite3.Connection, deadline_s: float) -> None:
        delay_s = _LOOK_S
        while not _begins(connection):
            if time.monotonic() > deadline_s:
                raise self._locked()
            time.sleep(delay_s)  # sleeps because SQLite does not tell when its lock is free; only the head does so
            delay_s = min(delay_s * 1.02, _LOOK_S_MAX)

    def _at_head(self, deadline_s: float) -> int:
        """Return the descriptor of the locked file."""
        try:
            descriptor = self._lock.acquire(deadline_s - time.monotonic())
        except OSError as error:
            kind = DatabaseReadOnly if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM} else DatabaseUnavailable
            message = (
                f"the lock file {self._lock.path} must be a file that this process may write; got '{error.strerror}'. "
                "Check its folder, or open the store with queue_writers=False."
            )
            raise kind(message) from error
        if descriptor is None:
            raise self._locked()
        return descriptor

    def _locked(self) -> DatabaseLocked:
        return DatabaseLocked(
            f"the write lock must be free within {self._timeout_s:g} s; got no turn by {self._lock.path}, and "
            f"{self._lock.holder()} was the last to get one. Look whether it is stopped, try again, or raise "
            "busy_timeout_s."
        )


def _begins(connection: sqlite3.Connection) -> bool:
    """Try to begin a write transaction; return whether it did."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if is_busy(error):
            return False
        raise
    return True
