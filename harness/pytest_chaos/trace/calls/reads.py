"""What a program reads in a folder: another filter, for one run, that traps the calls that look.

The filter of the table lets every call pass that only reads. This one traps those: an open, a
question about a name, a list of a folder, a read with its range, a mapping. So it costs much where
a program reads much, and is for one run, of which nothing but this is asked.

A file is known by its inode, so a file that the program renames is still the one that was there
before. What is read of files that the program makes is of no interest. A mapping counts as a read
of all that is mapped. The size of a file counts if it was asked for by name; fstat and lseek, which
a library makes with each open, tell nothing of what the program wanted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.runtime import processes
from pytest_chaos.trace.calls.base import DecoderBase, descriptor_in, signed_word
from pytest_chaos.trace.calls.table import ALWAYS, NUMBER_MAX, Trap, code_of, no_bit
from pytest_chaos.trace.folder import WatchedFolder
from pytest_chaos.trace.kernel import AUDIT_ARCH, MACHINE, Filter
from pytest_chaos.trace.memory import AT_FDCWD, Failing, Unreadable, open_file, path_of
from pytest_chaos.trace.program import ProcessTree
from pytest_chaos.trace.zygote import TraceZygote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pytest_chaos.trace.kernel import Notification
    from pytest_chaos.trace.source import MakeProgram

END: Final = -1
"""The end of a range that was read to the end of its file."""
_PARTS_MAX: Final = 64
"""A file of which more ranges are read counts as read whole."""
_MAP_ANONYMOUS: Final = 0x20
_AT_EMPTY_PATH: Final = 0x1000


class FileRead(msgspec.Struct, frozen=True):
    """What was asked of one file. Nothing was, if all is false and empty.

    ``is_listed``: its folder was listed. ``is_opened``: its name was looked up. ``is_sized``: its
    size was asked for by name. ``parts`` are the ranges that were read, each with its end, or END.
    """

    is_listed: bool = False
    is_opened: bool = False
    is_sized: bool = False
    parts: tuple[tuple[int, int], ...] = ()

    def __or__(self, other: FileRead) -> FileRead:
        """Return what one or the other has asked."""
        return FileRead(
            self.is_listed or other.is_listed,
            self.is_opened or other.is_opened,
            self.is_sized or other.is_sized,
            _joined([*self.parts, *other.parts]),
        )


WHOLE: Final = FileRead(is_listed=True, is_opened=True, is_sized=True, parts=((0, END),))


class WatchedReads(msgspec.Struct, frozen=True):
    """What a program asked of the files that were there, by their paths.

    What it would have asked of any other file is not known. ``WatchedReads.of`` sums up several
    runs.

    >>> reads = WatchedReads({"log": FileRead(is_opened=True), "index": WHOLE})
    >>> reads.unread
    ['log']
    """

    files: Mapping[str, FileRead] = {}

    @property
    def unread(self) -> list[str]:
        """The files whose content was not read at all."""
        return [path for path, read in self.files.items() if not read.parts]

    @classmethod
    def of(cls, several: Iterable[WatchedReads]) -> WatchedReads:
        """Return what some of these runs have asked."""
        files: dict[str, FileRead] = {}
        for reads in several:
            for path, read in reads.files.items():
                files[path] = files[path] | read if path in files else read
        return cls(files)

    def renamed(self, pairs: Sequence[tuple[str, str]]) -> WatchedReads:
        """Return the same with names in the paths replaced."""
        files: dict[str, FileRead] = {}
        for path, read in self.files.items():
            for before, now in pairs:
                path = path.replace(before, now)  # noqa: PLW2901 - by one after the other
            files[path] = read
        return WatchedReads(files)


def _joined(parts: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return ranges in order, with those joined that meet.

    >>> _joined([(4, 6), (0, 2), (5, END), (2, 3)])
    ((0, 3), (4, -1))
    """
    joined: list[tuple[int, int]] = []
    for start, end in sorted(parts):
        if joined and (joined[-1][1] == END or start <= joined[-1][1]):
            last = joined[-1][1]
            joined[-1] = (joined[-1][0], END if END in {last, end} else max(last, end))
        else:
            joined.append((start, end))
    return tuple(joined) if len(joined) <= _PARTS_MAX else ((0, END),)


