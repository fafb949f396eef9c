"""Claims on idempotency keys: of all processes that ask for a key, one executes.

``begin`` has three answers: a KeyClaim (execute, then ``finish`` or ``abandon``), Done (here is the
result) or Busy (another caller executes; ask again). It reads and claims under the write lock, in
one step (D2). An expired result is claimed like a missing one (D7).

A key's claim (``durable_agents.claim``) is renewed while its owner executes. It ends early when the
kernel says that its owner is dead (``durable_agents.once.owner_lock``): then one of the waiting
callers takes over at once. Where nobody can tell, it ends at its expiry. Its token is the moment of
the grant in microseconds, or one more than the key's last token: it rises even across the deletion
of the row.

After a wall clock is set back, results and claims last longer by as much. After it is set forward,
claims end early, and their owners are told at the end of their execution.

An execution has a time limit, after which its claim is not renewed: a hanging one loses its key.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import threading
import time
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from durable_agents.claim import expires_at, lost, trusted_until
from durable_agents.clock import Microseconds, SystemClock, is_duration, microseconds
from durable_agents.errors import ExecutionLost, InProgress, InvalidSetting, RecursiveExecution, RequestConflict
from durable_agents.once.crash_points import OncePoint
from durable_agents.once.owner_lock import ProcessOwnerLock
from durable_agents.service import PeriodicService
from durable_agents.store.rows import KeyStatus, StoredKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from durable_agents.clock import Clock
    from durable_agents.store import Place, Store, Transaction

    Guard: TypeAlias = Callable[[Transaction], None]

CLAIM_S: Final = 30.0
"""The default length of a claim without a renewal, in seconds."""
EXECUTION_S_MAX: Final = 3600.0
"""How long an execution keeps its claim by default, in seconds."""
WAIT_S: Final = 60.0
"""How long a caller waits for another execution by default, in seconds."""

_DURATION_S_MAX: Final = 100 * 365 * 24 * 3600.0
_SCOPE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RENEWAL_SHARE: Final = 0.25
_POLL_S_FIRST: Final = 0.001
_POLL_S_MAX: Final = 0.02
_POLL_GROWTH: Final = 1.5
_PAGE_ROWS: Final = 1000
_ENDED: Final = frozenset({KeyStatus.DONE, KeyStatus.FAILED})

_EXECUTING: ContextVar[tuple[tuple[Place, weakref.ref[KeyClaim]], ...]] = ContextVar("executing", default=())
"""The claims under which the caller executes, each with the place of its store;
weak, so that ended ones vanish.
"""


class KeyClaim(msgspec.Struct, frozen=True, weakref=True):
    """A claim of the caller's.

    ``is_in_doubt`` says that an earlier execution began, and that its outcome is unknown. It is
    renewed for as long as this object exists: an interrupt that comes before the execution leaves
    no renewals behind.
    """

    key: str
    token: int
    owner: str
    is_in_doubt: bool


class Done(msgspec.Struct, frozen=True):
    """The recorded result of an execution that has ended."""

    result: bytes
    has_failed: bool = False


class Busy(msgspec.Struct, frozen=True):
    """Another caller holds the key, and may be executing."""

    owner: str
    claim_expires_at: Microseconds


class _Active(msgspec.Struct):
    """A claim of this process that is renewed. Times are the monotonic clock's."""

    claim: weakref.ref[KeyClaim]
    ends_at: Microseconds
    trusted_until: Microseconds
    is_lost: bool = False


class ClaimPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How the keys of a scope are claimed. Durations are seconds.

    ``keeps_doubt``: a key whose execution has no end is kept for its own request. ``is_evictable``:
    results may be evicted by size.
    """

    scope: str
    claim_s: float = CLAIM_S
    execution_s_max: float | None = EXECUTION_S_MAX
    keeps_doubt: bool = False
    is_evictable: bool = False


class KeyClaims:
    """The keys of one scope.

    May be shared by threads. The caller closes the store. Raises InvalidSetting.
    """

    def __init__(self, store: Store, policy: ClaimPolicy, clock: Clock | None = None) -> None:
        """Validate the policy.

        The first claim takes this process's owner lock and starts the renewals.
        """
        _check_scope(policy.scope)
        check_duration("claim_s", policy.claim_s)
        if policy.execution_s_max is not None:
            check_duration("execution_s_max", policy.execution_s_max)
        self._store = store
        self._policy = policy
        self._clock: Clock = SystemClock() if clock is None else clock
        self._prefix = f"{policy.scope}/"
        path = store.place.path
        self._owner_lock = None if path is None else ProcessOwnerLock(path)
        self._place = store.place
        self._stranger = f"?.{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._active: dict[str, _Active] = {}
        self._renewals: PeriodicService | None = None

    def close(self) -> None:
        """Stop the renewals and release the owner lock.

        Waiting callers take over. Closing twice is fine.
        """
        renewals, self._renewals = self._renewals, None
        if renewals is not None and self._process == os.getpid():
            renewals.stop()
        if self._owner_lock is not None:
            self._owner_lock.leave()

    def stored(self, key: str) -> str:
        """Return the name of a key in the store.

        Its scope keeps it apart from keys of other scopes.
        """
        return self._prefix + key

    def recorded(self, key: str, request_hash: str) -> bytes | None:
        """Return the result of a request by one read, or None.

        Raises RequestConflict, or any StoreError.
        """
        stored = self._store.result(self._prefix + key)
        if stored is None or stored.expires_at <= self._clock.now():
            return None
        if stored.request_hash != request_hash:
            self.look(key, request_hash)
            return None
        return stored.result

    def begin(
        self, key: str, request_hash: str, *, guard: Guard | None = None, owner: str | None = None
    ) -> KeyClaim | Done | Busy:
        """Claim the key, or tell who holds it or what its result is.

        ``owner`` names another owner lock than this process's. ``guard`` is called in the
        transaction and may raise. Raises RequestConflict, or any StoreError.
        """
        name = self.stored(key)
        owner = self._owner() if owner is None else owner
        sys.audit(OncePoint.BEFORE_CLAIM, name)
        found: KeyClaim | Done | Busy | None = None
        try:
            with self._store.transaction() as transaction:
                if guard is not None:
                    guard(transaction)
                found = self._begin(transaction, name, request_hash, owner)
                sys.audit(OncePoint.AFTER_CLAIM_UPDATE, name)
            sys.audit(OncePoint.AFTER_CLAIM, name)
        except BaseException:
            if isinstance(found, KeyClaim):
                self.let_go(found)
            raise
        return found

    def _begin(self, transaction: Transaction, name: str, request_hash: str, owner: str) -> KeyClaim | Done | Busy:
        began, now = self._clock.monotonic(), self._clock.now()  # after the wait for other writers
        wanted, row = self._row(name, request_hash, owner, None, now), None
        if not transaction.claim_key(wanted, expected=None):  # first the common case: no row
            row = transaction.key(name)
            found = None if row is None else self._judge(row, request_hash, now)
            if found is not None:
                return found
            wanted = self._row(name, request_hash, owner, row, now)
            if not transaction.claim_key(wanted, expected=row):
                return Busy("?", now)
        claim = KeyClaim(name, wanted.token, owner, row is not None and row.status not in _ENDED)
        self._activate(claim, began)  # before the COMMIT: other threads take an inactive claim of ours for abandoned
        return claim

    def settle(
        self,
        key: str,
        request_hash: str,
        *,
        wait_s: float,
        guard: Guard | None = None,
        owner: str | None = None,
    ) -> KeyClaim | Done:
        """Claim the key, or wait at most ``wait_s`` seconds for its result.

        Raises InProgress when the wait is over, RecursiveExecution when the caller itself executes
        under the key, and as ``begin`` does.
        """
        if self._is_executing(self.stored(key)):
            message = f"The key must not be the one under which the caller executes; got {key!r}. Use another inside."
            raise RecursiveExecution(message)
        deadline = time.monotonic() + wait_s
        while True:
            found = self.begin(key, request_hash, guard=guard, owner=owner)
            if not isinstance(found, Busy):
                return found
            if (done := self._wait(key, request_hash, deadline, wait_s)) is not None:
                return done

    def _wait(self, key: str, request_hash: str, deadline: float, wait_s: float) -> Done | None:
        """Wait while another caller executes; return the result, or None once the key is free."""
        delay_s = _POLL_S_FIRST
        while isinstance(seen := self.look(key, request_hash), Busy):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise _in_progress(key, seen, wait_s)
            time.sleep(min(delay_s, left_s))  # sleeps because the end of another process sends no signal
            delay_s = min(delay_s * _POLL_GROWTH, _POLL_S_MAX)
        return seen

    def look(self, key: str, request_hash: str) -> Done | Busy | None:
        """Return the state of a key, None if it is free. Raises RequestConflict or a StoreError."""
        row = self._store.key(self.stored(key))
        return None if row is None else self._judge(row, request_hash, self._clock.now())

    def check(self, claim: KeyClaim) -> None:
        """Raise ExecutionLost unless the caller's own clock still trusts the claim.

        Reads no database.
        """
        active = self._active.get(claim.key)
        now = self._clock.monotonic()
        if active is None or active.claim() != claim or active.is_lost or now >= active.trusted_until:
            raise _lost(claim)

    def finish(
        self,
        claim: KeyClaim,
        result: bytes,
        *,
        ttl_s: float,
        has_failed: bool = False,
        guard: Guard | None = None,
    ) -> None:
        """Record the result.

        Raises ExecutionLost if the key was claimed since, or any StoreError.
        """
        status = KeyStatus.FAILED if has_failed else KeyStatus.DONE
        self._end(claim, status, result, expires_at(self._clock.now(), ttl_s), guard)

    def finish_or_wait(
        self,
        claim: KeyClaim,
        result: bytes,
        request_hash: str,
        *,
        ttl_s: float,
        wait_s: float,
        has_failed: bool = False,
        guard: Guard | None = None,
    ) -> Done | None:
        """Record the result, or wait for that of the owner that has taken the claim over.

        Return the other owner's result, None if ours was recorded. Raises ExecutionLost if there is
        none either; InProgress; or as ``finish`` does.
        """
        try:
            self.finish(claim, result, ttl_s=ttl_s, has_failed=has_failed, guard=guard)
        except ExecutionLost:
            key = claim.key.removeprefix(self._prefix)
            other = self._wait(key, request_hash, time.monotonic() + wait_s, wait_s)
            if other is None:
                raise
            return other
        return None

    def doubt(self, claim: KeyClaim) -> None:
        """End the claim in doubt: the outcome of the execution is unknown.

        Raises as ``finish`` does.
        """
        self._end(claim, KeyStatus.IN_DOUBT, None, None, None)

    def abandon(self, claim: KeyClaim) -> None:
        """End the claim and free the key: the next caller executes. Raises any StoreError.

        If the result was recorded after all, before the error, it stays: others may have read it.
        """
        self.let_go(claim)
        with self._store.transaction() as transaction:
            transaction.delete_key(claim.key, claim.token, claim.owner, status=KeyStatus.EXECUTING)

    @contextlib.contextmanager
    def executing(self, claim: KeyClaim) -> Iterator[None]:
        """Return the block in which the caller executes: asking for the same key inside raises."""
        around = tuple(each for each in _EXECUTING.get() if each[1]() is not None)
        token = _EXECUTING.set((*around, (self._place, weakref.ref(claim))))
        try:
            yield
        finally:
            _EXECUTING.reset(token)

    def _is_executing(self, name: str) -> bool:
        around = ((place, claim()) for place, claim in _EXECUTING.get())
        return any(place == self._place and claim is not None and claim.key == name for place, claim in around)

    def discard_expired(self) -> int:
        """Delete expired results, in batches, and return how many. Raises any StoreError."""
        discarded, after = 0, 0
        while True:
            with self._store.transaction() as transaction:
                count, after = transaction.delete_expired_keys(
                    self._policy.scope, now=self._clock.now(), after=after, limit=_PAGE_ROWS
                )
            discarded += count
            if not after:
                return discarded

    def rows(self, status: KeyStatus) -> Iterator[StoredKey]:
        """Yield the rows of this scope with this status, page by page."""
        after = ""
        while page := self._store.keys(self._policy.scope, status, after=after, limit=_PAGE_ROWS):
            yield from page
            after = page[-1].key

    def let_go(self, claim: KeyClaim) -> None:
        """Stop renewing the claim; for others it ends at its expiry."""
        with self._lock:
            active = self._active.get(claim.key)
            if active is not None and active.claim() == claim:
                del self._active[claim.key]

    def renew(self, now: Microseconds | None = None) -> None:  # noqa: ARG002 - the interface of periodic services
        """Renew this process's claims that are due and within their time limits.

        Raises any StoreError.
        """
        length_s = self._policy.claim_s
        began = self._clock.monotonic()
        due = trusted_until(began, length_s) - microseconds(length_s * _RENEWAL_SHARE / 2)
        with self._lock:
            self._active = {key: each for key, each in self._active.items() if each.claim() is not None}
            alive = [(each, each.claim()) for each in self._active.values() if began < each.ends_at]
        active = [(each, claim) for each, claim in alive if claim is not None and each.trusted_until < due]
        if not active:
            return
        with self._store.transaction() as transaction:
            until = expires_at(self._clock.now(), length_s)
            held = [transaction.renew_claim(each.key, each.token, each.owner, expires_at=until) for _, each in active]
        for (each, _), is_held in zip(active, held, strict=True):
            if is_held:
                each.trusted_until = trusted_until(began, length_s)
            else:
                each.is_lost = True

    def _end(
        self, claim: KeyClaim, status: KeyStatus, result: bytes | None, ends_at: int | None, guard: Guard | None
    ) -> None:
        sys.audit(OncePoint.BEFORE_END, claim.key)
        try:
            with self._store.transaction() as transaction:
                if guard is not None:
                    guard(transaction)
                place = (claim.key, claim.token, claim.owner)
                if not transaction.end_key(*place, status=status, result=result, expires_at=ends_at):
                    raise _lost(claim)
                sys.audit(OncePoint.AFTER_END_UPDATE, claim.key)
        finally:
            self.let_go(claim)
        sys.audit(OncePoint.AFTER_END, claim.key)

    def _judge(self, row: StoredKey, request_hash: str, now: Microseconds) -> Done | Busy | None:
        """Return what a row means for this request now, or None if it may be claimed.

        Raises RequestConflict.
        """
        has_ended = row.expires_at is not None and row.result is not None
        if has_ended and now >= (row.expires_at or 0):
            return None
        is_held = row.status is KeyStatus.EXECUTING and self._is_held(row, now)
        if row.request_hash != request_hash and (has_ended or is_held or self._policy.keeps_doubt):
            message = (
                f"The key {row.key!r} must be used for one request, with the hash {row.request_hash}; got "
                f"{request_hash}. Use one key for one request."
            )
            raise RequestConflict(message)
        if has_ended:
            return Done(row.result or b"", row.status is KeyStatus.FAILED)
        return Busy(row.owner, row.claim_expires_at or 0) if is_held else None

    def _is_held(self, row: StoredKey, now: Microseconds) -> bool:
        """Whether the owner may be executing.

        Its claim has not expired, and it is not known to be dead.
        """
        if row.claim_expires_at is None or now >= row.claim_expires_at:
            return False
        if self._owner_lock is None:
            return row.owner != self._stranger or self._is_active(row.key)
        ours = self._owner_lock.get()
        if row.owner == ours.name:
            return self._is_active(row.key)  # if the database refused its end, nobody holds the claim
        return ours.is_alive(row.owner)

    def _is_active(self, name: str) -> bool:
        active = self._active.get(name)
        return active is not None and active.claim() is not None

    def _row(self, name: str, request_hash: str, owner: str, last: StoredKey | None, now: Microseconds) -> StoredKey:
        return StoredKey(
            key=name,
            scope=self._policy.scope,
            request_hash=request_hash,
            status=KeyStatus.EXECUTING,
            token=max(now, 1, 0 if last is None else last.token + 1),
            owner=owner,
            claim_expires_at=expires_at(now, self._policy.claim_s),
            expires_at=None,
            used_at=now if self._policy.is_evictable else None,
            created_at=now,
            result=None,
        )

    def _activate(self, claim: KeyClaim, began: Microseconds) -> None:
        limit_s = self._policy.execution_s_max
        ends_at = began + microseconds(_DURATION_S_MAX if limit_s is None else limit_s)
        with self._lock:
            if self._process != os.getpid():  # a forked child: the threads and claims are its parent's
                self._process, self._renewals, self._active = os.getpid(), None, {}
            self._active[claim.key] = _Active(weakref.ref(claim), ends_at, trusted_until(began, self._policy.claim_s))
            if self._renewals is None:
                interval_s = self._policy.claim_s * _RENEWAL_SHARE
                self._renewals = PeriodicService(self.renew, interval_s=interval_s, name="renewals of claims")
                self._renewals.start()

    def _owner(self) -> str:
        return self._stranger if self._owner_lock is None else self._owner_lock.get().name


def check_duration(name: str, duration_s: float, *, least_s: float = 0.001) -> None:
    """Raise InvalidSetting unless this is from ``least_s`` seconds to a hundred years."""
    if not is_duration(duration_s, least_s, _DURATION_S_MAX):
        message = f"{name} must be {least_s:g} to {_DURATION_S_MAX:g} s; got {duration_s!r:.80}. Give seconds."
        raise InvalidSetting(message)


def _check_scope(scope: str) -> None:
    """Raise InvalidSetting unless the scope can be part of a key and the name of a folder."""
    if not isinstance(scope, str) or _SCOPE.fullmatch(scope) is None:
        message = f"scope must be 1 to 64 letters, digits, '-' or '_'; got {scope!r}. Name its use."
        raise InvalidSetting(message)


def _in_progress(key: str, busy: Busy, wait_s: float) -> InProgress:
    process = busy.owner.rpartition(".")[2]
    return InProgress(
        f"The execution under {key!r} must end within {wait_s:g} s; got process {process} still at it. "
        "Ask again later, or wait longer."
    )


def _lost(claim: KeyClaim) -> ExecutionLost:
    state = "one that expired, or whose key was claimed since"
    fix = "Nothing was recorded; ask for the result under the key."
    return lost(ExecutionLost, f"The claim on {claim.key!r} with token {claim.token}", state, fix)
