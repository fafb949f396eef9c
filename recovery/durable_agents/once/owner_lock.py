"""Owner locks: whether the owner of a claim still lives, known at once and from the kernel.

Each owner holds a lock on one byte, at a random place, of a file next to the database. The kernel
releases it when the process ends, however it ends. So a reused pid, a zombie, or the same pid in
another container is never taken for the owner: containers that share the volume of a database share
the kernel, the file and so the locks, though neither sees the other's processes. A stopped process
keeps its lock: it lives, and only the expiry of its claim ends that.

The locks belong to the open file (``F_OFD_SETLK``), since a process's own locks end when *any* code
in it closes the file. A forked child shares the open file, so it closes its copy at once
(``os.register_at_fork``). A started program gets the file only if it is handed over, as the ledger
does: then the owner lives until the tool has ended too.

A doubtful owner counts as alive. Its name contains the file's inode, so a replaced file, or a
copied database, declares nobody dead.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
import threading
import weakref
from typing import Final

from durable_agents.errors import DatabaseReadOnly, DatabaseUnavailable

SUFFIX: Final = "-owners"
"""Appended to the database's path, this names the lock file. It stays empty and is never removed.
"""

_MODE: Final = 0o666
_PLACE_BITS: Final = 61
# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (0 for locks of an open
# file).
_FLOCK: Final = struct.Struct("hhqqi4x")


class OwnerLock:
    """One owner's lock, held from now until ``leave`` or the end of the process.

    ``path`` is the database's. Raises DatabaseReadOnly or DatabaseUnavailable.
    """

    __slots__ = ("__weakref__", "_descriptor", "_inode", "name")

    def __init__(self, path: str) -> None:
        """Lock a random byte of the file."""
        self._descriptor: int = _open(path + SUFFIX)
        self._inode = os.fstat(self._descriptor).st_ino
        place = secrets.randbits(_PLACE_BITS)
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
        self.name = f"{self._inode}.{place}.{os.getpid()}"
        _INHERITED.add(self)

    @property
    def descriptor(self) -> int:
        """The open file. A process that inherits it keeps the owner alive."""
        return self._descriptor

    def leave(self) -> None:
        """Release the lock. Releasing twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def is_alive(self, name: str) -> bool:
        """Whether the owner of this name may live.

        False only if the kernel has released its lock.
        """
        inode, _, rest = name.partition(".")
        place, _, _ = rest.partition(".")
        if inode != str(self._inode) or not place.isdecimal():
            return True
        if name == self.name:
            return self._descriptor >= 0
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, int(place), 1, 0)
            answer = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, asked)
        except (OSError, ValueError, struct.error):
            return True
        kind: int = _FLOCK.unpack(answer)[0]
        return kind != fcntl.F_UNLCK


class ProcessOwnerLock:
    """The owner lock of this process at one database, taken on first use, and anew after a fork."""

    __slots__ = ("_held", "_lock", "_path", "_process")

    def __init__(self, path: str) -> None:
        """Keep the path; the first call opens the file."""
        self._path = path
        self._held: OwnerLock | None = None
        self._process = 0
        self._lock = threading.Lock()

    def get(self) -> OwnerLock:
        """Return the lock of the calling process."""
        lock = self._held
        if lock is not None and self._process == os.getpid():
            return lock
        with self._lock:
            if self._held is None or self._process != os.getpid():
                self._held, self._process = OwnerLock(self._path), os.getpid()
            return self._held

    def leave(self) -> None:
        """Release the lock, if this process holds one."""
        if self._held is not None and self._process == os.getpid():
            self._held.leave()
            self._held = None


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    except OSError as error:
        kind = DatabaseReadOnly if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM} else DatabaseUnavailable
        message = f"{path} must be a lock file that can be opened; got '{error.strerror}'. Claims on keys need it."
        raise kind(message) from error


_INHERITED: Final[weakref.WeakSet[OwnerLock]] = weakref.WeakSet()


def _close_inherited() -> None:
    """In a forked child, close the parent's files, so that they do not keep the parent's locks."""
    for lock in list(_INHERITED):
        with contextlib.suppress(OSError):
            lock.leave()
    _INHERITED.clear()


os.register_at_fork(after_in_child=_close_inherited)
