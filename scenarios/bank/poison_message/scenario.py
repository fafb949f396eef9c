"""A supervisor starts the worker again whenever it is killed, six times at most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")
STARTS = 6
"""Twice as many as a message has tries."""


@pytest.mark.chaos(id="bank-poison-message", title="A poison message goes to the dead letters")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The message behind the poison is handled."""
    chaos.spawn(f"{PROGRAM}:make", name="maker").wait_exit(timeout_s=60)
    for number in range(1, STARTS + 1):
        kwargs = {"is_mended": form == "mended"}
        worker = chaos.spawn(f"{PROGRAM}:work", kwargs=kwargs, name=f"worker-{number}", may_fail=True)
        worker.wait_exit(timeout_s=60)

    delivered = [mark.key for mark in chaos.history.marks if mark.operation == "delivered"]
    handled = [mark.key for mark in chaos.history.acknowledged("handle")]
    text = f"the poison was delivered {delivered.count(1)} times in {STARTS} starts; the message behind it, never"
    found = [] if 2 in handled else [Finding(signature="poison-blocks", text=text, kind="liveness")]
    chaos.check(found, expect=f"the message behind the poison is handled: {handled}")
    chaos.expect("the poison was delivered", observed=delivered.count(1), holds=delivered.count(1) >= 1)
