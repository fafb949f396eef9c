"""The planted defects of leases and sweeps really are defects of their kind,
and the sound parts have none of them.
"""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from durable_agents import (
    CheckpointManager,
    LeaseManager,
    ManualClock,
    RecoverySweep,
    TaskManager,
    WorkStatus,
    open_store,
)
from durable_agents.errors import InvalidDuration, LeaseExpired, LeaseLost

from tests.planted.work.leases import CountsWhatItFinds, EndsByName, NeverExpires, RenewsExpired, SweepsById, Unfenced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import Lease, SqliteStore

TTL_S = 10.0


@pytest.fixture(name="clock")
def _clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[SqliteStore]:
    with open_store(tmp_path / "store.db") as store:
        TaskManager(store).create("t")
        yield store


def held(leases: LeaseManager, holder: str = "first") -> Lease:
    """Return a lease on a new item."""
    leases.enqueue("t", "work")
    lease = leases.acquire(holder, ttl_s=TTL_S)
    assert lease is not None
    return lease


@pytest.mark.parametrize("kind", [LeaseManager, RenewsExpired])
def test_a_renewal_after_the_expiry(store: SqliteStore, clock: ManualClock, kind: type[LeaseManager]) -> None:
    """D3: the variant renews what is over, the sound one says so."""
    leases = kind(store, clock=clock)
    lease = held(leases)
    clock.advance(TTL_S * 3)
    if kind is LeaseManager:
        with pytest.raises(LeaseExpired):
            leases.renew(lease)
    else:
        assert leases.renew(lease).expires_at > clock.now()


@pytest.mark.parametrize("kind", [LeaseManager, EndsByName])
def test_a_stale_holder_completes(store: SqliteStore, clock: ManualClock, kind: type[LeaseManager]) -> None:
    """D3: an old incarnation ends the new owner's item with the variant,
    and changes nothing with the sound one.
    """
    leases = kind(store, clock=clock)
    zombie = held(leases, "worker")
    leases.release(zombie)
    owner = leases.acquire("worker", ttl_s=TTL_S)
    assert owner is not None
    if kind is LeaseManager:
        with pytest.raises(LeaseLost):
            leases.complete(zombie)
        assert leases.get(owner.work_item_id).lease_token == owner.token
    else:
        leases.complete(zombie)
        with pytest.raises(LeaseLost):
            leases.renew(owner)


@pytest.mark.parametrize("kind", [CheckpointManager, Unfenced])
def test_a_stale_holder_saves(store: SqliteStore, clock: ManualClock, kind: type[CheckpointManager]) -> None:
    """D3: the variant writes the zombie's checkpoint, the sound one refuses."""
    leases, checkpoints = LeaseManager(store, clock=clock), kind(store, clock=clock)
    zombie = held(leases)
    leases.release(zombie)
    if kind is CheckpointManager:
        with pytest.raises(LeaseLost):
            checkpoints.save("t", 1, lease=zombie)
    else:
        checkpoints.save("t", 1, lease=zombie)
    assert len(checkpoints.list("t")) == (kind is Unfenced)


@pytest.mark.parametrize("ttl_s", [-1.0, 0.0, math.nan])
@pytest.mark.parametrize("kind", [LeaseManager, NeverExpires])
def test_a_lease_without_an_expiry(
    store: SqliteStore, clock: ManualClock, kind: type[LeaseManager], ttl_s: float
) -> None:
    """D4: the variant's item is stuck for ever, no sweep finds it;
    the sound one refuses the length.
    """
    leases = kind(store, clock=clock)
    item = leases.enqueue("t", "work")
    if kind is LeaseManager:
        with pytest.raises(InvalidDuration):
            leases.acquire("h", ttl_s=ttl_s)
        return
    assert leases.acquire("h", ttl_s=ttl_s) is not None
    clock.advance(1e6)
    assert RecoverySweep(store, clock=clock).run_once().expired_found == 0
    stuck = leases.get(item.work_item_id)
    assert (stuck.status, stuck.lease_expires_at) == (WorkStatus.IN_PROGRESS, None)


def _meddle(store: SqliteStore, statement: str) -> None:
    """Let another connection change the item just before the second writer of the next sweep gets
    the lock.
    """
    original, begun = store.transaction, []

    def transaction() -> object:
        begun.append(1)
        if len(begun) == 2:
            with closing(sqlite3.connect(store.path)) as connection, connection:
                connection.execute(statement)
        return original()

    store.transaction = transaction  # type: ignore[method-assign, assignment]


_RENEWED = "UPDATE work_items SET lease_expires_at = lease_expires_at + 3600000000"
_COMPLETED = "UPDATE work_items SET status = 'completed', lease_holder = NULL, lease_expires_at = NULL"


@pytest.mark.parametrize("meanwhile", [_RENEWED, _COMPLETED], ids=["renewed", "completed"])
def test_a_holder_that_is_faster_than_the_sweep(store: SqliteStore, clock: ManualClock, meanwhile: str) -> None:
    """D5: between look and update the item is renewed or completed,
    and the variant returns it all the same.
    """
    leases = LeaseManager(store, clock=clock)
    lease = held(leases)
    clock.advance(TTL_S)
    _meddle(store, meanwhile)
    assert SweepsById(store, clock=clock).run_once().recovered == 1
    assert leases.get(lease.work_item_id).status is WorkStatus.PENDING


def test_the_sound_sweep_leaves_nothing_in_between(store: SqliteStore, clock: ManualClock) -> None:
    """D5: it looks and updates in one transaction, so the same meddling comes after it and finds
    nothing to undo.
    """
    leases = LeaseManager(store, clock=clock)
    lease = held(leases)
    clock.advance(TTL_S)
    _meddle(store, "UPDATE work_items SET error = 'meddled' WHERE status = 'in_progress'")
    assert RecoverySweep(store, clock=clock).run_once().recovered == 1
    assert "retry 1/3" in leases.get(lease.work_item_id).error


@pytest.mark.parametrize("kind", [RecoverySweep, CountsWhatItFinds])
def test_two_sweeps_over_one_lease(store: SqliteStore, clock: ManualClock, kind: type[RecoverySweep]) -> None:
    """D6: a sweep that another overtakes reports and marks the same lease with the variant,
    and nothing otherwise.
    """
    leases = LeaseManager(store, clock=clock)
    held(leases)
    clock.advance(TTL_S)
    counts = []
    other = open_store(store.path)
    original, begun = store.transaction, []

    def transaction() -> object:
        begun.append(1)
        if len(begun) == 2:
            counts.append(kind(other, clock=clock).run_once().recovered)
        return original()

    store.transaction = transaction  # type: ignore[method-assign, assignment]
    counts.append(kind(store, clock=clock).run_once().recovered)
    other.close()
    expected = 2 if kind is CountsWhatItFinds else 1
    assert sum(counts) == expected
    assert len(CheckpointManager(store).list("t")) == expected
