"""Alerts: what somebody has to be told is written down with what it is about, and sent afterwards.

An alert is a row of the outbox, written in the transaction in which a job failed, so there is one
for each failure. It is sent by whoever comes first, says whose it is while it is being sent, and
goes when it was. A sender that dies while it sends leaves the one honest doubt: whether it came
through. Its alert is sent again, with the same ``key``, by which the receiver can tell.
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
"""How often an alert is tried; then it is given up, in the log."""


_LOGGER: Final = logging.getLogger(__name__)


class Alert(msgspec.Struct, frozen=True):
    """What a notifier is given. ``key`` is the same whenever one failure is told again."""

    key: str
    job_id: int
    agent: str
    task_id: str | None
    text: str


class Notifier(Protocol):
    """Whoever tells people: a chat, a pager. Anything that can be called with an alert will do.

    It should bound its own waiting: nobody else does.
    """

    def __call__(self, alert: Alert, /) -> None:
        """Send it; an error means that it was not sent, and is to be tried again."""
        ...


def log(alert: Alert) -> None:
    """Write the alert into the log: the notifier of those who gave none."""
    _LOGGER.error("%s", alert.text)


class Alerts:
    """Sends the alerts of a store through a notifier. May be shared by threads."""

    def __init__(self, store: Store, notifier: Notifier = log) -> None:
        """Prepare; nothing is sent yet."""
        self._store = store
        self._notifier = notifier

    def deliver(self) -> int:
        """Send what is to be sent, and return how many alerts were. Raises any StoreError.

        A notifier that raises stops no other alert; its own is tried again at the next call,
        ``TRIES_MAX`` times.
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
        try:
            self._notifier(_alert(entry))
        except BaseException as error:
            self._take(entry, me, None)
            if not isinstance(error, Exception):
                raise
            _LOGGER.warning("alert %s was not sent: %s: %s", _alert(entry).key, type(error).__name__, error)
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


def _alert(entry: OutboxEntry) -> Alert:
    key = f"job-{entry.job_id}-claim-{entry.claim}"
    return Alert(key, entry.job_id, entry.agent, entry.task_id, entry.text)


def _is_alive(sender: str) -> bool:
    pid, _, start = sender.partition("/")
    return look(int(pid), start) is not Liveness.DEAD
