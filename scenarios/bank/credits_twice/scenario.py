"""The second of three events is delivered twice."""

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
PAYMENTS = 3
CREDITS = 10


@pytest.mark.chaos(id="bank-credits-twice", title="A payment is credited once")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The credits are those of the payments, however often an event is told."""
    chaos.plan(deliver("proxy", "duplicate", at_delivery(2), copies=2))
    receiver = chaos.spawn(f"{PROGRAM}:serve", kwargs={"is_mended": form == "mended"}, name="receiver")
    (ready,) = receiver.wait_for("listening", kind="note", timeout_s=60)
    proxy = chaos.proxy(f"http://127.0.0.1:{ready.value}")
    sender = chaos.spawn(f"{PROGRAM}:pay", kwargs={"url": proxy.url, "payments": PAYMENTS}, name="sender")
    sender.wait_exit(timeout_s=60)
    receiver.wait_for("handled", kind="note", count=PAYMENTS + 1, timeout_s=60)
    proxy.wait_for_deliveries(PAYMENTS, timeout_s=60)

    with closing(sqlite3.connect(chaos.directory / "accounts.db")) as database:
        (credits_found,) = database.execute("SELECT credits FROM accounts WHERE name = 'ada'").fetchone()
    paid = len(list(chaos.history.acknowledged("pay"))) * CREDITS
    text = f"{paid} credits were paid for, and the account has {credits_found}"
    found = [Finding(signature="credited-twice", text=text)] if credits_found > paid else []
    chaos.check(found, expect="no payment is credited twice")
    chaos.expect("no payment is missing", observed=credits_found, holds=credits_found >= paid)
