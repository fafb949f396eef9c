"""The questions about leases: their named points, heartbeats, and a sweep under errors."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import msgspec
from durable_agents import LeaseManager, RecoverySweep, TaskManager
from durable_agents.errors import (
    DatabaseFull,
    DatabaseLocked,
    DatabaseReadOnly,
    DatabaseUnavailable,
    StoreClosed,
    StoreError,
)
from durable_agents.store.sqlite.store import SqliteTransaction
from durable_agents.work.leases import Heartbeat, require

from scenarios.judging import BEGINNING
from scenarios.model.states import SECOND, Moment
from scenarios.questions.claims import REQUEST, claims_of
from scenarios.questions.groups import LATE, in_time
from scenarios.questions.world import TTL_S, Questions, World, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents.work.leases import Lease


class Points:
    """The named points that calls come to, among the statements of their transactions."""

    def __init__(self, store: Any) -> None:
        """Listen from now on."""
        self.seen: list[str] = []
        self.is_on = False
        connection = store.borrow()
        connection.set_trace_callback(lambda statement: self._note(statement.split()[0]))
        store.give_back(connection)
        sys.addaudithook(
            lambda event, _: self._note(event.rpartition(".")[2]) if event.startswith("recovery.") else None
        )

    def _note(self, name: str) -> None:
        if self.is_on:
            self.seen.append(name)

    def of(self, call: Callable[[], Any]) -> list[str]:
        """Return what a call comes to."""
        self.seen, self.is_on = [], True
        try:
            call()
        finally:
            self.is_on = False
        return self.seen


def points(world: World) -> dict[str, list[str]]:
    """Return in which order calls come to their named points, and to the statements beside them."""
    leases, claims = LeaseManager(world.store, clock=world.clock), claims_of(world)
    TaskManager(world.store, clock=world.clock).create("t")
    for _ in range(4):
        leases.enqueue("t", "work")
    see = Points(world.store)
    found, held = {}, list[Any]()
    for _ in range(3):
        found["acquire"] = see.of(lambda: held.append(leases.acquire("holder", ttl_s=TTL_S)))
    found["renew"] = see.of(lambda: leases.renew(held[0]))
    found["complete"] = see.of(lambda: leases.complete(held[0]))
    found["release"] = see.of(lambda: leases.release(held[1]))
    claimed: list[Any] = []
    found["begin"] = see.of(lambda: claimed.append(claims.begin("k", REQUEST)))
    found["finish"] = see.of(lambda: claims.finish(claimed[0], b"result", ttl_s=TTL_S))
    world.later(TTL_S)
    found["sweep"] = see.of(RecoverySweep(world.store, clock=world.clock).run_once)
    return found


_END: Final = ["before_end", "BEGIN", "UPDATE", "after_end_update", "COMMIT", "after_end"]
POINTS: Final = {
    "acquire": ["before_acquire", "BEGIN", "UPDATE", "after_grant", "COMMIT", "after_acquire"],
    "renew": ["before_renew", "BEGIN", "UPDATE", "after_renewal", "COMMIT", "after_renew"],
    "complete": _END,
    "release": _END,
    "begin": ["before_claim", "BEGIN", "INSERT", "after_claim_update", "COMMIT", "after_claim"],
    "finish": _END,
    "sweep": [
        *("before_batch", "BEGIN", "SELECT", "UPDATE", "after_expire", "INSERT", "after_audit", "SELECT", "INSERT"),
        *("before_commit", "COMMIT", "after_batch", "before_batch", "BEGIN", "SELECT", "COMMIT"),
    ],
}
"""A point says where a process can be stopped: between which statements it lies is promised."""


def swept_under_errors(world: World) -> list[Any]:
    """Return what a sweep does when a row cannot be stored, or none can: it goes on, or raises."""
    leases, tasks = LeaseManager(world.store, clock=world.clock), TaskManager(world.store, clock=world.clock)
    tasks.create("t")
    for _ in range(3):
        leases.enqueue("t", "work", max_retries=1)
    held = leases.acquire_many("holder", limit=3, ttl_s=TTL_S)
    world.later(TTL_S)
    sweep = RecoverySweep(world.store, clock=world.clock)
    insert = SqliteTransaction.insert_audits
    found: list[Any] = []
    for kind in (DatabaseFull, DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable, StoreClosed):
        with mock.patch.object(SqliteTransaction, "insert_audits", side_effect=kind("every item")):
            found.append(in_time(lambda: refused(sweep.run_once)))
        with mock.patch.object(SqliteTransaction, "insert_audits", side_effect=[StoreError("one"), kind("then")]):
            found.append(in_time(lambda: refused(sweep.run_once)))
        with mock.patch.object(SqliteTransaction, "expired_leases", side_effect=kind("at once")):
            found.append(in_time(lambda: refused(sweep.run_once)))
    with mock.patch.object(SqliteTransaction, "expired_leases", side_effect=StoreError("at once")):
        found.append(in_time(lambda: refused(sweep.run_once)))

    def spoil(transaction: Any, audits: Any) -> None:
        if any("work item 2," in audit.detail for audit in audits):
            message = "this row cannot be stored"
            raise StoreError(message)
        insert(transaction, audits)

    expire = SqliteTransaction.expire_leases

    def overtake(transaction: Any, expiries: Any, *, now: int) -> int:
        """Find that the first was ended meanwhile, as a store with row locks may."""
        return expire(transaction, [each for each in expiries if each.work_item_id != held[0].work_item_id], now=now)

    with (
        mock.patch.object(SqliteTransaction, "insert_audits", spoil),
        mock.patch.object(SqliteTransaction, "expire_leases", overtake),
    ):
        done = in_time(sweep.run_once)
    counts = [done.expired_found, done.recovered, done.failed, len(done.errors)] if done != LATE else done
    statuses = [leases.get(lease.work_item_id).status.value for lease in held]
    return [sorted(set(found)), len(found), counts, statuses]


def sweeps(world: World) -> list[str]:
    """Return how sizes of a batch are answered, and moments of a sweep."""
    calls: list[Callable[[], object]] = [
        functools.partial(RecoverySweep, world.store, batch=batch) for batch in (0, True, 10_001, 1, 10_000)
    ]
    sweep = RecoverySweep(world.store, clock=world.clock)
    calls += [functools.partial(sweep.run_once, now) for now in (2**62 + 1, -(2**62) - 1, True, 0, 2**62, -(2**62))]
    return [refused(call) for call in calls]


def heartbeats(world: World) -> list[Any]:
    """Return whether a heartbeat beats while it shall, and what it does once the lease is lost."""
    leases = LeaseManager(world.store, clock=world.clock)
    TaskManager(world.store, clock=world.clock).create("t")
    leases.enqueue("t", "work")
    lease = leases.acquire("holder", ttl_s=TTL_S)
    assert lease is not None
    path = world.folder / "recovery.db"
    with Heartbeat(lease, db_path=path, clock=world.clock, interval_s=60) as beat:
        found: list[Any] = [beat.health.is_running]
    found.append(beat.health.is_running)
    started = Heartbeat(lease, db_path=path, clock=world.clock, interval_s=60)
    started.start()
    found += [started.health.is_running, started.stop(), started.health.is_running]
    beat = Heartbeat(lease, db_path=path, clock=world.clock)
    world.later(TTL_S / 2)
    beat.run_once()
    found += [beat.lease.expires_at - world.clock.now(), beat.is_lost]
    leases.complete(lease)
    with world.counted() as count:
        for _ in range(3):
            beat.run_once()
    found += [count[0], beat.is_lost, refused(lambda: beat.lease), beat.stop()]
    return found


def why_not_held(world: World) -> dict[str, list[str]]:
    """Return what a holder is told that trusts its lease, by what became of it."""
    leases, others = LeaseManager(world.store, clock=world.clock), LeaseManager(world.store, clock=world.clock)
    tasks = TaskManager(world.store, clock=world.clock)
    found = {}
    for state in ("held", "expired", "swept", "granted again", "completed", "failed", "unknown"):
        world.clock.moment = Moment(BEGINNING, 0)
        tasks.create(state)
        leases.enqueue(state, "work", max_retries=0 if state == "failed" else 1)
        lease = leases.acquire("holder", ttl_s=TTL_S, task_id=state)
        assert lease is not None
        if state not in {"held", "completed", "unknown"}:
            world.clock.moment = Moment(BEGINNING + round(TTL_S * SECOND), 0)  # the wall clock was set forward
        if state in {"swept", "granted again", "failed"}:
            RecoverySweep(world.store, clock=world.clock).run_once()
        if state == "granted again":
            others.acquire("another", ttl_s=TTL_S, task_id=state)
        elif state == "completed":
            leases.complete(lease)
        elif state == "unknown":
            lease = msgspec.structs.replace(lease, work_item_id=99)
        found[state] = told_of(leases, lease)
    return found


def told_of(leases: LeaseManager, lease: Lease) -> list[str]:
    """Return what each call under a lease is told; if it is held, the fourth call ends it."""

    def needs(task_id: str) -> None:
        with leases.store.transaction() as transaction:
            require(transaction, lease, task_id, clock)

    clock = leases._clock  # noqa: SLF001 - the clock of the world
    calls: tuple[Callable[[], object], ...] = (
        functools.partial(needs, lease.task_id),
        functools.partial(needs, "another task"),
        functools.partial(leases.renew, lease),
        functools.partial(leases.fail, lease, "it broke"),
        functools.partial(leases.release, lease),
        functools.partial(leases.complete, lease),
    )
    return [refused(call) for call in calls]


QUESTIONS: Final[Questions] = {
    "work: why a lease is not held": (
        why_not_held,
        {
            state: [told, "InvalidWorkItem", told, told, last, last]
            for state, told, last in (
                ("held", "", "LeaseLost"),
                ("expired", "LeaseExpired", "LeaseExpired"),
                ("swept", "LeaseLost", "LeaseLost"),
                ("granted again", "LeaseLost", "LeaseLost"),
                ("completed", "AlreadyFinished", "AlreadyFinished"),
                ("failed", "AlreadyFinished", "AlreadyFinished"),
                ("unknown", "UnknownWorkItem", "UnknownWorkItem"),
            )
        },
    ),
    "work: where the named points lie": (points, POINTS),
    "work: a sweep under errors": (
        swept_under_errors,
        [
            ["DatabaseFull", "DatabaseLocked", "DatabaseReadOnly", "DatabaseUnavailable", "StoreClosed", "StoreError"],
            16,
            [2, 1, 0, 1],
            ["in_progress", "in_progress", "pending"],
        ],
    ),
    "work: batches and moments of a sweep": (
        sweeps,
        [*["InvalidSetting"] * 3, "", "", *["InvalidSetting"] * 3, "", "", ""],
    ),
    "work: heartbeats": (
        heartbeats,
        [True, False, True, True, False, round(TTL_S * SECOND), False, 1, True, "AlreadyFinished", True],
    ),
}
"""By room and name: the question, and the answer."""
