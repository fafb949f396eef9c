"""One process is stopped before it commits; another one writes, or has to wait."""

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


@pytest.mark.chaos(id="bank-lock-cancelled-by-close", title="What is committed stays")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The messages that were acknowledged are there."""
    chaos.plan(
        pause("first", after_mark("looked", kind="note")),
        resume("first", after_mark("settled", kind="note", agent="second")),
    )
    chaos.spawn(f"{PROGRAM}:make", name="maker").wait_exit(timeout_s=60)
    first = chaos.spawn(f"{PROGRAM}:save", kwargs={"is_mended": form == "mended"}, name="first", may_fail=True)
    first.wait_for("looked", kind="note", timeout_s=60)
    chaos.wait_until(lambda: len(chaos.receipts) == 1, timeout_s=60, what="the pause")
    second = chaos.spawn(f"{PROGRAM}:save_too", name="second")
    for agent in (first, second):
        agent.wait_exit(timeout_s=90)

    acknowledged = {str(mark.key) for mark in chaos.history.acknowledged("save")}
    with closing(sqlite3.connect(chaos.directory / "state.db")) as database:
        found = {author for (author,) in database.execute("SELECT author FROM messages")}
        (health,) = database.execute("PRAGMA integrity_check").fetchone()
    lost = sorted(acknowledged - found)
    text = f"committed, acknowledged, and gone: {lost}; integrity_check says {health}"
    findings = [Finding(signature="committed-lost", text=text)] if lost or health != "ok" else []
    chaos.check(findings, expect=f"all acknowledged messages are there: {sorted(acknowledged)}")