def watch_reads(make: MakeProgram, directory: Path, marks: Path, timeout_s: float) -> WatchedReads | None:
    """Run a program once; return what it has read in a folder, None where that cannot be told.

    So it is if the program did not end in time, changed its user, or read by io_uring or by calls
    of another machine. Call it from a process with one thread: it forks. Raises StepsUnavailable
    where the filter is refused.
    """
    marks.touch()
    deadline_s = time.monotonic() + timeout_s
    with contextlib.closing(TraceZygote(make, _filter())) as zygote:
        others = processes.children()  # the zygote among them
        tree = ProcessTree(zygote.start(directory, marks), others)
        looks = _Looks(zygote, tree, directory, marks)
        try:
            has_ended = looks.take_calls(deadline_s)
        finally:
            tree.end()
            looks.memory.close()
    return looks.reads() if has_ended and not looks.is_blind else None


@functools.cache
def _filter() -> Filter:
    return Filter(code_of(list(TRAPS.values())))


class _Looks(DecoderBase):
    """One run: lets all calls pass, and notes what each looks at."""

    def __init__(self, zygote: TraceZygote, tree: ProcessTree, directory: Path, marks: Path) -> None:
        super().__init__(
            WatchedFolder(directory),
            None,
            leader=tree.pid,
            umask=zygote.umask,
            sees_closes=False,
            marks=os.stat(marks),
            output=os.fstat(zygote.output),
        )
        self._listener = zygote.listener
        self._early = zygote.early
        self._tree = tree
        entries = [entry for entry in self.folder.scan(None) if entry.kind == "file"]
        self._paths = {entry.node: entry.path for entry in entries}
        self._files = {entry.path: FileRead() for entry in entries if _is_text(entry.path)}
        self._parts: dict[str, list[tuple[int, int]]] = {}
        self.is_blind = False
        """Whether something may have been read that cannot be told."""

    def take_calls(self, deadline_s: float) -> bool:
        """Take calls until the program has ended, or has had its time; return whether it ended."""
        poll = select.poll()
        listener = self._listener.descriptor
        poll.register(listener, select.POLLIN)
        poll.register(self._tree.pidfd, select.POLLIN)
        while self._early:
            self._take(self._early.pop(0))
        while (left_s := deadline_s - time.monotonic()) > 0:
            ready = dict(poll.poll(left_s * 1000))
            if ready.get(listener, 0) & select.POLLIN:
                if (call := self._listener.receive()) is not None:
                    self._take(call)
            elif ready:
                return True
        return False

    def _take(self, call: Notification) -> None:
        try:
            if call.machine != AUDIT_ARCH[MACHINE] or call.number > NUMBER_MAX:
                self.is_blind = True
            else:
                _DECODERS[call.number](self, call)
        except Unreadable:
            self.is_blind = True
        except (Failing, OSError):  # it is going to fail, or its caller was killed
            pass
        self._listener.let_pass(call)

    def reads(self) -> WatchedReads:
        """Return what was asked so far."""
        parts = {path: FileRead(parts=_joined(ranges)) for path, ranges in self._parts.items()}
        return WatchedReads({path: read | parts.get(path, FileRead()) for path, read in self._files.items()})

    # Files

    def _opened_file(self, thread: int, descriptor: int) -> tuple[str, os.stat_result]:
        """Return the path of an open file, empty for one that was not there, and its status."""
        status = self.memory.status(thread, descriptor)
        return self._paths.get(self.folder.node(status), ""), status

    def _note(self, path: str, read: FileRead) -> None:
        if path in self._files:
            self._files[path] |= read

    def _note_part(self, path: str, status: os.stat_result, start: int, length: int) -> None:
        if path in self._files and length:
            end = END if start + length >= status.st_size else start + length
            parts = self._parts.setdefault(path, [])
            parts.append((start, end))
            if len(parts) > _PARTS_MAX:
                parts[:] = _joined(parts)

    def _ask(self, call: Notification, folder: int, address: int, read: FileRead) -> None:
        """Note what is asked of the file that a path leads to."""
        place, status = self._look(call, folder, address)
        if place.is_inside and status is not None:
            self._note(self._paths.get(self.folder.node(status), place.path), read)

    # Calls

    def read(self, call: Notification) -> None:
        """Read, or map, a part of an open file: descriptor, buffer, length, and perhaps offset."""
        path, status = self._opened_file(call.thread, descriptor_in(call.arguments[0]))
        if not path:
            return
        _, address, count, offset, *_ = call.arguments
        name = _NAMES[call.number]
        if name in {"readv", "preadv", "preadv2"}:
            count = sum(length for _, length in self.memory.vectors(call.thread, address, min(count, 1024)))
        if name in {"read", "readv"} or signed_word(offset) < 0:
            offset = open_file(call.thread, descriptor_in(call.arguments[0])).position
        self._note_part(path, status, offset, count)

    def mmap(self, call: Notification) -> None:
        """Map a part of an open file."""
        _, length, _, _, descriptor, offset = call.arguments
        path, status = self._opened_file(call.thread, descriptor_in(descriptor))
        self._note_part(path, status, offset, length)

    def copy(self, call: Notification) -> None:
        """Copy from an open file by the kernel."""
        place = 1 if _NAMES[call.number] == "sendfile" else 0
        path, _ = self._opened_file(call.thread, descriptor_in(call.arguments[place]))
        self._note(path, WHOLE)

    def open(self, call: Notification) -> None:
        """Open a file, or ask whether it may be opened."""
        folder, address = (AT_FDCWD, call.arguments[0]) if _NAMES[call.number] in _SHORT else call.arguments[:2]
        self._ask(call, folder, address, FileRead(is_opened=True))

    def status(self, call: Notification) -> None:
        """Ask for the status of a file by its name."""
        name = _NAMES[call.number]
        folder, address = (AT_FDCWD, call.arguments[0]) if name in _SHORT else call.arguments[:2]
        flags = call.arguments[{"newfstatat": 3, "statx": 2}.get(name, 0)] if name not in _SHORT else 0
        if flags & _AT_EMPTY_PATH and not (address and self.memory.text(call.thread, address)):
            return  # it is fstat
        self._ask(call, folder, address, FileRead(is_opened=True, is_sized=True))

    def list(self, call: Notification) -> None:
        """List a folder."""
        absolute = path_of(call.thread, descriptor_in(call.arguments[0]))
        place = self.folder.look(absolute)[0]
        if place.is_inside:
            for path in self._files:
                if path.rpartition("/")[0] == place.path:
                    self._note(path, FileRead(is_listed=True))

    def execute(self, call: Notification) -> None:
        """Run a file of the folder."""
        folder, address = (AT_FDCWD, call.arguments[0]) if _NAMES[call.number] in _SHORT else call.arguments[:2]
        self._ask(call, folder, address, WHOLE)

    def unseen(self, _: Notification) -> None:
        """Begin with reads that no filter sees."""
        self.is_blind = True


