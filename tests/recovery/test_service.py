"""The loop around what is done periodically, and the heartbeat that it drives."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from recovery import Heartbeat, LeaseManager, ManualClock, PeriodicService, TaskManager
from recovery.errors import InvalidSetting, LeaseExpired, LeaseLost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from recovery import Lease

BOUND_S = 10.0


class Work:
    """Something periodic that can be told to fail, and says how often it ran."""

    def __init__(self) -> None:
        self.runs = 0
        self.fails = False
        self.ran = threading.Semaphore(0)

    def __call__(self) -> None:
        """Run once."""
        self.runs += 1
        self.ran.release()
        if self.fails:
            message = "the database is gone"
            raise RuntimeError(message)

    def wait(self, runs: int) -> None:
        """Wait until it has run so many times more."""
        for _ in range(runs):
            assert self.ran.acquire(timeout=BOUND_S)


@pytest.fixture(name="work")
def _work() -> Work:
    return Work()


@pytest.fixture(name="service")
def _service(work: Work) -> Iterator[PeriodicService]:
    service = PeriodicService(work, interval_s=0.001)
    yield service
    assert service.stop(timeout_s=BOUND_S)


def test_it_runs_again_and_again_until_it_is_stopped(work: Work, service: PeriodicService) -> None:
    """Stopped, it has ended, says so, and does not run any more."""
    service.start()
    work.wait(3)
    assert service.health.is_healthy
    assert service.stop(timeout_s=BOUND_S)
    runs = work.runs
    assert not service.health.is_running
    assert service.health.reason == "it was stopped"
    assert work.runs == runs


def test_errors_do_not_end_it_and_are_not_hidden(work: Work, service: PeriodicService) -> None:
    """D14: it goes on after errors, says that it is unhealthy and why, and is healthy again after a run that worked."""
    work.fails = True
    service.start()
    work.wait(4)
    health = service.health
    assert health.is_running
    assert not health.is_healthy
    assert "RuntimeError: the database is gone" in health.reason
    assert health.consecutive_failures >= 3
    assert health.last_run_at is not None
    work.fails = False
    work.wait(3)
    assert service.health.is_healthy
    assert service.health.failures >= 3


def test_starting_twice_is_one_loop(work: Work, service: PeriodicService) -> None:
    """The second start changes nothing; after a stop it can be started again."""
    service.start()
    thread = service._thread
    service.start()
    assert service._thread is thread
    assert service.stop(timeout_s=BOUND_S)
    service.start()
    work.wait(1)
    assert service._thread is not thread


def test_a_run_that_hangs_does_not_hang_stop() -> None:
    """Stop answers False within its bound when the run does not end."""
    release = threading.Event()
    entered = threading.Event()

    def hang() -> None:
        entered.set()
        release.wait(BOUND_S)

    service = PeriodicService(hang, interval_s=1)
    service.start()
    assert entered.wait(BOUND_S)
    assert not service.stop(timeout_s=0.01)
    release.set()
    assert service.stop(timeout_s=BOUND_S)


@pytest.mark.parametrize("interval_s", [0, -1, float("nan"), float("inf"), 1e9])
def test_an_interval_that_is_none_is_refused(interval_s: float) -> None:
    """A loop without a pause, or one that never comes round, is a mistake."""
    with pytest.raises(InvalidSetting):
        PeriodicService(lambda: None, interval_s=interval_s)


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
    """Beaten in time, it is held long after its first length; a real thread beats it on its own connection."""
    heartbeat = Heartbeat(lease, db_path=tmp_path / "store.db", clock=clock, interval_s=0.001)
    for _ in range(10):
        clock.advance(8)
        heartbeat.beat()
    assert heartbeat.lease.expires_at > lease.expires_at
    with heartbeat, leases.store.transaction():  # D12: the caller's transaction is open all the while
        assert heartbeat.health.is_running
    leases.complete(heartbeat.lease)


def test_a_loss_is_known_at_the_next_call_and_by_the_next_beat(
    tmp_path: Path, lease: Lease, leases: LeaseManager, clock: ManualClock
) -> None:
    """Taken over by another, the holder is told by name; the beat after it knows, too, and does not renew."""
    heartbeat = Heartbeat(lease, db_path=tmp_path / "store.db", clock=clock)
    leases.release(lease)
    assert leases.acquire("thief", ttl_s=10) is not None
    assert not heartbeat.is_lost
    heartbeat.beat()
    assert heartbeat.is_lost
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
