"""Which files of a folder were changed since the last question: told by the kernel, inotify(7).

So a folder of a thousand files becomes the next state without a look at each of them. A store
through memory makes no event, but the file that it was mapped from was open for writing, and its
close is told when nothing is mapped any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_libc: Final = ctypes.CDLL(None, use_errno=True)
_EVENT: Final = struct.Struct("iIII")
"""struct inotify_event: watch, mask, cookie, length of the name that follows."""
_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED, _CREATE, _DELETE, _SELF = 0xC0, 0x100, 0x200, 0xC00
_WANTED: Final = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED | _CREATE | _DELETE | _SELF
_HERE_ONLY: Final = 0x01000000 | 0x02000000
"""IN_ONLYDIR and IN_DONT_FOLLOW."""
_FOLDER: Final = 0x40000000
_BYTES: Final = 1 << 16


class ChangedFiles:
    """The files that were changed in folders that are watched.

    Raises OSError where the kernel has no room for it.
    """

    def __init__(self) -> None:
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._folders: dict[int, str] = {}
        self.close = weakref.finalize(self, os.close, self._descriptor)

    def watch(self, folder: str, prefix: str) -> None:
        """Watch the files of a folder; ``prefix`` is put before their names. Raises OSError."""
        number = _libc.inotify_add_watch(self._descriptor, os.fsencode(folder), _WANTED | _HERE_ONLY)
        self._folders[_checked(number)] = prefix

    def forget(self) -> None:
        """Forget all folders; those that are still there are to be watched again."""
        self._folders.clear()

    def discard(self) -> None:
        """Discard what is known so far."""
        for _ in self._read():
            pass

    def taken(self) -> set[str] | None:
        """Return the paths of changed files since; None if it cannot be told: a folder changed."""
        paths: set[str] = set()
        is_known = True
        for content in self._read():
            place = 0
            while place < len(content):
                number, mask, _, length = _EVENT.unpack_from(content, place)
                place += _EVENT.size
                name = os.fsdecode(content[place : place + length].rstrip(b"\0"))
                place += length
                prefix = self._folders.get(number)
                if not mask & _WANTED or mask & (_FOLDER | _SELF) or not name:
                    is_known = False  # of a folder itself, or of events that were lost
                elif prefix is not None:
                    paths.add(prefix + name)
        return paths if is_known else None

    def _read(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while content := os.read(self._descriptor, _BYTES):
                yield content


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
