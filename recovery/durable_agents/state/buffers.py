"""Buffers: findings of a cycle, kept apart until they get into the history all at once.

A *cycle* is one round of work. Half of a round, compared with the round before, would show findings
as fixed that were never looked for. So each cycle writes to a buffer of its own, a database file,
and ``commit`` copies it into the store in one transaction.

**Names.** The name of the file has the cycle's name, its id, and its owner by pid and start
(``durable_agents.processes``): a name cannot be half-written, and is judged without opening the
file. The history is keyed by the id, which is new for each cycle. Cycles of one name are common; a
marker by name would take the second for one that was committed (D25).

**Orphans.** A crash leaves the buffer behind. ``recover_orphans`` removes it and never commits it.
A buffer whose owner lives is left alone, whichever process looks (D24, docs/design.md).

**Quarantine.** An unreadable orphan is moved into ``quarantine`` unchanged, with the files that
SQLite keeps beside it. Removing and moving take the file first and its sidecars after it, so a
sidecar without a file tells the next run how to continue. An earlier file of the same name in the
quarantine, possible only for names of another form, gets a number first.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import logging
import os
import re
import secrets
import sqlite3
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from durable_agents import snapshots
from durable_agents.clock import Clock, SystemClock
from durable_agents.errors import BufferNotWritten, CycleEnded, InvalidCycle, InvalidSnapshot
from durable_agents.processes import Liveness, look, start_of
from durable_agents.state.crash_points import StateCrashPoint
from durable_agents.state.groups import VALUE_BYTES_MAX
from durable_agents.store.rows import Cycle, CycleEntry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents.state.groups import StateStore
    from durable_agents.state.roots import Roots
    from durable_agents.store import Transaction

CYCLE_ENTRIES_MAX: Final = 1_000_000
NAME_PATTERN: Final = r"[A-Za-z0-9._-]{1,100}"
SUFFIX: Final = ".buffer"
SIDECARS: Final = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps beside a database file."""

QUARANTINE: Final = "quarantine"

_FILE: Final = re.compile(rf"({NAME_PATTERN})~([0-9a-f]{{16}}-[0-9a-f]{{12}})~(\d{{1,10}})~([0-9a-f-]{{36}}:\d+)")
_TABLE: Final = "CREATE TABLE entries (place INTEGER PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL) STRICT"
_PUT: Final = "INSERT INTO entries (kind, value) VALUES (?, ?)"
_ENTRIES: Final = "SELECT place, kind, CAST(value AS BLOB) FROM entries WHERE place > ? ORDER BY place LIMIT ?"
_PAGE: Final = 1000
_MAGIC: Final = b"SQLite format 3\0"
_LOCK: Final = "buffers"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_log: Final = logging.getLogger("durable_agents.state.buffers")


class BufferOwner(msgspec.Struct, frozen=True):
    """The name of a buffer's file: its cycle, and the process that it belongs to."""

    name: str
    cycle_id: str
    pid: int
    start: str

    @classmethod
    def of(cls, stem: str) -> BufferOwner | None:
        """Return the owner in the name of a file, None for a name of another form."""
        match = _FILE.fullmatch(stem)
        return None if match is None else cls(match[1], match[2], int(match[3]), match[4])

    @property
    def stem(self) -> str:
        """The name of the file, without its suffix."""
        return f"{self.name}~{self.cycle_id}~{self.pid}~{self.start}"


