"""The programs of the scenario about clocks: the core with the machine's clock, which is moved.

Their marks have the time since boot, which no fault moves: by it the scenario judges.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from durable_agents import LeaseManager, RecoverySweep, open_store
from durable_agents.errors import LeaseExpired, LeaseLost
from durable_agents.pipeline.reconciler import Reconciler, ReconcilerSettings

from scenarios.jobs.job_agents import open_core
from scenarios.work.agents import made

if TYPE_CHECKING:
    from durable_agents.pipeline.handlers import Handlers
    from pytest_chaos import Marks

LOOK_S: Final = 0.005
READY: Final = "clocks.ready"
"""The point that each program passes before it looks at a clock."""


def since_boot_us() -> int:
    """Return the time since boot, in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


def die_with_a_lease(marks: Marks, database: str, leases: str, ttl_s: float) -> None:
    """Take a lease, mark between which moments, and end without a word about it."""
    with open_store(database) as store:
        manager: LeaseManager = made(leases, store)
        sys.audit(READY)
        began = since_boot_us()
        lease = manager.acquire("dead", ttl_s=ttl_s)
        assert lease is not None
        marks.ack("lease", lease.token, value={"began": began, "ended": since_boot_us(), "ttl_us": round(ttl_s * 1e6)})


def sweep(marks: Marks, database: str, sweeper: str, due_us: int, sweeps: int) -> None:
    """Sweep until a sweep has begun after ``due_us`` since boot, or so often; mark each."""
    with open_store(database) as store:
        found: RecoverySweep = made(sweeper, store)
        sys.audit(READY)
        for number in range(sweeps):
            began = since_boot_us()
            recovered = found.run_once().recovered
            marks.note("swept", number, value={"began": began, "ended": since_boot_us(), "recovered": recovered})
            if recovered or began >= due_us:
                return
            time.sleep(LOOK_S)  # sleeps because a sweeper does, between two sweeps; the lease's length bounds it


def hold(marks: Marks, database: str, leases: str) -> None:
    """Take a lease of an hour, renew it, and complete the item; mark what is refused."""
    with open_store(database) as store:
        manager: LeaseManager = made(leases, store)
        sys.audit(READY)
        lease = manager.acquire("holder", ttl_s=3600.0)
        assert lease is not None
        marks.ack("lease", lease.token)
        try:
            lease = manager.renew(lease)
            marks.ack("renew", lease.token)
            manager.complete(lease)
            marks.ack("complete", lease.token)
        except (LeaseExpired, LeaseLost) as error:
            marks.note("refused", lease.token, str(error))


def reconcile(marks: Marks, database: str, parts: dict[str, str], rounds: int) -> None:
    """Reconcile the gates several times, without a tracker; mark what each round did."""
    core = open_core(database, parts)
    handlers: Handlers = made(parts["handlers"], core.engine, ci_gate="built")
    settings = ReconcilerSettings(reconcile_grace_default_s=3600.0)
    reconciler = made(parts["reconciler"], handlers, settings=settings)
    assert isinstance(reconciler, Reconciler)
    sys.audit(READY)
    for number in range(rounds):
        marks.note("round", number, value=msgspec.to_builtins(reconciler.reconcile_gates_once()))
    Path(database).with_name("reconciled").touch()
