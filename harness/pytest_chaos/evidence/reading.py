"""Opens a file for reading without losing the locks that this process has on it.

POSIX drops all locks of a process on a file when the process closes *any* descriptor of the file
(SQLite, "How To Corrupt An SQLite Database File", 2.2). A test that has its database open, and asks
for evidence in the middle of a transaction, would lose its lock. So a descriptor of a file that
this process has open elsewhere is kept, as SQLite does, and closed by a later call once this
process has the file open nowhere else.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_KEPT: Final[list[int]] = []
_DESCRIPTORS: Final = "/dev/fd"


class _Inode(NamedTuple):
    device: int
    number: int


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading. Raises OSError for others: a pipe would block."""
    _close_kept()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            msg = f"{path} is not a regular file"
            raise OSError(msg)
        with open(descriptor, "rb", closefd=False) as stream:
            yield stream
    finally:
        if _open_here()[_inode(descriptor)] > 1:
            _KEPT.append(descriptor)
        else:
            os.close(descriptor)


def _close_kept() -> None:
    counts = _open_here()
    kept = Counter(_inode(descriptor) for descriptor in _KEPT)
    for descriptor in tuple(_KEPT):
        inode = _inode(descriptor)
        if counts[inode] <= kept[inode]:
            _KEPT.remove(descriptor)
            os.close(descriptor)


def _open_here() -> Counter[_Inode]:
    """Count the descriptors that this process has of each file."""
    counts: Counter[_Inode] = Counter()
    for name in os.listdir(_DESCRIPTORS):
        with suppress(OSError):  # the descriptor of the listing itself is gone by now
            counts[_inode(int(name))] += 1
    return counts


def _inode(descriptor: int) -> _Inode:
    status = os.fstat(descriptor)
    return _Inode(status.st_dev, status.st_ino)
