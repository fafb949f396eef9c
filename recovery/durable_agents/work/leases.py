"""Leases on work items: who may work on what, until when, and how a stale holder is kept from writing.

A work item is pending, in_progress, completed or failed; the last two are final. A lease makes one
holder the owner of an item until it expires. Its *fencing token* rises with every grant, and the
store compares it in the same transaction as every write made under the lease (Kleppmann, "How to do
distributed locking", 2016): a holder that was stopped past its expiry and wakes up, a zombie, can
think what it likes, it changes nothing any more.

Two clocks decide, and either can only stop the holder earlier. The database compares the expiry
with the wall clock of whoever asks. The holder itself trusts a lease only until ``trusted_until``
on its own monotonic clock, counted from *before* the call that granted it, less a margin; so a wall
clock that is set back revives nothing. It puts the sweep off, though, by as much as it was set
back: a lease that a dead holder left is recovered when the clock has reached its expiry again, and
no lease is longer than ``TTL_S_MAX``.

Rules of thumb: a lease of twice the expected work, a heartbeat every tenth of it, a sweep every
fifth.

The heartbeat: keeps a lease alive while its holder works, on a connection of its own (D12).

A loss is known to the holder at its next call of ``lease``, and to the heartbeat within one
interval. A heartbeat whose renewals fail for other reasons (a locked database) goes on trying as
long as the holder may trust what it has.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final, Self

import msgspec

from durable_agents.clock import Clock, Microseconds, is_duration, microseconds
from durable_agents.errors import (
    AlreadyFinished,
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

if TYPE_CHECKING:
    import os

    from durable_agents.clock import Clock
    from durable_agents.service import Health
    from durable_agents.store import Transaction

__all__ = ["LEASE_CRASH_POINTS", "Lease", "LeaseManager", "WorkItem", "WorkStatus", "require"]

TTL_S_MIN: Final = 0.000_01
TTL_S_MAX: Final = 7 * 24 * 3600.0
"""The longest lease: a week. One that should last longer is renewed."""
BATCH_MAX: Final = 1000
_ID_MAX: Final = 2**63 - 1
_MARGIN_SHARE: Final = 0.1
_MARGIN_S_MAX: Final = 5.0

ACQUIRE_CRASH_POINTS: Final = (
    "recovery.lease.before_acquire",
    "recovery.lease.after_grant",
    "recovery.lease.after_acquire",
)
RENEW_CRASH_POINTS: Final = (
    "recovery.lease.before_renew",
    "recovery.lease.after_renewal",
    "recovery.lease.after_renew",
)
END_CRASH_POINTS: Final = (
    "recovery.lease.before_end",
    "recovery.lease.after_end_update",
    "recovery.lease.after_end",
)
LEASE_CRASH_POINTS: Final = ACQUIRE_CRASH_POINTS + RENEW_CRASH_POINTS + END_CRASH_POINTS
"""The audit events of ``acquire``; of ``renew``; of ``complete``, ``fail`` and ``release``; each three in this order.

