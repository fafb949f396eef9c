"""States written into a real folder, one after the other, and real folders read back.

A check may change the folder: recover, write, delete. So the next state trusts nothing in it. Small
files are written as new files; a database handle that a check forgot to close then has the old one.
A large file is kept if its time of modification shows that it is unchanged, and gets only the pages
that differ.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.simulate.changes import ChangedFiles
from pytest_chaos.explore.simulate.content import PAGE_BYTES, Content, PageStore
from pytest_chaos.explore.simulate.disk import FILE, FOLDER, OTHER, SYMLINK
from pytest_chaos.explore.simulate.state import Item
from pytest_chaos.trace.step import KNOWN_FILES, readable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_chaos.trace.step import FileKinds

KEPT_BYTES_MIN: Final = 1 << 20
"""An existing file of at least this size gets only the pages that differ."""

MANY_FILES: Final = 8
"""A folder with at least so many items is watched for changes."""
STAYS_S: Final = 1.0
"""After so long all files are made anew: a check may ask how old a lock file is."""

_LONG_AGO_NS: Final = 1_000_000_000 * 10**9
"""The time of modification given to a large file: another time means that a check wrote to it."""
_CHUNK_BYTES: Final = 1 << 20
_PAGES_A_CALL: Final = 512
"""Fewer than IOV_MAX, the most that one call takes."""


_PUTS_MIN: Final = 2
"""A folder that holds one state only is not watched."""


class _Kept(NamedTuple):
    content: Content
    inode: int


class StateFolder:
    """A folder that holds one state after the other. ``put`` makes it; the caller removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, _Kept] = {}
        self._changes: ChangedFiles | None = None
        self._there: Mapping[str, Item] = {}
        """The items that are there but for changes, or none if that is not known."""
        self._puts = 0
        self._made_s = 0.0
        """When all files were made anew."""

    def put(self, items: Mapping[str, Item]) -> None:
        """Make the folder hold exactly these items. Raises OSError, as on a full disk."""
        mask = os.umask(0)
        root = os.fspath(self.path)
        self._puts += 1
        try:
            changed = self._changes.taken() if self._changes is not None and self._there else None
            there, self._there = self._there, {}  # nothing is known if this fails
            is_fresh = time.monotonic() - self._made_s < STAYS_S
            if changed is not None and is_fresh and _folders(there) == _folders(items) and _has_no_links(items):
                found = self._remove(root, there, items, changed)
            else:
                self._made_s = time.monotonic()
                self._make_root(root)
                found = self._clear(root, "", items)
            first: dict[int, str] = {}
            for path, item in items.items():
                if path not in found or item.kind == FOLDER or path in self._kept:
                    self._put(f"{root}/{path}", path, item, found, first)
            self._watch(root, items)
        finally:
            os.umask(mask)

    def forget(self) -> None:
        """Trust nothing that is there: a process may have a file open still."""
        self._there = {}

    @property
    def is_watched(self) -> bool:
        """Whether the next state may keep files of this one."""
        return bool(self._there)

    def _watch(self, root: str, items: Mapping[str, Item]) -> None:
        """Begin to watch for changes, if there is much to keep for a further state."""
        if self._puts < _PUTS_MIN or len(items) < MANY_FILES or not _has_no_links(items):
            return
        try:
            if self._changes is None:
                self._changes = ChangedFiles()
            self._changes.forget()
            self._changes.watch(root, "")
            for path in _folders(items):
                self._changes.watch(f"{root}/{path}", f"{path}/")
            self._changes.discard()
        except OSError:  # too many watches: each state is made anew
            return
        self._there = items

    def _remove(self, root: str, there: Mapping[str, Item], items: Mapping[str, Item], changed: set[str]) -> set[str]:
        """Remove what was changed, or is another one in the next state; return what stays."""
        stays = {path for path, item in items.items() if path not in changed and there.get(path) == item}
        for path in (there.keys() | changed) - stays:
            full, kept = f"{root}/{path}", self._kept.get(path)
            with contextlib.suppress(FileNotFoundError):
                if kept is not None and _is_file(items.get(path)) and _is_as_kept(os.lstat(full), kept):
                    stays.add(path)
                    continue
                os.unlink(full)
            self._kept.pop(path, None)
        return stays

    def _make_root(self, root: str) -> None:
        try:
            if stat.S_ISDIR(os.lstat(root).st_mode):
                return
            os.unlink(root)
        except FileNotFoundError:
            pass
        self._kept.clear()
        os.makedirs(root, 0o755)

    def _clear(self, folder: str, prefix: str, items: Mapping[str, Item]) -> set[str]:
        """Remove all but wanted folders and unchanged large files; return the paths of those."""
        stays: set[str] = set()
        for entry in _entries(folder):
            path = prefix + entry.name
            item = items.get(path)
            if entry.is_dir(follow_symlinks=False):
                if item is not None and item.kind == FOLDER:
                    stays.add(path)
                    stays |= self._clear(entry.path, f"{path}/", items)
                else:
                    _remove_tree(entry.path)
            elif _is_file(item) and self._is_untouched(path, entry):
                stays.add(path)
            else:
                os.unlink(entry.path)
                self._kept.pop(path, None)
        return stays

    def _is_untouched(self, path: str, entry: os.DirEntry[str]) -> bool:
        kept = self._kept.get(path)
        return kept is not None and _is_as_kept(entry.stat(follow_symlinks=False), kept)

    def _put(self, full: str, path: str, item: Item, found: set[str], first: dict[int, str]) -> None:
        if item.kind == FOLDER:
            if path not in found:
                os.mkdir(full)
            os.chmod(full, item.mode | stat.S_IRWXU)  # a folder that cannot be entered could not be filled
        elif item.kind == SYMLINK:
            os.symlink(item.target, full)
        elif item.node in first and path not in found:
            os.link(first[item.node], full)
        elif item.kind == OTHER:
            os.mkfifo(full, item.mode)
        elif item.content is not None:
            first[item.node] = full
            self._put_file(full, path, item, item.content, is_there=path in found)

    def _put_file(self, full: str, path: str, item: Item, content: Content, *, is_there: bool) -> None:
        if content.size < KEPT_BYTES_MIN:
            self._kept.pop(path, None)
            descriptor = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, item.mode)
            try:
                _write(descriptor, content.to_bytes(), 0)
            finally:
                os.close(descriptor)
            return
        descriptor = os.open(full, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, item.mode)
        try:
            self._write_large(descriptor, content, self._kept.get(path) if is_there else None)
            os.fchmod(descriptor, item.mode)
            os.utime(descriptor, ns=(_LONG_AGO_NS, _LONG_AGO_NS))
            self._kept[path] = _Kept(content, os.fstat(descriptor).st_ino)
        finally:
            os.close(descriptor)

    def _write_large(self, descriptor: int, content: Content, kept: _Kept | None) -> None:
        if kept is None:
            for offset, pages in content.runs(_PAGES_A_CALL):
                _write_pages(descriptor, pages, offset)
        else:
            for number in content.changed_pages(kept.content):
                start = number * PAGE_BYTES
                _write(descriptor, content.page(number)[: max(0, content.size - start)], start)
        os.ftruncate(descriptor, content.size)


