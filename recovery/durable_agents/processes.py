"""Processes: whether one still is the one that was started, and how to end it. Reads ``/proc``.

A pid alone cannot tell. Signal 0 reaches zombies and processes that reuse the pid (D18); to pid 0
it goes to our own process group. So a process is named by its pid *and* its start, and is alive
only with both and only while the kernel does not call it dead. The start is the kernel's count of
ticks since boot, with the id of that boot. psutil's ``create_time`` adds a wall-clock time of boot
to the same count: after the clock is set, each living process would look like another one.

``ProcessTable`` lists ``/proc`` once, for a reaper that asks about ten thousand processes.
Everything here is about one machine, or one container of it.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from durable_agents.errors import ExecutorNotEnded

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

END_TIMEOUT_S: Final = 5.0
"""How long a killed process may take to end, in seconds.
Only an uninterruptible wait takes more than a moment.
"""

_DEAD_STATES: Final = frozenset("ZXx")
_STOPPED_STATES: Final = frozenset("Tt")
_LOOK_S: Final = 0.002
_EXEC_S: Final = 0.25
"""How long ``execve`` may leave a process without an environment, in seconds.
After that it never had one.
"""


class Liveness(enum.StrEnum):
    """The state of a process. A stopped process lives: it goes on when it is continued."""

    ALIVE = "alive"
    STOPPED = "stopped"
    DEAD = "dead"


class ProcessLine(NamedTuple):
    """One line of the process table.

    ``start`` is as in ``start_of``, ``state`` is the kernel's letter.
    """

    pid: int
    start: str
    state: str
    group: int


class ProcessTable:
    """The processes of one moment. Read it *after* listing the processes to look for."""

    def __init__(self, processes: Iterable[ProcessLine]) -> None:
        """Hold these processes; ``read`` makes a table of the real ones."""
        self._processes = {process.pid: process for process in processes}
        self._unread: set[int] = set()

    @classmethod
    def read(cls) -> ProcessTable:
        """List the processes of this machine, or of this container.

        Each is read at the first look for it: to list hundreds takes as long as to read ten.
        """
        table = cls(())
        table._unread = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        return table

    def look(self, pid: int | None, start: str | None) -> Liveness:
        """Return the state of the process with this pid and start. No pid, or pid 0, is dead.

        Without a start, any process with the pid counts. A process that ``/proc`` hides from us
        counts as alive.
        """
        if pid is None or pid <= 0:
            return Liveness.DEAD
        process = self._line(pid)
        if process is None:
            return Liveness.ALIVE if _is_hidden(pid) else Liveness.DEAD
        if process.state in _DEAD_STATES or (start is not None and process.start != start):
            return Liveness.DEAD
        return Liveness.STOPPED if process.state in _STOPPED_STATES else Liveness.ALIVE

    def _line(self, pid: int) -> ProcessLine | None:
        """Return the line of a listed process, as it was at the first look for it."""
        if pid in self._unread:
            self._unread.discard(pid)
            if (process := read_process(pid)) is not None:
                self._processes[pid] = process
        return self._processes.get(pid)


def look(pid: int | None, start: str | None) -> Liveness:
    """Return the state of one process now, as ``ProcessTable.look`` does."""
    process = None if pid is None or pid <= 0 else read_process(pid)
    return ProcessTable(() if process is None else (process,)).look(pid, start)


def start_of(pid: int) -> str | None:
    """Return the start of the process as text that equals no other process's; None without one."""
    process = read_process(pid)
    return None if process is None else process.start


