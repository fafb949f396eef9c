"""The cache of language-model outputs: an output is generated once and then reused.

A key is the hash of model, messages, parameters and operation in canonical form
(``durable_agents.once.requests``). ``get_or_generate`` generates once, however many processes ask
at the same time. If the generating process is killed, another one takes over and generates again.

A hit is one read, on a connection that maps the file into memory, and no write. Uses and savings
are counted in memory and flushed later (``durable_agents.once.hit_counters`` says what a kill
loses). So eviction takes the output whose last *flushed* use is the oldest.

The bound on the size holds on average: each process checks it after storing a 32nd part of it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable_agents.bounds import check_bytes
from durable_agents.errors import InProgress, InvalidResult
from durable_agents.manager import Manager
from durable_agents.once.claims import CLAIM_S, EXECUTION_S_MAX, WAIT_S, check_duration
from durable_agents.once.hit_counters import HitCounters
from durable_agents.once.idempotency import RESULT_BYTES_MAX, IdempotencyStore
from durable_agents.once.requests import check_key, encoded_result, request_hash

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from durable_agents.clock import Clock
    from durable_agents.store import Store

TTL_S: Final = 7 * 24 * 3600.0
"""How long an output is kept by default, in seconds: seven days."""
BYTES_MAX: Final = 1024 * 1024 * 1024
"""How many bytes of outputs are kept by default."""

_CHECK_SHARE: Final = 32
_TOKENS_MAX: Final = 2**40


class Generation(msgspec.Struct, frozen=True):
    """The return value of a generator: the output, which is JSON, and the tokens that it cost."""

    output: Any
    tokens: int = 0


class CachedOutput(msgspec.Struct, frozen=True):
    """An output, the tokens that its generation cost, and whether it came from the cache."""

    output: Any
    tokens: int
    is_hit: bool


class CacheStatistics(msgspec.Struct, frozen=True):
    """Hits and misses, and what the hits saved: the tokens and seconds of their generation."""

    hits: int
    misses: int
    tokens_saved: int
    time_saved_s: float

    @property
    def hit_rate(self) -> float:
        """The share of requests that were hits; 0 without any."""
        requests = self.hits + self.misses
        return self.hits / requests if requests else 0.0


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    output: Any
    tokens: int
    duration_us: int


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Stored).decode


class LLMOutputCache(Manager):
    """Outputs by request, in a Store, an IdempotencyStore, or the database at ``db_path``.

    >>> with LLMOutputCache(db_path=tmp_path / "core.db") as cache:
    ...     for _ in range(2):
    ...         greet = lambda: Generation("Hello.", tokens=2)
    ...         found = cache.get_or_generate(greet, model="m", messages=["Hi"])
    >>> found.output, found.is_hit
    ('Hello.', True)

    Outputs are kept for ``ttl_s`` seconds, and up to ``bytes_max`` bytes in all (None: no bound).
    The other durations are those of ``IdempotencyStore``. Raises InvalidSetting, and any StoreError
    on opening. May be shared by threads.
    """

    def __init__(
        self,
        store: IdempotencyStore | Store | None = None,
        *,
        db_path: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
        ttl_s: float = TTL_S,
        bytes_max: int | None = BYTES_MAX,
        wait_s: float = WAIT_S,
        claim_s: float = CLAIM_S,
        execution_s_max: float | None = EXECUTION_S_MAX,
        scope: str = "llm",
    ) -> None:
        """Use the store, or the one at ``db_path``; exactly one of them."""
        check_bytes("bytes_max", bytes_max, is_optional=True)
        if isinstance(store, IdempotencyStore):
            clock = store.clock if clock is None else clock
            store = store.store
        self._keys = IdempotencyStore(
            store,
            db_path=db_path,
            clock=clock,
            ttl_s=ttl_s,
            wait_s=wait_s,
            claim_s=claim_s,
            execution_s_max=execution_s_max,
            scope=scope,
            is_evictable=True,
        )
        super().__init__(self._keys.store, clock=self._keys.clock)
        self._ttl_s, self._wait_s, self._scope, self._bytes_max = ttl_s, wait_s, scope, bytes_max
        self._prefix = f"{scope}/"
        self._counters = HitCounters(self._store, scope, self._clock)
        self._lock = threading.Lock()
        self._unchecked_bytes: int | None = None

    def close(self) -> None:
        """Flush the counts, and close the store if this opened it. Closing twice is fine."""
        try:
            self._counters.flush()
        finally:
            self._keys.close()

    @staticmethod
    def key(model: str, messages: object, parameters: object = None, operation: str = "generate") -> str:
        """Return the key of a request: a SHA-256 in hexadecimal. Raises InvalidRequest."""
        return request_hash([operation, model, messages, parameters])

    def get_or_generate(
        self,
        generate: Callable[[], Generation],
        *,
        model: str,
        messages: object,
        parameters: object = None,
        operation: str = "generate",
        ttl_s: float | None = None,
        wait_s: float | None = None,
    ) -> CachedOutput:
        """Return the output for a request, or call ``generate`` and keep what it returns.

        Raises the errors of ``generate``, and then nothing is kept; InvalidRequest; InvalidResult
        unless it returns a Generation of JSON; InProgress when the wait for another process is
        over; RecursiveExecution when ``generate`` makes the same request; ExecutionLost; or any
        StoreError.
        """
        key = self.key(model, messages, parameters, operation)
        found = self._found(key)
        if found is not None:
            return found
        return self._generated(key, generate, ttl_s, wait_s)

    def get(self, key: str) -> CachedOutput | None:
        """Return the output under a key, or None; both are counted.

        Raises InvalidKey, or any StoreError.
        """
        check_key(key)
        found = self._found(key)
        if found is None:
            self._counters.miss()
        return found

    def put(self, key: str, output: object, *, tokens: int = 0, duration_s: float = 0.0) -> bool:
        """Keep an output that was generated elsewhere; return whether it was kept.

        It is not kept if the key has one already, or another process is generating one. For clients
        that look up and store in two calls, where several may generate. Raises InvalidKey,
        InvalidSetting, InvalidResult, or any StoreError.
        """
        check_key(key)
        check_duration("duration_s", duration_s, least_s=0)
        encoded = _encoded(Generation(output, tokens), round(duration_s * 1_000_000))
        try:
            _, was_there = self._keys.execute_encoded(key, _hash_of(key), lambda: encoded, ttl_s=self._ttl_s, wait_s=0)
        except InProgress:
            return False
        if not was_there:
            self._stored(len(encoded))
        return not was_there

    def statistics(self) -> CacheStatistics:
        """Return the flushed counts of all processes and those of this object.

        Raises any StoreError.
        """
        usage = self._counters.total()
        return CacheStatistics(usage.hits, usage.misses, usage.tokens_saved, usage.time_saved_us / 1_000_000)

    def flush(self) -> None:
        """Flush the counts of this object to the store. Raises any StoreError."""
        self._counters.flush()

    def evict(self) -> int:
        """Delete the least recently used outputs until the bound holds; return how many."""
        if self._bytes_max is None:
            return 0
        self._counters.flush()
        with self._store.transaction() as transaction:
            return transaction.evict_keys(self._scope, bytes_max=self._bytes_max)

    def clear(self) -> int:
        """Delete all outputs; return how many.

        An output that is being generated is kept when it is done.
        """
        with self._store.transaction() as transaction:
            return transaction.evict_keys(self._scope, bytes_max=-1)

    def discard_expired(self) -> int:
        """Delete expired outputs, in batches, and return how many. Raises any StoreError."""
        return self._keys.discard_expired()

    def _found(self, key: str) -> CachedOutput | None:
        encoded = self._keys.find_encoded(key, _hash_of(key))
        return None if encoded is None else self._hit(key, encoded)

    def _hit(self, key: str, encoded: bytes) -> CachedOutput:
        stored = _decode(encoded)
        self._counters.hit(tokens_saved=stored.tokens, time_saved_us=stored.duration_us, used=self._prefix + key)
        return CachedOutput(stored.output, stored.tokens, is_hit=True)

    def _generated(
        self, key: str, generate: Callable[[], Generation], ttl_s: float | None, wait_s: float | None
    ) -> CachedOutput:
        def produce() -> bytes:
            began = self._clock.monotonic()
            generation = generate()
            return _encoded(generation, self._clock.monotonic() - began)

        encoded, is_hit = self._keys.execute_encoded(
            key,
            _hash_of(key),
            produce,
            ttl_s=self._ttl_s if ttl_s is None else ttl_s,
            wait_s=self._wait_s if wait_s is None else wait_s,
        )
        if is_hit:
            return self._hit(key, encoded)
        self._counters.miss()
        self._stored(len(encoded))
        stored = _decode(encoded)
        return CachedOutput(stored.output, stored.tokens, is_hit=False)

    def _stored(self, size_bytes: int) -> None:
        """Check the bound on the size after each 32nd part of it.

        The first output of this object is followed by a check, too.
        """
        if self._bytes_max is None:
            return
        with self._lock:
            before = self._unchecked_bytes
            is_due = before is None or before + size_bytes >= self._bytes_max // _CHECK_SHARE
            self._unchecked_bytes = 0 if is_due else (before or 0) + size_bytes
        if is_due:
            self.evict()


def _hash_of(key: str) -> str:
    """Return the request hash of a key: the key itself, if ``LLMOutputCache.key`` made it."""
    return key if len(key) == _DIGEST_CHARACTERS else request_hash(key)


_DIGEST_CHARACTERS: Final = 64


def _encoded(generation: object, duration_us: int) -> bytes:
    if not isinstance(generation, Generation):
        message = f"The generator must return a Generation; got {generation!r:.200}. Wrap its output in one."
        raise InvalidResult(message)
    tokens = generation.tokens
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= _TOKENS_MAX:
        message = f"tokens must be 0 to {_TOKENS_MAX}; got {tokens!r}. Count the tokens that the output cost."
        raise InvalidResult(message)
    return _encode([msgspec.Raw(encoded_result(generation.output, RESULT_BYTES_MAX)), tokens, max(duration_us, 0)])
