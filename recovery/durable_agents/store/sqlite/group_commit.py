"""Group commit: threads that write at once share one transaction, and one flush of the device.

A flush costs as much as the work of several transactions. So a block that ends while another thread
waits to begin does not commit: it passes the open transaction on, and waits. A block that ends with
no thread behind it, or last of a full group, commits for all. Each block after the first is a
savepoint: one that raises takes back its own changes and no others. No call returns before the
common COMMIT did, one whose block raised included, since it may have seen another's change; and if
COMMIT fails, it is an error of all.

Threads begin in the order in which they came, and wait within the store's busy timeout. A single
thread finds the slot free, begins and commits, and pays nothing for all this.

An interrupt (Ctrl-C, ``KeyboardInterrupt``) may come at any bytecode. The thread that it comes to
undoes its own half-done step, or that happens when its transaction is garbage-collected: no other
thread is kept waiting, and each is told what became of its own transaction.

Rejected: a thread that writes for all (a queue of closures). It needs no hand-over from thread to
thread, but then a block runs elsewhere, with another's context, debugger and stack.

Rejected: holding SIGINT off in the critical sections, instead of undoing half-done steps. Measured
with Python 3.11 on Linux, against a save of a checkpoint in memory (94 to 100 us):

- ``pthread_sigmask`` does not hold it off once there is a second thread. The kernel delivers the
  signal to that thread, and Python runs the handler in the main one, which blocks it.
- Swapping the handler by ``signal.signal`` does, for SIGINT alone: a SIGTERM handler that raises
  needs the same again. For the beginning and the end of a transaction it costs 60 us.
- Neither covers an interrupt at the call of ``__exit__``, before its first line. So ``abandon``,
  and the watch over transactions that leads to it, would have to stay.

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
"""For how long after its beginning others may join a group, in seconds:
with their own length, what others wait.
"""

END_S_MAX: Final = 30.0
"""How long a member waits for the end of its group, in seconds, unless the busy timeout is longer.
"""


class Group:
    """One common transaction on one connection, and the threads that wait for its end."""

    __slots__ = ("_until_s", "_waiting", "connection", "error", "has_ended", "members")

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Begin without members."""
        self.connection = connection
        self.members = 0
        self.error: RecoveryError | None = None
        self.has_ended = False
        self._until_s = time.monotonic() + AGE_S_MAX
        self._waiting: list[_thread.LockType] = []

    @property
    def is_full(self) -> bool:
        """Whether no other thread may join."""
        return self.members >= MEMBERS_MAX or time.monotonic() > self._until_s

    def end_lock(self) -> _thread.LockType:
        """Return a lock that is released when the group has ended.

        Only the holder of the slot may call this.
        """
        lock = _thread.allocate_lock()
        lock.acquire()
        self._waiting.append(lock)
        return lock

    def end(self, error: RecoveryError | None) -> None:
        """Tell all waiting threads that it has ended, by an error or not."""
        self.error = error
        self.has_ended = True
        for lock in self._waiting:
            lock.release()


