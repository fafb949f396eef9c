"""The starver: a process that lets an agent run for a share of the time, as on a busy machine.

The agent, with all its threads, is stopped and continued in turn (SIGSTOP, SIGCONT). It is never
left stopped: the last thing that the starver does is to let it go on.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.runtime import processes

if TYPE_CHECKING:
    from pytest_chaos import Marks

STARVED: Final = "starver.starved"
PERIOD_S: Final = 0.05
"""Of one stop and one run together: longer than the kernel's turns, shorter than a lease."""
_FIELDS_TO_TIME: Final = 11
"""The fields of /proc/PID/stat from the state to the time in user mode."""


def starve(marks: Marks, pid: int, start_ticks: int, share: float, duration_s: float) -> None:
    """Stop an agent again and again for ``duration_s`` seconds; note how often it stood."""
    begin_s, used_s = time.monotonic(), _processor_s(pid)
    stood, stood_s = 0, 0.0
    try:
        while time.monotonic() < begin_s + duration_s and processes.send(pid, start_ticks, signal.SIGSTOP):
            stop_s = time.monotonic()
            time.sleep(PERIOD_S * (1 - share))
            process = processes.read(pid)
            stood += process is not None and process.state in "Tt"
            processes.send(pid, start_ticks, signal.SIGCONT)
            stood_s += time.monotonic() - stop_s
            time.sleep(PERIOD_S * share)
    finally:
        processes.send(pid, start_ticks, signal.SIGCONT)
    if not stood or not processes.is_running(pid, start_ticks):
        msg = "the agent ended before it was starved for the whole time"
        raise SystemExit(msg)
    whole_s, used_s = time.monotonic() - begin_s, _processor_s(pid) - used_s
    text = f"it was seen stopped {stood} times, {stood_s:.2f} of {whole_s:.2f} s, and used {used_s:.2f} s of processor"
    marks.note(STARVED, value=text)


def _processor_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system = fields[_FIELDS_TO_TIME : _FIELDS_TO_TIME + 2]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
