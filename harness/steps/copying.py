"""What a copy inside of the kernel is about to put into a file: the bytes that lie in a pipe, or another file's blocks.

A pipe's bytes are looked at with ``tee``, which leaves them where they are. Whether a file system shares blocks between
files is tried out on two files of the supervisor's own, which never have a name.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
from typing import Final, NamedTuple

from harness.steps.filter import CLONE
from harness.steps.memory import Failing

RANGE_BYTES: Final = 32
_NOT_WAITING: Final = 2
_GET_SIZE: Final = 1032
_SET_SIZE: Final = 1031
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Range(NamedTuple):
    """A part of a file that is shared with another; with a length of 0, all that follows its start."""

    source: int
    start: int
    length: int
    target_start: int

    @classmethod
    def unpack(cls, content: bytes) -> Range:
        """Read the argument of a CLONE_RANGE."""
        return cls(*struct.unpack("qQQQ", content))


def in_pipe(thread: int, descriptor: int, count: int) -> bytes | None:
    """Return up to ``count`` bytes that lie in a pipe, b"" at its end; None where nobody has written any yet.

    Raises Failing for what is no pipe.
    """
    try:
        pipe = os.open(f"/proc/{thread}/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        msg = f"descriptor {descriptor} of thread {thread} cannot be read: {error.strerror}"
        raise Failing(msg) from error
    try:
        return _teed(pipe, count)
    finally:
        os.close(pipe)


def _teed(pipe: int, count: int) -> bytes | None:
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = fcntl.fcntl(pipe, _GET_SIZE)
        fcntl.fcntl(writing, _SET_SIZE, size)
        found = _libc.tee(pipe, writing, ctypes.c_size_t(min(count, size)), _NOT_WAITING)
        if found > 0:
            return os.read(reading, found)
        return b"" if found == 0 or _has_ended(pipe) else None
    except OSError as error:  # no pipe has no size
        msg = f"a copy from what is no pipe ({error.strerror})"
        raise Failing(msg) from error
    finally:
        os.close(reading)
        os.close(writing)


def _has_ended(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return any(events & select.POLLHUP and not events & select.POLLIN for _, events in poll.poll(0))


def shares_blocks(folder: str) -> bool | None:
    """Tell whether files in this folder can share blocks; None where that cannot be tried out."""
    try:
        source, target = (os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600) for _ in range(2))
    except OSError:
        return None
    try:
        os.write(source, b"x")
        fcntl.ioctl(target, CLONE, source)
    except OSError as error:
        return False if error.errno in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL} else None
    else:
        return True
    finally:
        os.close(source)
        os.close(target)
