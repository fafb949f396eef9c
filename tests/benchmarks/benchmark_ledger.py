"""Compare the tool ledger with bare SQLite, diskcache and DBOS, interleaved in one process;
run it as a script.

Printed are medians in microseconds and ratios (raw or peer / ours: 1 is as fast, more is faster),
each with the target of the project. "Raw" is what anyone would write by hand: for a replay, a
SELECT by a text key on a connection that maps the file into memory, and a decoder; for a first
execution, an INSERT of the intent and an UPDATE with the outcome, each a commit in WAL mode with
synchronous=FULL. The tool does nothing, so what is measured is what a ledger adds.

DBOS replays a step when a workflow is recovered: a workflow of some hundred steps is forked behind
its last one, and the time of each call is taken. diskcache is measured through its ``memoize``.
Both only where they are installed.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import pstats
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from durable_agents import RAISE, ToolLedger
from durable_agents.once.requests import request_hash

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only this folder is importable
from tests.benchmarks.benchmark_checkpoints import numbered_medians_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CALLS: Final = 1000
_FIRST: Final = 400
_STEPS: Final = 300
_MAPPED_BYTES: Final = 1024 * 1024 * 1024
_OUTPUT: Final = {"exit_code": 0, "text": "a line of output\n" * 60}


class Raw:
    """Intents and outcomes in one table, by hand."""

    def __init__(self, path: Path) -> None:
        """Make the file."""
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE calls (key TEXT PRIMARY KEY, status TEXT, outcome BLOB)")
        self._reader = sqlite3.connect(path, isolation_level=None)
        self._reader.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
        self._encode, self._decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode

    def first(self, key: str) -> None:
        """Write an intent, and an outcome."""
        self._connection.execute("INSERT INTO calls VALUES (?, 'executing', NULL)", (key,))
        self._connection.execute(
            "UPDATE calls SET status = 'done', outcome = ? WHERE key = ?", (self._encode(_OUTPUT), key)
        )

    def replay(self, key: str) -> Any:
        """Return an outcome."""
        row = self._reader.execute("SELECT outcome FROM calls WHERE key = ?", (key,)).fetchone()
        return self._decode(row[0])

    def checkpoint(self) -> None:
        """Copy the log into the file."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
        self._reader.close()


def arguments_of(number: int) -> dict[str, Any]:
    """Return the arguments of a call."""
    return {"path": f"src/module_{number}.py", "pattern": "def main", "limit": 50}


def call(ledger: ToolLedger, number: int) -> Any:
    """Call a tool through the ledger."""
    return ledger.run("search", arguments_of(number), lambda: _OUTPUT, in_doubt=RAISE).output


def firsts(folder: Path, calls: int) -> Iterator[str]:
    """First executions against two raw commits."""
    raw = Raw(folder / "raw-first.db")
    with ToolLedger(db_path=folder / "first.db") as ledger:
        call(ledger, -1)
        keys = {number: request_hash(["search", arguments_of(number)]) for number in range(calls)}
        work = {"raw": lambda number: raw.first(keys[number]), "ours": lambda number: call(ledger, number)}
        medians = numbered_medians_us(work, range(calls))
    raw.close()
    yield (
        f"first execution: two raw commits {medians['raw']:.0f} us, ours {medians['ours']:.0f} us, "
        f"ratio {medians['raw'] / medians['ours']:.2f} (target 0.85)"
    )


def replays(folder: Path, calls: int) -> Iterator[str]:
    """Replays against a raw SELECT, diskcache and DBOS."""
    raw = Raw(folder / "raw.db")
    with ToolLedger(db_path=folder / "ours.db") as ledger:
        keys = [request_hash(["search", arguments_of(number)]) for number in range(calls)]
        for number in range(calls):
            raw.first(keys[number])
            call(ledger, number)
        raw.checkpoint()
        _checkpoint(folder / "ours.db")
        work: dict[str, Callable[[int], object]] = {
            "raw": lambda number: raw.replay(keys[number % calls]),
            "ours": lambda number: call(ledger, number % calls),
            "ours by ready key": lambda number: ledger.store.result("tool/" + keys[number % calls]),
        }
        memoized = _memoized(folder, calls)
        if memoized is not None:
            work["diskcache"] = lambda number: memoized(arguments_of(number % calls))
        medians = numbered_medians_us(work, range(calls * 5))
    raw.close()
    yield "medians of replays: " + ", ".join(f"{name} {value:.1f} us" for name, value in medians.items())
    yield f"replay: {medians['raw'] / medians['ours']:.2f} of raw SELECT and decode (target 0.5)"
    if memoized is not None:
        yield f"replay: {medians['diskcache'] / medians['ours']:.1f} times diskcache memoize (target 4)"
    if (step_us := _dbos_step_us(folder)) is not None:
        yield f"replay: {step_us / medians['ours']:.1f} times a DBOS step of {step_us:.0f} us (target 30)"


def _checkpoint(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _memoized(folder: Path, calls: int) -> Callable[[dict[str, Any]], Any] | None:
    try:
        diskcache: Any = importlib.import_module("diskcache")
    except ImportError:
        return None

    @diskcache.Cache(str(folder / "diskcache")).memoize()  # type: ignore[untyped-decorator]
    def search(path: str, pattern: str, limit: int) -> dict[str, Any]:
        return _OUTPUT | {"found": [path, pattern, limit]}

    def memoized(arguments: dict[str, Any]) -> Any:
        return search(**arguments)

    for number in range(calls):
        memoized(arguments_of(number))
    return memoized


def _dbos_step_us(folder: Path) -> float | None:
    try:
        dbos: Any = importlib.import_module("dbos")
    except ImportError:
        return None
    url = f"sqlite:///{folder}/dbos.sqlite"
    dbos.DBOS(config={"name": "benchmark", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False})
    times_ns: list[int] = []

    @dbos.DBOS.step()  # type: ignore[untyped-decorator]
    def step(number: int) -> dict[str, Any]:
        assert number >= 0
        return _OUTPUT

    @dbos.DBOS.workflow()  # type: ignore[untyped-decorator]
    def workflow(steps: int) -> None:
        times_ns.clear()
        for number in range(steps):
            started_ns = time.perf_counter_ns()
            step(number)
            times_ns.append(time.perf_counter_ns() - started_ns)

    dbos.DBOS.launch()
    try:
        with dbos.SetWorkflowID("first"):
            workflow(_STEPS)
        dbos.DBOS.fork_workflow("first", _STEPS + 1).get_result()
    finally:
        dbos.DBOS.destroy()
    return statistics.median(times_ns) / 1000


def profile(folder: Path, calls: int) -> None:
    """Print where the time of first executions, and of replays, goes."""
    with ToolLedger(db_path=folder / "profile.db") as ledger:
        for _ in range(2):
            profiler = cProfile.Profile()
            profiler.enable()
            for number in range(calls):
                call(ledger, number)
            profiler.disable()
            pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(16)


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--calls", type=int, default=_CALLS, help="how many outcomes there are")
    parser.add_argument("--first", type=int, default=_FIRST, help="how many first executions")
    parser.add_argument("--profile", action="store_true", help="print profiles, and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-ledger-") as name:
        if options.profile:
            profile(Path(name), options.calls)
            return
        for line in (*firsts(Path(name), options.first), *replays(Path(name), options.calls)):
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
