"""The crowder: processes that spin on the one processor that an agent may use for a while.

The agent, with all its threads, is bound to one processor (sched_setaffinity), and so are the
processes that spin. How long it was ready and did not run is the scheduler's own word:
/proc/PID/task/*/schedstat. Afterwards it may use the processors that it could use before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pytest_chaos.runtime import processes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_chaos import Marks

CROWDED: Final = "crowder.crowded"
SPINNERS_MAX: Final = 64
_LOOK_S: Final = 0.005
_WAITED_NS_MIN: Final = 10_000_000
"""An agent that waited so long for its processor has felt the crowd: some turns of the kernel."""


def crowd(marks: Marks, pid: int, start_ticks: int, spinners: int, duration_s: float) -> None:
    """Spin beside an agent for ``duration_s`` seconds; note how long it waited for its turn."""
    children: list[int] = []
    before: dict[int, set[int]] = {}
    try:
        before = _bound(pid, start_ticks)
        if not before:
            msg = "the agent ended before it was crowded"
            raise SystemExit(msg)
        place = min(before[pid])
        for _ in range(spinners):
            child = os.fork()
            if child == 0:
                _spin(place)
            children.append(child)
        _watch(marks, pid, start_ticks, f"processor {place}, beside {spinners} that spin", duration_s)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        _unbind(pid, start_ticks, before)


def _bound(pid: int, start_ticks: int) -> dict[int, set[int]]:
    """Bind the threads of a process to its first processor; return those that each could use."""
    before: dict[int, set[int]] = {}
    with contextlib.suppress(OSError):
        for thread in [pid, *map(int, os.listdir(f"/proc/{pid}/task"))]:
            if processes.is_running(pid, start_ticks):
                before.setdefault(thread, os.sched_getaffinity(thread))
                os.sched_setaffinity(thread, {min(before[pid])})
    return before


def _unbind(pid: int, start_ticks: int, before: Mapping[int, set[int]]) -> None:
    """Let the threads use their processors again, and those that have come since, the process's."""
    threads: list[int] = []
    with contextlib.suppress(OSError):
        threads = list(map(int, os.listdir(f"/proc/{pid}/task")))
    for thread in threads if before and processes.is_running(pid, start_ticks) else ():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(thread, before.get(thread, before[pid]))


def _spin(place: int) -> NoReturn:
    processes.die_with_parent()
    os.sched_setaffinity(0, {place})
    while True:
        pass


def _watch(marks: Marks, pid: int, start_ticks: int, where: str, duration_s: float) -> None:
    began_s, began_ns, is_felt = time.monotonic(), _waited_ns(pid), False
    while time.monotonic() < began_s + duration_s and processes.is_running(pid, start_ticks):
        time.sleep(_LOOK_S)  # being in the way is the fault
        waited_ns = _waited_ns(pid) - began_ns
        if waited_ns > _WAITED_NS_MIN and not is_felt:
            is_felt = True
            whole_ms = (time.monotonic() - began_s) * 1000
            text = f"it was ready and did not run for {waited_ns / 1e6:.0f} of {whole_ms:.0f} ms (schedstat) at {where}"
            marks.note(CROWDED, value=text)


def _waited_ns(pid: int) -> int:
    """Return how long the threads of a process were ready and did not run, in nanoseconds."""
    total = 0
    with contextlib.suppress(OSError, IndexError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1])
    return total
