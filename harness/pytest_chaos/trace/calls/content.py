"""What a copy inside of the kernel is about to put into a file: the bytes that lie in a pipe, or another file's blocks.

A pipe's bytes are looked at with ``tee``, which leaves them where they are. Whether a file system
shares blocks between files is tried out on two files of the supervisor's own, which never have a
name.

Writes from the caller's memory: where each goes, and what it holds. Those of marks are no steps.

Copies inside of the kernel: what they are about to write is read from where they read it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import stat
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.caller import (
    FOREVER,
    LOW_HALF,
    MARKS,
    NAMES,
    NOTHING,
    Decoded,
    Looking,
    descriptor_in,
    signed_word,
)
from pytest_chaos.trace.kernel import CLONE, CLONE_COMMANDS, CLONE_RANGE
from pytest_chaos.trace.memory import Failing
from pytest_chaos.trace.step import NO_CONTENT, Action, BlindSpot, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.trace.kernel import Notification

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


WRITES: Final = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2"})
_PLAIN: Final = frozenset({"write", "pwrite64"})
_RWF_DSYNC: Final = 0x02
_RWF_SYNC: Final = 0x04
_RWF_APPEND: Final = 0x10
_RWF_NOAPPEND: Final = 0x20
_SYNC_BITS: Final = os.O_SYNC & ~os.O_DSYNC
WRITE_BYTES_MAX: Final = 0x7FFFF000
_CHUNK_BYTES: Final = 16 * 1024 * 1024


class Extent(NamedTuple):
    """A write of one call: pieces of the caller's memory, and where in the file they go."""

    pieces: tuple[tuple[int, int], ...]
    length: int
    offset: int
    flags: int


