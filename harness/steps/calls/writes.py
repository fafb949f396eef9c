"""Writes from the caller's memory: where each goes, and what it holds. Those of marks are no steps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from harness.steps import memory
from harness.steps.calls.decoded import FOREVER, LOW_HALF, NOTHING, Decoded, descriptor_in, signed_word
from harness.steps.calls.looking import MARKS, NAMES, Looking
from harness.steps.memory import Failing
from harness.steps.step import NO_CONTENT, Action, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.steps.kernel import Notification

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
