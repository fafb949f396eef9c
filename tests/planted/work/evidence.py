"""Managers and artifacts with one known bug each about evidence. Make them like the sound ones.

| variant | bug | seen by |
|---|---|---|
| SignalVerifies | a command that was killed, 137, counts as one that ran (D9) | a command that ends by a signal |
| EmptyVerifies | "all items verified" is true of no items (D9) | a save with an empty pack |
| MinimumZero | min_verified=0 is taken at its word (D9) | a save of which nothing verifies |
| DeletedStaysVerified | recovery believes the verdict of the day of the save (D9) | a deleted artifact |
| BlindRetention | ``prune`` keeps the newest n, verified or not (D10) | more boundary rows than are kept |
| VerdictLater | a checkpoint in one transaction, its verdict in the next (D11) | a kill between them |
| InPlaceArtifacts | writes over the file itself, and flushes nothing | a kill in mid-write; a power loss |
| UnsyncedArtifacts | a temporary file and a rename, without a flush | a power loss; no kill shows it |
| BelievesNewest | a worker that goes on behind the newest checkpoint, verified or not | a lost artifact |
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import TYPE_CHECKING

import msgspec
from durable_agents import (
    Artifacts,
    Checkpoint,
    CheckpointManager,
    CommandExit,
    FileSha256,
    Reason,
    Verdict,
    Verification,
)
from durable_agents.work.checkpoints import NO_NUMBER, Skipped
from durable_agents.work.crash_points import WorkPoint
from durable_agents.work.evidence import Verifier
from durable_agents.work.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from durable_agents import Evidence, EvidencePolicy
    from durable_agents.store.rows import StoredEvidence
    from durable_agents.work.checkpoints import Draft

_SIGNALS = range(129, 160)


class _PlantedVerifier(Verifier):
    """A verifier that sums up in a way of its own."""

    summed: type[Verification] = Verification

    def __init__(self, sound: Verifier) -> None:
        """Look where the sound one looks."""
        super().__init__(sound._store, sound._artifacts, sound._own)

    def examine(self, evidence: Sequence[Evidence], policy: EvidencePolicy) -> Verification:
        """Examine new evidence and sum up."""
        found = super().examine(evidence, policy)
        return self.summed(found.required, found.verdicts)

    def examine_again(self, stored: StoredEvidence) -> Verification:
        """Examine stored evidence and sum up."""
        found = super().examine_again(stored)
        return self.summed(found.required, found.verdicts)


class _SignalVerifier(_PlantedVerifier):
    def verdict(self, evidence: Evidence) -> Verdict:
        """Take an end by a signal for an end."""
        found = super().verdict(evidence)
        is_signal = isinstance(evidence, CommandExit) and any(f"exited with {n}," in found.detail for n in _SIGNALS)
        return msgspec.structs.replace(found, reason=Reason.VERIFIED) if is_signal else found


class _AllOfNothing(Verification, frozen=True):
    @property
    def is_verified(self) -> bool:
        """Whether all of them verified, be they none."""
        return all(verdict.is_verified for verdict in self.verdicts)


class _EmptyVerifier(_PlantedVerifier):
    summed = _AllOfNothing


class _AtLeastNone(Verification, frozen=True):
    @property
    def is_verified(self) -> bool:
        """Whether none or more verified."""
        return sum(verdict.is_verified for verdict in self.verdicts) >= 0


class _NoneRequired(_PlantedVerifier):
    summed = _AtLeastNone


class SignalVerifies(CheckpointManager):
    """Takes the exit status of a killed process for that of one that did its work."""

    def __init__(self, *, db_path: str | os.PathLike[str], artifacts: Artifacts | None = None) -> None:
        """Open the store at ``db_path``."""
        super().__init__(db_path=db_path, artifacts=artifacts)
        self._verifier = _SignalVerifier(self._verifier)


class EmptyVerifies(CheckpointManager):
    """Takes an empty pack of evidence for a verified one."""

    def __init__(self, *, db_path: str | os.PathLike[str], artifacts: Artifacts | None = None) -> None:
        """Open the store at ``db_path``."""
        super().__init__(db_path=db_path, artifacts=artifacts)
        self._verifier = _EmptyVerifier(self._verifier)


class MinimumZero(CheckpointManager):
    """Runs under a policy of min_verified=0, which lets everything pass."""

    def __init__(self, *, db_path: str | os.PathLike[str], artifacts: Artifacts | None = None) -> None:
        """Open the store at ``db_path``."""
        super().__init__(db_path=db_path, artifacts=artifacts)
        self._verifier = _NoneRequired(self._verifier)


class DeletedStaysVerified(CheckpointManager):
    """Recovers from what once verified, without looking again."""

    def _examined(self, evidence: StoredEvidence) -> Checkpoint | Skipped:
        if not evidence.verified:
            return Skipped(evidence.sequence_number, "it did not verify when it was saved")
        checkpoint = self.latest(evidence.task_id, before=evidence.sequence_number + 1)
        assert checkpoint is not None
        return checkpoint


class BlindRetention(CheckpointManager):
    """Keeps the newest checkpoints, whatever they are worth."""

    def _oldest_to_keep(self, task_id: str, keep: int) -> int:
        newest = self.latest(task_id)
        return 0 if newest is None else newest.sequence_number - keep + 1


class VerdictLater(CheckpointManager):
    """Commits a checkpoint, and then the verdict on its evidence."""

    def _write(self, draft: Draft) -> Checkpoint:
        sys.audit(WorkPoint.CHECKPOINT_BEFORE_BEGIN, draft.task_id, NO_NUMBER)
        with self.store.transaction() as transaction:
            sys.audit(WorkPoint.CHECKPOINT_AFTER_BEGIN, draft.task_id, NO_NUMBER)
            number = self.append(transaction, msgspec.structs.replace(draft, verification=None)).sequence_number
        sys.audit(WorkPoint.CHECKPOINT_BEFORE_COMMIT, draft.task_id, number)
        if evidence := draft.evidence(number):
            with self.store.transaction() as transaction:
                transaction.insert_evidence(evidence)
        sys.audit(WorkPoint.CHECKPOINT_AFTER_COMMIT, draft.task_id, number)
        return draft.numbered(number)


class InPlaceArtifacts(Artifacts):
    """Opens the file itself for writing, as most programs do."""

    def write(self, path: str, content: bytes) -> FileSha256:
        """Write a file that is neither whole nor durable at any certain time."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        sys.audit(WorkPoint.ARTIFACT_BEFORE_CREATE, path)
        with target.open("wb", buffering=0) as file:
            sys.audit(WorkPoint.ARTIFACT_AFTER_CREATE, path)
            file.write(content[: len(content) // 2])
            file.write(content[len(content) // 2 :])
            sys.audit(WorkPoint.ARTIFACT_AFTER_WRITE, path)
        for point in (
            WorkPoint.ARTIFACT_AFTER_FILE_SYNC,
            WorkPoint.ARTIFACT_AFTER_RENAME,
            WorkPoint.ARTIFACT_AFTER_FOLDER_SYNC,
        ):
            sys.audit(point, path)
        return FileSha256(path, hashlib.sha256(content).hexdigest())


class UnsyncedArtifacts(Artifacts):
    """Writes a temporary file and renames it, and leaves it to the kernel when any of it reaches
    the device.
    """

    def write(self, path: str, content: bytes) -> FileSha256:
        """Write a file that is whole for everyone but the device."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        sys.audit(WorkPoint.ARTIFACT_BEFORE_CREATE, path)
        temporary = target.with_name(f".unfinished-{os.getpid()}")
        with temporary.open("wb") as file:
            sys.audit(WorkPoint.ARTIFACT_AFTER_CREATE, path)
            file.write(content)
        for point in (WorkPoint.ARTIFACT_AFTER_WRITE, WorkPoint.ARTIFACT_AFTER_FILE_SYNC):
            sys.audit(point, path)
        temporary.replace(target)
        for point in (WorkPoint.ARTIFACT_AFTER_RENAME, WorkPoint.ARTIFACT_AFTER_FOLDER_SYNC):
            sys.audit(point, path)
        return FileSha256(path, hashlib.sha256(content).hexdigest())


class BelievesNewest(Worker):
    """Goes on behind the newest checkpoint, and does not ask what became of its evidence."""

    def _progress(self, task_id: str) -> tuple[int, Any, int]:
        newest = self._checkpoints.latest(task_id)
        if newest is None:
            return 0, self._start, 0
        return newest.snapshot["iteration"], newest.snapshot["state"], 0
