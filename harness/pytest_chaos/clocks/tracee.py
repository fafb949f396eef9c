"""A stopped thread of another process: its registers, and calls made in its place (ptrace(2)).

A thread is stopped by PTRACE_SEIZE and PTRACE_INTERRUPT, which no program notices, in running
processes and in those that stand still by SIGSTOP. With all signals blocked meanwhile, a call in
its place meets none. A system call that the stop has interrupted is made again by the kernel.

All calls are to be made from one thread of ours; whatever happens to it, the kernel detaches what
it traced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from pytest_chaos.clocks.cell import PAGE_BYTES
from pytest_chaos.clocks.stubs import MAGIC, TRAP_AT
from pytest_chaos.errors import ClockNotMoved
from pytest_chaos.trace.kernel import MACHINE

if TYPE_CHECKING:
    from types import TracebackType

_CONTINUE, _SINGLE_STEP, _DETACH = 7, 9, 17
_GET_REGISTERS, _SET_REGISTERS = 0x4204, 0x4205
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_GET_MASK, _SET_MASK = 0x420A, 0x420B
_GENERAL, _ARM_SYSTEM_CALL = 1, 0x404
TRACE_EXEC: Final = 0x10
EVENT_EXEC: Final = 4
EVENT_STOP: Final = 128
_ALL: Final = 0x40000000
"""__WALL: threads and other processes than children."""
STOP_TIMEOUT_S: Final = 20.0
PATIENCE_S: Final = 15.0
"""How long a thread is waited for that another one traces, or that waits in the kernel."""
_REFUSED_S: Final = 0.5
"""How long one that nobody is seen to trace: it may have been let go between two looks."""
FIRST_STOP_TIMEOUT_S: Final = 0.05
"""Short: a thread in front of a call that the watcher looks at stops once we have let it go. It is
doubled with each attempt."""
_ALL_BUT_TRAPS: Final = 0xFFFFFFFFFFFFFFFF & ~(1 << signal.SIGTRAP - 1)
_BELOW_STACK: Final = 4096
"""What is left free below the stack pointer: leaf functions use 128 bytes there."""
_ERRORS_FROM: Final = -4095


class _Registers(NamedTuple):
    """The places in the kernel's list of registers, and numbers of system calls."""

    size: int
    pc: int
    sp: int
    result: int
    number: int
    arguments: tuple[int, ...]
    original: int | None
    """The number of an interrupted system call: -1 keeps the kernel from making it again."""
    link: int | None
    """The register with the return address, where calls do not push it."""
    openat: int
    close: int
    mmap: int
    munmap: int


_MACHINES: Final = {
    "x86_64": _Registers(27, 16, 19, 10, 10, (14, 13, 12, 7, 9, 8), 15, None, 257, 3, 9, 11),
    "aarch64": _Registers(34, 32, 31, 0, 8, (0, 1, 2, 3, 4, 5), None, 30, 56, 57, 222, 215),
}
_NUMBER_OF_INTERRUPTED: Final = 0xFFFFFFFFFFFFFFFF

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def ptrace(request: int, thread: int, address: int = 0, data: int = 0) -> int:
    """Make a request to the kernel (man page ptrace, section 2). Raises OSError."""
    ctypes.set_errno(0)
    result: int = _libc.ptrace(request, thread, address, data)
    if result == -1 and (number := ctypes.get_errno()):
        raise OSError(number, os.strerror(number))
    return result


