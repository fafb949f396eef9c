"""Is that process still the one that was started? Its number alone cannot say.

A signal 0 reaches a zombie, and whoever has the number now (D18); to pid 0 it goes to our own
process group. So a process is named by its number *and* by when it was started, and counts as alive
only with both, and only while the kernel does not have it for dead. The start is the kernel's own
count of ticks since boot, with the id of that boot: the ``create_time`` of psutil is the same count
added to a wall-clock time of boot, so that a clock which is set would make every living process
look like a later one of its number.

``ProcessTable`` reads all of ``/proc`` once, for a reaper that asks about ten thousand. All this is
about one machine, and one container of it, which those who watch and those who are watched share.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import psutil

from durable_agents.errors import ExecutorNotEnded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

END_TIMEOUT_S: Final = 5.0
"""How long a killed process may take to be gone: a moment, but for one in an uninterruptible wait."""

_DEAD_STATES: Final = frozenset("ZXx")
_STOPPED_STATES: Final = frozenset("Tt")
_LOOK_S: Final = 0.002
_EXEC_S: Final = 0.25
"""How long a process may take to become another program: what has no environment after that never had one."""


class Liveness(enum.StrEnum):
    """What is known of a process. A stopped one lives: it goes on when it is continued, and does not know."""

    ALIVE = "alive"
    STOPPED = "stopped"
    DEAD = "dead"


class ProcessLine(NamedTuple):
    """One line of the process table: ``start`` as in ``start_of``, ``state`` a letter of the kernel's."""

    pid: int
    start: str
    state: str
    group: int


class ProcessTable:
    """The processes of one moment. What was started after it was read is not in it, so list what to look for first."""

    def __init__(self, processes: Iterable[ProcessLine]) -> None:
        """Keep the processes; ``read`` is the usual way to make one."""
        self._processes: Mapping[int, ProcessLine] = {process.pid: process for process in processes}

    @classmethod
    def read(cls) -> ProcessTable:
        """Read the table of this machine, or of this container."""
        found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
        return cls(process for process in found if process is not None)

    def look(self, pid: int | None, start: str | None) -> Liveness:
        """Tell whether the process of this number, started then, lives. None and 0 are no process, and so dead.

        Without a start, whoever has the number counts; one that cannot be seen, but is there,
        counts as alive.
        """
        if pid is None or pid <= 0:
            return Liveness.DEAD
        process = self._processes.get(pid)
        if process is None:
            return Liveness.ALIVE if _is_hidden(pid) else Liveness.DEAD
        if process.state in _DEAD_STATES or (start is not None and process.start != start):
            return Liveness.DEAD
        return Liveness.STOPPED if process.state in _STOPPED_STATES else Liveness.ALIVE


def look(pid: int | None, start: str | None) -> Liveness:
    """Look at one process now, as ``ProcessTable.look`` does."""
    process = None if pid is None or pid <= 0 else read_process(pid)
    return ProcessTable(() if process is None else (process,)).look(pid, start)


def start_of(pid: int) -> str | None:
    """Return when the process of this number was started, as text that is equal for no other one; None for none."""
    process = read_process(pid)
    return None if process is None else process.start


def read_process(pid: int) -> ProcessLine | None:
    """Return what the kernel says of a process, or None when there is none of this number."""
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
    fields = content[content.rindex(b")") + 2 :].split()  # the name before may hold anything
    return ProcessLine(pid, f"{_boot()}:{int(fields[19])}", fields[0].decode(), int(fields[2]))


def end_group(
    pid: int, start: str, *, variable: tuple[str, str] | None = None, timeout_s: float = END_TIMEOUT_S
) -> int:
    """Kill the process, and what is left of the group that it led, and see them dead; return how many were.

    A number that belongs to somebody else by now is left alone, with its group. When the leader has
    gone, nothing says whose the group is but what its members were given to inherit: those are
    ended that have this environment variable. Raises ExecutorNotEnded when something is left after
    ``timeout_s`` seconds, or may not be signalled.
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
                f"Expected process {pid} and its group to end within {timeout_s:g} s of SIGKILL but "
                f"{', '.join(str(member.pid) for member in members)} did not; look what holds them in the kernel."
            )
            raise ExecutorNotEnded(message)
        time.sleep(_LOOK_S)  # sleeps because the kernel takes a moment; the deadline bounds it
    return len(ended)


class _Member(NamedTuple):
    """A living member of a group; whose it is may not be known yet."""

    pid: int
    start: str
    is_ours: bool


def _members(pid: int, start: str, variable: tuple[str, str] | None, *, is_sure: bool) -> list[_Member]:
    """Return who is alive of the group that this process led, itself included.

    A process that is about to become another program (``execve``) has no environment for a moment,
    and nobody can tell whose it is; with ``is_sure``, what has none by now never had one, and is
    somebody else's.
    """
    leader = read_process(pid)
    if pid <= 1 or (leader is not None and leader.start != start):
        return []  # a number that went round: its group is that of somebody else, too
    if leader is None and (variable is None or not _is_group(pid)):
        return []
    found = (read_process(number) for number in psutil.pids())
    living = [each for each in found if each is not None and pid in (each.pid, each.group)]
    living = [each for each in living if each.state not in _DEAD_STATES]
    if leader is not None or variable is None:
        return [_Member(each.pid, each.start, is_ours=True) for each in living]
    has = {each: _has(each.pid, variable) for each in living}
    return [
        _Member(each.pid, each.start, bool(ours))
        for each, ours in has.items()
        if ours or (ours is None and not is_sure)
    ]


def _has(pid: int, variable: tuple[str, str]) -> bool | None:
    """Tell whether a process was started with this environment variable; None where it has no environment at all."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - the plain way, as above
            found = file.read()
    except OSError:
        return False
    return "=".join(variable).encode() in found.split(b"\0") if found else None


def _kill(process: _Member) -> None:
    """Kill exactly this process: the descriptor holds it while its start is compared."""
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
            f"Expected to be allowed to end process {process.pid} but it belongs to another user; end it as that user."
        )
        raise ExecutorNotEnded(message) from error
    finally:
        os.close(descriptor)


def _is_group(number: int) -> bool:
    """Tell whether a group of this number has members: one call instead of a walk through all processes."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_hidden(pid: int) -> bool:
    """Tell whether there is a process that ``/proc`` does not show us (its option hidepid, and another user's)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        pass
    return False


@functools.cache
def _boot() -> str:
    """Return the id of this boot: ticks count from it."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - the plain way, as above
        return file.read().strip()
