"""Waits that no timeout helps: an upgrade of a stale read, and a log that a reader holds. Pure.

Both are risks, and break no promise by themselves: they are looked for because the user asks for
it. An upgrade is a transaction that has read and then writes. If another process has written since,
or does, SQLite refuses the write at once, whatever the busy timeout
(sqlite.org/isolation.html, sqlite.org/rescode.html#busy_snapshot). A log is used again from its
beginning when a checkpoint has copied all of it and no reader is in it (sqlite.org/wal.html,
"Avoiding Excessively Large WAL Files").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.sqlite.world import MAIN, RESERVED, SHARED, WAL_CHECKPOINT, WAL_READ, WAL_READ_END, WAL_WRITE, part_of
from pytest_chaos.trace.step import NO_NODE, Action, LockType, Touch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.model.values import Finding
    from pytest_chaos.sqlite.telling import Teller
    from pytest_chaos.sqlite.world import World
    from pytest_chaos.trace.step import Event

GROWTH: Final = 4
GROWTH_BYTES: Final = 256 * 1024
CHECKPOINTS: Final = 5
"""A log starves when it has grown so many times, by so much, over so many checkpoints, beside one
read that goes on since before the first of them.
"""


class _Upgrade(NamedTuple):
    """A write lock that was asked for in a transaction that had read, and was of no use."""

    read: Event
    write: Event
    other: Event

    @property
    def is_between_threads(self) -> bool:
        """Whether both connections are of one process."""
        return self.write.process == self.other.process


class StaleUpgrades:
    """A transaction that began as a reader and fails as a writer, at once.

    The read and the write are told from one statement by their lines, so nothing is found where no
    lines are known. Connections of one process settle most of their locks in memory. Of those, one
    kind is seen, in WAL mode: the write lock is to be had, the snapshot is old, and the same call
    gives the lock back (sqlite.org/rescode.html#busy_snapshot).

    Threads share the lock of a read: it stays while any of them reads, and a BEGIN IMMEDIATE that
    waits for another process shares the read of another thread. So where several threads of a
    process use a database, its meetings with other processes are not judged.
    """

    def __init__(self) -> None:
        self._tried: dict[tuple[str, int, str], _Upgrade] = {}
        """By process, thread and database."""
        self._found: dict[tuple[str, str, str], _Upgrade] = {}
        self._threads: dict[tuple[str, str], set[int]] = {}
        """By process and database: the threads that use it."""
        self._commits: dict[str, list[tuple[int, Event]]] = {}
        self._reads: dict[tuple[str, int, str, str], dict[int, tuple[int, Event]]] = {}
        """By process, thread, database and part, and by the mark that is locked: the lock of a read
        that goes on, and its time.
        """
        self._last: dict[tuple[str, int], Event] = {}
        """By process and thread: what it did last."""

    def see(self, event: Event, world: World) -> None:
        """Look at locks of readers and of writers, and at what is written between them."""
        database, part = part_of(event.path)
        before = self._last.get((event.process, event.thread))
        self._last[event.process, event.thread] = event
        if event.what is Touch.LOCK:
            self._locked(event, database, part, world, before)
        elif event.what is Action.WRITE and part in {MAIN, "log", "journal"}:
            self._tried.pop((event.process, event.thread, database), None)  # it writes: it has got the lock
            if part != "journal":
                self._commits.setdefault(database, []).append((world.at, event))
        elif event.what is Touch.EXIT:
            for key in [key for key in self._reads if key[0] == event.process]:
                del self._reads[key]
                self._ended(key)

    def _locked(self, event: Event, database: str, part: str, world: World, before: Event | None) -> None:
        start, end = event.offset, event.offset + event.length
        self._threads.setdefault((event.process, database), set()).add(event.thread)
        is_index = part == "index"
        key = (event.process, event.thread, database, part)
        reads = (WAL_READ, WAL_READ_END) if is_index else (SHARED, SHARED + 1)
        writes = WAL_WRITE if is_index else RESERVED
        is_of_reads = start < reads[1] and reads[0] < end
        if not is_index and database in world.has_log:
            return  # in WAL mode a connection keeps SHARED, and its reads are those of the log
        if event.lock is LockType.NONE:
            if start <= writes < end:
                self._gave_back(event, key)
            if is_of_reads:
                self._released(event, database, part)
        elif event.lock is LockType.READ and is_of_reads:
            reads_now = self._reads.setdefault(key, {})
            if before is not None and _is_next_mark(before, event):
                reads_now.pop(before.offset, None)  # it was refused, so SQLite tries the next mark
            reads_now[start] = world.at, event  # asked for anew: an earlier one was refused, or is over
        elif event.lock is LockType.WRITE and start <= writes < end and self._reads.get(key):
            self._asked(event, key, world)

    def _asked(self, event: Event, key: tuple[str, int, str, str], world: World) -> None:
        since, read = max(self._reads[key].values(), key=lambda each: each[0])
        if not event.line or not read.line or event.line == read.line:
            return  # one statement, or nobody knows
        database = key[2]
        blocking = world.locks.blocking(event)
        newer = [each for at, each in self._commits.get(database, ()) if at > since and _is_news(each, event)]
        other = blocking[0][1].event if blocking else newer[-1] if newer else None
        if other is not None:
            self._tried[key[:3]] = _Upgrade(read, event, other)

    def _gave_back(self, event: Event, key: tuple[str, int, str, str]) -> None:
        """Note that a write lock is given back without a write: at once, or in the end."""
        tried = self._tried.get(key[:3])
        if tried is not None and tried.is_between_threads:
            del self._tried[key[:3]]
            if event.line == tried.write.line:
                self._found.setdefault((key[2], tried.read.line, tried.write.line), tried)

    def _released(self, event: Event, database: str, part: str) -> None:
        """End the reads of a process that had a lock there: the thread that is last releases it."""
        start, end = event.offset, event.offset + event.length
        for key, reads in self._reads.items():
            if key[0] == event.process and key[2:] == (database, part):
                there = [mark for mark, (_, read) in reads.items() if mark < end and start < mark + read.length]
                for mark in there:
                    del reads[mark]
                if there:
                    self._ended(key)

    def _ended(self, key: tuple[str, int, str, str]) -> None:
        """Note that a read has ended, and with it an upgrade that did not come to write."""
        tried = self._tried.pop(key[:3], None)
        if tried is None or tried.is_between_threads:
            return
        if len(self._threads[key[0], key[2]]) == 1:
            self._found.setdefault((key[2], tried.read.line, tried.write.line), tried)

    def findings(self, _world: World, tell: Teller) -> Iterator[Finding]:
        """Return one for each database and pair of lines."""
        for (database, _, _), found in self._found.items():
            other = f"{tell.who(found.other)}{' in another thread' if found.is_between_threads else ''}"
            text = (
                f"{tell.who(found.write)} writes to {database} in a transaction that has read at "
                f"{tell.who(found.read)}, and {other} has written since, or does: SQLite refuses it at "
                "once (database is locked), whatever the busy timeout. Begin it with BEGIN IMMEDIATE"
            )
            yield tell.finding("stale-upgrade", database, found.write, text)


def _is_news(written: Event, event: Event) -> bool:
    """Whether a write is of another process, or of another thread to the log."""
    if written.process != event.process:
        return True
    return written.thread != event.thread and part_of(written.path)[1] == "log"


def _is_next_mark(before: Event, event: Event) -> bool:
    """Whether a thread asked for the lock of a read mark, and then at once for that of another."""
    is_alike = before.what is event.what and (before.node, before.lock) == (event.node, event.lock)
    is_read = WAL_READ <= before.offset < WAL_READ_END and WAL_READ <= event.offset < WAL_READ_END
    return is_alike and is_read and before.offset != event.offset


class _Starved:
    """A log, since the first checkpoint beside one read."""

    def __init__(self, read: Event, size: int) -> None:
        self.read = read
        self.size = size
        self.checkpoints = 0
        self.bytes = 0
        self.writer: Event | None = None

    @property
    def is_starving(self) -> bool:
        grown = self.bytes >= GROWTH * self.size and self.bytes - self.size >= GROWTH_BYTES
        return grown and self.checkpoints >= CHECKPOINTS


class StarvedLogs:
    """A log that grows over many checkpoints, because one read has gone on since before them."""

    def __init__(self) -> None:
        self._size: dict[str, int] = {}
        self._beside: dict[str, dict[Event, _Starved]] = {}
        self._found: dict[tuple[str, str], _Starved] = {}

    def see(self, event: Event, world: World) -> None:
        """Look at checkpoints, at the marks of readers, and at the size of the log."""
        database, part = part_of(event.path)
        if part == "log" and event.what is Action.WRITE:
            self._size[database] = event.offset + event.length
            for starved in self._beside.get(database, {}).values():
                starved.bytes, starved.writer = max(starved.bytes, self._size[database]), event
                if starved.is_starving:
                    self._found[database, starved.read.line] = starved
        elif part == "index" and event.what is Touch.LOCK and event.lock is LockType.WRITE and _is_checkpoint(event):
            self._checkpoint(database, event, world)

    def _checkpoint(self, database: str, event: Event, world: World) -> None:
        node = world.nodes.get(event.path, NO_NODE)
        reads = [
            lock.event
            for _, lock in world.locks.of_all(node)
            if not lock.is_write and lock.overlaps(WAL_READ, WAL_READ_END)
        ]
        before = self._beside.get(database, {})
        size = self._size.get(database, 0)
        self._beside[database] = {read: before.get(read) or _Starved(read, size) for read in reads}
        for starved in self._beside[database].values():
            starved.checkpoints += 1

    def findings(self, _world: World, tell: Teller) -> Iterator[Finding]:
        """Return one for each database and reading line."""
        for (database, _), found in self._found.items():
            text = (
                f"{database}-wal grew from {found.size:,} to {found.bytes:,} bytes over {found.checkpoints:,} "
                f"checkpoints, written by {tell.who(found.writer)}, because the read that {tell.who(found.read)} began "
                "did not end: the log cannot be used again before. End each read (fetch all rows, close the cursor)"
            )
            yield tell.finding("log-starved", database, found.read, text)


def _is_checkpoint(event: Event) -> bool:
    return event.offset <= WAL_CHECKPOINT < event.offset + event.length