def _is_text(path: str) -> bool:
    """Whether a path can be written as JSON; any other file counts as read."""
    return path.isprintable() or not any("\udc80" <= character <= "\udcff" for character in path)


_SHORT: Final = frozenset({"open", "stat", "lstat", "access", "execve"})
"""Calls whose first argument is a path."""
_READING: Final[tuple[tuple[str, int | None, int | None, Callable[[_Looks, Notification], None]], ...]] = (
    ("read", 0, 63, _Looks.read),
    ("pread64", 17, 67, _Looks.read),
    ("readv", 19, 65, _Looks.read),
    ("preadv", 295, 69, _Looks.read),
    ("preadv2", 327, 286, _Looks.read),
    ("mmap", 9, 222, _Looks.mmap),
    ("sendfile", 40, 71, _Looks.copy),
    ("splice", 275, 76, _Looks.copy),
    ("copy_file_range", 326, 285, _Looks.copy),
    ("open", 2, None, _Looks.open),
    ("openat", 257, 56, _Looks.open),
    ("openat2", 437, 437, _Looks.open),
    ("access", 21, None, _Looks.open),
    ("faccessat", 269, 48, _Looks.open),
    ("faccessat2", 439, 439, _Looks.open),
    ("stat", 4, None, _Looks.status),
    ("lstat", 6, None, _Looks.status),
    ("newfstatat", 262, 79, _Looks.status),
    ("statx", 332, 291, _Looks.status),
    ("getdents", 78, None, _Looks.list),
    ("getdents64", 217, 61, _Looks.list),
    ("execve", 59, 221, _Looks.execute),
    ("execveat", 322, 281, _Looks.execute),
    ("io_uring_setup", 425, 425, _Looks.unseen),
)
"""Each call that looks, with its number on x86_64 and on aarch64."""


def _numbers(x86_64: int | None, aarch64: int | None) -> dict[str, int]:
    given = {"x86_64": x86_64, "aarch64": aarch64}
    return {machine: number for machine, number in given.items() if number is not None}


TRAPS: Final = {
    name: Trap(_numbers(x86_64, aarch64), no_bit(3, _MAP_ANONYMOUS) if name == "mmap" else ALWAYS)
    for name, x86_64, aarch64, _ in _READING
}
"""The calls that are trapped, by their names."""
_NAMES: Final = {trap.numbers[MACHINE]: name for name, trap in TRAPS.items() if MACHINE in trap.numbers}
_DECODERS: Final = {
    number: decode for name, *_, decode in _READING if (number := TRAPS[name].numbers.get(MACHINE)) is not None
}
