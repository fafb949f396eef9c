"""The witness: a process that sees a call of an agent fail as a bound of the kernel makes it fail.

Nothing else tells whether a program has met its bound: prlimit says only that there is one. All
threads of the agent, and what it starts from now on, are traced (ptrace(2), PTRACE_SEIZE) from
before the bound is set to the first call that fails so. Then the witness ends, and the kernel
detaches them. A thread that stands still by a signal goes on standing (PTRACE_LISTEN).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.clocks.tracee import EVENT_STOP, ptrace
from pytest_chaos.resources.limits import BOUNDS
from pytest_chaos.resources.standing import GOES_ON, STANDS
from pytest_chaos.trace.kernel import MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos import Marks

READY: Final = "witness.ready"
FELT: Final = "witness.felt"

_SYSTEM_CALL, _LISTEN, _SEIZE, _INTERRUPT, _CALL_INFO = 24, 0x4208, 0x4206, 0x4207, 0x420E
_OPTIONS: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x10
"""Stops of system calls are told from SIGTRAP; children, threads, new programs are traced, too."""
_ALL: Final = 0x40000000
_AT_ENTRY, _AT_EXIT = 1, 2
_INFO: Final = struct.Struct("=B3xIQQ7Q")
_CALL_STOP: Final = signal.SIGTRAP | 0x80
_STOPS: Final = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})

_NAMES: Final = {
    "x86_64": {
        1: "write", 2: "open", 9: "mmap", 10: "mprotect", 12: "brk", 18: "pwrite64", 20: "writev", 22: "pipe",
        25: "mremap", 32: "dup", 33: "dup2", 41: "socket", 42: "connect", 43: "accept", 56: "clone", 57: "fork",
        58: "vfork", 72: "fcntl", 77: "ftruncate", 85: "creat", 257: "openat", 285: "fallocate", 288: "accept4",
        291: "epoll_create1", 292: "dup3", 293: "pipe2", 296: "pwritev", 435: "clone3", 437: "openat2",
    },
    "aarch64": {
        20: "epoll_create1", 23: "dup", 24: "dup3", 25: "fcntl", 46: "ftruncate", 47: "fallocate", 56: "openat",
        59: "pipe2", 64: "write", 66: "writev", 68: "pwrite64", 70: "pwritev", 198: "socket", 202: "accept",
        214: "brk", 216: "mremap", 220: "clone", 222: "mmap", 226: "mprotect", 242: "accept4", 435: "clone3",
        437: "openat2",
    },
}  # fmt: skip
_OF: Final = {
    "processes": {"clone", "clone3", "fork", "vfork"},
    "address-space": {"mmap", "mremap", "mprotect", "brk"},
}
"""The calls that meet a bound, where other calls have other reasons for the same error."""
_NOT_OF_FILES: Final = {"x86_64": {253, 294, 300}, "aarch64": {26, 262}}
"""inotify and fanotify: EMFILE is a bound of their own."""


def watch(marks: Marks, pid: int, what: str) -> None:
    """Trace an agent until one of its calls fails by the bound ``what``, and note which."""
    Witness(
        pid,
        what,
        on_ready=lambda: marks.note(READY),
        on_felt=lambda text: marks.note(FELT, value=text),
        on_standing=lambda which, *, stands: marks.note(STANDS if stands else GOES_ON, which),
    ).run()


class Witness:
    """The tracer of one agent."""

    def __init__(
        self,
        pid: int,
        what: str,
        *,
        on_ready: Callable[[], object],
        on_felt: Callable[[str], object],
        on_standing: Callable[..., object] = lambda *_, **__: None,
    ) -> None:
        self._on_ready = on_ready
        self._on_felt = on_felt
        self._on_standing = on_standing
        self._standing: set[int] = set()
        self._pid = pid
        self._what = what
        self._calls: dict[int, tuple[int, int]] = {}
        """The call that each thread is in: its number, and its first argument."""

    def run(self) -> None:
        """Seize all threads, say so, and look at their calls. Ends by SystemExit if it cannot."""
        waiting = self._seize_all()
        is_told = False
        while True:
            if not waiting and not is_told:
                is_told = True
                self._on_ready()
            try:
                thread, status = os.waitpid(-1, _ALL)
            except ChildProcessError:
                msg = f"the agent ended before a call of it failed by the bound of {self._what}"
                raise SystemExit(msg) from None
            waiting.discard(thread)
            if not os.WIFSTOPPED(status):
                self._calls.pop(thread, None)
                continue
            if os.WSTOPSIG(status) == _CALL_STOP and (felt := self._felt(thread)):
                self._on_felt(felt)
                return  # the kernel detaches all threads
            self._go_on(thread, status)

    def _seize_all(self) -> set[int]:
        """Trace each thread of the agent; return those whose first stop is to come."""
        seized: set[int] = set()
        while new := self._threads() - seized:
            for thread in new:
                seized.add(thread)
                try:
                    ptrace(_SEIZE, thread, 0, _OPTIONS)
                    ptrace(_INTERRUPT, thread)
                except ProcessLookupError:
                    continue
                except OSError as error:
                    why = os.strerror(error.errno or 0)
                    msg = f"the calls of the agent cannot be seen: ptrace of it is refused ({why})"
                    raise SystemExit(msg) from None
        return seized & self._threads()

    def _threads(self) -> set[int]:
        try:
            return {int(each.name) for each in Path(f"/proc/{self._pid}/task").iterdir()}
        except FileNotFoundError:
            return set()

    def _felt(self, thread: int) -> str:
        """Return what failed, if this stop is the return of a call that failed by the bound."""
        data = ctypes.create_string_buffer(_INFO.size)
        try:
            ptrace(_CALL_INFO, thread, _INFO.size, ctypes.addressof(data))
        except ProcessLookupError:  # killed meanwhile
            return ""
        stop, _, _, _, first, second, *_ = _INFO.unpack(data.raw)
        if stop == _AT_ENTRY:
            self._calls[thread] = (first, second)
            return ""
        if stop != _AT_EXIT or thread not in self._calls:
            return ""
        number, argument = self._calls.pop(thread)
        name = _NAMES.get(MACHINE, {}).get(number, "")
        error = BOUNDS[self._what].error
        has_failed = first == (1 << 64) - error
        if name == "brk":  # it returns the old end of the heap
            has_failed = first < argument
        if not has_failed or not self._is_of_bound(number, name):
            return ""
        return f"{name or f'system call {number}'} of thread {thread} failed with {errno.errorcode[error]}"

    def _is_of_bound(self, number: int, name: str) -> bool:
        if self._what == "files":
            return number not in _NOT_OF_FILES.get(MACHINE, set())
        return self._what not in _OF or name in _OF[self._what]

    def _go_on(self, thread: int, status: int) -> None:
        """Let a thread go on, with the signal that it has got, unless its process is stopped."""
        number, event = os.WSTOPSIG(status), status >> 16
        try:
            if event == EVENT_STOP and number in _STOPS:
                ptrace(_LISTEN, thread)
                if thread not in self._standing:
                    self._standing.add(thread)
                    self._on_standing(thread, stands=True)
            else:
                if thread in self._standing:
                    self._standing.discard(thread)
                    self._on_standing(thread, stands=False)
                ptrace(_SYSTEM_CALL, thread, 0, 0 if event or number == _CALL_STOP else number)
        except ProcessLookupError:
            return  # killed meanwhile; its end is waited for
