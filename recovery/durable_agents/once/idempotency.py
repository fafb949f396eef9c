"""The idempotency store: a request made twice is executed once, and both get the same result.

``execute(key, produce)`` returns the stored result, or calls ``produce`` and stores what it
returns. Of many processes that ask at once, one executes and the others wait, with a bound. If the
executing process dies, exactly one of them takes over and calls ``produce`` again, so ``produce``
must be safe to repeat. For effects that are not, use the tool ledger. An exception of ``produce``
goes to its caller: nothing is stored, and the next caller executes.

A result is JSON. The first caller gets it as later ones do: decoded from what was stored.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_agents.bounds import check_bytes
from durable_agents.errors import StoreError
from durable_agents.manager import Manager
from durable_agents.once.claims import (
    CLAIM_S,
    EXECUTION_S_MAX,
    WAIT_S,
    ClaimPolicy,
    Done,
    KeyClaim,
    KeyClaims,
    check_duration,
)
from durable_agents.once.requests import check_key, decoded_result, encoded_result, request_hash

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from durable_agents.clock import Clock
    from durable_agents.once.claims import Guard
    from durable_agents.store import Store

TTL_S: Final = 24 * 3600.0
"""How long a result is kept by default, in seconds: a day."""
RESULT_BYTES_MAX: Final = 64 * 1024 * 1024
"""The largest result by default, in bytes of JSON."""

_NO_REQUEST: Final = request_hash(None)


class Execution(msgspec.Struct, frozen=True):
    """The result of a call, and whether it was stored already."""

    result: Any
    is_replay: bool


class IdempotencyStore(Manager):
    """Results by key, in a store or in the database at ``db_path``.

    It opens and closes the store of ``db_path`` itself.

    >>> with IdempotencyStore(db_path=tmp_path / "core.db") as keys:
    ...     first = keys.execute("invoice-7", lambda: {"sent": True})
    ...     again = keys.execute("invoice-7", lambda: {"sent": True})
    >>> first.is_replay, again.is_replay, again.result
    (False, True, {'sent': True})

    Durations are seconds. Results are kept for ``ttl_s``. A caller waits for another execution at
    most ``wait_s``. A claim lasts ``claim_s`` without a renewal and is renewed for
    ``execution_s_max`` (None: as long as the process lives); after that another caller may execute.
    ``result_bytes_max`` bounds each result (None: no bound). ``scope`` separates the keys of
    different uses. Raises InvalidSetting, and any StoreError on opening. May be shared by threads.
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
        policy = ClaimPolicy(scope=scope, claim_s=claim_s, execution_s_max=execution_s_max, is_evictable=is_evictable)
        self._claims = KeyClaims(self._store, policy, self._clock)

    def close(self) -> None:
        """Stop the renewals, and close the store if this opened it. Closing twice is fine."""
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
        """Return the result under the key, or call ``produce`` and store its result.

        Raises the errors of ``produce``; InvalidKey, InvalidRequest or InvalidResult;
        RequestConflict for a key of another request; InProgress when the wait is over;
        RecursiveExecution when ``produce`` asks for its own key; ExecutionLost when it took too
        long and no other caller has a result; or any StoreError. After a StoreError at the end the
        result may not be stored, and a later call may execute again.
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
        """Return the result stored under the key, or None.

        Raises as ``execute`` does, without waiting.
        """
        check_key(key)
        hashed = _NO_REQUEST if request is None else request_hash(request)
        encoded = self._claims.recorded(key, hashed)
        return None if encoded is None else Execution(decoded_result(encoded), is_replay=True)

    def find_encoded(self, key: str, hashed: str) -> bytes | None:
        """Return the stored bytes for this request, or None.

        Raises RequestConflict, or any StoreError.
        """
        return self._claims.recorded(key, hashed)

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
        """Execute as ``execute`` does, with an encoded result and the hash of the request.

        Return the bytes and whether they were stored already. ``guard`` is called in the
        transactions that claim the key and store the result, and may raise. Raises as ``execute``.
        """
        found = self._claims.recorded(key, hashed)
        if found is not None:
            return found, True
        check_duration("ttl_s", ttl_s)
        check_duration("wait_s", wait_s, least_s=0)
        settled = self._claims.settle(key, hashed, wait_s=wait_s, guard=guard)
        if isinstance(settled, Done):
            return settled.result, True
        result = self._produce(settled, produce)
        try:
            other = self._claims.finish_or_wait(settled, result, hashed, ttl_s=ttl_s, wait_s=wait_s, guard=guard)
        except BaseException:
            self._abandon(settled)
            raise
        return (result, False) if other is None else (other.result, True)

    def forget(self, key: str) -> bool:
        """Delete a stored result, so that the next caller executes.

        Return whether there was one.
        """
        check_key(key)
        with self._store.transaction() as transaction:
            row = transaction.key(self._claims.stored(key))
            if row is None or row.result is None:
                return False
            return transaction.delete_key(row.key, row.token, row.owner, status=row.status)

    def discard_expired(self) -> int:
        """Delete expired results, in batches, and return how many. Raises any StoreError."""
        return self._claims.discard_expired()

    def _produce(self, claim: KeyClaim, produce: Callable[[], bytes]) -> bytes:
        try:
            with self._claims.executing(claim):
                return produce()
        except BaseException:
            self._abandon(claim)
            raise

    def _abandon(self, claim: KeyClaim) -> None:
        """Free the key for the next caller.

        If the database refuses, the claim ends at its expiry.
        """
        with contextlib.suppress(StoreError):
            self._claims.abandon(claim)
