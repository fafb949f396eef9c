"""The agent is killed while its server serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, kill

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-orphaned-server", title="A tool server ends with its agent")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The server ends, and does not go on for turn after turn."""
    chaos.plan(kill("agent", after_mark("working", kind="note")))
    chaos.spawn(f"{PROGRAM}:agent", kwargs={"is_mended": form == "mended"}, name="agent").wait_exit(timeout_s=60)

    def said(operation: str) -> bool:
        return any(mark.operation == operation for mark in chaos.history.marks)

    chaos.wait_until(lambda: said("ended") or said("still serving"), timeout_s=60, what="a word of the server")
    text = "the agent is dead, and its server still serves, 20 turns later"
    found = [Finding(signature="server-orphaned", text=text, kind="liveness")] if said("still serving") else []
    chaos.check(found, expect="the server ends with its agent")
