"""What the watcher of steps does for an agent whose clock is moved.

A program that an agent starts has a vDSO of its own. Its ``execve`` waits for the watcher, which
traces the caller through it and patches the new program before its first instruction. A clock read
by the system call itself, as static programs make it, is answered with the moved time.

A call from a vDSO, or from our code, is let pass: our code moves the answer.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from typing import TYPE_CHECKING, Final

from pytest_chaos.clocks import process
from pytest_chaos.clocks.cell import PAGE_BYTES, motion_in
from pytest_chaos.clocks.stubs import MAGIC
from pytest_chaos.clocks.tracee import (
    EVENT_EXEC,
    EVENT_STOP,
    PATIENCE_S,
    TRACE_EXEC,
    BusyThreadError,
    Tracee,
    ptrace,
    wait_for_stop,
)
from pytest_chaos.clocks.vdso import spans
from pytest_chaos.errors import ClockNotMoved
from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.table import ALWAYS, Trap, code_of, filter_code, one_of
from pytest_chaos.trace.kernel import AUDIT_ARCH, MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_chaos.trace.kernel import Listener, Notification

_REALTIME, _REALTIME_COARSE, _TAI = 0, 5, 11
_GET, _DAY, _TIME = ("clock_gettime", "gettimeofday", "time")
_TRAPS: Final = {
    _GET: Trap({"x86_64": 228, "aarch64": 113}, one_of(0, _REALTIME, _REALTIME_COARSE, _TAI)),
    _DAY: Trap({"x86_64": 96, "aarch64": 169}, ALWAYS),
    _TIME: Trap({"x86_64": 201}, ALWAYS),
    "execve": Trap({"x86_64": 59, "aarch64": 221}, ALWAYS),
    "execveat": Trap({"x86_64": 322, "aarch64": 281}, ALWAYS),
}
_NAMES: Final = {trap.numbers[MACHINE]: name for name, trap in _TRAPS.items() if MACHINE in trap.numbers}
_SECOND_NS: Final = 1_000_000_000
_LOOK_S: Final = 2e-5


def clock_filter(*, steps: bool, closes: bool = False, touches: bool = False, others: Iterable[Trap] = ()) -> bytes:
    """Return the filter for an agent whose clock is moved, with or without its steps."""
    more = [*_TRAPS.values(), *others]
    if steps:
        from pytest_chaos.trace.calls import decoder  # noqa: F401 - its import fills the table of calls

        return filter_code(closes=closes, touches=touches, more=more, passes=MAGIC)
    return code_of(more, passes=MAGIC)


class ClockAnswers:
    """Answers the calls of one agent, and of all that it starts, by the cell in a file."""

    def __init__(self, cell: str, listener: Listener, on_problem: Callable[[str], None]) -> None:
        self._cell = cell
        self._listener = listener
        self._on_problem = on_problem
        self._followed: dict[int, threading.Event] = {}
        """The threads that are traced through a call: the next may come before that has failed."""
        self._file = os.open(cell, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the cell."""
        os.close(self._file)

    def answer(self, call: Notification) -> bool:
        """Answer a read of the wall clock; return whether the call was one."""
        name = _name_of(call)
        if name not in {_GET, _DAY, _TIME}:
            return False
        try:
            if _is_in_vdso(call):
                self._listener.let_pass(call)
            else:
                self._listener.succeed(call, self._move(name, call))
        except OSError as error:
            self._listener.fail(call, errno.EFAULT if error.errno == errno.EIO else error.errno or errno.EFAULT)
        return True

    def let_pass(self, call: Notification) -> None:
        """Let a call pass; if it starts a program, patch that before its first instruction."""
        if _name_of(call) not in {"execve", "execveat"}:
            self._listener.let_pass(call)
            return
        if call.thread in self._followed:  # it is traced since a call before, which failed
            self._listener.let_pass(call)
            return
        seized, passed = threading.Event(), threading.Event()
        self._followed[call.thread] = seized
        follower = threading.Thread(target=self._follow, args=(call.thread, seized, passed), daemon=True)
        follower.start()
        seized.wait()
        self._listener.let_pass(call)
        passed.set()

    def _move(self, name: str, call: Notification) -> int:
        """Write the moved time where the caller wants it; return the call's result."""
        clock, place, zone = call.arguments[0], call.arguments[1], 0
        is_coarse = name == _TIME or (name == _GET and clock & 0xFFFFFFFF == _REALTIME_COARSE)
        read = _REALTIME_COARSE if is_coarse else _REALTIME
        motion = motion_in(os.pread(self._file, PAGE_BYTES, 0))
        shown_ns = motion.at(time.clock_gettime_ns(read))
        if name == _GET and clock & 0xFFFFFFFF == _TAI:
            shown_ns += motion.tai_ns
        seconds, rest_ns = divmod(shown_ns, _SECOND_NS)
        if name == _TIME:
            _write(call.thread, call.arguments[0], struct.pack("<q", seconds))
            return seconds
        if name == _DAY:
            place, zone, rest_ns = call.arguments[0], call.arguments[1], rest_ns // 1000
            _write(call.thread, zone, bytes(8))  # Linux keeps no time zone
        _write(call.thread, place, struct.pack("<qq", seconds, rest_ns))
        return 0

    def _follow(self, thread: int, seized: threading.Event, passed: threading.Event) -> None:
        """Trace a thread through its ``execve``, and patch the new program."""
        leader = thread
        tracee = Tracee(thread)
        try:
            try:
                leader = memory.process_of(thread)
                _seize(tracee)
            finally:
                seized.set()
            passed.wait()
            tracee.interrupt()
            number, event, tracee = _stopped(tracee, leader)
            if event == EVENT_EXEC:  # the call is not over: what is in its registers now does not last
                tracee.interrupt()
                ptrace(7, tracee.thread)
                number, event, tracee = _stopped(tracee, leader)
                if event == EVENT_STOP:
                    self._patch(tracee)
            del self._followed[thread]  # before it goes on, and may make such a call again
            tracee.let_go(0 if event else number)  # an execve that failed, or a signal that came first
        except (ProcessLookupError, memory.Failing, memory.Unreadable):
            return  # it was killed meanwhile
        except (ClockNotMoved, OSError) as error:
            self._on_problem(f"process {leader} has started a program whose clock does not move: {error}")
        finally:
            if self._followed.get(thread) is seized:
                del self._followed[thread]

    def _patch(self, tracee: Tracee) -> None:
        try:
            process.patch_stopped(tracee, self._cell)
        except BaseException:
            tracee.let_go()
            raise


