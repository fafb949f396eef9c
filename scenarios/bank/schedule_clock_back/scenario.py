"""Three minutes, a jump of twelve hours back, and ten minutes more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import Finding

if TYPE_CHECKING:
    from pytest_chaos import Run

PROGRAM = Path(__file__).with_name("program.py")


@pytest.mark.chaos(id="bank-schedule-clock-back", title="A job runs each minute, whatever the clock does")
@pytest.mark.parametrize("form", ["reported", "mended"])
def test_entry(chaos: Run, form: str) -> None:
    """Jobs run before and after the clock is set back."""
    chaos.spawn(f"{PROGRAM}:serve", kwargs={"is_mended": form == "mended"}, name="loop").wait_exit(timeout_s=60)
    notes = [mark.operation for mark in chaos.history.marks]
    jump = notes.index("set back")
    before, after = notes[:jump].count("ran"), notes[jump:].count("ran")
    chaos.expect("jobs run before the jump", observed=before, holds=before > 0)
    text = f"{before} jobs ran in 3 minutes, and none in the 10 minutes after the clock was set back"
    found = [] if after else [Finding(signature="job-silent", text=text, kind="liveness")]
    chaos.check(found, expect=f"jobs run after the jump: {after}")
