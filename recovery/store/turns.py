"""Turns: writers of one file take the write lock one after another, so that none of them starves.

SQLite's busy handler sleeps and tries again, ever more slowly, so whoever comes back first wins: of ten processes, one
may commit three thousand times while another commits once. Here a writer first takes an advisory lock (flock) on a file
next to the database, for which the kernel keeps a queue. The lock decides about nothing but the order: a writer that
does without it, another program say, is excluded by SQLite as ever, and a process that dies gives it back at once.

A holder that is stopped stops everybody, as it does with SQLite's own lock. So the wait has a bound, and the error that
ends it names the process that had the lock then. flock itself cannot be given a bound: a thread waits in it on behalf
of the writer, and only when the lock is not free at once. One whose writer has gone gives the lock on when it comes.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import fcntl
import os
from typing import Final

from recovery.errors import DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable

SUFFIX: Final = "-turns"
"""What the name of the lock file has more than that of the database; the file stays, and is empty of meaning."""

_MODE: Final = 0o666
_NAME_BYTES_MAX: Final = 200


class Turns:
    """The queue of the writers of one database file. ``path`` is that of the database."""

    __slots__ = ("_path", "_timeout_s")

    def __init__(self, path: str, timeout_s: float) -> None:
        """Prepare; each wait is for at most ``timeout_s`` seconds."""
        self._path = path + SUFFIX
        self._timeout_s = timeout_s

    def take(self) -> int:
        """Wait for a turn and return it; it is ended by ``give``. Raises DatabaseLocked, which names the holder."""
        descriptor = self._open()
        if not _is_free(descriptor):
            self._queue(descriptor)
        with contextlib.suppress(OSError):  # on a full disk the order is still right, only nobody is named
            os.pwrite(descriptor, f"{os.getpid()}\n".ljust(16).encode(), 0)
        return descriptor

    @staticmethod
    def give(turn: int) -> None:
        """End a turn. A process forked in the meantime has the same lock, so closing alone would not do."""
        try:
            fcntl.flock(turn, fcntl.LOCK_UN)
        finally:
            os.close(turn)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
        except OSError as error:
            kind = DatabaseReadOnly if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM} else DatabaseUnavailable
            message = (
                f"Expected to open {self._path} but {error.strerror}; writers who take turns need a lock file there."
            )
            raise kind(message) from error

    def _queue(self, descriptor: int) -> None:
        """Stand in the kernel's queue, in a thread, at most until the bound. Raises DatabaseLocked."""
        if _Waiter(descriptor).wait(self._timeout_s):
            return
        message = (
            f"Expected a turn at writing within {self._timeout_s:g} s but {self._holder()} has had {self._path} "
            "locked; look whether it is stopped, try again, or raise busy_timeout_s."
        )
        raise DatabaseLocked(message)

    def _holder(self) -> str:
        try:
            with open(self._path, "rb") as file:  # noqa: PTH123 - a path of text
                number = file.read(_NAME_BYTES_MAX).split()
        except OSError:
            number = []
        return f"process {number[0].decode(errors='replace')}" if number else "another process"


class _Waiter:
    """A thread that waits for a lock, for a writer who may have gone when it comes.

    Made of the plainest parts there are, since it is on the way of each commit when many processes write.
    """

    __slots__ = ("_descriptor", "_has_lock", "_is_abandoned", "_mutex", "_settled")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._mutex = _thread.allocate_lock()
        self._settled = _thread.allocate_lock()
        self._settled.acquire()
        self._has_lock = False
        self._is_abandoned = False
        _thread.start_new_thread(self._run, ())

    def wait(self, timeout_s: float) -> bool:
        """Return whether the lock was got in time. If not, it is the thread that closes the descriptor."""
        try:
            self._settled.acquire(timeout=timeout_s)
        except BaseException:
            if self._decide():
                os.close(self._descriptor)
            raise
        return self._decide()

    def _decide(self) -> bool:
        """Settle who owns the descriptor from now on: the writer, if there is a lock on it, else the thread."""
        with self._mutex:
            self._is_abandoned = not self._has_lock
            return self._has_lock

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        with self._mutex:
            self._has_lock = not self._is_abandoned
            if self._is_abandoned:
                os.close(self._descriptor)
        self._settled.release()


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