def _seize(tracee: Tracee) -> None:
    """Begin to trace a thread; the controller may do so at this moment, and lets it go again."""
    began_s = time.monotonic()
    while True:
        try:
            tracee.seize(TRACE_EXEC)
        except BusyThreadError as error:
            if not error.waits(began_s, PATIENCE_S):
                raise
            time.sleep(_LOOK_S)
        else:
            return


def _stopped(tracee: Tracee, leader: int) -> tuple[int, int, Tracee]:
    """Wait until a thread stops; return signal, event and the thread: after an exec, the leader.

    Raises ProcessLookupError if it has ended.
    """
    while True:
        for thread in dict.fromkeys((tracee.thread, leader)):
            try:
                stop = wait_for_stop(thread, 0.0)
            except ProcessLookupError:
                if thread == leader:
                    raise
                continue
            if stop is not None:
                found = tracee if thread == tracee.thread else Tracee(thread)
                return (*stop, found)
        time.sleep(_LOOK_S)


def _name_of(call: Notification) -> str:
    """Return the name of a call of ours; a program of another machine has other numbers."""
    return _NAMES.get(call.number, "") if call.machine == AUDIT_ARCH[MACHINE] else ""


def _is_in_vdso(call: Notification) -> bool:
    """Whether a call is made by the vDSO itself: our code, which called it, moves the answer."""
    return any(span.name == "[vdso]" and span.low <= call.at < span.high for span in spans(call.thread))


def _write(thread: int, place: int, data: bytes) -> None:
    """Write to a program's memory, unless the place is NULL. Raises OSError."""
    if not place:
        return
    file = os.open(f"/proc/{thread}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(file, data, place)
    except OverflowError:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from None
    finally:
        os.close(file)
