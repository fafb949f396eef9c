"""Processes by pid *and* start time: who descends from whom, and how to end exactly those.

A pid alone names nobody: it is reused. Everything here goes by the pair of pid and start time
(clock ticks since boot), and signals go through a pidfd that was checked after it was opened. Reads
``/proc``; Linux only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from ctypes import CDLL

_POLL_S: Final = 0.002
_LINKS_OF_ONE_THREAD: Final = 3
"""Links of ``/proc/self/task`` with one thread: stat(2) is cheaper than listing it."""
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37


class Process(NamedTuple):
    """One process, told apart from a later one with the same pid. ``start_ticks`` counts from boot."""

    pid: int
    start_ticks: int
    parent_pid: int
    state: str
    name: str

    @property
    def alive(self) -> bool:
        """Whether it can still run: a zombie is dead, it only has not been reaped."""
        return self.state not in {"Z", "X"}


def read(pid: int) -> Process | None:
    """Return what ``/proc`` says of a pid, or ``None`` when there is no such process."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    before, _, after = content.rpartition(")")
    fields = after.split()
    return Process(pid, int(fields[19]), int(fields[1]), fields[0], before.partition("(")[2])


def start_ticks() -> int:
    """Return when this process started; nobody else can be sure to read it before a short life is over."""
    descriptor = os.open("/proc/self/stat", os.O_RDONLY)  # a Path costs 20 µs more, which every agent would pay
    try:
        return int(os.read(descriptor, 1024).rpartition(b")")[2].split()[19])
    finally:
        os.close(descriptor)


def is_running(pid: int, start_ticks: int) -> bool:
    """Return whether this very process still runs."""
    process = read(pid)
    return process is not None and process.start_ticks == start_ticks and process.alive


def threads() -> list[int]:
    """Return the ids of this process's threads."""
    if os.stat("/proc/self/task").st_nlink == _LINKS_OF_ONE_THREAD:  # noqa: PTH116 - called for each traced run
        return [os.getpid()]
    return [int(name) for name in os.listdir("/proc/self/task")]


def children() -> list[int]:
    """Return the pids of this process's children, zombies included."""
    found: list[int] = []
    for thread in threads():
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children", "rb") as file:  # noqa: PTH123 - as above
            found += map(int, file.read().split())
    return found


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended, reaped or not."""
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def adopt_orphans(*, adopts: bool = True) -> bool:
    """Make this process the parent of each descendant whose own parent ends (a child subreaper).

    Return whether it was one before, so that it can be undone.
    """
    import ctypes  # see _libc

    before = ctypes.c_int()
    _libc().prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, int(adopts), 0, 0, 0)
    return bool(before.value)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent's thread ends."""
    _libc().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


@functools.cache
def _libc() -> CDLL:
    import ctypes  # costs 3 ms, which the process of pytest need not pay

    return ctypes.CDLL(None)


def descendants(root: int, *, without: Collection[int] = ()) -> list[Process]:
    """Return the live and dead descendants of ``root``, without those in ``without`` (but with their descendants)."""
    children: dict[int, list[Process]] = {}
    for process in _all():
        children.setdefault(process.parent_pid, []).append(process)
    found: list[Process] = []
    waiting = [root]
    while waiting:
        for process in children.get(waiting.pop(), ()):
            if process.pid not in without:
                found.append(process)
            waiting.append(process.pid)
    return found


def end(process: Process) -> bool:
    """Send SIGKILL to exactly this process; return whether it was still there."""
    return send(process.pid, process.start_ticks, signal.SIGKILL)


def send(pid: int, start_ticks: int, number: signal.Signals) -> bool:
    """Send a signal to a process if it is the one with this start time; return whether it was."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        now = read(pid)
        if now is None or now.start_ticks != start_ticks:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def end_all(
    root: int, *, without: Collection[int] = (), reap: Callable[[], None], timeout_s: float = 10.0
) -> list[Process]:
    """End every descendant of ``root`` and return those that were still there after ``timeout_s``.

    Ending a parent hands its children to the subreaper, and a process may fork while it is looked
    at: so it is repeated until a look finds nobody alive. ``reap`` is called between looks to
    collect the dead.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        alive = [process for process in descendants(root, without=without) if process.alive]
        reap()
        if not alive or time.monotonic() > deadline:
            return alive
        for process in alive:
            end(process)
        time.sleep(_POLL_S)


def end_marked(variable: str, value: str, *, timeout_s: float = 10.0) -> list[Process]:
    """End every process that was started with this variable in its environment; return those still there after that.

    For when nobody is left who knows them as descendants: the environment that ``/proc`` shows is
    that of the last exec, so a fork or a daemon cannot lose it.
    """
    wanted = f"{variable}={value}".encode()
    deadline = time.monotonic() + timeout_s
    while True:
        alive = [process for process in _all() if process.alive and wanted in _environment(process.pid)]
        if not alive or time.monotonic() > deadline:
            return alive
        for process in alive:
            end(process)
        time.sleep(_POLL_S)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # somebody else's, or gone
        return []


def _all() -> Iterator[Process]:
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    if (process := read(int(entry.name))) is not None:
                        yield process
