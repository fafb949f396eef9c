"""The programs of the scenarios about leases: holders and sweepers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from durable_agents import CheckpointManager, LeaseManager, RecoverySweep, open_store
from durable_agents.errors import LeaseExpired, LeaseLost

from scenarios.webhooks.world import WorldClock
from scenarios.work.agents import made

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents import Lease
    from pytest_chaos import Marks

LOOK_S: Final = 0.002
DARED: Final = 60_000_000
"""How long before it may trust its lease no more a late holder renews it, in microseconds."""


def hold(marks: Marks, database: str, name: str, ttl_s: float, leases: str, checkpoints: str) -> None:
    """Take the item, work on it under the fence and complete it; mark the loss of the lease."""
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
    """Write one effect and complete the item; mark each refusal."""

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
    """Sweep once, and mark the result."""
    with open_store(database) as store:
        swept = made(sweeper, store, batch=batch)
        assert isinstance(swept, RecoverySweep)
        marks.intent("sweep")
        found = swept.run_once()
        marks.ack(
            "sweep", value={"expired_found": found.expired_found, "recovered": found.recovered, "failed": found.failed}
        )


def renew_at_the_boundary(marks: Marks, database: str, ttl_s: float, leases: str, rounds: int) -> None:
    """Hold a lease that is renewed late, again and again:
    a minute before its holder may trust it no more.

    The time is that of the world in the folder of the database, so that a minute is as long as
    somebody likes.
    """
    clock = WorldClock(Path(database).parent)
    with open_store(database) as store:
        manager: LeaseManager = made(leases, store, clock=clock)
        lease = manager.acquire("boundary", ttl_s=ttl_s, type="boundary")
        assert lease is not None
        for number in range(rounds):
            due = lease.trusted_until - DARED
            marks.ack("lease", number, value={"due": due})
            while clock.monotonic() < due:
                time.sleep(LOOK_S)  # sleeps because nobody tells when the world's clock moves; the run bounds it
            marks.intent("renew", number)
            lease = manager.renew(lease)
            marks.ack("renew", number)
        manager.complete(lease)
        marks.ack("complete", "boundary")
