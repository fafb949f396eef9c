"""The idempotency store: what is asked for twice is done once, and both get the same answer.

``execute(key, produce)`` returns the stored result, or calls ``produce`` and stores what it
returns. Of many processes that ask at once, one executes and the others wait, with a bound. If the
executing process dies, exactly one of them takes over, and ``produce`` is called again: it should
be something that may happen twice (for what may not, there is the tool ledger). An exception of
``produce`` goes to its caller, nothing is stored, and the next one executes.

A result is JSON, and the first caller gets it as all later ones do: decoded from what was stored.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_agents.bounds import check_bytes
from durable_agents.errors import ExecutionLost, StoreError
from durable_agents.manager import Manager
from durable_agents.once.claims import CLAIM_S, EXECUTION_S_MAX, ClaimPolicy, Done, KeyClaim, KeyClaims, check_duration
from durable_agents.once.requests import check_key, decoded_result, encoded_result, request_hash

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from durable_agents.clock import Clock
    from durable_agents.once.claims import Guard
    from durable_agents.store import Store

TTL_S: Final = 24 * 3600.0
"""How long a result is kept, in seconds, unless told otherwise: a day."""
WAIT_S: Final = 60.0
"""How long a caller waits for another who executes, in seconds, unless told otherwise."""
RESULT_BYTES_MAX: Final = 64 * 1024 * 1024
"""The largest result, in bytes of JSON, unless told otherwise."""

_NO_REQUEST: Final = request_hash(None)
_PAGE_ROWS: Final = 1000


class Execution(msgspec.Struct, frozen=True):
    """What a call came to: the result, and whether it was there already."""

    result: Any
    is_replay: bool


class IdempotencyStore(Manager):
    """Results by key. Give it a store, or the path of a database file, which it opens and closes.

    Durations are seconds: results are kept for ``ttl_s``; a caller waits for another at most
    ``wait_s``; a claim lasts ``claim_s`` without a renewal, and is renewed for ``execution_s_max``
    (None: as long as the process lives), after which somebody else may execute.
    ``result_bytes_max`` bounds each result (None: no bound). ``scope`` separates the keys of
    different uses. Raises InvalidSetting, and any StoreError when it opens the file. May be shared
    by threads.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        db_path: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
        ttl_s: float = TTL_S,
        wait_s: float = WAIT_S,
        claim_s: float = CLAIM_S,
        execution_s_max: float | None = EXECUTION_S_MAX,
        result_bytes_max: int | None = RESULT_BYTES_MAX,
        scope: str = "idempotency",
        is_evictable: bool = False,
    ) -> None:
        """Use ``store``, or the store at ``db_path``; exactly one of them."""
        check_duration("ttl_s", ttl_s)
        check_duration("wait_s", wait_s, least_s=0)
        check_bytes("result_bytes_max", result_bytes_max, least=1, is_optional=True)
        super().__init__(store, db_path=db_path, clock=clock)
        self._ttl_s, self._wait_s = ttl_s, wait_s
        self._result_bytes_max = result_bytes_max
        self._prefix = f"{scope}/"
        self._scope = scope
        policy = ClaimPolicy(scope=scope, claim_s=claim_s, execution_s_max=execution_s_max, is_evictable=is_evictable)
        self._claims = KeyClaims(self._store, policy, self._clock)

    def close(self) -> None:
        """End the renewals, and close the store if this opened it. Closing twice is fine."""
        self._claims.close()
        super().close()

    def execute(
        self,
        key: str,
        produce: Callable[[], object],
        *,
        request: object = None,
        ttl_s: float | None = None,
        wait_s: float | None = None,
    ) -> Execution:
        """Return what is stored under the key, or call ``produce``, store what it returns, and return that.

        Raises whatever ``produce`` raises; InvalidKey, InvalidRequest or InvalidResult;
        RequestConflict for a key of another request; InProgress when the wait for another is over;
        RecursiveExecution when ``produce`` asks for its own key; ExecutionLost when it took too
        long and nobody else has a result; or any StoreError. A StoreError of the end means that the
        result may not have been stored: a later call may execute again.
        """
        check_key(key)
        hashed = _NO_REQUEST if request is None else request_hash(request)
        encoded, is_replay = self.execute_encoded(
            key,
            hashed,
            lambda: encoded_result(produce(), self._result_bytes_max),
            ttl_s=self._ttl_s if ttl_s is None else ttl_s,
            wait_s=self._wait_s if wait_s is None else wait_s,
        )
        return Execution(decoded_result(encoded), is_replay)

    def find(self, key: str, *, request: object = None) -> Execution | None:
        """Return what is stored under the key, or None. Raises as ``execute`` does; waits for nobody."""
        check_key(key)
        hashed = _NO_REQUEST if request is None else request_hash(request)
        encoded = self.find_encoded(key, hashed)
        return None if encoded is None else Execution(decoded_result(encoded), is_replay=True)

    def find_encoded(self, key: str, hashed: str) -> bytes | None:
        """Return the stored bytes for a request with this hash, or None. Raises RequestConflict, or any StoreError."""
        stored = self._store.result(self._prefix + key)
        if stored is None or stored.expires_at <= self._clock.now():
            return None
        if stored.request_hash != hashed:
            self._claims.look(key, hashed)
            return None
        return stored.result

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
        """Do what ``execute`` does for a result that is bytes, and a request whose hash is known.

        Return the bytes and whether they were there already. ``guard`` is called in the
        transactions that claim the key and store the result, and may raise. Raises as ``execute``
        does.
        """
        found = self.find_encoded(key, hashed)
        if found is not None:
            return found, True
        check_duration("ttl_s", ttl_s)
        check_duration("wait_s", wait_s, least_s=0)
        settled = self._claims.settle(key, hashed, wait_s=wait_s, guard=guard)
        if isinstance(settled, Done):
            return settled.result, True
        result = self._produce(settled, produce)
        try:
            self._claims.finish(settled, result, ttl_s=ttl_s, guard=guard)
        except ExecutionLost:
            other = self._claims.ended(key, hashed, wait_s=wait_s)
            if other is None:
                raise
            return other.result, True
        except BaseException:
            self._abandon(settled)
            raise
        return result, False

    def forget(self, key: str) -> bool:
        """Delete a result, so that the next caller executes; return whether there was one that nobody works on."""
        check_key(key)
        with self._store.transaction() as transaction:
            row = transaction.key(self._prefix + key)
            if row is None or row.result is None:
                return False
            return transaction.delete_key(row.key, row.token, row.owner, status=row.status)

    def discard_expired(self) -> int:
        """Delete results that have expired, in batches, and return how many. Raises any StoreError."""
        discarded, after = 0, 0
        while True:
            with self._store.transaction() as transaction:
                count, after = transaction.delete_expired_keys(
                    self._scope, now=self._clock.now(), after=after, limit=_PAGE_ROWS
                )
            discarded += count
            if not after:
                return discarded

    def _produce(self, mine: KeyClaim, produce: Callable[[], bytes]) -> bytes:
        try:
            with self._claims.executing(mine):
                return produce()
        except BaseException:
            self._abandon(mine)
            raise

    def _abandon(self, mine: KeyClaim) -> None:
        """Give the key to the next caller; if the database refuses, the claim ends by its expiry."""
        with contextlib.suppress(StoreError):
            self._claims.abandon(mine)
