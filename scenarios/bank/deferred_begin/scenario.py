"""One process is stopped between its read and its write; another one writes, or has to wait."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, pause, resume

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-deferred-begin", title="A writer waits for its busy timeout")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """Both processes save; neither is refused at once."""
    chaos.plan(
        pause("first", after_mark("read", kind="note")),
        resume("first", after_mark("settled", kind="note", agent="second")),
    )
    chaos.spawn(f"{PROGRAM}:make", name="maker").wait_exit(timeout_s=60)
    kwargs = {"author": "first", "is_mended": form == "mended"}
    first = chaos.spawn(f"{PROGRAM}:save", kwargs=kwargs, name="first")
    first.wait_for("read", kind="note", timeout_s=60)
    chaos.wait_until(lambda: len(chaos.receipts) == 1, timeout_s=60, what="the pause")
    second = chaos.spawn(f"{PROGRAM}:save_too", name="second")
    for agent in (first, second):
        agent.wait_exit(timeout_s=90)

    refused = [mark for mark in chaos.history.marks if mark.operation == "refused"]
    found = [Finding(signature="locked-at-once", text=f"{mark.key} is told: {mark.value}") for mark in refused]
    saved = [mark.key for mark in chaos.history.acknowledged("save")]
    chaos.check(found, expect=f"both have saved: {saved}")
