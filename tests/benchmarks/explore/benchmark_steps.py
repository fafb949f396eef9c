"""Costs of observing a program: kills at a step, trapped calls, calls with recorded contents.

Run it as a script. The program is that of the prototypes: ten checkpoints of 4 kB in SQLite (WAL,
FULL) on a memory file system, each acknowledged by a mark, about 120 durable steps. A cycle is a
real SIGKILL at one of them, the database opened again, its integrity checked and its rows compared
with the marks.

Two threads that write without a pause are measured under schedules and without one. A program that
maps 64 MB and changes a page before each call is measured, too: all of the mapping
is compared at each call.

Everything is measured by turns, and the medians of rounds are printed. The cost of a call is that
of a watched run of 1,000 checkpoints less that of the same run unwatched, divided by the calls that
were trapped. Two raw limits stand beside: a supervisor that looks at nothing (three system calls a
notification, in the same Python), and a cycle that watches nothing: fork, half of the run, SIGKILL,
check.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import multiprocessing
import os
import select
import signal
import socket
import sqlite3
import statistics
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.simulate.folder import StateFolder
from pytest_chaos.model.history import History
from pytest_chaos.runtime.marks import Marks
from pytest_chaos.trace.calls import decoder  # noqa: F401 - declares the calls
from pytest_chaos.trace.calls.table import filter_code
from pytest_chaos.trace.kernel import Filter
from pytest_chaos.trace.recording import Recorder
from pytest_chaos.trace.schedule import Schedule
from pytest_chaos.trace.seccomp import SeccompSource
from pytest_chaos.trace.source import KillBefore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Barrier

    from pytest_chaos.trace.source import Program

ROUNDS: Final = 7
CHECKPOINTS: Final = 10
CYCLES: Final = 121
"""One to each step."""
LONG_RUN: Final = 1000
MAPPED_BYTES: Final = 64 << 20
MAPPED_STEPS: Final = 100
BUSY_WRITES: Final = 2000
BUSY: Final = "a trapped call of two busy threads: processor time, us"
BUSY_RATIO: Final = 2.0
MEMORY: Final = "/dev/shm"
TARGETS: Final = {
    "kill, recover and check, one worker": (170.0, "/s"),
    "kill, recover and check, two workers": (350.0, "/s"),
    "a trapped call": (15.0, " us"),
    "a trapped call, its contents recorded": (25.0, " us"),
    "steps with a mapping of 64 MB, a page changed before each": (20.0, "/s"),
}

RAW_LIMITS: Final = {
    "kill, recover and check, one worker": "raw limit: a cycle unwatched, one worker",
    "kill, recover and check, two workers": "raw limit: a cycle unwatched, two workers",
    "a trapped call": "raw limit: a trapped call that nobody looks at",
}


def work(directory: Path, marks_path: Path, count: int) -> None:
    """Keep checkpoints, one to a commit, and acknowledge each."""
    marks = Marks(marks_path, "agent")
    connection = sqlite3.connect(directory / "a.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS ck (seq INTEGER PRIMARY KEY, body BLOB)")
    for number in range(count):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO ck VALUES (?, ?)", (number, (b"%06d" % number) * 700))
        connection.execute("COMMIT")
        marks.ack("put", number)
    connection.close()
    marks.close()


def check(directory: Path, marks_path: Path) -> None:
    """Open the folder that a kill left; check its integrity and everything acknowledged."""
    with contextlib.closing(sqlite3.connect(directory / "a.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        there = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'ck'").fetchone()[0]
        found = {row[0] for row in connection.execute("SELECT seq FROM ck")} if there else set()
    assert {mark.key for mark in History.from_lines(marks_path.read_bytes()).marks} <= found


def fresh(base: Path, name: str) -> tuple[Path, Path]:
    """Return an empty folder, emptied as an exploration does it, and an empty mark file."""
    StateFolder(base / name).put({})
    marks = base / f"{name}.marks"
    marks.write_bytes(b"")
    return base / name, marks


def program(directory: Path, marks: Path) -> Program:
    """Return the workload of one cycle."""
    return lambda: work(directory, marks, CHECKPOINTS)


# Cycles


def cycles_per_second(base: Path, start: Barrier | None = None) -> float:
    """Kill at each step once, open and check what is left; return the cycles a second."""
    with contextlib.closing(SeccompSource().runner(program)) as runner:
        directory, marks = fresh(base, "whole")
        whole = runner.observe(directory, marks=marks)
        assert whole.count == CYCLES, whole.count
        if start is not None:
            start.wait()
        began_s = time.perf_counter()
        for number in range(1, whole.count + 1):
            directory, marks = fresh(base, "killed")
            killed = runner.observe(directory, marks=marks, directive=KillBefore(number=number), expected=whole.steps)
            assert killed.fired, killed
            check(directory, marks)
        return whole.count / (time.perf_counter() - began_s)


def unwatched_cycles_per_second(base: Path, start: Barrier | None = None) -> float:
    """Return the rate of unobserved cycles, in which on average half of the run is done."""
    if start is not None:
        start.wait()
    began_s, count = time.perf_counter(), CYCLES
    for number in range(count):
        directory, marks = fresh(base, "unwatched")
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            work(directory, marks, number * CHECKPOINTS // count)
            os.close(told)
            signal.pause()
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        check(directory, marks)
    return count / (time.perf_counter() - began_s)


def by_workers(base: Path, count: int, measure: Callable[[Path, Barrier | None], float]) -> tuple[float, float]:
    """Return the cycles a second of several processes, and the processor time of one, in ms."""
    start = multiprocessing.Barrier(count)
    rates, costs_ms = multiprocessing.Array("d", count), multiprocessing.Array("d", count)

    def run(place: int) -> None:
        folder = base / f"worker-{place}"
        folder.mkdir(exist_ok=True)
        rates[place] = measure(folder, start)
        costs_ms[place] = sum(os.times()[:4]) * 1000 / CYCLES

    workers = [multiprocessing.Process(target=run, args=(place,)) for place in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(rates[:]), "a worker has failed"
    return float(sum(rates[:])), statistics.mean(costs_ms[:])


# Calls


def call_us(base: Path, *, records: bool) -> float:
    """Return what a trapped call costs, in microseconds."""
    directory, marks = fresh(base, "watched")
    recorder = Recorder(Path(tempfile.mkdtemp(dir=base)), "seccomp") if records else None
    with contextlib.closing(SeccompSource().runner(lambda *_: lambda: work(directory, marks, LONG_RUN))) as runner:
        unwatched_s = _unwatched_s(base)
        began_s = time.perf_counter()
        seen = runner.observe(directory, marks=marks, recorder=recorder, timeout_s=300)
        watched_s = time.perf_counter() - began_s
    if recorder is not None:
        recorder.close()
    return (watched_s - unwatched_s) * 1e6 / len(seen.steps)


def mapped_steps_per_second(base: Path) -> float:
    """Return the calls a second of a program that changes a page of a mapping before each."""
    directory, marks = fresh(base, "mapped")

    def run() -> None:
        with (directory / "mapped").open("w+b") as file:
            file.write(b"x" * MAPPED_BYTES)
            file.flush()
            memory = mmap.mmap(file.fileno(), MAPPED_BYTES)
        for number in range(MAPPED_STEPS):
            place = number * 7 * mmap.PAGESIZE % MAPPED_BYTES
            memory[place : place + mmap.PAGESIZE] = bytes([number]) * mmap.PAGESIZE
            (directory / f"file-{number}").touch()

    began_s = time.perf_counter()
    seen = SeccompSource().observe(run, directory, marks=marks, timeout_s=300)
    assert sum(step.look > 0 for step in seen.steps) == MAPPED_STEPS
    return MAPPED_STEPS / (time.perf_counter() - began_s)


def busy_call_us(base: Path, schedule: Schedule | None) -> float:
    """Return the processor time of a trapped call of two busy threads, of program and observer."""
    directory, marks = fresh(base, "busy")

    def append(name: str) -> None:
        with (directory / name).open("ab", buffering=0) as file:
            for _ in range(BUSY_WRITES):
                file.write(b"a line\n")

    def run() -> None:
        threads = [threading.Thread(target=append, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    began_s = sum(os.times()[:4])
    seen = SeccompSource().observe(run, directory, marks=marks, schedule=schedule, timeout_s=300)
    took_s = sum(os.times()[:4]) - began_s
    assert seen.count == 2 * (BUSY_WRITES + 1), seen
    return took_s * 1e6 / seen.count


def raw_call_us(base: Path) -> float:
    """Return the least cost of a trapped call: an observer in Python that decodes none of them."""
    directory, marks = fresh(base, "raw")
    unwatched_s = _unwatched_s(base)
    began_s = time.perf_counter()
    ours, theirs = socket.socketpair()
    filter_ = Filter(filter_code())
    pid = os.fork()
    if pid == 0:
        socket.send_fds(theirs, [b"+"], [filter_.put_on()])
        work(directory, marks, LONG_RUN)
        os._exit(0)
    theirs.close()
    listener = socket.recv_fds(ours, 1, 1)[1][0]
    count = _let_all_pass(listener)
    os.waitpid(pid, 0)
    watched_s = time.perf_counter() - began_s
    os.close(listener)
    ours.close()
    return (watched_s - unwatched_s) * 1e6 / count


def _let_all_pass(listener: int) -> int:
    """Let every call pass as fast as Python can; the structures are in ``linux/seccomp.h``."""
    receive, send, set_flags = 0xC0502100, 0xC0182101, 0x40082104
    with contextlib.suppress(OSError):
        fcntl.ioctl(listener, set_flags, 1)
    notification, nothing = bytearray(80), bytes(80)
    answer = bytearray(struct.pack("<QqiI", 0, 0, 0, 1))
    poll, count = select.poll(), 0
    poll.register(listener, select.POLLIN)
    while poll.poll()[0][1] & select.POLLIN:
        notification[:] = nothing
        fcntl.ioctl(listener, receive, notification)
        answer[:8] = notification[:8]
        fcntl.ioctl(listener, send, answer)
        count += 1
    return count


def _unwatched_s(base: Path) -> float:
    directory, marks = fresh(base, "unwatched")
    began_s = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        work(directory, marks, LONG_RUN)
        os._exit(0)
    os.waitpid(pid, 0)
    return time.perf_counter() - began_s


def measured(base: Path) -> Iterator[tuple[str, float]]:
    """Measure everything once."""
    cycles = {"kill, recover and check": cycles_per_second, "raw limit: a cycle unwatched": unwatched_cycles_per_second}
    for kind, measure in cycles.items():
        for count, workers in ((1, "one worker"), (2, "two workers")):
            rate, cost_ms = by_workers(base, count, measure)
            yield f"{kind}, {workers}", rate
            yield f"{kind}, {workers}: processor time, ms", cost_ms
    yield "a trapped call", call_us(base, records=False)
    yield "a trapped call, its contents recorded", call_us(base, records=True)
    yield "steps with a mapping of 64 MB, a page changed before each", mapped_steps_per_second(base)
    yield "raw limit: a trapped call that nobody looks at", raw_call_us(base)
    yield BUSY, busy_call_us(base, None)
    for number in (1, 2, 3):
        schedule = Schedule(number=number, seed="s", calls=2 * BUSY_WRITES)
        yield f"{BUSY}, {schedule}", busy_call_us(base, schedule)


def main() -> int:
    """Measure in rounds, print medians beside targets and raw limits; return 0 if all are met."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix=f"chaos-benchmark-{os.getpid()}-") as folder:
        for _ in range(ROUNDS):
            for name, value in measured(Path(folder)):
                found.setdefault(name, []).append(value)
    met = True
    for name, values in found.items():
        median, (target, unit) = statistics.median(values), TARGETS.get(name, (0.0, ""))
        is_met = median >= target if unit == "/s" else median <= target
        met &= is_met or not unit
        verdict = f"target {target:g}{unit}: {'met' if is_met else 'MISSED'}" if unit else ""
        print(f"{name:66} {median:7.1f}  ({min(values):.1f} to {max(values):.1f})  {verdict}")
    for name, raw in RAW_LIMITS.items():
        print(f"{name}, against its raw limit: {statistics.median(found[name]) / statistics.median(found[raw]):.2f}")
    for name, values in found.items():
        if name.startswith(f"{BUSY}, "):
            ratio = statistics.median(value / plain for value, plain in zip(values, found[BUSY], strict=True))
            met &= ratio <= BUSY_RATIO
            print(f"{name}, against no schedule: {ratio:.2f}  target {BUSY_RATIO:g}: {ratio <= BUSY_RATIO}")
    print("what else runs on this machine is in every figure, least in processor time")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
