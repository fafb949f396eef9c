"""Counts of what was reused and what that saved, kept in memory and added to the store now and then.

A hit must not write: a commit would cost a hundred times what the hit costs. So counts wait in memory and are added
together, after every ``EVENTS_MAX`` events, when their owner closes, and when the interpreter ends. A process that is
killed (or ends by ``os._exit``) takes with it what has waited: at most ``EVENTS_MAX`` events of each cache or ledger,
and as many more for each time that the database refused to take them. A count is never added twice, not by a forked
child either; whoever asks for the statistics gets what is stored and what waits in this process.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final

import msgspec

from recovery.errors import RecoveryError, StoreError
from recovery.store.rows import Usage

if TYPE_CHECKING:
    from recovery.clock import Clock, Microseconds
    from recovery.store import Store

EVENTS_MAX: Final = 500
"""How many events wait in memory at most, and so how many a kill can lose."""


class UsageCounter:
    """The counts of one scope. May be shared by threads."""

    __slots__ = ("__weakref__", "_clock", "_due", "_events", "_lock", "_scope", "_store", "_used", "_waiting")

    def __init__(self, store: Store, scope: str, clock: Clock) -> None:
        """Prepare; nothing waits yet."""
        self._store = store
        self._scope = scope
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting = [0, 0, 0, 0]
        self._used: dict[str, Microseconds] = {}
        self._events = 0
        self._due = EVENTS_MAX
        _COUNTERS.add(self)

    def hit(self, *, tokens_saved: int = 0, time_saved_us: int = 0, used: str | None = None) -> None:
        """Count a result that was handed out again. ``used`` is the stored name of a key that may be evicted."""
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
        """Add what waits to the store, in one commit. Raises any StoreError, and then what waits goes on waiting."""
        with self._lock:
            added, used, events = Usage(*self._waiting), self._used, self._events
            self._waiting, self._used, self._events, self._due = [0, 0, 0, 0], {}, 0, EVENTS_MAX
        if not events:
            return
        try:
            with self._store.transaction() as transaction:
                transaction.add_usage(self._scope, added)
                transaction.touch_keys(used)
        except BaseException:
            self._put_back(added, used, events)
            raise

    def total(self) -> Usage:
        """Return what is stored and what waits in this process. Raises any StoreError."""
        self.flush()
        return self._store.usage(self._scope)

    def forget(self) -> None:
        """Begin anew with nothing."""
        self._lock = threading.Lock()
        self._waiting, self._used, self._events, self._due = [0, 0, 0, 0], {}, 0, EVENTS_MAX

    def _try(self) -> None:
        """Flush; a result is handed out all the same if the database refuses, and the next attempt is put off."""
        with contextlib.suppress(StoreError):
            self.flush()

    def _put_back(self, added: Usage, used: dict[str, Microseconds], events: int) -> None:
        with self._lock:
            for place, count in enumerate(msgspec.structs.astuple(added)):
                self._waiting[place] += count
            self._used = {} if events >= _USED_EVENTS_MAX else used | self._used
            self._events += events
            self._due = self._events + EVENTS_MAX


_USED_EVENTS_MAX: Final = 20 * EVENTS_MAX
_COUNTERS: Final[weakref.WeakSet[UsageCounter]] = weakref.WeakSet()


def _forget_inherited() -> None:
    """In a forked child, drop what waits: it is the parent's to add."""
    for counter in list(_COUNTERS):
        counter.forget()


os.register_at_fork(after_in_child=_forget_inherited)


def _flush_all() -> None:
    """At the end of the interpreter, add what waits for caches that nobody closed: a client library's are such."""
    for counter in list(_COUNTERS):
        with contextlib.suppress(RecoveryError):
            counter.flush()


atexit.register(_flush_all)
