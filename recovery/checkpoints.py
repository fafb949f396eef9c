"""Checkpoints: how far a task is, saved so that a process that dies the next instant can be replaced by another.

A checkpoint's number, snapshot and content hash are written in one transaction. Numbers are 1, 2, 3, ... per task,
without a gap and without a double, whatever number of processes and threads write at once: the number is read under the
write lock that it is written under.
"""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from recovery.clock import Clock, Microseconds, SystemClock
from recovery.errors import InvalidCheckpointType, InvalidSetting, InvalidTask, unknown_task
from recovery.snapshots import SNAPSHOT_BYTES_MAX, decoded, encoded
from recovery.store import Store, Transaction, store_for
from recovery.store.protocol import NUMBER_MAX, PAGE_ROWS_MAX
from recovery.store.rows import StoredCheckpoint

if TYPE_CHECKING:
    import os

CRASH_POINTS: Final = (
    "recovery.checkpoint.before_begin",
    "recovery.checkpoint.after_begin",
    "recovery.checkpoint.after_number",
    "recovery.checkpoint.after_checkpoint_insert",
    "recovery.checkpoint.before_commit",
    "recovery.checkpoint.after_commit",
    "recovery.checkpoint.before_ack",
)
"""The audit events that ``save`` raises, in the order in which it passes them, each once.

Their arguments are the task id and the sequence number, which is ``NO_NUMBER`` as long as none was taken.
"""

NO_NUMBER: Final = 0
"""What stands for the number before there is one; numbers begin at 1."""

BEFORE_BEGIN, AFTER_BEGIN, AFTER_NUMBER, AFTER_CHECKPOINT_INSERT, BEFORE_COMMIT, AFTER_COMMIT, BEFORE_ACK = CRASH_POINTS


class CheckpointType(enum.StrEnum):
    """The types that the core knows. Any other string that is not empty is a user's own."""

    ITERATION_START = "iteration_start"
    ITERATION_END = "iteration_end"
    TOOL_EXECUTED = "tool_executed"
    LLM_RESPONSE = "llm_response"
    APPROVAL_POINT = "approval_point"
    STATE_TRANSITION = "state_transition"
    MANUAL_CHECKPOINT = "manual_checkpoint"
    ERROR_BOUNDARY = "error_boundary"


class Checkpoint(msgspec.Struct, frozen=True):
    """A checkpoint with its snapshot decoded. ``content_hash`` is the SHA-256 of the stored JSON, in hexadecimal."""

    task_id: str
    sequence_number: int
    type: str
    snapshot: Any
    content_hash: str
    created_at: Microseconds


class Draft(msgspec.Struct, frozen=True):
    """A checkpoint that has everything but a number: all that can be made, or refused, before a lock is taken."""

    task_id: str
    type: str
    content: bytes
    content_hash: str
    snapshot: Any
    created_at: Microseconds

    def stored(self, number: int) -> StoredCheckpoint:
        """Return the row that this becomes with its number."""
        return StoredCheckpoint(self.task_id, number, self.type, self.content, self.content_hash, self.created_at)

    def numbered(self, number: int) -> Checkpoint:
        """Return the checkpoint that this becomes with its number."""
        return Checkpoint(self.task_id, number, self.type, self.snapshot, self.content_hash, self.created_at)


