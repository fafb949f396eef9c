"""Mapped files: what a program stores to shared memory of a file, found by comparing.

A store to a mapping is no system call, so nothing traps it. But it is in the page cache at once,
where a read of the file finds it. So each file with a writable shared mapping has a *shadow*: the
content that the steps so far give. Before a call is decoded, and once more when the run is over,
the file is compared with its shadow. What differs was stored since the last look, in an order that
is not known. A file is compared until the run ends, whether or not it is unmapped before.

The compared content is read, not mapped: a file that is cut meanwhile would end this process by
SIGBUS. A look at 64 MB takes some 15 ms; holes cost nothing.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.trace.step import NO_CONTENT, Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_chaos.trace.step import Step

SHADOW_BYTES_MAX: Final = 512 << 20
"""The memory for shadows; a file that would need more is a blind spot."""
RUNS_MAX: Final = 512
"""At most this many steps are made of one file at one look: runs that are near become one."""
_CHUNK_BYTES: Final = 256 << 10
_PAGE_BYTES: Final = 4096
_WORD_BYTES: Final = 8
_SECTOR_BYTES: Final = 512
"""Words of a sector are stored by one step: it goes to the disk as it is at that time."""
_WIDER: Final = 8
_ZEROS: Final = bytes(_CHUNK_BYTES)
_NO_END: Final = 1 << 63

_Range = tuple[int, int]
"""First byte, and the first one behind."""


class Stored(NamedTuple):
    """Bytes of a file that were stored through memory since the last look."""

    node: int
    offset: int
    content: bytes


class _Asked(NamedTuple):
    """A step of a trapped call on a mapped file, with the bytes that it writes."""

    thread: int
    step: Step
    content: bytes


class MappedFiles:
    """The files of one run that have, or had, a writable shared mapping; ``files`` is by node.

    ``keep`` stores contents and returns their place, as for a decoder. Once a file is mapped, the
    decoder keeps its contents here, so that the shadows get them, too.
    """

    def __init__(self, keep: Callable[[bytes], int] | None) -> None:
        self.files: dict[int, _Shadow] = {}
        self.looks = 0
        self._keep = keep
        self._pieces: list[bytes] = []
        self._asked: list[_Asked] = []
        self._in_flight: list[_Asked] = []

    def add(self, node: int, path: str) -> bool:
        """Begin with a file that is about to be mapped; return whether its content can be had."""
        if node in self.files:
            return True
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return False
        self.files[node] = _Shadow(descriptor)
        return not self.drop_excess(node)

    def drop_excess(self, node: int) -> bool:
        """Compare a file no longer if all shadows together need too much memory."""
        chunks = sum(len(file.chunks) for file in self.files.values())
        is_dropped = node in self.files and chunks * _CHUNK_BYTES > SHADOW_BYTES_MAX
        if is_dropped:
            self.files.pop(node).close()
        return is_dropped

    def keep(self, content: bytes) -> int:
        """Store bytes that a call is about to write; return their place."""
        self._pieces.append(bytes(content))
        return self.store(content)

    def store(self, content: bytes) -> int:
        """Store bytes that are in the file already; return their place."""
        return NO_CONTENT if self._keep is None else self._keep(content)

    # Calls change files, too, and so their shadows

    def follow(self, thread: int, steps: Sequence[Step]) -> None:
        """Note the steps of a call, which take effect now or a little later."""
        for step in steps:
            if step.node in self.files:
                self._asked.append(_Asked(thread, step, b"".join(self._pieces) if step.length else b""))

    def take_back(self) -> None:
        """Forget the last call, which is not done."""
        self._asked.clear()

    def _apply(self, thread: int) -> None:
        """Change the shadows as the calls so far have changed the files.

        A call is over when its thread makes another one, and when its effect is seen. Until then no
        byte of it is compared: it may be as before.
        """
        self._pieces.clear()
        for asked in self._asked:
            if (file := self.files.get(asked.step.node)) is not None:
                file.apply(asked.step, asked.content)
                self._in_flight.append(asked)
        self._asked.clear()
        self._in_flight = [
            asked
            for asked in self._in_flight
            if thread not in {0, asked.thread}
            and (file := self.files.get(asked.step.node)) is not None
            and not file.has(asked.step, asked.content)
        ]

    def look(self, thread: int) -> Iterator[Stored]:
        """Yield what was stored since the last look: before a thread's call, or (0) at the end."""
        self._apply(thread)
        has_any = False
        for node, file in self.files.items():
            unsure = [_extent(asked.step) for asked in self._in_flight if asked.step.node == node]
            for offset, content in file.changes(unsure):
                if not has_any:
                    has_any = True
                    self.looks += 1
                yield Stored(node, offset, content)

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()
        self.files.clear()


def _extent(step: Step) -> _Range:
    return (step.offset, step.offset + step.length) if step.action is Action.WRITE else (0, _NO_END)


