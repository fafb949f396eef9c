"""Claims: of all processes that want what is under a key, one executes.

``begin`` answers with one of three: *mine* (execute, then ``finish`` or ``abandon``), *done* (here
is the result) or *busy* (somebody executes; ask again). It decides under the write lock, so the
looking and the claiming are one step (D2), and an expired result is claimed as a missing one is
(D7).

A claim is a lease with a fencing token: it has an expiry, it is renewed while its owner works, and
only its own token can end it. It ends early when its owner is dead, which the kernel knows
(``durable_agents.once.owner_lock``); so of those who wait one takes over at once, and after the
expiry where nobody can tell. A token is the moment of its grant in microseconds, and more than the
key's last one: it rises even across the deletion of the row.

A wall clock that is set back makes results and the claims of owners that cannot be asked last
longer by as much; one that is set forward ends claims early, and their owners are told when they
come to the end.

An execution has a time limit, after which its claim is not renewed any more: one that hangs does
not keep its key.
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

from durable_agents.clock import Microseconds, SystemClock, is_duration, microseconds
from durable_agents.errors import ExecutionLost, InProgress, InvalidSetting, RecursiveExecution, RequestConflict
from durable_agents.once.owner_lock import ProcessPresence
from durable_agents.service import PeriodicService
from durable_agents.store.rows import KeyStatus, StoredKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from durable_agents.clock import Clock
    from durable_agents.store import Place, Store, Transaction

    Guard: TypeAlias = Callable[[Transaction], None]

CLAIM_CRASH_POINTS: Final = (
    "recovery.claim.before_claim",
    "recovery.claim.after_claim_update",
    "recovery.claim.after_claim",
)
END_CRASH_POINTS: Final = (
    "recovery.claim.before_end",
    "recovery.claim.after_end_update",
    "recovery.claim.after_end",
)
"""The audit events of claiming a key and of ending a claim, in this order; the argument is the key.

The middle one of each three lies between the statement and its COMMIT.
"""

BEFORE_CLAIM, AFTER_CLAIM_UPDATE, AFTER_CLAIM = CLAIM_CRASH_POINTS
BEFORE_END, AFTER_END_UPDATE, AFTER_END = END_CRASH_POINTS

CLAIM_S: Final = 30.0
"""How long a claim lasts without a renewal, in seconds, unless told otherwise."""
EXECUTION_S_MAX: Final = 3600.0
"""How long an execution keeps its claim, in seconds, unless told otherwise."""

_DURATION_S_MAX: Final = 100 * 365 * 24 * 3600.0
_SCOPE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RENEWAL_SHARE: Final = 0.25
_MARGIN_SHARE: Final = 0.1
_POLL_S_FIRST: Final = 0.001
_POLL_S_MAX: Final = 0.02
_POLL_GROWTH: Final = 1.5

_EXECUTING: ContextVar[tuple[tuple[Place, weakref.ref[Mine]], ...]] = ContextVar("executing", default=())
"""What the caller executes under: the places of the stores and the claims, those of them that somebody still holds."""


class Mine(msgspec.Struct, frozen=True, weakref=True):
    """The claim is the caller's. ``is_in_doubt``: somebody began before, and what came of that is not known.

    The claim is renewed as long as this is held: an interrupt that comes before the execution
    leaves nothing behind.
    """

    key: str
    token: int
    owner: str
    is_in_doubt: bool


class Done(msgspec.Struct, frozen=True):
    """Somebody has ended, with this result."""

    result: bytes
    has_failed: bool = False


class Busy(msgspec.Struct, frozen=True):
    """Somebody executes, as far as one can tell."""

    owner: str
    claim_expires_at: Microseconds


class _Active(msgspec.Struct):
    """A claim of this process, under way; times are the monotonic clock's."""

    mine: weakref.ref[Mine]
    ends_at: Microseconds
    trusted_until: Microseconds
    is_lost: bool = False


class ClaimPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How the keys of a scope are claimed; all durations in seconds.

    ``keeps_doubt``: an execution without an end is in doubt for its own request only, and no other
    may have the key. ``is_evictable``: results may be evicted by size.
    """

    scope: str
    claim_s: float = CLAIM_S
    execution_s_max: float | None = EXECUTION_S_MAX
    keeps_doubt: bool = False
    is_evictable: bool = False


class Claims:
    """The keys of one scope. May be shared by threads; the store is the caller's. Raises InvalidSetting."""

    def __init__(self, store: Store, policy: ClaimPolicy, clock: Clock | None = None) -> None:
        """Prepare; the first claim makes this process present and starts the renewals."""
        _check_scope(policy.scope)
        check_duration("claim_s", policy.claim_s)
        if policy.execution_s_max is not None:
            check_duration("execution_s_max", policy.execution_s_max)
        self._store = store
        self._policy = policy
        self._clock: Clock = SystemClock() if clock is None else clock
        path = store.place.path
        self._presence = None if path is None else ProcessPresence(path)
        self._place = store.place
        self._stranger = f"?.{secrets.token_hex(8)}"
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._active: dict[str, _Active] = {}
        self._renewals: PeriodicService | None = None

    @property
    def store(self) -> Store:
        """Where the keys are."""
        return self._store

    def close(self) -> None:
        """Stop renewing, and be gone for those who wait for a claim of this process. Closing twice is fine."""
        renewals, self._renewals = self._renewals, None
        if renewals is not None and self._process == os.getpid():
            renewals.stop()
        if self._presence is not None:
            self._presence.leave()

    def stored(self, key: str) -> str:
        """Return the name that a key has in the store: keys of different scopes never meet."""
        return f"{self._policy.scope}/{key}"

    def begin(
        self, key: str, request_hash: str, *, guard: Guard | None = None, owner: str | None = None
    ) -> Mine | Done | Busy:
        """Claim the key, or say who has it or what came of it. ``owner`` is a presence other than this process's.

        ``guard`` is called in the transaction and may raise. Raises RequestConflict, or any
        StoreError.
        """
        name = self.stored(key)
        owner = self._owner() if owner is None else owner
        sys.audit(BEFORE_CLAIM, name)
        found: Mine | Done | Busy | None = None
        try:
            with self._store.transaction() as transaction:
                if guard is not None:
                    guard(transaction)
                found = self._begin(transaction, name, request_hash, owner)
                sys.audit(AFTER_CLAIM_UPDATE, name)
            sys.audit(AFTER_CLAIM, name)
        except BaseException:
            if isinstance(found, Mine):
                self.let_go(found)
            raise
        return found

    def _begin(self, transaction: Transaction, name: str, request_hash: str, owner: str) -> Mine | Done | Busy:
        began, now = self._clock.monotonic(), self._clock.now()  # after the wait for other writers
        claim, row = self._claim(name, request_hash, owner, None, now), None
        if not transaction.claim_key(claim, expected=None):  # mostly there is no row, so that is tried first
            row = transaction.key(name)
            found = None if row is None else self._judge(row, request_hash, now)
            if found is not None:
                return found
            claim = self._claim(name, request_hash, owner, row, now)
            if not transaction.claim_key(claim, expected=row):
                return Busy("?", now)
        mine = Mine(name, claim.token, owner, row is not None and row.status not in _ENDED)
        self._activate(mine, began)  # before the COMMIT, or another thread would take the claim for a forgotten one
        return mine

    def settle(
        self,
        key: str,
        request_hash: str,
        *,
        wait_s: float,
        guard: Guard | None = None,
        owner: str | None = None,
    ) -> Mine | Done:
        """Claim the key or wait for the result, at most ``wait_s`` seconds.

        Raises InProgress when the wait is over, RecursiveExecution when it would be for the caller
        itself, and whatever ``begin`` raises.
        """
        if self._is_executing(self.stored(key)):
            message = f"Expected a key other than {key!r}, under which the caller executes; use another key inside."
            raise RecursiveExecution(message)
        deadline = time.monotonic() + wait_s
        while True:
            found = self.begin(key, request_hash, guard=guard, owner=owner)
            if not isinstance(found, Busy):
                return found
            if (done := self._wait(key, request_hash, deadline, wait_s)) is not None:
                return done

    def ended(self, key: str, request_hash: str, *, wait_s: float) -> Done | None:
        """Wait for the end of whatever executes under the key, and return its result; None if there is none.

        Raises InProgress, RequestConflict, or any StoreError.
        """
        return self._wait(key, request_hash, time.monotonic() + wait_s, wait_s)

    def _wait(self, key: str, request_hash: str, deadline: float, wait_s: float) -> Done | None:
        delay_s = _POLL_S_FIRST
        while isinstance(seen := self.look(key, request_hash), Busy):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise _in_progress(key, seen, wait_s)
            time.sleep(min(delay_s, left_s))  # sleeps because another process ends, and nothing tells of it
            delay_s = min(delay_s * _POLL_GROWTH, _POLL_S_MAX)
        return seen

    def look(self, key: str, request_hash: str) -> Done | Busy | None:
        """Read how the key is, without claiming it; None if it is free. Raises RequestConflict, or any StoreError."""
        row = self._store.key(self.stored(key))
        return None if row is None else self._judge(row, request_hash, self._clock.now())

    def check(self, mine: Mine) -> None:
        """Raise ExecutionLost if the caller must not trust its claim any more by its own clock; asks nobody."""
        active = self._active.get(mine.key)
        if active is None or active.mine() != mine or active.is_lost or self._clock.monotonic() >= active.trusted_until:
            raise _lost(mine)

    def finish(
        self,
        mine: Mine,
        result: bytes,
        *,
        ttl_s: float,
        has_failed: bool = False,
        guard: Guard | None = None,
    ) -> None:
        """Record the result. Raises ExecutionLost if somebody has claimed the key since, or any StoreError."""
        status = KeyStatus.FAILED if has_failed else KeyStatus.DONE
        expires_at = self._clock.now() + microseconds(ttl_s)
        self._end(mine, status, result, expires_at, guard)

    def doubt(self, mine: Mine) -> None:
        """End the claim without a result: what came of the execution is not known. Raises as ``finish`` does."""
        self._end(mine, KeyStatus.IN_DOUBT, None, None, None)

    def abandon(self, mine: Mine) -> None:
        """End the claim as if it had never been: the next caller executes. Raises any StoreError.

        A result that was recorded all the same, before whatever went wrong, stays: others may have
        it already.
        """
        self.let_go(mine)
        with self._store.transaction() as transaction:
            transaction.delete_key(mine.key, mine.token, mine.owner, status=KeyStatus.EXECUTING)

    @contextlib.contextmanager
    def executing(self, mine: Mine) -> Iterator[None]:
        """Return the block in which the caller executes: asking for the same key in it raises."""
        around = tuple(each for each in _EXECUTING.get() if each[1]() is not None)
        token = _EXECUTING.set((*around, (self._place, weakref.ref(mine))))
        try:
            yield
        finally:
            _EXECUTING.reset(token)

    def _is_executing(self, name: str) -> bool:
        around = ((place, claim()) for place, claim in _EXECUTING.get())
        return any(place == self._place and mine is not None and mine.key == name for place, mine in around)

    def let_go(self, mine: Mine) -> None:
        """Renew the claim no more; for others it ends by itself."""
        with self._lock:
            active = self._active.get(mine.key)
            if active is not None and active.mine() == mine:
                del self._active[mine.key]

    def renew(self, now: Microseconds | None = None) -> None:  # noqa: ARG002 - the interface of what is periodic
        """Renew the claims under way that are not fresh and within their time limits. Raises any StoreError."""
        began = self._clock.monotonic()
        due = began + microseconds(self._policy.claim_s * (1 - _MARGIN_SHARE - _RENEWAL_SHARE / 2))
        with self._lock:
            self._active = {key: each for key, each in self._active.items() if each.mine() is not None}
            alive = [(each, each.mine()) for each in self._active.values() if began < each.ends_at]
        active = [(each, mine) for each, mine in alive if mine is not None and each.trusted_until < due]
        if not active:
            return
        with self._store.transaction() as transaction:
            expires_at = self._clock.now() + microseconds(self._policy.claim_s)
            held = [
                transaction.renew_claim(mine.key, mine.token, mine.owner, expires_at=expires_at) for _, mine in active
            ]
        for (each, _), is_held in zip(active, held, strict=True):
            each.is_lost = not is_held
            each.trusted_until = self._trusted_until(began)

    def _end(
        self, mine: Mine, status: KeyStatus, result: bytes | None, expires_at: int | None, guard: Guard | None
    ) -> None:
        sys.audit(BEFORE_END, mine.key)
        try:
            with self._store.transaction() as transaction:
                if guard is not None:
                    guard(transaction)
                place = (mine.key, mine.token, mine.owner)
                if not transaction.end_key(*place, status=status, result=result, expires_at=expires_at):
                    raise _lost(mine)
                sys.audit(AFTER_END_UPDATE, mine.key)
        finally:
            self.let_go(mine)
        sys.audit(AFTER_END, mine.key)

    def _judge(self, row: StoredKey, request_hash: str, now: Microseconds) -> Done | Busy | None:
        """Return what a row means for this request now; None where it may be claimed. Raises RequestConflict."""
        has_ended = row.expires_at is not None and row.result is not None
        if has_ended and now >= (row.expires_at or 0):
            return None
        is_held = row.status is KeyStatus.EXECUTING and self._is_held(row, now)
        if row.request_hash != request_hash and (has_ended or is_held or self._policy.keeps_doubt):
            message = (
                f"Expected the key {row.key!r} to be of the request with the hash {request_hash} but it is of another, "
                f"{row.request_hash}; use one key for one request."
            )
            raise RequestConflict(message)
        if has_ended:
            return Done(row.result or b"", row.status is KeyStatus.FAILED)
        return Busy(row.owner, row.claim_expires_at or 0) if is_held else None

    def _is_held(self, row: StoredKey, now: Microseconds) -> bool:
        """Tell whether somebody may be executing: not past the expiry, and not by somebody who is known to be gone."""
        if row.claim_expires_at is None or now >= row.claim_expires_at:
            return False
        if self._presence is None:
            return row.owner != self._stranger or self._is_active(row.key)
        presence = self._presence.get()
        if row.owner == presence.name:
            return self._is_active(row.key)  # an end that the database refused leaves a claim that nobody has
        return presence.is_alive(row.owner)

    def _is_active(self, name: str) -> bool:
        active = self._active.get(name)
        return active is not None and active.mine() is not None

    def _claim(self, name: str, request_hash: str, owner: str, row: StoredKey | None, now: Microseconds) -> StoredKey:
        return StoredKey(
            key=name,
            scope=self._policy.scope,
            request_hash=request_hash,
            status=KeyStatus.EXECUTING,
            token=max(now, 1, 0 if row is None else row.token + 1),
            owner=owner,
            claim_expires_at=now + microseconds(self._policy.claim_s),
            expires_at=None,
            used_at=now if self._policy.is_evictable else None,
            created_at=now,
            result=None,
        )

    def _activate(self, mine: Mine, began: Microseconds) -> None:
        limit_s = self._policy.execution_s_max
        ends_at = began + microseconds(_DURATION_S_MAX if limit_s is None else limit_s)
        with self._lock:
            if self._process != os.getpid():
                self._process, self._renewals, self._active = os.getpid(), None, {}
            self._active[mine.key] = _Active(weakref.ref(mine), ends_at, self._trusted_until(began))
            if self._renewals is None:
                interval_s = self._policy.claim_s * _RENEWAL_SHARE
                self._renewals = PeriodicService(self.renew, interval_s=interval_s, name="renewals of claims")
                self._renewals.start()

    def _trusted_until(self, began: Microseconds) -> Microseconds:
        return began + microseconds(self._policy.claim_s * (1 - _MARGIN_SHARE))

    def _owner(self) -> str:
        return self._stranger if self._presence is None else self._presence.get().name


