"""Stores inside the program's own process."""

from __future__ import annotations

import ctypes
import ctypes.util
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from scenarios.targets.foreign.base import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class Lmdb(Store):
    """LMDB as it is by default: copy on write, one fsync for data and one for the meta page."""

    name = "LMDB"
    promise = "A committed transaction is durable; no crash can corrupt the database."
    source = "lmdb.h, 'Restrictions' and MDB_NOSYNC; ALICE 2014 found one possible vulnerability"
    modules = ("lmdb",)
    writemap = False

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the environment, whose file may grow to 1 MiB."""
        import lmdb

        with closing(lmdb.open(str(directory / "db"), map_size=2**20, writemap=self.writemap)) as environment:
            yield environment

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Put the key in a transaction of its own."""
        with store.begin(write=True) as transaction:
            transaction.put(b"%d" % key, value)

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read everything in one transaction."""
        with store.begin() as transaction:
            return [(int(key), bytes(value)) for key, value in transaction.cursor()]


class LmdbWritemap(Lmdb):
    """LMDB with MDB_WRITEMAP: pages are stored through a writable mapping."""

    name = "LMDB, writemap"
    writemap = True


class LevelDb(Store):
    """LevelDB with ``sync=True``."""

    name = "LevelDB"
    promise = "A synchronous write is durable when it returns; a crash loses at most the last asynchronous writes."
    source = "LevelDB, doc/index.md, 'Synchronous Writes'; ALICE 2014: 10 vulnerabilities in 1.10, 6 in 1.15"
    modules = ("plyvel",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open it as by default: ``paranoid_checks`` would refuse a log whose end is torn."""
        import plyvel

        with closing(plyvel.DB(str(directory / "db"), create_if_missing=True)) as store:
            yield store

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Put with a sync."""
        store.put(b"%d" % key, value, sync=True)

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read everything, with checksums."""
        with store.iterator(verify_checksums=True) as items:
            return [(int(key), value) for key, value in items]


class RocksDb(Store):
    """RocksDB with ``sync``: threads of its own, mapped files, drawn names, times in its log."""

    name = "RocksDB"
    promise = "A write with WriteOptions.sync is durable when it returns."
    source = "RocksDB wiki, 'Basic Operations', 'Synchronous Writes'"
    modules = ("rocksdict",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open it, and sync each write."""
        from rocksdict import Options, Rdict, WriteOptions

        options, synced = Options(raw_mode=True), WriteOptions()
        options.create_if_missing(True)  # noqa: FBT003 - its name says it
        synced.sync = True
        with closing(Rdict(str(directory / "db"), options)) as store:
            store.set_write_options(synced)
            yield store

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Put with a sync."""
        store[b"%d" % key] = value

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read everything."""
        return [(int(key), value) for key, value in store.items()]


class DuckDb(Store):
    """DuckDB, each row in a transaction of its own."""

    name = "DuckDB"
    promise = "ACID: a committed transaction is durable."
    source = "duckdb.org, 'Transaction Management' and 'Concurrency'"
    modules = ("duckdb",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open it with the table."""
        import duckdb

        with closing(duckdb.connect(str(directory / "rows.duckdb"), config={"threads": 1})) as store:
            store.execute("CREATE TABLE IF NOT EXISTS rows (key INTEGER, value BLOB)")
            yield store

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Insert a row, which commits."""
        store.execute("INSERT INTO rows VALUES (?, ?)", [key, value])

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read all rows."""
        return list(store.execute("SELECT key, value FROM rows").fetchall())


class Zodb(Store):
    """ZODB's FileStorage, which appends each transaction to one file and syncs it."""

    name = "ZODB"
    promise = "ACID transactions: committed data is durable."
    source = "zodb.org, 'Transactions and Persistence'"
    modules = ("ZODB",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the storage and a connection."""
        import ZODB
        import ZODB.FileStorage

        database = ZODB.DB(ZODB.FileStorage.FileStorage(str(directory / "Data.fs")))
        try:
            with closing(database.open()) as connection:
                yield connection
        finally:
            database.close()

    def recover(self, directory: Path) -> None:
        """Leave it to the check to open it: a start that fails keeps the lock in this process."""

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Set an item of the root, and commit."""
        import transaction

        store.root()[key] = value
        transaction.commit()

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read the root."""
        return list(store.root().items())


class _Datum(ctypes.Structure):
    _fields_ = (("at", ctypes.c_char_p), ("size", ctypes.c_int))


class Gdbm(Store):
    """GDBM through its C library, as Python's ``dbm.gnu`` calls it, with a sync after each key."""

    name = "GDBM"
    promise = "gdbm_sync returns when the disk file is as the database in memory."
    source = "GDBM manual, 'Database Synchronization' (it promises a consistent state only with crash tolerance on)"

    def missing(self) -> str:
        """Look for the library."""
        return "" if ctypes.util.find_library("gdbm") else "the library libgdbm"

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the file, which is made if need be."""
        library = ctypes.CDLL(ctypes.util.find_library("gdbm"))
        library.gdbm_open.restype = ctypes.c_void_p
        for call in (library.gdbm_firstkey, library.gdbm_nextkey, library.gdbm_fetch):
            call.restype = _Datum
        file = library.gdbm_open(str(directory / "rows.gdbm").encode(), 0, 2, 0o644, None)  # 2: GDBM_WRCREAT
        if not file:
            message = f"gdbm_open fails with {ctypes.c_int.in_dll(library, 'gdbm_errno').value}"
            raise OSError(message)
        try:
            yield library, ctypes.c_void_p(file)
        finally:
            library.gdbm_close(ctypes.c_void_p(file))

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Store the key, and sync."""
        library, file = store
        name = b"%d" % key
        if library.gdbm_store(file, _Datum(name, len(name)), _Datum(value, len(value)), 1) or library.gdbm_sync(file):
            message = "gdbm_store or gdbm_sync failed"
            raise OSError(message)

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Walk through all keys."""
        library, file = store
        key = library.gdbm_firstkey(file)
        while key.at is not None:
            value = library.gdbm_fetch(file, key)
            yield int(ctypes.string_at(key.at, key.size)), ctypes.string_at(value.at, max(value.size, 0))
            key = library.gdbm_nextkey(file, key)
