"""Programs that read their clocks, in every way that there is."""

from __future__ import annotations

import ctypes
import datetime
import platform
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos import Marks

GETTIME = {"x86_64": 228, "aarch64": 113}


def machine_s() -> float:
    """Return the machine's wall clock: of its boot and the time since, which no fault moves."""
    lines = Path("/proc/stat").read_text().splitlines()
    boot = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
    return boot + time.clock_gettime(time.CLOCK_BOOTTIME)


def readings() -> dict[str, float]:
    """Return what each way to read the wall clock shows, in seconds."""
    with sqlite3.connect(":memory:") as database:
        (sqlite,) = database.execute("SELECT strftime('%s', CURRENT_TIMESTAMP)").fetchone()
    libc = ctypes.CDLL(None, use_errno=True)
    words = (ctypes.c_long * 2)()
    libc.syscall(GETTIME[platform.machine()], 0, words)
    raw = words[0]
    libc.gettimeofday(words, None)
    day = words[0]
    libc.time.restype = ctypes.c_long
    child = subprocess.run(["/bin/sh", "-c", "date +%s"], capture_output=True, text=True, check=True).stdout
    return {
        "time.time": time.time(),
        "datetime": datetime.datetime.now(datetime.UTC).timestamp(),
        "coarse": time.clock_gettime(5),
        "tai": time.clock_gettime(time.CLOCK_TAI),
        "gettimeofday": day,
        "time": libc.time(None),
        "sqlite": float(sqlite),
        "system call": raw,
        "date": float(child),
    }


def read_twice(marks: Marks) -> None:
    """Note all readings before a point and behind it, as seconds ahead of the machine's clock."""
    for number in (1, 2):
        monotonic, here = time.monotonic(), machine_s()
        marks.note("ahead", number, {name: round(shown - here) for name, shown in readings().items()})
        marks.note("monotonic", number, monotonic)
        sys.audit("clockwork.read", number)
    marks.ack("done")


def hammer(marks: Marks, threads: int) -> None:
    """Read the clock in threads that never wait, until a file says so; note wrong readings."""
    lock, wrong = threading.Lock(), []
    marks.note("up")
    started_s = machine_s()

    def read() -> None:
        while not Path("go").exists():
            ahead = time.time() - started_s
            if not (-5 < ahead < 600 or -86_405 < ahead < -85_800):
                with lock:
                    wrong.append(ahead)

    workers = [threading.Thread(target=read) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    marks.note("wrong", value=wrong[:10])


def stay(marks: Marks) -> None:
    """Say that we are up, and stay until we are told to go on by a line in a file."""
    marks.note("up")
    while not Path("go").exists():
        time.sleep(0.002)  # sleeps because this is an agent that waits for the test
    marks.note("monotonic", value=time.monotonic())
    marks.note("ahead", value=round(time.time() - machine_s()))
