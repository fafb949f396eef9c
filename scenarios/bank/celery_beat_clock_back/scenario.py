"""Three minutes, a jump of twelve hours back, and ten minutes more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-celery-beat-clock-back", title="A task is sent each minute, whatever the clock does")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """Tasks are sent before and after the clock is set back."""
    chaos.spawn(f"{PROGRAM}:serve", kwargs={"is_mended": form == "mended"}, name="beat").wait_exit(timeout_s=60)
    notes = [mark.operation for mark in chaos.history.marks]
    jump = notes.index("set back")
    before, after = notes[:jump].count("sent"), notes[jump:].count("sent")
    chaos.expect("tasks are sent before the jump", observed=before, holds=before > 0)
    text = f"{before} tasks were sent in 3 minutes, and none in the 10 minutes after the clock was set back"
    found = [] if after else [Finding(signature="beat-silent", text=text, kind="liveness")]
    chaos.check(found, expect=f"tasks are sent after the jump: {after}")
