"""The questions about claims on keys and leases: who holds what, and what a refusal leaves."""

from __future__ import annotations

import contextvars
import functools
import gc
import signal
from typing import TYPE_CHECKING, Any, ClassVar, Final
from unittest import mock

from durable_agents import open_store
from durable_agents.errors import DatabaseFull, InvalidSetting
from durable_agents.once.claims import Busy, ClaimPolicy, Done, KeyClaim, KeyClaims, check_duration
from durable_agents.store.sqlite.store import SqlitePlace, SqliteTransaction

from scenarios.judging import BEGINNING
from scenarios.model.states import SECOND, Moment
from scenarios.questions.groups import in_child, in_time
from scenarios.questions.world import TTL_S, YEAR_S, Questions, World, refused

if TYPE_CHECKING:
    from collections.abc import Callable

REQUEST: Final = "0" * 64
OTHER: Final = "1" * 64


def claims_of(world: World, store: Any = None, **policy: Any) -> KeyClaims:
    """Return the claims of a caller of its own; they are renewed where the question says so."""
    claims = KeyClaims(store or world.store, ClaimPolicy(**{"scope": "s", "claim_s": TTL_S, **policy}), world.clock)
    claims._renewals = mock.Mock()  # noqa: SLF001 - the thread's own renewals would come at any moment
    return claims


def begun(claims: KeyClaims, key: str) -> KeyClaim:
    """Return a claim on a key that is free."""
    claim = claims.begin(key, REQUEST)
    assert isinstance(claim, KeyClaim)
    return claim


def asked(call: Callable[[], Any]) -> str:
    """Return the kind of an answer, or the name of the error."""
    found: list[Any] = []
    told = refused(lambda: found.append(call()))
    if told or not isinstance(found[0], KeyClaim):
        return told or type(found[0]).__name__
    return "doubt" if found[0].is_in_doubt else "claim"


def conflicts(world: World) -> dict[str, list[str]]:
    """Return how the same request and another one are answered, by the state of the key."""
    found = {}
    for keeps_doubt in (False, True):
        first, second = (claims_of(world, scope=f"s{keeps_doubt}", keeps_doubt=keeps_doubt) for _ in range(2))
        for state in ("free", "held", "done", "failed", "result expired", "claim expired", "in doubt"):
            for request in (REQUEST, OTHER):
                key = f"{state} {request[0]}"
                world.clock.moment = Moment(BEGINNING, 0)
                claim = begun(first, key) if state != "free" else None
                if claim is not None and state in {"done", "failed", "result expired"}:
                    first.finish(claim, b"result", ttl_s=TTL_S, has_failed=state == "failed")
                elif claim is not None and state == "in doubt":
                    first.doubt(claim)
                world.later(TTL_S if state.endswith("expired") else TTL_S - 0.001)
                looked = refused(lambda: second.look(key, request))  # noqa: B023 - it is called at once
                found[f"{key} {keeps_doubt}"] = [asked(lambda: second.begin(key, request)), looked]  # noqa: B023 - as above
    return found


def expected_conflicts() -> dict[str, list[str]]:
    """Return what is promised: one key is for one request, while it is held or has a result."""
    states = {
        "free": "claim",
        "held": "Busy",
        "done": "Done",
        "failed": "Done",
        "result expired": "claim",
        "claim expired": "doubt",
        "in doubt": "doubt",
    }
    found = {}
    for keeps_doubt in (False, True):
        for state, answer in states.items():
            is_kept = answer in {"Busy", "Done"} or (keeps_doubt and answer == "doubt")
            for request in (REQUEST, OTHER):
                told = "RequestConflict" if request == OTHER and is_kept else ""
                found[f"{state} {request[0]} {keeps_doubt}"] = [told or answer, told]
    return found


