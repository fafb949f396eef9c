"""A store of pages, each in a file, that syncs a page before it acknowledges it.

The target notes each write and each fsync that failed, as a trace of system calls would.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

PAGES = 2
TRIES = 3


class Reported:
    """Calls fsync again."""

    name = "pages, fsync called again"

    def run(self, directory: Path, marks: Marks) -> None:
        """Put the pages."""
        for number in range(1, PAGES + 1):
            marks.intent("put", number)
            self.put(directory, number, marks)
            marks.ack("put", number)

    def put(self, directory: Path, number: int, marks: Marks) -> None:
        """Write the page once, and sync it until that succeeds."""
        descriptor = self.write(directory / f"page-{number}", number, marks)
        try:
            for attempt in range(TRIES):
                if self.is_synced(descriptor, number, marks, is_last=attempt == TRIES - 1):
                    return
        finally:
            os.close(descriptor)

    def write(self, path: Path, number: int, marks: Marks) -> int:
        """Write a page to a new file; return its descriptor."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        content = b"page %d " % number * 500
        while content:
            content = content[os.write(descriptor, content) :]
        marks.note("written", number)
        return descriptor

    def is_synced(self, descriptor: int, number: int, marks: Marks, *, is_last: bool) -> bool:
        """Return whether fsync succeeds; the last error is the caller's."""
        try:
            os.fsync(descriptor)
        except OSError:
            marks.note("fsync-failed", number)
            if is_last:
                raise
            return False
        return True

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find pages that were acknowledged, and not written again after an fsync that failed."""
        lost: set[int] = set()
        for mark in marks:
            number = int(mark.key or 0)
            if mark.operation == "fsync-failed":
                lost.add(number)
            elif mark.operation == "written":
                lost.discard(number)
            elif mark.kind == "ack" and number in lost:
                text = f"page {number} was acknowledged: its fsync had failed, and it was not written again"
                yield Finding(signature="acknowledged-unsynced", text=text)


class Mended(Reported):
    """Writes the page again, to another file."""

    name = "pages, written again"

    def put(self, directory: Path, number: int, marks: Marks) -> None:
        """Write and sync a file; one whose fsync fails is given up for a new one."""
        for attempt in range(TRIES):
            path = directory / f"page-{number}.{attempt}"
            descriptor = self.write(path, number, marks)
            try:
                if self.is_synced(descriptor, number, marks, is_last=attempt == TRIES - 1):
                    path.rename(directory / f"page-{number}")
                    return
            finally:
                os.close(descriptor)
            path.unlink()
