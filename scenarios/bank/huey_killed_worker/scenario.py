"""A worker is killed within its second task; the next one does what is left."""

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


@pytest.mark.chaos(id="bank-huey-killed-worker", title="A task whose worker is killed is done")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """Each enqueued task is done by the next worker."""
    chaos.plan(kill("worker", after_mark("begun", kind="note", count=2)))
    options = {"is_mended": form == "mended"}
    chaos.spawn(f"{PROGRAM}:send", kwargs=options, name="sender").wait_exit(timeout_s=60)
    chaos.spawn(f"{PROGRAM}:work", kwargs=options, name="worker").wait_exit(timeout_s=60)
    chaos.spawn(f"{PROGRAM}:work", kwargs=options, name="next").wait_exit(timeout_s=60)

    enqueued = {int(mark.key or 0) for mark in chaos.history.acknowledged("enqueue")}
    with closing(sqlite3.connect(chaos.directory / "shop.db")) as database:
        done = {number for (number,) in database.execute("SELECT number FROM done")}
    lost = sorted(enqueued - done)
    found = [Finding(signature="task-lost", text=f"enqueued and never done: {lost}")] if lost else []
    chaos.check(found, expect=f"all of {len(enqueued)} enqueued tasks are done")
