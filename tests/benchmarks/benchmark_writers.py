"""Compare ten processes that write to one database with and without turns, in turn; run it as a script (``--help``).

Printed are, for each way: how many checkpoints were saved, the most and the least by one process, and the longest that
one save took; then the ratios with the targets of the project. All run in WAL mode with synchronous=FULL.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import msgspec

from recovery import TaskManager, open_store

_WRITERS: Final = 10
_START_S: Final = 2.0
_WRITER: Final = """
import json, sys, time
from recovery import CheckpointManager, open_store
path, turns, begin_s, end_s = sys.argv[1], sys.argv[2] == "turns", float(sys.argv[3]), float(sys.argv[4])
with open_store(path, takes_turns=turns) as store:
    manager = CheckpointManager(store)
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


def run(folder: Path, way: str, duration_s: float) -> Run:
    """Let the writers write for so long."""
    path = folder / f"{way}-{time.monotonic_ns()}.db"
    with open_store(path) as store:
        TaskManager(store).create("t")
    begin_s = time.time() + _START_S
    command = [sys.executable, "-c", _WRITER, str(path), way, str(begin_s), str(begin_s + duration_s)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(_WRITERS)]
    found = [json.loads(writer.communicate()[0]) for writer in writers]
    counts = [count for count, _ in found]
    return Run(sum(counts), max(counts), min(counts), max(worst_s for _, worst_s in found))


def measure(folder: Path, rounds: int, duration_s: float) -> list[str]:
    """Run both ways in turn; return the lines to print."""
    runs = [(run(folder, "plain", duration_s), run(folder, "turns", duration_s)) for _ in range(rounds)]
    lines = [
        f"{way}: {one.total} saved, most {one.most}, least {one.least}, longest save {one.worst_s * 1000:.0f} ms"
        for pair in runs
        for way, one in zip(("plain", "turns"), pair, strict=True)
    ]
    median = statistics.median
    throughput = median(turns.total / plain.total for plain, turns in runs)
    waits = median(plain.worst_s / turns.worst_s for plain, turns in runs)
    shares = median(turns.most / max(1, turns.least) for _, turns in runs)
    return [
        *lines,
        f"throughput turns / plain: {throughput:.2f} (target 0.7)",
        f"longest save plain / turns: {waits:.0f} (target 20)",
        f"most / least served with turns: {shares:.2f} (target below 1.5)",
    ]


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way")
    parser.add_argument("--duration-s", type=float, default=4.0, help="how long each run is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-writers-") as folder:
        lines = measure(Path(folder), options.rounds, options.duration_s)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
