"""The process is killed as it saves the checkpoint of the second node; another one resumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding, after_mark, kill

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-langgraph-runs-twice", title="A finished node does not run again")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """Each of three nodes has its effect once."""
    chaos.plan(kill("first", after_mark("saving", kind="note")))
    kwargs = {"is_mended": form == "mended"}
    chaos.spawn(f"{PROGRAM}:run", kwargs={"is_resumed": False, **kwargs}, name="first").wait_exit(timeout_s=90)
    chaos.spawn(f"{PROGRAM}:run", kwargs={"is_resumed": True, **kwargs}, name="next").wait_exit(timeout_s=90)

    effects = [mark.key for mark in chaos.history.marks if mark.operation == "effect"]
    twice = sorted({str(key) for key in effects if effects.count(key) > 1})
    text = f"the effects were {effects}: node {', '.join(twice)} ran twice"
    found = [Finding(signature="node-ran-twice", text=text)] if twice else []
    chaos.check(found, expect=f"each node ran once: {effects}")
    ended = [mark.value for mark in chaos.history.acknowledged("run")]
    chaos.expect("the graph came to its end", observed=ended, holds=ended == [3])
