"""The content of a simulated file: copy-on-write pages, shared between states.

A state differs from its neighbour in a page or two, so a content is a value: a write returns
another content, which shares all other pages. Its digest is a sum over its pages (an incremental
multiset hash: Bellare and Micciancio, 1997), so its cost grows with the change, not with the file.
Pages of zeros are not stored, which makes holes free.
"""

from __future__ import annotations

import errno
import os
import tempfile
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

PAGE_BYTES: Final = 4096
"""The unit of copying; the kernel writes a page whole into its cache."""

_LEAF_PAGES: Final = 256
_DIGEST_BITS: Final = 128
_DIGEST_MASK: Final = (1 << _DIGEST_BITS) - 1
_ZEROS: Final = bytes(PAGE_BYTES)

MEMORY_BYTES_MAX: Final = 64 << 20
"""Pages that a store has taken beyond this many bytes go to a file."""


class PageStore:
    """A store of pages: the first 64 MiB in memory, later ones in an unnamed file.

    So a recording of a gigabyte is explored with a fraction of that in memory. The file is made in
    ``folder``. Raises OSError when the disk is full.
    """

    def __init__(self, folder: Path | None = None, *, memory_bytes_max: int = MEMORY_BYTES_MAX) -> None:
        self._folder = folder
        self._memory_bytes_left = memory_bytes_max
        self._descriptor = -1
        self._size_bytes = 0

    def keep(self, page: bytes) -> Page:
        """Store a page; return the page itself, or its offset in the file."""
        if self._memory_bytes_left >= PAGE_BYTES:
            self._memory_bytes_left -= PAGE_BYTES
            return page
        if self._descriptor < 0:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                self._descriptor = os.dup(file.fileno())
        place = self._size_bytes
        self._size_bytes += os.pwrite(self._descriptor, page, place)
        if self._size_bytes != place + PAGE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder or tempfile.gettempdir()))
        return place

    def read(self, page: Page) -> bytes:
        """Return the bytes of a page."""
        return page if isinstance(page, bytes) else os.pread(self._descriptor, PAGE_BYTES, page)

    def close(self) -> None:
        """Close the file; contents that have pages in it cannot be read any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


Page: TypeAlias = bytes | int
_Leaf: TypeAlias = "Mapping[int, tuple[int, Page]]"


_NOTHING: Final[Mapping[int, tuple[int, Page] | None]] = {}


def _in_memory(page: bytes) -> Page:
    return page


class Content:
    """The content of a file: a size and pages. A value; every change returns another content.

    Equal contents have an equal ``digest``. Different contents have different ones, but for
    collisions of 128 bits.
    """

    __slots__ = ("_leaves", "_store", "_sum", "size")

    def __init__(
        self, store: PageStore, size: int = 0, leaves: Mapping[int, _Leaf] | None = None, total: int = 0
    ) -> None:
        self._store = store
        self.size = size
        self._leaves = leaves if leaves is not None else {}
        self._sum = total

    @property
    def digest(self) -> tuple[int, int]:
        """The size and the sum over the pages."""
        return (self.size, self._sum)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same bytes."""
        return isinstance(other, Content) and self.digest == other.digest

    def __hash__(self) -> int:
        """Hash the digest."""
        return hash(self.digest)

    def write(self, offset: int, data: bytes | memoryview, *, keep: Callable[[bytes], Page] = _in_memory) -> Content:
        """Return the content with ``data`` at ``offset``; a gap before it is zeros."""
        if not data:
            return self
        end = offset + len(data)
        changed: dict[int, bytes] = {}
        for number in range(offset // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1):
            start = number * PAGE_BYTES
            first, last = max(offset, start), min(end, start + PAGE_BYTES)
            piece = bytes(data[first - offset : last - offset])
            if last - first < PAGE_BYTES:
                old = self.page(number)
                piece = old[: first - start] + piece + old[last - start :]
            changed[number] = piece
        return self._with(changed, max(self.size, end), keep)

    def resize(self, size: int) -> Content:
        """Return the content cut to ``size`` bytes, or grown to it with zeros."""
        if size >= self.size:
            return self if size == self.size else Content(self._store, size, self._leaves, self._sum)
        kept = -(-size // PAGE_BYTES)
        gone = dict.fromkeys((number for number in self._numbers() if number >= kept), _ZEROS)
        if size % PAGE_BYTES:
            tail = self.page(kept - 1)[: size % PAGE_BYTES]
            gone[kept - 1] = tail + bytes(PAGE_BYTES - len(tail))
        return self._with(gone, size, _in_memory)

    def zero(self, offset: int, length: int) -> Content:
        """Return the content with zeros in the part of this range that lies within the file."""
        end = min(offset + length, self.size)
        if end <= offset:
            return self
        changed: dict[int, bytes] = {}
        for number in self._numbers():
            start = number * PAGE_BYTES
            first, last = max(offset, start), min(end, start + PAGE_BYTES)
            if first < last:
                old = self.page(number)
                changed[number] = old[: first - start] + bytes(last - first) + old[last - start :]
        return self._with(changed, self.size, _in_memory)

    def blended(
        self, later: Content, dirty: Collection[int], pieces: Iterable[tuple[int, bytes]], size: int
    ) -> Content:
        """Return ``later`` with its ``dirty`` pages taken from this content and ``pieces``.

        The result equals this content with the pieces written one after the other, if ``later`` is
        right about all other pages; only the dirty pages are computed. A piece is an offset and
        bytes; bytes on other pages are left out.
        """
        patched: dict[int, bytearray] = {}
        for offset, data in pieces:
            end = offset + len(data)
            for number in range(offset // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1):
                if number in dirty:
                    page = patched.setdefault(number, bytearray(0)) or bytearray(self.page(number))
                    start = number * PAGE_BYTES
                    first, last = max(offset, start), min(end, start + PAGE_BYTES)
                    page[first - start : last - start] = data[first - offset : last - offset]
                    patched[number] = page
        kept = {number: self._entry(number) for number in dirty if number not in patched}
        blended = Content(self._store, size, later._leaves, later._sum)
        return blended._with({number: bytes(page) for number, page in patched.items()}, size, _in_memory, kept)

    def _entry(self, number: int) -> tuple[int, Page] | None:
        return self._leaves.get(number // _LEAF_PAGES, {}).get(number)

    def page(self, number: int) -> bytes:
        """Return the page of this number, padded with zeros beyond the end of the file."""
        held = self._leaves.get(number // _LEAF_PAGES, {}).get(number)
        return _ZEROS if held is None else self._store.read(held[1])

    def runs(self, pages_max: int) -> Iterator[tuple[int, list[bytes]]]:
        """Yield the offset and the pages of each run of pages with data, the last page whole, too.

        A longer run comes in parts of ``pages_max`` pages.
        """
        numbers, read = self._numbers(), self._store.read
        first = 0
        for place in range(1, len(numbers) + 1):
            is_end = place == len(numbers) or numbers[place] != numbers[place - 1] + 1
            if is_end or place - first == pages_max:
                run = numbers[first:place]
                yield run[0] * PAGE_BYTES, [read(self._leaves[n // _LEAF_PAGES][n][1]) for n in run]
                first = place

    def changed_pages(self, other: Content) -> list[int]:
        """Return the numbers of the pages that differ, in order; shared leaves are skipped."""
        differing: list[int] = []
        for index in sorted(self._leaves.keys() | other._leaves.keys()):
            ours, theirs = self._leaves.get(index, {}), other._leaves.get(index, {})
            if ours is not theirs:
                numbers = ours.keys() | theirs.keys()
                differing += sorted(n for n in numbers if ours.get(n, (0,))[0] != theirs.get(n, (0,))[0])
        return differing

    def to_bytes(self) -> bytes:
        """Return the whole content at once."""
        pages = -(-self.size // PAGE_BYTES)
        return b"".join([self.page(number) for number in range(pages)])[: self.size]

    def _numbers(self) -> list[int]:
        return sorted(number for leaf in self._leaves.values() for number in leaf)

    def _with(
        self,
        changed: Mapping[int, bytes],
        size: int,
        keep: Callable[[bytes], Page],
        kept: Mapping[int, tuple[int, Page] | None] = _NOTHING,
    ) -> Content:
        """Return the content with these pages changed; ``kept`` has pages with their tokens."""
        leaves = dict(self._leaves)
        fresh: dict[int, dict[int, tuple[int, Page]]] = {}
        total = self._sum
        for number in (*changed, *kept):
            index = number // _LEAF_PAGES
            leaf = fresh.get(index)
            if leaf is None:
                leaf = fresh[index] = dict(leaves.get(index, {}))
            held = leaf.pop(number, None)
            total -= 0 if held is None else held[0]
            page = changed.get(number, _ZEROS)
            entry = (_token(number, page), keep(page)) if page != _ZEROS else kept.get(number)
            if entry is not None:
                total += entry[0]
                leaf[number] = entry
        leaves.update(fresh)
        for index in [index for index in fresh if not fresh[index]]:
            del leaves[index]
        return Content(self._store, size, leaves, total & _DIGEST_MASK)


def _token(number: int, page: bytes) -> int:
    """Return the summand of a page in the digest; never 0, which stands for a page of zeros."""
    salt = number.to_bytes(8, "little")
    return int.from_bytes(blake2b(page, digest_size=_DIGEST_BITS // 8, salt=salt).digest(), "little") | 1