class Writes(Looking):
    """The calls that write what the caller gives."""

    def extent(self, call: Notification) -> Extent | None:
        """Return where a write goes, None for a call that is no write."""
        name = NAMES.get(call.number, "")
        if name not in WRITES:
            return None
        return self._extent(call)

    def is_positioned(self, call: Notification) -> bool:
        """Tell whether a write says itself where it goes, and moves no position."""
        name = NAMES.get(call.number, "")
        return name in {"pwrite64", "pwritev"} or (name == "pwritev2" and signed_word(call.arguments[3]) >= 0)

    def pwrite64(self, call: Notification) -> Decoded:
        """Write at a place: by far the most frequent step, in databases, and so with a short way of its own."""
        thread, given = call.thread, call.arguments
        descriptor, length, offset = given[0] & LOW_HALF, given[2], given[3]
        node = self.descriptors.leads_to(thread, descriptor)
        if not node:
            node = self._learnt(thread, descriptor, self.memory.status(thread, descriptor))
        if node <= 0 or self._looks_at_flags or not 0 < length <= _CHUNK_BYTES or offset >= FOREVER:
            return self.write(call)
        process, ordinal = self._processes.get(thread) or self._ordinals(thread)
        step = Step(
            number=self._number,
            action=Action.WRITE,
            call="pwrite64",
            path=self.folder.path(node),
            node=node,
            offset=offset,
            length=length,
            content=NO_CONTENT if self._keep is None else self._keep(self.memory.read(thread, given[1], length)),
            process=process,
            thread=ordinal,
        )
        return Decoded(steps=(step,), is_step=True)

    def write(self, call: Notification) -> Decoded:
        """Write, by any of the calls that take memory of the caller's."""
        thread, descriptor = call.thread, call.arguments[0] & LOW_HALF
        node = self.descriptors.leads_to(thread, descriptor)
        if not node:
            status = self.memory.status(thread, descriptor)
            node = self._learnt(thread, descriptor, status)
        if node == MARKS:
            return self._marked(call)
        if not node:
            return self._printed(call) if self._is_output(status) else self._stray(thread, descriptor, status)
        extent = self._extent(call)
        if not extent.length:
            return NOTHING
        content = NO_CONTENT if self._keep is None else self._kept(thread, extent, self._keep)
        return Decoded(steps=self._written(node, extent.offset, extent.length, content, extent.flags))

    def _printed(self, call: Notification) -> Decoded:
        """Count what is printed, before it is: of threads that print at once each would see the file as it was."""
        self._printed_bytes += self._extent(call, with_place=False).length
        return Decoded(printed_bytes=self._printed_bytes)

    def _marked(self, call: Notification) -> Decoded:
        """Return the mark that is written, as the call says it; its number is that of the step before it."""
        extent = self._extent(call, with_place=False)
        if not extent.length:
            return NOTHING
        content = NO_CONTENT if self._keep is None else self._keep(self._bytes(call.thread, extent))
        number = self._number - 1
        mark = Step(number=number, action=Action.MARK, call="write", length=extent.length, content=content)
        return Decoded(mark=mark)

    def _kept(self, thread: int, extent: Extent, keep: Callable[[bytes], int]) -> int:
        """Keep what is written, some megabytes at a time, and return where it begins."""
        if extent.length <= _CHUNK_BYTES:
            return keep(self._bytes(thread, extent))
        places = [
            keep(self.memory.read(thread, address + done, min(_CHUNK_BYTES, length - done)))
            for address, length in extent.pieces
            for done in range(0, length, _CHUNK_BYTES)
        ]
        return places[0]

    def _written(self, node: int, offset: int, length: int, content: int, flags: int) -> tuple[Step, ...]:
        path = self.folder.path(node)
        step = self._step(Action.WRITE, path=path, node=node, offset=offset, length=length, content=content)
        if not flags & os.O_DSYNC:  # O_SYNC contains it
            return (step,)
        kind = Action.SYNC if flags & _SYNC_BITS else Action.SYNC_DATA
        return (step, self._step(kind, path=path, node=node))

    def _extent(self, call: Notification, *, with_place: bool = True) -> Extent:
        """Return what a write call writes, and where."""
        name, thread, given = NAMES[call.number], call.thread, call.arguments
        pieces: tuple[tuple[int, int], ...]
        if name in _PLAIN:
            length = min(given[2], WRITE_BYTES_MAX)
            pieces = ((given[1], length),)
        else:
            pieces = tuple(self.memory.vectors(thread, given[1], min(given[2], 1024)))
            length = min(sum(length for _, length in pieces), WRITE_BYTES_MAX)
        if not with_place:
            return Extent(pieces, length, 0, 0)
        descriptor = descriptor_in(given[0])
        offset = -1 if name in {"write", "writev"} else signed_word(given[3])
        if offset < 0 and name in {"pwrite64", "pwritev"}:
            msg = f"{name} at {offset}"
            raise Failing(msg)
        per_call = _flags_of_call(given[5]) if name == "pwritev2" else 0
        flags = per_call
        if offset < 0 or self._looks_at_flags or per_call:
            opened = memory.open_file(thread, descriptor)
            flags |= opened.flags & ~_not_wanted(name, given)
            offset = opened.position if offset < 0 else offset
        if flags & os.O_APPEND:
            offset = self.memory.status(thread, descriptor).st_size
        return Extent(pieces, length, offset, flags)

    def _bytes(self, thread: int, extent: Extent) -> bytes:
        parts = [self.memory.read(thread, address, length) for address, length in extent.pieces if length]
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _flags_of_call(flags: int) -> int:
    """Return the flags of open that flags of one write mean."""
    found = os.O_APPEND if flags & _RWF_APPEND else 0
    found |= os.O_DSYNC if flags & _RWF_DSYNC else 0
    return found | (os.O_SYNC if flags & _RWF_SYNC else 0)


def _not_wanted(name: str, given: list[int]) -> int:
    """Return the flags that a file was opened with and that do not hold for this one write."""
    return os.O_APPEND if name == "pwritev2" and given[5] & _RWF_NOAPPEND else 0


