"""The first worker stands still within its task until the second one has done it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, pause, resume

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-lease-shorter-than-work", title="A task has its effect once")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """One mail is sent for one task."""
    chaos.plan(
        pause("first", after_mark("begun", kind="note")),
        resume("first", after_mark("work", kind="ack", agent="second")),
    )
    chaos.spawn(f"{PROGRAM}:make", name="maker").wait_exit(timeout_s=60)
    kwargs = {"is_mended": form == "mended"}
    first = chaos.spawn(f"{PROGRAM}:work", kwargs={"worker": "first", **kwargs}, name="first")
    chaos.wait_until(lambda: len(chaos.receipts) == 1, timeout_s=60, what="the pause")
    second = chaos.spawn(f"{PROGRAM}:work", kwargs={"worker": "second", **kwargs}, name="second")
    for agent in (second, first):
        agent.wait_exit(timeout_s=60)

    with closing(sqlite3.connect(chaos.directory / "queue.db")) as database:
        senders = [worker for (worker,) in database.execute("SELECT worker FROM mails")]
    text = f"the mail of one task was sent by {' and by '.join(senders)}"
    found = [Finding(signature="done-twice", text=text)] if len(senders) > 1 else []
    chaos.check(found, expect=f"one mail is sent: {senders}")
    chaos.expect("a mail is sent", observed=senders, holds=bool(senders))
