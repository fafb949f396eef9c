"""Checkpoint managers with one known bug each. Make them like the sound one:
``TwoTransactions(db_path=path)``.

| variant | bug | seen by |
|---|---|---|
| NumberOutsideTransaction | the number is read in one transaction and written in another (D1) | two writers: doubles |
| AckBeforeCommit | ``save`` returns before its COMMIT, which comes with the next operation | a kill after the ack |
| TwoTransactions | a row in one transaction, its snapshot and hash in the next | a kill between them |
| Impatient | a lock is not waited for | a lock that is held, many writers |
| SynchronousOff | connections run with synchronous=OFF | its noted pragmas, or a power loss; no kill shows it |
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Final

import msgspec
from durable_agents.store import BUSY_TIMEOUT_S, ConnectionFactory, SqliteStore
from durable_agents.store.sqlite.connections import factory_for
from durable_agents.store.sqlite.schema import CHECKPOINTS, MIGRATIONS, prepare
from durable_agents.store.sqlite.store import SqliteTransaction
from durable_agents.work.checkpoints import NO_NUMBER, Checkpoint, CheckpointManager, Draft
from durable_agents.work.crash_points import WorkPoint

if TYPE_CHECKING:
    import os
    import sqlite3

_KEY: Final = "PRIMARY KEY (task_id, sequence_number)"
_UNKEYED_MIGRATIONS: Final = tuple(
    tuple(statement.replace(_KEY, "CHECK (true)") if statement == CHECKPOINTS else statement for statement in migration)
    for migration in MIGRATIONS
)


class PlantedManager(CheckpointManager):
    """A manager that opens a store of its own variant."""

    def __init__(self, *, db_path: str | os.PathLike[str]) -> None:
        """Open the store at ``db_path``."""
        super().__init__(self.opened(db_path))
        self._owns_store = True

    def opened(self, db_path: str | os.PathLike[str]) -> SqliteStore:
        """Return the store to use; the sound one unless a variant says otherwise."""
        return _prepared(db_path)


class NumberOutsideTransaction(PlantedManager):
    """Reads the number in one transaction and writes it in another,
    to a table without the key that would object.
    """

    def opened(self, db_path: str | os.PathLike[str]) -> SqliteStore:
        """Return a store whose new files lack the primary key of the checkpoints."""
        factory = factory_for(db_path, BUSY_TIMEOUT_S)
        prepare(factory, _UNKEYED_MIGRATIONS)
        return SqliteStore(factory)

    def _write(self, draft: Draft) -> Checkpoint:
        sys.audit(WorkPoint.CHECKPOINT_BEFORE_BEGIN, draft.task_id, NO_NUMBER)
        with self.store.transaction() as transaction:
            sys.audit(WorkPoint.CHECKPOINT_AFTER_BEGIN, draft.task_id, NO_NUMBER)
            number = transaction.next_checkpoint_number(draft.task_id)
        sys.audit(WorkPoint.CHECKPOINT_AFTER_NUMBER, draft.task_id, number)
        with self.store.transaction() as transaction:
            transaction.insert_checkpoint(draft.stored(number))
            sys.audit(WorkPoint.CHECKPOINT_AFTER_INSERT, draft.task_id, number)
            sys.audit(WorkPoint.CHECKPOINT_BEFORE_COMMIT, draft.task_id, number)
        sys.audit(WorkPoint.CHECKPOINT_AFTER_COMMIT, draft.task_id, number)
        return draft.numbered(number)


class TwoTransactions(PlantedManager):
    """Commits a row with an empty snapshot, and then the snapshot with its hash."""

    def _write(self, draft: Draft) -> Checkpoint:
        sys.audit(WorkPoint.CHECKPOINT_BEFORE_BEGIN, draft.task_id, NO_NUMBER)
        with self.store.transaction() as transaction:
            sys.audit(WorkPoint.CHECKPOINT_AFTER_BEGIN, draft.task_id, NO_NUMBER)
            empty = msgspec.structs.replace(draft, content=b"", content_hash="0" * 64)
            number = self.append(transaction, empty).sequence_number
        with self.store.transaction() as transaction:
            assert isinstance(transaction, SqliteTransaction)  # the store that this variant opened itself
            transaction.execute(
                "UPDATE checkpoints SET snapshot = ?, content_hash = ? WHERE task_id = ? AND sequence_number = ?",
                (draft.content.decode(), draft.content_hash, draft.task_id, number),
            )
            sys.audit(WorkPoint.CHECKPOINT_BEFORE_COMMIT, draft.task_id, number)
        sys.audit(WorkPoint.CHECKPOINT_AFTER_COMMIT, draft.task_id, number)
        return draft.numbered(number)


class LateTransaction(SqliteTransaction):
    """A transaction that leaves its COMMIT to the next operation of its store."""

    __slots__ = ()

    def commit(self) -> None:
        """Put the commit off."""
        assert isinstance(self._store, LateStore)
        self._store.pending = self

    def commit_at_last(self) -> None:
        """Do what ``commit`` should have done."""
        super().commit()


class LateStore(SqliteStore):
    """A store that commits a transaction when the next operation begins, or when it closes."""

    pending: LateTransaction | None = None

    def transaction(self) -> LateTransaction:
        """Commit what is pending, so that this process never notices;
        return a block that looks like a transaction.
        """
        self._flush()
        return LateTransaction(self)

    def borrow(self) -> sqlite3.Connection:
        """Commit what is pending, and take a connection."""
        self._flush()
        return super().borrow()

    def close(self) -> None:
        """Commit what is pending and close."""
        self._flush()
        super().close()

    def _flush(self) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.commit_at_last()


class AckBeforeCommit(PlantedManager):
    """Acknowledges a checkpoint while its COMMIT is still to come."""

    def opened(self, db_path: str | os.PathLike[str]) -> SqliteStore:
        """Return a store that commits late."""
        return LateStore(_prepared(db_path).factory)


@dataclasses.dataclass(frozen=True, slots=True)
class CarelessFactory(ConnectionFactory):
    """Makes connections that never flush."""

    def __call__(self) -> sqlite3.Connection:
        """Open a sound connection and take its durability away."""
        connection = ConnectionFactory.__call__(self)
        connection.execute("PRAGMA synchronous = OFF")
        return connection


class SynchronousOff(PlantedManager):
    """Leaves it to the kernel when to write."""

    def opened(self, db_path: str | os.PathLike[str]) -> SqliteStore:
        """Return a store on careless connections."""
        sound = _prepared(db_path).factory
        return SqliteStore(CarelessFactory(sound.path, sound.busy_timeout_s))


def _prepared(db_path: str | os.PathLike[str]) -> SqliteStore:
    factory = factory_for(db_path, BUSY_TIMEOUT_S)
    prepare(factory, MIGRATIONS)
    return SqliteStore(factory)


class Impatient(PlantedManager):
    """Does not wait for a write lock that somebody else has:
    a lock error for the caller instead of a short wait.
    """

    def opened(self, db_path: str | os.PathLike[str]) -> SqliteStore:
        """Return a store that gives up on a lock after a millisecond."""
        _prepared(db_path).close()
        return SqliteStore(factory_for(db_path, 0.001))
