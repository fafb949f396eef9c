"""The store on one SQLite file: the default, and the only module with statements on the tables.

Connections are kept in a stack and taken for one operation at a time, so that threads never share
one, a connection outlives the thread that opened it, and the one used last, whose statements and
pages are warm, is used next.
"""

from __future__ import annotations

import _thread
import functools
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, Self

from durable_agents.errors import InheritedTransaction, InvalidSetting, RecoveryError, StoreClosed, unknown_task
from durable_agents.store.protocol import NUMBER_MAX, PAGE_ROWS_MAX, Store
from durable_agents.store.rows import Audit, Scalar, StoredCheckpoint, Task, TaskStatus
from durable_agents.store.sqlite.connections import (
    BUSY_TIMEOUT_S,
    REFUSALS,
    ConnectionFactory,
    Pragmas,
    is_busy,
    is_unknown_parent,
    read_pragmas,
    translated,
)
from durable_agents.store.sqlite.group_commit import Group, Groups
from durable_agents.store.sqlite.jobs import JobReads, JobWrites
from durable_agents.store.sqlite.once import KeyReads, KeyWrites
from durable_agents.store.sqlite.schema import init_factory
from durable_agents.store.sqlite.state import StateReads, StateWrites
from durable_agents.store.sqlite.webhooks import InboxReads, InboxWrites, SourceReads, SourceWrites
from durable_agents.store.sqlite.work import EvidenceReads, EvidenceWrites, LeaseReads, LeaseWrites
from durable_agents.store.sqlite.write_lock_queue import Turns, make_impatient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from durable_agents.clock import Microseconds
    from durable_agents.store.sqlite.connections import Refusal

_IDLE_CONNECTIONS_MAX: Final = 8

