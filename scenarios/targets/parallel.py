"""Habits of programs with several threads or processes, each beside what mends it.

The order of their steps differs from run to run, so each is explored in several schedules.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from pytest_chaos import Finding

from scenarios.targets.databases import LOST
from scenarios.targets.habits import ROUNDS, Habit, put, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

WRITERS: Final = ("a", "b")


def in_threads(work: Callable[[str], None]) -> None:
    """Let each writer work in a thread of its own, and wait for both."""
    threads = [threading.Thread(target=work, args=(writer,)) for writer in WRITERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Concurrent(Habit):
    """Two writers save numbers; what a writer acknowledged has to be there."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find what was acknowledged and is not there."""
        kept = self.kept(directory)
        for mark in marks:
            if mark.kind == "ack" and str(mark.key) not in kept:
                yield Finding(signature=LOST, text=f"{mark.key} was acknowledged, and is not there")

    def kept(self, directory: Path) -> set[str]:
        """Return what is there, by the keys of the acknowledgements."""
        raise NotImplementedError


class TwoLogs(Concurrent):
    """Two threads that append to a log each, and acknowledge before the log is synced."""

    title = "two threads, a log each, not synced"

    def setup(self, directory: Path) -> None:
        """Make both logs, empty."""
        for writer in WRITERS:
            put(directory / writer, b"")
        sync_folder(directory)

    def run(self, directory: Path, marks: Marks) -> None:
        """Append in two threads."""

        def append(writer: str) -> None:
            with (directory / writer).open("ab", buffering=0) as log:
                for number in range(ROUNDS):
                    line = f"{writer}{number}\n".encode()
                    while line:  # a write may be short
                        line = line[log.write(line) :]
                    if self.is_mended:
                        os.fsync(log.fileno())
                    marks.ack("append", f"{writer}{number}")

        in_threads(append)

    def kept(self, directory: Path) -> set[str]:
        """Return the lines of both logs."""
        return {line for writer in WRITERS for line in (directory / writer).read_text(errors="replace").split("\n")}


class OneSet(Concurrent):
    """Two threads that read a set, add to it and replace it: both may have read the same.

    The mended one holds a lock meanwhile.
    """

    title = "check, then act, in two threads"

    def setup(self, directory: Path) -> None:
        """Make an empty set."""
        put(directory / "set", b"")
        sync_folder(directory)

    def run(self, directory: Path, marks: Marks) -> None:
        """Add in two threads."""
        guard = threading.Lock() if self.is_mended else nullcontext()

        def add(writer: str) -> None:
            for number in range(2):
                with guard:
                    fresh = directory / f"set.{writer}"
                    put(fresh, (directory / "set").read_bytes() + f"{writer}{number}\n".encode())
                    fresh.rename(directory / "set")
                    sync_folder(directory)
                marks.ack("add", f"{writer}{number}")

        in_threads(add)

    def kept(self, directory: Path) -> set[str]:
        """Return the lines of the set."""
        return set((directory / "set").read_text(errors="replace").split("\n"))


class Pool(Concurrent):
    """Two processes of a pool make files, their parent acknowledges; the folder is not synced."""

    title = "a pool of processes, the folder not synced"

    def run(self, directory: Path, marks: Marks) -> None:
        """Have the files made."""
        with multiprocessing.get_context("fork").Pool(2) as pool:
            for number in pool.imap_unordered(_Maker(directory, is_mended=self.is_mended), range(ROUNDS)):
                marks.ack("make", str(number))

    def kept(self, directory: Path) -> set[str]:
        """Return the numbers of the files that are whole."""
        return {path.name for path in directory.iterdir() if path.read_bytes() == path.name.encode()}


class _Maker:
    """Makes one file; processes of a pool get it by pickling."""

    def __init__(self, directory: Path, *, is_mended: bool) -> None:
        self._directory = directory
        self._is_mended = is_mended

    def __call__(self, number: int) -> int:
        """Make the file of a number, and return the number."""
        put(self._directory / str(number), str(number).encode())
        if self._is_mended:
            sync_folder(self._directory)
        return number
