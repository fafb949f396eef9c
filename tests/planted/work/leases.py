"""Leases and sweeps with one known bug each.

| variant | bug | seen by |
|---|---|---|
| RenewsExpired | a renewal looks neither at the expiry nor at its own clock (D3) | a zombie before a takeover |
| EndsByName | completing names the item and not the token (D3) | a zombie while the second works |
| Unfenced | a checkpoint is written whatever became of its lease (D3) | any zombie that writes |
| NeverExpires | a length that is none is stored as no expiry at all (D4) | a negative length; no sweep finds it |
| SweepsById | found in one transaction, requeued by id alone in another (D5) | sweeps at once |
| SweepsEarly | allows for clocks that differ, the wrong way round | a holder that renews at the boundary |
| Revives | a heartbeat tells a loss, and that there is none when a late renewal comes | the core's machine |
| CountsWhatItFinds | several sweeps report, and mark, one and the same lease (D6) | sweeps at once |
| FencesLoosely | the fence lets in each token up to the newest one | a holder whose clock is behind the store's |
| ExpiresLate | an expiry is accepted at its very moment | a renewal at that moment |
| EndsForSure | an end first makes the lease one that does not run out | a holder that is killed at that very point |
| LowestFirst | the lowest priority is granted first | items of several priorities |
| SweepsByTheWall | a sweep compares with the wall clock | a sweeper whose clock is set back |
| HoldsByTheWall | a lease is measured by the wall clock | a holder whose clock is set on |
| ForgetsTheRetry | an expiry returns an item and counts no retry | the retries in the end |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from durable_agents import CheckpointManager, Heartbeat, Lease, LeaseManager, RecoverySweep, SweepStatistics, WorkStatus
from durable_agents.clock import microseconds
from durable_agents.store.rows import Audit, Expiry
from durable_agents.store.sqlite import work

from tests.planted.restated import restate

if TYPE_CHECKING:
    from durable_agents.clock import Microseconds
    from durable_agents.store.protocol import Transaction
    from durable_agents.store.rows import ExpiredLease
    from durable_agents.work.checkpoints import Checkpoint, Draft


class RenewsExpired(LeaseManager):
    """Prolongs a lease that ran out, as long as nobody else was faster."""

    def check(self, lease: Lease) -> None:
        """Trust it for ever."""

    def renew(self, lease: Lease, *, ttl_s: float | None = None) -> Lease:
        """Renew without a look at the expiry."""
        length_s = lease.ttl_s if ttl_s is None else ttl_s
        until = self._clock.now() + microseconds(length_s)
        with self._store.transaction() as transaction:
            transaction.execute(  # type: ignore[attr-defined]
                "UPDATE work_items SET lease_expires_at = ? WHERE work_item_id = ? AND status = 'in_progress'"
                " AND lease_token = ?",
                (until, lease.work_item_id, lease.token),
            )
        return msgspec.structs.replace(lease, expires_at=until)


class Revives(Heartbeat):
    """Asks the clock each time, and keeps no loss but those of the database."""

    @property
    def lease(self) -> Lease:
        """The lease as it was last renewed, whatever was said of it before."""
        with self._lock:
            if self._loss is not None:
                raise self._loss
            self._leases.check(self._lease)
            return self._lease


class EndsByName(LeaseManager):
    """Completes whatever is in progress under this id, whoever holds it."""

    def complete(self, lease: Lease) -> None:
        """Complete the item, not the lease."""
        with self._store.transaction() as transaction:
            transaction.execute(  # type: ignore[attr-defined]
                "UPDATE work_items SET status = 'completed', lease_holder = NULL, lease_expires_at = NULL"
                " WHERE work_item_id = ? AND status = 'in_progress'",
                (lease.work_item_id,),
            )


class EndsForSure(LeaseManager):
    """Makes the lease longer before it is ended, so that nobody takes the item meanwhile."""

    def _end(self, lease: Lease, status: WorkStatus, *, retries: int, error: str) -> None:
        self.check(lease)
        with self._store.transaction() as transaction:
            transaction.execute(  # type: ignore[attr-defined]
                "UPDATE work_items SET lease_expires_at = lease_expires_at + ? WHERE work_item_id = ?"
                " AND lease_token = ? AND lease_expires_at > ?",
                (microseconds(24 * 3600), lease.work_item_id, lease.token, self._clock.now()),
            )
        super()._end(lease, status, retries=retries, error=error)


class Unfenced(CheckpointManager):
    """Takes a lease and does not look at it."""

    def _write(self, draft: Draft) -> Checkpoint:
        return super()._write(msgspec.structs.replace(draft, lease=None))


class NeverExpires(LeaseManager):
    """Computes an expiry from whatever it is given, and stores NULL where that is nonsense."""

    def acquire(
        self,
        lease_holder: str,
        *,
        ttl_s: float,
        type: str | None = None,  # noqa: A002 - the field's name
        task_id: str | None = None,
    ) -> Lease | None:
        """Acquire for a length that nobody looks at, past the constraint that the original's table
        lacks.
        """
        lease = super().acquire(lease_holder, ttl_s=ttl_s if ttl_s > 0 else 1.0, type=type, task_id=task_id)
        if lease is not None and not ttl_s > 0:
            with self._store.transaction() as transaction:
                connection = transaction.connection  # type: ignore[attr-defined]
                connection.execute("PRAGMA ignore_check_constraints = 1")
                connection.execute(
                    "UPDATE work_items SET lease_expires_at = NULL WHERE work_item_id = ?", (lease.work_item_id,)
                )
                connection.execute("PRAGMA ignore_check_constraints = 0")
        return lease


class SweepsById(RecoverySweep):
    """Looks in one transaction and acts in another, by id alone."""

    def run_once(self, now: Microseconds | None = None) -> SweepStatistics:
        """Sweep what a first look found, though it may have been renewed since."""
        moment = self._clock.now() if now is None else now
        with self._store.transaction() as transaction:
            found = transaction.expired_leases(now=moment, after=(-(2**62), 0), limit=1_000_000)
        for item in found:
            with self._store.transaction() as transaction:
                self._requeue(transaction, item, moment)
        return SweepStatistics(len(found), len(found), 0)

    def _requeue(self, transaction: Transaction, item: ExpiredLease, now: Microseconds) -> None:
        transaction.execute(  # type: ignore[attr-defined]
            "UPDATE work_items SET status = 'pending', retries = min(retries + 1, max_retries), lease_holder = NULL,"
            " lease_expires_at = NULL WHERE work_item_id = ?",
            (item.work_item_id,),
        )
        self._mark(transaction, item, now)

    def _mark(self, transaction: Transaction, item: ExpiredLease, now: Microseconds) -> None:
        transaction.insert_audit(Audit(item.task_id, "lease_expired", item.lease_holder, "pending", "", now))
        snapshot = {"work_item_id": item.work_item_id, "lease_token": item.lease_token}
        checkpoints = CheckpointManager(self._store)
        checkpoints.append(transaction, checkpoints.draft(item.task_id, snapshot, type="error_boundary"))


class SweepsEarly(RecoverySweep):
    """Takes a lease for expired when it is about to, "in case our clock is slow"."""

    def run_once(self, now: Microseconds | None = None) -> SweepStatistics:
        """Sweep as of some minutes from now."""
        moment = self._clock.now() if now is None else now
        return super().run_once(moment + microseconds(300))


class CountsWhatItFinds(SweepsById):
    """Changes each lease by compare-and-set, and reports and marks it even when another sweep was
    faster.
    """

    def _requeue(self, transaction: Transaction, item: ExpiredLease, now: Microseconds) -> None:
        key = (item.work_item_id, item.lease_token, item.lease_expires_at)
        transaction.expire_leases([Expiry(*key, WorkStatus.PENDING, 0, "")], now=now)
        self._mark(transaction, item, now)


class FencesLoosely(LeaseManager):
    """Lets in who once had the lease."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Weaken the fence of each statement."""
        restate(work, "lease_token = ?", "lease_token >= ?", "_RENEW", "_END", "_HOLDS")
        super().__init__(*arguments, **keywords)