The middle one of each three lies between the statement and its COMMIT.
"""

BEFORE_ACQUIRE, AFTER_GRANT, AFTER_ACQUIRE = ACQUIRE_CRASH_POINTS
BEFORE_RENEW, AFTER_RENEWAL, AFTER_RENEW = RENEW_CRASH_POINTS
BEFORE_END, AFTER_END_UPDATE, AFTER_END = END_CRASH_POINTS


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A work item, held. ``expires_at`` is the wall clock's, ``trusted_until`` the holder's own monotonic clock's."""

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
    """Hands out, prolongs and ends leases. Give it a store, or the path of a database file, which it opens and closes.

    ``clock`` is what expiry is measured by. Raises InvalidSetting, and any StoreError when it opens
    the file. May be shared by threads.
    """

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
        item = self._store.work_item(work_item_id) if _is_id(work_item_id) else None
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
        """Lease the pending item that comes first (by priority, high first, then by age), or return None.

        Raises InvalidDuration, InvalidWorkItem, or any StoreError.
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
        """Lease up to ``limit`` pending items in one statement and one commit, best first. Raises as ``acquire``."""
        ttl = _duration(ttl_s)
        _check_holder(lease_holder, limit)
        began = self._clock.monotonic()
        sys.audit(BEFORE_ACQUIRE, lease_holder)
        with self._store.transaction() as transaction:
            now = self._clock.now()  # after the wait for other writers, which may have been long
            items = transaction.grant_leases(
                holder=lease_holder, type=type, task_id=task_id, limit=limit, expires_at=now + ttl, now=now
            )
            sys.audit(AFTER_GRANT, lease_holder)
        sys.audit(AFTER_ACQUIRE, lease_holder)
        return [_lease(item, ttl_s, began) for item in items]

    def renew(self, lease: Lease, *, ttl_s: float | None = None) -> Lease:
        """Prolong a lease by ``ttl_s`` (as it was granted, unless given) from now and return it as it is then.

        Raises LeaseExpired or LeaseLost, which say who holds it; InvalidDuration; or any
        StoreError.
        """
        length_s = lease.ttl_s if ttl_s is None else ttl_s
        ttl = _duration(length_s)
        self.check(lease)
        began = self._clock.monotonic()
        key = (lease.work_item_id, lease.token)
        sys.audit(BEFORE_RENEW, *key)
        with self._store.transaction() as transaction:
            now = self._clock.now()
            if not transaction.renew_lease(*key, expires_at=now + ttl, now=now):
                raise _refusal(transaction, lease, now)
            sys.audit(AFTER_RENEWAL, *key)
        sys.audit(AFTER_RENEW, *key)
        return msgspec.structs.replace(
            lease, ttl_s=length_s, expires_at=now + ttl, trusted_until=_trusted_until(began, length_s)
        )

    def heartbeat(self, lease: Lease) -> Lease:
        """Say that the holder lives: the same as ``renew`` with the length that the lease was granted with."""
        return self.renew(lease)

    def check(self, lease: Lease) -> None:
        """Raise LeaseExpired if the holder must not trust this lease any more by its own clock; asks nobody."""
        _check_trust(lease, self._clock)

    def complete(self, lease: Lease) -> None:
        """End the item as completed. Raises LeaseExpired, LeaseLost or AlreadyFinished, or any StoreError.

        Nothing changed then.
        """
        self._end(lease, WorkStatus.COMPLETED, retries=0, error="")

    def fail(self, lease: Lease, error: str) -> WorkStatus:
        """Give the item back after a failed attempt: pending while retries remain, else failed; return which.

        What UTF-8 cannot hold of the ``error`` is stored as an escape: the name of a file may be in
        it. Raises as ``complete`` does, and InvalidWorkItem for what is no text.
        """
        remain = lease.retries < lease.max_retries
        status = WorkStatus.PENDING if remain else WorkStatus.FAILED
        self._end(lease, status, retries=int(remain), error=_sentence(error))
        return status

    def release(self, lease: Lease) -> None:
        """Give the item back untried: pending, and no retry is counted. Raises as ``complete`` does."""
        self._end(lease, WorkStatus.PENDING, retries=0, error="")

    def _end(self, lease: Lease, status: WorkStatus, *, retries: int, error: str) -> None:
        self.check(lease)
        key = (lease.work_item_id, lease.token)
        sys.audit(BEFORE_END, *key)
        with self._store.transaction() as transaction:
            now = self._clock.now()
            if not transaction.end_lease(*key, status=status, retries=retries, error=error, now=now):
                raise _refusal(transaction, lease, now)
            sys.audit(AFTER_END_UPDATE, *key)
        sys.audit(AFTER_END, *key)


def require(transaction: Transaction, lease: Lease, task_id: str, clock: Clock) -> None:
    """Raise unless the lease is held now, and on an item of this task: the fence, in the transaction of what it guards.

    Raises InvalidWorkItem, LeaseExpired or LeaseLost.
    """
    if lease.task_id != task_id:
        message = (
            f"Expected a lease on an item of task {task_id!r} but {_name(lease)} is on one of task {lease.task_id!r}; "
            "give the lease under which this task is worked on."
        )
        raise InvalidWorkItem(message)
    _check_trust(lease, clock)
    now = clock.now()
    if not transaction.holds_lease(lease.work_item_id, lease.token, now=now):
        raise _refusal(transaction, lease, now)


def _refusal(transaction: Transaction, lease: Lease, now: Microseconds) -> LeaseExpired | LeaseLost | UnknownWorkItem:
    """Return the error that says why a lease is not held: it ran out, or somebody else was granted the item since."""
    item = transaction.work_item(lease.work_item_id)
    if item is None:
        return _unknown(lease.work_item_id)
    mine = item.status is WorkStatus.IN_PROGRESS and item.lease_token == lease.token
    if mine and item.lease_expires_at is not None:
        late_s = (now - item.lease_expires_at) / 1_000_000
        message = (
            f"Expected {_name(lease)} to be held but it expired {late_s:.3f} s ago; stop working and acquire again."
        )
        return LeaseExpired(message)
    state = f"held by {item.lease_holder!r}" if item.lease_holder is not None else item.status.value
    message = (
        f"Expected {_name(lease)} to be held by {lease.lease_holder!r} but the item is {state}, with token "
        f"{item.lease_token}; stop working on it."
    )
    final = item.status in {WorkStatus.COMPLETED, WorkStatus.FAILED}
    return AlreadyFinished(message) if final else LeaseLost(message)


def _check_trust(lease: Lease, clock: Clock) -> None:
    if clock.monotonic() >= lease.trusted_until:
        message = (
            f"Expected {_name(lease)} to be held but {lease.lease_holder!r} has had it longer than it may trust "
            "it; stop working on it and acquire it again."
        )
        raise LeaseExpired(message)


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
        trusted_until=_trusted_until(began, ttl_s),
        retries=item.retries,
        max_retries=item.max_retries,
    )


def _trusted_until(began: Microseconds, ttl_s: float) -> Microseconds:
    return began + microseconds(ttl_s - min(ttl_s * _MARGIN_SHARE, _MARGIN_S_MAX))


def _duration(ttl_s: float) -> Microseconds:
    if not is_duration(ttl_s, TTL_S_MIN, TTL_S_MAX):
        message = f"Expected a lease of 0.00001 to {TTL_S_MAX:g} s but got {ttl_s!r:.80}; give a length in seconds."
        raise InvalidDuration(message)
    return microseconds(ttl_s)


def _check_holder(lease_holder: str, limit: int) -> None:
    if not _is_text(lease_holder):
        message = f"Expected the name of a holder but got {lease_holder!r}; name who works, such as host and pid."
        raise InvalidWorkItem(message)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= BATCH_MAX:
        message = f"Expected to acquire 1 to {BATCH_MAX} items but got limit={limit!r}; ask for that many at a time."
        raise InvalidWorkItem(message)


def _check_item(task_id: object, type_: str, priority: int, max_retries: int) -> None:
    if not isinstance(task_id, str):  # SQLite would turn 7 into '7', which is another caller's task
        message = f"Expected the id of a task to be a string but got {task_id!r}; convert it where it comes from."
        raise InvalidTask(message)
    if not _is_text(type_):
        message = f"Expected the type of a work item to be a string that is not empty but got {type_!r}; name it."
        raise InvalidWorkItem(message)
    for name, value, low in (("priority", priority, -(2**31)), ("max_retries", max_retries, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 2**31:
            message = f"Expected {name} to be a whole number from {low} to {2**31} but got {value!r}; give such a one."
            raise InvalidWorkItem(message)


def _sentence(error: object) -> str:
    """Return what went wrong as a column can hold it. Raises InvalidWorkItem for what is no text."""
    if not isinstance(error, str):
        message = f"Expected a sentence about what failed but got {error!r:.200}; give str() of an exception."
        raise InvalidWorkItem(message)
    return error.encode(errors="backslashreplace").decode()


def _is_id(value: object) -> bool:
    """Tell whether this could be the id of a row, which SQLite would also make of a text of digits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _ID_MAX


