"""The heartbeat: a lease is kept as long as its holder lives, and a loss is known soon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import Heartbeat, LeaseManager, ManualClock, TaskManager
from durable_agents.errors import LeaseExpired, LeaseLost

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from durable_agents import Lease
    from durable_agents.clock import Microseconds

BOUND_S = 60.0


@pytest.fixture(name="clock")
def _clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(name="leases")
def _leases(tmp_path: Path, clock: ManualClock) -> Iterator[LeaseManager]:
    with LeaseManager(db_path=tmp_path / "store.db", clock=clock) as leases:
        TaskManager(leases.store).create("t")
        leases.enqueue("t", "work")
        yield leases


@pytest.fixture(name="lease")
def _lease(leases: LeaseManager) -> Lease:
    lease = leases.acquire("h", ttl_s=10)
    assert lease is not None
    return lease


def test_a_heartbeat_keeps_a_lease(tmp_path: Path, lease: Lease, leases: LeaseManager, clock: ManualClock) -> None:
    """Beaten in time, it is held long after its first length;
    a real thread beats it on its own connection.
    """
    heartbeat = Heartbeat(lease, db_path=tmp_path / "store.db", clock=clock, interval_s=0.001)
    for _ in range(10):
        clock.advance(8)
        heartbeat.run_once()
    assert heartbeat.lease.expires_at > lease.expires_at
    with heartbeat, leases.store.transaction():  # D12: the caller's transaction is open all the while
        assert heartbeat.health.is_running
    leases.complete(heartbeat.lease)


def test_a_loss_is_known_at_the_next_call_and_by_the_next_beat(
    tmp_path: Path, lease: Lease, leases: LeaseManager, clock: ManualClock
) -> None:
    """Taken over by another, the holder is told by name;
    the beat after it knows, too, and does not renew.
    """
    heartbeat = Heartbeat(lease, db_path=tmp_path / "store.db", clock=clock)
    leases.release(lease)
    assert leases.acquire("thief", ttl_s=10) is not None
    known = [heartbeat.is_lost]
    heartbeat.run_once()
    known.append(heartbeat.is_lost)
    assert known == [False, True]
    with pytest.raises(LeaseLost, match="thief"):
        _ = heartbeat.lease
    heartbeat.stop()


def test_an_unbeaten_lease_is_not_trusted(tmp_path: Path, lease: Lease, clock: ManualClock) -> None:
    """Even before a beat finds out, the holder's own clock says that it is over."""
    heartbeat = Heartbeat(lease, db_path=tmp_path / "store.db", clock=clock)
    clock.advance(9.5)
    with pytest.raises(LeaseExpired):
        _ = heartbeat.lease
    heartbeat.stop()


class Stalling(ManualClock):
    """A clock that is asked for the time in the middle of a renewal, and calls a function then,
    once.
    """

    stall: Callable[[], object] | None = None

    def now(self) -> Microseconds:
        """Return the time, after the stall if there is one."""
        stall, self.stall = self.stall, None
        if stall is not None:
            stall()
        return super().now()


def test_a_loss_that_was_told_stays_one(tmp_path: Path, leases: LeaseManager) -> None:
    """A renewal that waits for others, and comes when the holder has been told to stop,
    does not tell it to go on.
    """
    clock = Stalling(leases.clock.now())
    lease = LeaseManager(leases.store, clock=clock).acquire("h", ttl_s=10)
    assert lease is not None
    heartbeat = Heartbeat(lease, db_path=tmp_path / "store.db", clock=clock)
    clock.advance(8)
    told: list[bool] = []

    def stall() -> None:
        clock.advance(1.5)
        told.append(heartbeat.is_lost)

    clock.stall = stall
    heartbeat.run_once()
    assert told == [True]
    with pytest.raises(LeaseExpired):
        _ = heartbeat.lease
    heartbeat.stop()


def test_a_thread_notices_a_loss_by_itself(
    tmp_path: Path, lease: Lease, leases: LeaseManager, clock: ManualClock
) -> None:
    """Within an interval, without a call of the holder;
    it does not renew what the new owner has.
    """
    with Heartbeat(lease, db_path=tmp_path / "store.db", clock=clock, interval_s=0.005) as heartbeat:
        until(lambda: heartbeat.health.runs >= 2)
        leases.release(lease)
        stolen = leases.acquire("thief", ttl_s=10)
        assert stolen is not None
        until(lambda: heartbeat.is_lost)
        runs = heartbeat.health.runs
        until(lambda: heartbeat.health.runs > runs + 1)
    assert leases.get(stolen.work_item_id).lease_expires_at == stolen.expires_at


def test_a_busy_database_ends_no_heartbeat(tmp_path: Path, leases: LeaseManager, clock: ManualClock) -> None:
    """D12: while the caller's own transaction is open a beat fails, says so,
    and the next one renews.
    """
    lease = leases.acquire("h", ttl_s=0.4)
    assert lease is not None
    clock.advance(0.1)
    heartbeat = Heartbeat(lease, db_path=tmp_path / "store.db", clock=clock, interval_s=0.005)
    with leases.store.transaction():
        heartbeat.start()
        until(lambda: heartbeat.health.failures > 0)
        assert "DatabaseLocked" in heartbeat.health.reason
        assert heartbeat.lease == lease
    until(lambda: heartbeat.lease.expires_at > lease.expires_at)
    until(lambda: heartbeat.health.is_healthy)
    assert heartbeat.stop()
