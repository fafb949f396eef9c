"""The store in one SQLite file: its transactions and its connections.

Connections are kept in a stack and taken for one operation at a time, so that threads never share
one, a connection outlives the thread that opened it, and the one used last, whose statements and
pages are warm, is used next.
"""

from __future__ import annotations

import _thread
import dataclasses
import os
import sqlite3
import time
import weakref
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from durable_agents.errors import (
    DatabaseLocked,
    DatabaseUnavailable,
    InheritedTransaction,
    QueryRefused,
    RecoveryError,
    StoreClosed,
    StoreError,
)
from durable_agents.store.rows import Scalar, StoredResult
from durable_agents.store.sqlite.connections import (
    REFUSALS,
    ConnectionFactory,
    Pragmas,
    could_begin,
    read_pragmas,
    result_code,
    translated,
)
from durable_agents.store.sqlite.group_commit import Group, GroupCommit
from durable_agents.store.sqlite.jobs import JobReads, JobWrites
from durable_agents.store.sqlite.log_size import LogWatch
from durable_agents.store.sqlite.once import RESULT, KeyReads, KeyWrites
from durable_agents.store.sqlite.state import StateReads, StateWrites
from durable_agents.store.sqlite.webhooks import InboxReads, InboxWrites, SourceReads, SourceWrites
from durable_agents.store.sqlite.work import LeaseReads, LeaseWrites, TaskReads
from durable_agents.store.sqlite.write_lock_queue import WriteLockQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from durable_agents.store.sqlite.connections import Refusal
    from durable_agents.store.sqlite.statements import Parameters

_IDLE_CONNECTIONS_MAX: Final = 8

_OPERATIONS_PER_LOOK: Final = 10_000
"""How many steps of SQLite's machine lie between two looks at the clock;
some tenths of a millisecond.
"""


