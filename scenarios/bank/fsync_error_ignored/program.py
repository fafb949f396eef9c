"""A log of transactions that is synced before a transaction is acknowledged.

The target notes each fsync that failed, as a trace of system calls would: that is how its check
knows what the program was told.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from pytest_chaos import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

TRANSACTIONS = 3


class Reported:
    """Does not look at what fsync returns."""

    name = "log, the result of fsync ignored"

    def run(self, directory: Path, marks: Marks) -> None:
        """Append the transactions."""
        with (directory / "log").open("ab", buffering=0) as log:
            for number in range(1, TRANSACTIONS + 1):
                marks.intent("commit", number)
                log.write(b"transaction %d\n" % number)
                self.sync(log.fileno(), marks, number)
                marks.ack("commit", number)

    def sync(self, descriptor: int, marks: Marks, number: int) -> None:
        """Sync, and go on whatever comes of it."""
        with contextlib.suppress(OSError):
            self.observed(descriptor, marks, number)

    def observed(self, descriptor: int, marks: Marks, number: int) -> None:
        """Sync; the target notes an error before the program sees it."""
        try:
            os.fsync(descriptor)
        except OSError as error:
            marks.note("fsync-failed", number, error.errno)
            raise

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Find what was acknowledged after its fsync had failed."""
        failed = {mark.key for mark in marks if mark.operation == "fsync-failed"}
        acknowledged = {mark.key for mark in marks if mark.kind == "ack"}
        if wrong := sorted(int(key or 0) for key in failed & acknowledged):
            text = f"transaction {wrong[0]} was acknowledged after its fsync had failed"
            yield Finding(signature="acknowledged-unsynced", text=text)


class Mended(Reported):
    """Ends with the error."""

    name = "log, ended by an fsync that failed"

    def sync(self, descriptor: int, marks: Marks, number: int) -> None:
        """Sync, or end."""
        self.observed(descriptor, marks, number)