def wait_for_stop(thread: int, timeout_s: float = STOP_TIMEOUT_S) -> tuple[int, int] | None:
    """Wait until a traced thread stops; return its signal and event. None if it does not in time.

    Raises ProcessLookupError if it has ended.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            found, status = os.waitpid(thread, os.WNOHANG | _ALL)
        except ChildProcessError:
            raise ProcessLookupError(errno.ESRCH, f"thread {thread} has ended") from None
        if found:
            if not os.WIFSTOPPED(status):
                raise ProcessLookupError(errno.ESRCH, f"thread {thread} has ended")
            return os.WSTOPSIG(status), status >> 16
        if time.monotonic() > deadline_s:
            return None
        time.sleep(2e-5)


class BusyThreadError(ClockNotMoved):
    """A thread that cannot be traced now, and perhaps a moment later, unless it ``is_refused``."""

    def __init__(self, text: str, *, is_refused: bool = False) -> None:
        super().__init__(text)
        self.is_refused = is_refused

    def waits(self, since_s: float, patience_s: float) -> bool:
        """Whether to try again, after tries since a moment (monotonic)."""
        return time.monotonic() <= since_s + (_REFUSED_S if self.is_refused else patience_s)


class Tracee:
    """A traced thread. As a context manager it is stopped, and let go at the end."""

    def __init__(self, thread: int, *, attempt: int = 0) -> None:
        if MACHINE not in _MACHINES:
            msg = f"the machine must be {' or '.join(_MACHINES)} to move a clock; got {MACHINE}"
            raise ClockNotMoved(msg)
        self.thread = thread
        self._first_stop_s = min(FIRST_STOP_TIMEOUT_S * 2**attempt, 1.0)
        self._of = _MACHINES[MACHINE]
        self._blocked: bytes | None = None

    def __enter__(self) -> Self:
        """Stop it. Raises BusyThreadError or ProcessLookupError."""
        self.seize()
        self.interrupt()
        if wait_for_stop(self.thread, self._first_stop_s) is None:  # it is let go by the end of our thread
            msg = f"thread {self.thread} must come to a stop to be asked; it waits in the kernel"
            raise BusyThreadError(msg)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it go on."""
        self.let_go()

    def seize(self, options: int = 0) -> None:
        """Begin to trace it. Raises BusyThreadError if that is refused, at least now."""
        try:
            ptrace(_SEIZE, self.thread, 0, options)
        except ProcessLookupError:
            raise
        except OSError as error:
            msg = (
                f"the clock of process {self.thread} cannot be moved: ptrace is refused ({error.strerror}). "
                "Allow it (kernel.yama.ptrace_scope, the container's seccomp profile), and let nothing else trace it"
            )
            raise BusyThreadError(msg, is_refused=not self._is_traced()) from None

    def _is_traced(self) -> bool:
        """Whether another one traces it now."""
        with contextlib.suppress(OSError), open(f"/proc/{self.thread}/status", encoding="utf-8") as file:
            return any(line.startswith("TracerPid:") and int(line.split()[1]) for line in file)
        return False

    def interrupt(self) -> None:
        """Have it stop at the next chance."""
        ptrace(_INTERRUPT, self.thread)

    def let_go(self, number: int = 0) -> None:
        """Trace it no longer; it gets the signal of this number, if it is not 0."""
        with contextlib.suppress(ProcessLookupError):
            if self._blocked is not None:
                self._set_mask(self._blocked)
            ptrace(_DETACH, self.thread, 0, number)

    def block_signals(self) -> None:
        """Let no signal come until it is let go; what is sent waits for it."""
        if self._blocked is None:
            self._blocked = self._mask()
            self._set_mask(struct.pack("<Q", _ALL_BUT_TRAPS))

    def registers(self) -> list[int]:
        """Return its registers, in the kernel's order."""
        data = ctypes.create_string_buffer(self._of.size * 8)
        vector = _Vector(ctypes.addressof(data), len(data))
        ptrace(_GET_REGISTERS, self.thread, _GENERAL, ctypes.addressof(vector))
        return list(struct.unpack(f"<{self._of.size}Q", data.raw))

    def set_registers(self, values: list[int]) -> None:
        """Set its registers."""
        data = ctypes.create_string_buffer(struct.pack(f"<{self._of.size}Q", *values), self._of.size * 8)
        vector = _Vector(ctypes.addressof(data), len(data))
        ptrace(_SET_REGISTERS, self.thread, _GENERAL, ctypes.addressof(vector))

    @property
    def pc(self) -> int:
        """The address of its next instruction."""
        return self.registers()[self._of.pc]

    def step(self) -> None:
        """Let it make one instruction."""
        self._run(self.registers(), _SINGLE_STEP)

    def system_call(self, at: int, number: int, *arguments: int) -> int:
        """Make a system call in its place, by the instruction at an address; return the result."""
        saved = self.registers()
        values = self._fresh(saved)
        values[self._of.pc] = at
        values[self._of.number] = number
        for place, argument in zip(self._of.arguments, arguments, strict=False):
            values[place] = argument & 0xFFFFFFFFFFFFFFFF
        try:
            self._run(values, _SINGLE_STEP)
            result = self.registers()[self._of.result]
        finally:
            self.set_registers(saved)
        return result - (1 << 64) if result >> 63 else result

    def call(self, function: int, trap: int, *arguments: int) -> int:
        """Call a function in its place, which returns to a trap; return the result.

        ``scratch`` is free for what the function writes.
        """
        saved = self.registers()
        values = self._fresh(saved)
        values[self._of.pc] = function
        stack = self.scratch - 1024 & -16
        if self._of.link is not None:
            values[self._of.link] = trap
        else:
            stack -= 8
            self._write(stack, struct.pack("<Q", trap))
        values[self._of.sp] = stack
        for place, argument in zip(self._of.arguments, arguments, strict=False):
            values[place] = argument
        try:
            self._run(values, _CONTINUE)
            result = self.registers()[self._of.result]
        finally:
            self.set_registers(saved)
        return result

    @property
    def scratch(self) -> int:
        """The address of some bytes on its stack that nothing uses."""
        return self.registers()[self._of.sp] - _BELOW_STACK & -16

    def map_pages(self, at: int, call: int, cell: str) -> None:
        """Map an empty page of code at an address, and the cell behind it. Raises ClockNotMoved."""
        numbers = self._of
        self._must(self.system_call(call, numbers.mmap, at, PAGE_BYTES, 5, 0x100022, -1, 0), at, "map a page")
        scratch = self.scratch
        self._write(scratch, os.fsencode(cell) + b"\0")
        file = self.system_call(call, numbers.openat, -100, scratch, os.O_RDONLY | os.O_CLOEXEC, 0, 0, MAGIC)
        try:
            self._must(file, None, f"open {cell}")
            behind = at + PAGE_BYTES
            self._must(self.system_call(call, numbers.mmap, behind, PAGE_BYTES, 1, 0x100001, file, 0), behind, "map it")
        except ClockNotMoved:
            self.system_call(call, numbers.munmap, at, PAGE_BYTES)
            raise
        finally:
            if file >= 0:
                self.system_call(call, numbers.close, file, 0, 0, 0, 0, MAGIC)

    def read_clock(self, function: int, code_at: int, clock: int) -> int:
        """Return what a clock shows to the process itself (ns), by a call in its place."""
        scratch = self.scratch
        if self.call(function, code_at + TRAP_AT, clock, scratch) & 0xFFFFFFFF:
            msg = f"process {self.thread} must be able to read its clock; its vDSO refused it"
            raise ClockNotMoved(msg)
        memory = os.open(f"/proc/{self.thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            seconds, nanoseconds = struct.unpack("<qq", os.pread(memory, 16, scratch))
        finally:
            os.close(memory)
        return int(seconds * 1_000_000_000 + nanoseconds)

    def _write(self, at: int, data: bytes) -> None:
        memory = os.open(f"/proc/{self.thread}/mem", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(memory, data, at)
        finally:
            os.close(memory)

    def _must(self, result: int, wanted: int | None, what: str) -> None:
        if (wanted is None and result >= 0) or result == wanted:
            return
        why = os.strerror(-result) if _ERRORS_FROM <= result < 0 else f"it got {result:#x}"
        msg = f"process {self.thread} must be able to {what}; got: {why}. Its clock cannot be moved"
        raise ClockNotMoved(msg)

    def _fresh(self, saved: list[int]) -> list[int]:
        values = list(saved)
        if self._of.original is not None:
            values[self._of.original] = _NUMBER_OF_INTERRUPTED
        else:
            number = ctypes.c_int(-1)
            vector = _Vector(ctypes.addressof(number), 4)
            ptrace(_SET_REGISTERS, self.thread, _ARM_SYSTEM_CALL, ctypes.addressof(vector))
        return values

    def _run(self, values: list[int], request: int) -> None:
        """Let it run with these registers to the next trap."""
        self.block_signals()
        self.set_registers(values)
        while True:
            ptrace(request, self.thread)
            stop = wait_for_stop(self.thread)
            if stop is None:
                msg = f"thread {self.thread} must make a call of ours within {STOP_TIMEOUT_S:g} s; it did not"
                raise ClockNotMoved(msg)
            if stop == (signal.SIGTRAP, 0):
                return
            if stop[1] == 0:
                name = signal.Signals(stop[0]).name
                msg = f"thread {self.thread} must make a call of ours; it got {name}"
                raise ClockNotMoved(msg)

    def _mask(self) -> bytes:
        data = ctypes.create_string_buffer(8)
        ptrace(_GET_MASK, self.thread, 8, ctypes.addressof(data))
        return data.raw

    def _set_mask(self, mask: bytes) -> None:
        data = ctypes.create_string_buffer(mask, 8)
        ptrace(_SET_MASK, self.thread, 8, ctypes.addressof(data))
