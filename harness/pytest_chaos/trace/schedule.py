"""Schedules: the order in which the calls of several threads go on.

A trapped call waits until it is answered. So where several threads or processes wait, the observer
chooses which one goes on. A chosen order is a *schedule*. It is drawn from a seed, at the
granularity of trapped calls:

    round-robin    the thread that has waited longest goes on
    run-on         one thread goes on until it blocks or ends
    priorities     random priorities, and d moments at which the running thread falls to the lowest
                   (PCT: Burckhardt et al., ASPLOS 2010)

A held thread may own a lock that the others wait for. So a choice is made only among those that
wait here, and nobody is waited for who sleeps in the kernel, or computes for too long. And one
that makes calls without a pause may be waiting for another one, so it goes on only so often in a
row.
"""

from __future__ import annotations

import contextlib
import enum
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.model.seed import stream
from pytest_chaos.runtime import processes
from pytest_chaos.trace.kernel import MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

CHANGES: Final = 3
"""The change points of a schedule with priorities, d: enough for a bug of depth d + 1."""
TURNS_MAX: Final = 256
"""The calls of one thread, without a pause, after which it makes room for the others."""
COMPUTES_S: Final = 0.004
"""Processor time after which a thread that makes no call is not waited for until its next call."""
STARTS_S: Final = 0.1
"""The same for a thread that has made no call yet: an interpreter takes some time to start."""
WAITS_S: Final = 2.0
"""The same in real time: on a busy machine a thread that runs may get no processor."""
_STAT_BYTES: Final = 512
_CLONES: Final = {"x86_64": {b"56", b"58", b"435"}, "aarch64": {b"220", b"435"}}
"""The calls that start a process, by machine and number."""
_DEAD: Final = frozenset({b"Z", b"X"})


