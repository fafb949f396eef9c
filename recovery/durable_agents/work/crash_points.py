"""The crash points of this room: audit events at which a process can be killed by name."""

from __future__ import annotations

import enum
from typing import Final


class WorkPoint(enum.StrEnum):
    """The crash points of this room, in the order in which each operation passes them.

    Arguments: an artifact's path; a checkpoint's task id and number (``NO_NUMBER`` before there is
    one); a lease's holder, later its item and token; a sweep's moment; a worker's task id and
    iteration. LEASE_AFTER_GRANT, _RENEWAL and _END_UPDATE lie between the statement and its COMMIT.
    A sweep that finds nothing passes SWEEP_BEFORE_BATCH only.
    """

    ARTIFACT_BEFORE_CREATE = "recovery.artifact.before_create"
    ARTIFACT_AFTER_CREATE = "recovery.artifact.after_create"
    ARTIFACT_AFTER_WRITE = "recovery.artifact.after_write"
    ARTIFACT_AFTER_FILE_SYNC = "recovery.artifact.after_file_sync"
    ARTIFACT_AFTER_RENAME = "recovery.artifact.after_rename"
    ARTIFACT_AFTER_FOLDER_SYNC = "recovery.artifact.after_folder_sync"

    CHECKPOINT_BEFORE_BEGIN = "recovery.checkpoint.before_begin"
    CHECKPOINT_AFTER_BEGIN = "recovery.checkpoint.after_begin"
    CHECKPOINT_AFTER_NUMBER = "recovery.checkpoint.after_number"
    CHECKPOINT_AFTER_INSERT = "recovery.checkpoint.after_checkpoint_insert"
    CHECKPOINT_BEFORE_COMMIT = "recovery.checkpoint.before_commit"
    CHECKPOINT_AFTER_COMMIT = "recovery.checkpoint.after_commit"
    CHECKPOINT_BEFORE_ACK = "recovery.checkpoint.before_ack"

    LEASE_BEFORE_ACQUIRE = "recovery.lease.before_acquire"
    LEASE_AFTER_GRANT = "recovery.lease.after_grant"
    LEASE_AFTER_ACQUIRE = "recovery.lease.after_acquire"
    LEASE_BEFORE_RENEW = "recovery.lease.before_renew"
    LEASE_AFTER_RENEWAL = "recovery.lease.after_renewal"
    LEASE_AFTER_RENEW = "recovery.lease.after_renew"
    LEASE_BEFORE_END = "recovery.lease.before_end"
    LEASE_AFTER_END_UPDATE = "recovery.lease.after_end_update"
    LEASE_AFTER_END = "recovery.lease.after_end"

    SWEEP_BEFORE_BATCH = "recovery.sweep.before_batch"
    SWEEP_AFTER_EXPIRE = "recovery.sweep.after_expire"
    SWEEP_AFTER_AUDIT = "recovery.sweep.after_audit"
    SWEEP_BEFORE_COMMIT = "recovery.sweep.before_commit"
    SWEEP_AFTER_BATCH = "recovery.sweep.after_batch"

    WORKER_BEFORE_CLAIM = "recovery.worker.before_claim"
    WORKER_AFTER_CLAIM = "recovery.worker.after_claim"
    WORKER_AFTER_RESUME = "recovery.worker.after_resume"
    WORKER_BEFORE_ITERATION = "recovery.worker.before_iteration"
    WORKER_AFTER_ITERATION = "recovery.worker.after_iteration"
    WORKER_AFTER_CHECKPOINT = "recovery.worker.after_checkpoint"
    WORKER_BEFORE_COMPLETE = "recovery.worker.before_complete"
    WORKER_AFTER_COMPLETE = "recovery.worker.after_complete"


def _of(subject: str) -> tuple[str, ...]:
    return tuple(point for point in WorkPoint if point.startswith(f"recovery.{subject}."))


ARTIFACT_CRASH_POINTS: Final = _of("artifact")
CHECKPOINT_CRASH_POINTS: Final = _of("checkpoint")
LEASE_CRASH_POINTS: Final = _of("lease")
ACQUIRE_CRASH_POINTS: Final = LEASE_CRASH_POINTS[:3]
RENEW_CRASH_POINTS: Final = LEASE_CRASH_POINTS[3:6]
END_CRASH_POINTS: Final = LEASE_CRASH_POINTS[6:]
SWEEP_CRASH_POINTS: Final = _of("sweep")
WORKER_CRASH_POINTS: Final = _of("worker")
