"""The sweep: expired leases go back to pending while retries remain, else to failed.

Each batch is one short write transaction that finds, changes, audits, and writes boundary
checkpoints. So a sweep that dies leaves whole batches, and any number of sweeps at once recover
each lease once; each reports only its own work. A holder that renewed or completed meanwhile is
left alone: the update names the token and the expiry that were read (D5, D6).

If a row of a batch cannot be stored, the batch is undone and repeated item by item, so one bad item
stops no other. An error that would meet every item (a full disk, a locked database) is raised.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.bounds import is_whole
from durable_agents.clock import Clock, Microseconds, SystemClock
from durable_agents.errors import (
    DatabaseFull,
    DatabaseLocked,
    DatabaseReadOnly,
    DatabaseUnavailable,
    InvalidSetting,
    RecoveryError,
    StoreClosed,
)
from durable_agents.store.rows import Audit, ExpiredLease, Expiry, StoredCheckpoint, WorkStatus
from durable_agents.work.checkpoints import CheckpointType
from durable_agents.work.crash_points import WorkPoint
from durable_agents.work.lease_time import LeaseTime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_agents.store import Store, Transaction

BATCH: Final = 300
"""Items per transaction: it holds the write lock for a few milliseconds, so writers wait briefly.
"""

BATCH_MAX: Final = 10_000
ERRORS_MAX: Final = 100

_MOMENT_MAX: Final = 2**62
_FIRST: Final = (-_MOMENT_MAX, 0)
_FATAL: Final = (DatabaseFull, DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable, StoreClosed)
_BOUNDARY_TYPE: Final = CheckpointType.ERROR_BOUNDARY.value
_TEXTS: Final = {status: status.value for status in WorkStatus}
_sha256: Final = hashlib.sha256
_encode: Final = msgspec.json.Encoder().encode


class SweepStatistics(msgspec.Struct, frozen=True):
    """The work of one sweep.

    ``recovered`` items went back to pending, ``failed`` ones had no retries left. The rest of
    ``expired_found`` could not be swept; ``errors`` says why, in at most ``ERRORS_MAX`` sentences.
    """

    expired_found: int = 0
    recovered: int = 0
    failed: int = 0
    errors: tuple[str, ...] = ()


class Boundary(msgspec.Struct, frozen=True):
    """The snapshot of a lease's boundary checkpoint. ``retries`` is the count before the expiry."""

    work_item_id: int
    lease_holder: str
    lease_token: int
    lease_expires_at: Microseconds
    retries: int
    status: str


class _MeanwhileError(RecoveryError):
    """An item changed between the read and the update, which a store with row locks may allow."""