class _Shadow:
    """The content that the steps so far give to a file: chunks by number; one of zeros may lack."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray(_CHUNK_BYTES)
        self.size = os.fstat(descriptor).st_size
        self.chunks: dict[int, bytearray] = {}
        for number in sorted(self._numbers()):
            if number * _CHUNK_BYTES < self.size and len(self.chunks) * _CHUNK_BYTES <= SHADOW_BYTES_MAX:
                self._read(number)
                self.chunks[number] = bytearray(self._buffer)

    def close(self) -> None:
        os.close(self._descriptor)

    def _read(self, number: int) -> None:
        """Read a chunk of the file into the buffer, with zeros behind the end."""
        count = os.preadv(self._descriptor, [self._buffer], number * _CHUNK_BYTES)
        if count < _CHUNK_BYTES:
            self._buffer[count:] = _ZEROS[count:]

    def _numbers(self) -> set[int]:
        """Return the numbers of the chunks that are not a hole in the file."""
        numbers: set[int] = set()
        place = 0
        while True:
            try:
                first = os.lseek(self._descriptor, place, os.SEEK_DATA)
                end = os.lseek(self._descriptor, first, os.SEEK_HOLE)
            except OSError as error:  # ENXIO: nothing but a hole up to the end
                if error.errno != errno.ENXIO:
                    numbers.update(range(-(-self.size // _CHUNK_BYTES)))
                return numbers
            last = (end - 1) // _CHUNK_BYTES
            numbers.update(range(first // _CHUNK_BYTES, last + 1))
            place = (last + 1) * _CHUNK_BYTES

    # The effects of calls

    def apply(self, step: Step, content: bytes) -> None:
        """Change the shadow as a call changes the file."""
        if step.action is Action.WRITE:
            self.size = max(self.size, step.offset + len(content))
            self._put(step.offset, content)
        elif step.action is Action.TRUNCATE:
            self._zero(step.length, self.size)
            self.size = step.length
        elif step.action is Action.ALLOCATE:
            self.size = max(self.size, step.offset + step.length)
        elif step.action is Action.ZERO:
            self._zero(step.offset, min(self.size, step.offset + step.length))

    def has(self, step: Step, content: bytes) -> bool:
        """Whether the effect of a call is seen in the file."""
        if step.action is Action.WRITE:
            return os.pread(self._descriptor, step.length, step.offset) == content
        if step.action is Action.ZERO:
            return not any(os.pread(self._descriptor, step.length, step.offset))
        return os.fstat(self._descriptor).st_size == self.size

    def _put(self, offset: int, content: bytes) -> None:
        for number, first, last in _in_chunks(offset, offset + len(content)):
            start = number * _CHUNK_BYTES
            chunk = self.chunks.setdefault(number, bytearray(_CHUNK_BYTES))
            chunk[first - start : last - start] = content[first - offset : last - offset]

    def _zero(self, begin: int, end: int) -> None:
        for number in [number for number in self.chunks if begin < (number + 1) * _CHUNK_BYTES]:
            start = number * _CHUNK_BYTES
            first, last = max(begin, start) - start, min(end - start, _CHUNK_BYTES)
            if last - first == _CHUNK_BYTES:
                del self.chunks[number]
            elif first < last:
                self.chunks[number][first:last] = bytes(last - first)

    # Comparing

    def changes(self, unsure: Sequence[_Range]) -> list[tuple[int, bytes]]:
        """Return the runs of bytes that differ from the file, and take them over."""
        end = min(os.fstat(self._descriptor).st_size, self.size)
        runs: list[_Range] = []
        for number in sorted(self._numbers() | self.chunks.keys()):
            start = number * _CHUNK_BYTES
            if start >= end:
                break
            self._read(number)
            held = self.chunks.get(number)
            if (held is None and self._buffer == _ZEROS) or held == self._buffer:
                continue
            if held is None:
                held = self.chunks[number] = bytearray(_CHUNK_BYTES)
            for word in _differing(held, self._buffer):
                first, last = start + word, min(start + word + _WORD_BYTES, end)
                if first < last and not any(begin < last and first < behind for begin, behind in unsure):
                    held[first - start : last - start] = self._buffer[first - start : last - start]
                    _add(runs, first, last, _SECTOR_BYTES)
        unit = _SECTOR_BYTES
        while len(runs) > RUNS_MAX:
            unit *= _WIDER
            wider: list[_Range] = []
            for first, last in runs:
                _add(wider, first, last, unit)
            runs = wider
        return [(first, self._content(first, last)) for first, last in runs]

    def _content(self, begin: int, end: int) -> bytes:
        parts = []
        for number, first, last in _in_chunks(begin, end):
            start = number * _CHUNK_BYTES
            parts.append(bytes(memoryview(self.chunks.get(number, _ZEROS))[first - start : last - start]))
        return b"".join(parts)


def _in_chunks(begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each chunk that a range touches, and the part of the range in it."""
    while begin < end:
        number = begin // _CHUNK_BYTES
        last = min(end, (number + 1) * _CHUNK_BYTES)
        yield number, begin, last
        begin = last


def _differing(held: bytearray, found: bytearray) -> Iterator[int]:
    """Yield the places of the words that differ in two chunks."""
    for page in range(0, _CHUNK_BYTES, _PAGE_BYTES):
        ours, theirs = held[page : page + _PAGE_BYTES], found[page : page + _PAGE_BYTES]
        if ours != theirs:
            pairs = zip(memoryview(ours).cast("Q"), memoryview(theirs).cast("Q"), strict=True)
            yield from [page + _WORD_BYTES * place for place, (old, new) in enumerate(pairs) if old != new]


def _add(runs: list[_Range], first: int, last: int, unit: int) -> None:
    """Add a range behind the others; within the unit in which the last one ends they become one."""
    if runs and (first == runs[-1][1] or first // unit == (runs[-1][1] - 1) // unit):
        runs[-1] = (runs[-1][0], last)
    else:
        runs.append((first, last))