class GroupCommit:
    """The one slot in which a store's threads write, the queue for it, and the group open there.

    A thread brings a *ticket*, a lock of its own. Its release calls the thread from the queue, and
    it identifies the holder of the slot. So a step that an interrupt tore apart can be undone
    later, and undoing it twice does nothing. For that, a transaction is watched while it is in its
    block: if an interrupt prevents its end, it is abandoned when it is garbage-collected.
    """

    __slots__ = ("_group", "_holder", "_mutex", "_queue", "_store", "_watch")

    def __init__(self, store: SqliteStore) -> None:
        """Prepare; the slot is free."""
        self._store = store
        self._mutex = _thread.allocate_lock()
        self._holder: _thread.LockType | None = None
        self._watch: weakref.ref[object] | None = None
        self._queue: deque[_thread.LockType] = deque()
        self._group: Group | None = None

    def join(self, ticket: _thread.LockType, transaction: object) -> Group:
        """Wait for the slot; begin a group, or join the open one.

        Raises DatabaseLocked, or any other StoreError.
        """
        try:
            self._take_slot(ticket)
            if self._group is None:
                self._group = self._begun()
            else:
                self._group.connection.execute("SAVEPOINT member")
            group = self._group
            self._watch = weakref.ref(transaction, lambda _: self.abandon(ticket, group))
        except BaseException as error:
            self._leave_queue(ticket)
            self._pass_on(ticket)
            if isinstance(error, sqlite3.Error):
                raise self._store.translated(error) from error
            raise
        return group

    def leave(self, ticket: _thread.LockType, group: Group, error: BaseException | None) -> None:
        """End a block, and return when its group has ended.

        The block's changes are kept unless it raised ``error``. Raises a StoreError if nothing was
        kept, whatever the block raised.
        """
        try:
            self._watch = None
            self._settle(group, error)
            end = self._pass_on(ticket)
        except BaseException:
            self.abandon(ticket, group)
            raise
        if error is not None and not isinstance(error, Exception):
            return  # an interrupted thread does not wait
        if end is not None:
            self._wait(group, end)
        if group.error is not None and group.error is not error:
            raise group.error if end is None else type(group.error)(*group.error.args) from group.error.__cause__

    def abandon(self, ticket: _thread.LockType, group: Group) -> None:
        """Give up the slot after an interrupt, if this ticket holds it, and roll the group back.

        The connection is not used again. Does nothing the second time, where nothing is wrong, and
        in a forked child.
        """
        if self._holder is not ticket or self._store.group_commit is not self:
            return
        self._group = self._watch = None
        if not group.has_ended:
            text = _INTERRUPTED if group.connection.in_transaction else _UNKNOWN
            with contextlib.suppress(sqlite3.Error):  # its garbage collection closes it, which rolls back too
                group.connection.rollback()
            group.end(DatabaseUnavailable(text))
        self._leave_slot(ticket)

    def _begun(self) -> Group:
        connection = self._store.borrow()
        try:
            self._store.begin(connection)
            return Group(connection)
        except BaseException:
            self._give_back(connection)
            raise

    def _settle(self, group: Group, error: BaseException | None) -> None:
        """Keep a member's changes in the group, or take them back."""
        if not group.connection.in_transaction:  # SQLite rolls back by itself after some errors: a full disk, say
            self._end(group, error if isinstance(error, RecoveryError) else StoreError(_ROLLED_BACK))
        elif error is not None and not group.members:
            self._end(group, None)
        elif group.members:
            try:
                if error is not None:
                    group.connection.execute("ROLLBACK TO member")
                group.connection.execute("RELEASE member")
            except sqlite3.Error as failure:
                self._end(group, self._store.translated(failure))
        group.members += 1

    def _pass_on(self, ticket: _thread.LockType) -> _thread.LockType | None:
        """Let the next thread join the group, or end the group and leave the slot.

        Return a lock for the end of a group that goes on, else None. Does nothing for a ticket that
        does not hold the slot.
        """
        if self._holder is not ticket:
            return None
        group = self._group
        if group is not None:
            with self._mutex:
                if self._queue and not group.is_full:
                    end = group.end_lock()
                    self._call_next()
                    return end
            self._commit(group)
        self._leave_slot(ticket)
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
        self._give_back(group.connection)
        group.end(error)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        """Give a connection back with no transaction on it, or close it."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            connection.close()  # which rolls back too; the caller is told of the error that came first
        else:
            self._store.give_back(connection)

    def _take_slot(self, ticket: _thread.LockType) -> None:
        """Take the slot, when it is this thread's turn. Raises DatabaseLocked."""
        with self._mutex:
            if self._holder is None:
                self._holder = ticket
                return
            ticket.acquire()
            self._queue.append(ticket)
        timeout_s = self._store.factory.busy_timeout_s
        if not ticket.acquire(timeout=timeout_s) and self._leave_queue(ticket):
            message = (
                f"the write slot of {self._store.path} must be free within {timeout_s:g} s; got no turn, since another "
                "thread of this process is still in its transaction. End that, or raise busy_timeout_s."
            )
            raise DatabaseLocked(message)

    def _leave_queue(self, ticket: _thread.LockType) -> bool:
        """Leave the queue.

        False for a ticket that is not in it, or was given the slot in the meantime.
        """
        with self._mutex:
            if ticket not in self._queue:
                return False
            self._queue.remove(ticket)
            return True

    def _leave_slot(self, ticket: _thread.LockType) -> None:
        with self._mutex:
            if self._holder is not ticket:
                return
            if self._queue:
                self._call_next()
            else:
                self._holder = None

    def _call_next(self) -> None:
        """Give the slot to the first of the queue. The mutex is held.

        Python looks for signals after a call and not between two plain steps. So no interrupt comes
        between the assignment and the release: a thread that holds the slot has been called.
        """
        self._holder = ticket = self._queue[0]
        try:
            ticket.release()
        finally:
            self._queue.popleft()

    def _wait(self, group: Group, end: _thread.LockType) -> None:
        timeout_s = max(self._store.factory.busy_timeout_s, END_S_MAX)
        if not end.acquire(timeout=timeout_s) and not group.has_ended:
            message = (
                f"the group commit on {self._store.path} must end within {timeout_s:g} s; got no end, since one of its "
                "threads is still in its transaction. Read what became of this transaction before repeating it."
            )
            raise DatabaseUnavailable(message)


_ROLLED_BACK: Final = (
    "the transaction must be open until its block ends; got a rollback by SQLite, with all blocks of its group. Repeat "
    "the block, and let no block go on after an error of the store."
)
_INTERRUPTED: Final = (
    "the group commit must end; got an interrupt in the thread that did it, and nothing was kept. Repeat the block."
)
_UNKNOWN: Final = (
    "the group commit must end; got an interrupt in the thread that did it, when it may have been done already. Read "
    "what became of this transaction before repeating it."
)
