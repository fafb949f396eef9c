"""Leases on work items: claims (``durable_agents.claim``) that their holders renew.

A work item is pending, in_progress, completed or failed; the last two are final. A lease makes one
holder the owner of an item until it expires. Its *fencing token* rises with every grant, and the
store compares it in the same transaction as every write made under the lease (Kleppmann, "How to do
distributed locking", 2016). So a zombie, a holder that was stopped beyond its expiry and wakes,
changes nothing.

On one machine no wall clock has a part in it: holders and sweepers compare the time since boot
(``work.lease_time``), so a clock that is set neither keeps a dead holder's lease nor ends a living
one's. No lease is longer than ``TTL_S_MAX``.

Rules of thumb: a lease of twice the expected work, a heartbeat every tenth of it, a sweep every
fifth.

A heartbeat renews a lease while its holder works, on a connection of its own (D12). The holder
learns of a loss at its next call of ``lease``, and the heartbeat within one interval. A heartbeat
whose renewals fail for other reasons (a locked database) retries while the lease can be trusted.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final, Self

import msgspec

from durable_agents.bounds import is_text, is_whole
from durable_agents.claim import expires_at, lost, trusted_until
from durable_agents.clock import Clock, Microseconds, is_duration
from durable_agents.errors import (
    AlreadyFinished,
    ClaimLost,
    InvalidDuration,
    InvalidTask,
    InvalidWorkItem,
    LeaseExpired,
    LeaseLost,
    UnknownWorkItem,
)
from durable_agents.manager import Manager
from durable_agents.service import PeriodicService
from durable_agents.store import open_store
from durable_agents.store.rows import WorkItem, WorkStatus
from durable_agents.work.crash_points import WorkPoint
from durable_agents.work.lease_time import LeaseTime, time_in

if TYPE_CHECKING:
    import os

    from durable_agents.clock import Clock
    from durable_agents.service import Health
    from durable_agents.store import Store, Transaction

__all__ = ["Lease", "LeaseManager", "WorkItem", "WorkStatus", "require"]

TTL_S_MIN: Final = 0.000_01
TTL_S_MAX: Final = 7 * 24 * 3600.0
"""The longest lease, in seconds: a week. Renew a lease to hold it longer."""
BATCH_MAX: Final = 1000
_ID_MAX: Final = 2**63 - 1
_ACQUIRE_AGAIN: Final = "Stop working on the item and acquire it again."


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The lease of a work item. ``trusted_until`` is monotonic; ``expires_at``: ``lease_time``."""

    work_item_id: int
    task_id: str
    type: str
    lease_holder: str
    token: int
    ttl_s: float
    expires_at: Microseconds
    trusted_until: Microseconds
    retries: int
    max_retries: int


