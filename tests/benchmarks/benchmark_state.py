"""Measure grouped state, hydration and start-up; run it as a script.

``set`` is compared with bare SQLite, interleaved in one process: an upsert by hand into a table of
the same shape, in WAL mode with synchronous=FULL, on a file in the same folder on a disk; JSON is
encoded on both sides. Hydration is of workspaces whose files and store agree, as after a clean
stop, and of the first start, when the store knows nothing. Start-up after a clean stop is measured
among few and among many dispatches and cycles of the past, interleaved.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from durable_agents import Buffers, Roots, StateGroup, StateStore, Workspaces
from durable_agents.state.startup import startup
from durable_agents.store.rows import Cycle, CycleEntry, StateEntry

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only this folder is importable
from tests.benchmarks.benchmark_checkpoints import numbered_medians_us

if TYPE_CHECKING:
    from collections.abc import Callable

_SETS: Final = 1000
_WORKSPACES: Final = 10_000
_STARTS: Final = 15
_HISTORY: Final = (100, 200_000)
_VALUE: Final = {"status": "running", "agent": "codex:gpt-5.4", "repo": "go-io", "branch": "agent/x", "pid": 4711}


class Bare:
    """A table of groups and keys, by hand."""

    def __init__(self, path: Path) -> None:
        """Make the file."""
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE s (g TEXT, k TEXT, v TEXT, PRIMARY KEY (g, k)) WITHOUT ROWID")

    def set(self, group: str, key: str, value: object) -> None:
        """Insert or replace one value."""
        self._connection.execute("INSERT OR REPLACE INTO s VALUES (?, ?, ?)", (group, key, json.dumps(value)))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def sets(folder: Path, repetitions: int) -> str:
    """Durable sets, over a thousand keys, against bare SQLite."""
    bare = Bare(folder / "bare.db")
    with StateStore(db_path=folder / "ours.db") as state:
        work: dict[str, Callable[[int], Any]] = {
            "bare": lambda number: bare.set("registry", f"core/go-io/task-{number}", _VALUE),
            "ours": lambda number: state.set(StateGroup.REGISTRY, f"core/go-io/task-{number}", _VALUE),
        }
        medians = numbered_medians_us(work, range(repetitions))
    bare.close()
    ratio = medians["bare"] / medians["ours"]
    return f"set: bare {medians['bare']:.0f} us, ours {medians['ours']:.0f} us, ratio {ratio:.2f} (target 0.8)"


def lay(roots: Roots, count: int) -> None:
    """Lay workspaces, three folders deep, a tenth of them waiting."""
    for number in range(count):
        folder = roots.workspaces / f"org-{number % 5}" / f"repo-{number % 100}" / f"task-{number}"
        folder.mkdir(parents=True)
        status = {**_VALUE, "status": "completed" if number % 10 else "queued", "started_at": number}
        (folder / "status.json").write_text(json.dumps(status))


def hydrations(folder: Path, count: int) -> list[str]:
    """Hydrate many workspaces: the first time, and after a clean stop."""
    roots = Roots(str(folder / "many"))
    roots.make()
    lay(roots, count)
    times_s = [hydrated_s(roots, count) for _ in range(6)]
    first, again = times_s[0], statistics.median(times_s[1:])
    return [
        f"hydrate {count} workspaces, the first time: {first:.2f} s (target 1 s)",
        f"hydrate {count} workspaces, after a clean stop: {again:.2f} s (target 1 s)",
    ]


def hydrated_s(roots: Roots, count: int) -> float:
    """Return how long a new agent takes to hydrate."""
    with StateStore(db_path=roots.database) as state:
        workspaces = Workspaces(roots, state)
        started_s = time.perf_counter()
        found = workspaces.hydrate()
        elapsed_s = time.perf_counter() - started_s
    assert found.workspaces == count
    assert found.problems == ()
    return elapsed_s


def with_history(folder: Path, rows: int) -> Roots:
    """Return the folder of an agent with ten workspaces, that many dispatches,
    and a tenth as many cycles.
    """
    roots = Roots(str(folder))
    roots.make()
    lay(roots, 10)
    with StateStore(db_path=roots.database) as state:
        store = state.store
        assert store is not None
        with store.transaction() as transaction:
            value = json.dumps(_VALUE).encode()
            transaction.put_states(
                [StateEntry("dispatch_history", f"{number:020d} w", value) for number in range(rows)]
            )
            for number in range(rows // 10):
                transaction.insert_cycle(Cycle(f"{number:016x}", "qa", number))
            transaction.insert_cycle_entries(
                [CycleEntry(f"{number:016x}", 1, "finding", b"{}") for number in range(rows // 10)]
            )
    start(roots)
    return roots


def start(roots: Roots) -> None:
    """Start an agent, and stop it cleanly."""
    with StateStore(db_path=roots.database) as state:
        startup(Workspaces(roots, state), Buffers(roots, state), state)


def growth(folder: Path, starts: int) -> str:
    """Start-up among few and many rows of the past."""
    few, many = (with_history(folder / str(rows), rows) for rows in _HISTORY)
    medians = numbered_medians_us({"few": lambda _: start(few), "many": lambda _: start(many)}, range(starts))
    return (
        f"start after a clean stop with {_HISTORY[0]} dispatches {medians['few'] / 1000:.1f} ms, with {_HISTORY[1]} "
        f"{medians['many'] / 1000:.1f} ms, ratio {medians['many'] / medians['few']:.2f} (target 1, flat)"
    )


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--sets", type=int, default=_SETS, help="how many values on each side")
    parser.add_argument("--workspaces", type=int, default=_WORKSPACES, help="how many workspaces to hydrate")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-state-") as name:
        folder = Path(name)
        lines = [sets(folder, options.sets), *hydrations(folder, options.workspaces), growth(folder, _STARTS)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
