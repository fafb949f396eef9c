"""Hit counters: counts of reuse, kept in memory and flushed to the store from time to time.

A hit must not write: a commit costs a hundred times as much as the hit. So counts wait in memory
and are flushed together: after every ``EVENTS_MAX`` events, when their owner closes, and at the end
of the interpreter. Counts of an owner that was garbage-collected go to the next owner of its scope
in this process, or wait for that end.

**What is lost.** A killed process (or one that ends by ``os._exit``) loses at most ``EVENTS_MAX``
events of each cache or ledger, and as many more for each time that the database was being written
or refused a flush. The end of the interpreter waits for locked databases ``EXIT_S_MAX`` seconds in
all; counts that are not flushed by then are lost, as are those for a file that was removed or a
store that was closed before its owner. A count is never added twice, nor by a forked child.
Statistics are the flushed counts plus those of the object that is asked.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.clock import Microseconds
from durable_agents.errors import RecoveryError, StoreError
from durable_agents.store import Place, Store
from durable_agents.store.rows import Usage

if TYPE_CHECKING:
    from durable_agents.clock import Clock

EVENTS_MAX: Final = 500
"""How many events wait in memory before a flush."""
EXIT_S_MAX: Final = 2.0
"""How long the end of the interpreter waits for locked databases, in seconds, in all."""

_LEFT_MAX: Final = 100


class HitCounters:
    """The counts of one scope. May be shared by threads."""

    __slots__ = ("__weakref__", "_clock", "_due", "_events", "_lock", "_scope", "_store", "_used", "_waiting")

    def __init__(self, store: Store, scope: str, clock: Clock) -> None:
        """Begin with the counts that a collected owner of this scope left."""
        self._store = store
        self._scope = scope
        self._clock = clock
        self._lock = threading.Lock()
        self._reset()
        for left in _taken(store.place, scope):
            self._put_back(left.waiting, left.used, left.events)
        self._due = EVENTS_MAX
        _COUNTERS.add(self)

    def _reset(self) -> None:
        self._waiting = [0, 0, 0, 0]  # in the order of Usage
        self._used: dict[str, Microseconds] = {}
        self._events = 0
        self._due = EVENTS_MAX

    def __del__(self) -> None:
        """Leave the counts to the next owner.

        They are not flushed here: this thread may be inside a transaction.
        """
        if self._events and not self._store.is_closed:
            _LEFT.append(_Left(self._store.place, self._scope, Usage(*self._waiting), self._used, self._events))

    def hit(self, *, tokens_saved: int = 0, time_saved_us: int = 0, used: str | None = None) -> None:
        """Count a reuse. ``used`` is the stored name of a key that may be evicted."""
        with self._lock:
            waiting = self._waiting
            waiting[0] += 1
            waiting[2] += tokens_saved
            waiting[3] += time_saved_us
            if used is not None:
                self._used[used] = self._clock.now()
            self._events += 1
        if self._events >= self._due:
            self._try()

    def miss(self) -> None:
        """Count an execution."""
        with self._lock:
            self._waiting[1] += 1
            self._events += 1
        if self._events >= self._due:
            self._try()

    def flush(self) -> None:
        """Flush the counts, in one commit. After a StoreError they go on waiting."""
        self._flush_to(self._store)

    def flush_hurriedly(self, deadline_s: float) -> None:
        """Flush, waiting for the database at most until ``deadline_s`` on the monotonic clock."""
        if self._events and not self._store.is_closed:
            with _hurried(self._store.place, deadline_s) as store:
                self._flush_to(store)

    def _flush_to(self, store: Store) -> None:
        with self._lock:
            added, used, events = Usage(*self._waiting), self._used, self._events
            self._reset()
        if not events:
            return
        try:
            _add(store, self._scope, added, used)
        except BaseException:
            self._put_back(added, used, events)
            raise

    def total(self) -> Usage:
        """Return the flushed counts, those of this object included. Raises any StoreError."""
        self.flush()
        return self._store.usage(self._scope)

    def forget(self) -> None:
        """Drop all waiting counts."""
        self._lock = threading.Lock()
        self._reset()

    def _try(self) -> None:
        """Flush, unless the database is being written: a hit waits for no writer.

        Then, or when the database refuses, the next attempt is put off.
        """
        if self._events < _PUT_OFF_MAX and not self._store.can_write_now():
            self._due = self._events + EVENTS_MAX
            return
        with contextlib.suppress(StoreError):
            self.flush()

    def _put_back(self, added: Usage, used: dict[str, Microseconds], events: int) -> None:
        with self._lock:
            for place, count in enumerate(msgspec.structs.astuple(added)):
                self._waiting[place] += count
            self._used = {} if events >= _USED_EVENTS_MAX else used | self._used
            self._events += events
            self._due = self._events + EVENTS_MAX


class _Left(msgspec.Struct, frozen=True):
    """The waiting counts of a collected owner."""

    place: Place
    scope: str
    waiting: Usage
    used: dict[str, Microseconds]
    events: int


_USED_EVENTS_MAX: Final = 20 * EVENTS_MAX
_PUT_OFF_MAX: Final = 20 * EVENTS_MAX
"""After how many events a flush waits for other writers instead of being put off."""
_COUNTERS: Final[weakref.WeakSet[HitCounters]] = weakref.WeakSet()
_LEFT: Final[collections.deque[_Left]] = collections.deque(maxlen=_LEFT_MAX)


def _taken(place: Place, scope: str) -> list[_Left]:
    """Take the counts that were left for this place and scope."""
    taken: list[_Left] = []
    for _ in range(len(_LEFT)):
        with contextlib.suppress(IndexError):  # another thread may take, too
            left = _LEFT.popleft()
            (taken if (left.place, left.scope) == (place, scope) else _LEFT).append(left)
    return taken


def _add(store: Store, scope: str, added: Usage, used: dict[str, Microseconds]) -> None:
    with store.transaction() as transaction:
        transaction.add_usage(scope, added)
        transaction.touch_keys(used)


def _hurried(place: Place, deadline_s: float) -> contextlib.closing[Store]:
    """Open a store at the place, whose waits end at the deadline.

    Raises DatabaseUnavailable if the file is gone.
    """
    return contextlib.closing(place.reopened(max(0.0, deadline_s - time.monotonic())))


def _forget_inherited() -> None:
    """In a forked child, drop the waiting counts: the parent flushes them."""
    _LEFT.clear()
    for counter in list(_COUNTERS):
        counter.forget()


os.register_at_fork(after_in_child=_forget_inherited)


def _flush_all() -> None:
    """At the end of the interpreter, flush the counts of owners that were never closed."""
    deadline_s = time.monotonic() + EXIT_S_MAX
    for counter in list(_COUNTERS):
        with contextlib.suppress(RecoveryError):
            counter.flush_hurriedly(deadline_s)
    while _LEFT:
        left = _LEFT.popleft()
        with contextlib.suppress(RecoveryError), _hurried(left.place, deadline_s) as store:
            _add(store, left.scope, left.waiting, left.used)


atexit.register(_flush_all)
