"""A database that is read whole, not by SQLite: without its log, or while it is written.

A file that is read on to its end, or copied by the kernel, through a descriptor that was never
locked, is a copy: SQLite reads pages, each at its place. A copy is sound if nothing
was written meanwhile and the log has nothing that the database lacks, as under ``BEGIN IMMEDIATE``
after a checkpoint; or use the backup API or ``VACUUM INTO`` (sqlite.org/howtocorrupt.html, 1.2).
Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_chaos.sqlite.world import MAIN, part_of
from pytest_chaos.trace.step import NO_NODE, Action, Touch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.model.values import Finding
    from pytest_chaos.sqlite.telling import Teller
    from pytest_chaos.sqlite.world import World
    from pytest_chaos.trace.step import Event


class _Copy(NamedTuple):
    """A file that was read whole: its end, and when it began, as a count of events."""

    event: Event
    opened: Event | None
    part: str
    began: int
    ended: int
    hot: Event | None
    """The write to a journal of a transaction that was going on when the copy ended."""


class WholeCopies:
    """Databases that were read whole."""

    def __init__(self) -> None:
        self._copies: list[_Copy] = []
        self._writes: dict[str, list[tuple[int, Event]]] = {}
        """By path: when it was written, and the event."""

    def see(self, event: Event, world: World) -> None:
        """Look at closes of what was read to its end, and at all writes beside them."""
        if event.what is Action.WRITE and event.descriptor >= 0:
            self._writes.setdefault(event.path, []).append((world.at, event))
        if event.what is not Touch.CLOSE or not event.length:
            return
        descriptor = world.descriptor(event)
        database, part = part_of(event.path)
        if (
            not descriptor.is_whole
            or descriptor.is_locked
            or descriptor.is_written
            or part not in {MAIN, "log", "journal"}
        ):
            return
        hot = world.hot.get(world.nodes.get(f"{database}-journal", NO_NODE))
        self._copies.append(_Copy(event, descriptor.opened, part, descriptor.since, world.at, hot))

    def findings(self, world: World, tell: Teller) -> Iterator[Finding]:
        """Return one for each database and copying line."""
        told = set()
        for copy in self._copies:
            database = copy.event.path
            if copy.part != MAIN or database not in world.databases:
                continue
            finding = self._judged(copy, database, tell)
            if finding is not None and finding.signature not in told:
                told.add(finding.signature)
                yield finding

    def _judged(self, copy: _Copy, database: str, tell: Teller) -> Finding | None:
        others = {
            other.part: other
            for other in self._copies
            if other.event.process == copy.event.process and part_of(other.event.path)[0] == database
        }
        who = tell.who(copy.event)
        began = min([copy.began, *([others["log"].began] if "log" in others else [])])
        ended = max([copy.ended, *([others["log"].ended] if "log" in others else [])])
        paths = [database, *([f"{database}-wal"] if "log" in others else [])]
        meanwhile = [event for path in paths for at, event in self._writes.get(path, ()) if began < at < ended]
        if meanwhile:
            text = (
                f"{who} reads {database} whole, as a copy does, while {tell.who(meanwhile[0])} writes to "
                f"{meanwhile[0].path}: the copy has pages of two moments. Use the backup API, or VACUUM INTO"
            )
            return tell.finding("copied-while-written", database, copy.event, text)
        if copy.event.behind and "log" not in others:
            log = [event for at, event in self._writes.get(f"{database}-wal", ()) if at < copy.ended]
            by = f", the last one by {tell.who(log[-1])}" if log else ""
            text = (
                f"{who} reads {database} whole, as a copy does, without {database}-wal, which has "
                f"{copy.event.behind:,} frames that the database lacks{by}: the copy is without these transactions"
            )
            return tell.finding("copied-without-log", database, copy.event, text)
        if copy.hot is not None and "journal" not in others:
            text = (
                f"{who} reads {database} whole, as a copy does, within a transaction of {tell.who(copy.hot)}, and "
                f"without {database}-journal: the copy may have half of it. Use the backup API, or VACUUM INTO"
            )
            return tell.finding("copied-while-written", database, copy.event, text)
        return None
