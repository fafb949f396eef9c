"""Commits: what is acknowledged before it is flushed, and schema changes in several transactions.

A transaction of the log ends with a frame that has the size of the database, and one of a journal
when the journal goes (sqlite.org/fileformat2.html, 3 and 4). The schema cookie, at byte 40 of the
first page, changes with each change of the schema. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.sqlite.world import MAIN, part_of
from pytest_chaos.trace.step import SYNCS, Action, LockType, Touch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.model.values import Finding
    from pytest_chaos.sqlite.telling import Teller
    from pytest_chaos.sqlite.world import World
    from pytest_chaos.trace.step import Event

_FRAME_HEADER_BYTES: Final = 24
_COOKIE: Final = slice(40, 44)
_HEADER: Final = b"SQLite format 3\0"
_ACK: Final = re.compile(rb'"kind"\s*:\s*"ack"')


class SchemaChange(NamedTuple):
    """A transaction that changed the schema, by its last write to the log or the database."""

    database: str
    event: Event


class _Unflushed(NamedTuple):
    commit: Event
    ack: Event


class Commits:
    """Commits of each process, and what it acknowledged after them."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Event] = {}
        """By process and file: the last commit that is not flushed."""
        self._found: dict[tuple[str, str], _Unflushed] = {}
        self._page_one: dict[str, bool] = {}
        self._ends: dict[str, bool] = {}
        self._cookie: dict[str, bytes] = {}
        self._new_cookie: dict[tuple[str, str], bytes] = {}
        self.schema_changes: list[SchemaChange] = []

    def see(self, event: Event, world: World) -> None:
        """Look at writes, flushes and marks."""
        database, part = part_of(event.path)
        if event.what is Action.MARK:
            self._marked(event)
        elif event.what is Action.WRITE and part == "log":
            self._frame(event, database)
        elif event.what is Action.WRITE and part == MAIN and database not in world.has_log:
            self._open[event.process, event.path] = event
            if event.offset == 0 and event.head.startswith(_HEADER):
                self._new_cookie[event.process, database] = event.head[_COOKIE]
        elif event.what is Touch.LOCK and part == MAIN and event.lock is not LockType.WRITE:
            if database not in world.has_log and world.is_exclusive(database, event.process):
                self._committed(event, database, self._open.get((event.process, event.path)))
        elif event.what in SYNCS and event.what is not Action.SYNC_RANGE:
            for key in [key for key in self._open if event.what is Action.SYNC_ALL or key[1] == event.path]:
                del self._open[key]

    def _frame(self, event: Event, database: str) -> None:
        """Take in a write to the log: the header of a frame, or its page."""
        if event.length == _FRAME_HEADER_BYTES:
            self._page_one[event.process] = int.from_bytes(event.head[:4], "big") == 1
            self._ends[event.process] = event.head[4:8] != bytes(4)
            return
        if self._page_one.pop(event.process, False) and event.head.startswith(_HEADER):
            self._new_cookie[event.process, database] = event.head[_COOKIE]
        if self._ends.pop(event.process, False):
            self._open[event.process, event.path] = event
            self._committed(event, database, event)

    def _committed(self, event: Event, database: str, last: Event | None) -> None:
        cookie = self._new_cookie.pop((event.process, database), None)
        if cookie is None or cookie == self._cookie.get(database, bytes(4)):
            return
        self._cookie[database] = cookie
        self.schema_changes.append(SchemaChange(database, last or event))

    def _marked(self, event: Event) -> None:
        if not _ACK.search(event.head):
            return
        for (process, path), commit in self._open.items():
            if process == event.process:
                self._found.setdefault((path, commit.line), _Unflushed(commit, event))

    def findings(self, world: World, tell: Teller) -> Iterator[Finding]:
        """Return one for each file and committing line."""
        for (path, _), found in self._found.items():
            database, part = part_of(path)
            if database not in world.databases:
                continue
            how = "the log" if part == "log" else "the database"
            text = (
                f"{tell.who(found.ack)} acknowledges what {tell.who(found.commit)} committed to {database}, and "
                f"nothing has flushed {how} since: a power loss takes it back. Use PRAGMA synchronous=FULL, or "
                "acknowledge later"
            )
            yield tell.finding("acknowledged-unflushed", database, found.commit, text)
