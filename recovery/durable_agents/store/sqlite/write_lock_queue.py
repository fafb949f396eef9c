"""Turns: writers of one file get the write lock one after another, so that none of them starves.

SQLite's busy handler sleeps and tries again, ever more slowly, so whoever comes back first wins: of
ten processes, one may commit three thousand times while another commits once. Here a writer who
would begin first stands in a queue, for an advisory lock (flock) on a file next to the database.
Whoever has that lock is *next*: the only one of the queue who tries for the write lock, often, and
who lets go of the first lock as soon as it has the second. So while one writes, another is next,
awake, and those behind it sleep. A writer who has got the write lock may come back for it past the
queue for a moment, a *burst*: giving a turn to another process costs as much as a commit on a fast
disk, and several commits to a turn are as fair as one.

The queue decides about nothing but the order: a writer that does without it, another program say,
is excluded by SQLite as ever, and a process that dies leaves both locks at once. One that is
stopped in its transaction stops everybody, as it does anyway. So the wait has a bound, and the
error that ends it names the process that began last.

flock itself cannot be given a bound: a thread waits in it on behalf of the writer, and only when
the lock is not free at once. One whose writer has gone gives the lock on when it comes, unless the
next writer of the same store is there by then, who takes its place over: so there is one such
thread, however often somebody tries while the queue stands still.

Rejected: to hold the lock for the whole transaction. Each turn then begins with waking a process
that slept, while nobody writes: 0.5 of the commits of a plain busy timeout where this gets 0.9
(``benchmark_writers``).
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from typing import Final

from durable_agents.errors import DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable
from durable_agents.store.sqlite.connections import is_busy

SUFFIX: Final = "-turns"
"""What the name of the lock file has more than that of the database; in it is the number of who began last."""

BURST_S: Final = 0.003
"""For how long after its turn began a writer may come back past the queue."""

_LOOK_S: Final = 0.000_5
_LOOK_S_MAX: Final = 0.002
_MODE: Final = 0o666
_NAME_BYTES: Final = 16


class Turns:
    """The queue of the writers of one database file, as one of them sees it; used by one thread at a time.

    ``path`` is that of the database.
    """

    __slots__ = ("_burst_until_s", "_path", "_timeout_s", "_waiter")

    def __init__(self, path: str, timeout_s: float) -> None:
        """Prepare; each wait is for at most ``timeout_s`` seconds, in the queue and at its head together."""
        self._path = path + SUFFIX
        self._timeout_s = timeout_s
        self._burst_until_s = 0.0
        self._waiter: _Waiter | None = None

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a write transaction when it is this writer's turn, on a connection that was made ``impatient``.

        Raises DatabaseLocked, which names who began last, DatabaseReadOnly and DatabaseUnavailable
        for the lock file, and sqlite3.Error.
        """
        if time.monotonic() > self._burst_until_s or not _begins(connection):
            self._begin_in_turn(connection, time.monotonic() + self._timeout_s)

    def take(self) -> int:
        """Be the head of the queue for as long as one likes; return what ``give`` takes. Raises as ``begin`` does.

        This is a lock for whoever has no database to begin on.
        """
        place = self._at_head(time.monotonic() + self._timeout_s)
        _sign(place)
        return place

    @staticmethod
    def give(place: int) -> None:
        """Let the next one come."""
        _give(place)

    def _begin_in_turn(self, connection: sqlite3.Connection, deadline_s: float) -> None:
        place = self._at_head(deadline_s)
        try:
            self._begin_as_next(connection, deadline_s)
            _sign(place)
        finally:
            try:  # as in _give, whose call an interrupt could come before
                fcntl.flock(place, fcntl.LOCK_UN)
            finally:
                os.close(place)
        self._burst_until_s = time.monotonic() + BURST_S

    def _begin_as_next(self, connection: sqlite3.Connection, deadline_s: float) -> None:
        delay_s = _LOOK_S
        while not _begins(connection):
            if time.monotonic() > deadline_s:
                raise self._locked()
            time.sleep(delay_s)  # sleeps because nobody tells when SQLite's lock is free; only the next one does so
            delay_s = min(delay_s * 1.02, _LOOK_S_MAX)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        except OSError as error:
            kind = DatabaseReadOnly if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM} else DatabaseUnavailable
            message = (
                f"Expected to open {self._path} but {error.strerror}; writers who take turns need a lock file there."
            )
            raise kind(message) from error

    def _at_head(self, deadline_s: float) -> int:
        """Return the lock file, open and locked; an interrupt leaves no lock. Raises DatabaseLocked."""
        waiter, self._waiter = self._waiter, None
        if waiter is None or not waiter.is_taken_over():
            place = self._open()
            try:
                is_free = _is_free(place)
            except BaseException:
                _give(place)
                raise
            if is_free:
                return place
            waiter = _Waiter(place)
        return self._queue(waiter, deadline_s)

    def _queue(self, waiter: _Waiter, deadline_s: float) -> int:
        """Stand in the kernel's queue, in a thread, at most until the deadline. Raises DatabaseLocked."""
        if not waiter.wait(max(0.0, deadline_s - time.monotonic())):
            self._waiter = waiter
            raise self._locked()
        return waiter.descriptor

    def _locked(self) -> DatabaseLocked:
        return DatabaseLocked(
            f"Expected a turn at writing within {self._timeout_s:g} s but got none, and {self._newest_writer()} was "
            f"the last to get one by {self._path}; look whether it is stopped, try again, or raise busy_timeout_s."
        )

    def _newest_writer(self) -> str:
        try:
            with open(self._path, "rb") as file:  # noqa: PTH123 - a path of text
                number = file.read(_NAME_BYTES).split()
        except OSError:
            number = []
        return f"process {number[0].decode(errors='replace')}" if number else "another program"


