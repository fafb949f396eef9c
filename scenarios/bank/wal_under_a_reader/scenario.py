"""A scan is stopped while it hashes a batch; a writer goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, pause

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")
WAL_BYTES_MAX = 1 << 20
"""More than twice what the pages between two checkpoints take."""


@pytest.mark.chaos(id="bank-wal-under-a-reader", title="The write-ahead log stays small")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The log has at most a megabyte when the writer has made its commits."""
    chaos.plan(pause("scan", after_mark("hashing", kind="note")))
    chaos.spawn(f"{PROGRAM}:make", name="maker").wait_exit(timeout_s=60)
    chaos.spawn(f"{PROGRAM}:scan", kwargs={"is_mended": form == "mended"}, name="scan")
    chaos.wait_for_faults(timeout_s=60)
    writer = chaos.spawn(f"{PROGRAM}:write", name="writer")
    sizes: list[int] = []
    log = chaos.directory / "files.db-wal"

    def is_done() -> bool:
        sizes.append(log.stat().st_size if log.exists() else 0)
        return not writer.running

    chaos.wait_until(is_done, timeout_s=60, what="the end of the writer")
    largest = max(sizes)
    text = f"the log grew to {largest:,} bytes under a reader that was stopped within its transaction"
    found = [Finding(signature="wal-unbounded", text=text)] if largest > WAL_BYTES_MAX else []
    chaos.check(found, expect=f"the log stays below {WAL_BYTES_MAX:,} bytes: {largest:,}")