def _is_text(value: object) -> bool:
    """Tell whether this is a name: text that is not empty and that a column of text gives back as it was put in."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown(work_item_id: int) -> UnknownWorkItem:
    return UnknownWorkItem(f"Expected the id of a work item but none has the id {work_item_id!r}; enqueue it first.")


def _name(lease: Lease) -> str:
    return f"the lease of work item {lease.work_item_id} with token {lease.token}"


INTERVAL_SHARE: Final = 0.1
"""The interval as a share of the lease's length."""

PATIENCE_SHARE: Final = 0.25
"""How long one renewal waits for other writers, as a share of the lease's length: several waits fit into it."""

PATIENCE_S_MIN: Final = 0.05


class Heartbeat:
    """Renews a lease every tenth of its length, or every ``interval_s``, until it is stopped or the lease is lost.

    It opens the database at ``db_path`` itself: a thread that shared the caller's connection would
    be in the middle of the caller's transactions. Raises InvalidSetting, and any StoreError when it
    opens the file.
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
        """Prepare; nothing is renewed yet. ``queue_writers`` as in ``open_store``: a renewal queues like any write."""
        self._store = open_store(
            db_path, busy_timeout_s=max(lease.ttl_s * PATIENCE_SHARE, PATIENCE_S_MIN), queue_writers=queue_writers
        )
        self._leases = LeaseManager(self._store, clock=clock)
        self._lock = threading.Lock()
        self._lease = lease
        self._loss: LeaseExpired | LeaseLost | UnknownWorkItem | None = None
        self._service = PeriodicService(
            self.run_once,
            interval_s=lease.ttl_s * INTERVAL_SHARE if interval_s is None else interval_s,
            name=f"heartbeat of work item {lease.work_item_id}",
        )

    @property
    def lease(self) -> Lease:
        """The lease as it was last renewed. Raises LeaseExpired or LeaseLost once it is not held any more.

        A loss that was told stays one: a renewal that was under way, and came in time for the
        database, is dropped.
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
        """Whether the lease is not held any more, by the last renewal or by the holder's own clock."""
        try:
            _ = self.lease
        except (LeaseExpired, LeaseLost, UnknownWorkItem):
            return True
        return False

    @property
    def health(self) -> Health:
        """How the loop is."""
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
        """Stop beating and close the connection; return whether the thread ended within ``timeout_s`` seconds."""
        ended = self._service.stop(timeout_s=timeout_s)
        if ended:
            self._store.close()
        return ended

    def run_once(self, now: Microseconds | None = None) -> None:  # noqa: ARG002 - the interface of what is periodic
        """Renew once. Raises any StoreError, which the loop survives; a loss is kept and ends the renewals."""
        if self._loss is not None:
            return
        try:
            renewed = self._leases.heartbeat(self._lease)
        except (LeaseExpired, LeaseLost, UnknownWorkItem) as loss:
            with self._lock:
                self._loss = loss
        else:
            with self._lock:
                if self._loss is None:
                    self._lease = renewed
