"""Cycles: what one round of work finds, kept in a buffer until it gets into the history whole.

The buffer is a database file of its own. Its name says whose it is: the cycle's name, its id, and
its owner, by number and start (``durable_agents.processes``). A name cannot be half-written, and no
file of a living owner has to be opened to be judged.

The marker in the history is the id, which is made up anew for each cycle. Names come again, so a
marker by name would take the next cycle of that name for one that was committed already (D25).
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import sys
import threading
from typing import TYPE_CHECKING, Final, Self

import msgspec

from durable_agents import snapshots
from durable_agents.errors import BufferNotWritten, CycleEnded, InvalidCycle, InvalidSnapshot
from durable_agents.state.crash_points import StateCrashPoint
from durable_agents.state.groups import VALUE_BYTES_MAX
from durable_agents.store.rows import Cycle, CycleEntry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents.clock import Clock
    from durable_agents.state.groups import StateStore
    from durable_agents.store import Transaction


CYCLE_ENTRIES_MAX: Final = 1_000_000
NAME_PATTERN: Final = r"[A-Za-z0-9._-]{1,100}"
SUFFIX: Final = ".buffer"
SIDECARS: Final = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database file, by the end of its name."""

_FILE: Final = re.compile(rf"({NAME_PATTERN})~([0-9a-f]{{16}}-[0-9a-f]{{12}})~(\d{{1,10}})~([0-9a-f-]{{36}}:\d+)")
_PAGE: Final = 1000
_TABLE: Final = "CREATE TABLE entries (place INTEGER PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL) STRICT"
_PUT: Final = "INSERT INTO entries (kind, value) VALUES (?, ?)"
_ENTRIES: Final = "SELECT place, kind, CAST(value AS BLOB) FROM entries WHERE place > ? ORDER BY place LIMIT ?"


class BufferOwner(msgspec.Struct, frozen=True):
    """What the name of a buffer's file says: of which cycle it is, and of which process."""

    name: str
    cycle_id: str
    pid: int
    start: str

    @classmethod
    def of(cls, stem: str) -> BufferOwner | None:
        """Return the owner that the name of a file tells, None for a name that is not of our making."""
        match = _FILE.fullmatch(stem)
        return None if match is None else cls(match[1], match[2], int(match[3]), match[4])

    @property
    def stem(self) -> str:
        """The name of the file, without its suffix."""
        return f"{self.name}~{self.cycle_id}~{self.pid}~{self.start}"


class Buffer:
    """One cycle under way. Use it as a block: what is not committed in it is discarded at its end.

    May be shared by threads of the process that began it.
    """

    def __init__(self, folder: Path, owner: BufferOwner, state: StateStore, clock: Clock) -> None:
        """Make the file. Raises BufferNotWritten."""
        self._path = folder / (owner.stem + SUFFIX)
        self._owner = owner
        self._state = state
        self._clock = clock
        self._entries = 0
        self._is_over = False
        self._lock = threading.Lock()
        with _written(self._path):
            self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                self._set_up()
            except BaseException:
                self._remove()
                raise

    @property
    def cycle_id(self) -> str:
        """The id under which the history will have it."""
        return self._owner.cycle_id

    @property
    def name(self) -> str:
        """The cycle's name, which others may have had before it."""
        return self._owner.name

    @property
    def path(self) -> Path:
        """The buffer's file."""
        return self._path

    def __enter__(self) -> Self:
        """Return the buffer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Discard what was not committed."""
        self.discard()

    def put(self, kind: str, value: object) -> int:
        """Keep a finding, which is JSON, until the commit; return its place in the cycle, from 1.

        It survives nothing but the end of this call: an orphan is worth nothing. Raises
        InvalidCycle, CycleEnded, BufferNotWritten.
        """
        content = self._checked(kind, value)
        sys.audit(StateCrashPoint.CYCLE_BEFORE_PUT, self.cycle_id)
        with self._lock, _written(self._path):
            self._check_open()
            self._connection.execute(_PUT, (kind, content.decode()))
            self._entries += 1
            place = self._entries
        sys.audit(StateCrashPoint.CYCLE_AFTER_PUT, self.cycle_id)
        return place

    def commit(self) -> bool:
        """Put the whole cycle into the history, in one transaction; durable when this returns True.

        Without a store the cycle is discarded and the answer is False. After a StoreError it is
        still open, and committing again is safe: its id is taken once. Raises CycleEnded,
        BufferNotWritten, StoreErrors.
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
        """Remove the buffer, nothing of it gets into the history; no error where the cycle has ended already."""
        with self._lock:
            if not self._is_over:
                self._remove()

    def _set_up(self) -> None:
        # Nothing is flushed: after a loss of power the owner is dead, and its buffer is an orphan
        # whatever it holds. Nor is there a journal before there is a log: a crash would leave a hot
        # one, which reading alone cannot heal.
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("PRAGMA journal_mode = MEMORY")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute(_TABLE)

    def _marker(self) -> Cycle:
        return Cycle(self.cycle_id, self.name, self._clock.now())

    def _copy_into(self, transaction: Transaction) -> None:
        if transaction.insert_cycle(self._marker()):
            for page in self._pages():
                transaction.insert_cycle_entries(page)

    def _pages(self) -> Iterator[list[CycleEntry]]:
        after = 0
        with _written(self._path):
            while rows := self._connection.execute(_ENTRIES, (after, _PAGE)).fetchall():
                yield [CycleEntry(self.cycle_id, *row) for row in rows]
                after = rows[-1][0]

    def _checked(self, kind: object, value: object) -> bytes:
        if not isinstance(kind, str) or not kind or "\0" in kind or self._entries >= CYCLE_ENTRIES_MAX:
            message = (
                f"Expected a kind that is not empty, for one of at most {CYCLE_ENTRIES_MAX} entries, but got {kind!r} "
                f"for entry {self._entries + 1}; name the kind, or begin another cycle."
            )
            raise InvalidCycle(message)
        try:
            kind.encode()
            return snapshots.encoded(value, VALUE_BYTES_MAX)[0]
        except (UnicodeEncodeError, InvalidSnapshot) as error:
            message = f"Expected an entry that is JSON of at most {VALUE_BYTES_MAX} bytes but got none: {error}"
            raise InvalidCycle(message) from error

    def _check_open(self) -> None:
        if self._is_over:
            message = f"Expected cycle {self.cycle_id} ({self.name}) to be under way but it has ended; begin another."
            raise CycleEnded(message)

    def _remove(self) -> None:
        self._is_over = True
        self._connection.close()  # the last connection takes the sidecars with it
        for suffix in ("", *SIDECARS):
            with contextlib.suppress(OSError):  # what is left has an owner that will be dead
                self._path.with_name(self._path.name + suffix).unlink()


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Say in our words what stands in the way of a buffer."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        message = f"Expected to write the buffer {path} but '{error}'; free space, or make its folder writable."
        raise BufferNotWritten(message) from error
