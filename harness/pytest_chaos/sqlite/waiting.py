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
    """A write lock that was asked for in a transaction that had read, and was not to be had."""

    read: Event
    write: Event
    other: Event


class StaleUpgrades:
    """A transaction that began as a reader and fails as a writer, at once.

    The read and the write are told from one statement by their lines, so nothing is found where no
    lines are known.
    """

    def __init__(self) -> None:
        self._tried: dict[tuple[str, str], _Upgrade] = {}
        self._found: dict[tuple[str, str, str], _Upgrade] = {}
        self._commits: dict[str, list[tuple[int, Event]]] = {}
        self._reads: dict[tuple[str, str, str], tuple[int, Event]] = {}
        """By process, database and part: the lock of a read that goes on, and when it came."""

    def see(self, event: Event, world: World) -> None:
        """Look at locks of readers and of writers, and at what is written between them."""
        database, part = part_of(event.path)
        key = (event.process, database)
        if event.what is Touch.LOCK:
            self._locked(event, key, part, world)
        elif event.what is Action.WRITE and part in {MAIN, "log", "journal"}:
            self._tried.pop(key, None)  # it writes: it has got the lock
            if part != "journal":
                self._commits.setdefault(database, []).append((world.at, event))
        elif event.what is Touch.EXIT:
            for each in [each for each in self._reads if each[0] == event.process]:
                self._ended(each)

    def _locked(self, event: Event, key: tuple[str, str], part: str, world: World) -> None:
        start, end = event.offset, event.offset + event.length
        is_index = part == "index"
        read_key = (*key, part)
        reads = (WAL_READ, WAL_READ_END) if is_index else (SHARED, SHARED + 1)
        writes = WAL_WRITE if is_index else RESERVED
        is_of_reads = start < reads[1] and reads[0] < end
        if not is_index and key[1] in world.has_log:
            return  # in WAL mode a connection keeps SHARED, and its reads are those of the log
        if event.lock is LockType.NONE and is_of_reads:
            self._ended(read_key)
        elif event.lock is LockType.READ and is_of_reads:
            self._reads.setdefault(read_key, (world.at, event))
        elif event.lock is LockType.WRITE and start <= writes < end and read_key in self._reads:
            self._asked(event, read_key, world)

    def _asked(self, event: Event, read_key: tuple[str, str, str], world: World) -> None:
        since, read = self._reads[read_key]
        key = read_key[:2]
        if not event.line or not read.line or event.line == read.line:
            return  # one statement, or nobody knows
        blocking = world.locks.blocking(event)
        newer = [each for at, each in self._commits.get(key[1], ()) if at > since and each.process != event.process]
        other = blocking[0][1].event if blocking else newer[-1] if newer else None
        if other is not None:
            self._tried[key] = _Upgrade(read, event, other)

    def _ended(self, read_key: tuple[str, str, str]) -> None:
        """Note that a read ends, and with it an upgrade that did not come to write."""
        self._reads.pop(read_key, None)
        key = read_key[:2]
        if (tried := self._tried.pop(key, None)) is not None:
            self._found.setdefault((key[1], tried.read.line, tried.write.line), tried)

    def findings(self, _world: World, tell: Teller) -> Iterator[Finding]:
        """Return one for each database and pair of lines."""
        for (database, _, _), found in self._found.items():
            text = (
                f"{tell.who(found.write)} writes to {database} in a transaction that has read at "
                f"{tell.who(found.read)}, and {tell.who(found.other)} has written since, or does: SQLite refuses it at "
                "once (database is locked), whatever the busy timeout. Begin it with BEGIN IMMEDIATE"
            )
            yield tell.finding("stale-upgrade", database, found.write, text)


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
