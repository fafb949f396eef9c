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
    clock = WorldClock(Path(database).parent)
    store = open_store(database)
    manager: LeaseManager = made(leases, store, clock=clock)
    saver: CheckpointManager = made(checkpoints, store, clock=clock)
    begin(marks, clock, "lease", name, holder=name, ttl_s=ttl_s)
    lease = manager.acquire(name, ttl_s=ttl_s)
    if lease is None:
        nothing: dict[str, list[int]] = {"items": [], "tokens": [], "retries": [], "expires_at": []}
        marks.note("nothing-to-take", value={"at": at(clock), "outcome": nothing})
        return
    outcome = {"items": [lease.work_item_id], "tokens": [lease.token], "retries": [lease.retries]}
    outcome["expires_at"] = [lease.expires_at]
    told = {"token": lease.token, "expires_at": lease.expires_at, "holder": lease.lease_holder}
    until = [lease.expires_at, lease.trusted_until]
    marks.ack("lease", name, value={**told, "at": at(clock), "outcome": outcome, "until": until})
    work(marks, clock, manager, saver, lease)
    store.close()


def work(marks: Marks, clock: WorldClock, manager: LeaseManager, saver: CheckpointManager, lease: Lease) -> None:
    """Write one effect and complete the item; mark each refusal."""

    def renew() -> dict[str, Any]:
        renewed = manager.renew(lease)
        until = {"expires_at": renewed.expires_at, "trusted_until": renewed.trusted_until}
        return {"outcome": until, "until": list(until.values())}

    def effect() -> dict[str, Any]:
        saved = saver.save(lease.task_id, snapshot, lease=lease)
        return {"outcome": {"sequence_number": saved.sequence_number}}

    def complete() -> dict[str, Any]:
        manager.complete(lease)
        return {"outcome": {}}

    snapshot = {"effect_by": lease.lease_holder, "token": lease.token}
    steps: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, Any]]] = {
        "renew": (renew, {"ttl_s": lease.ttl_s}),
        "effect": (effect, {"snapshot": snapshot}),
        "complete": (complete, {}),
    }
    for name, (step, arguments) in steps.items():
        begin(marks, clock, name, lease.token, token=lease.token, **arguments)
        try:
            told = step()
        except (LeaseExpired, LeaseLost) as error:
            kind = type(error).__name__
            value = {"error": kind, "text": str(error), "at": at(clock), "outcome": {"refused": kind}}
            marks.note("refused", name, value=value)
        else:
            marks.ack(name, lease.token, value={**told, "at": at(clock)})


def at(clock: WorldClock) -> list[int]:
    """Return the readings of both clocks."""
    return [clock.now(), clock.monotonic()]


def begin(marks: Marks, clock: WorldClock, operation: str, key: str | int | None, **arguments: Any) -> None:
    """Mark what is begun, with what, and when."""
    marks.intent(operation, key, value={"with": arguments, "at": at(clock)})


def sweep(marks: Marks, database: str, sweeper: str, batch: int) -> None:
    """Sweep once, and mark the result."""
    with open_store(database) as store:
        clock = WorldClock(Path(database).parent)
        swept = made(sweeper, store, batch=batch, clock=clock)
        assert isinstance(swept, RecoverySweep)
        begin(marks, clock, "sweep", None)
        found = swept.run_once()
        told = {"expired_found": found.expired_found, "recovered": found.recovered, "failed": found.failed}
        marks.ack("sweep", value={**told, "at": at(clock), "outcome": told})


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
