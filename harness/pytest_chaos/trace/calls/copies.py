"""Copies inside the kernel (sendfile, copy_file_range, splice, reflinks) are writes.

Each is a write of the bytes that it will copy. They are read before the call is let pass, from
where the kernel will read them. A pipe is read with tee(2), which leaves its bytes there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import stat
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.base import LOW_HALF, NOTHING, Decoded, denied, descriptor_in
from pytest_chaos.trace.calls.table import one_of, system_call
from pytest_chaos.trace.calls.writes import WRITE_BYTES_MAX, WriteCalls
from pytest_chaos.trace.memory import Failing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.trace.kernel import Notification

# Commands of ioctl_ficlone(2).
CLONE: Final = 0x40049409
"""FICLONE: share all blocks of another file, whose descriptor is the argument."""
CLONE_RANGE: Final = 0x4020940D
"""FICLONERANGE: share some of them; the argument is the address of a ``file_clone_range``."""

_SPLICE_F_NONBLOCK: Final = 2
_F_SETPIPE_SZ: Final = 1031
_F_GETPIPE_SZ: Final = 1032
_libc: Final = ctypes.CDLL(None, use_errno=True)


class CloneRange(NamedTuple):
    """A part of a file that is shared (``struct file_clone_range``); length 0 is up to its end."""

    source: int
    start: int
    length: int
    target_start: int


_CLONE_RANGE: Final = struct.Struct("qQQQ")


class CopyCalls(WriteCalls):
    """The calls that copy from one descriptor to another."""

    @system_call("sendfile", x86_64=40, aarch64=71)
    def sendfile(self, call: Notification) -> Decoded:
        """Copy from one descriptor to another; the source's offset is given, or is its position."""
        target, source, source_offset, count, *_ = call.arguments
        return self._copied(call.thread, descriptor_in(source), source_offset, descriptor_in(target), 0, count)

    @system_call("copy_file_range", x86_64=326, aarch64=285)
    def copy_file_range(self, call: Notification) -> Decoded:
        """Copy a range of one file into another."""
        source, source_offset, target, target_offset, count, _ = call.arguments
        where = (source_offset, descriptor_in(target), target_offset)
        return self._copied(call.thread, descriptor_in(source), *where, count)

    def _copied(
        self, thread: int, source: int, source_offset: int, target: int, target_offset: int, count: int
    ) -> Decoded:
        """Decode a copy; the offsets are addresses of numbers, 0 for the file's own position."""
        status = self.memory.status(thread, target)
        node = self._node(thread, status)
        if not node:
            return self._stray(thread, target, status)
        if not stat.S_ISREG(self.memory.status(thread, source).st_mode):
            text = "a copy from a pipe or socket into a file, whose bytes are not known beforehand, was refused"
            return denied("splice", text, errno.EINVAL)
        offset = self._offset(thread, source, source_offset)
        content = _read_at(thread, source, offset, min(count, WRITE_BYTES_MAX))
        return self._put(thread, node, target, target_offset, content) if content else NOTHING

    @system_call("splice", x86_64=275, aarch64=76)
    def splice(self, call: Notification) -> Decoded:
        """Move bytes from a pipe into a file; the other way round nothing durable happens."""
        source, _, target, target_offset, count, _ = call.arguments
        thread, target = call.thread, descriptor_in(target)
        status = self.memory.status(thread, target)
        node = self._node(thread, status)
        if not node:
            return self._stray(thread, target, status)
        content = in_pipe(thread, descriptor_in(source), min(count, WRITE_BYTES_MAX))
        if content is None:
            # The kernel would wait for a writer, which is trapped, too: its bytes come only after
            # our answer.
            text = "a copy from a pipe that was empty yet, whose bytes are not known beforehand, was refused"
            return denied("splice", text, errno.EINVAL)
        if not content or memory.open_file(thread, target).flags & os.O_APPEND:  # EINVAL, splice(2)
            return NOTHING
        return self._put(thread, node, target, target_offset, content)

    @system_call("ioctl", x86_64=16, aarch64=29, when=one_of(1, CLONE, CLONE_RANGE))
    def ioctl(self, call: Notification) -> Decoded:
        """Share blocks with another file. A file system without reflinks fails the call itself."""
        thread, target = call.thread, descriptor_in(call.arguments[0])
        node = self._node(thread, self.memory.status(thread, target))
        if not node:
            return NOTHING
        # FICLONE is in the filter for every file system; on most it fails, and no bytes are copied.
        can = shares_blocks(self.folder.root)
        if can is None:
            text = "a reflink (FICLONE) was refused, as by a file system that has none; programs then copy"
            return denied("reflink", text, errno.EOPNOTSUPP)
        return self._cloned(thread, node, target, call) if can else NOTHING

    def _cloned(self, thread: int, node: int, target: int, call: Notification) -> Decoded:
        argument = call.arguments[2]
        found = CloneRange(descriptor_in(argument), 0, 0, 0)
        if call.arguments[1] & LOW_HALF == CLONE_RANGE:
            found = CloneRange(*_CLONE_RANGE.unpack(self.memory.read(thread, argument, _CLONE_RANGE.size)))
        opened = memory.open_file(thread, target)
        is_elsewhere = self.memory.status(thread, found.source).st_dev != self.memory.status(thread, target).st_dev
        if is_elsewhere or opened.flags & os.O_APPEND:  # EXDEV and EBADF, ioctl_ficlone(2)
            return NOTHING
        content = _read_at(thread, found.source, found.start, found.length or WRITE_BYTES_MAX)
        if not content:
            return NOTHING
        return self._written(node, found.target_start, len(content), self._stored(content), opened.flags)

    def _put(self, thread: int, node: int, target: int, target_offset: int, content: bytes) -> Decoded:
        """Return the write that a copy is."""
        opened = memory.open_file(thread, target)
        offset = self.memory.number(thread, target_offset) if target_offset else opened.position
        offset = self.memory.status(thread, target).st_size if opened.flags & os.O_APPEND else offset
        return self._written(node, offset, len(content), self._stored(content), opened.flags)

    def _offset(self, thread: int, descriptor: int, address: int) -> int:
        return self.memory.number(thread, address) if address else memory.open_file(thread, descriptor).position


