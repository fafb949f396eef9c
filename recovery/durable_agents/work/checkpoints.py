"""Checkpoints: how far a task is, saved so that a process that dies the next instant can be replaced by another.

A checkpoint's number, snapshot, content hash and evidence, with the verdict on it, are written in
one transaction. Numbers are 1, 2, 3, ... per task, without a gap and without a double, whatever
number of processes and threads write at once: the number is read under the write lock that it is
written under.

**Verified** is a checkpoint whose evidence holds now. ``latest_verified`` examines again, newest
first, and tells which it passed over; ``prune`` keeps the one that it would find, whatever lies
after it.
"""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_agents.clock import Clock, Microseconds
from durable_agents.errors import CorruptCheckpoint, InvalidCheckpointType, InvalidSetting, InvalidTask, unknown_task
from durable_agents.manager import Manager
from durable_agents.snapshots import SNAPSHOT_BYTES_MAX, decoded, encoded
from durable_agents.store.protocol import NUMBER_MAX, PAGE_ROWS_MAX
from durable_agents.store.rows import StoredCheckpoint, StoredEvidence
from durable_agents.work.evidence import Evidence, EvidencePolicy, OwnVerifier, Verification, Verifier, encoded_verdicts
from durable_agents.work.leases import Lease, require

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from durable_agents.store import Store, Transaction
    from durable_agents.work.artifacts import Artifacts

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

