"""Presence: whether the process that owns something still lives, known at once and from the kernel.

Each owner holds a lock on one byte, at a place drawn at random, of a file next to the database, as
long as it lives; the kernel takes the lock back when the process ends, however it ends. So nobody
who asks can take a reused process number, a zombie, or the same number in another container for the
owner: containers that share the volume of a database share the kernel and the file, and so the
locks, though neither sees the other's processes. A process that is stopped holds its lock: it
lives, and only the expiry of what it holds can tell.

These are locks of an open file (``F_OFD_SETLK``), since those of a process go when *anybody* in it
closes the file. A forked child shares the open file, so it closes its copy at once
(``os.register_at_fork``); a program that is started gets it only if it is handed over, as the
ledger does: then the owner lives until the tool has ended too.

What cannot be told counts as alive. An owner's name has the file's inode in it, so that nobody is
declared dead because the file was replaced, or the database copied.
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
"""What the name of the lock file has more than that of the database. It has no content, and is never removed."""

_MODE: Final = 0o666
_PLACE_BITS: Final = 61
# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid, which has to be 0 for locks
# of an open file.
_FLOCK: Final = struct.Struct("hhqqi4x")


class OwnerLock:
    """One owner, present from now until ``leave`` or the end of the process.

    ``path`` is that of the database. Raises DatabaseReadOnly or DatabaseUnavailable.
    """

    __slots__ = ("__weakref__", "_descriptor", "_inode", "name")

    def __init__(self, path: str) -> None:
        """Take a place in the file."""
        self._descriptor: int = _open(path + SUFFIX)
        self._inode = os.fstat(self._descriptor).st_ino
        place = secrets.randbits(_PLACE_BITS)
        fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
        self.name = f"{self._inode}.{place}.{os.getpid()}"
        _INHERITED.add(self)

    @property
    def descriptor(self) -> int:
        """The open file: whoever inherits it keeps the owner present."""
        return self._descriptor

    def leave(self) -> None:
        """Be gone, for everybody who asks. Leaving twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def is_alive(self, name: str) -> bool:
        """Tell whether the owner of this name may live: False only where the kernel says that it does not."""
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
    """The presence of this process at one database: made when first asked for, and anew after a fork."""

    __slots__ = ("_lock", "_path", "_presence", "_process")

    def __init__(self, path: str) -> None:
        """Prepare; the file is opened by the first call."""
        self._path = path
        self._presence: OwnerLock | None = None
        self._process = 0
        self._lock = threading.Lock()

    def get(self) -> OwnerLock:
        """Return the presence of the process that calls."""
        presence = self._presence
        if presence is not None and self._process == os.getpid():
            return presence
        with self._lock:
            if self._presence is None or self._process != os.getpid():
                self._presence, self._process = OwnerLock(self._path), os.getpid()
            return self._presence

    def leave(self) -> None:
        """Be gone, if this process was ever there."""
        if self._presence is not None and self._process == os.getpid():
            self._presence.leave()
            self._presence = None


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    except OSError as error:
        kind = DatabaseReadOnly if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM} else DatabaseUnavailable
        message = f"Expected to open {path} but {error.strerror}; who claims a key needs a lock file there."
        raise kind(message) from error


_INHERITED: Final[weakref.WeakSet[OwnerLock]] = weakref.WeakSet()


def _close_inherited() -> None:
    """In a forked child, close the parent's open files, so that the parent's end is seen when it comes."""
    for presence in list(_INHERITED):
        with contextlib.suppress(OSError):
            presence.leave()
    _INHERITED.clear()


os.register_at_fork(after_in_child=_close_inherited)
