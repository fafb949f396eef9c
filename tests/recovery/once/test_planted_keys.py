"""The planted defects of keys, cache and ledger really are defects of their kind;
the sound parts have none of them.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from durable_agents import RAISE, IdempotencyStore, LLMOutputCache, ManualClock, Probe, SystemClock, ToolLedger
from durable_agents.errors import InDoubt, InProgress
from durable_agents.once.claims import ClaimPolicy, KeyClaims
from durable_agents.once.crash_points import OncePoint
from durable_agents.once.requests import request_hash

from tests.planted.once import cache as caches, idempotency, ledger as ledgers
from tests.recovery.crashes import CrashError, Crashes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_agents import SqliteStore


@pytest.mark.parametrize("kind", [IdempotencyStore, idempotency.ChecksThenInserts])
def test_two_callers_at_once(store: SqliteStore, kind: type[IdempotencyStore]) -> None:
    """D2: while one executes, another that asks executes too with the variant,
    and waits with the sound one.
    """
    executed = []

    def produce() -> int:
        executed.append(1)
        if len(executed) == 1:
            with ThreadPoolExecutor(1) as pool:
                inner = pool.submit(keys.execute, "k", produce, wait_s=0)
                if kind is IdempotencyStore:
                    with pytest.raises(InProgress):
                        inner.result(30)
        return 1

    with kind(store) as keys:
        keys.execute("k", produce)
    assert len(executed) == (1 if kind is IdempotencyStore else 2)


@pytest.mark.parametrize("kind", [IdempotencyStore, idempotency.NeverRefreshes])
def test_an_expired_key(store: SqliteStore, kind: type[IdempotencyStore]) -> None:
    """D7: once expired it is a miss for ever with the variant,
    and a hit again with the sound one.
    """
    clock = ManualClock()
    with kind(store, clock=clock, ttl_s=10) as keys:
        keys.execute("k", lambda: 1)
        clock.advance(10)
        replays = [keys.execute("k", lambda: 2).is_replay for _ in range(3)]
    assert replays == ([False, True, True] if kind is IdempotencyStore else [False] * 3)


@pytest.mark.parametrize("kind", [IdempotencyStore, idempotency.KeepsTheDead])
def test_a_claim_of_the_dead(store: SqliteStore, kind: type[IdempotencyStore]) -> None:
    """An owner that has gone holds its key until the expiry with the variant only."""
    gone = KeyClaims(store, ClaimPolicy(scope="idempotency"))
    gone.begin("k", request_hash(None))
    gone.close()
    with kind(store, wait_s=0) as keys:
        if kind is IdempotencyStore:
            assert keys.execute("k", lambda: 1).result == 1
        else:
            with pytest.raises(InProgress):
                keys.execute("k", lambda: 1)


@pytest.mark.parametrize("kind", [IdempotencyStore, idempotency.CachesFailures])
def test_an_execution_that_raised(store: SqliteStore, kind: type[IdempotencyStore]) -> None:
    """The next caller gets nothing for an answer with the variant,
    and executes with the sound one.
    """

    def fail() -> object:
        raise ConnectionError

    with kind(store) as keys:
        with pytest.raises(ConnectionError):
            keys.execute("k", fail)
        assert keys.execute("k", lambda: 1).result == (1 if kind is IdempotencyStore else None)


@pytest.mark.parametrize("kind", [IdempotencyStore, idempotency.KeepsTheInterrupted])
def test_a_claim_that_an_interrupt_came_after(store: SqliteStore, kind: type[IdempotencyStore]) -> None:
    """The process that was interrupted keeps itself from its key with the variant,
    and executes with the sound one.
    """
    with kind(store, clock=SystemClock(), ttl_s=60, wait_s=0, claim_s=30) as keys:
        with pytest.raises(KeyboardInterrupt), _interrupted_at(OncePoint.AFTER_CLAIM):
            keys.execute("k", lambda: 1)
        if kind is IdempotencyStore:
            assert keys.execute("k", lambda: 1).result == 1
        else:
            with pytest.raises(InProgress):
                keys.execute("k", lambda: 1)


@contextlib.contextmanager
def _interrupted_at(point: str) -> Iterator[None]:
    Crashes.install()
    Crashes.armed, Crashes.error = point, KeyboardInterrupt
    try:
        yield
    finally:
        Crashes.armed, Crashes.error = None, CrashError


@pytest.mark.parametrize("kind", [LLMOutputCache, caches.ForgetsParameters])
def test_requests_that_differ_in_a_parameter(kind: type[LLMOutputCache]) -> None:
    """They share a key with the variant."""
    keys = {kind.key("m", "p", {"t": t}) for t in (0, 1)}
    assert len(keys) == (2 if kind is LLMOutputCache else 1)


@pytest.mark.parametrize("kind", [LLMOutputCache, caches.LosesCounts])
def test_counts_of_a_cache_that_is_closed(store: SqliteStore, kind: type[LLMOutputCache]) -> None:
    """They are gone with the variant."""
    with kind(store) as cache:
        cache.get("k")
    assert store.usage("llm").misses == (1 if kind is LLMOutputCache else 0)


def _in_doubt(ledger: ToolLedger, effects: list[int]) -> None:
    """Leave a call behind that was interrupted after its effect."""

    def interrupted() -> object:
        effects.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.run("tool", 1, interrupted, in_doubt=RAISE, key="k")


@pytest.mark.parametrize("kind", [ToolLedger, ledgers.IgnoresProbe, ledgers.ForgetsDoubt, ledgers.IntentAfterEffect])
def test_a_call_in_doubt(store: SqliteStore, kind: type[ToolLedger]) -> None:
    """Its effect happens a second time with each variant."""
    effects: list[int] = []

    def check() -> None:
        message = "asked"
        raise LookupError(message)

    with kind(store) as ledger:
        _in_doubt(ledger, effects)
        policy = Probe(check) if kind is ledgers.IgnoresProbe else RAISE
        if kind is ToolLedger:
            with pytest.raises(InDoubt):
                ledger.run("tool", 1, lambda: effects.append(1), in_doubt=policy, key="k")
        else:
            ledger.run("tool", 1, lambda: effects.append(1), in_doubt=policy, key="k")
    assert len(effects) == (1 if kind is ToolLedger else 2)


@pytest.mark.parametrize("kind", [ToolLedger, ledgers.LargeChangesType, ledgers.CutsOutput])
def test_a_large_output(store: SqliteStore, kind: type[ToolLedger]) -> None:
    """D8: the first caller and the second get different things with either variant."""
    argv = ["head", "-c", "150000", "/dev/zero"]
    with kind(store) as ledger:
        first, second = (ledger.run_command(argv, in_doubt=RAISE).output.stdout for _ in range(2))
    assert (first == second) == (kind is ToolLedger)


@pytest.mark.parametrize("kind", [ToolLedger, ledgers.CachesFailures])
def test_a_command_that_fails(store: SqliteStore, kind: type[ToolLedger]) -> None:
    """D8: exit 1 is replayed with the variant, and run again with the sound ledger."""
    with kind(store) as ledger:
        runs = [ledger.run_command(["false"], in_doubt=RAISE) for _ in range(2)]
    assert [run.output.exit_code for run in runs] == [1, 1]
    assert runs[1].is_replay == (kind is not ToolLedger)
