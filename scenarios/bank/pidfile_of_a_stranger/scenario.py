"""The daemon is killed; a new worker has its number; the daemon starts again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, kill

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")
LONG_AGO_S = 3600.0
"""The file is an hour old: what began since is not what wrote it, whatever the clocks round."""


@pytest.mark.chaos(id="bank-pidfile-of-a-stranger", title="A start kills no stranger")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The worker lives after the daemon has started again."""
    chaos.plan(kill("daemon", after_mark("serving", kind="note")))
    options = {"is_mended": form == "mended"}
    chaos.spawn(f"{PROGRAM}:start", kwargs=options, name="daemon").wait_exit(timeout_s=60)
    worker = chaos.spawn(f"{PROGRAM}:work", name="worker", may_fail=True)
    worker.wait_for("working", kind="note", timeout_s=60)
    file = chaos.directory / "daemon.pid"
    file.write_text(str(worker.pid))
    written_s = file.stat().st_mtime - LONG_AGO_S
    os.utime(file, (written_s, written_s))
    again = chaos.spawn(f"{PROGRAM}:start", kwargs=options, name="again")
    again.wait_for("serving", kind="note", timeout_s=60)

    killed = [mark.key for mark in chaos.history.marks if mark.operation == "killed"]
    text = f"the start has killed process {worker.pid}, which the daemon of before has never been"
    found = [Finding(signature="stranger-killed", text=text)] if worker.pid in killed else []
    chaos.check(found, expect="the worker lives")
