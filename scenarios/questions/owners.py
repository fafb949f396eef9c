"""The questions about who owns what: claims of keys, and leases."""

from __future__ import annotations

import contextvars
import functools
import inspect
from typing import Any, Final
from unittest import mock

from durable_agents import IdempotencyStore, LeaseManager, RecoverySweep, TaskManager
from durable_agents.errors import LeaseExpired
from durable_agents.once.claims import ClaimPolicy, KeyClaim, KeyClaims
from durable_agents.work.leases import Heartbeat

from scenarios.judging import BEGINNING
from scenarios.model.states import SECOND, Moment
from scenarios.questions.world import TTL_S, Questions, World, refused, unlocked


def ended_key(world: World) -> list[Any]:
    """Return how many transactions the end of a claim takes, and until when it is trusted."""
    claims = KeyClaims(world.store, ClaimPolicy(scope="s", claim_s=TTL_S), world.clock)
    with world.counted() as begun:
        claim = claims.begin("k", "0" * 64)
    assert isinstance(claim, KeyClaim)
    trust = [refused(lambda: claims.check(claim))]
    for but_us in (1, 0):
        world.clock.moment = Moment(BEGINNING, 0)
        world.later(trusted_s(claims, claim), but_us=but_us)
        trust.append(refused(lambda: claims.check(claim)))
    world.clock.moment = Moment(BEGINNING, 0)
    with world.counted() as count:
        claims.finish(claim, b"result", ttl_s=TTL_S)
    return [trust, begun[0], count[0]]


def trusted_s(claims: KeyClaims, claim: KeyClaim) -> float:
    """Return for how long the caller trusts a claim."""
    return claims._active[claim.key].trusted_until / SECOND  # noqa: SLF001 - the promise is that it ends there


def renewals(world: World) -> list[bool]:
    """Return whether a claim is renewed: not yet due, due, in its last moment, and after it."""
    claims = KeyClaims(world.store, ClaimPolicy(scope="s", claim_s=TTL_S, execution_s_max=TTL_S), world.clock)
    found = []
    for key, moment_s, but_us in (("a", 1.25, 0), ("b", 1.25, -1), ("c", TTL_S, 1), ("d", TTL_S, 0)):
        world.clock.moment = Moment(BEGINNING, 0)
        claim = claims.begin(key, "0" * 64)
        before = world.store.key(f"s:{key}") or world.store.key(f"s/{key}")
        world.later(moment_s, but_us=but_us)
        claims.renew()
        found.append(before != world.store.key(before.key))
        assert isinstance(claim, KeyClaim)
        claims.let_go(claim)
    return found


def looks(world: World) -> list[Any]:
    """Return whether one that waits looks some times and not always, and how long it waits."""
    claims = [KeyClaims(world.store, ClaimPolicy(scope="s"), world.clock) for _ in range(2)]
    claim = claims[0].begin("k", "0" * 64)
    count, look = [0], type(world.store).key

    def key(store: Any, name: str) -> Any:
        count[0] += 1
        return look(store, name)

    with mock.patch.object(type(world.store), "key", key):
        told = contextvars.Context().run(refused, lambda: claims[1].settle("k", "0" * 64, wait_s=0.1))
    assert isinstance(claim, KeyClaim)
    IdempotencyStore(world.store, clock=world.clock).close()
    default = inspect.signature(IdempotencyStore).parameters["wait_s"].default
    return [told == "InProgress" and 2 <= count[0] <= 50, default]


def locked_claims(world: World) -> list[str]:
    """Return which changes of the claims of a process do not wait for its lock."""
    claims = KeyClaims(world.store, ClaimPolicy(scope="s", claim_s=TTL_S), world.clock)
    claim = claims.begin("k", "0" * 64)
    assert isinstance(claim, KeyClaim)
    return unlocked(
        claims._lock,  # noqa: SLF001 - as above
        renew=claims.renew,
        begin=lambda: contextvars.Context().run(claims.begin, "l", "0" * 64),
        let_go=lambda: claims.let_go(claim),
    )


def locked_heartbeat(world: World) -> list[str]:
    """Return which parts of a heartbeat do not wait for its lock: a look, a renewal, and a loss."""
    leases = LeaseManager(world.store, clock=world.clock)
    TaskManager(world.store, clock=world.clock).create("t")
    found = []
    for name in ("renewal", "loss"):
        leases.enqueue("t", "work")
        lease = leases.acquire("holder", ttl_s=TTL_S)
        assert lease is not None
        if name == "loss":
            leases.release(lease)
        heartbeat = Heartbeat(lease, db_path=world.folder / "recovery.db", clock=world.clock)
        try:
            found += unlocked(heartbeat._lock, **{name: heartbeat.run_once, "look": lambda beat=heartbeat: beat.lease})  # noqa: SLF001 - as above
        finally:
            heartbeat.stop()
    return found


def lease_lengths(world: World) -> list[Any]:
    """Return how the longest lease and a longer one are answered, and until when one is trusted."""
    leases = LeaseManager(world.store, clock=world.clock)
    TaskManager(world.store, clock=world.clock).create("t")
    leases.enqueue("t", "work")
    leases.enqueue("t", "work")
    lengths = [
        refused(functools.partial(leases.acquire, "holder", ttl_s=each)) for each in (7 * 24 * 3600.0, 7 * 24 * 3600.1)
    ]
    lease = leases.acquire("holder", ttl_s=TTL_S)
    assert lease is not None
    found = []
    for but_us in (1, 0):
        world.clock.moment = Moment(BEGINNING, lease.trusted_until - but_us)
        found.append(refused(lambda: leases.check(lease)))
    return [lengths, *found]


def swept(world: World) -> list[Any]:
    """Return how many transactions a sweep of three leases takes, and what a late owner is told."""
    tasks, leases = TaskManager(world.store, clock=world.clock), LeaseManager(world.store, clock=world.clock)
    tasks.create("t")
    for _ in range(3):
        leases.enqueue("t", "work")
    held = leases.acquire_many("holder", limit=3, ttl_s=TTL_S)
    world.clock.moment = Moment(BEGINNING + 12 * SECOND, 0)
    try:
        leases.renew(held[0], ttl_s=TTL_S)
        told = ""
    except LeaseExpired as error:
        told = str(error)
    with world.counted() as count:
        found = RecoverySweep(world.store, clock=world.clock).run_once()
    return ["2.000 s ago" in told, found.recovered, count[0]]


QUESTIONS: Final[Questions] = {
    "once: renewals": (renewals, [False, True, True, False]),
    "once: looks of one that waits": (looks, [True, 60.0]),
    "once: locks": (locked_claims, []),
    "once: the end of a claim": (ended_key, [["", "", "ExecutionLost"], 1, 1]),
    "work: lengths of leases": (lease_lengths, [["", "InvalidDuration"], "", "LeaseExpired"]),
    "work: locks": (locked_heartbeat, []),
    "work: a sweep is one transaction": (swept, [True, 3, 2]),
}
