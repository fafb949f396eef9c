"""A lock file: processes and threads get the lock in the order in which they asked, within a bound.

The kernel's flock keeps its waiters in order and takes the lock back from a process that dies, but
its wait has no bound. So a thread waits in flock for the caller, and only if the lock is not free
at once. If a wait times out, its thread keeps waiting. The next ``acquire`` reuses that thread and
so keeps the place in the queue; if there is none, the thread releases the lock when it gets it. A
``FileLock`` never has more than one such thread.

Rejected: the package ``filelock``, which polls: of many waiters the one that happens to look first
wins, and others starve.
"""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import os
from typing import Final

_MODE: Final = 0o666
_HOLDER_BYTES: Final = 16


class FileLock:
    """A lock on the file at ``path``, for one thread at a time.

    A missing file is made.
    """

    __slots__ = ("_waiter", "path")

    def __init__(self, path: str) -> None:
        """Prepare; nothing is opened yet."""
        self.path = path
        self._waiter: _Waiter | None = None

    def acquire(self, timeout_s: float) -> int | None:
        """Return the descriptor of the locked file, for ``release``, or None after the timeout.

        An interrupt leaves no lock. Raises OSError if the file cannot be opened.
        """
        waiter, self._waiter = self._waiter, None
        if waiter is None or not waiter.is_reused():
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
            try:
                if try_lock(descriptor):
                    return descriptor
            except BaseException:
                release(descriptor)
                raise
            waiter = _Waiter(descriptor)
        if waiter.wait(max(0.0, timeout_s)):
            return waiter.descriptor
        self._waiter = waiter
        return None

    def holder(self) -> str:
        """Return the name of the process that was the last to ``sign`` the file."""
        try:
            with open(self.path, "rb") as file:  # noqa: PTH123 - a path of text
                number = file.read(_HOLDER_BYTES).split()
        except OSError:
            number = []
        return f"process {number[0].decode(errors='replace')}" if number else "another program"


def try_lock(descriptor: int) -> bool:
    """Lock the open file if it is free now; return whether it is locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sign(descriptor: int) -> None:
    """Record our pid in the lock file, unless it is there already.

    A write makes the next fsync slower.
    """
    name = f"{os.getpid()}\n".ljust(_HOLDER_BYTES).encode()
    with contextlib.suppress(OSError):  # on a full disk the order is still right; only the name is missing
        if os.pread(descriptor, _HOLDER_BYTES, 0) != name:
            os.pwrite(descriptor, name, 0)


def release(descriptor: int) -> None:
    """Unlock and close the file; closing is not enough while a forked child shares the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


class _Waiter:
    """A thread that waits for the lock, even after its caller has given up.

    Built from plain locks, since it is on the way of many commits when many processes write.
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
        """Return whether the lock was got in time. If not, the thread closes the descriptor."""
        try:
            if not self._process:
                self._process = os.getpid()
                _thread.start_new_thread(self._run, ())
            self._settled.acquire(timeout=timeout_s)
            return self._decide()
        except BaseException:
            if self._decide():
                release(self.descriptor)
            raise

    def is_reused(self) -> bool:
        """Let the thread wait for another caller.

        Return False if it has ended, or belongs to the parent of this forked process.
        """
        with self._mutex:
            if self._has_ended or self._process != os.getpid():
                return False
            self._is_abandoned = False
            return True

    def _decide(self) -> bool:
        """Settle the owner of the descriptor.

        The caller owns it if the lock is held; else the thread does.
        """
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
                release(self.descriptor)
        self._settled.release()
