"""The same libraries with two processes that write at once, under several schedules."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

from scenarios.targets.foreign.base import Foreign, Store, value_of
from scenarios.targets.foreign.embedded import Lmdb as OneLmdb
from scenarios.targets.libraries import dictionaries, frameworks, queues

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pytest_chaos import Marks

KEYS = 2
"""Keys of each process."""


class Together(Foreign):
    """Two processes open one store, and each puts keys of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = f"{store.name}, two processes"  # type: ignore[misc] # one class for all of them
        self.damage = store.damage  # type: ignore[misc] # as above

    def missing(self) -> str:
        """Return what is not installed here, or nothing."""
        return self.store.missing()

    def setup(self, directory: Path) -> None:
        """Make an empty store."""
        self.store.setup(directory)

    def run(self, directory: Path, marks: Marks) -> None:
        """Put keys in two processes."""
        fork = multiprocessing.get_context("fork")
        writers = [fork.Process(target=self._write, args=(directory, marks, first)) for first in (1, 1 + KEYS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        if failed := [str(writer.exitcode) for writer in writers if writer.exitcode]:
            message = f"a writer exits {' and '.join(failed)}"
            raise RuntimeError(message)

    def _write(self, directory: Path, marks: Marks, first: int) -> None:
        with self.store.opened(directory) as store:
            for key in range(first, first + KEYS):
                marks.intent("put", key)
                self.store.put(store, key, value_of(key))
                marks.ack("put", key)

    def recover(self, directory: Path) -> None:
        """Open the store, and close it."""
        self.store.recover(directory)

    def found(self, directory: Path) -> Iterable[int]:
        """Return the keys."""
        return self.store.found(directory)


huey = Together(queues.HueySynced())
persist_file = Together(queues.PersistFileQueue())
persist_sqlite = Together(queues.PersistSqliteQueue())
persist_ack = Together(queues.PersistAckQueue())
litequeue = Together(queues.LiteQueue())
diskcache = Together(dictionaries.DiskCache())
tinydb = Together(dictionaries.TinyDb())
dumb = Together(dictionaries.Dumb())
shelve = Together(dictionaries.Shelve())
sqlitedict = Together(dictionaries.SqliteDictionary())
pickledb = Together(dictionaries.PickleDb())
apscheduler = Together(frameworks.ApScheduler())
langgraph = Together(frameworks.LangGraphSaver())
lmdb = Together(OneLmdb())
