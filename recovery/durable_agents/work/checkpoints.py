"""Checkpoints: how far a task is, saved so that another process can go on after this one dies.

Number, snapshot, content hash and evidence of a checkpoint, with the verdict on it, are written in
one transaction (D11). Numbers are 1, 2, 3, ... per task, without gap or duplicate, however many
processes write at once: the number is read under the write lock under which it is written (D1).

A checkpoint is **verified** if its evidence holds now. ``latest_verified`` examines it again,
newest checkpoint first, and reports those it passed over. ``prune`` keeps the one that it would
find, and all later ones.
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
from durable_agents.work.crash_points import WorkPoint
from durable_agents.work.evidence import Evidence, EvidencePolicy, OwnVerifier, Verification, Verifier, encoded_verdicts
from durable_agents.work.leases import Lease, require

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from durable_agents.store import Store, Transaction
    from durable_agents.work.artifacts import Artifacts

PRUNE_BATCH: Final = 200
"""How many checkpoints one transaction of ``prune`` deletes,
which bounds how long others wait for it.
"""

SKIPPED_MAX: Final = 100
"""How many of the skipped checkpoints ``latest_verified`` reports, newest first."""

_FIRST_PAGE_ROWS: Final = 10
_PAGE_ROWS: Final = 200
_NO_EVIDENCE: Final = "it was saved without evidence"

NO_NUMBER: Final = 0
"""Stands for the number before there is one; numbers begin at 1."""


class CheckpointType(enum.StrEnum):
    """The types that the core knows. Any other non-empty string is a type of the user's."""

    ITERATION_START = "iteration_start"
    ITERATION_END = "iteration_end"
    TOOL_EXECUTED = "tool_executed"
    LLM_RESPONSE = "llm_response"
    APPROVAL_POINT = "approval_point"
    STATE_TRANSITION = "state_transition"
    MANUAL_CHECKPOINT = "manual_checkpoint"
    ERROR_BOUNDARY = "error_boundary"


