"""Groups: threads of one process that write at once share one transaction, and so one flush of the device.

A flush costs as much as the work of several transactions. So a block that ends while another thread
waits for its beginning does not commit: it hands the open transaction on, and waits. Who ends with
nobody behind, or last of a group that is full, commits for all. Each block after the first is a
savepoint: one that raises takes back its own changes and nobody else's. No call returns before the
common COMMIT did, one whose block raised included, since what it saw may have been another's
change; and if COMMIT fails, it is an error of all of them.

Threads begin in the order in which they came, and wait within the store's busy timeout. One thread
alone finds a free seat, begins and commits, and pays nothing for all this.

An interrupt (Ctrl-C, ``KeyboardInterrupt``) may come anywhere in this. What it tore apart is put
right by whoever it went through, or when the transaction is forgotten: nobody is kept waiting, and
each is told what became of its own.

Rejected: a thread that writes for all (a queue of closures). It needs no hand-over from thread to
thread, but then a block is no block: it runs elsewhere, with another's context, debugger and stack.
Group commit is DeWitt and others, "Implementation techniques for main memory database systems",
1984.
"""

from __future__ import annotations

import _thread
import contextlib
import sqlite3
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

from durable_agents.errors import DatabaseLocked, DatabaseUnavailable, RecoveryError, StoreError

if TYPE_CHECKING:
    from durable_agents.store.sqlite.store import SqliteStore

MEMBERS_MAX: Final = 64
"""How many transactions share one commit at most."""

AGE_S_MAX: Final = 0.01
"""For how long after its beginning others may join a group, in seconds: with their own length, what others wait."""

END_S_MAX: Final = 30.0
"""How long a member waits for the end of its group, in seconds, unless the busy timeout is longer."""


