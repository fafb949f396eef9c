"""Dictionaries and caches in files: a key that was set, and saved as the documentation says."""

from __future__ import annotations

import warnings
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from scenarios.targets.foreign.base import Store, value_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class DiskCache(Store):
    """diskcache's Cache as it is by default."""

    name = "diskcache, Cache"
    promise = "Thread-safe and process-safe, kept in SQLite; it is a cache, and syncs as synchronous=NORMAL does."
    source = "grantjenks.com/docs/diskcache, tutorial, Settings: sqlite_synchronous"
    modules = ("diskcache",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the cache."""
        import diskcache

        with closing(diskcache.Cache(str(directory / "cache"))) as cache:
            yield cache

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Set a key."""
        store.set(key, value)

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read everything."""
        return [(key, store[key]) for key in store]


class TinyDb(Store):
    """tinydb with its JSON file."""

    name = "tinydb"
    promise = "None of ACID, and one process: the documentation names both as reasons not to use it."
    source = "tinydb.readthedocs.io, Introduction, 'Why Not Use TinyDB?'"
    modules = ("tinydb",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the file."""
        from tinydb import TinyDB

        with closing(TinyDB(directory / "rows.json")) as store:
            yield store

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Insert a document."""
        store.insert({"key": key, "value": value.decode()})

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read all documents."""
        return [(each["key"], each["value"].encode()) for each in store.all()]


class Dumb(Store):
    """dbm.dumb, which is always there."""

    name = "dbm.dumb"
    promise = "sync() writes the directory to the disk; nothing is said of a crash."
    source = "docs.python.org, dbm.dumb, dumbdbm.sync"

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the files."""
        import dbm.dumb

        with closing(dbm.dumb.open(str(directory / "rows"), "c")) as store:
            yield store

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Set a key, and sync."""
        store[str(key)] = value
        store.sync()

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read everything."""
        return [(int(key), store[key]) for key in list(store.keys())]


class Shelve(Dumb):
    """shelve over the first kind of dbm that is here: GNU's, ndbm, or dbm.dumb."""

    name = "shelve"
    promise = "sync() synchronises the dictionary on the disk; no concurrent writing; nothing is said of a crash."
    source = "docs.python.org, shelve, Shelf.sync and Restrictions"

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the shelf."""
        import shelve

        with closing(shelve.open(str(directory / "rows"))) as store:  # noqa: S301 - we wrote it
            yield store


class SqliteDictionary(Store):
    """sqlitedict, with a commit after each key."""

    name = "sqlitedict"
    promise = "commit() persists; it opens SQLite with synchronous=OFF, so only the kernel keeps what was committed."
    source = "sqlitedict's README, and PRAGMA synchronous in its source"
    modules = ("sqlitedict",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the file."""
        from sqlitedict import SqliteDict

        with closing(SqliteDict(str(directory / "rows.db"))) as store:
            yield store

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Set a key, and commit."""
        store[key] = value
        store.commit()

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read everything."""
        return [(int(key), value) for key, value in store.items()]


class PickleDb(Store):
    """pickledb, saved after each key."""

    name = "pickledb"
    promise = "save() replaces the file atomically; nothing is said of a power loss."
    source = "patx.github.io/pickledb, and the docstring of PickleDB.save"
    modules = ("pickledb",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Load the file."""
        from pickledb import PickleDB

        store = PickleDB(str(directory / "rows.json"))
        store.load()
        yield store

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Set a key, and save."""
        store.set(key, value.decode())
        store.save()

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read everything."""
        return [(int(key), store.get(key).encode()) for key in store.all()]


class JoblibMemory(Store):
    """joblib's Memory: a result that is lost or damaged is computed again, and none is wrong."""

    name = "joblib, Memory"
    promise = "A result comes from the cache or is computed again; what cannot be loaded is computed again."
    source = "joblib.readthedocs.io, Memory; joblib/memory.py, _cached_call"
    modules = ("joblib",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the cache."""
        from joblib import Memory

        yield Memory(str(directory / "cache"), verbose=0).cache(computed)

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Have a result computed, and stored."""
        del value
        store(key)

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Ask for all results, which may be computed again."""
        with warnings.catch_warnings(action="ignore"):
            return [(key, store(key)) for key in range(1, self.keys + 1)]

    def found(self, directory: Path) -> Iterable[int]:
        """Ask for all results. Raises ValueError for a wrong one.

        A result is not lost, and was not put by nobody, as it can be computed.
        """
        list(super().found(directory))
        return ()

    def check(self, directory: Path, marks: Any) -> Iterator[Any]:
        """Find results that are wrong, or that cannot be had."""
        del marks
        return super().check(directory, ())


def computed(key: int) -> bytes:
    """Compute a result."""
    return value_of(key)
