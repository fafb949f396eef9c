"""Compare checkpoints with bare SQLite, interleaved in one process;
run it as a script (``--help``).

Printed are medians in microseconds, their ratios (bare / ours; the targets are 0.8 for a save and
0.85 for a read) and the median time of a flush of the device, without which a figure for a save
says nothing. Both sides write the same bytes to tables with the same columns and key, in WAL mode
with synchronous=FULL, each to its own file in one folder on a disk. A read of ours checks the hash
too, which the bare one does not; its decoder is msgspec's, so the bare read is measured with that
as well as with the standard library's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from durable_agents import CheckpointManager, TaskManager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SAVES: Final = 1500
_READS: Final = 20_000
_SNAPSHOT_BYTES: Final = 4096
_TASK: Final = "benchmark"


def snapshot_of(size_bytes: int) -> dict[str, object]:
    """Return a snapshot like an agent's, of about this many bytes of JSON."""
    messages: list[dict[str, object]] = []
    snapshot: dict[str, object] = {"iteration": 7, "stage": "implement", "messages": messages}
    while len(msgspec.json.encode(snapshot)) < size_bytes - 120:
        number = len(messages)
        messages.append({"role": "tool", "number": number, "ok": True, "text": "read the file and changed it " * 3})
    return snapshot


class Bare:
    """What anyone would write by hand with ``sqlite3``:
    an INSERT and its COMMIT, a SELECT and its decoding.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        """Make the file and its one table."""
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(
            "CREATE TABLE checkpoints (task_id TEXT, number INTEGER, type TEXT, snapshot TEXT, hash TEXT, at INTEGER,"
            " PRIMARY KEY (task_id, number))"
        )
        self._text = content.decode()
        self._hash = hashlib.sha256(content).hexdigest()
        self._number = 0

    def save(self) -> None:
        """Insert one row and commit it."""
        self._insert(self._text, self._hash)

    def encode_and_save(self, snapshot: object) -> None:
        """Make the text and its hash first, as ours has to."""
        text = json.dumps(snapshot)
        self._insert(text, hashlib.sha256(text.encode()).hexdigest())

    def _insert(self, text: str, content_hash: str) -> None:
        self._number += 1
        row = (_TASK, self._number, "iteration_end", text, content_hash, self._number)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?)", row)
        self._connection.execute("COMMIT")

    def read(self, decode: Callable[[str], object]) -> object:
        """Select the newest row and decode its snapshot."""
        statement = "SELECT number, snapshot, hash FROM checkpoints WHERE task_id = ? ORDER BY number DESC LIMIT 1"
        return decode(self._connection.execute(statement, (_TASK,)).fetchone()[1])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def medians_us(work: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Do each piece of work in turn, again and again,
    and return the median of each in microseconds.
    """
    names = list(work)
    times_ns: dict[str, list[int]] = {name: [] for name in names}
    for repetition in range(repetitions):
        for name in names if repetition % 2 else reversed(names):
            started_ns = time.perf_counter_ns()
            work[name]()
            times_ns[name].append(time.perf_counter_ns() - started_ns)
    return {name: statistics.median(times) / 1000 for name, times in times_ns.items()}


def numbered_medians_us(work: dict[str, Callable[[int], object]], numbers: Iterable[int]) -> dict[str, float]:
    """Do each piece of work in turn for each number; return the medians in microseconds."""
    names = list(work)
    times_ns: dict[str, list[int]] = {name: [] for name in names}
    for repetition, number in enumerate(numbers):
        for name in names if repetition % 2 else reversed(names):
            call = work[name]
            started_ns = time.perf_counter_ns()
            call(number)
            times_ns[name].append(time.perf_counter_ns() - started_ns)
    return {name: statistics.median(times) / 1000 for name, times in times_ns.items()}


def flush_us(folder: Path, size_bytes: int) -> float:
    """Return the median time that a write of this size takes until the device has it,
    in microseconds.
    """
    times_ns = []
    with (folder / "flush").open("wb", buffering=0) as file:
        for _ in range(200):
            file.write(bytes(size_bytes))
            started_ns = time.perf_counter_ns()
            os.fdatasync(file.fileno())
            times_ns.append(time.perf_counter_ns() - started_ns)
    return statistics.median(times_ns) / 1000


def measure(folder: Path, saves: int, reads: int, size_bytes: int) -> list[str]:
    """Run everything in the folder and return the lines to print."""
    snapshot = snapshot_of(size_bytes)
    content = msgspec.json.encode(snapshot)
    bare = Bare(folder / "bare.db", content)
    with CheckpointManager(db_path=folder / "ours.db") as manager:
        TaskManager(manager.store).create(_TASK)
        saved = medians_us(
            {
                "bare": bare.save,
                "bare, json.dumps and SHA-256": lambda: bare.encode_and_save(snapshot),
                "ours": lambda: manager.save(_TASK, snapshot),
            },
            saves,
        )
        decoder = msgspec.json.Decoder()
        read = medians_us(
            {
                "bare, json.loads": lambda: bare.read(json.loads),
                "bare, msgspec": lambda: bare.read(decoder.decode),
                "ours": lambda: manager.latest(_TASK),
            },
            reads,
        )
    bare.close()
    return [
        f"snapshot {len(content)} bytes, SQLite {sqlite3.sqlite_version}, {folder}",
        f"flush of {size_bytes} bytes: {flush_us(folder, size_bytes):.0f} us",
        *_lines("save", saved, 0.8),
        *_lines("latest", read, 0.85),
    ]


def _lines(what: str, medians: dict[str, float], target: float) -> list[str]:
    ours = medians.pop("ours")
    peers = [f"{what}: {name} {value:.1f} us, ours {ours:.1f} us" for name, value in medians.items()]
    ratios = [value / ours for value in medians.values()]
    return [f"{peer}, ratio {ratio:.2f} (target {target})" for peer, ratio in zip(peers, ratios, strict=True)]


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--saves", type=int, default=_SAVES, help="how many saves on each side")
    parser.add_argument("--reads", type=int, default=_READS, help="how many reads on each side")
    parser.add_argument("--snapshot-bytes", type=int, default=_SNAPSHOT_BYTES, help="how large a snapshot is")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-checkpoints-") as folder:
        lines = measure(Path(folder), options.saves, options.reads, options.snapshot_bytes)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
