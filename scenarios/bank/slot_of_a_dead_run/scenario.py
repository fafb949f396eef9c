"""A run is killed; an hour later the next one wants the slot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, kill

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-slot-of-a-dead-run", title="The slot of a dead run is given to the next one")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """The next run gets the slot, an hour after the first one died."""
    chaos.plan(kill("first", after_mark("begun", kind="note")))
    chaos.spawn(f"{PROGRAM}:make", name="maker").wait_exit(timeout_s=60)
    for name, now_s in (("first", 0), ("second", 3600)):
        kwargs = {"run": name, "now_s": now_s, "is_mended": form == "mended"}
        chaos.spawn(f"{PROGRAM}:execute", kwargs=kwargs, name=name).wait_exit(timeout_s=60)

    ran = [mark.key for mark in chaos.history.acknowledged("run")]
    text = "the slot of the killed run is taken, an hour later, and the next run gives up"
    found = [] if "second" in ran else [Finding(signature="slot-leaked", text=text, kind="liveness")]
    chaos.check(found, expect=f"the second run has run: {ran}")
