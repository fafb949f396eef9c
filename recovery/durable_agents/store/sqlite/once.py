"""The statements on idempotency keys, their claims and results, and on usage counts.

Each change names the claim that it expects, by token and owner. ``SqliteStore.result``, the read of
a cache hit, is not here: it has a connection of its own kind.
"""

# ruff: noqa: S608 - statements are put together from the constants of this module alone

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import KeyStatus, StoredKey, StoredResult, Usage
from durable_agents.store.sqlite.statements import Queries, Writes, columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durable_agents.clock import Microseconds

_KEY: Final = f"SELECT {columns(StoredKey)} FROM idempotency_keys WHERE key = ?"
RESULT: Final = f"SELECT {columns(StoredResult)} FROM idempotency_keys WHERE key = ? AND expires_at IS NOT NULL"
_KEYS: Final = (
    f"SELECT {columns(StoredKey)} FROM idempotency_keys WHERE scope = ? AND status = ? AND key > ? ORDER BY key LIMIT ?"
)
_INSERT: Final = (
    f"INSERT INTO idempotency_keys ({columns(StoredKey)}) VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, NULL) "
    "ON CONFLICT DO NOTHING"
)
_TAKE: Final = (
    "UPDATE idempotency_keys SET scope = ?, request_hash = ?, status = ?, token = ?, owner = ?, claim_expires_at = ?, "
    "expires_at = NULL, used_at = ?, created_at = ?, result = NULL "
    "WHERE key = ? AND token = ? AND owner = ? AND status = ? AND claim_expires_at IS ?"
)
_HELD: Final = "WHERE key = ? AND token = ? AND owner = ? AND status = 'executing'"
_RENEW: Final = f"UPDATE idempotency_keys SET claim_expires_at = ? {_HELD}"
_END: Final = f"UPDATE idempotency_keys SET status = ?, result = ?, expires_at = ?, claim_expires_at = NULL {_HELD}"
_DELETE: Final = "DELETE FROM idempotency_keys WHERE key = ? AND token = ? AND owner = ? AND status = ?"
_PAGE: Final = "SELECT max(key_number) FROM (SELECT key_number FROM idempotency_keys WHERE key_number > ? LIMIT ?)"
_DELETE_EXPIRED: Final = (
    "DELETE FROM idempotency_keys WHERE key_number > ? AND key_number <= ? AND scope = ? AND expires_at <= ?"
)
# The condition of the index by use, word for word, so that it is used; it answers the sum by
# itself.
_EVICTABLE: Final = "scope = ? AND used_at IS NOT NULL AND status IN ('done', 'failed')"
_BYTES: Final = f"SELECT coalesce(sum(length(result)), 0) FROM idempotency_keys WHERE {_EVICTABLE}"
_OLDEST: Final = f"SELECT key_number, length(result) FROM idempotency_keys WHERE {_EVICTABLE} ORDER BY used_at LIMIT ?"
_EVICT: Final = "DELETE FROM idempotency_keys WHERE key_number = ?"
_TOUCH: Final = "UPDATE idempotency_keys SET used_at = ? WHERE key = ? AND used_at < ?"
_ADD_USAGE: Final = (
    "INSERT INTO key_usage (scope, hits, misses, tokens_saved, time_saved_us) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (scope) DO UPDATE SET hits = hits + excluded.hits, misses = misses + excluded.misses, "
    "tokens_saved = tokens_saved + excluded.tokens_saved, time_saved_us = time_saved_us + excluded.time_saved_us"
)
_USAGE: Final = "SELECT hits, misses, tokens_saved, time_saved_us FROM key_usage WHERE scope = ?"
_EVICTED_AT_ONCE: Final = 256


class KeyReads(Queries):
    """Queries on keys and hit counters."""

    __slots__ = ()

    def key(self, key: str) -> StoredKey | None:
        """Return the key, or None."""
        row = self._read_one(_KEY, (key,))
        return None if row is None else _key(row)

    def keys(self, scope: str, status: KeyStatus, *, after: str = "", limit: int = PAGE_ROWS_MAX) -> list[StoredKey]:
        """Return keys of a scope with this status, in their order."""
        return [_key(row) for row in self._read(_KEYS, (scope, status.value, after, limit))]

    def usage(self, scope: str) -> Usage:
        """Return the counts of a scope."""
        return Usage(*(self._read_one(_USAGE, (scope,)) or ()))


class KeyWrites(KeyReads, Writes):
    """Changes of keys and counts."""

    __slots__ = ()

    def claim_key(self, claim: StoredKey, *, expected: StoredKey | None) -> bool:
        """Store a claim in the place of the expected row, or of none.

        False if the key is not as expected.
        """
        known = (claim.scope, claim.request_hash, claim.status.value, claim.token, claim.owner, claim.claim_expires_at)
        if expected is None:
            return self._changes_one(_INSERT, (claim.key, *known, claim.used_at, claim.created_at))
        place = (expected.token, expected.owner, expected.status.value, expected.claim_expires_at)
        return self._changes_one(_TAKE, (*known, claim.used_at, claim.created_at, claim.key, *place))

    def renew_claim(self, key: str, token: int, owner: str, *, expires_at: Microseconds) -> bool:
        """Move the expiry of a claim; False if it is not held by this token and owner."""
        return self._changes_one(_RENEW, (expires_at, key, token, owner))

    def end_key(
        self, key: str, token: int, owner: str, *, status: KeyStatus, result: bytes | None, expires_at: int | None
    ) -> bool:
        """End a claim with its result, or in doubt.

        False if it is not held by this token and owner.
        """
        return self._changes_one(_END, (status.value, result, expires_at, key, token, owner))

    def delete_key(self, key: str, token: int, owner: str, *, status: KeyStatus) -> bool:
        """Delete the row of this claim; False if it has another status, token or owner."""
        return self._changes_one(_DELETE, (key, token, owner, status.value))

    def delete_expired_keys(self, scope: str, *, now: Microseconds, after: int, limit: int) -> tuple[int, int]:
        """Delete the expired results of one page of rows.

        Return how many, and the number of the page's last row, 0 at the end.
        """
        last: int | None = self._read(_PAGE, (after, limit))[0][0]
        if last is None:
            return 0, 0
        return self.execute(_DELETE_EXPIRED, (after, last, scope, now)).rowcount, last

    def evict_keys(self, scope: str, *, bytes_max: int) -> int:
        """Delete the least recently used results until the rest fits; return how many."""
        excess: int = self._read(_BYTES, (scope,))[0][0] - bytes_max
        evicted = 0
        while excess > 0 and (oldest := self._read(_OLDEST, (scope, _EVICTED_AT_ONCE))):
            for number, size_bytes in oldest:
                if excess <= 0:
                    break
                self.execute(_EVICT, (number,))
                evicted, excess = evicted + 1, excess - size_bytes
        return evicted

    def touch_keys(self, used: Mapping[str, Microseconds]) -> None:
        """Record when keys were last used; keys that are gone stay so."""
        self.execute_all(_TOUCH, [(moment, key, moment) for key, moment in used.items()])

    def add_usage(self, scope: str, usage: Usage) -> None:
        """Add to the counts of a scope."""
        self.execute(_ADD_USAGE, (scope, usage.hits, usage.misses, usage.tokens_saved, usage.time_saved_us))


def _key(row: tuple[Any, ...]) -> StoredKey:
    key, scope, request_hash, status, *rest = row
    return StoredKey(key, scope, request_hash, KeyStatus(status), *rest)
