"""The promises about idempotency keys, their claims, results and counts."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.store.conformance.base import ConformanceBase
from durable_agents.store.rows import KeyStatus, StoredKey, StoredResult, Usage

if TYPE_CHECKING:
    from durable_agents.store.protocol import Store

_CLAIM: Final = StoredKey("k", "s", "0" * 64, KeyStatus.EXECUTING, 5, "me", 100, None, None, 1, None)
_RIVALS: Final = 8


def key_counts(store: Store, scope: str) -> Counter[KeyStatus]:
    """Return how many keys of the scope have each status."""
    return Counter(status for status in KeyStatus for _ in store.keys(scope, status))


class KeyConformance(ConformanceBase):
    """Keys, claims, results and counts."""

    def test_an_empty_store_has_no_keys(self) -> None:
        """Every read finds nothing and raises nothing."""
        assert self.store.key("k") is None
        assert self.store.result("k") is None
        assert key_counts(self.store, "s") == {}
        assert self.store.usage("s") == Usage()

    def test_a_claim_comes_back_as_it_was_put_in(self) -> None:
        """All fields of a claim survive, with any text for a key.

        A claim has no result yet.
        """
        claim = msgspec.structs.replace(_CLAIM, key="it's a 漢字 🙂", used_at=7)
        self._claim_key(claim)
        assert self.store.key(claim.key) == claim
        assert self.store.result(claim.key) is None
        assert key_counts(self.store, "s") == {KeyStatus.EXECUTING: 1}

    def test_a_key_is_claimed_once(self) -> None:
        """A second claim that expects none is refused, and the first one stays."""
        self._claim_key(_CLAIM)
        with self.store.transaction() as transaction:
            assert not transaction.claim_key(msgspec.structs.replace(_CLAIM, owner="you"), expected=None)
            assert transaction.key("k") == _CLAIM

    def test_a_claim_is_taken_over_by_compare_and_set(self) -> None:
        """A claim takes over a row that is as it was read: token, owner, status, expiry.

        Nothing of the old row stays.
        """
        self._claim_key(_CLAIM)
        taken = msgspec.structs.replace(_CLAIM, token=6, owner="you", claim_expires_at=200, request_hash="1" * 64)
        for change in ({"token": 4}, {"owner": "x"}, {"status": KeyStatus.IN_DOUBT}, {"claim_expires_at": 101}):
            with self.store.transaction() as transaction:
                assert not transaction.claim_key(taken, expected=msgspec.structs.replace(_CLAIM, **change))
        assert self.store.key("k") == _CLAIM
        with self.store.transaction() as transaction:
            assert transaction.claim_key(taken, expected=_CLAIM)
        assert self.store.key("k") == taken

    def test_of_many_rivals_one_takes_a_claim_over(self) -> None:
        """Of many callers that take a claim over at once, one gets it."""
        self._claim_key(_CLAIM)

        def take(number: int) -> bool:
            taken = msgspec.structs.replace(_CLAIM, token=6, owner=f"rival {number}")
            with self.store.transaction() as transaction:
                return transaction.claim_key(taken, expected=_CLAIM)

        with ThreadPoolExecutor(_RIVALS) as pool:
            assert sorted(pool.map(take, range(_RIVALS))) == [False] * (_RIVALS - 1) + [True]

    def test_only_its_own_token_and_owner_change_a_claim(self) -> None:
        """Another token or owner renews, ends and deletes nothing."""
        self._claim_key(_CLAIM)
        for token, owner in ((4, "me"), (5, "you")):
            with self.store.transaction() as transaction:
                assert not transaction.renew_claim("k", token, owner, expires_at=300)
                assert not transaction.end_key("k", token, owner, status=KeyStatus.DONE, result=b"x", expires_at=9)
                assert not transaction.delete_key("k", token, owner, status=KeyStatus.EXECUTING)
        with self.store.transaction() as transaction:
            assert not transaction.delete_key("k", 5, "me", status=KeyStatus.DONE)
        assert self.store.key("k") == _CLAIM
        with self.store.transaction() as transaction:
            assert transaction.renew_claim("k", 5, "me", expires_at=300)
        assert self.store.key("k") == msgspec.structs.replace(_CLAIM, claim_expires_at=300)
        with self.store.transaction() as transaction:
            assert transaction.delete_key("k", 5, "me", status=KeyStatus.EXECUTING)
        assert self.store.key("k") is None

    def test_results_come_back_byte_for_byte(self) -> None:
        """Results of any bytes and any length come back.

        A failed result is told from a successful one.
        """
        for number, result in enumerate((b"", b"\0\xff" * 5, b"x" * 300_000)):
            status = KeyStatus.FAILED if number else KeyStatus.DONE
            self._claim_key(msgspec.structs.replace(_CLAIM, key=f"k{number}"))
            self._end_key(f"k{number}", result, status=status)
            assert self.store.result(f"k{number}") == StoredResult("0" * 64, 500, result)
            row = self.store.key(f"k{number}")
            assert row is not None
            assert (row.status, row.result, row.claim_expires_at) == (status, result, None)
        assert key_counts(self.store, "s") == {KeyStatus.DONE: 1, KeyStatus.FAILED: 2}

    def test_keys_are_listed_by_status_and_page(self) -> None:
        """A page begins behind the given key, ends at the limit, and has one status and scope."""
        for key in ("c", "a", "b"):
            self._claim_key(msgspec.structs.replace(_CLAIM, key=key))
        self._claim_key(msgspec.structs.replace(_CLAIM, key="d", scope="other"))
        self._end_key("b", b"x")
        assert [row.key for row in self.store.keys("s", KeyStatus.EXECUTING)] == ["a", "c"]
        assert [row.key for row in self.store.keys("s", KeyStatus.EXECUTING, after="a")] == ["c"]
        assert [row.key for row in self.store.keys("s", KeyStatus.EXECUTING, limit=1)] == ["a"]
        assert [row.result for row in self.store.keys("s", KeyStatus.DONE)] == [b"x"]

    def test_a_claim_ends_once(self) -> None:
        """A claim ends once, with a result or in doubt.

        After that it is neither renewed nor ended again.
        """
        self._claim_key(_CLAIM)
        with self.store.transaction() as transaction:
            for is_first in (True, False):
                ended = transaction.end_key("k", 5, "me", status=KeyStatus.IN_DOUBT, result=None, expires_at=None)
                assert ended is is_first
            assert not transaction.renew_claim("k", 5, "me", expires_at=300)
        assert self.store.result("k") is None
        assert key_counts(self.store, "s") == {KeyStatus.IN_DOUBT: 1}

    def test_expired_results_are_deleted_page_by_page(self) -> None:
        """Expired results of the scope are deleted, from the moment of their expiry on.

        Claims and other scopes stay.
        """
        for number in range(5):
            for scope in ("s", "other"):
                self._claim_key(msgspec.structs.replace(_CLAIM, key=f"{scope}{number}", scope=scope))
                self._end_key(f"{scope}{number}", b"", expires_at=10 * number)
        self._claim_key(_CLAIM)
        deleted, after = 0, 0
        while True:
            with self.store.transaction() as transaction:
                count, after = transaction.delete_expired_keys("s", now=20, after=after, limit=3)
            deleted += count
            if not after:
                break
        assert deleted == 3
        assert key_counts(self.store, "s") == {KeyStatus.DONE: 2, KeyStatus.EXECUTING: 1}
        assert key_counts(self.store, "other") == {KeyStatus.DONE: 5}

    def test_the_least_recently_used_are_evicted(self) -> None:
        """The least recently used results go until the rest fits.

        A key without a time of use, or without an end, is not counted and stays.
        """
        for number in range(4):
            self._claim_key(msgspec.structs.replace(_CLAIM, key=f"k{number}", used_at=number))
            self._end_key(f"k{number}", b"x" * 10)
        self._claim_key(msgspec.structs.replace(_CLAIM, key="kept"))
        self._end_key("kept", b"x" * 1000)
        self._claim_key(msgspec.structs.replace(_CLAIM, key="executing", used_at=0))
        with self.store.transaction() as transaction:
            transaction.touch_keys({"k0": 9, "k3": 1, "gone": 5})
            assert transaction.evict_keys("s", bytes_max=40) == 0
            assert transaction.evict_keys("s", bytes_max=25) == 2
        assert [number for number in range(4) if self.store.key(f"k{number}") is not None] == [0, 3]
        with self.store.transaction() as transaction:
            assert transaction.evict_keys("s", bytes_max=-1) == 2
            assert transaction.evict_keys("s", bytes_max=-1) == 0
        assert self.store.key("kept") is not None
        assert self.store.key("executing") is not None

    def test_counts_add_up(self) -> None:
        """Each addition counts once, for its own scope."""
        with self.store.transaction() as transaction:
            transaction.add_usage("s", Usage(1, 2, 3, 4))
            transaction.add_usage("other", Usage(misses=1))
        with self.store.transaction() as transaction:
            transaction.add_usage("s", Usage(10, 20, 30, 2**53))
        assert self.store.usage("s") == Usage(11, 22, 33, 4 + 2**53)
        assert self.store.usage("other") == Usage(misses=1)

    def _claim_key(self, claim: StoredKey) -> None:
        with self.store.transaction() as transaction:
            assert transaction.claim_key(claim, expected=None)

    def _end_key(self, key: str, result: bytes, *, status: KeyStatus = KeyStatus.DONE, expires_at: int = 500) -> None:
        with self.store.transaction() as transaction:
            assert transaction.end_key(key, 5, "me", status=status, result=result, expires_at=expires_at)