class CheckpointManager:
    """Saves and reads checkpoints. Give it a store, or the path of a database file, which it opens and will close.

    ``snapshot_bytes_max`` bounds the JSON of one snapshot; None is no bound but SQLite's own (one gigabyte).
    Raises InvalidSetting, and any StoreError when it opens the file. May be shared by threads.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        db_path: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
        snapshot_bytes_max: int | None = SNAPSHOT_BYTES_MAX,
    ) -> None:
        """Use ``store``, or the store at ``db_path``; exactly one of them."""
        if snapshot_bytes_max is not None and snapshot_bytes_max < 1:
            message = f"Expected snapshot_bytes_max of 1 or more but got {snapshot_bytes_max!r}; None is no bound."
            raise InvalidSetting(message)
        self._store, self._owns_store = store_for(store, db_path)
        self._clock: Clock = SystemClock() if clock is None else clock
        self._snapshot_bytes_max = snapshot_bytes_max

    @property
    def store(self) -> Store:
        """The store that this manager writes to."""
        return self._store

    def __enter__(self) -> Self:
        """Return the manager, which closes at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the manager."""
        self.close()

    def close(self) -> None:
        """Close the store if this manager opened it. Closing twice is fine."""
        if self._owns_store:
            self._store.close()

    def save(self, task_id: str, snapshot: object, *, type: str = CheckpointType.ITERATION_END) -> Checkpoint:  # noqa: A002 - the field's name
        """Save a checkpoint and return it with its number. When this returns, it survives a crash and a loss of power.

        ``snapshot`` is JSON: what ``latest`` returns is equal to it. Waits for other writers, at most the store's busy
        timeout. Raises InvalidSnapshot, SnapshotTooLarge, InvalidCheckpointType, InvalidTask, UnknownTask, or any
        StoreError; after each of them there is no new checkpoint, with the doubt about a failing device that
        ``recovery`` describes.
        """
        draft = self.draft(task_id, snapshot, type=type)
        checkpoint = self._write(draft)
        sys.audit(BEFORE_ACK, task_id, checkpoint.sequence_number)
        return checkpoint

    def draft(self, task_id: str, snapshot: object, *, type: str) -> Draft:  # noqa: A002 - the field's name
        """Check and encode a checkpoint without writing it. Raises as ``save`` does for wrong arguments."""
        _check_arguments(task_id, type)
        content, content_hash, copy = encoded(snapshot, self._snapshot_bytes_max)
        return Draft(task_id, str(type), content, content_hash, copy, self._clock.now())

    def append(self, transaction: Transaction, draft: Draft) -> Checkpoint:
        """Write a draft in a transaction of the caller's, whose commit makes it durable. Raises as ``save`` does."""
        number = transaction.next_checkpoint_number(draft.task_id)
        sys.audit(AFTER_NUMBER, draft.task_id, number)
        transaction.insert_checkpoint(draft.stored(number))
        sys.audit(AFTER_CHECKPOINT_INSERT, draft.task_id, number)
        return draft.numbered(number)

    def latest(self, task_id: str, *, before: int = NUMBER_MAX) -> Checkpoint | None:
        """Return the newest checkpoint with a number below ``before``, or None if the task has none.

        Its hash is checked. Raises CorruptCheckpoint, UnknownTask, or any StoreError.
        """
        row = self._store.latest_checkpoint(task_id, before)
        if row is None:
            self._require(task_id)
            return None
        return _checkpoint(row)

    def list(self, task_id: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[Checkpoint]:
        """Return up to ``limit`` checkpoints with numbers above ``after``, oldest first. Raises as ``latest`` does."""
        rows = self._store.checkpoints(task_id, after=after, limit=limit)
        if not rows:
            self._require(task_id)
        return [_checkpoint(row) for row in rows]

    def _write(self, draft: Draft) -> Checkpoint:
        sys.audit(BEFORE_BEGIN, draft.task_id, NO_NUMBER)
        with self._store.transaction() as transaction:
            sys.audit(AFTER_BEGIN, draft.task_id, NO_NUMBER)
            checkpoint = self.append(transaction, draft)
            sys.audit(BEFORE_COMMIT, draft.task_id, checkpoint.sequence_number)
        sys.audit(AFTER_COMMIT, draft.task_id, checkpoint.sequence_number)
        return checkpoint

    def _require(self, task_id: str) -> None:
        if self._store.task(task_id) is None:
            raise unknown_task(task_id)


def _check_arguments(task_id: object, type_: object) -> None:
    if not isinstance(type_, str) or not type_:
        message = f"Expected the type of a checkpoint to be a string that is not empty but got {type_!r}; name it."
        raise InvalidCheckpointType(message)
    if not isinstance(task_id, str):  # SQLite would turn 7 into '7', which is another caller's task
        message = f"Expected the id of a task to be a string but got {task_id!r}; convert it where it comes from."
        raise InvalidTask(message)


def _checkpoint(row: StoredCheckpoint) -> Checkpoint:
    snapshot = decoded(row.snapshot, row.content_hash, row.task_id, row.sequence_number)
    return Checkpoint(row.task_id, row.sequence_number, row.type, snapshot, row.content_hash, row.created_at)
