"""What takes away the ground from an open connection: its locks, its files, its process. Pure.

Each is one of the ways to corrupt a database that SQLite's own documents list
(sqlite.org/howtocorrupt.html, sections 1 to 2.8), so it is a finding whether or not anything was
lost in this run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_chaos.sqlite.telling import lock_names, times
from pytest_chaos.sqlite.world import MAIN, part_of
from pytest_chaos.trace.step import NO_NODE, Action, LockType, Touch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.model.values import Finding
    from pytest_chaos.sqlite.locks import HeldLock
    from pytest_chaos.sqlite.telling import Teller
    from pytest_chaos.sqlite.world import Descriptor, World
    from pytest_chaos.trace.step import Event

_WITHOUT_LOCKS: Final = ("nfs", "cifs", "smb", "9p", "virtiofs", "fuse", "vboxsf", "prl_fs", "afs", "ncpfs", "drvfs")
"""How the types of file systems begin whose locks, or shared memory, cannot be relied upon."""
_LOCAL: Final = ("fuseblk", "fuse.fuse-overlayfs")
"""Those of FUSE that show disks of this machine: the kernel keeps their locks."""
_WRITES: Final = frozenset({Action.WRITE, Action.TRUNCATE})


class CancelledLocks:
    """A descriptor is closed of a file on which the process has locks through another one."""

    class _Cancelled:
        def __init__(self, closed: Event, opened: Event | None, locks: list[HeldLock]) -> None:
            self.closed = closed
            self.opened = opened
            self.locks = locks
            self.count = 0
            self.writes = 0

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], CancelledLocks._Cancelled] = {}
        self._without: dict[tuple[str, str], CancelledLocks._Cancelled] = {}
        """By process and database: whose locks are gone, and not taken again."""

    def see(self, event: Event, world: World) -> None:
        """Look at closes; then count the writes until the lock is taken again."""
        database, part = part_of(event.path)
        key = (event.process, database)
        if event.what is Touch.CLOSE and part in {MAIN, "index"} and database in world.databases:
            locks = world.locks.held(event.node, event.process)
            if not any(lock.event.descriptor != event.descriptor for lock in locks):
                return
            opened = world.descriptor(event).opened
            found = self._found.setdefault((event.path, event.line), self._Cancelled(event, opened, list(locks)))
            found.count += 1
            self._without[key] = found
        elif event.what is Touch.LOCK and part == MAIN and event.lock is not LockType.NONE:
            self._without.pop(key, None)
        elif event.what is Action.WRITE and part in {MAIN, "log"} and key in self._without:
            self._without[key].writes += 1

    def findings(self, _world: World, tell: Teller) -> Iterator[Finding]:
        """Return one for each file and closing line."""
        for (path, _), found in self._found.items():
            opener = found.opened.line if found.opened is not None else ""
            is_told = opener.partition(" (")[0] in {"", found.closed.line.partition(" (")[0]}
            opened = "" if is_told else f", which {tell.who(found.opened)} has opened,"
            held = lock_names(found.locks, part_of(path)[1])
            writes = f"; {found.writes:,} writes followed without it" if found.writes else ""
            text = (
                f"{tell.who(found.closed)} closes {path}{times(found.count)}{opened} while the same process holds "
                f"{held} on it, taken at {tell.who(found.locks[0].event)}: closing any descriptor of a file drops all "
                f"POSIX locks that the process has on it, so another process may write at the same time{writes}"
            )
            yield tell.finding("locks-cancelled", path, found.closed, text)


class ReplacedFiles:
    """A file of a database loses its name, or its content, under an open connection."""

    class _Lost:
        def __init__(self, event: Event, name: str, holders: dict[tuple[str, int], Event | None]) -> None:
            self.event = event
            self.name = name
            self.holders = holders
            self.used: Event | None = None

    def __init__(self) -> None:
        self._lost: list[ReplacedFiles._Lost] = []
        self._unpaired: list[Event] = []
        self._journals: dict[str, tuple[Event, Event]] = {}
        self._overwritten: dict[tuple[str, str], tuple[Event, Descriptor]] = {}

    def see(self, event: Event, world: World) -> None:
        """Look at names that go, at the use of what is open after that, and at writes."""
        self._note_use(event, world)
        if event.what in {Action.UNLINK, Action.RENAME, Action.EXCHANGE}:
            self._note_loss(event, event.path, event.node, event.holders, world)
            if event.target:
                self._note_loss(event, event.target, event.replaced, event.replaced_holders, world)
        elif event.what in _WRITES:
            self._note_write(event, world)

    def _note_loss(
        self, event: Event, name: str, node: int, holders: tuple[tuple[str, int], ...], world: World
    ) -> None:
        database, part = part_of(name)
        if node == NO_NODE or database not in world.databases:
            return
        if part == "journal":
            written, its = world.hot.get(node), world.nodes.get(database, NO_NODE)
            # SQLite has the lock, and closes a journal before it removes it.
            if written is not None and (holders or not world.may_write(database, its, event.process)):
                self._journals.setdefault(database, (event, written))
            return
        if world.is_exclusive(database, event.process):
            return  # it is SQLite, which removes the log with the last connection
        if event.behind and (part == "log" or (part == MAIN and event.what is Action.RENAME)):
            self._unpaired.append(event)
        found = {}
        for process, number in holders:
            descriptor = world.descriptors.get((process, number))
            if descriptor is None or descriptor.node != node:
                continue
            if part != MAIN or descriptor.is_locked:
                found[process, number] = descriptor.opened
        if found:
            self._lost.append(self._Lost(event, name, found))

    def _note_use(self, event: Event, world: World) -> None:
        """Note that who had a lost file open goes on to use the database."""
        is_use = event.what is Action.WRITE or (event.what is Touch.LOCK and event.lock is not LockType.NONE)
        if not is_use:
            return
        database, _ = part_of(event.path)
        for lost in self._lost:
            its, part = part_of(lost.name)
            if lost.used is None and its == database and any(event.process == each for each, _ in lost.holders):
                is_gone = its not in world.nodes  # the whole database was deleted: nothing to be harmed
                own = (event.process, event.descriptor) in lost.holders
                if not is_gone and (own or part != MAIN):
                    lost.used = event

    def _note_write(self, event: Event, world: World) -> None:
        database, part = part_of(event.path)
        if part != MAIN or database not in world.databases or world.may_write(database, event.node, event.process):
            return
        own = (event.process, event.descriptor)
        others = (each for each in world.connections(event.node) if (each.process, each.number) != own)
        if (other := next(others, None)) is not None:
            self._overwritten.setdefault((event.path, event.line), (event, other))

    def findings(self, world: World, tell: Teller) -> Iterator[Finding]:
        """Return one for each file and the line that took it away."""
        told = set()
        for lost in self._lost:
            if lost.used is None:
                continue
            finding = self._of_lost(lost, tell)
            if finding.signature not in told:
                told.add(finding.signature)
                yield finding
        split = [lost.event for lost in self._lost if lost.used is not None]
        for event in self._unpaired:
            if event in split:  # told already
                continue
            database, part = part_of(event.path)
            if (unpaired := self._of_unpaired(event, database, part, world, tell)) is not None:
                yield unpaired
        for database, (event, written) in self._journals.items():
            text = (
                f"{tell.who(event)} takes {database}-journal away, which {tell.who(written)} has written and not "
                "finished: with it goes the only way to undo that transaction"
            )
            yield tell.finding("journal-removed", database, event, text)
        for (path, _), (event, other) in self._overwritten.items():
            text = (
                f"{tell.who(event)} writes to {path} without any of SQLite's locks, while {tell.who(other.opened)} "
                "has it open: that connection reads and writes pages of two contents"
            )
            yield tell.finding("overwritten", path, event, text)

    @staticmethod
    def _of_lost(lost: ReplacedFiles._Lost, tell: Teller) -> Finding:
        event, (_, opened) = lost.event, next(iter(lost.holders.items()))
        how = {str(Action.UNLINK): "removes", str(Action.EXCHANGE): "exchanges"}.get(
            event.what, "replaces" if lost.name == event.target else "renames"
        )
        part = part_of(lost.name)[1]
        then = (
            "what that connection writes goes to the file without a name"
            if part == MAIN
            else "the next one to open the database makes new ones, and neither sees the other's locks or commits"
        )
        text = (
            f"{tell.who(event)} {how} {lost.name}, which {tell.who(opened)} has open and uses again at "
            f"{tell.who(lost.used)}: {then}"
        )
        return tell.finding("replaced" if part == MAIN else "generation-split", part_of(lost.name)[0], event, text)

    @staticmethod
    def _of_unpaired(event: Event, database: str, part: str, world: World, tell: Teller) -> Finding | None:
        """Return the finding of a log with commits that was parted from its database."""
        if part == MAIN:
            if world.nodes.get(f"{event.target}-wal") is not None or event.target not in world.nodes:
                return None  # the log was moved, too, or all of it is gone
            text = (
                f"{tell.who(event)} renames {database} to {event.target} without its log, which has {event.behind:,} "
                "frames that the database lacks: the transactions in them are lost"
            )
            return tell.finding("unpaired", database, event, text)
        is_moved = bool(event.target) and part_of(event.target)[0] in world.nodes
        if database not in world.nodes or is_moved:  # all of it is gone, or was moved, too
            return None
        text = (
            f"{tell.who(event)} takes {database}-wal away, which has {event.behind:,} frames that the database lacks: "
            "the transactions in them are lost"
        )
        return tell.finding("log-removed", database, event, text)


class CarriedConnections:
    """A connection that was opened before a fork is used in the child."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[Event, Descriptor, Event | None]] = {}

    def see(self, event: Event, world: World) -> None:
        """Look at locks and writes through descriptors of another process."""
        is_lock = event.what is Touch.LOCK and event.lock is not LockType.NONE
        if not (is_lock or event.what is Action.WRITE) or event.descriptor < 0 or not world.is_of_database(event.path):
            return
        if (opener := world.descriptor(event).inherited) is not None:
            database = part_of(event.path)[0]
            node = world.nodes.get(database, NO_NODE)
            own = (each for each in world.descriptors.values() if each.process == event.process and each.node == node)
            opened = next((each.opened for each in own if each.opened is not None), None)
            self._found.setdefault((event.process, database), (event, opener, opened))

    def findings(self, _world: World, tell: Teller) -> Iterator[Finding]:
        """Return one for each child and database."""
        for (_, database), (event, opener, opened) in self._found.items():
            what = (
                f"the child's own connection to {database} shares the table of locks with one"
                if opened is not None
                else f"the child uses a connection to {database}"
            )
            text = (
                f"{tell.who(event)}: {what} that {tell.who(opener.opened)} opened before the fork; locks are not "
                "inherited, so the child writes without those that SQLite believes it has"
            )
            yield tell.finding("carried-over-fork", database, event, text)


