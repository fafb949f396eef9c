"""Writes from the caller's memory: place and bytes. Marks and output are no steps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.base import (
    LOW_HALF,
    MARK_FILE,
    NOTHING,
    SIGN_BIT,
    Decoded,
    DecoderBase,
    descriptor_in,
    one,
    signed_word,
)
from pytest_chaos.trace.calls.table import NAMES, system_call
from pytest_chaos.trace.memory import Failing
from pytest_chaos.trace.step import NO_CONTENT, Action, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.trace.kernel import Notification

WRITE_BYTES_MAX: Final = 0x7FFFF000
"""The kernel writes no more in one call (write(2))."""
_VECTORS_MAX: Final = 1024
"""IOV_MAX: more pieces are refused (writev(2))."""
_CHUNK_BYTES: Final = 16 * 1024 * 1024

# Flags of pwritev2(2), for one write.
_RWF_DSYNC: Final = 0x02
_RWF_SYNC: Final = 0x04
_RWF_APPEND: Final = 0x10
_RWF_NOAPPEND: Final = 0x20

_WRITES: Final = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2"})
_POSITIONED: Final = frozenset({"pwrite64", "pwritev"})
_SYNC_BITS: Final = os.O_SYNC & ~os.O_DSYNC
"""O_SYNC contains O_DSYNC; this bit tells them apart."""


class Extent(NamedTuple):
    """A write: pieces (address, length) of memory, place in the file, flags of open that hold."""

    pieces: tuple[tuple[int, int], ...]
    length: int
    offset: int
    flags: int


class WriteCalls(DecoderBase):
    """The calls that write bytes of the caller's memory."""

    @system_call("pwrite64", x86_64=18, aarch64=68)
    def pwrite64(self, call: Notification) -> Decoded:
        """Write at an offset: of databases the most frequent step, so it has a short path."""
        thread, given = call.thread, call.arguments
        descriptor, length, offset = given[0] & LOW_HALF, given[2], given[3]
        node = self.descriptors.leads_to(thread, descriptor) or self._target(thread, descriptor)[0]
        if node <= 0 or self._looks_at_flags or not 0 < length <= _CHUNK_BYTES or offset >= SIGN_BIT:
            return self.write(call)
        process, ordinal = self._ordinals.get(thread) or self._new_ordinals(thread)
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

    @system_call("write", x86_64=1, aarch64=64)
    @system_call("writev", x86_64=20, aarch64=66)
    @system_call("pwritev", x86_64=296, aarch64=70)
    @system_call("pwritev2", x86_64=328, aarch64=287)
    def write(self, call: Notification) -> Decoded:
        """Write, by any of the calls that take memory of the caller's."""
        thread, descriptor = call.thread, call.arguments[0] & LOW_HALF
        node, status = self._target(thread, descriptor)
        if node == MARK_FILE:
            return self._marked(call)
        if not node:
            assert status is not None  # noqa: S101 - only what leads to a node is cached
            is_output = (status.st_dev, status.st_ino) == self._output
            return self._printed(call) if is_output else self._stray(thread, descriptor, status)
        extent = self._extent(call)
        if not extent.length:
            return NOTHING
        content = NO_CONTENT if self._keep is None else self._kept(thread, extent, self._keep)
        return self._written(node, extent.offset, extent.length, content, extent.flags)

    def extent(self, call: Notification) -> Extent | None:
        """Return where a write goes, None for a call that is no write."""
        return self._extent(call) if self.is_write(call) else None

    @staticmethod
    def is_write(call: Notification) -> bool:
        """Tell whether a call writes from the caller's memory."""
        return NAMES.get(call.number, "") in _WRITES

    def is_positioned(self, call: Notification) -> bool:
        """Tell whether a write gives its offset itself, and moves no position."""
        name = NAMES.get(call.number, "")
        return name in _POSITIONED or (name == "pwritev2" and signed_word(call.arguments[3]) >= 0)

    def _printed(self, call: Notification) -> Decoded:
        """Count printed bytes before they are written: the file lacks those of other threads."""
        self._printed_bytes += self._extent(call, with_place=False).length
        return Decoded(printed_bytes=self._printed_bytes)

    def _marked(self, call: Notification) -> Decoded:
        """Return the mark that is written; its number is that of the step before it."""
        extent = self._extent(call, with_place=False)
        if not extent.length:
            return NOTHING
        content = NO_CONTENT if self._keep is None else self._keep(self._bytes(call.thread, extent))
        number = self._number - 1
        return Decoded(
            mark=Step(number=number, action=Action.MARK, call="write", length=extent.length, content=content)
        )

    def _kept(self, thread: int, extent: Extent, keep: Callable[[bytes], int]) -> int:
        """Store the bytes of a write, some megabytes at a time; return the place of the first."""
        if extent.length <= _CHUNK_BYTES:
            return keep(self._bytes(thread, extent))
        places = [
            keep(self.memory.read(thread, address + done, min(_CHUNK_BYTES, length - done)))
            for address, length in extent.pieces
            for done in range(0, length, _CHUNK_BYTES)
        ]
        return places[0]

    def _written(self, node: int, offset: int, length: int, content: int, flags: int) -> Decoded:
        path = self.folder.path(node)
        step = self._step(Action.WRITE, path=path, node=node, offset=offset, length=length, content=content)
        if not flags & os.O_DSYNC:
            return one(step)
        kind = Action.SYNC if flags & _SYNC_BITS else Action.SYNC_DATA
        return Decoded(steps=(step, self._step(kind, path=path, node=node)))

    def _extent(self, call: Notification, *, with_place: bool = True) -> Extent:
        name, thread, given = NAMES[call.number], call.thread, call.arguments
        pieces: tuple[tuple[int, int], ...]
        if name in {"write", "pwrite64"}:
            length = min(given[2], WRITE_BYTES_MAX)
            pieces = ((given[1], length),)
        else:
            pieces = tuple(self.memory.vectors(thread, given[1], min(given[2], _VECTORS_MAX)))
            length = min(sum(length for _, length in pieces), WRITE_BYTES_MAX)
        if not with_place:
            return Extent(pieces, length, 0, 0)
        descriptor = descriptor_in(given[0])
        offset = -1 if name in {"write", "writev"} else signed_word(given[3])
        if offset < 0 and name in _POSITIONED:
            msg = f"{name} at {offset}"
            raise Failing(msg)
        per_call = given[5] if name == "pwritev2" else 0
        flags = _flags_of_call(per_call)
        # Flags of open are asked for only once some file was opened with such, or got them by
        # fcntl: reading fdinfo costs as much as all the rest.
        if offset < 0 or self._looks_at_flags or flags:
            opened = memory.open_file(thread, descriptor)
            flags |= opened.flags & ~(os.O_APPEND if per_call & _RWF_NOAPPEND else 0)
            offset = opened.position if offset < 0 else offset
        if flags & os.O_APPEND:  # also a positioned write goes to the end then: pwrite(2), BUGS
            offset = self.memory.status(thread, descriptor).st_size
        return Extent(pieces, length, offset, flags)

    def _bytes(self, thread: int, extent: Extent) -> bytes:
        parts = [self.memory.read(thread, address, length) for address, length in extent.pieces if length]
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _flags_of_call(flags: int) -> int:
    """Return the flags of open that the flags of one write amount to."""
    found = os.O_APPEND if flags & _RWF_APPEND else 0
    found |= os.O_DSYNC if flags & _RWF_DSYNC else 0
    return found | (os.O_SYNC if flags & _RWF_SYNC else 0)
