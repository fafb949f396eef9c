"""A trial: the clock of a child is moved, and the child's own vDSO asked. For ``chaos doctor``."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from pytest_chaos.clocks import process
from pytest_chaos.clocks.cell import ClockCell


def moved_by_s(by_s: float) -> tuple[float, bool]:
    """Move the clock of a child; return by how many seconds, and whether by the system call.

    Raises ClockNotMoved, or OSError, if that does not work here. Nothing is left of it.
    """
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    page = os.memfd_create("chaos-clock")
    try:
        cell = ClockCell(Path(f"/proc/{os.getpid()}/fd/{page}"))
        process.patch(child.pid, str(cell.path))
        cell.move(cell.motion.jumped(by_s, now_ns=time.time_ns()))
        seen = process.read_clock(child.pid, time.time_ns)
        return (seen.shown_ns - seen.before_ns) / 1e9, process.is_read_by_call(child.pid)
    finally:
        os.close(page)
        child.kill()
        child.communicate()