class ExpiresLate(LeaseManager):
    """Takes the moment of the expiry for one before it."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Move the bound by one."""
        restate(work, "lease_expires_at > ?", "lease_expires_at >= ?", "_RENEW", "_END", "_HOLDS")
        super().__init__(*arguments, **keywords)


class LowestFirst(LeaseManager):
    """Serves the least important first."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Turn the order."""
        restate(work, "ORDER BY priority DESC", "ORDER BY priority", "_GRANTS")
        super().__init__(*arguments, **keywords)


class ForgetsTheRetry(RecoverySweep):
    """Gives items back as if nothing had happened."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Leave the count out."""
        restate(work, "work_items.retries + ended.retries", "work_items.retries + 0", "_EXPIRE")
        super().__init__(*arguments, **keywords)


class SweepsByTheWall(RecoverySweep):
    """Compares expiries with the wall clock, which anybody may set."""

    def run_once(self, now: Microseconds | None = None) -> SweepStatistics:
        """Sweep what has expired by the wall clock."""
        return super().run_once(self._clock.now() if now is None else now)


class HoldsByTheWall(LeaseManager):
    """Grants, renews and ends leases by the wall clock, as before."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Measure by the wall clock."""
        super().__init__(*arguments, **options)
        self._time.now = self._clock.now  # type: ignore[method-assign]