class Policy(enum.StrEnum):
    """How the next thread is chosen."""

    ROUND_ROBIN = "round-robin"
    RUN_ON = "run-on"
    PRIORITIES = "priorities"


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A way to order the calls of a run.

    ``calls`` is about how many there are: the change points are spread over them.

    >>> str(Schedule(number=3, seed="s", calls=100))
    'schedule 3 (priorities)'
    """

    number: int
    seed: str
    calls: int = 0

    @property
    def policy(self) -> Policy:
        """The policy: the first two schedules have the plain ones."""
        return {1: Policy.ROUND_ROBIN, 2: Policy.RUN_ON}.get(self.number, Policy.PRIORITIES)

    def __str__(self) -> str:
        """Return the schedule as reports name it."""
        return f"schedule {self.number} ({self.policy})"


class Chooser:
    """Chooses among waiting threads, by their numbers. Pure: equal questions get equal answers."""

    def __init__(self, schedule: Schedule) -> None:
        self._policy = schedule.policy
        self._randomness = stream(schedule.seed, "schedule", schedule.number)
        calls = max(schedule.calls, CHANGES)
        self._changes = sorted(self._randomness.randrange(calls) for _ in range(CHANGES))
        self._priorities: dict[int, float] = {}
        self._served: dict[int, int] = {}
        self._count = 0
        self._last = 0
        self._turns = 0
        """The choices in a row of the last thread while others waited."""

    def choose(self, waiting: Sequence[int]) -> int:
        """Return the number of the thread that goes on, one of ``waiting``, which is sorted."""
        if self._turns >= TURNS_MAX and self._last in waiting:
            self._priorities[self._last] = min(self._priorities.values(), default=0) - 1
            waiting = [thread for thread in waiting if thread != self._last]
        if self._policy is Policy.ROUND_ROBIN:
            chosen = min(waiting, key=lambda thread: self._served.get(thread, -1))
        elif self._policy is Policy.RUN_ON:
            chosen = self._last if self._last in waiting else waiting[0]
        else:
            chosen = self._by_priority(waiting)
        self._turns = self._turns + 1 if chosen == self._last and len(waiting) > 1 else 0
        self._count += 1
        self._served[chosen] = self._count
        self._last = chosen
        return chosen

    def _by_priority(self, waiting: Sequence[int]) -> int:
        for thread in waiting:
            if thread not in self._priorities:
                self._priorities[thread] = CHANGES + self._randomness.random()
        chosen = max(waiting, key=self._priorities.__getitem__)
        while self._changes and self._count >= self._changes[0]:
            self._changes.pop(0)
            self._priorities[chosen] = float(len(self._changes))  # below all that have not fallen yet
            chosen = max(waiting, key=self._priorities.__getitem__)
        return chosen


class _Thread:
    """A thread of the program, and the file that shows its state."""

    def __init__(self, path: str) -> None:
        self.stat = os.open(f"{path}/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._path = path
        self._last_call_s = time.monotonic()
        self._used_s: float | None = None
        self.patience_s = STARTS_S

    def goes_on(self) -> None:
        """Note that its call was answered."""
        self._last_call_s = time.monotonic()
        self._used_s = None

    def state(self) -> bytes:
        """Return the letter of its state, X for a thread that is gone."""
        try:
            fields = os.pread(self.stat, _STAT_BYTES, 0)
        except OSError:  # ESRCH
            return b"X"
        place = fields.rfind(b")") + 2
        return fields[place : place + 1]

    def is_running(self, now_s: float) -> bool:
        """Whether it may make a call soon: it runs, and has not computed for too long."""
        waited_s = now_s - self._last_call_s
        if waited_s > WAITS_S:
            return False
        state = self.state()
        if state not in {b"R", b"D"} or (state == b"D" and self._waits_for_child()):
            return False
        return waited_s <= self.patience_s or self._has_patience()

    def _waits_for_child(self) -> bool:
        """Whether it waits for a child of vfork(2), whose execve may be held."""
        try:
            with open(f"{self._path}/syscall", "rb") as file:
                return file.read().split()[0] in _CLONES[MACHINE]
        except (OSError, IndexError):
            return False

    def _has_patience(self) -> bool:
        """Whether it has used little processor time since it was first looked at for this long."""
        try:
            with open(f"{self._path}/schedstat", "rb") as file:
                used_s = int(file.read().split()[0]) / 1e9
        except (OSError, ValueError, IndexError):  # a kernel without it: real time decides
            return False
        if self._used_s is None:
            self._used_s = used_s
        return used_s - self._used_s <= self.patience_s


class Threads:
    """The threads of a program and its descendants, and which of them run.

    ``roots`` returns the pids of the program and of its orphans; ``folder`` is its own.
    """

    def __init__(self, roots: Callable[[], list[int]], folder: Path) -> None:
        self._roots = roots
        self._folder = os.path.realpath(folder) + os.sep
        self._suspects: list[tuple[str, str, int]] = []
        self._known: dict[int, _Thread] = {}
        self._newest = b""
        self._loads = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)

    def has_called(self, thread: int) -> None:
        """Note that a thread waits in a call."""
        if (known := self._known.get(thread)) is None:
            known = self._add(thread)
        if known is not None:
            known.patience_s = COMPUTES_S

    def goes_on(self, thread: int) -> None:
        """Note that a thread's call was answered."""
        if (known := self._known.get(thread)) is not None:
            known.goes_on()

    def running(self, held: Collection[int]) -> bool:
        """Whether a thread runs that is not held."""
        if self._is_any_running(held):
            return True
        # The last word of this file is the newest process or thread of the machine: one that has
        # just been started may run, too.
        newest = os.pread(self._loads, _STAT_BYTES, 0).rpartition(b" ")[2]
        if newest == self._newest:
            return False
        self._newest = newest
        self._scan()
        return self._is_any_running(held)

    def _is_any_running(self, held: Collection[int]) -> bool:
        now_s = time.monotonic()
        return any(thread.is_running(now_s) for number, thread in self._known.items() if number not in held)

    def deadlock(self, line_of: Callable[[int], str] = lambda _: "") -> list[str]:
        """Return what each thread waits for, if none of them can ever go on; else nothing.

        Threads are looked at one after another, and two that hand a turn over might each be seen to
        wait. So it takes two calls of this method, between which no thread has run. ``line_of``
        returns the line of the program that a thread is at, if that is known.
        """
        self._scan()
        before, self._suspects = self._suspects, []
        alive = [number for number, thread in self._known.items() if thread.state() not in _DEAD]
        for place, thread in enumerate(sorted(alive), 1):
            if not (wait := _endless_wait(thread, self._folder)):
                return []
            at = f", at {line}" if (line := line_of(thread)) else ""
            self._suspects.append((f"thread {place} {wait}{at}", _switches(thread), thread))
        return [wait for wait, *_ in before] if before == self._suspects else []

    def doing(self) -> list[str]:
        """Return what some of the threads do: that they run, or the call in which they wait."""
        self._scan()
        alive = sorted(number for number, thread in self._known.items() if thread.state() not in _DEAD)
        return [f"thread {place} {_call_of(thread)}" for place, thread in enumerate(alive[:_SHOWN], 1)]

    def close(self) -> None:
        """Close the files."""
        for thread in self._known.values():
            os.close(thread.stat)
        self._known.clear()
        os.close(self._loads)

    def _add(self, thread: int) -> _Thread | None:
        try:
            self._known[thread] = _Thread(f"/proc/{thread}/task/{thread}")
        except OSError:
            return None
        return self._known[thread]

    def _scan(self) -> None:
        """Look for new threads and processes, and forget those that have ended."""
        seen: set[int] = set()
        waiting = self._roots()
        while waiting:
            process = waiting.pop()
            with contextlib.suppress(OSError):
                for name in os.listdir(f"/proc/{process}/task"):
                    seen.add(thread := int(name))
                    with open(f"/proc/{process}/task/{name}/children", "rb") as children:
                        waiting += map(int, children.read().split())
                    if thread not in self._known:
                        self._add(thread)
        for thread in self._known.keys() - seen:
            os.close(self._known.pop(thread).stat)


