"""What it costs to watch a program: kills at a step, trapped calls, and calls whose contents are recorded.

Run by hand: ``python tests/benchmarks/benchmark_steps.py``. The program keeps ten rows of 4 kB in SQLite (WAL, FULL) on
a memory file system, 121 durable steps; a cycle is a real SIGKILL at one of them, the database opened again, and its
integrity checked. Medians of rounds that alternate; the cost of a call is that of a watched run of 1,000 rows less that
of the same run unwatched, divided by the calls that were trapped.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness.agents.marks import Marks
from harness.steps.recording import Recorder
from harness.steps.seccomp import SeccompSource
from harness.steps.source import KillBefore

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

ROUNDS = 5
ROWS = 1000
MEMORY = "/dev/shm"


def work(directory: Path, marks_path: Path, count: int) -> None:
    """Keep rows, one to a commit, and mark each."""
    marks = Marks(marks_path, "agent")
    with contextlib.closing(sqlite3.connect(directory / "a.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, body BLOB)")
        for number in range(count):
            marks.intent("put", number)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO rows VALUES (?, ?)", (number, b"%06d" % number * 700))
            connection.execute("COMMIT")
            marks.ack("put", number)
    marks.close()


def fresh(base: Path, name: str) -> tuple[Path, Path]:
    """Return an empty folder and an empty mark file."""
    shutil.rmtree(base / name, ignore_errors=True)
    (base / name).mkdir()
    marks = base / f"{name}.marks"
    marks.write_bytes(b"")
    return base / name, marks


def cycles_per_second(base: Path, start: Barrier | None = None) -> float:
    """Kill at each step once, open and check what is left, and return how many a second that were."""
    source = SeccompSource()
    directory, marks = fresh(base, "whole")
    whole = source.observe(lambda: work(directory, marks, 10), directory, marks=marks)
    if start is not None:
        start.wait()
    began_s = time.perf_counter()
    for number in range(1, whole.count + 1):
        directory, marks = fresh(base, "killed")
        killed = source.observe(
            lambda: work(directory, marks, 10),  # noqa: B023 - it runs now
            directory,
            marks=marks,
            directive=KillBefore(number=number),
            expected=whole.steps,
        )
        assert killed.fired, killed
        with contextlib.closing(sqlite3.connect(directory / "a.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return whole.count / (time.perf_counter() - began_s)


def one_worker(base: Path) -> float:
    """Return the cycles a second of a process of its own: it forks, so it is small."""
    return many_workers(base, 1)


def many_workers(base: Path, count: int) -> float:
    """Return the cycles a second of several processes together."""
    start = multiprocessing.Barrier(count)
    rates = multiprocessing.Array("d", count)

    def run(place: int) -> None:
        folder = base / f"worker-{place}"
        folder.mkdir(exist_ok=True)
        rates[place] = cycles_per_second(folder, start)

    workers = [multiprocessing.Process(target=run, args=(place,)) for place in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return float(sum(rates[:]))


def call_us(base: Path, *, records: bool) -> float:
    """Return what a trapped call costs, in microseconds."""
    directory, marks = fresh(base, "unwatched")
    began_s = time.perf_counter()
    work(directory, marks, ROWS)
    unwatched_s = time.perf_counter() - began_s
    directory, marks = fresh(base, "watched")
    recorder = Recorder(Path(tempfile.mkdtemp(dir=base)), "seccomp") if records else None
    began_s = time.perf_counter()
    seen = SeccompSource().observe(
        lambda: work(directory, marks, ROWS), directory, marks=marks, recorder=recorder, timeout_s=300
    )
    watched_s = time.perf_counter() - began_s
    if recorder is not None:
        recorder.close()
    return (watched_s - unwatched_s) * 1e6 / len(seen.steps)


def main() -> None:
    """Measure by turns, and print medians and targets."""
    figures: dict[str, list[float]] = {"one": [], "two": [], "call": [], "recorded": []}
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix=f"chaos-benchmark-{os.getpid()}-") as folder:
        base = Path(folder)
        for _ in range(ROUNDS):
            figures["one"].append(one_worker(base))
            figures["two"].append(many_workers(base, 2))
            figures["call"].append(call_us(base, records=False))
            figures["recorded"].append(call_us(base, records=True))
    one, two, call, recorded = (statistics.median(values) for values in figures.values())
    print(f"kill, recover, check: {one:.0f} /s with one worker (target: 170), {two:.0f} /s with two (target: 350)")
    print(f"a trapped call: {call:.1f} us (target: 15); with its contents recorded: {recorded:.1f} us (target: 25)")


if __name__ == "__main__":
    main()