class Copies(Writes):
    """The calls that copy from one descriptor to another."""

    def sendfile(self, call: Notification) -> Decoded:
        """Copy from one descriptor to another; the source's place is given, or is its own."""
        target, source, place, count, *_ = call.arguments
        return self._copied(call.thread, descriptor_in(source), place, descriptor_in(target), 0, count)

    def copy_file_range(self, call: Notification) -> Decoded:
        """Copy a range of one file into another."""
        source, source_place, target, target_place, count, _ = call.arguments
        places = (source_place, descriptor_in(target), target_place)
        return self._copied(call.thread, descriptor_in(source), *places, count)

    def splice(self, call: Notification) -> Decoded:
        """Move what lies in a pipe into a file; the other way about nothing durable happens."""
        source, _, target, place, count, _ = call.arguments
        thread, target = call.thread, descriptor_in(target)
        status = self.memory.status(thread, target)
        node = self._node(thread, status)
        if not node:
            return self._stray(thread, target, status)
        content = in_pipe(thread, descriptor_in(source), min(count, WRITE_BYTES_MAX))
        if content is None:
            text = "a copy from a pipe that was empty yet, whose bytes are not known beforehand, was refused"
            return Decoded(error=errno.EINVAL, blind_spot=BlindSpot(what="splice", text=text, is_denied=True))
        if not content or memory.open_file(thread, target).flags & os.O_APPEND:  # which the kernel refuses
            return NOTHING
        return self._put(thread, node, status, target, place, content)

    def _copied(
        self, thread: int, source: int, source_place: int, target: int, target_place: int, count: int
    ) -> Decoded:
        status = self.memory.status(thread, target)
        node = self._node(thread, status)
        if not node:
            return self._stray(thread, target, status)
        origin = self.memory.status(thread, source)
        if not stat.S_ISREG(origin.st_mode):
            text = "a copy from a pipe or socket into a file, whose bytes are not known beforehand, was refused"
            return Decoded(error=errno.EINVAL, blind_spot=BlindSpot(what="splice", text=text, is_denied=True))
        content = self._read_file(thread, source, source_place, min(count, WRITE_BYTES_MAX))
        return self._put(thread, node, status, target, target_place, content) if content else NOTHING

    def _put(
        self, thread: int, node: int, status: os.stat_result, target: int, target_place: int, content: bytes
    ) -> Decoded:
        """Return the write that a copy is: at the place that is given by its address, or at the file's own."""
        opened = memory.open_file(thread, target)
        offset = self.memory.number(thread, target_place) if target_place else opened.position
        offset = status.st_size if opened.flags & os.O_APPEND else offset
        kept = NO_CONTENT if self._keep is None else self._keep(content)
        return Decoded(steps=self._written(node, offset, len(content), kept, opened.flags))

    def _read_file(self, thread: int, descriptor: int, place: int, count: int) -> bytes:
        offset = self.memory.number(thread, place) if place else memory.open_file(thread, descriptor).position
        return self._read_at(thread, descriptor, offset, count)

    @staticmethod
    def _read_at(thread: int, descriptor: int, offset: int, count: int) -> bytes:
        try:
            file = os.open(f"/proc/{thread}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            msg = f"descriptor {descriptor} of thread {thread} cannot be read: {error.strerror}"
            raise Failing(msg) from error
        try:
            return os.pread(file, min(count, max(0, os.fstat(file).st_size - offset)), offset)
        finally:
            os.close(file)

    def ioctl(self, call: Notification) -> Decoded:
        """Share blocks with another file, where the file system can: the kernel itself refuses it anywhere else."""
        thread, target, command = call.thread, descriptor_in(call.arguments[0]), call.arguments[1] & 0xFFFFFFFF
        status = self.memory.status(thread, target)
        node = self._node(thread, status) if command in CLONE_COMMANDS else 0
        if not node:
            return NOTHING
        can = shares_blocks(self.folder.root)
        if can is None:
            text = "a reflink (FICLONE) was refused, as by a file system that has none; programs then copy"
            return Decoded(error=errno.EOPNOTSUPP, blind_spot=BlindSpot(what="reflink", text=text, is_denied=True))
        return self._cloned(thread, node, status, target, call) if can else NOTHING

    def _cloned(self, thread: int, node: int, status: os.stat_result, target: int, call: Notification) -> Decoded:
        """Return the write that a reflink is to whoever reads."""
        argument = call.arguments[2]
        found = Range(descriptor_in(argument), 0, 0, 0)
        if call.arguments[1] & 0xFFFFFFFF == CLONE_RANGE:
            found = Range.unpack(self.memory.read(thread, argument, RANGE_BYTES))
        opened = memory.open_file(thread, target)
        if self.memory.status(thread, found.source).st_dev != status.st_dev or opened.flags & os.O_APPEND:
            return NOTHING  # which the kernel refuses
        content = self._read_at(thread, found.source, found.start, found.length or WRITE_BYTES_MAX)
        if not content:
            return NOTHING
        kept = NO_CONTENT if self._keep is None else self._keep(content)
        return Decoded(steps=self._written(node, found.target_start, len(content), kept, opened.flags))