@contextlib.contextmanager
def _opened(thread: int, descriptor: int, flags: int = 0) -> Iterator[int]:
    """Open another process's file anew, so that its position stays. Raises Failing."""
    try:
        file = os.open(f"/proc/{thread}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        msg = f"descriptor {descriptor} of thread {thread} cannot be read: {error.strerror}"
        raise Failing(msg) from error
    try:
        yield file
    finally:
        os.close(file)


def _read_at(thread: int, descriptor: int, offset: int, count: int) -> bytes:
    with _opened(thread, descriptor) as file:
        return os.pread(file, min(count, max(0, os.fstat(file).st_size - offset)), offset)


def in_pipe(thread: int, descriptor: int, count: int) -> bytes | None:
    """Return up to ``count`` bytes that are in a pipe, b"" at its end, None while it is empty.

    Raises Failing for a descriptor that is no pipe.
    """
    with _opened(thread, descriptor, os.O_NONBLOCK) as pipe:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size = fcntl.fcntl(pipe, _F_GETPIPE_SZ)
            fcntl.fcntl(writing, _F_SETPIPE_SZ, size)  # or tee would stop at the smaller one's size
            found = _libc.tee(pipe, writing, ctypes.c_size_t(min(count, size)), _SPLICE_F_NONBLOCK)
            if found > 0:
                return os.read(reading, found)
            return b"" if found == 0 or _has_ended(pipe) else None
        except OSError as error:  # EBADF: only a pipe has a size
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
    """Whether two unnamed files in a folder can share blocks; None where that cannot be tried."""
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