class Buffer:
    """One cycle under way, used in a ``with`` block that discards it unless it was committed.

    May be shared by threads of the process that began it. Raises BufferNotWritten.
    """

    def __init__(self, folder: Path, owner: BufferOwner, state: StateStore, clock: Clock) -> None:
        self.path: Final = folder / (owner.stem + SUFFIX)
        self.cycle_id: Final = owner.cycle_id
        self.name: Final = owner.name
        self._state = state
        self._clock = clock
        self._entries = 0
        self._is_over = False
        self._lock = threading.Lock()
        with _written(self.path):
            self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            try:
                self._set_up()
            except BaseException:
                self._remove()
                raise

    def __enter__(self) -> Self:
        """Return the buffer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Discard what was not committed."""
        self.discard()

    def put(self, kind: str, value: object) -> int:
        """Add a JSON value; return its place in the cycle, from 1. Not durable before the commit.

        Raises InvalidCycle, CycleEnded, BufferNotWritten.
        """
        content = self._checked(kind, value)
        sys.audit(StateCrashPoint.CYCLE_BEFORE_PUT, self.cycle_id)
        with self._lock, _written(self.path):
            self._check_open()
            self._connection.execute(_PUT, (kind, content.decode()))
            self._entries += 1
            place = self._entries
        sys.audit(StateCrashPoint.CYCLE_AFTER_PUT, self.cycle_id)
        return place

    def commit(self) -> bool:
        """Copy the cycle into the history, in one transaction; durable when this returns True.

        Without a store the cycle is discarded and this returns False. After a StoreError the cycle
        is still open, and a second commit is safe: an id is inserted once. Raises CycleEnded,
        BufferNotWritten, or any StoreError.
        """
        with self._lock:
            self._check_open()
            store = self._state.store
            if store is not None:
                sys.audit(StateCrashPoint.CYCLE_BEFORE_COMMIT, self.cycle_id)
                with store.transaction() as transaction:
                    self._copy_into(transaction)
                    sys.audit(StateCrashPoint.CYCLE_IN_COMMIT, self.cycle_id)
                sys.audit(StateCrashPoint.CYCLE_AFTER_COMMIT, self.cycle_id)
            self._remove()
            sys.audit(StateCrashPoint.CYCLE_AFTER_REMOVE, self.cycle_id)
            return store is not None

    def discard(self) -> None:
        """Remove the buffer without a commit; no error if the cycle has ended."""
        with self._lock:
            if not self._is_over:
                self._remove()

    def _set_up(self) -> None:
        # Nothing is flushed: after a loss of power the owner is dead, so its buffer is an orphan
        # whatever it holds. No rollback journal before the write-ahead log: a crash would leave a
        # hot journal, which a read-only connection cannot roll back.
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("PRAGMA journal_mode = MEMORY")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(_TABLE)

    def _copy_into(self, transaction: Transaction) -> None:
        if transaction.insert_cycle(Cycle(self.cycle_id, self.name, self._clock.now())):
            for page in self._pages():
                transaction.insert_cycle_entries(page)

    def _pages(self) -> Iterator[list[CycleEntry]]:
        after = 0
        with _written(self.path):
            while rows := self._connection.execute(_ENTRIES, (after, _PAGE)).fetchall():
                yield [CycleEntry(self.cycle_id, *row) for row in rows]
                after = rows[-1][0]

    def _checked(self, kind: object, value: object) -> bytes:
        if not isinstance(kind, str) or not kind or "\0" in kind or self._entries >= CYCLE_ENTRIES_MAX:
            message = (
                f"kind must be text that is not empty, and a cycle have at most {CYCLE_ENTRIES_MAX} entries; got "
                f"{kind!r} for entry {self._entries + 1}. Name the kind, or begin another cycle."
            )
            raise InvalidCycle(message)
        try:
            kind.encode()
            return snapshots.encoded(value, VALUE_BYTES_MAX)[0]
        except (UnicodeEncodeError, InvalidSnapshot) as error:
            message = f"an entry must be JSON of at most {VALUE_BYTES_MAX} bytes; {error}"
            raise InvalidCycle(message) from error

    def _check_open(self) -> None:
        if self._is_over:
            message = f"cycle {self.cycle_id} ({self.name}) must be under way; got one that has ended. Begin another."
            raise CycleEnded(message)

    def _remove(self) -> None:
        self._is_over = True
        self._connection.close()  # the last connection removes the sidecars
        for suffix in ("", *SIDECARS):
            with contextlib.suppress(OSError):  # a file that is left is an orphan once this process ends
                self.path.with_name(self.path.name + suffix).unlink()


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turn an error of SQLite or of the file system into BufferNotWritten."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        message = f"the buffer {path} must be written; got '{error}'. Free space, or make its folder writable."
        raise BufferNotWritten(message) from error


class Disposition(enum.StrEnum):
    """The outcome of recovery for one buffer."""

    LEFT = "left"
    DISCARDED = "discarded"
    QUARANTINED = "quarantined"