_SHOWN: Final = 4
_CALLS: Final = {
    "x86_64": {0: "read", 7: "poll", 23: "select", 34: "pause", 35: "nanosleep", 43: "accept", 45: "recvfrom"}
    | {47: "recvmsg", 61: "wait4", 72: "fcntl", 73: "flock", 202: "futex", 230: "clock_nanosleep", 232: "epoll_wait"}
    | {247: "waitid", 270: "pselect6", 271: "ppoll", 281: "epoll_pwait", 288: "accept4"},
    "aarch64": {22: "epoll_pwait", 25: "fcntl", 32: "flock", 63: "read", 72: "pselect6", 73: "ppoll", 95: "waitid"}
    | {98: "futex", 101: "nanosleep", 115: "clock_nanosleep", 202: "accept", 207: "recvfrom", 212: "recvmsg"}
    | {242: "accept4", 260: "wait4"},
}
"""The names of calls in which a thread is likely to wait, by machine and number."""


def _call_of(thread: int) -> str:
    """Return what a thread does, in words."""
    try:
        with open(f"/proc/{thread}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
        with open(f"/proc/{thread}/syscall", encoding="ascii") as file:
            number = file.read().split()[0]
    except (OSError, IndexError):
        return "ended"
    who = "" if name == processes.own().name else f"({name}) "
    if not number.isdigit():
        return f"{who}was running"
    called = _CALLS[MACHINE].get(int(number), "")
    return f"{who}waited{f' in {called}' if called else ''}"


_NO_END: Final = {
    "x86_64": {202: "futex", 61: "wait4", 247: "waitid", 73: "flock", 72: "fcntl", 0: "read"},
    "aarch64": {98: "futex", 260: "wait4", 95: "waitid", 32: "flock", 25: "fcntl", 63: "read"},
}
"""Calls in which a thread may wait for another one without an end, by machine and number."""
_TIMEOUT_ARGUMENT: Final = 3
_LOCKS: Final = (7, 38)
"""F_SETLKW and F_OFD_SETLKW: the commands of fcntl that wait."""
_WAITS_FOR: Final = {"read": "pipe:", "flock": "", "fcntl": ""}
"""The beginning of what a descriptor must lead to; nothing for the program's own folder."""
_AWAITED: Final = {
    "futex": "a lock or another thread", "wait4": "a child process", "waitid": "a child process",
    "read": "another process to write to a pipe", "flock": "the lock of {path}", "fcntl": "the lock of {path}",
}  # fmt: skip


def _endless_wait(thread: int, folder: str) -> str:
    """Return the call in which a thread waits for another one without an end, or nothing.

    A lock on a file outside ``folder`` may be held by a process that is not of the program.
    """
    try:
        with open(f"/proc/{thread}/syscall", encoding="ascii") as file:
            fields = file.read().split()
        with open(f"/proc/{thread}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()
        if not fields[0].isdigit():  # "running", or -1: it is in no call
            return ""
        arguments = [int(word, 16) for word in fields[1:7]]
        path = ""
        call = _NO_END[MACHINE].get(int(fields[0]), "")
        if call == "futex" and arguments[_TIMEOUT_ARGUMENT]:
            return ""
        if call == "fcntl" and arguments[1] not in _LOCKS:
            return ""
        if call in _WAITS_FOR:
            awaited = os.readlink(f"/proc/{thread}/fd/{arguments[0]}")
            if not awaited.startswith(_WAITS_FOR[call] or folder):
                return ""
            path = awaited.removeprefix(folder)
    except (OSError, ValueError, IndexError):
        return ""
    who = "" if name == processes.own().name else f"{name} "  # a fork has our name, which is not the program's
    return f"({who}in {call}) waits for {_AWAITED[call].format(path=path)}" if call else ""


def _switches(thread: int) -> str:
    """Return how often a thread has stopped running: if it runs once more, this changes."""
    try:
        with open(f"/proc/{thread}/status", encoding="utf-8", errors="replace") as file:
            return file.read().partition("\nvoluntary_ctxt_switches:")[2]
    except OSError:
        return ""