_TASK = "SELECT task_id, tracker_key, status, stage, stage_entered_at, created_at, updated_at FROM tasks "
_TASK_BY_ID: Final = _TASK + "WHERE task_id = ?"
_TASK_BY_TRACKER_KEY: Final = _TASK + "WHERE tracker_key = ?"
_TASKS: Final = _TASK + "WHERE task_id > ? ORDER BY task_id LIMIT ?"
_TASKS_BY_STATUS: Final = _TASK + "WHERE status = ? AND task_id > ? ORDER BY task_id LIMIT ?"
_INSERT_TASK: Final = (
    "INSERT INTO tasks (task_id, tracker_key, status, stage, stage_entered_at, created_at, updated_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_CHANGE_STATUS: Final = "UPDATE tasks SET status = ?, updated_at = ? WHERE task_id = ? AND status = ?"
_INSERT_AUDITS: Final = "INSERT INTO task_audits (task_id, event, before, after, detail, created_at) VALUES {rows}"
_INSERT_AUDIT: Final = _INSERT_AUDITS.format(rows="(?, ?, ?, ?, ?, ?)")
_AUDITS: Final = (
    "SELECT task_id, event, before, after, detail, created_at FROM task_audits "
    "WHERE task_id = ? ORDER BY audit_id DESC LIMIT ?"
)
_LAST_NUMBER: Final = "SELECT max(sequence_number) FROM checkpoints WHERE task_id = ?"
_INSERT_CHECKPOINTS: Final = (
    "INSERT INTO checkpoints (task_id, sequence_number, type, snapshot, content_hash, created_at) VALUES {rows}"
)
_INSERT_CHECKPOINT: Final = _INSERT_CHECKPOINTS.format(rows="(?, ?, ?, ?, ?, ?)")
# The cast hands out the stored bytes as they are: they are what the hash is over, and what the
# decoder wants.
_CHECKPOINT = (
    "SELECT task_id, sequence_number, type, CAST(snapshot AS BLOB), content_hash, created_at FROM checkpoints "
    "WHERE task_id = ? AND sequence_number "
)
_LATEST: Final = _CHECKPOINT + "< ? ORDER BY sequence_number DESC LIMIT 1"
_CHECKPOINTS: Final = _CHECKPOINT + "> ? ORDER BY sequence_number LIMIT ?"

_ROWS: Final = 100
"""How many rows one statement has when there are as many; the rest goes one by one."""

_Parameters = tuple[Scalar | bytes, ...]


class SqliteTransaction(EvidenceWrites, LeaseWrites, InboxWrites, JobWrites, StateWrites, KeyWrites, SourceWrites):
    """A write transaction: BEGIN IMMEDIATE, so that what it reads cannot go stale.

    The connection is its own until the block ends, the commit it may share with other threads
    (``groups``).
    """

    __slots__ = ("__weakref__", "_group", "_groups", "_store", "_ticket", "connection")

    connection: sqlite3.Connection
    _group: Group
    _groups: Groups
    _ticket: _thread.LockType

    def __init__(self, store: SqliteStore) -> None:
        """Prepare; the transaction begins when the block is entered."""
        self._store = store

    def __enter__(self) -> Self:
        """Take the write lock, or share that of another thread."""
        self._groups = self._store.groups
        self._ticket = _thread.allocate_lock()
        self._group = self._groups.join(self._ticket, self)
        self.connection = self._group.connection
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Commit, or roll back if the block raised."""
        if error is None:
            self.commit()
        elif self._groups is self._store.groups:
            self._groups.leave(self._ticket, self._group, error)

    def commit(self) -> None:
        """Make the changes durable, together with those of threads that wait. Raises InheritedTransaction."""
        if self._groups is not self._store.groups:
            message = (
                f"Expected the process that began this transaction on {self._store.path} to end it but this is a child "
                "of it; write in a transaction of the child's own, and fork outside of one."
            )
            raise InheritedTransaction(message)
        self._groups.leave(self._ticket, self._group, None)

    def execute(self, statement: str, parameters: _Parameters) -> sqlite3.Cursor:
        """Execute one statement. Raises what its error means."""
        try:
            return self.connection.execute(statement, parameters)
        except REFUSALS as error:
            raise self._store.translated(error) from error

    def task(self, task_id: str) -> Task | None:
        """Return the task, or None."""
        return _task(self.execute(_TASK_BY_ID, (task_id,)).fetchone())

    def task_with_tracker_key(self, tracker_key: str) -> Task | None:
        """Return the one task with this tracker key, or None."""
        return _task(self.execute(_TASK_BY_TRACKER_KEY, (tracker_key,)).fetchone())

    def insert_task(self, task: Task) -> bool:
        """Insert the task; False where its id or its tracker key is taken."""
        row = (task.task_id, task.tracker_key, task.status.value, task.stage, task.stage_entered_at)
        return self.execute(_INSERT_TASK, (*row, task.created_at, task.updated_at)).rowcount == 1

    def change_status(self, task_id: str, *, expected: TaskStatus, status: TaskStatus, now: Microseconds) -> bool:
        """Set the status if it is the expected one."""
        return self.execute(_CHANGE_STATUS, (status.value, now, task_id, expected.value)).rowcount == 1

    def insert_audit(self, audit: Audit) -> None:
        """Add a row to the task's audit trail. Raises UnknownTask."""
        self._insert_for_task(_INSERT_AUDIT, _audit_row(audit), audit.task_id)

    def insert_audits(self, audits: Sequence[Audit]) -> None:
        """Add several rows. Raises UnknownTask."""
        self._insert_all(_INSERT_AUDITS, [_audit_row(audit) for audit in audits])

    def next_checkpoint_number(self, task_id: str) -> int:
        """Return one more than the task's newest number; the write lock keeps it ours."""
        number: int | None = self.execute(_LAST_NUMBER, (task_id,)).fetchone()[0]
        return 1 if number is None else number + 1

    def insert_checkpoint(self, checkpoint: StoredCheckpoint) -> None:
        """Insert the checkpoint. Raises UnknownTask."""
        self._insert_for_task(_INSERT_CHECKPOINT, _checkpoint_row(checkpoint), checkpoint.task_id)

    def insert_checkpoints(self, checkpoints: Sequence[StoredCheckpoint]) -> None:
        """Insert several checkpoints. Raises UnknownTask."""
        self._insert_all(_INSERT_CHECKPOINTS, [_checkpoint_row(checkpoint) for checkpoint in checkpoints])

    def execute_all(self, statement: str, rows: Sequence[_Parameters]) -> int:
        """Execute one statement for each row; return how many rows it changed. Raises what its error means."""
        try:
            return self.connection.executemany(statement, rows).rowcount
        except REFUSALS as error:
            raise self._store.translated(error) from error

    def execute_rows(self, statement: str, rows: Sequence[_Parameters]) -> int:
        """Execute a statement that says ``{rows}`` where VALUES has its rows; return how many rows it changed.

        Many rows to a statement, since to start one costs more than what one row does in it
        (measured: 2 of 5 us).
        """
        try:
            return sum(self._execute_rows(statement, rows))
        except REFUSALS as error:
            raise self._store.translated(error) from error

    def _execute_rows(self, statement: str, rows: Sequence[_Parameters]) -> Iterator[int]:
        whole = len(rows) - len(rows) % _ROWS
        for first in range(0, whole, _ROWS):
            values = [value for row in rows[first : first + _ROWS] for value in row]
            yield self.connection.execute(_with_rows(statement, _ROWS, len(rows[0])), values).rowcount
        if whole < len(rows):
            yield self.connection.executemany(_with_rows(statement, 1, len(rows[0])), rows[whole:]).rowcount

    def _insert_all(self, statement: str, rows: Sequence[_Parameters]) -> None:
        try:
            sum(self._execute_rows(statement, rows))
        except REFUSALS as error:
            if isinstance(error, sqlite3.Error) and is_unknown_parent(error):
                unknown = next((row[0] for row in rows if self.task(str(row[0])) is None), "")
                raise unknown_task(str(unknown)) from error
            raise self._store.translated(error) from error

    def _insert_for_task(self, statement: str, row: _Parameters, task_id: str) -> sqlite3.Cursor:
        try:
            return self.connection.execute(statement, row)
        except REFUSALS as error:
            if isinstance(error, sqlite3.Error) and is_unknown_parent(error):
                raise unknown_task(task_id) from error
            raise self._store.translated(error) from error


class SqliteStore(EvidenceReads, LeaseReads, InboxReads, JobReads, StateReads, KeyReads, SourceReads):
    """A Store in one SQLite file. Make it with ``open_store(path)``, or from what ``init_factory`` returned."""

    def __init__(self, factory: ConnectionFactory, *, takes_turns: bool = True) -> None:
        """Use the factory's connections, and no others; ``takes_turns`` as in ``open_store``."""
        self._factory = factory
        self._turns = Turns(factory.path, factory.busy_timeout_s) if takes_turns else None
        self._idle: list[sqlite3.Connection] = []
        self._groups = Groups(self)
        self._readers: list[sqlite3.Connection] = []
        self._inherited: list[object] = []
        self._process = os.getpid()
        self._closed = False

    @property
    def factory(self) -> ConnectionFactory:
        """What makes the connections."""
        return self._factory

    @property
    def path(self) -> str:
        """The absolute path of the database file."""
        return self._factory.path

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, and opens no further connection."""
        return self._closed

    def __enter__(self) -> Self:
        """Return the store, which closes at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def transaction(self) -> SqliteTransaction:
        """Return a block that is one transaction."""
        return SqliteTransaction(self)

    def task(self, task_id: str) -> Task | None:
        """Return the task, or None."""
        rows = self._read(_TASK_BY_ID, (task_id,))
        return _task(rows[0]) if rows else None

    def task_with_tracker_key(self, tracker_key: str) -> Task | None:
        """Return the one task with this tracker key, or None."""
        rows = self._read(_TASK_BY_TRACKER_KEY, (tracker_key,))
        return _task(rows[0]) if rows else None

    def tasks(self, *, status: TaskStatus | None = None, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[Task]:
        """Return tasks in the order of their ids, those behind the id ``after``."""
        if status is None:
            rows = self._read(_TASKS, (after, limit))
        else:
            rows = self._read(_TASKS_BY_STATUS, (status.value, after, limit))
        return [task for row in rows if (task := _task(row)) is not None]

    def audits(self, task_id: str, *, limit: int = PAGE_ROWS_MAX) -> list[Audit]:
        """Return the newest ``limit`` rows of the task's audit trail, oldest first."""
        return [Audit(*row) for row in reversed(self._read(_AUDITS, (task_id, limit)))]

    def latest_checkpoint(self, task_id: str, before: int = NUMBER_MAX) -> StoredCheckpoint | None:
        """Return the checkpoint with the largest number below ``before``, or None."""
        rows = self._read(_LATEST, (task_id, before))
        return StoredCheckpoint(*rows[0]) if rows else None

    def checkpoints(self, task_id: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[StoredCheckpoint]:
        """Return checkpoints in the order of their numbers, those above ``after``."""
        return [StoredCheckpoint(*row) for row in self._read(_CHECKPOINTS, (task_id, after, limit))]

    def pragmas(self) -> Pragmas:
        """Return the settings of a connection of this store, as SQLite reports them: what an agent notes as a fact."""
        connection = self.borrow()
        pragmas = read_pragmas(connection)
        self.give_back(connection)
        return pragmas

    def close(self) -> None:
        """Close all connections that are not in use; those in use close when they are given back."""
        self._closed = True
        self._leave_inherited()
        while self._idle:
            self._idle.pop().close()
        while self._readers:
            self._readers.pop().close()

    @property
    def groups(self) -> Groups:
        """Where the threads of this process meet to write."""
        if self._process != os.getpid():
            self._leave_inherited()
        return self._groups

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin a write transaction on the connection, in its turn if the writers of this store take turns."""
        if self._turns is None:
            connection.execute("BEGIN IMMEDIATE")
        else:
            self._turns.begin(connection)

    def borrow(self) -> sqlite3.Connection:
        """Take a connection for one operation; it is then given back, or closed."""
        if self._process != os.getpid():
            self._leave_inherited()
        try:
            return self._idle.pop()
        except IndexError:
            self._refuse_closed()
        connection = self._factory()
        if self._turns is not None:
            make_impatient(connection)
        return connection

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Return a connection that is fit for the next operation."""
        if self._closed or len(self._idle) >= _IDLE_CONNECTIONS_MAX:
            connection.close()
        else:
            self._idle.append(connection)

    def translated(self, error: Refusal) -> RecoveryError:
        """Return what an error of a connection of this store means."""
        return translated(error, self.path, self._factory.busy_timeout_s)

    def _read(self, statement: str, parameters: _Parameters) -> list[tuple[Any, ...]]:
        connection = self.borrow()
        try:
            rows = connection.execute(statement, parameters).fetchall()
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error) and is_busy(error) and self._turns is not None:
                return self._read_patiently(statement, parameters)
            if isinstance(error, REFUSALS):
                raise self.translated(error) from error
            raise
        self.give_back(connection)
        return rows

    def _read_patiently(self, statement: str, parameters: _Parameters) -> list[tuple[Any, ...]]:
        """Read on a new connection, which waits: readers have to while the log is recovered after a crash or closed."""
        try:
            with closing(self._factory()) as connection:
                return connection.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise self.translated(error) from error

    def _read_mapped(self, statement: str, parameters: _Parameters) -> tuple[Any, ...] | None:
        """Return the first row, or None, by a connection that only reads; each thread at work has one of its own."""
        if self._process != os.getpid():
            self._leave_inherited()
        try:
            connection = self._readers.pop()
        except IndexError:
            self._refuse_closed()
            connection = self._factory.reader()
        try:
            rows = connection.execute(statement, parameters).fetchall()
        except BaseException as error:
            connection.close()
            if isinstance(error, REFUSALS):
                raise self.translated(error) from error
            raise
        if self._closed or len(self._readers) >= _IDLE_CONNECTIONS_MAX:
            connection.close()
        else:
            self._readers.append(connection)
        return rows[0] if rows else None

    def _refuse_closed(self) -> None:
        if self._closed:
            message = f"Expected an open store but the one of {self.path} is closed; open another one."
            raise StoreClosed(message)

    def _leave_inherited(self) -> None:
        """After a fork, set the parent's connections aside: to use or close them here would upset its locks."""
        if self._process != os.getpid():
            self._inherited += [*self._idle, *self._readers, self._groups]
            self._idle, self._readers = [], []
            self._groups = Groups(self)
            self._process = os.getpid()


def open_store(
    path: str | os.PathLike[str], *, busy_timeout_s: float = BUSY_TIMEOUT_S, takes_turns: bool = True
) -> SqliteStore:
    """Open the store in the file at ``path``, which is made if need be. Raises as ``init_factory`` does.

    Its writers queue for the write lock with those of other processes
    (``durable_agents.store.sqlite.write_lock_queue``), by means of a file beside the database.
    Without ``takes_turns`` they leave it to SQLite, which lets the luckiest in: with ten processes
    that write all the time, one had its turn once in seconds. The queue costs a writer who is alone
    two hundredths of a commit, and ten at most three tenths of their throughput
    (``benchmark_writers``), so it is the default; to be of use, it has to be that of all who write
    to the file.
    """
    return SqliteStore(init_factory(path, busy_timeout_s=busy_timeout_s), takes_turns=takes_turns)


def store_for(store: Store | None, db_path: str | os.PathLike[str] | None) -> tuple[Store, bool]:
    """Return the store that a manager was given, or open the one at its path; and whether it was opened here.

    Raises InvalidSetting for both and for neither: of two connections, one would silently win.
    """
    if store is not None and db_path is None:
        return store, False
    if db_path is not None and store is None:
        return open_store(db_path), True
    message = f"Expected either a store or a db_path but got store={store!r} and db_path={db_path!r}; give exactly one."
    raise InvalidSetting(message)


@functools.cache
def _with_rows(statement: str, count: int, width: int) -> str:
    """Return the statement with so many rows of so many parameters; there are two counts for each statement."""
    row = f"({', '.join('?' * width)})"
    return statement.format(rows=", ".join([row] * count))


def _audit_row(audit: Audit) -> _Parameters:
    return (audit.task_id, audit.event, audit.before, audit.after, audit.detail, audit.created_at)


def _checkpoint_row(checkpoint: StoredCheckpoint) -> _Parameters:
    return (
        checkpoint.task_id,
        checkpoint.sequence_number,
        checkpoint.type,
        checkpoint.snapshot.decode(),
        checkpoint.content_hash,
        checkpoint.created_at,
    )


def _task(row: tuple[Any, ...] | None) -> Task | None:
    if row is None:
        return None
    task_id, tracker_key, status, *rest = row
    return Task(task_id, tracker_key, TaskStatus(status), *rest)
