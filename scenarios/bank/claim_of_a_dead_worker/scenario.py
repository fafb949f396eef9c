"""A worker is killed within its job; the next ones start six minutes later, and later again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, kill

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-claim-of-a-dead-worker", title="A tracker comes to an end")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The tracker of a job does not say Processing when no worker will ever do it."""
    chaos.plan(kill("worker", after_mark("begun", kind="note")))
    chaos.spawn(f"{PROGRAM}:make", name="maker").wait_exit(timeout_s=60)
    for name, now_s in (("worker", 1000), ("next", 1360), ("last", 1720)):
        kwargs = {"now_s": now_s, "is_mended": form == "mended"}
        chaos.spawn(f"{PROGRAM}:work", kwargs=kwargs, name=name).wait_exit(timeout_s=60)

    with closing(sqlite3.connect(chaos.directory / "jobs.db")) as database:
        (state,) = database.execute("SELECT state FROM jobs").fetchone()
        (shown,) = database.execute("SELECT shown FROM trackers").fetchone()
    text = f"the tracker shows {shown}, and the job is {state}"
    found = [Finding(signature="tracker-stuck", text=text)] if shown == "Processing" else []
    chaos.check(found, expect=f"the tracker comes to an end: {shown}")
