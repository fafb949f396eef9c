"""The programs of the scenarios about leases: holders, sweepers, and what they say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from recovery import CheckpointManager, LeaseManager, RecoverySweep, open_store
from recovery.errors import LeaseExpired, LeaseLost
from scenarios.agents import made

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness import Marks
    from recovery import Lease


def hold(marks: Marks, database: str, name: str, ttl_s: float, leases: str, checkpoints: str) -> None:
    """Take the item, work on it under the fence, complete it; say when the lease turns out to be gone."""
    store = open_store(database)
    manager: LeaseManager = made(leases, store)
    saver: CheckpointManager = made(checkpoints, store)
    marks.intent("lease", name)
    lease = manager.acquire(name, ttl_s=ttl_s)
    if lease is None:
        marks.note("nothing-to-take")
        return
    marks.ack("lease", name, value={"token": lease.token, "expires_at": lease.expires_at, "holder": lease.lease_holder})
    work(marks, manager, saver, lease)
    store.close()


def work(marks: Marks, manager: LeaseManager, saver: CheckpointManager, lease: Lease) -> None:
    """Write one effect and complete the item; each step is refused, or counts."""

    def renew() -> None:
        manager.renew(lease)

    def effect() -> None:
        saver.save(lease.task_id, {"effect_by": lease.lease_holder, "token": lease.token}, lease=lease)

    def complete() -> None:
        manager.complete(lease)

    steps: dict[str, Callable[[], Any]] = {"renew": renew, "effect": effect, "complete": complete}
    for name, step in steps.items():
        marks.intent(name, lease.token)
        try:
            step()
        except (LeaseExpired, LeaseLost) as error:
            marks.note("refused", name, value={"error": type(error).__name__, "text": str(error)})
        else:
            marks.ack(name, lease.token)


def sweep(marks: Marks, database: str, sweeper: str, batch: int) -> None:
    """Sweep once and say what this sweep did."""
    with open_store(database) as store:
        swept = made(sweeper, store, batch=batch)
        assert isinstance(swept, RecoverySweep)
        marks.intent("sweep")
        found = swept.run_once()
        marks.ack(
            "sweep", value={"expired_found": found.expired_found, "recovered": found.recovered, "failed": found.failed}
        )


def _acquired_again(manager: LeaseManager, ttl_s: float) -> Lease:
    """Return a lease on the item when a sweep has given it back; the run bounds the wait."""
    while (lease := manager.acquire("boundary", ttl_s=ttl_s, type="boundary")) is None:
        time.sleep(0.005)  # sleeps because nothing tells of a sweep
    return lease


def renew_at_the_boundary(marks: Marks, database: str, ttl_s: float, leases: str, rounds: int) -> None:
    """Hold a lease that is renewed late, again and again, as close to its expiry as the holder dares."""
    with open_store(database) as store:
        manager: LeaseManager = made(leases, store)
        lease = manager.acquire("boundary", ttl_s=ttl_s, type="boundary")
        assert lease is not None
        marks.ack("lease", "boundary", value={"token": lease.token})
        number = 0
        while number < rounds:
            while manager.clock.monotonic() < lease.trusted_until - 60_000:
                pass
            marks.intent("renew", number)
            try:
                lease = manager.renew(lease)
            except LeaseExpired:  # the machine stood still for longer than the margin: it is over by rights
                marks.note("late", number)
                lease = _acquired_again(manager, ttl_s)
            else:
                marks.ack("renew", number)
                number += 1
        manager.complete(lease)
        marks.ack("complete", "boundary")