def own_claims(world: World) -> list[Any]:
    """Return who has a key whose caller asks again, forgets its claim, or gives it up."""
    claims, others = claims_of(world), claims_of(world)
    claim = begun(claims, "k")
    busy = Busy(claim.owner, BEGINNING + round(TTL_S * SECOND))
    found: list[Any] = [each.begin("k", REQUEST) == busy for each in (claims, others)]
    claims.let_go(claim)
    claims.let_go(claim)
    again = begun(claims, "k")
    claims.let_go(claim)  # the one before
    found += [refused(lambda: claims.check(each)) for each in (again, claim)]  # noqa: B023 - it is called at once
    return [*found, refused(functools.partial(others.check, again))]


def forgotten_claims(world: World) -> str:
    """Return who has a key whose caller has forgotten its claim."""
    claims = claims_of(world)
    begun(claims, "k")
    gc.collect()
    return asked(lambda: claims.begin("k", REQUEST))


def overtaken(world: World) -> list[Any]:
    """Return what an owner is told whose claim was taken over."""
    found: list[Any] = []
    for end in ("is done", "is given up", "is executed"):
        world.clock.moment = Moment(BEGINNING, 0)
        claims, others = claims_of(world), claims_of(world)
        claim = begun(claims, end)
        kept = begun(claims, f"{end}, kept")
        world.clock.moment = Moment(BEGINNING + 11 * SECOND, round(1.3 * SECOND))  # the wall clock was set forward
        other = begun(others, end)
        trust = [refused(lambda: claims.check(claim))]  # noqa: B023 - it is called at once, as below
        claims.renew()
        trust += [refused(lambda: claims.check(each)) for each in (claim, kept)]  # noqa: B023 - as above
        if end == "is done":
            others.finish(other, b"another's", ttl_s=TTL_S)
        elif end == "is given up":
            others.abandon(other)
        told = in_time(lambda: ended(claims, claim))  # noqa: B023 - as above
        found.append([trust, told, refused(lambda: claims.doubt(claim)), asked(lambda: others.begin(end, REQUEST))])  # noqa: B023 - as above
    return found


def ended(claims: KeyClaims, claim: KeyClaim) -> str:
    """Return what an owner gets that ends its execution."""
    found: list[Any] = []
    told = refused(
        lambda: found.append(claims.finish_or_wait(claim, b"mine", REQUEST, ttl_s=TTL_S, wait_s=0.01)),
    )
    return told or (found[0].result.decode() if isinstance(found[0], Done) else "recorded")


def within_one_another(world: World) -> list[str]:
    """Return what a caller is told that asks for keys while it executes."""
    claims = claims_of(world)
    with open_store(world.folder / "other.db") as other_store:
        elsewhere = claims_of(world, other_store)
        found = []
        claim = begun(claims, "k")

        def ask(of: KeyClaims, key: str) -> str:
            return asked(lambda: of.settle(key, REQUEST, wait_s=0))

        with claims.executing(claim):
            found += [ask(claims, "k"), ask(claims, "l"), ask(elsewhere, "k")]
            other = begun(claims, "m")
            with claims.executing(other):
                found += [ask(claims, "k"), ask(claims, "m")]
            claims.abandon(other)
            del other
            gc.collect()
            found.append(ask(claims, "m"))
            copied = contextvars.copy_context()  # as a thread or a task that outlives the block has it
        claims.abandon(claim)
        del claim
        gc.collect()
        return [*found, copied.run(ask, claims, "k")]


def recorded(world: World) -> list[Any]:
    """Return what is found by one read: nothing, a result, one that expires now, another's."""
    claims = claims_of(world)
    found: list[Any] = [claims.recorded("k", REQUEST)]
    claim = begun(claims, "k")
    found.append(claims.recorded("k", REQUEST))
    claims.finish(claim, b"result", ttl_s=TTL_S)
    told = refused(lambda: claims.recorded("k", OTHER))
    for but_us in (1, 0):
        world.clock.moment = Moment(BEGINNING, 0)
        world.later(TTL_S, but_us=but_us)
        result = claims.recorded("k", REQUEST)
        found.append(None if result is None else result.decode())
    return [*found, told, refused(lambda: claims.recorded("k", OTHER))]