def _is_as_kept(now: os.stat_result, kept: _Kept) -> bool:
    same = now.st_ino == kept.inode and now.st_size == kept.content.size and now.st_nlink == 1
    return same and now.st_mtime_ns == _LONG_AGO_NS


def _is_file(item: Item | None) -> bool:
    return item is not None and item.kind == FILE


def _folders(items: Mapping[str, Item]) -> dict[str, Item]:
    return {path: item for path, item in items.items() if item.kind == FOLDER}


def _has_no_links(items: Mapping[str, Item]) -> bool:
    """Whether no two items are one file."""
    return len({item.node for item in items.values()}) == len(items)


def read_folder(path: Path, store: PageStore) -> dict[str, Item]:
    """Return the items of a real folder; inode numbers serve as nodes."""
    return dict(_read(os.fspath(path), "", store))


def _read(folder: str, prefix: str, store: PageStore) -> Iterator[tuple[str, Item]]:
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        path = prefix + entry.name
        known = entry.stat(follow_symlinks=False)
        mode = stat.S_IMODE(known.st_mode)
        if entry.is_symlink():
            yield path, Item(SYMLINK, mode, known.st_ino, None, os.readlink(entry.path))
        elif entry.is_dir(follow_symlinks=False):
            yield path, Item(FOLDER, mode, known.st_ino)
            yield from _read(entry.path, f"{path}/", store)
        elif entry.is_file(follow_symlinks=False):
            yield path, Item(FILE, mode, known.st_ino, _content(entry.path, store))
        else:
            yield path, Item(OTHER, mode, known.st_ino)


def _content(path: str, store: PageStore) -> Content:
    content = Content(store)
    with open(path, "rb", buffering=0) as file:
        for start, end in _extents(file.fileno()):
            for offset in range(start, end, _CHUNK_BYTES):
                piece = os.pread(file.fileno(), min(_CHUNK_BYTES, end - offset), offset)
                content = content.write(offset, piece)
        return content.resize(os.fstat(file.fileno()).st_size)


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each extent with data (``lseek(2)``), so that holes are not read."""
    size, end = os.fstat(descriptor).st_size, 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def differences(built: Mapping[str, Item], real: Mapping[str, Item], files: FileKinds = KNOWN_FILES) -> list[str]:
    """Return in words the differences between a built state and a real folder.

    Permissions, which depend on the umask, are not compared. Nor are ignored files, and the
    contents of volatile ones.
    """
    built, real = ({path: item for path, item in each.items() if not files.ignores(path)} for each in (built, real))
    found = [f"{path} is missing" for path in sorted(built.keys() - real.keys())]
    found += [f"{path} is not expected" for path in sorted(real.keys() - built.keys())]
    for path in sorted(built.keys() & real.keys()):
        ours, theirs = built[path], real[path]
        if (ours.kind, ours.target) != (theirs.kind, theirs.target):
            found.append(f"{path} is a {theirs.kind}, not a {ours.kind}")
        elif ours.content is not None and theirs.content is not None and not files.is_volatile(path):
            if ours.content.size != theirs.content.size:
                found.append(f"{path} has {theirs.content.size} bytes, not {ours.content.size}")
            elif ours.content != theirs.content:
                found.append(f"{path} differs in page {ours.content.changed_pages(theirs.content)[0]}")
    return [readable(text) for text in found]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _remove_tree(path: str) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):  # a folder that its owner may not write
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                os.chmod(folder, stat.S_IRWXU)
        shutil.rmtree(path)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _write_pages(descriptor: int, pages: Sequence[bytes], offset: int) -> None:
    """Write pages with one call; what it leaves, if the disk is nearly full, with further ones."""
    written = os.pwritev(descriptor, pages, offset)
    if written < sum(map(len, pages)):
        _write(descriptor, b"".join(pages)[written:], offset + written)
