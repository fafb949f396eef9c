"""What is open, locked, named and written after each event of a run. Pure.

A file is known for a database by its first lock on SQLite's own bytes, at 1 GiB. The files beside
it are known by their names. Nobody has to say which files are databases.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.sqlite.locks import HeldLock, PosixLocks
from pytest_chaos.trace.step import NO_NODE, Action, LockType, Touch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos.trace.step import Event

PENDING: Final = 0x40000000
RESERVED: Final = PENDING + 1
SHARED: Final = PENDING + 2
SHARED_BYTES: Final = 510
"""The bytes of a database that SQLite locks (``os.h``)."""
WAL_WRITE: Final = 120
WAL_CHECKPOINT: Final = 121
WAL_RECOVER: Final = 122
WAL_READ: Final = 123
WAL_READ_END: Final = 128
WAL_OPEN: Final = 128
"""The bytes of a ``-shm`` that it locks (sqlite.org/walformat.html); from READ on, one a mark."""
_HOT: Final = bytes.fromhex("d9d505f920a163d7")
"""How a rollback journal begins that is to be rolled back."""
BESIDE: Final = {"-wal": "log", "-shm": "index", "-journal": "journal"}
MAIN: Final = "database"
_PAST_MAX: Final = 1000


def part_of(path: str) -> tuple[str, str]:
    """Return the database that a file belongs to by its name, and which part of it.

    >>> part_of("data/app.db-wal"), part_of("data/app.db")
    (('data/app.db', 'log'), ('data/app.db', 'database'))
    """
    for suffix, part in BESIDE.items():
        if path.endswith(suffix) and len(path) > len(suffix):
            return path.removesuffix(suffix), part
    return path, MAIN


class Descriptor:
    """An open file of a process. ``opened`` is None for one that was open before the events.

    ``inherited`` is the descriptor of the process that opened it, for one that came with a fork.
    ``is_locked``: a lock was asked for through it, as SQLite does before it reads. ``is_whole``: it
    was read to its end, or copied by the kernel.
    """

    def __init__(self, process: str, number: int, node: int, opened: Event | None, *, since: int = 0) -> None:
        self.since = since
        self.is_used = False
        self.process = process
        self.number = number
        self.node = node
        self.opened = opened
        self.inherited: Descriptor | None = None
        self.is_locked = False
        self.is_whole = False
        self.is_written = False


class Written(NamedTuple):
    """The last write to a file, and how many there were."""

    event: Event
    writes: int


class World:
    """The state of one run after the events so far. ``at`` is the number of events."""

    def __init__(self) -> None:
        self.at = 0
        self.locks = PosixLocks()
        self.databases: set[str] = set()
        """The paths at which databases were locked."""
        self.nodes: dict[str, int] = {}
        """The node that is at a path now."""
        self.descriptors: dict[tuple[str, int], Descriptor] = {}
        self.written: dict[int, Written] = {}
        self.hot: dict[int, Event] = {}
        """Journals to be rolled back, with the write that made them so."""
        self.has_log: set[str] = set()
        """Databases whose ``-shm`` was locked: they are in WAL mode."""
        self._without_locks: set[int] = set()
        self._seen_first: dict[str, int] = {}
        self._strays: dict[tuple[str, int], list[Descriptor]] = {}
        self._past: deque[Descriptor] = deque(maxlen=_PAST_MAX)

    def is_of_database(self, path: str) -> bool:
        """Whether a file is a database, or beside one."""
        return part_of(path)[0] in self.databases

    def held(self, path: str, process: str) -> list[HeldLock]:
        """Return the locks of a process on the file that is at a path now."""
        return self.locks.held(self.nodes.get(path, NO_NODE), process)

    def is_exclusive(self, database: str, process: str) -> bool:
        """Whether a process keeps all others out of a database."""
        return any(lock.is_write and lock.overlaps(SHARED, SHARED + 1) for lock in self.held(database, process))

    def may_write(self, database: str, node: int, process: str) -> bool:
        """Whether a process has a lock with which SQLite writes to a database file."""
        if any(lock.is_write and lock.end > PENDING for lock in self.locks.held(node, process)):
            return True
        index = self.held(f"{database}-shm", process)
        return any(lock.is_write and lock.overlaps(WAL_WRITE, WAL_READ) for lock in index)

    def connections(self, node: int) -> Iterator[Descriptor]:
        """Yield the descriptors through which SQLite has used a file, and which are open."""
        for descriptor in self.descriptors.values():
            if descriptor.node == node and descriptor.is_locked:
                yield descriptor

    def descriptor(self, event: Event) -> Descriptor:
        """Return the descriptor of an event, also if another process opened it.

        The number of an opened descriptor is foretold, and wrong where threads open files at once.
        Its node is, too, and wrong where two processes make a file at once: each is taken for its
        maker. So one that is not known is first taken for an open of the same file or path that was
        not used yet, and only then for one that came with a fork.
        """
        key = (event.process, event.descriptor)
        known = self.descriptors.get(key)
        if known is not None and (known.node == event.node or _is_opening_of(known, event)):
            known.node = event.node
            return known
        known = self._unused(event) or Descriptor(*key, event.node, None)
        if known.opened is None:
            known.inherited = self._opener(event)
        self.descriptors[key] = known
        return known

    def _unused(self, event: Event) -> Descriptor | None:
        """Return a descriptor of the same process and file that nothing was done with yet."""
        if strays := self._strays.get((event.process, event.node)):
            return strays.pop()
        for key, other in self.descriptors.items():
            is_same = other.node == event.node or _is_opening_of(other, event)
            if key[0] == event.process and is_same and other.opened and not other.is_used:
                del self.descriptors[key]
                other.node = event.node
                return other
        return None

    def _opener(self, event: Event) -> Descriptor | None:
        """Return the descriptor that a process has from another one, by number and file."""
        since = self._seen_first.get(event.process, self.at)
        candidates = [*self._past, *self.descriptors.values()]
        for other in reversed(candidates):
            is_same = other.number == event.descriptor and other.node == event.node
            if is_same and other.process != event.process and other.since < since:
                return other.inherited or other
        return None

    def apply(self, event: Event) -> None:
        """Change the state as the event does."""
        self.at += 1
        self._seen_first.setdefault(event.process, self.at)
        self.locks.goes_on(event.process, event.thread)
        if (change := _CHANGES.get(event.what)) is not None:
            change(self, event)

    def opened(self, event: Event) -> None:
        """An open."""
        self.nodes[event.path] = event.node
        key = (event.process, event.descriptor)
        before = self.descriptors.get(key)
        if before is not None and before.opened is not None and not before.is_used:
            self._strays.setdefault((event.process, before.node), []).append(before)
        self.descriptors[key] = Descriptor(*key, event.node, event, since=self.at)

    def closed(self, event: Event) -> None:
        """A close, which drops the locks on the file."""
        self._retire([(event.process, event.descriptor)])
        self.locks.drop(event.node, event.process)

    def locked(self, event: Event) -> None:
        """A lock that is asked for or released."""
        self.nodes.setdefault(event.path, event.node)
        descriptor = self.descriptor(event)
        descriptor.is_locked = descriptor.is_used = True
        database, part = part_of(event.path)
        if part == MAIN and event.offset >= PENDING and event.lock is not LockType.NONE:
            self.databases.add(event.path)
        elif part == "index":
            self.has_log.add(database)
        if event.refused:
            self._without_locks.add(event.node)
        if event.node not in self._without_locks:  # otherwise the file system refuses it
            self.locks.ask(event)

    def read_whole(self, event: Event) -> None:
        """A read to the end, or a copy by the kernel."""
        self.descriptor(event).is_whole = True

    def exited(self, event: Event) -> None:
        """The end of a process."""
        self.locks.drop_all(event.process)
        self._retire([key for key in self.descriptors if key[0] == event.process])

    def _retire(self, keys: Sequence[tuple[str, int]]) -> None:
        """Forget descriptors that are closed; a child may have them from a process that is gone."""
        for key in keys:
            gone = self.descriptors.pop(key, None)
            if gone is not None and gone.is_locked:
                self._past.append(gone)

    def created(self, event: Event) -> None:
        """A new name."""
        self.nodes[event.path] = event.node

    def unlinked(self, event: Event) -> None:
        """A name that goes."""
        if self.nodes.get(event.path) == event.node:
            del self.nodes[event.path]
        self.hot.pop(event.node, None)

    def renamed(self, event: Event) -> None:
        """A name that moves."""
        if self.nodes.get(event.path) == event.node:
            del self.nodes[event.path]
        if event.target:
            self.nodes[event.target] = event.node

    def exchanged(self, event: Event) -> None:
        """Two names that change places."""
        there = self.nodes.get(event.target, event.replaced)
        self.nodes[event.path], self.nodes[event.target] = there, event.node

    def wrote(self, event: Event) -> None:
        """A write, or a new size."""
        if event.descriptor >= 0:
            descriptor = self.descriptor(event)
            descriptor.is_written = descriptor.is_used = True
        before = self.written.get(event.node)
        self.written[event.node] = Written(event, 1 + (before.writes if before is not None else 0))
        if part_of(event.path)[1] == "journal" and event.what is Action.WRITE and event.offset == 0:
            if event.head.startswith(_HOT):
                self.hot[event.node] = event
            else:
                self.hot.pop(event.node, None)
        elif event.what is Action.TRUNCATE and not event.length:
            self.hot.pop(event.node, None)


def _is_opening_of(descriptor: Descriptor, event: Event) -> bool:
    """Whether a descriptor was opened by the path of an event, and was not used yet."""
    return descriptor.opened is not None and descriptor.opened.path == event.path and not descriptor.is_used


_CHANGES: Final = {
    Touch.OPEN: World.opened,
    Touch.CLOSE: World.closed,
    Touch.LOCK: World.locked,
    Touch.READ: World.read_whole,
    Touch.COPY: World.read_whole,
    Touch.EXIT: World.exited,
    Action.CREATE: World.created,
    Action.LINK: World.created,
    Action.UNLINK: World.unlinked,
    Action.RENAME: World.renamed,
    Action.EXCHANGE: World.exchanged,
    Action.WRITE: World.wrote,
    Action.TRUNCATE: World.wrote,
}
