"""Another process: its vDSO patched while it stands still, and its clock read by a call in it."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from pytest_chaos.clocks.stubs import CODE_AT, patch_of
from pytest_chaos.clocks.tracee import PATIENCE_S, BusyThreadError, Tracee
from pytest_chaos.clocks.vdso import machine, room_near, spans, vdso_of
from pytest_chaos.errors import ClockNotMoved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_Result = TypeVar("_Result")

REALTIME: Final = 0
_PAUSE_S: Final = 0.001
_EXEC_S: Final = 0.1
"""How long a process may be without a vDSO: while it becomes another program."""
_THREADS_LOOKS_MAX: Final = 20
_REPLACED_BYTES: Final = 16
_STEPS_MAX: Final = 16
"""Instructions that a thread may take to leave the start of a function."""


class ClockReading(NamedTuple):
    """What the clock of a process showed, and the machine's before and after (nanoseconds)."""

    shown_ns: int
    before_ns: int
    after_ns: int


def is_patched(pid: int) -> bool:
    """Whether the clock of a process is read through a cell. Raises ClockNotMoved or OSError."""
    return bool(_code_at(pid))


def is_read_by_call(pid: int) -> bool:
    """Whether a patched process makes the system call to read its clock. Raises as ``patch``."""
    with _memory(pid) as memory:
        code = machine().read_by_call
        return _read(memory, _code_at(pid), len(code)) == code


def patch(pid: int, cell: str, *, patience_s: float = PATIENCE_S) -> bool:
    """Have a running process read its clock through a cell; return whether that was to do.

    Raises ClockNotMoved, or ProcessLookupError for a process that has ended.
    """
    if _code_at(pid):
        return False
    patiently(lambda attempt: _patch(pid, cell, attempt), patience_s)
    return True


def patch_stopped(tracee: Tracee, cell: str, others: tuple[Tracee, ...] = ()) -> None:
    """Patch the process of a stopped thread; its other threads are stopped, too."""
    pid = tracee.thread
    this = machine()
    with _memory(pid) as memory:
        mapped = spans(pid)
        vdso = vdso_of(mapped, lambda at, count: os.pread(memory, count, at), f"process {pid}")
        place = vdso.image.find(this.call)
        if place < 0:
            msg = f"the vDSO of process {pid} must have an instruction that enters the kernel; got none"
            raise ClockNotMoved(msg)
        code_at = room_near(mapped, vdso, this.reach_bytes)
        made = patch_of(this, vdso.image, vdso.symbols, vdso.low, code_at)
        for each in (tracee, *others):
            _step_out(each, made.jumps)
        tracee.map_pages(code_at, vdso.low + place, cell)
        _put(memory, code_at, made.code)
        for at, code in made.jumps.items():
            _put(memory, at, code)


def read_clock(
    pid: int, now_ns: Callable[[], int], clock: int = REALTIME, *, patience_s: float = PATIENCE_S
) -> ClockReading:
    """Return what the clock of a patched process shows to itself.

    Raises ClockNotMoved, or ProcessLookupError for a process that has ended.
    """
    code_at = _code_at(pid)
    if not code_at:
        msg = f"the clock of process {pid} must be patched to be read; it is not"
        raise ClockNotMoved(msg)

    def read(attempt: int) -> ClockReading:
        threads = _threads(pid)
        with Tracee(threads[attempt % len(threads)], attempt=attempt) as tracee:
            before_ns = now_ns()
            shown_ns = tracee.read_clock(code_at + CODE_AT, code_at, clock)
            return ClockReading(shown_ns, before_ns, now_ns())

    return patiently(read, patience_s)


def patiently(do: Callable[[int], _Result], patience_s: float) -> _Result:
    """Call a function, in a thread of its own, until it meets no busy thread, for so long.

    The watcher traces a program for a moment while it starts another one. The function gets how
    often it was called before. Raises what it raises.
    """
    began_s = time.monotonic()
    for number in itertools.count():
        try:
            return _in_a_thread(functools.partial(do, number))
        except BusyThreadError as error:
            if not error.waits(began_s, patience_s):
                raise
        time.sleep(_PAUSE_S)
    raise AssertionError


def _in_a_thread(do: Callable[[], _Result]) -> _Result:
    """Call a function in a thread of its own, whose end detaches all that it traced."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(do())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=run, name="chaos-clock")
    thread.start()
    thread.join()
    for error in errors:
        raise error
    return results[0]


def _patch(pid: int, cell: str, attempt: int) -> None:
    with contextlib.ExitStack() as stopped:
        threads: dict[int, Tracee] = {}
        for _ in range(_THREADS_LOOKS_MAX):
            new = [number for number in _threads(pid) if number not in threads]
            if not new:
                break
            for number in new:
                with contextlib.suppress(ProcessLookupError):
                    threads[number] = stopped.enter_context(Tracee(number, attempt=attempt))
        if pid not in threads:
            raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended")
        patch_stopped(threads[pid], cell, tuple(each for number, each in threads.items() if number != pid))


def _threads(pid: int) -> list[int]:
    """Return the threads of a process, the first one first. Raises ProcessLookupError."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended") from None


def _step_out(tracee: Tracee, jumps: Mapping[int, bytes]) -> None:
    """Let a stopped thread leave the instructions that are about to be replaced."""
    for _ in range(_STEPS_MAX):
        pc = tracee.pc
        if not any(at < pc < at + _REPLACED_BYTES for at in jumps):
            return
        tracee.step()
    msg = f"thread {tracee.thread} must leave the start of a clock's function; it stays there"
    raise ClockNotMoved(msg)


def _code_at(pid: int) -> int:
    """Return where the code in a patched process is, 0 for one that is not patched."""
    deadline_s = time.monotonic() + _EXEC_S
    while True:
        with _memory(pid) as memory:

            def read(at: int, count: int, file: int = memory) -> bytes:
                return _read(file, at, count)

            try:
                return vdso_of(spans(pid), read, f"process {pid}").patched_at(machine(), read)
            except ClockNotMoved:
                if time.monotonic() > deadline_s:
                    raise
        time.sleep(_PAUSE_S)


@contextlib.contextmanager
def _memory(pid: int) -> Iterator[int]:
    try:
        file = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended") from None
    except PermissionError as error:
        msg = f"the memory of process {pid} must be open to us to move its clock; got: {error.strerror}"
        raise ClockNotMoved(msg) from None
    try:
        yield file
    finally:
        os.close(file)


def _read(memory: int, at: int, count: int) -> bytes:
    try:
        return os.pread(memory, count, at)
    except OSError:
        return b""


def _put(memory: int, at: int, code: bytes) -> None:
    """Write over code. Raises ClockNotMoved where the kernel allows that to nobody."""
    try:
        written = os.pwrite(memory, code, at)
    except OSError as error:
        msg = (
            f"this kernel must allow a tracer to write to /proc/PID/mem to move a clock; got: {error.strerror}. "
            "Start it with proc_mem.force_override=ptrace, or pass a clock to your code"
        )
        raise ClockNotMoved(msg) from None
    if written != len(code):
        msg = f"{len(code)} bytes of code must be written; got {written}"
        raise ClockNotMoved(msg)