class FoundBuffer(msgspec.Struct, frozen=True):
    """A buffer in the folder: the name of its file, its disposition and the reason."""

    file: str
    disposition: Disposition
    detail: str = ""


class Orphans(msgspec.Struct, frozen=True):
    """The result of ``recover_orphans``; ``problems`` are sentences about what failed."""

    found: tuple[FoundBuffer, ...] = ()
    problems: tuple[str, ...] = ()

    def count(self, disposition: Disposition) -> int:
        """Return how many buffers were dealt with in this way."""
        return sum(each.disposition is disposition for each in self.found)


class Buffers:
    """The buffers of cycles below one root, and their history. May be shared by threads.

    >>> import tempfile
    >>> from durable_agents import Roots, StateStore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     roots = Roots(folder)
    ...     with StateStore(db_path=roots.database) as state:
    ...         buffers = Buffers(roots, state)
    ...         with buffers.begin("nightly") as cycle:
    ...             place = cycle.put("finding", {"file": "a.py"})
    ...             is_kept = cycle.commit()
    ...         print(is_kept, [each.name for each in buffers.history()])
    True ['nightly']
    """

    buffer: type[Buffer] = Buffer

    def __init__(self, roots: Roots, state: StateStore, *, clock: Clock | None = None) -> None:
        self.folder: Final = roots.buffers
        self._roots = roots
        self._state = state
        self._clock: Clock = SystemClock() if clock is None else clock

    def begin(self, name: str) -> Buffer:
        """Begin a cycle. Others, earlier or under way, may have the same name.

        Raises InvalidCycle for a name that cannot be part of a file's name, BufferNotWritten.
        """
        if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
            shown = repr(name)
            message = (
                f"the name of a cycle must be 1 to 100 letters, digits, '.', '_' and '-'; got {shown[:120]}. "
                "Replace the other characters."
            )
            raise InvalidCycle(message)
        self._roots.make()
        cycle_id = f"{self._clock.now():016x}-{secrets.token_hex(6)}"
        start = start_of(os.getpid())
        assert start is not None  # noqa: S101 - this very process
        sys.audit(StateCrashPoint.CYCLE_BEFORE_BEGIN, cycle_id)
        buffer = self.buffer(self.folder, BufferOwner(name, cycle_id, os.getpid(), start), self._state, self._clock)
        sys.audit(StateCrashPoint.CYCLE_AFTER_BEGIN, cycle_id)
        return buffer

    def history(self, *, after: str = "") -> Iterator[Cycle]:
        """Yield the committed cycles after the id ``after``, oldest first."""
        store = self._state.store
        while store is not None and (page := store.cycles(after=after, limit=_PAGE)):
            yield from page
            after = page[-1].cycle_id

    def entries(self, cycle_id: str) -> Iterator[tuple[str, Any]]:
        """Yield kind and value of each entry of a committed cycle, in order."""
        store, after = self._state.store, 0
        while store is not None and (page := store.cycle_entries(cycle_id, after=after, limit=_PAGE)):
            yield from ((entry.kind, msgspec.json.decode(entry.value)) for entry in page)
            after = page[-1].place

    def recover_orphans(self) -> Orphans:
        """Discard buffers of dead owners, quarantine unreadable ones, leave those of living owners.

        Idempotent, also after it was killed anywhere. Files that are no buffers are not touched; a
        missing folder is an empty one. Raises FolderLocked.
        """
        found: list[FoundBuffer] = []
        problems: list[str] = []
        with self._roots.locked(_LOCK):
            sys.audit(StateCrashPoint.ORPHANS_BEFORE_LOOK, "")
            for stem, suffixes in self._listed(problems).items():
                try:
                    found.append(self._judge(stem, suffixes))
                except OSError as error:
                    problems.append(f"the buffer {stem} could not be put away: {error.strerror or error}")
        for problem in problems:
            _log.warning("%s", problem)
        return Orphans(tuple(found), tuple(problems))

    def _listed(self, problems: list[str]) -> dict[str, set[str]]:
        """Return the suffixes of the files in the folder, by the stem of their buffer."""
        stems: dict[str, set[str]] = {}
        try:
            names = sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return {}
        except OSError as error:
            problems.append(f"the buffers in {self.folder} could not be listed: {error.strerror or error}")
            return {}
        for name in names:
            stem, found, suffix = name.rpartition(SUFFIX)
            if found and suffix in {"", *SIDECARS}:
                stems.setdefault(stem, set()).add(suffix)
        return stems

    def _judge(self, stem: str, suffixes: set[str]) -> FoundBuffer:
        owner = BufferOwner.of(stem)
        if owner is not None and self._is_live(owner):
            return FoundBuffer(stem, Disposition.LEFT, f"process {owner.pid} lives")
        if "" not in suffixes:
            if os.path.lexists(self.folder / QUARANTINE / (stem + SUFFIX)):
                return self._quarantine(stem, "its file is there already")
            return self._discard(stem, "its file is gone already")
        problem = "its name tells no owner" if owner is None else _unreadable(self.folder / (stem + SUFFIX))
        if problem:
            return self._quarantine(stem, problem)
        return self._discard(stem, "its owner is dead")

    def _is_live(self, owner: BufferOwner) -> bool:
        return look(owner.pid, owner.start) is not Liveness.DEAD

    def _discard(self, stem: str, detail: str) -> FoundBuffer:
        sys.audit(StateCrashPoint.ORPHANS_BEFORE_DISCARD, stem)
        for suffix in ("", *SIDECARS):
            (self.folder / (stem + SUFFIX + suffix)).unlink(missing_ok=True)
            if not suffix:
                sys.audit(StateCrashPoint.ORPHANS_AFTER_DISCARD_FILE, stem)
        sys.audit(StateCrashPoint.ORPHANS_AFTER_DISCARD, stem)
        return FoundBuffer(stem, Disposition.DISCARDED, detail)

    def _quarantine(self, stem: str, detail: str) -> FoundBuffer:
        sys.audit(StateCrashPoint.ORPHANS_BEFORE_QUARANTINE, stem)
        with contextlib.ExitStack() as stack:
            folder = os.open(self.folder, _FOLDER)
            stack.callback(os.close, folder)
            with contextlib.suppress(FileExistsError):
                os.mkdir(QUARANTINE, dir_fd=folder)
            # O_NOFOLLOW: a link in its place would lead outside.
            place = os.open(QUARANTINE, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            stack.callback(os.close, place)
            if os.path.lexists(self.folder / (stem + SUFFIX)):
                _make_room(place, stem)
            for suffix in ("", *SIDECARS):
                name = stem + SUFFIX + suffix
                with contextlib.suppress(FileNotFoundError):
                    os.rename(name, name, src_dir_fd=folder, dst_dir_fd=place)
                if not suffix:
                    sys.audit(StateCrashPoint.ORPHANS_AFTER_QUARANTINE_FILE, stem)
        sys.audit(StateCrashPoint.ORPHANS_AFTER_QUARANTINE, stem)
        _log.warning("the buffer %s is in %s: %s", stem, QUARANTINE, detail)
        return FoundBuffer(stem, Disposition.QUARANTINED, detail)


def _make_room(place: int, stem: str) -> None:
    """Give an earlier buffer of this name the next free number; its file goes last.

    Also a sidecar that is left of one: SQLite would take it for the new file's.
    """
    names = set(os.listdir(place))
    number = next(count for count in itertools.count(1) if f"{stem}.{count}{SUFFIX}" not in names)
    for suffix in (*SIDECARS, ""):
        if stem + SUFFIX + suffix in names:
            os.rename(stem + SUFFIX + suffix, f"{stem}.{number}{SUFFIX}{suffix}", src_dir_fd=place, dst_dir_fd=place)


def _unreadable(path: Path) -> str:
    """Return why a file is no sound database, or an empty text. Follows no link."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        return "is a link" if stat.S_ISLNK(status.st_mode) else "is not a regular file"
    if not status.st_size:
        return ""  # its owner died before the first write
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:  # SQLite would not notice if the log beside it has all pages
            return "does not begin as a database"
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            return "" if answer == "ok" else str(answer)
    except sqlite3.Error as error:
        return str(error)
