"""Processes: their identity, state and descendants, and signals to exactly one process.

The kernel reuses pids, so a process is identified by pid *and* start time (clock ticks since boot),
and a signal goes through a pidfd whose process was compared after it was opened. All knowledge of
``/proc/PID/stat`` is in ``_parse``.

``psutil`` samples CPU, memory and open files (``agent.py``). It is not used here: its import takes
longer than starting an agent, its creation times are seconds of a clock that can be set, and it
has no pidfd. Linux only. Sources: proc(5), pidfd_open(2), prctl(2).
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import resource
    from collections.abc import Callable, Collection, Iterator
    from ctypes import CDLL

_POLL_S: Final = 0.002
_END_TIMEOUT_S: Final = 10.0
_STAT_BYTES_MAX: Final = 4096
_EXIT_ORPHANED: Final = 70
_LINKS_OF_ONE_THREAD: Final = 3
"""Links of ``/proc/self/task`` with one thread: stat(2) is cheaper than listing it."""

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37


class Process(NamedTuple):
    """A process, as ``/proc/PID/stat`` shows it. ``start_ticks`` counts clock ticks from boot."""

    pid: int
    start_ticks: int
    parent_pid: int
    state: str
    name: str

    @property
    def alive(self) -> bool:
        """Whether it can still run: a zombie is dead, and waits to be reaped."""
        return self.state not in {"Z", "X"}


# Look at processes


def read(pid: int) -> Process | None:
    """Return the process that has this pid now, or None.

    >>> read(os.getpid()).alive
    True
    """
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)  # 20 us less than with a Path
    except OSError:
        return None
    try:
        return _parse(os.read(descriptor, _STAT_BYTES_MAX))
    except OSError:  # ESRCH: it was reaped after the file was opened
        return None
    finally:
        os.close(descriptor)


def own() -> Process:
    """Return this process."""
    process = read(os.getpid())
    if process is None:
        msg = "/proc must show this process; got no /proc/self/stat. Mount /proc"
        raise OSError(msg)
    return process


def namespace() -> int:
    """Return the number of this process's PID namespace, or 0 where the kernel shows none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - no Path is needed
    except OSError:
        return 0


def is_running(pid: int, start_ticks: int) -> bool:
    """Whether the process with this pid and start time still runs."""
    process = read(pid)
    return process is not None and process.start_ticks == start_ticks and process.alive


def seen_from_here(pid: int, start_ticks: int, of_namespace: int) -> Process | None:
    """Return a process that another one named by pid, start time and its PID namespace, or None.

    A pid of another namespace (a worker in a container) names another process here, or none.
    """
    process = read(pid) if of_namespace == namespace() else None
    return process if process is not None and process.start_ticks == start_ticks else None


def threads() -> list[int]:
    """Return the ids of this process's threads.

    >>> os.getpid() in threads()
    True
    """
    if os.stat("/proc/self/task").st_nlink == _LINKS_OF_ONE_THREAD:  # noqa: PTH116 - called for each traced run
        return [os.getpid()]
    return [int(name) for name in os.listdir("/proc/self/task")]


def children() -> list[int]:
    """Return the pids of this process's children, zombies included."""
    return [pid for thread in threads() for pid in _children_of("self", thread)]


def descendants(root: int, *, without: Collection[int] = ()) -> list[Process]:
    """Return the descendants of ``root``, zombies included.

    Processes in ``without`` are left out, their descendants are not. A look at the whole machine
    costs 40 us for each of its processes, so the kernel's lists of children (proc(5)) are read. A
    process may be missing from them if its sibling is reaped meanwhile, or its parent ends. Then a
    listed process is found dead or gone, and the whole machine is looked at.
    """
    found, is_sure = _below(root, _listed_children) if _has_lists() else ([], False)
    if not is_sure:
        found, _ = _below(root, _look_at_all())
    return [process for process in found if process.pid not in without]


def _below(root: int, children_of: Callable[[int], list[int]]) -> tuple[list[Process], bool]:
    """Return the processes below ``root``, and whether all of them were alive."""
    found: list[Process] = []
    seen: set[int] = set()
    parents, is_sure = [root], True
    while parents:
        for pid in children_of(parents.pop()):
            process = read(pid) if pid not in seen else None
            is_sure &= process is not None and process.alive
            if process is not None:
                seen.add(pid)
                found.append(process)
                parents.append(pid)
    return found, is_sure


def _children_of(process: int | str, thread: int | str) -> list[int]:
    try:
        with open(f"/proc/{process}/task/{thread}/children", "rb") as file:  # noqa: PTH123 - called for each traced run
            return list(map(int, file.read().split()))
    except OSError:  # it has ended
        return []


def _listed_children(pid: int) -> list[int]:
    try:
        threads_of = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it was reaped
        return []
    return [child for thread in threads_of for child in _children_of(pid, thread)]