class LeaseManager(Manager):
    """Grants, renews and ends leases, in a store, or in the database at ``db_path``.

    >>> with LeaseManager(db_path=tmp_path / "core.db") as leases:
    ...     _ = TaskManager(leases.store).create("t")
    ...     _ = leases.enqueue("t", "build")
    ...     lease = leases.acquire("worker-1", ttl_s=60)
    ...     nothing_left = leases.acquire("worker-2", ttl_s=60)
    ...     leases.complete(lease)
    ...     leases.get(lease.work_item_id).status.value, nothing_left
    ('completed', None)

    ``clock`` measures expiry. Raises InvalidSetting, and any StoreError on opening. May be shared
    by threads.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        db_path: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Use ``store``, or the store at ``db_path``; exactly one of them."""
        super().__init__(store, db_path=db_path, clock=clock)
        self._time = LeaseTime(self._store, self._clock)

    def enqueue(
        self,
        task_id: str,
        type: str,  # noqa: A002 - the field's name
        *,
        priority: int = 0,
        max_retries: int = 3,
    ) -> WorkItem:
        """Add a pending work item to a task; ``max_retries`` counts the attempts after the first.

        Raises InvalidWorkItem, InvalidTask, UnknownTask, or any StoreError.
        """
        _check_item(task_id, type, priority, max_retries)
        with self._store.transaction() as transaction:
            return transaction.insert_work_item(
                task_id=task_id, type=type, priority=priority, max_retries=max_retries, now=self._clock.now()
            )

    def get(self, work_item_id: int) -> WorkItem:
        """Return a work item. Raises UnknownWorkItem, or any StoreError."""
        item = self._store.work_item(work_item_id) if is_whole(work_item_id, 0, _ID_MAX) else None
        if item is None:
            raise _unknown(work_item_id)
        return item

    def acquire(
        self,
        lease_holder: str,
        *,
        ttl_s: float,
        type: str | None = None,  # noqa: A002 - the field's name
        task_id: str | None = None,
    ) -> Lease | None:
        """Lease the pending item that comes first, or return None.

        High priority comes first, then the oldest item. Raises InvalidDuration, InvalidWorkItem, or
        any StoreError.
        """
        found = self.acquire_many(lease_holder, limit=1, ttl_s=ttl_s, type=type, task_id=task_id)
        return found[0] if found else None

    def acquire_many(
        self,
        lease_holder: str,
        *,
        limit: int,
        ttl_s: float,
        type: str | None = None,  # noqa: A002 - the field's name
        task_id: str | None = None,
    ) -> list[Lease]:
        """Lease up to ``limit`` pending items in one commit, first item first.

        Raises as ``acquire`` does.
        """
        _check_ttl(ttl_s)
        _check_holder(lease_holder, limit)
        self._time.prepare()
        began = self._clock.monotonic()
        sys.audit(WorkPoint.LEASE_BEFORE_ACQUIRE, lease_holder)
        with self._store.transaction() as transaction:
            now = self._time.now()  # after the wait for other writers, which may have been long
            items = transaction.grant_leases(
                holder=lease_holder, type=type, task_id=task_id, limit=limit, expires_at=expires_at(now, ttl_s), now=now
            )
            sys.audit(WorkPoint.LEASE_AFTER_GRANT, lease_holder)
        sys.audit(WorkPoint.LEASE_AFTER_ACQUIRE, lease_holder)
        return [_lease(item, ttl_s, began) for item in items]

    def renew(self, lease: Lease, *, ttl_s: float | None = None) -> Lease:
        """Return the lease, prolonged to ``ttl_s`` seconds from now.

        The default is its granted length. Raises LeaseExpired or LeaseLost, with the current
        holder; InvalidDuration; or any StoreError.
        """
        length_s = lease.ttl_s if ttl_s is None else ttl_s
        _check_ttl(length_s)
        self.check(lease)
        self._time.prepare()
        began = self._clock.monotonic()
        key = (lease.work_item_id, lease.token)
        sys.audit(WorkPoint.LEASE_BEFORE_RENEW, *key)
        with self._store.transaction() as transaction:
            now = self._time.now()
            until = expires_at(now, length_s)
            if not transaction.renew_lease(*key, expires_at=until, now=now):
                raise _refusal(transaction, lease, now)
            sys.audit(WorkPoint.LEASE_AFTER_RENEWAL, *key)
        sys.audit(WorkPoint.LEASE_AFTER_RENEW, *key)
        return msgspec.structs.replace(
            lease, ttl_s=length_s, expires_at=until, trusted_until=trusted_until(began, length_s)
        )

    def heartbeat(self, lease: Lease) -> Lease:
        """Renew the lease with its granted length."""
        return self.renew(lease)

    def check(self, lease: Lease) -> None:
        """Raise LeaseExpired if the holder must not trust the lease by its own clock.

        Reads no database.
        """
        _check_trust(lease, self._clock)

    def complete(self, lease: Lease) -> None:
        """End the item as completed.

        Raises LeaseExpired, LeaseLost, AlreadyFinished, or any StoreError.
        """
        self._end(lease, WorkStatus.COMPLETED, retries=0, error="")

    def fail(self, lease: Lease, error: str) -> WorkStatus:
        """Return the item to pending after a failed attempt, or fail it without retries left.

        Return its new status. Characters of ``error`` that UTF-8 cannot hold are stored as escapes:
        file names may contain them. Raises as ``complete`` does, and InvalidWorkItem unless it is
        text.
        """
        remain = lease.retries < lease.max_retries
        status = WorkStatus.PENDING if remain else WorkStatus.FAILED
        self._end(lease, status, retries=int(remain), error=_sentence(error))
        return status

    def release(self, lease: Lease) -> None:
        """Return the item to pending without counting a retry. Raises as ``complete`` does."""
        self._end(lease, WorkStatus.PENDING, retries=0, error="")

    def _end(self, lease: Lease, status: WorkStatus, *, retries: int, error: str) -> None:
        self.check(lease)
        self._time.prepare()
        key = (lease.work_item_id, lease.token)
        sys.audit(WorkPoint.LEASE_BEFORE_END, *key)
        with self._store.transaction() as transaction:
            now = self._time.now()
            if not transaction.end_lease(*key, status=status, retries=retries, error=error, now=now):
                raise _refusal(transaction, lease, now)
            sys.audit(WorkPoint.LEASE_AFTER_END_UPDATE, *key)
        sys.audit(WorkPoint.LEASE_AFTER_END, *key)