class RecoverySweep:
    """Returns the expired leases of one store, the one it is given (D13).

    Run it by a ``PeriodicService``. ``batch`` bounds the items of one transaction. Raises
    InvalidSetting.
    """

    def __init__(self, store: Store, *, clock: Clock | None = None, batch: int = BATCH) -> None:
        """Validate the batch size; nothing is swept yet."""
        if not is_whole(batch, 1, BATCH_MAX):
            message = f"batch must be 1 to {BATCH_MAX} items; got {batch!r}. Give a number such as {BATCH}."
            raise InvalidSetting(message)
        self._store = store
        self._clock: Clock = SystemClock() if clock is None else clock
        self._time = LeaseTime(store, self._clock)
        self._batch = batch

    def run_once(self, now: Microseconds | None = None) -> SweepStatistics:
        """Return every lease that has expired at ``now`` (by default, the time of leases).

        Raises InvalidSetting for an invalid ``now``, and the StoreErrors that would meet every item
        (locked, full, read-only, unavailable, closed); earlier batches stay done.
        """
        if now is None:
            self._time.prepare()
        moment = self._time.now() if now is None else now
        if not is_whole(moment, -_MOMENT_MAX, _MOMENT_MAX):
            message = f"now must be microseconds since 1970; got {now!r:.80}. Give a whole number, or None."
            raise InvalidSetting(message)
        done: Counter[WorkStatus] = Counter()
        errors: list[str] = []
        after = _FIRST
        while found := self._sweep_batch(moment, after, done, errors):
            after = _key(found[-1])
        recovered, failed = done[WorkStatus.PENDING], done[WorkStatus.FAILED]
        return SweepStatistics(recovered + failed + len(errors), recovered, failed, tuple(errors[:ERRORS_MAX]))

    def _sweep_batch(
        self, now: Microseconds, after: tuple[Microseconds, int], done: Counter[WorkStatus], errors: list[str]
    ) -> list[ExpiredLease]:
        """Sweep the next batch, count its outcomes, and return its items.

        An empty list means the end.
        """
        found: list[ExpiredLease] = []
        sys.audit(WorkPoint.SWEEP_BEFORE_BATCH, now)
        try:
            with self._store.transaction() as transaction:
                found = transaction.expired_leases(now=now, after=after, limit=self._batch)
                if not found:
                    return found
                statuses = self._expire(transaction, found, now)
                sys.audit(WorkPoint.SWEEP_BEFORE_COMMIT, now)
        except _FATAL:
            raise
        except RecoveryError:
            if not found:
                raise
            for item in found:
                self._sweep_alone(item, now, done, errors)
        else:
            sys.audit(WorkPoint.SWEEP_AFTER_BATCH, now)
            done.update(statuses)
        return found

    def _sweep_alone(self, item: ExpiredLease, now: Microseconds, done: Counter[WorkStatus], errors: list[str]) -> None:
        try:
            with self._store.transaction() as transaction:
                statuses = self._expire(transaction, [item], now)
        except _MeanwhileError:
            return
        except _FATAL:
            raise
        except RecoveryError as error:
            errors.append(f"Work item {item.work_item_id} could not be swept: {error}")
        else:
            done.update(statuses)

    def _expire(self, transaction: Transaction, items: Sequence[ExpiredLease], now: Microseconds) -> list[WorkStatus]:
        """End these leases, with audit rows and boundary checkpoints; return the new statuses."""
        expiries = [_expiry(item) for item in items]
        if transaction.expire_leases(expiries, now=now) != len(expiries):
            raise _MeanwhileError
        sys.audit(WorkPoint.SWEEP_AFTER_EXPIRE, now)
        transaction.insert_audits(
            [
                Audit(item.task_id, "lease_expired", item.lease_holder, _TEXTS[expiry.status], _detail(item), now)
                for item, expiry in zip(items, expiries, strict=True)
            ]
        )
        sys.audit(WorkPoint.SWEEP_AFTER_AUDIT, now)
        transaction.insert_checkpoints(_boundaries(transaction, items, expiries, now))
        return [expiry.status for expiry in expiries]


def _expiry(item: ExpiredLease) -> Expiry:
    key = (item.work_item_id, item.lease_token, item.lease_expires_at)
    late = f"lease of {item.lease_holder!r} expired at {item.lease_expires_at}"
    if item.retries < item.max_retries:
        return Expiry(*key, WorkStatus.PENDING, 1, f"{late}: retry {item.retries + 1}/{item.max_retries}")
    return Expiry(*key, WorkStatus.FAILED, 0, f"{late}: no retries left, {item.retries}/{item.max_retries}")


def _detail(item: ExpiredLease) -> str:
    return f"work item {item.work_item_id}, token {item.lease_token}"


def _boundaries(
    transaction: Transaction, items: Sequence[ExpiredLease], expiries: Sequence[Expiry], now: Microseconds
) -> list[StoredCheckpoint]:
    """Return an error_boundary checkpoint per item, with the next numbers of its task."""
    next_numbers = {
        task_id: transaction.next_checkpoint_number(task_id) for task_id in {item.task_id for item in items}
    }
    rows = []
    for item, expiry in zip(items, expiries, strict=True):
        number = next_numbers[item.task_id]
        next_numbers[item.task_id] = number + 1
        key = (item.work_item_id, item.lease_holder, item.lease_token, item.lease_expires_at, item.retries)
        content = _encode(Boundary(*key, _TEXTS[expiry.status]))
        content_hash = _sha256(content).hexdigest()
        rows.append(StoredCheckpoint(item.task_id, number, _BOUNDARY_TYPE, content, content_hash, now))
    return rows


def _key(item: ExpiredLease) -> tuple[Microseconds, int]:
    return item.lease_expires_at, item.work_item_id
