"""Findings about SQLite, in words: both parties by program line, and why it matters. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from pytest_chaos.model.values import Finding
from pytest_chaos.sqlite.world import (
    PENDING,
    RESERVED,
    SHARED,
    WAL_CHECKPOINT,
    WAL_OPEN,
    WAL_READ,
    WAL_READ_END,
    WAL_RECOVER,
    WAL_WRITE,
)
from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pytest_chaos.sqlite.locks import HeldLock
    from pytest_chaos.sqlite.world import World
    from pytest_chaos.trace.step import Event

_LINE: Final = re.compile(r":\d+( in |$)")
_BYTES: Final = {PENDING: "PENDING", RESERVED: "RESERVED"}
_BYTES_OF_INDEX: Final = {
    WAL_WRITE: "the write lock of the log",
    WAL_CHECKPOINT: "the checkpoint lock",
    WAL_RECOVER: "the recovery lock",
    WAL_OPEN: "the lock of an open connection",
}


class Detector(Protocol):
    """Looks at the events of one run in their order, each with the world as it was before it."""

    def see(self, event: Event, world: World) -> None:
        """Take in one event."""

    def findings(self, world: World, tell: Teller) -> Iterable[Finding]:
        """Return what was found, once all events were seen."""


class Teller:
    """Makes findings. ``name_of`` gives the name of a process, for where no line is known."""

    def __init__(self, name_of: Callable[[str], str]) -> None:
        self.name_of = name_of

    def who(self, event: Event | None) -> str:
        """Return who made an event: the line, and the process where it is not the first one."""
        if event is None:
            return "what was open before"
        name = self.name_of(event.process)
        if not event.line:
            return name or "the program"
        return f"{event.line} ({name})" if name else event.line

    def finding(self, what: str, path: str, by: Event | None, text: str) -> Finding:
        """Return a finding. Its signature has kind, file and the function that did it.

        The number of a line is not in it: it changes with every edit.
        """
        place = _LINE.sub(r"\1", by.line) if by is not None and by.line else ""
        signature = ":".join(filter(None, ("sqlite", what, readable(path), place)))
        return Finding(signature=signature, text=text, kind="safety", checker="sqlite")


def lock_names(locks: Iterable[HeldLock], part: str) -> str:
    """Return the names that SQLite gives to locks."""
    names = []
    for lock in locks:
        if part == "index":
            found = [name for byte, name in _BYTES_OF_INDEX.items() if lock.overlaps(byte, byte + 1)]
            found += ["a read mark"] if lock.overlaps(WAL_READ, WAL_READ_END) else []
        else:
            found = [name for byte, name in _BYTES.items() if lock.overlaps(byte, byte + 1)]
            found += ["EXCLUSIVE" if lock.is_write else "SHARED"] if lock.overlaps(SHARED, SHARED + 1) else []
        names += found or ["a lock"]
    return " and ".join(dict.fromkeys(names))


def times(count: int) -> str:
    """Return how often, for what came more than once.

    >>> times(1), times(3)
    ('', ' (3 times)')
    """
    return f" ({count:,} times)" if count > 1 else ""