def cannot_commit(transaction: Any) -> None:
    """Undo a transaction whose COMMIT fails, and tell it."""
    error = DatabaseFull("the disk is full")
    transaction._group_commit.leave(transaction._ticket, transaction._group, error)  # noqa: SLF001 - it has to end
    raise error


def torn_claims(world: World) -> list[Any]:
    """Return what is left of a claim whose guard, or whose transaction, fails."""
    claims, others = claims_of(world), claims_of(world)
    found: list[Any] = []

    def refuse(_: Any) -> None:
        message = "the guard says no"
        raise InvalidSetting(message)

    with mock.patch.object(SqliteTransaction, "commit", cannot_commit):
        found.append(refused(lambda: claims.begin("k", REQUEST)))
    found += [refused(lambda: claims.begin("l", REQUEST, guard=refuse)), len(claims._active)]  # noqa: SLF001 - it would be renewed
    claim = begun(claims, "k")
    found.append(refused(lambda: claims.finish(claim, b"1", ttl_s=TTL_S, guard=refuse)))
    found += [len(claims._active), asked(lambda: others.begin("k", REQUEST))]  # noqa: SLF001 - as above
    claim = begun(claims, "k")
    with mock.patch.object(SqliteTransaction, "commit", cannot_commit):
        found.append(refused(lambda: claims.abandon(claim)))
    found.append(refused(lambda: claims.check(claim)))
    claim = begun(claims, "k")
    claims.abandon(claim)
    return [*found, asked(lambda: others.begin("k", REQUEST))]


def one_that_waits(world: World) -> list[Any]:
    """Return what a caller gets that waits for another, and how many transactions it takes."""
    claims, others = claims_of(world), claims_of(world)
    claim = begun(claims, "k")
    told = in_time(lambda: asked(lambda: others.settle("k", REQUEST, wait_s=0.01)))
    ends = [lambda: claims.finish(claim, b"result", ttl_s=TTL_S)]

    def end(_: float) -> None:
        if ends:
            ends.pop()()

    with world.counted() as count, mock.patch("time.sleep", end):
        got = in_time(lambda: asked(lambda: others.settle("k", REQUEST, wait_s=9)))
    return [told, got, count[0]]


def not_due(world: World) -> list[Any]:
    """Return how many transactions a renewal takes where nothing is due, and what is deleted."""
    claims = claims_of(world)
    claim = begun(claims, "k")
    with world.counted() as count:
        claims.renew()
    claims.finish(claim, b"result", ttl_s=TTL_S)
    world.later(TTL_S)
    return [count[0], in_time(claims.discard_expired), in_time(claims.discard_expired)]


class Vanishing(int):
    """A moment that drops the last reference to a claim when it is compared."""

    box: ClassVar[list[KeyClaim]] = []

    def __gt__(self, other: object) -> bool:
        """Drop the claim, and say that the moment has not come."""
        self.box.clear()
        gc.collect()
        return True


def vanished(world: World) -> list[Any]:
    """Return what a renewal does while one of two claims is forgotten: the other is renewed."""
    claims = claims_of(world)
    Vanishing.box.append(begun(claims, "gone"))
    claims._active["s/gone"].ends_at = Vanishing(0)  # noqa: SLF001 - nothing else stops a renewal there
    kept = begun(claims, "kept")
    world.later(1.3)
    claims.renew()
    expiries = [world.store.key(f"s/{key}").claim_expires_at - BEGINNING for key in ("gone", "kept")]
    return [[each / SECOND for each in expiries], refused(lambda: claims.check(kept))]