Their arguments are the task id and the sequence number, which is ``NO_NUMBER`` as long as none was
taken.
"""

PRUNE_BATCH: Final = 200
"""How many checkpoints one transaction of ``prune`` deletes: what bounds the time that others wait for it."""

SKIPPED_MAX: Final = 100
"""How many of the checkpoints that it passed over ``latest_verified`` tells of; the newest, which are of interest."""

_FIRST_PAGE_ROWS: Final = 10
_PAGE_ROWS: Final = 200
_NO_EVIDENCE: Final = "it was saved without evidence"

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
    """A checkpoint with its snapshot decoded. ``content_hash`` is the SHA-256 of the stored JSON, in hexadecimal.

    ``verification`` is what the call that returned it found out about its evidence: ``save`` and
    ``latest_verified`` examine it, others do not and leave None, as does a save without evidence.
    """

    task_id: str
    sequence_number: int
    type: str
    snapshot: Any
    content_hash: str
    created_at: Microseconds
    verification: Verification | None = None

    @property
    def is_verified(self) -> bool:
        """Whether its evidence was examined and held. Without evidence, it is not."""
        return self.verification is not None and self.verification.is_verified


class Skipped(msgspec.Struct, frozen=True):
    """A checkpoint that recovery passed over. ``why`` is a sentence; the verdicts are in ``verification``, if any."""

    sequence_number: int
    why: str
    verification: Verification | None = None


class Recovery(msgspec.Struct, frozen=True):
    """Where to go on: the newest checkpoint whose evidence verifies now, or None where none does.

    ``skipped`` are the newer ones, newest first, at most SKIPPED_MAX; ``skipped_count`` says how
    many there were.
    """

    checkpoint: Checkpoint | None
    skipped: tuple[Skipped, ...] = ()
    skipped_count: int = 0


class Draft(msgspec.Struct, frozen=True):
    """A checkpoint that has everything but a number: all that can be made, or refused, before a lock is taken."""

    task_id: str
    type: str
    content: bytes
    content_hash: str
    snapshot: Any
    created_at: Microseconds
    verification: Verification | None = None
    verdicts: bytes = b""
    lease: Lease | None = None

    def stored(self, number: int) -> StoredCheckpoint:
        """Return the row that this becomes with its number."""
        return StoredCheckpoint(self.task_id, number, self.type, self.content, self.content_hash, self.created_at)

    def numbered(self, number: int) -> Checkpoint:
        """Return the checkpoint that this becomes with its number."""
        fields = (self.task_id, number, self.type, self.snapshot, self.content_hash, self.created_at)
        return Checkpoint(*fields, self.verification)

    def evidence(self, number: int) -> StoredEvidence | None:
        """Return the row of its evidence, None where it has none."""
        found = self.verification
        if found is None:
            return None
        return StoredEvidence(self.task_id, number, found.required, found.is_verified, self.verdicts)


class CheckpointManager(Manager):
    """Saves and reads checkpoints. Give it a store, or the path of a database file, which it opens and will close.

    ``snapshot_bytes_max`` bounds the JSON of one snapshot; None is no bound but SQLite's own (one
    gigabyte). Evidence about files is looked up in ``artifacts``, a caller's own by its name in
    ``verifiers``. Raises InvalidSetting, and any StoreError when it opens the file. May be shared
    by threads.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        db_path: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
        snapshot_bytes_max: int | None = SNAPSHOT_BYTES_MAX,
        artifacts: Artifacts | None = None,
        verifiers: Mapping[str, OwnVerifier] | None = None,
    ) -> None:
        """Use ``store``, or the store at ``db_path``; exactly one of them."""
        if snapshot_bytes_max is not None and snapshot_bytes_max < 1:
            message = f"Expected snapshot_bytes_max of 1 or more but got {snapshot_bytes_max!r}; None is no bound."
            raise InvalidSetting(message)
        super().__init__(store, db_path=db_path, clock=clock)
        self._snapshot_bytes_max = snapshot_bytes_max
        self._verifier = Verifier(self._store, artifacts, verifiers)

    def save(
        self,
        task_id: str,
        snapshot: object,
        *,
        type: str = CheckpointType.ITERATION_END,  # noqa: A002 - the field's name
        evidence: Sequence[Evidence] = (),
        policy: EvidencePolicy | None = None,
        lease: Lease | None = None,
    ) -> Checkpoint:
        """Save a checkpoint and return it with its number. When this returns, it survives a crash and a loss of power.

        ``snapshot`` is JSON: what ``latest`` returns is equal to it. The evidence is examined
        first, before any lock is taken; what does not verify is saved with its verdict, for the
        caller to see in ``verification``, and is passed over by recovery. ``policy`` is
        ``require_all`` unless given. With a ``lease`` on an item of the task, the checkpoint is
        written only if that is held, as the same transaction finds out (InvalidWorkItem,
        LeaseExpired or LeaseLost otherwise). Waits for other writers, at most the store's busy
        timeout. Raises InvalidSnapshot, SnapshotTooLarge, InvalidCheckpointType, InvalidEvidence,
        InvalidTask, UnknownTask, or any StoreError; after each of them there is no new checkpoint,
        with the doubt about a failing device that ``recovery`` describes.
        """
        draft = self.draft(task_id, snapshot, type=type, evidence=evidence, policy=policy)
        if lease is not None:
            draft = msgspec.structs.replace(draft, lease=lease)
        checkpoint = self._write(draft)
        sys.audit(BEFORE_ACK, task_id, checkpoint.sequence_number)
        return checkpoint

    def draft(
        self,
        task_id: str,
        snapshot: object,
        *,
        type: str,  # noqa: A002 - the field's name
        evidence: Sequence[Evidence] = (),
        policy: EvidencePolicy | None = None,
    ) -> Draft:
        """Check, encode and examine a checkpoint without writing it. Raises as ``save`` does for wrong arguments."""
        _check_arguments(task_id, type)
        content, content_hash, copy = encoded(snapshot, self._snapshot_bytes_max)
        fields = (task_id, str(type), content, content_hash, copy, self._clock.now())
        if not evidence and policy is None:
            return Draft(*fields)
        verification = self._verifier.examine(evidence, policy or EvidencePolicy.require_all())
        return Draft(*fields, verification, encoded_verdicts(verification.verdicts))

    def append(self, transaction: Transaction, draft: Draft) -> Checkpoint:
        """Write a draft in a transaction of the caller's, whose commit makes it durable. Raises as ``save`` does."""
        if draft.lease is not None:
            require(transaction, draft.lease, draft.task_id, self._clock)
        number = transaction.next_checkpoint_number(draft.task_id)
        sys.audit(AFTER_NUMBER, draft.task_id, number)
        transaction.insert_checkpoint(draft.stored(number))
        sys.audit(AFTER_CHECKPOINT_INSERT, draft.task_id, number)
        if evidence := draft.evidence(number):
            transaction.insert_evidence(evidence)
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

    def latest_verified(self, task_id: str, *, type: str | None = None) -> Recovery:  # noqa: A002 - the field's name
        """Examine the checkpoints again, newest first, and return the first whose evidence holds now.

        Those of another ``type`` are passed over, if one is given.

        One that was saved without evidence is passed over, as is one whose snapshot does not match
        its hash. Nothing is written. Raises UnknownTask, or any StoreError.
        """
        skipped: list[Skipped] = []
        count = 0
        for evidence in self._evidence(task_id):
            found = self._examined(evidence)
            if isinstance(found, Checkpoint):
                if type is None or found.type == type:
                    return Recovery(found, tuple(skipped), count)
                found = Skipped(found.sequence_number, f"its type is {found.type}", found.verification)
            count += 1
            if len(skipped) < SKIPPED_MAX:
                skipped.append(found)
        if not count:
            self._require(task_id)
        return Recovery(None, tuple(skipped), count)

    def prune(self, task_id: str, *, keep: int) -> int:
        """Delete old checkpoints, keep at least the newest ``keep``, and return how many were deleted.

        The newest one that verifies now stays, with all after it, however many those are (D10);
        where none verifies now, the newest that did when it was saved stays: a folder that is not
        mounted today may be back tomorrow. What stays is contiguous after each of the short
        transactions that this is made of. Raises InvalidSetting, UnknownTask, or any StoreError,
        after which some may be deleted, oldest first.
        """
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:  # the newest holds the number to count from
            message = f"Expected to keep 1 checkpoint or more but got keep={keep!r}; the newest one always stays."
            raise InvalidSetting(message)
        below = self._oldest_to_keep(task_id, keep)
        deleted = 0
        while batch := self._delete(task_id, below):
            deleted += batch
        return deleted

    def _delete(self, task_id: str, below: int) -> int:
        with self._store.transaction() as transaction:
            return transaction.delete_checkpoints(task_id, below, PRUNE_BATCH)

    def _oldest_to_keep(self, task_id: str, keep: int) -> int:
        newest = next(self._evidence(task_id), None)
        if newest is None:
            self._require(task_id)
            return 0
        first = newest.sequence_number - keep + 1
        recovery = self.latest_verified(task_id)
        if recovery.checkpoint is not None:
            return min(first, recovery.checkpoint.sequence_number)
        once = next((row.sequence_number for row in self._evidence(task_id) if row.verified), first)
        return min(first, once)

    def _evidence(self, task_id: str) -> Iterator[StoredEvidence]:
        """Walk back over all checkpoints of the task, a page at a time and without their snapshots."""
        before, limit = NUMBER_MAX, _FIRST_PAGE_ROWS
        while page := self._store.evidence(task_id, before=before, limit=limit):
            yield from page
            before, limit = page[-1].sequence_number, _PAGE_ROWS

    def _examined(self, evidence: StoredEvidence) -> Checkpoint | Skipped:
        """Return the checkpoint if its evidence and its hash hold now, else why not."""
        number = evidence.sequence_number
        if not evidence.required:
            return Skipped(number, _NO_EVIDENCE)
        found = self._verifier.examine_again(evidence)
        if not found.is_verified:
            return Skipped(number, _shortfall(found), found)
        try:
            checkpoint = self.latest(evidence.task_id, before=number + 1)
        except CorruptCheckpoint as error:
            return Skipped(number, str(error), found)
        if checkpoint is None or checkpoint.sequence_number != number:
            return Skipped(number, "it was deleted in the meantime", found)
        return msgspec.structs.replace(checkpoint, verification=found)

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


def _shortfall(verification: Verification) -> str:
    count = sum(verdict.is_verified for verdict in verification.verdicts)
    reasons = "; ".join(
        f"{verdict.reason} ({verdict.detail})" for verdict in verification.verdicts if not verdict.is_verified
    )
    return f"{count} of {len(verification.verdicts)} items verified where {verification.required} must: {reasons}"
