"""Copies inside of the kernel: what they are about to write is read from where they read it."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from harness.steps import copying, memory
from harness.steps.calls.decoded import NOTHING, Decoded, descriptor_in
from harness.steps.calls.writes import WRITE_BYTES_MAX, Writes
from harness.steps.filter import CLONE_COMMANDS, CLONE_RANGE
from harness.steps.memory import Failing
from harness.steps.step import NO_CONTENT, BlindSpot

if TYPE_CHECKING:
    from harness.steps.kernel import Notification


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
        content = copying.in_pipe(thread, descriptor_in(source), min(count, WRITE_BYTES_MAX))
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
        can = copying.shares_blocks(self.folder.root)
        if can is None:
            text = "a reflink (FICLONE) was refused, as by a file system that has none; programs then copy"
            return Decoded(error=errno.EOPNOTSUPP, blind_spot=BlindSpot(what="reflink", text=text, is_denied=True))
        return self._cloned(thread, node, status, target, call) if can else NOTHING

    def _cloned(self, thread: int, node: int, status: os.stat_result, target: int, call: Notification) -> Decoded:
        """Return the write that a reflink is to whoever reads."""
        argument = call.arguments[2]
        found = copying.Range(descriptor_in(argument), 0, 0, 0)
        if call.arguments[1] & 0xFFFFFFFF == CLONE_RANGE:
            found = copying.Range.unpack(self.memory.read(thread, argument, copying.RANGE_BYTES))
        opened = memory.open_file(thread, target)
        if self.memory.status(thread, found.source).st_dev != status.st_dev or opened.flags & os.O_APPEND:
            return NOTHING  # which the kernel refuses
        content = self._read_at(thread, found.source, found.start, found.length or WRITE_BYTES_MAX)
        if not content:
            return NOTHING
        kept = NO_CONTENT if self._keep is None else self._keep(content)
        return Decoded(steps=self._written(node, found.target_start, len(content), kept, opened.flags))
