"""The inbox: deliveries that were acknowledged to their senders, kept until they are handled, each handled once.

A sender that was told 2xx forgets the delivery, so it is on disk before it is told. A handler works
in two halves. First it decides, for as long as it takes, and changes nothing: it asks a gate, reads
a task. What it returns is applied in one transaction with the note that the delivery was handled: a
process that dies in between leaves the delivery waiting, and a second process at the same inbox
finds it handled. What has changed since the decision is for the second half to see (compare and
set). What a handler does outside of the database is its own business (an outbox, an idempotency
key).

A delivery whose handler raises is tried again, ``ATTEMPTS_MAX`` times in all, and then put aside
with the reason; it holds up no other.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.clock import Clock, Microseconds, SystemClock, microseconds
from durable_agents.errors import DatabaseFull, DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable, StoreClosed
from durable_agents.store.rows import DeliveryStatus, StoredDelivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_agents.store import Store, Transaction

ATTEMPTS_MAX: Final = 5
KEPT_S: Final = 7 * 24 * 3600.0
"""How long a handled delivery is remembered, so that a replay of it is known: a week."""

INBOX_CRASH_POINTS: Final = (
    "recovery.inbox.before_accept",
    "recovery.inbox.after_insert",
    "recovery.inbox.after_accept",
    "recovery.inbox.before_handle",
    "recovery.inbox.after_decide",
    "recovery.inbox.after_handle",
    "recovery.inbox.after_commit",
)
"""The audit events of accepting deliveries (three), and of handling one (four), in order."""

BEFORE_ACCEPT, AFTER_INSERT, AFTER_ACCEPT, BEFORE_HANDLE, AFTER_DECIDE, AFTER_HANDLE, AFTER_COMMIT = INBOX_CRASH_POINTS
_BATCH: Final = 100
_ERROR_CHARACTERS_MAX: Final = 500
_FATAL: Final = (DatabaseFull, DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable, StoreClosed)
_log: Final = logging.getLogger("durable_agents.webhooks.inbox")


class InboxStatistics(msgspec.Struct, frozen=True):
    """What one round did: ``failed`` were put aside for good, ``postponed`` will be tried again."""

    handled: int = 0
    failed: int = 0
    postponed: int = 0


class Handler(Protocol):
    """What is done about deliveries."""

    def __call__(self, delivery: StoredDelivery, /) -> Change | None:
        """Decide, without changing anything; return the change, or None where there is none to make."""
        ...


class Change(Protocol):
    """What a handler has decided to do."""

    def __call__(self, transaction: Transaction, /) -> object:
        """Do it, through the transaction and through nothing else, if it still holds."""
        ...


class Inbox:
    """Accepts deliveries, and hands each to ``handler`` once. May be shared by threads."""

    def __init__(
        self,
        store: Store,
        handler: Handler | None = None,
        *,
        clock: Clock | None = None,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> None:
        """Without a handler, deliveries are accepted and count as handled when their turn comes."""
        self._store = store
        self._handler = handler
        self._clock: Clock = SystemClock() if clock is None else clock
        self._attempts_max = attempts_max

    def accept(self, deliveries: Sequence[StoredDelivery]) -> list[bool]:
        """Put deliveries into the inbox, all in one commit; return for each whether it is new.

        When this returns they survive a crash and a loss of power, and their senders may be told
        so. Raises any StoreError, and none of them is there then.
        """
        sys.audit(BEFORE_ACCEPT, len(deliveries))
        with self._store.transaction() as transaction:
            are_new = [transaction.accept_delivery(delivery) for delivery in deliveries]
            sys.audit(AFTER_INSERT, len(deliveries))
        sys.audit(AFTER_ACCEPT, len(deliveries))
        return are_new

    def run_once(self, now: Microseconds | None = None) -> InboxStatistics:
        """Handle what waits, oldest first, and forget what was handled long ago. Raises the StoreErrors that meet all.

        Any number of processes may do so at once: each delivery is handled by one.
        """
        moment = self._clock.now() if now is None else now
        outcomes: list[DeliveryStatus] = []
        after = 0
        while batch := self._store.pending_deliveries(after=after, limit=_BATCH):
            outcomes += [outcome for delivery in batch if (outcome := self._handle(delivery)) is not None]
            after = batch[-1].delivery_number
        self._forget(moment - microseconds(KEPT_S))
        return InboxStatistics(
            handled=outcomes.count(DeliveryStatus.HANDLED),
            failed=outcomes.count(DeliveryStatus.FAILED),
            postponed=outcomes.count(DeliveryStatus.PENDING),
        )

    def _handle(self, delivery: StoredDelivery) -> DeliveryStatus | None:
        """Handle one delivery in one transaction; None where somebody else has."""
        number = delivery.delivery_number
        sys.audit(BEFORE_HANDLE, number)
        try:
            change = None if self._handler is None else self._handler(delivery)
            sys.audit(AFTER_DECIDE, number)
            with self._store.transaction() as transaction:
                if not transaction.end_delivery(number, status=DeliveryStatus.HANDLED, error=""):
                    return None
                if change is not None:
                    change(transaction)
                sys.audit(AFTER_HANDLE, number)
        except _FATAL:
            raise
        except Exception as error:  # noqa: BLE001 - a handler is the user's: one that raises holds up no other
            return self._put_aside(delivery, error)
        sys.audit(AFTER_COMMIT, number)
        return DeliveryStatus.HANDLED

    def _put_aside(self, delivery: StoredDelivery, error: Exception) -> DeliveryStatus | None:
        """Count a failed attempt; after the last one, the delivery waits no more."""
        is_last = delivery.attempts + 1 >= self._attempts_max
        status = DeliveryStatus.FAILED if is_last else DeliveryStatus.PENDING
        text = f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS_MAX]
        with self._store.transaction() as transaction:
            if not transaction.end_delivery(delivery.delivery_number, status=status, error=text):
                return None
        level = logging.ERROR if is_last else logging.WARNING
        what = "is put aside" if is_last else "will be tried again"
        _log.log(level, "delivery %s from %s %s: %s", delivery.delivery_id, delivery.source, what, text)
        return status

    def _forget(self, before: Microseconds) -> None:
        while (oldest := self._store.oldest_handled_delivery()) is not None and oldest < before:
            with self._store.transaction() as transaction:
                transaction.delete_deliveries(before=before, limit=_BATCH)
