"""The one webhook is delivered twice at the same moment."""

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
REFUND = 25


@pytest.mark.chaos(id="bank-refunded-at-once", title="A refund is booked once")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The customer has the refund once."""
    chaos.plan(deliver("proxy", "duplicate", at_delivery(1), copies=2, at_once=True))
    receiver = chaos.spawn(f"{PROGRAM}:serve", kwargs={"is_mended": form == "mended"}, name="receiver")
    (ready,) = receiver.wait_for("listening", kind="note", timeout_s=60)
    proxy = chaos.proxy(f"http://127.0.0.1:{ready.value}")
    chaos.spawn(f"{PROGRAM}:tell", kwargs={"url": proxy.url}, name="sender").wait_exit(timeout_s=90)
    receiver.wait_for("handled", kind="note", count=2, timeout_s=60)
    proxy.wait_for_deliveries(1, timeout_s=60)

    with closing(sqlite3.connect(chaos.directory / "orders.db")) as database:
        (balance,) = database.execute("SELECT balance FROM customers").fetchone()
    text = f"a refund of {REFUND} was booked as {balance}"
    found = [Finding(signature="refunded-twice", text=text)] if balance > REFUND else []
    chaos.check(found, expect=f"the refund is booked once: {balance}")
    chaos.expect("the refund is booked", observed=balance, holds=balance >= REFUND)
