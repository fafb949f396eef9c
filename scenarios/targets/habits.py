"""Habits that have lost data in programs that many use, each beside what mends it.

Sources: Pillai and others, "All File Systems Are Not Created Equal" (OSDI 2014), which found most
of them in LevelDB, Git, Mercurial, HDFS and others; the others are those of every second
hand-written store.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from typing import TYPE_CHECKING, ClassVar

from pytest_chaos import Finding

from scenarios.targets.databases import LOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

TORN = "torn"
ROUNDS = 3
_HEADER = struct.Struct("<II")


class Habit:
    """Saves the numbers from 1 on, and finds what of them is there.
    ``is_mended`` leaves the bad habit out.
    """

    title: ClassVar[str]

    def __init__(self, *, is_mended: bool = False) -> None:
        self.is_mended = is_mended
        self.name = f"{self.title}, mended" if is_mended else self.title

    def setup(self, directory: Path) -> None:
        """Make what is there before the first number."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Save each number, between its intent and its acknowledgement."""
        for number in range(1, ROUNDS + 1):
            marks.intent("save", number)
            self.save(directory, number)
            marks.ack("save", number)

    def save(self, directory: Path, number: int) -> None:
        """Save a number."""
        raise NotImplementedError

    def found(self, directory: Path) -> int | None:
        """Return the newest number, 0 for none, and None for content that makes no sense."""
        raise NotImplementedError

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find content that makes no sense, or less than was acknowledged."""
        acknowledged = max((int(mark.key or 0) for mark in marks if mark.kind == "ack"), default=0)
        number = self.found(directory)
        if number is None:
            yield Finding(signature=TORN, text=f"what is there makes no sense: {sorted(os.listdir(directory))}")
        elif number < acknowledged:
            yield Finding(signature=LOST, text=f"{acknowledged} was acknowledged, and {number} is there")


class LogWithoutLength(Habit):
    """A log whose records have neither length nor checksum:
    half a record is read as one (LevelDB, Alice table 3).
    """

    title = "a log without lengths"

    def setup(self, directory: Path) -> None:
        """Make an empty log."""
        put(directory / "log", b"")

    def save(self, directory: Path, number: int) -> None:
        """Append a record, and sync it."""
        put(directory / "log", self._record(number), flags=os.O_APPEND)

    def _record(self, number: int) -> bytes:
        body = b"record %d " % number * 300
        return _HEADER.pack(len(body), zlib.crc32(body)) + body if self.is_mended else body + b"\n"

    def found(self, directory: Path) -> int | None:
        """Count the records; a mended log ends before the first that is not whole."""
        content = (directory / "log").read_bytes()
        count = 0
        while content:
            record = self._record(count + 1)
            if not content.startswith(record):
                return count if self.is_mended else None
            count, content = count + 1, content[len(record) :]
        return count


class FolderNotSynced(Habit):
    """New files whose contents are synced, and their folder not:
    the files are gone (Mercurial, HDFS, ZooKeeper).
    """

    title = "a folder that is not synced"

    def save(self, directory: Path, number: int) -> None:
        """Make a file."""
        put(directory / f"item-{number}", b"%d" % number)
        if self.is_mended:
            sync_folder(directory)

    def found(self, directory: Path) -> int | None:
        """Count the files from the first on."""
        return next(number for number in range(ROUNDS + 1) if not (directory / f"item-{number + 1}").exists())


class IndexFirst(Habit):
    """Two files, and the one that points is written before what it points to (Git's index and
    objects).
    """

    title = "the index before the data"

    def setup(self, directory: Path) -> None:
        """Make both files, empty."""
        put(directory / "data", b"")
        put(directory / "index", b"")

    def save(self, directory: Path, number: int) -> None:
        """Append to both."""
        parts = [("index", b"%d" % number), ("data", b"%d" % number * 700)]
        for name, content in reversed(parts) if self.is_mended else parts:
            put(directory / name, content, flags=os.O_APPEND)

    def found(self, directory: Path) -> int | None:
        """Follow the index."""
        index, data = (directory / "index").read_bytes(), (directory / "data").read_bytes()
        whole = b"".join(b"%d" % number * 700 for number in range(1, len(index) + 1))
        return len(index) if data.startswith(whole) else None


class TruncatedFirst(Habit):
    """A configuration that is emptied and written: between the two there is none."""

    title = "truncate, then write"

    def setup(self, directory: Path) -> None:
        """Make the first configuration."""
        put(directory / "configuration", b"0" * 500)

    def save(self, directory: Path, number: int) -> None:
        """Write the configuration."""
        content = b"%d" % number * 500
        if not self.is_mended:
            put(directory / "configuration", content)
            return
        put(directory / "configuration.new", content)
        (directory / "configuration.new").rename(directory / "configuration")
        sync_folder(directory)

    def found(self, directory: Path) -> int | None:
        """Read it."""
        content = (directory / "configuration").read_bytes()
        return int(content[:1]) if content and content == content[:1] * 500 else None


class RecordInParts(Habit):
    """Two processes append to one log in turns, and each writes its record in two calls."""

    title = "a record in two writes, by two processes"

    def setup(self, directory: Path) -> None:
        """Make an empty log."""
        put(directory / "log", b"")

    def save(self, directory: Path, number: int) -> None:
        """Append here, or in a child: one after the other, as a lock would have them."""
        if number % 2:
            self._append(directory, number)
            return
        if (child := os.fork()) == 0:
            code = 1
            try:
                self._append(directory, number)
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1]:
            message = f"the child could not save {number}"
            raise OSError(message)

    def _append(self, directory: Path, number: int) -> None:
        parts = [b"%d" % number * 20, b"\n"]
        for part in [b"".join(parts)] if self.is_mended else parts:
            put(directory / "log", part, flags=os.O_APPEND)

    def found(self, directory: Path) -> int | None:
        """Count the lines; a crash within one call may leave its beginning,
        which a reader of lines leaves out.
        """
        lines = (directory / "log").read_bytes().split(b"\n")
        is_whole = all(line == b"%d" % number * 20 for number, line in enumerate(lines[:-1], start=1))
        return len(lines) - 1 if is_whole and (self.is_mended or not lines[-1]) else None


class UnlinkedFirst(Habit):
    """A hard link to the current version: the old link is removed before the new one is made."""

    title = "unlink, then link"

    def setup(self, directory: Path) -> None:
        """Make the first version."""
        put(directory / "current", b"0" * 10)

    def save(self, directory: Path, number: int) -> None:
        """Make a version, and have the link lead to it."""
        put(directory / f"version-{number}", b"%d" % number * 10)
        if self.is_mended:
            (directory / "link").hardlink_to(directory / f"version-{number}")
            sync_folder(directory)
            (directory / "link").rename(directory / "current")
        else:
            (directory / "current").unlink()
            (directory / "current").hardlink_to(directory / f"version-{number}")
        sync_folder(directory)

    def found(self, directory: Path) -> int | None:
        """Read the current version."""
        path = directory / "current"
        content = path.read_bytes() if path.exists() else b""
        return int(content[:1]) if len(content) == 10 and content == content[:1] * 10 else None


class HeaderWithoutBarrier(Habit):
    """A header that counts frames, synced together with the frame that it counts:
    the disk may keep it first.
    """

    title = "a header without a barrier"

    def setup(self, directory: Path) -> None:
        """Make a file of a header that counts none."""
        put(directory / "wal", b"\0" * 4096)

    def save(self, directory: Path, number: int) -> None:
        """Write a frame, and count it."""
        descriptor = os.open(directory / "wal", os.O_WRONLY)
        try:
            _put_at(descriptor, 4096 * number, b"%d" % number * 1000)
            if self.is_mended:
                os.fdatasync(descriptor)
            _put_at(descriptor, 0, b"%d" % number)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def found(self, directory: Path) -> int | None:
        """Read the frames that the header counts."""
        content = (directory / "wal").read_bytes()
        count = int(content[:1].strip(b"\0") or b"0")
        frames = range(1, count + 1)
        is_whole = all(content[4096 * number :][:1000] == b"%d" % number * 1000 for number in frames)
        return count if is_whole else None


class LockLeftBehind(Habit):
    """A lock file that is made, and removed at the end: after a crash nobody gets in any more."""

    title = "a lock file that stays"

    def save(self, directory: Path, number: int) -> None:
        """Make a file, under the lock."""
        self._lock(directory)
        put(directory / "fresh", b"%d" % number)
        (directory / "fresh").rename(directory / "item")
        sync_folder(directory)
        (directory / "lock").unlink()

    def _lock(self, directory: Path) -> None:
        if self.is_mended:
            (directory / "lock").unlink(missing_ok=True)  # as good as a lock of the kernel's, where there is one owner
        os.close(os.open(directory / "lock", os.O_CREAT | os.O_EXCL))

    def found(self, directory: Path) -> int | None:
        """Lock, as the next one does."""
        try:
            self._lock(directory)
        except FileExistsError:
            return None
        path = directory / "item"
        return int(path.read_bytes()) if path.exists() else 0


class MappedWithoutFlush(Habit):
    """A counter in a mapped file that is acknowledged once it is in memory: the flush comes later,
    or never (msync, as databases with ``writemap`` and no sync).
    """

    title = "a mapped counter without a flush"

    def setup(self, directory: Path) -> None:
        """Make the file."""
        put(directory / "counter", bytes(mmap.PAGESIZE))

    def save(self, directory: Path, number: int) -> None:
        """Store the number."""
        with (directory / "counter").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[:8] = number.to_bytes(8, "little")
            if self.is_mended:
                memory.flush()

    def found(self, directory: Path) -> int:
        """Return the number."""
        return int.from_bytes((directory / "counter").read_bytes()[:8], "little")


class MappedInPlace(Habit):
    """A record in a mapped file that is changed in place, its parts in any order. Mended, the new
    record goes beside the old one, and is flushed before the word that says which of them counts.
    """

    title = "a mapped record changed in place"

    def setup(self, directory: Path) -> None:
        """Make the file, with room for two records."""
        put(directory / "record", bytes(3 * mmap.PAGESIZE))

    def save(self, directory: Path, number: int) -> None:
        """Change the record: the number, and the number once more at its other end."""
        with (directory / "record").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            place = number % 2 + 1 if self.is_mended else 1
            for offset in self._parts(place):
                memory[offset : offset + 8] = number.to_bytes(8, "little")
            memory.flush()
            if self.is_mended:
                memory[:8] = place.to_bytes(8, "little")
                memory.flush()

    def found(self, directory: Path) -> int | None:
        """Return the number of the record that counts."""
        content = (directory / "record").read_bytes()
        place = int.from_bytes(content[:8], "little") if self.is_mended else 1
        first, last = (int.from_bytes(content[offset : offset + 8], "little") for offset in self._parts(place))
        return first if first == last else None

    @staticmethod
    def _parts(place: int) -> tuple[int, int]:
        return place * mmap.PAGESIZE, (place + 1) * mmap.PAGESIZE - 8


def put(path: Path, content: bytes, *, flags: int = os.O_TRUNC) -> None:
    """Write a file to its end, and sync its contents."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_at(descriptor: int, offset: int, content: bytes) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        offset, content = offset + written, content[written:]


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