def closed_claims(world: World) -> list[Any]:
    """Return who has a key whose caller closes, and whether a child can close its parent's."""
    claims, others = claims_of(world), claims_of(world)
    claim = begun(claims, "k")
    found = [asked(lambda: others.begin("k", REQUEST))]
    claims.close()
    claims.close()
    found.append(asked(lambda: others.begin("k", REQUEST)))
    KeyClaims(world.store, ClaimPolicy(scope="s"), world.clock).close()
    real = KeyClaims(world.store, ClaimPolicy(scope="s"), world.clock)
    held = begun(real, "l")

    def close() -> list[int]:
        signal.alarm(5)  # a child that waits for a thread of its parent would wait for ever
        real.close()
        return [1]

    assert real._renewals is not None  # noqa: SLF001 - a thread of its own renews
    with real._renewals._lock:  # noqa: SLF001 - another thread is in there, as may be at any fork
        answer = in_child(close)
    real.close()
    return [*found, answer, claim.key, held.key]


def without_an_owner_lock(world: World) -> list[Any]:
    """Return who has a key where nobody can tell whether its owner lives."""
    with mock.patch.object(type(world.store), "place", SqlitePlace(None)):  # type: ignore[arg-type]
        claims, others = claims_of(world), claims_of(world)
    claim = begun(claims, "k")
    found = [asked(lambda each=each: each.begin("k", REQUEST)) for each in (claims, others)]  # type: ignore[misc]
    del claim
    gc.collect()
    found += [asked(lambda each=each: each.begin("k", REQUEST)) for each in (others, claims)]  # type: ignore[misc]
    claims.close()
    return found


def scopes(world: World) -> list[str]:
    """Return how scopes and lengths are answered."""
    wrong: tuple[dict[str, Any], ...] = (
        {"scope": 5},
        {"scope": ""},
        {"scope": "s" * 65},
        {"scope": "a/b"},
        {"claim_s": 0},
        {"execution_s_max": 0},
    )
    right: tuple[dict[str, Any], ...] = ({"scope": "s" * 64}, {"execution_s_max": None})
    return [refused(lambda each=each: claims_of(world, **each)) for each in (*wrong, *right)]  # type: ignore[misc]


QUESTIONS: Final[Questions] = {
    "once: the requests of a key": (conflicts, expected_conflicts()),
    "once: a caller's own claims": (
        own_claims,
        [True, True, "", "ExecutionLost", "ExecutionLost"],
    ),
    "once: claims that are forgotten": (forgotten_claims, "doubt"),
    "once: claims that are taken over": (
        overtaken,
        [
            [["", "ExecutionLost", ""], "another's", "ExecutionLost", "Done"],
            [["", "ExecutionLost", ""], "ExecutionLost", "ExecutionLost", "claim"],
            [["", "ExecutionLost", ""], "InProgress", "ExecutionLost", "Busy"],
        ],
    ),
    "once: keys within keys": (
        within_one_another,
        ["RecursiveExecution", "claim", "claim", *["RecursiveExecution"] * 2, "claim", "claim"],
    ),
    "once: results by one read": (recorded, [None, None, "result", None, "RequestConflict", ""]),
    "once: claims that fail": (
        torn_claims,
        ["DatabaseFull", "InvalidSetting", 0, "InvalidSetting", 0, "Busy", "DatabaseFull", "ExecutionLost", "claim"],
    ),
    "once: one that waits": (one_that_waits, ["InProgress", "Done", 2]),
    "once: what is not due": (not_due, [0, 1, 0]),
    "once: a claim that vanishes": (vanished, [[10.0, 11.3], ""]),
    "once: claims that are closed": (closed_claims, ["Busy", "doubt", [1], "s/k", "s/l"]),
    "once: a database that is no file": (without_an_owner_lock, ["Busy", "Busy", "Busy", "doubt"]),
    "once: lengths of claims": (
        lambda _: [
            refused(functools.partial(check_duration, "ttl_s", each))
            for each in (0.0009, 0.001, 100 * YEAR_S, 100 * YEAR_S + 1)
        ],
        ["InvalidSetting", "", "", "InvalidSetting"],
    ),
    "once: scopes": (scopes, [*["InvalidSetting"] * 6, "", ""]),
}
"""By room and name: the question, and the answer."""
