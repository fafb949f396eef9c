"""A daemon with a pid file, which ends what an earlier run has left."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

FILE = Path("daemon.pid")
NAME = b"python"
"""A part of the command line that each of the daemon's processes has."""


def start(marks: Marks, *, is_mended: bool) -> None:
    """End the process of the pid file if it looks like one of ours; then serve."""
    if FILE.exists():
        number = int(FILE.read_text())
        if is_ours(number) and (not is_mended or began_s(number) < FILE.stat().st_mtime):
            os.kill(number, signal.SIGKILL)
            marks.note("killed", number)
        FILE.unlink()
    FILE.write_text(str(os.getpid()))
    marks.note("serving")
    signal.pause()


def work(marks: Marks) -> None:
    """Be a worker that the service manager has started in the meantime."""
    marks.note("working")
    signal.pause()


def is_ours(number: int) -> bool:
    """Whether a living process has the daemon's name in its command line."""
    with contextlib.suppress(OSError):
        return NAME in Path(f"/proc/{number}/cmdline").read_bytes()
    return False


def began_s(number: int) -> float:
    """Return when a process began, in seconds since 1970."""
    ticks = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])
    booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
