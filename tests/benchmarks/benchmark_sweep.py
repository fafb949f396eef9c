"""Compare a sweep with one bare UPDATE of as many rows, on copies of one file;
run it as a script (``--help``).

A sweep also writes an audit row and a boundary checkpoint for each item, in short transactions; the
bare statement does nothing of the kind, in one long one. Printed are medians over rounds, the ratio
(bare / ours), and the longest time that one transaction of the sweep kept the write lock, its
COMMIT and the flush included. litequeue, where it is installed, has no sweep: what a dead worker
held is given back message by message (``list_locked``, ``retry``).
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from durable_agents import ManualClock, RecoverySweep, SqliteStore, TaskManager
from durable_agents.store import init_factory
from durable_agents.store.sqlite.store import SqliteTransaction

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_ITEMS: Final = 10_000
_ROUNDS: Final = 5
_MESSAGES: Final = 1000
_TARGET: Final = 0.25
_BARE: Final = (
    "UPDATE work_items SET status = 'pending', retries = retries + 1, lease_holder = NULL, lease_expires_at = NULL, "
    "error = 'expired', updated_at = 2 WHERE status = 'in_progress' AND lease_expires_at <= 1"
)
_INSERT: Final = (
    "INSERT INTO work_items (task_id, type, priority, status, retries, max_retries, lease_token, lease_holder, "
    "lease_expires_at, heartbeat_at, error, created_at, updated_at) "
    "SELECT column1, 'work', 0, 'in_progress', 0, 3, column2, 'holder-1234', 1, 0, '', 0, 0 FROM (VALUES {rows})"
)


class TimedTransaction(SqliteTransaction):
    """A transaction that tells its store how long it had the write lock."""

    __slots__ = ("_began_s",)

    def __enter__(self) -> Self:
        """Begin."""
        super().__enter__()
        self._began_s = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, and note."""
        super().__exit__(kind, error, traceback)
        assert isinstance(self._store, TimedStore)
        self._store.locks_s.append(time.perf_counter() - self._began_s)


class TimedStore(SqliteStore):
    """A store that keeps how long its transactions took."""

    locks_s: list[float]

    def transaction(self) -> TimedTransaction:
        """Return a block that is one transaction."""
        return TimedTransaction(self)


def made(path: Path, items: int, tasks: int) -> None:
    """Make a file with so many expired leases, spread over tasks."""
    with SqliteStore(init_factory(path)) as store:
        for number in range(tasks):
            TaskManager(store).create(f"task-{number}")
        with store.transaction() as transaction:
            transaction.execute_rows(_INSERT, [(f"task-{number % tasks}", number + 1) for number in range(items)])
        with closing(store.factory()) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def bare_s(path: Path) -> float:
    """Return how long the one statement takes, in seconds."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        began_s = time.perf_counter()
        connection.execute(_BARE)
        return time.perf_counter() - began_s


def sweep_s(path: Path, items: int) -> tuple[float, float]:
    """Return how long a sweep takes, and its longest lock, in seconds."""
    with TimedStore(init_factory(path)) as store:
        store.locks_s = []
        sweep = RecoverySweep(store, clock=ManualClock(2))
        began_s = time.perf_counter()
        found = sweep.run_once()
        elapsed_s = time.perf_counter() - began_s
    assert (found.expired_found, found.recovered) == (items, items)
    return elapsed_s, max(store.locks_s)


def litequeue_us(folder: Path) -> float | None:
    """Return how long litequeue takes to give one message back, in microseconds;
    None where it is not installed.
    """
    try:
        module = importlib.import_module("litequeue")
    except ImportError:
        return None
    queue: Any = module.LiteQueue(str(folder / "litequeue.db"))
    queue.conn.execute("PRAGMA synchronous = FULL")
    with queue.transaction():
        for number in range(_MESSAGES):
            queue.put(str(number))
            queue.conn.execute("UPDATE Queue SET status = 1, lock_time = 1 WHERE status = 0")
    began_s = time.perf_counter()
    locked = list(queue.list_locked(0))
    for message in locked:
        queue.retry(message.message_id)
    elapsed_s = time.perf_counter() - began_s
    assert len(locked) == _MESSAGES
    queue.close()
    return elapsed_s * 1e6 / _MESSAGES


def measure(folder: Path, items: int, rounds: int, tasks: int) -> list[str]:
    """Run both in turn, each on a fresh copy; return the lines to print."""
    made(folder / "made.db", items, tasks)
    bare, ours, locks = [], [], []
    for _ in range(rounds):
        for kind in ("bare", "ours"):
            path = folder / f"{kind}.db"
            for old in folder.glob(f"{kind}.db*"):
                old.unlink()
            shutil.copy(folder / "made.db", path)
            if kind == "bare":
                bare.append(bare_s(path))
            else:
                elapsed_s, lock_s = sweep_s(path, items)
                ours.append(elapsed_s)
                locks.append(lock_s)
    bare_us, ours_us = (statistics.median(times) * 1e6 / items for times in (bare, ours))
    speed = f"bare UPDATE {bare_us:.2f} us each, ours {ours_us:.2f} us each, ratio {bare_us / ours_us:.2f}"
    lock_ms = statistics.median(locks) * 1000
    peer_us = litequeue_us(folder)
    peer = [] if peer_us is None else [f"litequeue {peer_us:.1f} us each, ratio {peer_us / ours_us:.1f} (target 5)"]
    return [
        *peer,
        f"sweep of {items} leases of {tasks} tasks: {speed} (target {_TARGET})",
        f"longest transaction of a sweep: {lock_ms:.1f} ms (target 10 ms at 10,000, 50 ms at 1,000,000)",
    ]


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--items", type=int, default=_ITEMS, help="how many expired leases")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="how often")
    parser.add_argument("--tasks", type=int, default=10, help="over how many tasks they are spread")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-sweep-") as folder:
        lines = measure(Path(folder), options.items, options.rounds, options.tasks)
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
