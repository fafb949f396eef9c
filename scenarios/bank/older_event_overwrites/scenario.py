"""The first of two events is delivered behind the second."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, at_delivery, deliver

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-older-event-overwrites", title="The newest event decides")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The seller has the state of the newest event."""
    chaos.plan(deliver("proxy", "reorder", at_delivery(1), status=202, behind=1, hold_s=60))
    receiver = chaos.spawn(f"{PROGRAM}:serve", kwargs={"is_mended": form == "mended"}, name="receiver")
    (ready,) = receiver.wait_for("listening", kind="note", timeout_s=60)
    proxy = chaos.proxy(f"http://127.0.0.1:{ready.value}")
    chaos.spawn(f"{PROGRAM}:tell", kwargs={"url": proxy.url}, name="sender").wait_exit(timeout_s=60)
    handled = receiver.wait_for("handled", kind="note", count=2, timeout_s=60)
    proxy.wait_for_deliveries(2, timeout_s=60)
    order = [str(mark.key) for mark in handled]

    with closing(sqlite3.connect(chaos.directory / "sellers.db")) as database:
        (state,) = database.execute("SELECT state FROM sellers").fetchone()
    text = f"the events came as {' and '.join(order)}, and the seller is {state}"
    found = [Finding(signature="older-state-wins", text=text)] if state != "VERIFIED" else []
    chaos.check(found, expect=f"the seller is verified: {state}")
    chaos.expect("the events came in the other order", observed=order, holds=order == ["VERIFIED", "REQUIRED"])
