"""Attendants: who starts a program, waits for it, and ends it, where no interrupt can get between.

Python raises KeyboardInterrupt, and whatever a signal's handler raises, in the main thread and between any two steps of
it, so also between the start of a program and the note of its number: such a program would go on, and nobody would know
which it is. In another thread nothing of the kind happens. So a thread does all that concerns the program, and the
caller waits for the thread; a caller who is interrupted calls the thread off, and waits for it all the same.

The two meet by bare locks, whose calls happen or do not: events, conditions and ``Thread.start`` are made of several
steps, and an interrupt between them leaves a lock taken, or released twice.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

from recovery.errors import ExecutorNotEnded, ToolNotStarted
from recovery.liveness import end_group, start_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

CALL_OFF_S_MAX: Final = 10.0
"""How long an interrupt waits for the end of the program, in seconds.

Only what we may not signal (a program of another user), or the kernel cannot end (it waits for a disk), goes on then.
"""

_LOOK_S: Final = 0.1
"""How late an interrupt may be noticed, in seconds, if it comes at a bad moment."""


class Attendant:
    """The thread of one program, to be attended once.

    ``start`` starts the program, as the leader of a group; ``timeout_s`` bounds how long it runs.
    """

    __slots__ = ("_error", "_exit_code", "_is_over", "_over", "_start", "_timed_out", "_timeout_s", "_turn", "_wires")

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]], timeout_s: float | None) -> None:
        """Prepare; nothing is started yet."""
        self._start = start
        self._timeout_s = timeout_s
        self._turn, self._over = _thread.allocate_lock(), _thread.allocate_lock()
        self._over.acquire()
        self._is_over = False
        self._wires = socket.socketpair()
        self._error: BaseException | None = None
        self._exit_code = 0
        self._timed_out = False

    def attend(self) -> tuple[int, bool]:
        """Run the program to its end; return its exit code as Popen has it, and whether its time was over.

        An interrupt leaves this when the whole group of the program has ended. Raises whatever ``start`` raises, and
        ToolNotStarted when there is no room for a thread.
        """
        try:
            self._begin()
            while not self._is_over:  # looks, because a signal between the last look for one and a wait wakes nobody
                self._over.acquire(timeout=_LOOK_S)
        finally:
            self._call_off()
        if self._error is not None:
            raise self._error
        return self._exit_code, self._timed_out

    def _begin(self) -> None:
        try:
            _thread.start_new_thread(self._run, ())  # Thread.start waits for it, by what an interrupt leaves broken
        except RuntimeError as error:
            message = f"Expected to start a thread for a command but {error}; it did not run, end other threads first."
            raise ToolNotStarted(message) from error

    def _call_off(self) -> None:
        """After an interrupt, have the program ended, and wait for that; further interrupts do not cut this short."""
        if self._is_over:
            return
        deadline = time.monotonic() + CALL_OFF_S_MAX
        if self._turn.acquire(blocking=False):  # the thread has not begun, and now will not
            self._hang_up()
        while not self._is_over and (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(BaseException):
                self._wires[1].send(b"\0")
                self._over.acquire(timeout=left_s)

    def _run(self) -> None:
        if not self._turn.acquire(blocking=False):
            return
        try:
            process = self._start()
            self._timed_out = self._ended(process)
            self._exit_code = process.returncode
        except BaseException as error:  # noqa: BLE001 - it is the caller's to raise
            self._error = error
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        for wire in self._wires:
            wire.close()
        self._is_over = True
        self._over.release()

    def _ended(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the program's end, end its group, and reap it; return whether its time was over before.

        A program that did not end by itself has its whole group seen dead: who is told so may run it again at once.
        """
        has_ended = False
        try:
            has_ended = self._wait(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            if not has_ended:
                self._see_dead(process.pid)
            process.wait()
        return not has_ended

    def _wait(self, pid: int) -> bool:
        """Wait until the process is a zombie, and leave it one; return whether it is.

        The descriptor of a process is ready when it has ended.
        """
        descriptor = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(self._wires[0], select.POLLIN)
            timeout_ms = None if self._timeout_s is None else max(1, round(self._timeout_s * 1000))
            return any(ready == descriptor for ready, _ in poll.poll(timeout_ms))
        finally:
            os.close(descriptor)

    def _see_dead(self, pid: int) -> None:
        """Wait for the ends of all members of the group, a moment as a rule; what cannot be ended has its bound."""
        start = start_of(pid)
        if start is not None:
            with contextlib.suppress(ExecutorNotEnded):
                end_group(pid, start)
