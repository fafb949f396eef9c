"""Queues in files: an item that was put is there until it is taken."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from scenarios.targets.foreign.base import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class HueyQueue(Store):
    """huey's queue in SQLite as it is by default; ``foreign.servers`` has its consumer."""

    name = "huey, SqliteHuey"
    promise = "Tasks are kept in SQLite; with fsync=True each write is synced."
    source = "huey.readthedocs.io, API, SqliteHuey: fsync"
    modules = ("huey",)
    fsync: bool | None = None

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the queue with one task."""
        from huey import SqliteHuey

        queue = SqliteHuey(filename=str(directory / "huey.db"), fsync=self.fsync)

        def rows(key: int, value: bytes) -> None:
            del key, value

        try:
            yield queue, queue.task(name="rows")(rows)
        finally:
            queue.storage.close()

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Enqueue a task."""
        queue, task = store
        queue.enqueue(task.s(key, value))

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Return what is pending."""
        queue, _ = store
        return [task.args for task in queue.pending()]


class HueySynced(HueyQueue):
    """huey's queue with ``fsync=True``."""

    name = "huey, SqliteHuey, fsync=True"
    fsync = True


class PersistFileQueue(Store):
    """persist-queue's file queue: items in a chunk file, positions in a file that is replaced."""

    name = "persist-queue, Queue"
    promise = "What was put is kept at once, and a queue is recovered after a failure."
    source = "persist-queue's README, Features, and the docstring of Queue: autosave"
    modules = ("persistqueue",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the queue; its temporary files are beside it, on the same file system."""
        from persistqueue import Queue

        folder = directory / "queue"
        folder.mkdir(exist_ok=True)
        queue = Queue(str(folder), tempdir=str(folder))
        try:
            yield queue
        finally:
            queue.headf.close()
            queue.tailf.close()

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Put an item."""
        store.put((key, value))

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Get all items, and say of none that it is done."""
        return [store.get(block=False) for _ in range(store.qsize())]


class PersistSqliteQueue(PersistFileQueue):
    """persist-queue's queue in SQLite."""

    name = "persist-queue, FIFOSQLiteQueue"
    kind = "FIFOSQLiteQueue"

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the queue."""
        import persistqueue

        with closing(getattr(persistqueue, self.kind)(str(directory / "queue"), auto_commit=True)) as queue:
            yield queue

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read all items."""
        return [item["data"] for item in store.queue()]


class PersistAckQueue(PersistSqliteQueue):
    """persist-queue's queue in SQLite with acknowledgements."""

    name = "persist-queue, SQLiteAckQueue"
    kind = "SQLiteAckQueue"


class LiteQueue(Store):
    """litequeue as it is by default."""

    name = "litequeue"
    promise = "Messages persist in a SQLite file."
    source = "litequeue's README"
    modules = ("litequeue",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the queue."""
        import litequeue

        with closing(litequeue.LiteQueue(str(directory / "queue.db"))) as queue:
            yield queue

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Put a message, which is a text."""
        store.put(f"{key} {value.decode()}")

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read all messages: to pop one would lock it."""
        rows = [data.partition(" ") for (data,) in store.conn.execute(f"SELECT data FROM {store.table}")]  # noqa: S608 - its own name
        return [(int(key), text.encode()) for key, _, text in rows]