class FileSystems:
    """A database lies on a file system without locks, or with such as cannot be relied upon."""

    def __init__(self) -> None:
        self._found: dict[str, Event] = {}

    def see(self, event: Event, _world: World) -> None:
        """Look at the first lock of each file, which tells the file system and what it answers."""
        if event.what is not Touch.LOCK or event.offset < WAL_FIRST:
            return
        is_remote = event.system.startswith(_WITHOUT_LOCKS) and not event.system.startswith(_LOCAL)
        if event.refused or is_remote:
            self._found.setdefault(part_of(event.path)[0], event)

    def findings(self, world: World, tell: Teller) -> Iterator[Finding]:
        """Return one for each database."""
        for database, event in self._found.items():
            if database in world.databases:
                system = event.system or "not known"
                where = f"{tell.who(event)} uses {database} on a file system of the type {system}"
                if event.refused:
                    then = _REFUSED.get(event.refused, "'disk I/O error'")
                    text = (
                        f"{where}, which answers each lock with {event.refused}: SQLite fails with {then}, and if it "
                        "is told to do without locks, two writers at once corrupt the database"
                    )
                else:
                    log = ", nor shared memory for the log," if database in world.has_log else ""
                    text = (
                        f"{where}: POSIX locks{log} cannot be relied upon there, and two writers at once corrupt the "
                        "database"
                    )
                yield tell.finding("file-system", database, event, text)


_REFUSED: Final = {"ENOLCK": "'database is locked', however long it waits"}
"""What SQLite makes of an errno (os_unix.c, sqliteErrorFromPosixError)."""
WAL_FIRST: Final = 120
