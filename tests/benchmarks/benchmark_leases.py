"""Compare leases with bare SQLite and with queues of others, interleaved in one process;
run it as a script.

Printed are medians in microseconds and ratios (peer / ours), each with the target of the project.
Every side writes in WAL mode with synchronous=FULL to a file of its own in one folder on a disk.
"Bare" is what anyone would write by hand: an UPDATE of the first pending row with RETURNING, and an
UPDATE that completes it. persist-queue and litequeue are measured where they are installed.
"""

from __future__ import annotations

import argparse
import importlib
import sqlite3
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from durable_agents import CheckpointManager, LeaseManager, RecoverySweep, TaskManager

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run by its path, only this folder is importable
from tests.benchmarks.benchmark_checkpoints import medians_us

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents import Lease

_ITEMS: Final = 1000
_BATCH: Final = 10
_TASK: Final = "benchmark"
_FINISHED: Final = (1_000, 1_000_000)


class Bare:
    """A queue in one table, by hand."""

    def __init__(self, path: Path, items: int) -> None:
        """Make the file, with so many pending rows."""
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE q (id INTEGER PRIMARY KEY, status TEXT, holder TEXT, until INTEGER)")
        self._connection.execute("CREATE INDEX q_pending ON q (id) WHERE status = 'pending'")
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT INTO q (status) VALUES (?)", [("pending",)] * items)
        self._connection.execute("COMMIT")

    def take_and_complete(self) -> None:
        """Take the first row, and complete it."""
        (number,) = self._connection.execute(
            "UPDATE q SET status = 'taken', holder = 'h', until = ? WHERE id = "
            "(SELECT id FROM q WHERE status = 'pending' ORDER BY id LIMIT 1) RETURNING id",
            (time.time_ns() // 1000,),
        ).fetchone()
        self._connection.execute("UPDATE q SET status = 'done', holder = NULL WHERE id = ?", (number,))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def filled(path: Path, items: int, *, finished: int = 0) -> LeaseManager:
    """Return a manager of a new file with pending items, and rows that have ended."""
    leases = LeaseManager(db_path=path)
    TaskManager(leases.store).create(_TASK)
    with leases.store.transaction() as transaction:
        for _ in range(items):
            transaction.insert_work_item(task_id=_TASK, type="work", priority=0, max_retries=3, now=1)
        row = (_TASK, "work", 0, "completed", 0, 3, "", 1, 1)
        names = "task_id, type, priority, status, retries, max_retries, error, created_at, updated_at, lease_token"
        transaction.execute_rows(  # type: ignore[attr-defined]
            f"INSERT INTO work_items ({names}) VALUES {{rows}}",  # noqa: S608 - constants
            [(*row, token + 1) for token in range(finished)],
        )
    return leases


def take_and_complete(leases: LeaseManager) -> None:
    """Take one item and complete it: two commits."""
    lease = leases.acquire("h", ttl_s=60)
    assert lease is not None
    leases.complete(lease)


def take_one(leases: LeaseManager) -> None:
    """Take one item."""
    assert leases.acquire("h", ttl_s=60) is not None


def take_ten(leases: LeaseManager) -> None:
    """Take ten items in one commit."""
    assert len(leases.acquire_many("h", limit=_BATCH, ttl_s=60)) == _BATCH


def peers(folder: Path, items: int) -> dict[str, tuple[Callable[[], object], float]]:
    """Return the queues of others that are installed, filled,
    each with the ratio that is the target.
    """
    found: dict[str, tuple[Callable[[], object], float]] = {}
    if (litequeue := _module("litequeue")) is not None:
        queue: Any = litequeue.LiteQueue(str(folder / "litequeue.db"))
        queue.conn.execute("PRAGMA synchronous = FULL")
        for number in range(items):
            queue.put(str(number))
        found["litequeue"] = (lambda: queue.done(queue.pop().message_id), 3.0)
    if (persistqueue := _module("persistqueue")) is not None:
        acks: Any = persistqueue.SQLiteAckQueue(str(folder / "persistqueue"), auto_commit=True)
        for number in range(items):
            acks.put(number)
        found["persist-queue"] = (lambda: acks.ack(acks.get()), 1.1)
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def compare(folder: Path, items: int) -> list[str]:
    """Take and complete, against bare SQLite and the peers."""
    bare = Bare(folder / "bare.db", items)
    others = peers(folder, items)
    with filled(folder / "ours.db", items) as leases:
        work = {"bare": bare.take_and_complete, "ours": lambda: take_and_complete(leases)}
        medians = medians_us(work | {name: call for name, (call, _) in others.items()}, items)
    bare.close()
    targets = {"bare": 0.9} | {name: target for name, (_, target) in others.items()}
    return [
        f"take and complete: {name} {medians[name]:.0f} us, ours {medians['ours']:.0f} us, "
        f"ratio {medians[name] / medians['ours']:.2f} (target {target})"
        for name, target in targets.items()
    ]


def batches(folder: Path, items: int) -> str:
    """Ten at once against ten times one."""
    with filled(folder / "one.db", items) as one, filled(folder / "ten.db", items * _BATCH) as ten:
        medians = medians_us({"one": lambda: take_one(one), "ten": lambda: take_ten(ten)}, items)
    ratio = medians["one"] * _BATCH / medians["ten"]
    return f"take: one {medians['one']:.0f} us, ten at once {medians['ten']:.0f} us, ratio {ratio:.2f} (target 5)"


def growth(folder: Path, items: int) -> list[str]:
    """Each operation among few and among many items that have ended."""
    few, many = (filled(folder / f"{count}.db", items * 3, finished=count) for count in _FINISHED)
    held = {manager: manager.acquire("h", ttl_s=3600) for manager in (few, many)}
    lines = []
    for name, call in _operations(held).items():
        work: dict[str, Callable[[], object]] = {"few": partial(call, few), "many": partial(call, many)}
        medians = medians_us(work, items)
        lines.append(
            f"{name} among {_FINISHED[0]} finished {medians['few']:.0f} us, among {_FINISHED[1]} "
            f"{medians['many']:.0f} us, ratio {medians['many'] / medians['few']:.2f} (target 1, no growth)"
        )
    few.close()
    many.close()
    return lines


def _operations(held: dict[LeaseManager, Lease | None]) -> dict[str, Callable[[LeaseManager], object]]:
    def renew(leases: LeaseManager) -> None:
        lease = held[leases]
        assert lease is not None
        held[leases] = leases.renew(lease)

    def save(leases: LeaseManager) -> None:
        CheckpointManager(leases.store).save(_TASK, 1, lease=held[leases])

    def sweep(leases: LeaseManager) -> None:
        leases.acquire("h", ttl_s=0.000_01)
        RecoverySweep(leases.store).run_once()

    return {
        "take and complete": take_and_complete,
        "enqueue": lambda leases: leases.enqueue(_TASK, "work"),
        "renew": renew,
        "fenced checkpoint": save,
        "take and sweep": sweep,
    }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path.home(), help="a folder on the disk to measure")
    parser.add_argument("--items", type=int, default=_ITEMS, help="how many items on each side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="benchmark-leases-") as name:
        folder = Path(name)
        lines = [
            *compare(folder, options.items),
            batches(folder, options.items // 2),
            *growth(folder, options.items // 2),
        ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