class Group:
    """One common transaction on one connection, and who waits for its end."""

    __slots__ = ("_bells", "_until_s", "connection", "error", "has_ended", "members")

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Begin with nobody in it."""
        self.connection = connection
        self.members = 0
        self.error: RecoveryError | None = None
        self.has_ended = False
        self._until_s = time.monotonic() + AGE_S_MAX
        self._bells: list[_thread.LockType] = []

    @property
    def is_full(self) -> bool:
        """Whether nobody else may join."""
        return self.members >= MEMBERS_MAX or time.monotonic() > self._until_s

    def bell(self) -> _thread.LockType:
        """Return a lock that is let go when the group has ended. Asked for by whoever has the seat."""
        bell = _new_bell()
        self._bells.append(bell)
        return bell

    def end(self, error: RecoveryError | None) -> None:
        """Tell all who wait that it has ended, by an error or not."""
        self.error = error
        self.has_ended = True
        for bell in self._bells:
            bell.release()


class Groups:
    """The one seat at which the threads of a store write, the queue for it, and the group that is open there.

    Whoever wants to sit brings a *ticket*, a lock of its own: the bell that calls it from the
    queue, and the name under which it has the seat. So whatever an interrupt tore apart can be put
    right later, and putting it right twice is nothing. For that, a transaction in its block is
    watched: if an interrupt came before its end could begin, it is forsaken when it is forgotten.
    """

    __slots__ = ("_group", "_holder", "_mutex", "_queue", "_store", "_watch")

    def __init__(self, store: SqliteStore) -> None:
        """Prepare; nobody writes."""
        self._store = store
        self._mutex = _thread.allocate_lock()
        self._holder: _thread.LockType | None = None
        self._watch: weakref.ref[object] | None = None
        self._queue: deque[_thread.LockType] = deque()
        self._group: Group | None = None

    def join(self, ticket: _thread.LockType, transaction: object) -> Group:
        """Wait for the seat; begin a group, or join the one that is open. Raises DatabaseLocked or any StoreError."""
        try:
            self._sit_down(ticket)
            if self._group is None:
                self._group = self._begun()
            else:
                self._group.connection.execute("SAVEPOINT member")
            group = self._group
            self._watch = weakref.ref(transaction, lambda _: self.forsake(ticket, group))
        except BaseException as error:
            self._withdraw(ticket)
            self._advance(ticket)
            if isinstance(error, sqlite3.Error):
                raise self._store.translated(error) from error
            raise
        return group

    def leave(self, ticket: _thread.LockType, group: Group, error: BaseException | None) -> None:
        """End a block, keeping its changes or, if it raised ``error``, not; return when its group has ended.

        Raises a StoreError if that kept nothing, whatever the block raised.
        """
        try:
            self._watch = None
            self._settle(group, error)
            bell = self._advance(ticket)
        except BaseException:
            self.forsake(ticket, group)
            raise
        if error is not None and not isinstance(error, Exception):
            return  # whoever is interrupted waits for nobody
        if bell is not None:
            self._wait(group, bell)
        if group.error is not None and group.error is not error:
            raise group.error if bell is None else type(group.error)(*group.error.args) from group.error.__cause__

    def forsake(self, ticket: _thread.LockType, group: Group) -> None:
        """Put right what an interrupt left: who has the seat under this ticket gives it up, and keeps nothing.

        The connection is not used again. Does nothing the second time, where nothing is wrong, and
        in a forked child.
        """
        if self._holder is not ticket or self._store.groups is not self:
            return
        self._group = self._watch = None
        if not group.has_ended:
            text = _INTERRUPTED if group.connection.in_transaction else _UNKNOWN
            with contextlib.suppress(sqlite3.Error):  # it is closed when it is forgotten, which rolls back too
                group.connection.rollback()
            group.end(DatabaseUnavailable(text))
        self._stand_up(ticket)

    def _begun(self) -> Group:
        connection = self._store.borrow()
        try:
            self._store.begin(connection)
            return Group(connection)
        except BaseException:
            self._let_go(connection)
            raise

    def _settle(self, group: Group, error: BaseException | None) -> None:
        """Keep a member's changes in the group, or take them back."""
        if not group.connection.in_transaction:  # SQLite rolls back by itself after some errors: a full disk, say
            self._end(group, error if isinstance(error, RecoveryError) else StoreError(_ROLLED_BACK))
        elif error is not None and not group.members:
            self._end(group, None)
        elif group.members:
            self._settle_savepoint(group, is_kept=error is None)
        group.members += 1

    def _settle_savepoint(self, group: Group, *, is_kept: bool) -> None:
        try:
            if not is_kept:
                group.connection.execute("ROLLBACK TO member")
            group.connection.execute("RELEASE member")
        except sqlite3.Error as failure:
            self._end(group, self._store.translated(failure))

    def _advance(self, ticket: _thread.LockType) -> _thread.LockType | None:
        """Let the next one join the group and return a bell for its end; or end it and give the seat on.

        Does nothing for a ticket that has not the seat.
        """
        if self._holder is not ticket:
            return None
        group = self._group
        if group is not None:
            with self._mutex:
                if self._queue and not group.is_full:
                    bell = group.bell()
                    self._call_next()
                    return bell
            self._commit(group)
        self._stand_up(ticket)
        return None

    def _commit(self, group: Group) -> None:
        error: RecoveryError | None = None
        try:
            group.connection.execute("COMMIT")
        except sqlite3.Error as failure:
            error = self._store.translated(failure)
            error.__cause__ = failure
        finally:  # an interrupt too ends the group, by what became of the transaction
            if error is None and group.connection.in_transaction:
                error = DatabaseUnavailable(_INTERRUPTED)
            self._end(group, error)

    def _end(self, group: Group, error: RecoveryError | None) -> None:
        self._group = None
        self._let_go(group.connection)
        group.end(error)

    def _let_go(self, connection: sqlite3.Connection) -> None:
        """Give a connection back with no transaction on it, or close it."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            connection.close()  # which rolls back too; the caller is told of the error that came first
        else:
            self._store.give_back(connection)

    def _sit_down(self, ticket: _thread.LockType) -> None:
        """Take the seat, when it is this thread's turn. Raises DatabaseLocked."""
        with self._mutex:
            if self._holder is None:
                self._holder = ticket
                return
            ticket.acquire()
            self._queue.append(ticket)
        timeout_s = self._store.factory.busy_timeout_s
        if not ticket.acquire(timeout=timeout_s) and self._withdraw(ticket):
            message = (
                f"Expected to write to {self._store.path} within {timeout_s:g} s but another thread of this process "
                "kept it; end its transaction, or raise busy_timeout_s."
            )
            raise DatabaseLocked(message)

    def _withdraw(self, ticket: _thread.LockType) -> bool:
        """Leave the queue; False for one who is not in it, or was given the seat in the meantime."""
        with self._mutex:
            if ticket not in self._queue:
                return False
            self._queue.remove(ticket)
            return True

    def _stand_up(self, ticket: _thread.LockType) -> None:
        with self._mutex:
            if self._holder is not ticket:
                return
            if self._queue:
                self._call_next()
            else:
                self._holder = None

    def _call_next(self) -> None:
        """Give the seat to the first of the queue. The mutex is held, and no interrupt comes before the bell has rung.

        Python looks for signals after a call and not between two plain steps, so what is seated has
        been called.
        """
        self._holder = ticket = self._queue[0]
        try:
            ticket.release()
        finally:
            self._queue.popleft()

    def _wait(self, group: Group, bell: _thread.LockType) -> None:
        timeout_s = max(self._store.factory.busy_timeout_s, END_S_MAX)
        if not bell.acquire(timeout=timeout_s) and not group.has_ended:
            message = (
                f"Expected the commit of several threads on {self._store.path} within {timeout_s:g} s but one of them "
                "does not end its transaction; read what became of this one before repeating it."
            )
            raise DatabaseUnavailable(message)


_ROLLED_BACK: Final = (
    "Expected the transaction to be there still but SQLite had to roll it back, with the others of its group; do it "
    "again, and let no block go on after an error of the store."
)
_INTERRUPTED: Final = (
    "Expected the commit of several threads to end but the thread that did it was interrupted; nothing was kept, so do "
    "it again."
)
_UNKNOWN: Final = (
    "Expected the commit of several threads to end but the thread that did it was interrupted when it may have been "
    "done; read what became of this transaction before you repeat it."
)


def _new_bell() -> _thread.LockType:
    bell = _thread.allocate_lock()
    bell.acquire()
    return bell
