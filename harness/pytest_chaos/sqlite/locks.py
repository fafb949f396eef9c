"""The POSIX locks of all processes, as the kernel keeps them (fcntl(2)). Pure.

A lock belongs to a process and a file, not to a descriptor. A process's own locks never conflict.
A later lock of a range replaces an earlier one of the same process. A close of *any* descriptor of
the file drops all of them. The kernel's answer is not seen, so it is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pytest_chaos.trace.step import LockType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.trace.step import Event


class HeldLock(NamedTuple):
    """A range that a process has locked, from ``start`` up to ``end``, by the event that did it."""

    start: int
    end: int
    event: Event

    @property
    def is_write(self) -> bool:
        """Whether it is exclusive."""
        return self.event.lock is LockType.WRITE

    def overlaps(self, start: int, end: int) -> bool:
        """Whether a byte of a range is in this one."""
        return self.start < end and start < self.end


class PosixLocks:
    """The locks of one run, by file (node) and process."""

    def __init__(self) -> None:
        self._held: dict[int, dict[str, list[HeldLock]]] = {}

    def blocking(self, event: Event) -> list[tuple[str, HeldLock]]:
        """Return the locks of other processes that refuse a lock that is asked for."""
        if event.lock is LockType.NONE:
            return []
        start, end = event.offset, event.offset + event.length
        return [
            (process, lock)
            for process, locks in self._held.get(event.node, {}).items()
            if process != event.process
            for lock in locks
            if lock.overlaps(start, end) and (lock.is_write or event.lock is LockType.WRITE)
        ]

    def ask(self, event: Event) -> bool:
        """Take or release a lock, if no other process has one that refuses it; return that."""
        if self.blocking(event):
            return False
        start, end = event.offset, event.offset + event.length
        own = self._held.setdefault(event.node, {}).setdefault(event.process, [])
        rest = [part for lock in own for part in _without(lock, start, end)]
        own[:] = rest if event.lock is LockType.NONE else [*rest, HeldLock(start, end, event)]
        return True

    def held(self, node: int, process: str) -> list[HeldLock]:
        """Return the locks that a process has on a file."""
        return self._held.get(node, {}).get(process, [])

    def of_all(self, node: int) -> Iterator[tuple[str, HeldLock]]:
        """Yield each lock on a file, with its process."""
        for process, locks in self._held.get(node, {}).items():
            for lock in locks:
                yield process, lock

    def drop(self, node: int, process: str) -> None:
        """Drop the locks of a process on one file: it has closed a descriptor of it."""
        self._held.get(node, {}).pop(process, None)

    def drop_all(self, process: str) -> None:
        """Drop all locks of a process, which has ended."""
        for locks in self._held.values():
            locks.pop(process, None)


def _without(lock: HeldLock, start: int, end: int) -> Iterator[HeldLock]:
    """Yield what is left of a lock without a range."""
    if lock.start < min(lock.end, start):
        yield lock._replace(end=min(lock.end, start))
    if max(lock.start, end) < lock.end:
        yield lock._replace(start=max(lock.start, end))
