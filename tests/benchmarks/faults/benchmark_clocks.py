"""How long a jump of a clock takes, and how much a patched clock read costs.

    python tests/benchmarks/faults/benchmark_clocks.py

A read is timed in a loop of machine code that calls the vDSO's function, in one process before and
after it is patched: x86_64 only. A jump is the store that moves the clock of a running child; with
its receipt, the child is stopped twice and asked.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_chaos.clocks import process, vdso
from pytest_chaos.clocks.cell import ClockCell
from pytest_chaos.clocks.within import move_own_clock

READS = 300_000
ROUNDS = 9
JUMPS = 300
LOOP = bytes.fromhex(
    "53 4154 4883ec28 4889fb 4989f4"  # push rbx; push r12; sub rsp, 40; mov rbx, rdi; mov r12, rsi
    "31ff 4889e6 41ffd4 48ffcb 75f3"  # xor edi, edi; mov rsi, rsp; call r12; dec rbx; jnz
    "4883c428 415c 5b c3"  # add rsp, 40; pop r12; pop rbx; ret
)


def read_ns(loop: ctypes._FuncPointer, function: int) -> float:
    """Return the processor time of one read, in nanoseconds: the least of several rounds."""
    taken = []
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        loop(READS, function)
        taken.append((time.thread_time_ns() - began) / READS)
    return min(taken)


def reads(cell: str) -> dict[str, float]:
    """Time reads in this process, before and after it is patched, and by the system call."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(LOOP)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    loop = ctypes.CFUNCTYPE(None, ctypes.c_ulong, ctypes.c_ulong)(address)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    found = vdso.vdso_of(vdso.spans("self"), lambda at, count: os.pread(memory, count, at), "this process")
    function = found.low + found.symbols["__vdso_clock_gettime"]
    before = read_ns(loop, function)
    move_own_clock(cell)
    after = read_ns(loop, function)
    return {"vdso_ns": round(before, 1), "patched_ns": round(after, 1), "ratio": round(after / before, 2)}


def jumps(cell: ClockCell) -> dict[str, float]:
    """Time jumps of a running child, alone and with the two looks of a receipt."""
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    try:
        began = time.perf_counter_ns()
        process.patch(child.pid, str(cell.path))
        patched = time.perf_counter_ns() - began
        alone, whole = [], []
        for number in range(JUMPS):
            first = time.perf_counter_ns()
            process.read_clock(child.pid, time.time_ns)
            began = time.perf_counter_ns()
            cell.move(cell.motion.jumped(60.0 if number % 2 else -60.0, now_ns=time.time_ns()))
            alone.append(time.perf_counter_ns() - began)
            process.read_clock(child.pid, time.time_ns)
            whole.append(time.perf_counter_ns() - first)
    finally:
        child.kill()
        child.communicate()
    return {
        "patch_us": round(patched / 1000, 1),
        "jump_us_median": round(statistics.median(alone) / 1000, 1),
        "jump_us_p99": round(sorted(alone)[JUMPS * 99 // 100] / 1000, 1),
        "jump_with_receipt_us_median": round(statistics.median(whole) / 1000, 1),
    }


def main() -> None:
    """Print the figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        cell = ClockCell(Path(folder) / "cell")
        figures = jumps(cell)
        if os.uname().machine == "x86_64":
            figures |= reads(str(cell.path))
        print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