def make_impatient(connection: sqlite3.Connection) -> None:
    """Let a connection say at once that it is locked: SQLite's own wait is of a millisecond and more."""
    connection.execute("PRAGMA busy_timeout = 0")


class _Waiter:
    """A thread that waits for a lock, for a writer who may have gone when it comes.

    Made of the plainest parts there are, since it is on the way of many commits when many processes
    write.
    """

    __slots__ = ("_has_ended", "_has_lock", "_is_abandoned", "_mutex", "_process", "_settled", "descriptor")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._process = 0
        self._mutex = _thread.allocate_lock()
        self._settled = _thread.allocate_lock()
        self._settled.acquire()
        self._has_ended = False
        self._has_lock = False
        self._is_abandoned = False

    def wait(self, timeout_s: float) -> bool:
        """Return whether the lock was got in time. If not, it is the thread that closes the descriptor."""
        try:
            if not self._process:
                self._process = os.getpid()
                _thread.start_new_thread(self._run, ())
            self._settled.acquire(timeout=timeout_s)
            return self._decide()
        except BaseException:
            if self._decide():
                _give(self.descriptor)
            raise

    def is_taken_over(self) -> bool:
        """Let the thread wait for another writer; False where it has ended, or has stayed in the parent at a fork."""
        with self._mutex:
            if self._has_ended or self._process != os.getpid():
                return False
            self._is_abandoned = False
            return True

    def _decide(self) -> bool:
        """Settle who owns the descriptor from now on: the writer, if there is a lock on it, else the thread."""
        with self._mutex:
            self._is_abandoned = not self._has_lock
            return self._has_lock

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        with self._mutex:
            self._has_ended = True
            self._has_lock = not self._is_abandoned
            if self._is_abandoned:
                _give(self.descriptor)
        self._settled.release()


def _begins(connection: sqlite3.Connection) -> bool:
    """Try to begin a write transaction; return whether it did."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if is_busy(error):
            return False
        raise
    return True


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(place: int) -> None:
    """Put the number of this process into the file. A change of the file makes the next flush dearer, so none if so."""
    name = f"{os.getpid()}\n".ljust(_NAME_BYTES).encode()
    with contextlib.suppress(OSError):  # on a full disk the order is still right, only nobody is named
        if os.pread(place, _NAME_BYTES, 0) != name:
            os.pwrite(place, name, 0)


def _give(place: int) -> None:
    """Leave the head of the queue. A process forked in the meantime has the same lock, so closing would not do."""
    try:
        fcntl.flock(place, fcntl.LOCK_UN)
    finally:
        os.close(place)
