"""Idempotency stores with one known bug each; the caches of ``tests.planted.once.cache`` are built
on them.

| variant | bug | seen by |
|---|---|---|
| ChecksThenInserts | looks, executes, and stores in steps of their own (D2) | a stampede |
| NeverRefreshes | an expired key is a miss, and what was executed for it is not stored (D7) | an expiry under load |
| KeepsTheDead | a claim ends by its expiry alone, though its owner is known to be dead | a generator that is killed |
| KeepsTheInterrupted | a claim that an interrupt came after is renewed for an hour | the core's machine |
| CachesFailures | an exception is stored, and answered with nothing from then on | a generator that raises |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_agents import IdempotencyStore
from durable_agents.errors import InProgress
from durable_agents.once.claims import ClaimPolicy, KeyClaims
from durable_agents.once.requests import request_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents.clock import Clock
    from durable_agents.once.claims import Guard, KeyClaim
    from durable_agents.store import Store


class ChecksThenInserts(IdempotencyStore):
    """Finds nothing, executes, and inserts: whoever looks meanwhile finds nothing either."""

    def execute_encoded(
        self,
        key: str,
        hashed: str,
        produce: Callable[[], bytes],
        *,
        ttl_s: float,
        wait_s: float,
        guard: Guard | None = None,
    ) -> tuple[bytes, bool]:
        """Look first, store last."""
        found = self.find_encoded(key, hashed)
        if found is not None:
            return found, True
        result = produce()
        return super().execute_encoded(key, hashed, lambda: result, ttl_s=ttl_s, wait_s=wait_s, guard=guard)[0], False


class NeverRefreshes(IdempotencyStore):
    """Executes for an expired key, and does not notice that the row it inserts is refused."""

    def execute_encoded(
        self,
        key: str,
        hashed: str,
        produce: Callable[[], bytes],
        *,
        ttl_s: float,
        wait_s: float,
        guard: Guard | None = None,
    ) -> tuple[bytes, bool]:
        """Store only where there was nothing."""
        row = self._store.result(self._claims.stored(key))
        if row is not None and row.expires_at <= self._clock.now():
            return produce(), False
        return super().execute_encoded(key, hashed, produce, ttl_s=ttl_s, wait_s=wait_s, guard=guard)


class KeepsTheDead(IdempotencyStore):
    """Waits for a claim to expire, whoever had it, and gives up before that."""

    def execute_encoded(
        self,
        key: str,
        hashed: str,
        produce: Callable[[], bytes],
        *,
        ttl_s: float,
        wait_s: float,
        guard: Guard | None = None,
    ) -> tuple[bytes, bool]:
        """Look at the expiry alone."""
        row = self._store.key(self._claims.stored(key))
        if row is not None and row.claim_expires_at is not None and self._clock.now() < row.claim_expires_at:
            message = f"Expected {key!r} to be free but its claim has not expired; ask again later."
            raise InProgress(message)
        return super().execute_encoded(key, hashed, produce, ttl_s=ttl_s, wait_s=wait_s, guard=guard)


class _HoldsOn(KeyClaims):
    """Goes on with every claim that did not come to its end."""

    def let_go(self, claim: KeyClaim) -> None:
        """Keep what an end should have been told of."""
        self.__dict__.setdefault("kept", []).append(claim)


class KeepsTheInterrupted(IdempotencyStore):
    """Claims, and believes itself to execute though an interrupt has kept it from that."""

    def __init__(self, store: Store, *, clock: Clock, ttl_s: float, wait_s: float, claim_s: float) -> None:
        """Begin as the sound one does, on claims that are never let go."""
        super().__init__(store, clock=clock, ttl_s=ttl_s, wait_s=wait_s, claim_s=claim_s)
        self._claims = _HoldsOn(store, ClaimPolicy(scope="idempotency", claim_s=claim_s), clock)


class CachesFailures(IdempotencyStore):
    """Stores null for an execution that raised."""

    def _produce(self, claim: KeyClaim, produce: Callable[[], bytes]) -> bytes:
        try:
            return super()._produce(claim, produce)
        except Exception:
            self._claims.begin(claim.key.partition("/")[2], request_hash(None))
            with self._store.transaction() as transaction:
                transaction.execute(  # type: ignore[attr-defined]
                    "UPDATE idempotency_keys SET status = 'done', result = CAST('null' AS BLOB), expires_at = ?,"
                    " claim_expires_at = NULL WHERE key = ?",
                    (self._clock.now() + 10**12, claim.key),
                )
            raise