def _look_at_all() -> Callable[[int], list[int]]:
    """Return a function from a pid to its children, by one look at all processes."""
    of_parent: dict[int, list[int]] = {}
    for process in _all():
        of_parent.setdefault(process.parent_pid, []).append(process.pid)
    return lambda pid: of_parent.get(pid, [])


@functools.cache
def _has_lists() -> bool:
    """Whether the kernel lists the children of a thread (CONFIG_PROC_CHILDREN)."""
    return os.path.exists("/proc/thread-self/children")  # noqa: PTH110 - no Path is needed


# Signal and end processes


def pidfd_of(pid: int, start_ticks: int) -> int | None:
    """Return a new pidfd of the process with this pid and start time, or None when it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    now = read(pid)  # after the pidfd was opened: it cannot be reused from here on
    if now is None or now.start_ticks != start_ticks:
        os.close(descriptor)
        return None
    return descriptor


def has_ended(pidfd: int) -> bool:
    """Whether the process of a pidfd has ended, reaped or not."""
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def send(pid: int, start_ticks: int, number: signal.Signals) -> bool:
    """Send a signal to the process with this pid and start time; return whether it was there."""
    descriptor = pidfd_of(pid, start_ticks)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def end(process: Process) -> bool:
    """Send SIGKILL to exactly this process; return whether it was there."""
    return send(process.pid, process.start_ticks, signal.SIGKILL)


def end_all(root: int, *, without: Collection[int] = (), reap: Callable[[], None]) -> list[Process]:
    """End every descendant of ``root``; return those that were still alive after 10 s.

    ``reap`` is called between two looks to collect the dead.
    """
    return _end_repeatedly(lambda: descendants(root, without=without), reap)


def end_marked(variable: str, value: str, *, without: Collection[int] = ()) -> list[Process]:
    """End all processes started with this environment variable; return those still alive.

    ``without`` are pids of processes that are left alone.

    It finds processes whose parents are gone. ``/proc`` shows the environment of the last exec, so
    a fork or a daemon cannot lose it.
    """
    wanted = f"{variable}={value}".encode()
    found: set[tuple[int, int]] = set()  # an exiting process shows no environment, and still holds its files

    def find() -> list[Process]:
        marked = [
            process
            for process in _all()
            if process.alive
            and process.pid not in without
            and ((process.pid, process.start_ticks) in found or wanted in _environment(process.pid))
        ]
        found.update((process.pid, process.start_ticks) for process in marked)
        return marked

    return _end_repeatedly(find, lambda: None)


def reaped() -> Iterator[tuple[int, int, resource.struct_rusage]]:
    """Reap the children that have ended; yield pid, wait status and usage of each."""
    with contextlib.suppress(ChildProcessError):
        while (child := os.wait4(-1, os.WNOHANG))[0]:
            yield child


def reap_all() -> None:
    """Reap the children that have ended, without waiting."""
    for _ in reaped():
        pass


def wake_on_child() -> int:
    """Return the read end of a pipe that becomes readable when a child of this process ends."""
    read_end, write_end = os.pipe()
    for descriptor in (read_end, write_end):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler the wakeup descriptor is not written
    return read_end


# Arrange the end of this process and of its descendants


def adopt_orphans(*, adopts: bool = True) -> bool:
    """Make this process the parent of each descendant whose own parent ends (a child subreaper).

    Return whether it was one before, so that it can be undone.
    """
    import ctypes  # as in _libc

    before = ctypes.c_int()
    _libc().prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _libc().prctl(_PR_SET_CHILD_SUBREAPER, int(adopts), 0, 0, 0)
    return bool(before.value)


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel kill this process when its parent's thread ends.

    With ``parent_pid``, exit at once if that is not the parent any more.
    """
    _libc().prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os._exit(_EXIT_ORPHANED)


@functools.cache
def _libc() -> CDLL:
    import ctypes  # costs 3 ms, which the process of pytest need not pay

    return ctypes.CDLL(None)


def _end_repeatedly(find: Callable[[], list[Process]], reap: Callable[[], None]) -> list[Process]:
    # Ending a parent hands its children to the subreaper, and a process may fork while we look: so
    # look again until nothing is alive.
    deadline_s = time.monotonic() + _END_TIMEOUT_S
    while True:
        reap()
        alive = [process for process in find() if process.alive]
        if not alive:
            reap()
        if not alive or time.monotonic() > deadline_s:
            return alive
        for process in alive:
            end(process)
        time.sleep(_POLL_S)


def _parse(stat: bytes) -> Process:
    # "PID (NAME) STATE PPID ...": a name may hold spaces and parentheses, so split at the last one.
    # STATE is field 3, PPID field 4, the start time field 22.
    before, _, after = stat.rpartition(b")")
    pid, _, name = before.partition(b"(")
    fields = after.split()
    return Process(int(pid), int(fields[19]), int(fields[1]), fields[0].decode(), name.decode(errors="replace"))


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - read for each process of the machine
            return file.read().split(b"\0")
    except OSError:  # another user's, or gone
        return []


def _all() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := read(int(name))) is not None:
            yield process