def require(transaction: Transaction, lease: Lease, task_id: str, clock: Clock) -> None:
    """Raise unless the lease is held now, on an item of this task. Call it in the transaction.

    Raises InvalidWorkItem, LeaseExpired or LeaseLost.
    """
    if lease.task_id != task_id:
        message = (
            f"{_name(lease)} must be on an item of task {task_id!r}; got one of task {lease.task_id!r}. "
            "Give the lease under which this task is worked on."
        )
        raise InvalidWorkItem(message)
    _check_trust(lease, clock)
    now = time_in(transaction, clock)
    if not transaction.holds_lease(lease.work_item_id, lease.token, now=now):
        raise _refusal(transaction, lease, now)


def _refusal(transaction: Transaction, lease: Lease, now: Microseconds) -> ClaimLost | UnknownWorkItem:
    """Return why a lease is not held: it expired, or the item has ended or was granted again."""
    item = transaction.work_item(lease.work_item_id)
    if item is None:
        return _unknown(lease.work_item_id)
    mine = item.status is WorkStatus.IN_PROGRESS and item.lease_token == lease.token
    if mine and item.lease_expires_at is not None:
        late_s = (now - item.lease_expires_at) / 1_000_000
        return lost(LeaseExpired, _name(lease), f"one that expired {late_s:.3f} s ago", _ACQUIRE_AGAIN)
    kind = AlreadyFinished if item.status in {WorkStatus.COMPLETED, WorkStatus.FAILED} else LeaseLost
    state = item.status.value if item.lease_holder is None else f"an item held by {item.lease_holder!r}"
    return lost(kind, _name(lease), f"{state}, with token {item.lease_token}")


def _check_trust(lease: Lease, clock: Clock) -> None:
    if clock.monotonic() >= lease.trusted_until:
        raise lost(LeaseExpired, _name(lease), "one held for longer than it may trust", _ACQUIRE_AGAIN)


def _lease(item: WorkItem, ttl_s: float, began: Microseconds) -> Lease:
    assert item.lease_holder is not None  # noqa: S101 - it was granted in this statement
    assert item.lease_expires_at is not None  # noqa: S101 - likewise
    return Lease(
        work_item_id=item.work_item_id,
        task_id=item.task_id,
        type=item.type,
        lease_holder=item.lease_holder,
        token=item.lease_token,
        ttl_s=ttl_s,
        expires_at=item.lease_expires_at,
        trusted_until=trusted_until(began, ttl_s),
        retries=item.retries,
        max_retries=item.max_retries,
    )


def _check_ttl(ttl_s: float) -> None:
    if not is_duration(ttl_s, TTL_S_MIN, TTL_S_MAX):
        message = f"ttl_s must be 0.00001 to {TTL_S_MAX:g} s; got {ttl_s!r:.80}. Give a length in seconds."
        raise InvalidDuration(message)


def _check_holder(lease_holder: str, limit: int) -> None:
    if not is_text(lease_holder):
        message = f"lease_holder must be non-empty text; got {lease_holder!r}. Name the worker, by host and pid, say."
        raise InvalidWorkItem(message)
    if not is_whole(limit, 1, BATCH_MAX):
        message = f"limit must be 1 to {BATCH_MAX}; got {limit!r}. Acquire that many at a time."
        raise InvalidWorkItem(message)