class SqliteTransaction(LeaseWrites, InboxWrites, JobWrites, SourceWrites, StateWrites, KeyWrites):
    """A write transaction: BEGIN IMMEDIATE, so that what it reads cannot go stale.

    Until the block ends, the connection is its own; it may share its commit with other threads
    (``group_commit``).
    """

    __slots__ = ("__weakref__", "_group", "_group_commit", "_store", "_ticket", "connection")

    connection: sqlite3.Connection
    _group: Group
    _group_commit: GroupCommit
    _store: SqliteStore
    _ticket: _thread.LockType

    def __init__(self, store: SqliteStore) -> None:
        """Prepare; the transaction begins when the block is entered."""
        self._store = store

    def __enter__(self) -> Self:
        """Take the write lock, or share that of another thread."""
        self._group_commit = self._store.group_commit
        self._ticket = _thread.allocate_lock()
        self._group = self._group_commit.join(self._ticket, self)
        self.connection = self._group.connection
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit, or roll back if the block raised."""
        if error is None:
            self.commit()
        elif self._group_commit is self._store.group_commit:
            self._group_commit.leave(self._ticket, self._group, error)

    def commit(self) -> None:
        """Make the changes durable, together with those of threads that wait.

        Raises InheritedTransaction.
        """
        if self._group_commit is not self._store.group_commit:
            message = (
                f"a transaction on {self._store.path} must be ended by the process that began it; got an end in a "
                "child of it. Write in a transaction of the child's own, and fork outside of one."
            )
            raise InheritedTransaction(message)
        self._group_commit.leave(self._ticket, self._group, None)
        self._store.log_watch.look()


@dataclasses.dataclass(frozen=True, slots=True)
class SqlitePlace:
    """The database file of a store, by its absolute path."""

    path: str

    def reopened(self, busy_timeout_s: float) -> SqliteStore:
        """Open another store on the file, which does not queue for the write lock.

        Raises DatabaseUnavailable if the file is gone.
        """
        if not os.path.exists(self.path):  # noqa: PTH110 - the plain way, for what runs at the end of the interpreter
            message = f"the database {self.path} must exist; got no file there. Restore it; its last counts are lost."
            raise DatabaseUnavailable(message)
        return SqliteStore(ConnectionFactory(self.path, busy_timeout_s), queue_writers=False)


class SqliteStore(TaskReads, LeaseReads, InboxReads, JobReads, SourceReads, StateReads, KeyReads):
    """A Store in one SQLite file. Make it with ``open_store(path)``, or from ``init_factory``."""

    def __init__(self, factory: ConnectionFactory, *, queue_writers: bool = True) -> None:
        """Use the factory's connections, and no others; ``queue_writers`` as in ``open_store``."""
        self._factory = factory
        self._queue = WriteLockQueue(factory.path, factory.busy_timeout_s) if queue_writers else None
        self.log_watch = LogWatch(factory.path)
        self._idle: list[sqlite3.Connection] = []
        self._idle_readers: list[sqlite3.Connection] = []
        self._group_commit = GroupCommit(self)
        self._inherited: list[object] = []
        self._process = os.getpid()
        self._closed = False
        _STORES.add(self)

    @property
    def factory(self) -> ConnectionFactory:
        """The factory of its connections."""
        return self._factory

    @property
    def path(self) -> str:
        """The absolute path of the database file."""
        return self._factory.path

    @property
    def place(self) -> SqlitePlace:
        """The name of the database."""
        return SqlitePlace(self.path)

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    @property
    def group_commit(self) -> GroupCommit:
        """The slot in which the threads of this process write."""
        if self._process != os.getpid():
            self._leave_inherited()
        return self._group_commit

    def __enter__(self) -> Self:
        """Return the store, which closes at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def transaction(self) -> SqliteTransaction:
        """Return a block that is one transaction."""
        return SqliteTransaction(self)

    def warnings(self) -> list[str]:
        """Return what is wrong with the database now, in sentences."""
        self.log_watch.look()
        return [text for text in [self.log_watch.warning] if text]

    def can_write_now(self) -> bool:
        """Tell, without waiting, whether a transaction could begin.

        True if an error prevents the answer: the transaction will meet it.
        """
        try:
            connection = self.borrow()
        except StoreError:
            return True
        try:
            can = could_begin(connection)
        except BaseException:
            connection.close()
            raise
        self.give_back(connection)
        return can

    def result(self, key: str) -> StoredResult | None:
        """Return the result of a key that has ended, or None, by a memory-mapped connection."""
        connection = self._taken(self._idle_readers, self._factory.reader)
        rows = self._fetched(connection, RESULT, (key,))
        self._return(self._idle_readers, connection)
        return StoredResult(*rows[0]) if rows else None

    def has_row(self, table: str, values: Mapping[str, Scalar], *, timeout_s: float) -> bool:
        """Tell whether the table has a row with these values, on a connection that cannot write.

        Raises QueryRefused for an unknown table or column and for a query that takes longer than
        ``timeout_s``.
        """
        # A column is named through the table: SQLite takes an unknown bare "name" for a text.
        conditions = " AND ".join(f"t.{_quoted(column)} IS ?" for column in values)
        statement = f"SELECT 1 FROM {_quoted(table)} AS t WHERE {conditions} LIMIT 1"  # noqa: S608 - names are quoted
        uri = f"{Path(self.path).as_uri()}?mode=ro"
        try:
            with closing(sqlite3.connect(uri, uri=True, timeout=self._factory.busy_timeout_s)) as connection:
                connection.execute("PRAGMA query_only = 1")
                connection.execute("PRAGMA trusted_schema = 0")
                deadline = time.monotonic() + timeout_s
                connection.set_progress_handler(lambda: time.monotonic() > deadline, _OPERATIONS_PER_LOOK)
                return connection.execute(statement, tuple(values.values())).fetchone() is not None
        except REFUSALS as error:
            raise self._refusal(error, timeout_s) from error

    def pragmas(self) -> Pragmas:
        """Return the settings of a connection of this store, as SQLite reports them."""
        connection = self.borrow()
        pragmas = read_pragmas(connection)
        self.give_back(connection)
        return pragmas

    def close(self) -> None:
        """Close all connections that are not in use.

        Those in use close when they are given back.
        """
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close the connections that are not in use; others are opened when they are needed."""
        self._leave_inherited()
        for idle in (self._idle, self._idle_readers):
            with suppress(IndexError):  # another thread may take the last one
                while True:
                    idle.pop().close()

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a write transaction on the connection.

        It queues for the write lock, unless the store was opened without the queue.
        """
        if self._queue is None:
            connection.execute("BEGIN IMMEDIATE")
        else:
            self._queue.begin(connection)

    def borrow(self) -> sqlite3.Connection:
        """Take a connection for one operation; then give it back, or close it."""
        return self._taken(self._idle, self._opened)

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Return a connection that is fit for the next operation."""
        self._return(self._idle, connection)

    def translated(self, error: Refusal) -> RecoveryError:
        """Return what an error of a connection of this store means."""
        return translated(error, self.path, self._factory.busy_timeout_s)

    def _opened(self) -> sqlite3.Connection:
        connection = self._factory()
        if self._queue is not None:  # it waits itself; SQLite's own wait is of a millisecond and more
            connection.execute("PRAGMA busy_timeout = 0")
        return connection

    def _taken(self, idle: list[sqlite3.Connection], opened: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
        if self._process != os.getpid():
            self._leave_inherited()
        try:
            return idle.pop()
        except IndexError:
            pass
        if self._closed:
            message = f"the store of {self.path} must be open; got a call after close(). Open another one."
            raise StoreClosed(message)
        return opened()

    def _return(self, idle: list[sqlite3.Connection], connection: sqlite3.Connection) -> None:
        if self._closed or len(idle) >= _IDLE_CONNECTIONS_MAX:
            connection.close()
        else:
            idle.append(connection)

    def _fetched(self, connection: sqlite3.Connection, statement: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Return all rows; the connection is closed after an error."""
        try:
            return connection.execute(statement, parameters).fetchall()
        except BaseException as error:
            connection.close()
            if isinstance(error, REFUSALS):
                raise self.translated(error) from error
            raise

    def _read(self, statement: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        connection = self.borrow()
        try:
            rows = self._fetched(connection, statement, parameters)
        except DatabaseLocked:
            if self._queue is None:
                raise
            # A reader has to wait while the log is recovered after a crash, or closed.
            with closing(self._factory()) as patient:
                return self._fetched(patient, statement, parameters)
        self._return(self._idle, connection)
        return rows

    def _refusal(self, error: Refusal, timeout_s: float) -> RecoveryError:
        if isinstance(error, sqlite3.Error):
            if result_code(error) == sqlite3.SQLITE_INTERRUPT:
                return QueryRefused(f"the query must end within {timeout_s:g} s; got no answer by then. Add an index.")
            if result_code(error) != sqlite3.SQLITE_ERROR:
                return self.translated(error)
        return QueryRefused(f"the query must name a table and columns of the database; got '{error}'. Correct them.")

    def _leave_inherited(self) -> None:
        """Set the parent's connections aside after a fork.

        Using or closing them here would break the parent's locks.
        """
        if self._process != os.getpid():
            self._inherited += [*self._idle, *self._idle_readers, self._group_commit]
            self._idle.clear()
            self._idle_readers.clear()
            self._group_commit = GroupCommit(self)
            self._process = os.getpid()


_STORES: Final[weakref.WeakSet[SqliteStore]] = weakref.WeakSet()


def _before_fork() -> None:
    """Close the connections that are not in use, so that a child inherits none.

    SQLite keeps one table of locks for a process and file, in memory. A child has a copy of it, and
    none of the locks: while a connection of the parent is open at the fork, the child's own ones
    believe that the file is locked for them, and the parent removes the log under them when it
    closes (sqlite.org/howtocorrupt.html, 2.6).
    """
    for store in list(_STORES):
        store.close_idle()


os.register_at_fork(before=_before_fork)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