class Checkpoint(msgspec.Struct, frozen=True):
    """A checkpoint with its snapshot decoded. ``content_hash`` is the SHA-256 of the stored JSON.

    ``verification`` is there if the call that returned it examined its evidence: ``save`` (with
    evidence) and ``latest_verified`` do.
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
    """A checkpoint that recovery passed over. ``why`` is a sentence."""

    sequence_number: int
    why: str
    verification: Verification | None = None


class Recovery(msgspec.Struct, frozen=True):
    """The newest checkpoint whose evidence verifies now, or None.

    ``skipped`` holds the newer ones, newest first, at most SKIPPED_MAX; ``skipped_count`` counts
    them all.
    """

    checkpoint: Checkpoint | None
    skipped: tuple[Skipped, ...] = ()
    skipped_count: int = 0


class Draft(msgspec.Struct, frozen=True):
    """A checkpoint without its number, checked and encoded before a lock is taken."""

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
        """Return its row."""
        return StoredCheckpoint(self.task_id, number, self.type, self.content, self.content_hash, self.created_at)

    def numbered(self, number: int) -> Checkpoint:
        """Return the checkpoint with this number."""
        fields = (self.task_id, number, self.type, self.snapshot, self.content_hash, self.created_at)
        return Checkpoint(*fields, self.verification)

    def evidence(self, number: int) -> StoredEvidence | None:
        """Return the row of its evidence, or None."""
        found = self.verification
        if found is None:
            return None
        return StoredEvidence(self.task_id, number, found.required, found.is_verified, self.verdicts)


class CheckpointManager(Manager):
    """Saves and reads checkpoints, in a store, or in the database at ``db_path``.

    >>> with CheckpointManager(db_path=tmp_path / "core.db") as checkpoints:
    ...     _ = TaskManager(checkpoints.store).create("t")
    ...     _ = checkpoints.save("t", {"pages": 3})
    ...     checkpoints.latest("t").snapshot
    {'pages': 3}

    ``snapshot_bytes_max`` bounds the JSON of one snapshot; None leaves SQLite's own bound, one
    gigabyte. ``artifacts`` is the folder for evidence about files, ``verifiers`` has the functions
    for OwnEvidence. Raises InvalidSetting, and any StoreError on opening. May be shared by threads.
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
            message = f"snapshot_bytes_max must be 1 or more; got {snapshot_bytes_max!r}. None is no bound."
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
        """Save a checkpoint and return it with its number.

        It then survives a crash and a power loss.

        ``snapshot`` is JSON; ``latest`` returns an equal value. The evidence is examined before any
        lock is taken. Items that do not verify are saved with their verdicts: see ``verification``.
        Recovery passes such a checkpoint over. ``policy`` is ``require_all`` by default. With a
        ``lease`` on an item of the task, the same transaction checks that it is held, or raises
        InvalidWorkItem, LeaseExpired or LeaseLost.

        Waits for other writers, at most the store's busy timeout. Raises InvalidSnapshot,
        SnapshotTooLarge, InvalidCheckpointType, InvalidEvidence, InvalidTask, UnknownTask, or any
        StoreError. Then there is no new checkpoint; after DatabaseUnavailable, that is in doubt.
        """
        draft = self.draft(task_id, snapshot, type=type, evidence=evidence, policy=policy)
        if lease is not None:
            draft = msgspec.structs.replace(draft, lease=lease)
        checkpoint = self._write(draft)
        sys.audit(WorkPoint.CHECKPOINT_BEFORE_ACK, task_id, checkpoint.sequence_number)
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
        """Check, encode and examine a checkpoint without writing it. Raises as ``save`` does."""
        _check_arguments(task_id, type)
        content, content_hash, copy = encoded(snapshot, self._snapshot_bytes_max)
        fields = (task_id, str(type), content, content_hash, copy, self._clock.now())
        if not evidence and policy is None:
            return Draft(*fields)
        verification = self._verifier.examine(evidence, policy or EvidencePolicy.require_all())
        return Draft(*fields, verification, encoded_verdicts(verification.verdicts))

    def append(self, transaction: Transaction, draft: Draft) -> Checkpoint:
        """Write a draft in the caller's transaction, whose commit makes it durable.

        Raises as ``save`` does.
        """
        if draft.lease is not None:
            require(transaction, draft.lease, draft.task_id, self._clock)
        number = transaction.next_checkpoint_number(draft.task_id)
        sys.audit(WorkPoint.CHECKPOINT_AFTER_NUMBER, draft.task_id, number)
        transaction.insert_checkpoint(draft.stored(number))
        sys.audit(WorkPoint.CHECKPOINT_AFTER_INSERT, draft.task_id, number)
        if evidence := draft.evidence(number):
            transaction.insert_evidence(evidence)
        return draft.numbered(number)

    def latest(self, task_id: str, *, before: int = NUMBER_MAX) -> Checkpoint | None:
        """Return the newest checkpoint with a number below ``before``, or None.

        Its hash is checked. Raises CorruptCheckpoint, UnknownTask, or any StoreError.
        """
        row = self._store.latest_checkpoint(task_id, before)
        if row is None:
            self._require(task_id)
            return None
        return _checkpoint(row)

    def list(self, task_id: str, *, after: int = 0, limit: int = PAGE_ROWS_MAX) -> list[Checkpoint]:
        """Return up to ``limit`` checkpoints above ``after``, oldest first.

        Raises as ``latest`` does.
        """
        rows = self._store.checkpoints(task_id, after=after, limit=limit)
        if not rows:
            self._require(task_id)
        return [_checkpoint(row) for row in rows]

    def latest_verified(self, task_id: str, *, type: str | None = None) -> Recovery:  # noqa: A002 - the field's name
        """Return the newest checkpoint whose evidence verifies now.

        Checkpoints are examined again, newest first. Checkpoints without evidence, with a snapshot
        that does not match its hash, or of another ``type`` (if given) are passed over. Nothing is
        written. Raises UnknownTask, or any StoreError.
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
        """Delete old checkpoints; return how many were deleted.

        At least the newest ``keep`` stay. The newest checkpoint that verifies now stays, with all
        later ones (D10). If none verifies now, the newest that verified when it was saved stays: a
        missing folder may be mounted again. It deletes in short transactions, oldest first; the
        rest is contiguous after each. Raises InvalidSetting, UnknownTask, or any StoreError.
        """
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:  # the next number follows the newest
            message = f"keep must be 1 or more; got {keep!r}. The newest checkpoint always stays."
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
        """Yield the evidence of all checkpoints of the task, newest first.

        It is read page by page, without snapshots.
        """
        before, limit = NUMBER_MAX, _FIRST_PAGE_ROWS
        while page := self._store.evidence(task_id, before=before, limit=limit):
            yield from page
            before, limit = page[-1].sequence_number, _PAGE_ROWS

    def _examined(self, evidence: StoredEvidence) -> Checkpoint | Skipped:
        """Return the checkpoint if its evidence and its hash hold now, else the reason why not."""
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
        sys.audit(WorkPoint.CHECKPOINT_BEFORE_BEGIN, draft.task_id, NO_NUMBER)
        with self._store.transaction() as transaction:
            sys.audit(WorkPoint.CHECKPOINT_AFTER_BEGIN, draft.task_id, NO_NUMBER)
            checkpoint = self.append(transaction, draft)
            sys.audit(WorkPoint.CHECKPOINT_BEFORE_COMMIT, draft.task_id, checkpoint.sequence_number)
        sys.audit(WorkPoint.CHECKPOINT_AFTER_COMMIT, draft.task_id, checkpoint.sequence_number)
        return checkpoint

    def _require(self, task_id: str) -> None:
        if self._store.task(task_id) is None:
            raise unknown_task(task_id)


def _check_arguments(task_id: object, type_: object) -> None:
    if not isinstance(type_, str) or not type_:
        message = f"The type of a checkpoint must be a non-empty string; got {type_!r}. Name it."
        raise InvalidCheckpointType(message)
    if not isinstance(task_id, str):  # SQLite would turn 7 into '7', which is another caller's task
        message = f"The id of a task must be a string; got {task_id!r}. Convert it where it comes from."
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