def _check_item(task_id: object, type_: str, priority: int, max_retries: int) -> None:
    if not isinstance(task_id, str):  # SQLite would turn 7 into '7', which is another caller's task
        message = f"task_id must be a string; got {task_id!r}. Convert it where it comes from."
        raise InvalidTask(message)
    if not is_text(type_):
        message = f"The type of a work item must be a non-empty string; got {type_!r}. Name it."
        raise InvalidWorkItem(message)
    for name, value, low in (("priority", priority, -(2**31)), ("max_retries", max_retries, 0)):
        if not is_whole(value, low, 2**31):
            message = f"{name} must be a whole number from {low} to {2**31}; got {value!r}. Give another one."
            raise InvalidWorkItem(message)


def _sentence(error: object) -> str:
    """Return the error as a text column can hold it. Raises InvalidWorkItem unless it is text."""
    if not isinstance(error, str):
        message = f"error must be a str about the failure; got {error!r:.200}. Give str() of an exception."
        raise InvalidWorkItem(message)
    return error.encode(errors="backslashreplace").decode()


def _unknown(work_item_id: int) -> UnknownWorkItem:
    return UnknownWorkItem(f"work_item_id must be that of a work item; got {work_item_id!r}. Enqueue it first.")


def _name(lease: Lease) -> str:
    return f"The lease of {lease.lease_holder!r} on work item {lease.work_item_id} with token {lease.token}"


INTERVAL_SHARE: Final = 0.1
"""The interval of a heartbeat, as a share of the lease's length."""

PATIENCE_SHARE: Final = 0.25
"""How long one renewal waits for other writers, as a share of the lease's length:
several waits fit into it.
"""

PATIENCE_S_MIN: Final = 0.05


class Heartbeat:
    """Renews a lease, every tenth of its length by default, until stopped or the lease is lost.

    It opens the database at ``db_path`` itself: on the caller's connection it would write in the
    middle of the caller's transactions. Raises InvalidSetting, and any StoreError on opening.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        db_path: str | os.PathLike[str],
        interval_s: float | None = None,
        clock: Clock | None = None,
        queue_writers: bool = True,
    ) -> None:
        """Open the database.

        ``queue_writers`` is as in ``open_store``: use the same value as other writers.
        """
        self._store = open_store(
            db_path, busy_timeout_s=max(lease.ttl_s * PATIENCE_SHARE, PATIENCE_S_MIN), queue_writers=queue_writers
        )
        self._leases = LeaseManager(self._store, clock=clock)
        self._lock = threading.Lock()
        self._lease = lease
        self._loss: ClaimLost | UnknownWorkItem | None = None
        self._service = PeriodicService(
            self.run_once,
            interval_s=lease.ttl_s * INTERVAL_SHARE if interval_s is None else interval_s,
            name=f"heartbeat of work item {lease.work_item_id}",
        )

    @property
    def lease(self) -> Lease:
        """The lease as last renewed. Raises LeaseExpired or LeaseLost once it is lost.

        A reported loss is final: a renewal that succeeds afterwards is dropped.
        """
        with self._lock:
            if self._loss is None:
                try:
                    self._leases.check(self._lease)
                except LeaseExpired as loss:
                    self._loss = loss
            if self._loss is not None:
                raise self._loss
            return self._lease

    @property
    def is_lost(self) -> bool:
        """Whether the lease is lost, by the last renewal or by the holder's own clock."""
        try:
            _ = self.lease
        except (ClaimLost, UnknownWorkItem):
            return True
        return False

    @property
    def health(self) -> Health:
        """The state of the loop."""
        return self._service.health

    def __enter__(self) -> Self:
        """Start beating."""
        self._service.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start beating, unless it does."""
        self._service.start()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop beating and close the connection; return whether the thread has ended.

        Waits at most ``timeout_s`` seconds.
        """
        ended = self._service.stop(timeout_s=timeout_s)
        if ended:
            self._store.close()
        return ended

    def run_once(self, now: Microseconds | None = None) -> None:  # noqa: ARG002 - the interface of periodic services
        """Renew once.

        A loss is kept and ends the renewals. Raises any StoreError, which the loop survives.
        """
        if self._loss is not None:
            return
        try:
            renewed = self._leases.heartbeat(self._lease)
        except (ClaimLost, UnknownWorkItem) as loss:
            with self._lock:
                self._loss = loss
        else:
            with self._lock:
                if self._loss is None:
                    self._lease = renewed