def read_process(pid: int) -> ProcessLine | None:
    """Return the process with this pid from ``/proc/PID/stat``, or None."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        content = os.read(descriptor, 4096)
    except OSError:  # it ended between the two calls
        return None
    finally:
        os.close(descriptor)
    fields = content[content.rindex(b")") + 2 :].split()  # the name before it may hold anything, ")" too
    return ProcessLine(pid, f"{_boot()}:{int(fields[19])}", fields[0].decode(), int(fields[2]))


def _all_processes() -> Iterator[ProcessLine]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := read_process(int(name))) is not None:
            yield process


def wait_for_exit(pid: int, timeout_s: float | None, wake: int | None = None) -> bool:
    """Wait until our child is a zombie, without reaping it; return whether it is one.

    A zombie keeps its pid and the number of its group. Return False after ``timeout_s`` seconds, or
    when the file ``wake`` is readable.
    """
    descriptor = os.pidfd_open(pid)  # readable when the process has ended
    try:
        poll = select.poll()
        for each in (descriptor, wake):
            if each is not None:
                poll.register(each, select.POLLIN)
        timeout_ms = None if timeout_s is None else max(1, round(timeout_s * 1000))
        return any(ready == descriptor for ready, _ in poll.poll(timeout_ms))
    finally:
        os.close(descriptor)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal the group that our unreaped child leads. It is no error if the group is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def end_group(
    pid: int, start: str, *, variable: tuple[str, str] | None = None, timeout_s: float = END_TIMEOUT_S
) -> int:
    """Kill a process and its group, wait until all are dead, and return how many were killed.

    A pid that another process has by now is left alone, with its group. When the leader has ended,
    only an inherited environment ``variable`` tells whose the members are: those that have it are
    killed. Raises ExecutorNotEnded when a member is left after ``timeout_s`` seconds, or must not
    be signalled.
    """
    began_s = time.monotonic()
    deadline_s = began_s + timeout_s
    ended: set[int] = set()
    while members := _members(pid, start, variable, is_sure=time.monotonic() - began_s > _EXEC_S):
        for member in members:
            if not member.is_ours:
                continue
            _kill(member)
            ended.add(member.pid)
        if time.monotonic() > deadline_s:
            message = (
                f"Process {pid} and its group must end within {timeout_s:g} s of SIGKILL; got "
                f"{', '.join(str(member.pid) for member in members)} still there. See /proc/PID/stack for their wait."
            )
            raise ExecutorNotEnded(message)
        time.sleep(_LOOK_S)  # sleeps because the kernel takes a moment; the deadline bounds it
    return len(ended)


class _Member(NamedTuple):
    """A living member of a group. ``is_ours`` is False while nobody can tell whose it is."""

    pid: int
    start: str
    is_ours: bool


def _members(pid: int, start: str, variable: tuple[str, str] | None, *, is_sure: bool) -> list[_Member]:
    """Return the living members of the group that this process led, itself included.

    During ``execve`` a process has no environment for a moment, so nobody can tell whose it is.
    With ``is_sure``, treat a process without an environment as foreign.
    """
    leader = read_process(pid)
    if pid <= 1 or (leader is not None and leader.start != start):
        return []  # the pid was reused: its group is another one, too
    if leader is None and (variable is None or not _is_group(pid)):
        return []
    members = (each for each in _all_processes() if pid in (each.pid, each.group))
    living = [each for each in members if each.state not in _DEAD_STATES]
    if leader is not None or variable is None:
        return [_Member(each.pid, each.start, is_ours=True) for each in living]
    has = {each: _has(each.pid, variable) for each in living}
    return [
        _Member(each.pid, each.start, bool(ours))
        for each, ours in has.items()
        if ours or (ours is None and not is_sure)
    ]


def _has(pid: int, variable: tuple[str, str]) -> bool | None:
    """Whether the process was started with this environment variable.

    None if its environment is empty.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - the plain way, as above
            found = file.read()
    except OSError:
        return False
    return "=".join(variable).encode() in found.split(b"\0") if found else None


def _kill(process: _Member) -> None:
    """Kill exactly this process: the pidfd pins it while its start is compared."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if start_of(process.pid) == process.start:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except PermissionError as error:
        message = (
            f"Process {process.pid} must belong to this user to be ended; got one of another user. End it as that user."
        )
        raise ExecutorNotEnded(message) from error
    finally:
        os.close(descriptor)


def _is_group(number: int) -> bool:
    """Whether a process group has members: one call instead of a walk through all processes."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_hidden(pid: int) -> bool:
    """Whether ``/proc`` hides a living process from us (mount option hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


@functools.cache
def _boot() -> str:
    """Return the id of this boot, from which the ticks count."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - the plain way, as above
        return file.read().strip()
