"""The sweep: leases that ran out go back to pending while retries remain, else to failed.

Each batch is one short write transaction that finds, changes, audits and marks with a boundary checkpoint; so a sweep
that dies leaves whole batches, any number of sweeps at once recover each lease once, and what each reports is what it
did itself. A holder that renewed or completed meanwhile is not in a batch: the update names the token and the expiry
that were read.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import msgspec

from recovery.checkpoints import CheckpointManager, CheckpointType
from recovery.clock import Clock, Microseconds, SystemClock
from recovery.errors import InvalidSetting, RecoveryError
from recovery.store.rows import Audit, WorkItem, WorkStatus

if TYPE_CHECKING:
    from recovery.store import Store, Transaction

BATCH: Final = 50
"""Items per transaction: some 5 ms of write lock, so that no writer waits long for a sweep of any size."""

SWEEP_CRASH_POINTS: Final = (
    "recovery.sweep.before_batch",
    "recovery.sweep.after_item",
    "recovery.sweep.before_commit",
    "recovery.sweep.after_batch",
)
"""The audit events of one batch, in order, the second once per item."""

BEFORE_BATCH, AFTER_ITEM, BEFORE_COMMIT, AFTER_BATCH = SWEEP_CRASH_POINTS
_FIRST: Final = (-(2**62), 0)


class SweepStatistics(msgspec.Struct, frozen=True):
    """What one sweep did itself. ``expired_found`` = ``recovered`` + ``failed`` + the number of ``errors``."""

    expired_found: int = 0
    recovered: int = 0
    failed: int = 0
    errors: tuple[str, ...] = ()


class RecoverySweep:
    """Returns expired leases. Everything goes to one store, the one it is given (D13).

    ``batch`` bounds the items of one transaction. Raises InvalidSetting.
    """

    def __init__(self, store: Store, *, clock: Clock | None = None, batch: int = BATCH) -> None:
        """Prepare; nothing is swept yet."""
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            message = f"Expected a batch of 1 item or more but got {batch!r}; give a number such as {BATCH}."
            raise InvalidSetting(message)
        self._store = store
        self._clock: Clock = SystemClock() if clock is None else clock
        self._checkpoints = CheckpointManager(store, clock=self._clock)
        self._batch = batch

    def run_once(self, now: Microseconds | None = None) -> SweepStatistics:
        """Return every lease that has run out at ``now``. Raises any StoreError, after whole batches."""
        moment = self._clock.now() if now is None else now
        recovered = failed = 0
        errors: list[str] = []
        after = _FIRST
        while True:
            found, batch = self._sweep_batch(moment, after)
            if not found:
                return SweepStatistics(recovered + failed + len(errors), recovered, failed, tuple(errors))
            after = _key(found[-1])
            if batch is None:  # one of them cannot be swept: find out which, and serve the others
                batch = [self._sweep_alone(item, moment) for item in found]
            recovered += sum(status is WorkStatus.PENDING for status in batch)
            failed += sum(status is WorkStatus.FAILED for status in batch)
            errors += [status for status in batch if status is not None and not isinstance(status, WorkStatus)]

    def _sweep_batch(
        self, now: Microseconds, after: tuple[Microseconds, int]
    ) -> tuple[list[WorkItem], list[WorkStatus | str | None] | None]:
        """Sweep the next batch; return its items and what became of each, or None if one stands in the way."""
        found: list[WorkItem] = []
        sys.audit(BEFORE_BATCH, now)
        try:
            with self._store.transaction() as transaction:
                found = transaction.expired_leases(now=now, after=after, limit=self._batch)
                statuses: list[WorkStatus | str | None] = [self._expire(transaction, item, now) for item in found]
                sys.audit(BEFORE_COMMIT, now)
        except RecoveryError:
            if not found:
                raise
            return found, None
        sys.audit(AFTER_BATCH, now)
        return found, statuses

    def _sweep_alone(self, item: WorkItem, now: Microseconds) -> WorkStatus | str | None:
        try:
            with self._store.transaction() as transaction:
                return self._expire(transaction, item, now)
        except RecoveryError as error:
            return f"work item {item.work_item_id}: {error}"

    def _expire(self, transaction: Transaction, item: WorkItem, now: Microseconds) -> WorkStatus | None:
        """Return one lease, with its audit row and boundary checkpoint; None when it is not expired any more."""
        remain = item.retries < item.max_retries
        status = WorkStatus.PENDING if remain else WorkStatus.FAILED
        error = _text(item, remain=remain)
        if not transaction.expire_lease(item, status=status, retries=int(remain), error=error, now=now):
            return None
        transaction.insert_audit(Audit(item.task_id, "lease_expired", item.lease_holder, status.value, error, now))
        snapshot = {
            "work_item_id": item.work_item_id,
            "lease_holder": item.lease_holder,
            "lease_token": item.lease_token,
            "status": status.value,
            "error": error,
        }
        draft = self._checkpoints.draft(item.task_id, snapshot, type=CheckpointType.ERROR_BOUNDARY)
        self._checkpoints.append(transaction, draft)
        sys.audit(AFTER_ITEM, item.work_item_id)
        return status


def _text(item: WorkItem, *, remain: bool) -> str:
    attempt = (
        f"retry {item.retries + 1}/{item.max_retries}"
        if remain
        else f"no retries left, {item.retries}/{item.max_retries}"
    )
    return f"lease of {item.lease_holder!r} expired at {item.lease_expires_at}: {attempt}"


def _key(item: WorkItem) -> tuple[Microseconds, int]:
    assert item.lease_expires_at is not None  # noqa: S101 - it was found by its expiry
    return item.lease_expires_at, item.work_item_id
