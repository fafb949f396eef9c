"""Compare many writers of one database, in turn; run it as a script (``--help``).

Processes, with and without the write lock queue: how many checkpoints were saved, the most and the
least by one process, and the longest that one save took. Threads of one process, which share
commits, against one raw writer: an INSERT and its COMMIT, again and again. Last, the cost of the
queue for a single writer. Printed are the ratios with the targets of the project. All run in WAL
mode with synchronous=FULL and small snapshots.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from durable_agents import CheckpointManager, TaskManager, open_store

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only this folder is importable
from tests.benchmarks.benchmark_checkpoints import Bare, medians_us

if TYPE_CHECKING:
    from collections.abc import Callable

_WRITERS: Final = 10
_START_S: Final = 0.2
_WRITER: Final = """
import json, sys, time
from durable_agents import CheckpointManager, open_store
path, queue = sys.argv[1], sys.argv[2] == "queue"
with open_store(path, queue_writers=queue) as store:
    manager = CheckpointManager(store)
    print("ready", flush=True)
    begin_s, end_s = json.loads(sys.stdin.readline())
    time.sleep(max(0.0, begin_s - time.time()))
    count, worst_s, now_s = 0, 0.0, time.time()
    while now_s < end_s:
        manager.save("t", {"iteration": count})
        count, before_s, now_s = count + 1, now_s, time.time()
        worst_s = max(worst_s, now_s - before_s)
print(json.dumps([count, worst_s]))
"""


class Run(msgspec.Struct, frozen=True):
    """What the writers did in one run."""

    total: int
    most: int
    least: int
    worst_s: float


def run(folder: Path, way: str, writers: int, duration_s: float) -> Run:
    """Let so many processes write for so long."""
    path = folder / f"{way}-{time.monotonic_ns()}.db"
    with open_store(path) as store:
        TaskManager(store).create("t")
    command = [sys.executable, "-c", _WRITER, str(path), way]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(writers)]
    for process in processes:  # the time begins when all have started, on however slow a machine
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    begin_s = time.time() + _START_S
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(json.dumps([begin_s, begin_s + duration_s]) + "\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in processes]
    counts = [count for count, _ in found]
    return Run(sum(counts), max(counts), min(counts), max(worst_s for _, worst_s in found))


def processes_compared(folder: Path, rounds: int, writers: int, duration_s: float) -> list[str]:
    """Run both ways in turn; return the lines to print."""
    ways = ("plain", "queue")
    runs = [tuple(run(folder, way, writers, duration_s) for way in ways) for _ in range(rounds)]
    lines = [
        f"{writers} processes, {way}: {one.total} saved, most {one.most}, least {one.least}, "
        f"longest save {one.worst_s * 1000:.0f} ms"
        for pair in runs
        for way, one in zip(ways, pair, strict=True)
    ]
    median = statistics.median
    throughput = median(queue.total / plain.total for plain, queue in runs)
    waits = median(plain.worst_s / queue.worst_s for plain, queue in runs)
    shares = median(queue.most / max(1, queue.least) for _, queue in runs)
    return [
        *lines,
        f"throughput queue / plain: {throughput:.2f} (target 0.7)",
        f"longest save plain / queue: {waits:.0f} (target 20)",
        f"most / least served with the queue: {shares:.2f} (target below 1.5)",
    ]


def raw_per_s(folder: Path, duration_s: float) -> float:
    """Return how many rows one connection inserts and commits in a second."""
    bare = Bare(folder / f"bare-{time.monotonic_ns()}.db", b'{"iteration":1}')
    count, end_s = 0, time.perf_counter() + duration_s
    while time.perf_counter() < end_s:
        bare.save()
        count += 1
    bare.close()
    return count / duration_s


def threads_run(folder: Path, threads: int, duration_s: float, *, queue_writers: bool) -> Run:
    """Let so many threads of this process save checkpoints on one store."""
    with open_store(folder / f"threads-{time.monotonic_ns()}.db", queue_writers=queue_writers) as store:
        TaskManager(store).create("t")
        manager = CheckpointManager(store)
        found: list[tuple[int, float]] = []
        end_s = time.perf_counter() + duration_s

        def write() -> None:
            count, worst_s, now_s = 0, 0.0, time.perf_counter()
            while now_s < end_s:
                manager.save("t", {"iteration": 1})
                count, before_s, now_s = count + 1, now_s, time.perf_counter()
                worst_s = max(worst_s, now_s - before_s)
            found.append((count, worst_s))

        running = [threading.Thread(target=write) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    counts = [count for count, _ in found]
    return Run(sum(counts), max(counts), min(counts), max(worst_s for _, worst_s in found))


def threads_compared(folder: Path, rounds: int, threads: int, duration_s: float) -> list[str]:
    """One raw writer and the threads in turn, with and without the queue;
    return the lines to print.
    """
    lines = []
    for queue_writers in (False, True):
        raw, ours = [], []
        for _ in range(rounds):
            raw.append(raw_per_s(folder, duration_s))
            ours.append(threads_run(folder, threads, duration_s, queue_writers=queue_writers))
        ratio = statistics.median(one.total / duration_s / raw_s for one, raw_s in zip(ours, raw, strict=True))
        lines.append(
            f"{threads} threads{' with the queue' * queue_writers}: {ours[0].total / duration_s:.0f}/s, one raw writer "
            f"{raw[0]:.0f}/s, ratio {ratio:.2f} (target 1.4); most {ours[0].most}, least {ours[0].least}, "
            f"longest save {ours[0].worst_s * 1000:.1f} ms"
        )
    return lines


def alone(folder: Path) -> str:
    """Compare one writer on a store with the queue and on one without."""
    with (
        CheckpointManager(open_store(folder / "plain.db")) as plain,
        CheckpointManager(open_store(folder / "queue.db", queue_writers=True)) as queue,
    ):
        for manager in (plain, queue):
            TaskManager(manager.store).create("t")
        work: dict[str, Callable[[], object]] = {
            "plain": lambda: plain.save("t", 1),
            "queue": lambda: queue.save("t", 1),
        }
        medians = medians_us(work, 2000)
        plain.store.close()
        queue.store.close()
    return f"one writer alone: plain {medians['plain']:.1f} us, with the queue {medians['queue']:.1f} us"


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way")
    parser.add_argument("--duration-s", type=float, default=4.0, help="how long each run is")
    parser.add_argument("--writers", type=int, default=_WRITERS, help="how many processes, and threads")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-writers-") as name:
        folder = Path(name)
        lines = [
            *processes_compared(folder, options.rounds, options.writers, options.duration_s),
            *threads_compared(folder, options.rounds, options.writers, options.duration_s),
            alone(folder),
        ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
