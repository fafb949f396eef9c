"""Alerts: one message for each failed job, sent at least once from the outbox.

An alert is a row of the outbox, written in the transaction in which its job failed. A sender marks
the row with its own process, sends, and deletes the row. If a sender dies while it sends, nobody
knows whether the message came through: it is sent again with the same ``key``, by which the
receiver recognises it.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.jobs.crash_points import JobCrashPoint
from durable_agents.processes import Liveness, look, start_of
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import OutboxEntry, OutboxKind

if TYPE_CHECKING:
    from durable_agents.store import Store

TRIES_MAX: Final = 10
"""Attempts to send one alert; after the last it is dropped, with an error in the log."""

_LOGGER: Final = logging.getLogger(__name__)


class Alert(msgspec.Struct, frozen=True):
    """The argument of a notifier. ``key`` identifies one failure, however often it is sent."""

    key: str
    job_id: int
    agent: str
    task_id: str | None
    text: str


class Notifier(Protocol):
    """A callable that tells people: a chat, a pager. It must bound its own waiting."""

    def __call__(self, alert: Alert, /) -> None:
        """Send the alert. An exception means that it was not sent; it is tried again."""
        ...


def log_alert(alert: Alert) -> None:
    """Write the alert into the log: the default notifier."""
    _LOGGER.error("%s", alert.text)


class Alerts:
    """Sender of a store's alerts. May be shared by threads."""

    def __init__(self, store: Store, notifier: Notifier = log_alert) -> None:
        self._store = store
        self._notifier = notifier

    def deliver(self) -> int:
        """Send all alerts that wait, and return how many were sent. Raises any StoreError.

        If the notifier raises, the other alerts are still sent. The failed one is tried again at
        the next call, ``TRIES_MAX`` times in all.
        """
        me = f"{os.getpid()}/{start_of(os.getpid())}"
        sent, after = 0, 0
        while entries := self._store.outbox(OutboxKind.ALERT, after=after, limit=PAGE_ROWS_MAX):
            sent += sum(self._deliver_one(entry, me) for entry in entries)
            after = entries[-1].outbox_id
        return sent

    def _deliver_one(self, entry: OutboxEntry, me: str) -> bool:
        if entry.taken_by is not None and _is_alive(entry.taken_by):
            return False
        if entry.tries >= TRIES_MAX:
            self._delete(entry)
            _LOGGER.error("an alert was given up after %d tries: %s", entry.tries, entry.text)
            return False
        if not self._take(entry, entry.taken_by, me):
            return False
        sys.audit(JobCrashPoint.ALERT_AFTER_TAKE, entry.job_id)
        key = f"job-{entry.job_id}-claim-{entry.claim}"
        try:
            self._notifier(Alert(key, entry.job_id, entry.agent, entry.task_id, entry.text))
        except BaseException as error:
            self._take(entry, me, None)
            if not isinstance(error, Exception):
                raise
            _LOGGER.warning("alert %s was not sent: %s: %s", key, type(error).__name__, error)
            return False
        sys.audit(JobCrashPoint.ALERT_AFTER_SEND, entry.job_id)
        self._delete(entry)
        sys.audit(JobCrashPoint.ALERT_AFTER_DELETE, entry.job_id)
        return True

    def _take(self, entry: OutboxEntry, expected: str | None, taken_by: str | None) -> bool:
        with self._store.transaction() as transaction:
            return transaction.take_outbox(entry, expected=expected, taken_by=taken_by)

    def _delete(self, entry: OutboxEntry) -> None:
        with self._store.transaction() as transaction:
            transaction.delete_outbox(entry)


def _is_alive(sender: str) -> bool:
    pid, _, start = sender.partition("/")
    return look(int(pid), start) is not Liveness.DEAD
