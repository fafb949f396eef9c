"""Sync queues with one known bug each.

| variant | bug | seen by |
|---|---|---|
| DequeuesFirst | an entry leaves the queue before it is sent | a push that fails |
| NewKeyEachTime | the key is made up when it is sent | a push that arrives twice |
| FileOnly | the store has no copy | the loss of the file |
| StoreOnly | the file is no copy | the loss of the store |
| Overtakes | while the head has its pause the next is pushed | a push that fails |
| NeverPausesLonger | each pause is as long as the first | a push that fails again |
| BelievesAnybody | any success is an acknowledgement | a lost push that somebody else says was accepted |
"""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Any

import msgspec
from durable_agents import StateCrashPoint, SyncQueue

if TYPE_CHECKING:
    from durable_agents import SyncEntry
    from durable_agents.state.sync_queue import SyncPass, SyncQueueCopy


class DequeuesFirst(SyncQueue):
    """Takes an entry off the queue and sends it."""

    def _deliver(self, entry: SyncEntry) -> None:
        self.drop(entry.key)
        sys.audit(StateCrashPoint.SYNC_BEFORE_PUSH, entry.key)
        self._push(entry)
        sys.audit(StateCrashPoint.SYNC_AFTER_PUSH, entry.key)


class NewKeyEachTime(SyncQueue):
    """Gives each request a key of its own."""

    def _deliver(self, entry: SyncEntry) -> None:
        sys.audit(StateCrashPoint.SYNC_BEFORE_PUSH, entry.key)
        self._push(msgspec.structs.replace(entry, key=secrets.token_hex(16)))
        sys.audit(StateCrashPoint.SYNC_AFTER_PUSH, entry.key)
        self.drop(entry.key)


class FileOnly(SyncQueue):
    """Keeps the queue in its file."""

    def _write_store(self, queue: SyncQueueCopy, *, is_file_behind: bool) -> str:
        assert queue is not None
        return "" if not is_file_behind else "there is no store"


class StoreOnly(SyncQueue):
    """Keeps the queue in the store."""

    def _write_file(self, queue: SyncQueueCopy) -> str:
        assert queue is not None
        return ""


class Overtakes(SyncQueue):
    """Does not let one failing push keep up the others."""

    def _is_due(self, waiting: tuple[SyncEntry, ...], moment: int) -> bool:
        return any(super(Overtakes, self)._is_due((entry,), moment) for entry in waiting)

    def _chosen(self, waiting: tuple[SyncEntry, ...], moment: int) -> SyncEntry:
        return next(entry for entry in waiting if super(Overtakes, self)._is_due((entry,), moment))


class BelievesAnybody(SyncQueue):
    """Takes 202 for an answer, whoever gives it."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._push._requires_echo = False  # type: ignore[attr-defined]


class NeverPausesLonger(SyncQueue):
    """Asks a receiver that is down every second, for ever."""

    def _put_off(self, entry: SyncEntry, error: str, now: int, pushed: int) -> SyncPass:
        return super()._put_off(msgspec.structs.replace(entry, attempts=0), error, now, pushed)
