"""Measure a look of the reaper over many running jobs, over few and many finished ones;
run as a script (``--help``).

Of the running jobs some are dead: their processes have ended. A first look counts them, a second
one ends them. The files with few and with many finished jobs take turns in one run. Printed are
medians over rounds: a look that ends the dead, one that finds nothing to do, and one reading of the
process table; the ratio of many to few; and what SQLite alone needs for the same rows: one SELECT
of those that run, and one flushed UPDATE of those that are dead.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from durable_agents import JobQueue, JobReaper, Pipeline, Stage, StageEngine, TaskManager
from durable_agents.processes import ProcessTable, start_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_TARGET_S: Final = 0.5
_PIPELINE: Final = Pipeline((Stage(name="build", next="end", leavers=("builder",)), Stage(name="end")))
_INSERT: Final = (
    "INSERT INTO jobs (agent, repo, task_id, status, attempts, max_attempts, claim, run_id, pid, process_start, "
    "monitor_pid, monitor_start, started_at, error, created_at, updated_at) "
    "VALUES ('builder', 'repo', 't', ?, 1, 1000000, 1, NULL, ?, ?, ?, ?, ?, '', 0, 0) RETURNING job_id"
)
_RUN: Final = "INSERT INTO agent_runs (job_id, claim, task_id, agent, started_at) VALUES (?, 1, 't', 'builder', 0)"


def ended() -> tuple[int, str]:
    """Return number and start of a process that has ended."""
    process = subprocess.Popen(["sleep", "60"])
    start = start_of(process.pid)
    process.kill()
    process.wait()
    assert start is not None
    return process.pid, start


class Looks:
    """A file with so many finished and running jobs, a reaper on it,
    and how long its looks took.
    """

    def __init__(self, path: Path, *, finished: int, running: int, dead: int) -> None:
        self.queue = JobQueue(db_path=path)
        TaskManager(self.queue.store).create("t", stage="build")
        self.reaper = JobReaper(self.queue, StageEngine(self.queue.store, pipeline=_PIPELINE, gates={}))
        self.path = path
        self.dead = dead
        self.reaping_s: list[float] = []
        self.idle_s: list[float] = []
        self.bare_s: list[float] = []
        me = (os.getpid(), start_of(os.getpid()))
        now = time.time_ns() // 1000
        gone = [ended() for _ in range(min(dead, 10))]
        executors = [gone[number % 10] if number < dead else me for number in range(running)]
        self._insert(("done", *me, *me, now) for _ in range(finished))
        self._insert(("running", *executor, *me, now) for executor in executors)
        with closing(self.queue.store.factory()) as connection:  # type: ignore[attr-defined]
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _insert(self, rows: Iterable[tuple[object, ...]]) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("BEGIN")
            for row in rows:
                (job_id,) = connection.execute(_INSERT, row).fetchone()
                run = connection.execute(_RUN, (job_id,))
                connection.execute("UPDATE jobs SET run_id = ? WHERE job_id = ?", (run.lastrowid, job_id))

    def round(self) -> None:
        """Look three times: the dead are counted, ended, and missed; then they run again."""
        assert self.reaper.run_once().dead == self.dead
        began_s = time.perf_counter()
        tick = self.reaper.run_once()
        self.reaping_s.append(time.perf_counter() - began_s)
        assert (tick.queued, tick.errors) == (self.dead, ())
        began_s = time.perf_counter()
        assert self.reaper.run_once().dead == 0
        self.idle_s.append(time.perf_counter() - began_s)
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            began_s = time.perf_counter()
            connection.execute("SELECT * FROM jobs WHERE status = 'running'").fetchall()
            connection.execute("UPDATE jobs SET status = 'running', updated_at = 1 WHERE status = 'queued'")
            self.bare_s.append(time.perf_counter() - began_s)


def measure(folder: Path, options: argparse.Namespace) -> list[str]:
    """Look in turn at both files; return the lines to print."""
    few, many = (
        Looks(folder / f"{finished}.db", finished=finished, running=options.running, dead=options.dead)
        for finished in (options.few, options.many)
    )
    table_s = []
    for _ in range(options.rounds):
        for looks in (few, many):
            looks.round()
        began_s = time.perf_counter()
        ProcessTable.read()
        table_s.append(time.perf_counter() - began_s)
    lines = []
    for name, times in (("ending the dead", "reaping_s"), ("with nothing to do", "idle_s")):
        few_s, many_s = (statistics.median(getattr(looks, times)) for looks in (few, many))
        lines.append(
            f"a look over {options.running} running jobs of which {options.dead} are dead, {name}: {few_s:.3f} s with "
            f"{options.few} finished, {many_s:.3f} s with {options.many} (target {_TARGET_S} s), "
            f"ratio {many_s / few_s:.2f}"
        )
    bare_s = statistics.median(few.bare_s)
    lines.append(f"SQLite alone, the same rows: {bare_s:.3f} s, ratio {bare_s / statistics.median(few.reaping_s):.2f}")
    processes = sum(name.isdigit() for name in os.listdir("/proc"))
    lines.append(f"one listing of the process table, {processes} processes: {statistics.median(table_s) * 1000:.1f} ms")
    return lines


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--running", type=int, default=10_000, help="how many running jobs")
    parser.add_argument("--dead", type=int, default=100, help="how many of them are dead")
    parser.add_argument("--few", type=int, default=1_000, help="finished jobs in the one file")
    parser.add_argument("--many", type=int, default=1_000_000, help="finished jobs in the other")
    parser.add_argument("--rounds", type=int, default=9, help="how often")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-reaper-") as folder:
        lines = measure(Path(folder), options)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
