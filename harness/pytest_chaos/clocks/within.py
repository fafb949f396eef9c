"""A process moves its own clock, before it does anything else: an agent that was just forked."""

from __future__ import annotations

import ctypes
import os

from pytest_chaos.clocks.cell import PAGE_BYTES
from pytest_chaos.clocks.stubs import patch_of
from pytest_chaos.clocks.vdso import machine, room_near, spans, vdso_of
from pytest_chaos.errors import ClockNotMoved

_READ, _WRITE, _EXECUTE = 1, 2, 4
_SHARED, _PRIVATE, _ANONYMOUS, _FIXED_NOREPLACE = 0x01, 0x02, 0x20, 0x100000


def move_own_clock(cell: str) -> None:
    """Read this process's wall clock through the cell in a file, for good.

    There must be no other thread. Raises ClockNotMoved, or OSError, with nothing changed.
    """
    this = machine()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    mapped = spans("self")
    memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        vdso = vdso_of(mapped, lambda at, count: os.pread(memory, count, at), "this process")
        code_at = room_near(mapped, vdso, this.reach_bytes)
        patch = patch_of(this, vdso.image, vdso.symbols, vdso.low, code_at)

        def take(at: int, protection: int, flags: int, file: int = -1) -> None:
            got = libc.mmap(at, PAGE_BYTES, protection, flags | _FIXED_NOREPLACE, file, 0)
            if got != at:
                msg = f"two pages must be free near the vDSO; got {os.strerror(ctypes.get_errno())}"
                raise ClockNotMoved(msg)

        take(code_at, _READ | _WRITE, _PRIVATE | _ANONYMOUS)
        ctypes.memmove(code_at, patch.code, PAGE_BYTES)
        if libc.mprotect(code_at, PAGE_BYTES, _READ | _EXECUTE) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        file = os.open(cell, os.O_RDONLY | os.O_CLOEXEC)
        try:
            take(code_at + PAGE_BYTES, _READ, _SHARED, file)
        finally:
            os.close(file)
        for at, code in patch.jumps.items():
            os.pwrite(memory, code, at)
    finally:
        os.close(memory)
