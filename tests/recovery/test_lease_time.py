"""The time of leases: no wall clock has a part in it on one machine, and wall clocks decide
between boots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import LeaseManager, ManualClock, RecoverySweep, SystemClock, TaskManager, open_store
from durable_agents.work.lease_time import GROUP, LeaseTime, boot_of, time_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import SqliteStore

DAY_S = 86_400
YEAR_S = 365 * DAY_S
SECOND = 1_000_000


class BootClock(ManualClock):
    """A clock of a test that counts since a boot, as the machine's does."""

    def __init__(self, boot: str = "first", now: int = 1_700_000_000 * SECOND) -> None:
        super().__init__(now)
        self._boot = boot

    def boot(self) -> str:
        """Return the id of the boot."""
        return self._boot

    def set_by(self, seconds: float) -> None:
        """Set the wall clock."""
        self.jump(self.now() + round(seconds * SECOND))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """A store with a task and an item."""
    with open_store(tmp_path / "core.db") as opened:
        TaskManager(opened).create("t")
        LeaseManager(opened).enqueue("t", "work")
        yield opened


@pytest.mark.parametrize("by_s", [-DAY_S, DAY_S, YEAR_S, -YEAR_S])
def test_a_lease_lasts_as_long_as_it_was_granted_for(store: SqliteStore, by_s: float) -> None:
    """Whichever way the clock is set in between, it ends at its length and not before."""
    clock = BootClock()
    lease = LeaseManager(store, clock=clock).acquire("dead", ttl_s=60)
    assert lease is not None
    clock.set_by(by_s)
    clock.advance(59.999)
    assert RecoverySweep(store, clock=clock).run_once().recovered == 0
    clock.advance(0.002)
    assert RecoverySweep(store, clock=clock).run_once().recovered == 1


@pytest.mark.parametrize("by_s", [-YEAR_S, YEAR_S])
def test_processes_of_a_machine_agree_whatever_their_wall_clocks_show(store: SqliteStore, by_s: float) -> None:
    """A holder and a sweeper have different wall clocks and one time since boot."""
    holder, sweeper = BootClock(), BootClock()
    sweeper.set_by(by_s)
    assert LeaseManager(store, clock=holder).acquire("dead", ttl_s=60) is not None
    sweep = RecoverySweep(store, clock=sweeper)
    sweeper.advance(59)
    assert sweep.run_once().recovered == 0
    sweeper.advance(2)
    assert sweep.run_once().recovered == 1


@pytest.mark.parametrize("by_s", [-YEAR_S, YEAR_S])
def test_a_holder_keeps_its_lease(store: SqliteStore, by_s: float) -> None:
    """It renews, checks, saves under the fence and completes, though the clock was set."""
    clock = BootClock()
    leases = LeaseManager(store, clock=clock)
    lease = leases.acquire("holder", ttl_s=60)
    assert lease is not None
    clock.set_by(by_s)
    lease = leases.renew(lease)
    with store.transaction() as transaction:
        assert transaction.holds_lease(lease.work_item_id, lease.token, now=time_in(transaction, clock))
    leases.complete(lease)


@pytest.mark.parametrize(("by_s", "recovered"), [(-120, 0), (120, 1)])
def test_between_boots_the_wall_clocks_decide(store: SqliteStore, by_s: float, recovered: int) -> None:
    """After a start of the machine, a lease of before ends by the time of the calendar."""
    before = BootClock()
    assert LeaseManager(store, clock=before).acquire("dead", ttl_s=60) is not None
    after = BootClock("second", before.now())
    after.set_by(by_s)
    assert RecoverySweep(store, clock=after).run_once().recovered == recovered


def test_the_origin_of_a_boot_is_kept_once(store: SqliteStore) -> None:
    """The first process that uses the database fixes it; each boot has its own."""
    first, second = BootClock(), BootClock()
    second.set_by(YEAR_S)
    for clock in (first, second, BootClock("next")):
        LeaseTime(store, clock).prepare()
    entries = {entry.key: int(entry.value) for entry in store.state_entries(GROUP)}
    assert entries == {"first": first.now(), "next": first.now()}


def test_an_origin_that_is_not_committed_is_not_used(store: SqliteStore) -> None:
    """A failed first use leaves nothing behind in this process: the next one tries again."""
    time = LeaseTime(store, BootClock())
    with store.transaction(), pytest.raises(Exception, match="lock"):
        LeaseTime(open_store(store.place.path or "", busy_timeout_s=0.01), BootClock()).prepare()
    assert store.state_entries(GROUP) == []
    time.prepare()
    assert len(store.state_entries(GROUP)) == 1


def test_a_clock_without_a_boot_is_compared_by_its_wall(store: SqliteStore) -> None:
    """A test that sets a clock of its own decides when leases end."""
    clock = ManualClock()
    assert boot_of(clock) is None
    assert LeaseManager(store, clock=clock).acquire("dead", ttl_s=60) is not None
    clock.jump(clock.now() + 61 * SECOND)
    assert RecoverySweep(store, clock=clock).run_once().recovered == 1
    assert store.state_entries(GROUP) == []


def test_the_machines_clock_names_its_boot() -> None:
    """It is the kernel's id, and the same for every clock of this process."""
    boot = SystemClock().boot()
    assert boot is not None
    assert boot == SystemClock().boot() == boot_of(SystemClock())
    assert "time:[" in boot
