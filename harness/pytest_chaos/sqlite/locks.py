"""The POSIX locks of all processes, as the kernel keeps them (fcntl(2)). Pure.

A lock belongs to a process and a file, not to a descriptor. A process's own locks never conflict.
A later lock of a range replaces an earlier one of the same process. A close of *any* descriptor of
the file drops all of them. The kernel's answer is not seen, so it is computed.

A call is noted before the kernel does it. Until its thread is seen again it is *under way*: the
kernel may do a later call of another process first. So the answers of two calls that are under way
at one time, and of which one could refuse the other, are open: either process *may* have the lock.
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


class _LockCall(NamedTuple):
    """The last call of a thread, which the kernel may not have done yet."""

    event: Event
    was_refused: bool

    def may_change(self, event: Event) -> bool:
        """Whether the order of the two calls may decide what one of them is answered."""
        mine, other = self.event, event
        is_same = mine.node == other.node and mine.process != other.process
        overlaps = mine.offset < other.offset + other.length and other.offset < mine.offset + mine.length
        return is_same and overlaps and LockType.WRITE in {mine.lock, other.lock} | self._released

    @property
    def _released(self) -> set[LockType]:
        return {LockType.WRITE} if self.event.lock is LockType.NONE else set()


class PosixLocks:
    """The locks of one run, by file (node) and process."""

    def __init__(self) -> None:
        self._held: dict[int, dict[str, list[HeldLock]]] = {}
        self._open: dict[int, dict[str, list[HeldLock]]] = {}
        """Locks that a process may have: the answer to its call is open."""
        self._under_way: dict[tuple[str, int], _LockCall] = {}
        """By process and thread."""

    def goes_on(self, process: str, thread: int) -> None:
        """Take note that a thread makes another call: its last one is done."""
        self._under_way.pop((process, thread), None)

    def blocking(self, event: Event) -> list[tuple[str, HeldLock]]:
        """Return the locks that other processes surely have, and that refuse what is asked for."""
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
        is_refused = bool(self.blocking(event))
        beside = [each for each in self._under_way.values() if each.may_change(event)]
        self._under_way[event.process, event.thread] = _LockCall(event, is_refused)
        for each in beside:
            self._doubt(each)
        self._take(self._open, event, is_taken=False)
        if beside and event.lock is not LockType.NONE:
            if not is_refused:
                self._take(self._held, event, is_taken=False)
            self._take(self._open, event, is_taken=True)
            return not is_refused
        if not is_refused:
            self._take(self._held, event, is_taken=event.lock is not LockType.NONE)
        return not is_refused

    def _doubt(self, other: _LockCall) -> None:
        """Note that the answer to a call is open: what it asked for, its process may have."""
        event = other.event
        if event.lock is not LockType.NONE:
            if not other.was_refused:
                self._take(self._held, event, is_taken=False)
            self._take(self._open, event, is_taken=True)

    @staticmethod
    def _take(among: dict[int, dict[str, list[HeldLock]]], event: Event, *, is_taken: bool) -> None:
        """Put a lock in the place of what its process had there, or nothing."""
        start, end = event.offset, event.offset + event.length
        own = among.setdefault(event.node, {}).setdefault(event.process, [])
        rest = [part for lock in own for part in _without(lock, start, end)]
        own[:] = [*rest, HeldLock(start, end, event)] if is_taken else rest

    def held(self, node: int, process: str) -> list[HeldLock]:
        """Return the locks that a process has, or may have, on a file."""
        return [*self._held.get(node, {}).get(process, []), *self._open.get(node, {}).get(process, [])]

    def of_all(self, node: int) -> Iterator[tuple[str, HeldLock]]:
        """Yield each lock on a file, with its process."""
        for process, locks in self._held.get(node, {}).items():
            for lock in locks:
                yield process, lock

    def drop(self, node: int, process: str) -> None:
        """Drop the locks of a process on one file: it has closed a descriptor of it."""
        for among in (self._held, self._open):
            among.get(node, {}).pop(process, None)

    def drop_all(self, process: str) -> None:
        """Drop all locks of a process, which has ended."""
        for locks in (*self._held.values(), *self._open.values()):
            locks.pop(process, None)
        for key in [key for key in self._under_way if key[0] == process]:
            del self._under_way[key]


def _without(lock: HeldLock, start: int, end: int) -> Iterator[HeldLock]:
    """Yield what is left of a lock without a range."""
    if lock.start < min(lock.end, start):
        yield lock._replace(end=min(lock.end, start))
    if max(lock.start, end) < lock.end:
        yield lock._replace(start=max(lock.start, end))
