"""The loop around what is done periodically, and the heartbeat that it drives."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from durable_agents import ManualClock, PeriodicService
from durable_agents.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUND_S = 10.0


class Work:
    """Something periodic that can be told to fail, and says how often it ran."""

    def __init__(self) -> None:
        self.runs = 0
        self.fails = False
        self.ran = threading.Semaphore(0)

    def __call__(self, _: int) -> None:
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
    service = PeriodicService(work, interval_s=0.001, name="service of this test")
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
    """D14: it goes on after errors, says that it is unhealthy and why,
    and is healthy again after a run that worked.
    """
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
    """The second start changes nothing; after a stop it can be started again,
    with a thread of its own.
    """
    service.start()
    loop = service._loop
    service.start()
    assert service._loop is loop
    assert service.stop(timeout_s=BOUND_S)
    service.start()
    work.wait(1)
    assert service._loop is not loop


def test_a_wake_is_a_run_before_the_interval_is_over(work: Work) -> None:
    """Each wake is followed by a run, one that comes in the middle of a run too;
    without a loop it is nothing.
    """
    service = PeriodicService(work, interval_s=3600, name="service of this test")
    service.wake()
    service.start()
    work.wait(1)
    for _ in range(20):
        service.wake()
        work.wait(1)
    assert service.stop(timeout_s=BOUND_S)
    service.wake()
    assert work.ran.acquire(blocking=False) is False


def test_a_run_that_hangs_does_not_hang_stop() -> None:
    """Stop answers False within its bound when the run does not end."""
    release = threading.Event()
    entered = threading.Event()

    def hang(now: int) -> None:
        entered.set()
        release.wait(BOUND_S)

    service = PeriodicService(hang, interval_s=1)
    service.start()
    assert entered.wait(BOUND_S)
    assert not service.stop(timeout_s=0.01)
    release.set()
    assert service.stop(timeout_s=BOUND_S)


@pytest.mark.parametrize("interval_s", [0, -1, float("nan"), float("inf"), 1e9, 10**400, "1", None])
def test_an_interval_that_is_none_is_refused(interval_s: float) -> None:
    """A loop without a pause, or one that never comes round, is a mistake."""
    with pytest.raises(InvalidSetting):
        PeriodicService(lambda _: None, interval_s=interval_s)


def test_what_it_runs_is_told_the_time() -> None:
    """``run_once`` gets the clock's time, so that what is periodic needs no clock of its own."""
    told: list[int] = []
    PeriodicService(told.append, interval_s=1, clock=ManualClock(42)).tick()
    assert told == [42]


def test_a_stuck_run_is_not_healthy() -> None:
    """A run that does not come back is reported while it lasts,
    and a start after a stop in vain is a new loop.
    """
    clock = ManualClock()
    release, entered = threading.Event(), threading.Semaphore(0)

    def hang(now: int) -> None:
        entered.release()
        release.wait(BOUND_S)

    service = PeriodicService(hang, interval_s=1, clock=clock)
    service.start()
    assert entered.acquire(timeout=BOUND_S)
    healthy = [service.health.is_healthy]
    clock.advance(11)
    healthy.append(service.health.is_healthy)
    assert healthy == [True, False]
    assert "under way since 11.0 s" in service.health.reason
    assert not service.stop(timeout_s=0.01)
    service.start()
    assert entered.acquire(timeout=BOUND_S)
    release.set()
    assert service.stop(timeout_s=BOUND_S)


def test_many_starts_at_once_are_one_loop(work: Work, service: PeriodicService) -> None:
    """Eight threads that start a service start one loop of it."""
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait(BOUND_S)
        service.start()

    starters = [threading.Thread(target=start) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(BOUND_S)
    assert sum(thread.name == "service of this test" for thread in threading.enumerate()) == 1


def test_it_may_stop_itself() -> None:
    """A run that stops its own service does not wait for itself, and is the last."""
    runs: list[bool] = []
    service = PeriodicService(lambda _: runs.append(service.stop()), interval_s=0.001)
    service.start()
    assert service._loop is not None
    service._loop.thread.join(BOUND_S)
    assert runs == [False]
    assert service.health.reason == "it was stopped"