_ENDED: Final = frozenset({KeyStatus.DONE, KeyStatus.FAILED})


def check_duration(name: str, duration_s: float, *, least_s: float = 0.001) -> None:
    """Raise InvalidSetting unless this is a length of time, from ``least_s`` seconds to a hundred years."""
    if not is_duration(duration_s, least_s, _DURATION_S_MAX):
        message = f"Expected {name} of {least_s:g} to {_DURATION_S_MAX:g} s but got {duration_s!r:.80}; give seconds."
        raise InvalidSetting(message)


def _check_scope(scope: str) -> None:
    """Raise InvalidSetting unless the scope can be a part of a key and the name of a folder."""
    if not isinstance(scope, str) or _SCOPE.fullmatch(scope) is None:
        message = f"Expected scope to be 1 to 64 letters, digits, '-' or '_' but got {scope!r}; name its use."
        raise InvalidSetting(message)


def _in_progress(key: str, busy: Busy, wait_s: float) -> InProgress:
    process = busy.owner.rpartition(".")[2]
    return InProgress(
        f"Expected the execution under {key!r} to end within {wait_s:g} s but process {process} is still at it; "
        "ask again later, or wait longer."
    )


def _lost(mine: Mine) -> ExecutionLost:
    return ExecutionLost(
        f"Expected the claim on {mine.key!r} with token {mine.token} to be held but it ran out, or somebody has "
        "claimed the key since; nothing was recorded, ask for the result under the key."
    )
