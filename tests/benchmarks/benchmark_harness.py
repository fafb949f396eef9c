"""What the harness costs: starting an agent, a kill cycle,
and the plugin in a suite that does not use it.

Run by hand: ``python tests/benchmarks/benchmark_harness.py``. Figures are medians, interleaved,
with their ratio.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from durable_agents import TaskManager
from pytest_chaos.model.history import MarkParser
from pytest_chaos.runtime import scratch
from pytest_chaos.runtime.agent import Agent, Command, GuardianClient

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only this folder is importable
from scenarios.work.agents import snapshot_of

SPAWNS = 40
CYCLES = 300
COLLECTIONS = 15
TASK = "benchmark"


def started(marks: Any, began_s: float) -> None:
    """Say how long it took until the first instruction of an agent (this module imports what
    scenarios import).
    """
    marks.note("first", value=time.clock_gettime(time.CLOCK_MONOTONIC) - began_s)


class Bench:
    """A guardian with a folder, without pytest."""

    def __init__(self) -> None:
        self.folder = scratch.create(Path("/dev/shm"))
        self.client = GuardianClient(self.folder)
        self.marks = self.folder / "marks.jsonl"
        self._number = 0

    def spawn(self, target: str, kwargs: dict[str, Any], *, fresh: bool = False) -> Agent:
        """Start an agent with an empty mark file."""
        self._number += 1
        self.marks.write_bytes(b"")
        spec: dict[str, Any] = {
            "environment": dict(os.environ),
            "directory": str(self.folder),
            "marks": str(self.marks),
            "triggers": [],
            "root": str(self.folder),
            "watch": None,
            "survey": None,
            "trace_points": None,
        }
        output = self.folder / f"{self._number}.log"
        return self.client.spawn("agent", Command(target, None, kwargs, fresh), spec, output, timeout_s=30)

    def notes(self) -> list[Any]:
        """Return the marks so far."""
        return MarkParser().feed(self.marks.read_bytes())


def spawn_latency() -> None:
    """Compare the fork server with a fresh interpreter,
    both with the imports that scenarios have.
    """
    bench = Bench()
    times: dict[bool, list[float]] = {True: [], False: []}
    target = f"{Path(__file__).resolve()}:started"
    for _ in range(SPAWNS):
        for fresh in (False, True):
            agent = bench.spawn(target, {"began_s": time.clock_gettime(time.CLOCK_MONOTONIC)}, fresh=fresh)
            agent.wait_exit()
            times[fresh].append(bench.notes()[0].value)
    bench.client.end()
    bench.client.close()
    forked, fresh_s = statistics.median(times[False]), statistics.median(times[True])
    print(f"first instruction: fork server {forked * 1e3:.2f} ms, fresh interpreter {fresh_s * 1e3:.1f} ms")
    print(f"  ratio {fresh_s / forked:.1f} (target 30)")


def cycles(count: int) -> None:
    """Spawn, wait for the first ack, SIGKILL, reap, reopen, check: ``count`` times."""
    bench = Bench()
    database = bench.folder / "bench.db"
    with TaskManager(db_path=database) as tasks:
        tasks.create(TASK)
    manager = "durable_agents:CheckpointManager"
    kwargs = {"database": str(database), "task_id": TASK, "until": 10**9, "manager": manager}
    for cycle in range(count + 1):
        if cycle == 1:
            began_s = time.perf_counter()
        agent = bench.spawn("scenarios.work.agents:write_checkpoints", kwargs)
        bench.client.wait_until(lambda: b'"ack"' in bench.marks.read_bytes(), timeout_s=10, what="an ack", seen=str)
        agent.send_signal(signal.SIGKILL)
        assert agent.wait_exit().signal == signal.SIGKILL
        acked = [mark.value for mark in bench.notes() if mark.kind == "ack"]
        with contextlib.closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            numbers = {n for (n,) in connection.execute("SELECT sequence_number FROM checkpoints")}
            assert set(acked) <= numbers
            assert numbers == set(range(1, len(numbers) + 1))
            connection.execute("DELETE FROM checkpoints")
            connection.commit()
    elapsed_s = time.perf_counter() - began_s
    bench.client.end()
    bench.client.close()
    print(json.dumps({"cycles": count, "elapsed_s": elapsed_s, "snapshot": len(str(snapshot_of(1)))}))


def cycle_rate() -> None:
    """Run the cycles on one worker, then on two."""
    for workers in (1, 2):
        command = [sys.executable, __file__, "cycles", str(CYCLES)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(workers)]
        results = [json.loads(process.communicate()[0]) for process in running]
        rate = sum(result["cycles"] / result["elapsed_s"] for result in results)
        print(
            f"spawn, SIGKILL, reap, reopen, check: {rate:.0f} cycles/s with {workers} worker(s) (target 150 on 2 cores)"
        )


def plugin_cost() -> None:
    """Collect a suite without chaos tests, with the plugin and without."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_nothing.py").write_text("def test_nothing():\n    pass\n")
        script = (
            "import resource, sys, time; began = time.perf_counter(); import pytest;"
            "code = pytest.main(['--collect-only', '-q', '-p', 'no:cacheprovider', *sys.argv[1:]]);"
            "usage = resource.getrusage(resource.RUSAGE_SELF);"
            "print('COST', time.perf_counter() - began, usage.ru_maxrss)"
        )
        without = ["-p", "no:chaos", "-p", "no:chaos-reports"]
        costs: dict[str, list[tuple[float, int]]] = {"with": [], "without": []}
        for _ in range(COLLECTIONS):
            for name, arguments in (("with", []), ("without", without)):
                command = [sys.executable, "-c", script, *arguments]
                said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
                _, seconds, kilobytes = said.strip().splitlines()[-1].split()
                costs[name].append((float(seconds), int(kilobytes)))
    seconds_of = {name: statistics.median(cost[0] for cost in found) for name, found in costs.items()}
    memory_of = {name: statistics.median(cost[1] for cost in found) for name, found in costs.items()}
    print(f"--collect-only: {seconds_of['with']:.3f} s with the plugin, {seconds_of['without']:.3f} s without")
    print(f"  adds {(seconds_of['with'] - seconds_of['without']) * 1e3:.1f} ms (target under 20)")
    print(f"  adds {(memory_of['with'] - memory_of['without']) / 1024:.2f} MB (target under 5)")


def main() -> None:
    """Run everything, or the cycles of one worker."""
    if sys.argv[1:2] == ["cycles"]:
        cycles(int(sys.argv[2]))
        return
    spawn_latency()
    cycle_rate()
    plugin_cost()


if __name__ == "__main__":
    main()
