"""The inbox: acknowledged deliveries until they are handled, each once.

A sender that was told 2xx forgets the delivery, so it is on disk before the answer. A handler works
in two halves. First it decides, for as long as it takes, and changes nothing: it asks a gate, reads
a task. The change that it returns is applied in one transaction with the note that the delivery was
handled. A process that dies in between leaves the delivery waiting, and a second process at the
same inbox finds it handled. The change itself compares what was read with what is there (compare
and set). Effects outside the database need a mechanism of their own: an outbox, an idempotency key.

A delivery whose handler raises is tried again, ``ATTEMPTS_MAX`` times in all, and is then put aside
with the reason; it holds up no other.
"""

from __future__ import annotations

import enum
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from durable_agents.clock import Clock, Microseconds, SystemClock, microseconds
from durable_agents.errors import STORE_FAILURES
from durable_agents.store.protocol import Transaction
from durable_agents.store.rows import DeliveryStatus, StoredDelivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_agents.store import Store

ATTEMPTS_MAX: Final = 5
KEPT_S: Final = 7 * 24 * 3600.0
"""How long a handled delivery is kept, so that a replay of it is recognized: a week."""


class InboxPoint(enum.StrEnum):
    """The crash points of accepting deliveries (three), and of handling one (four), in order."""

    BEFORE_ACCEPT = "recovery.inbox.before_accept"
    AFTER_INSERT = "recovery.inbox.after_insert"
    AFTER_ACCEPT = "recovery.inbox.after_accept"
    BEFORE_HANDLE = "recovery.inbox.before_handle"
    AFTER_DECIDE = "recovery.inbox.after_decide"
    AFTER_HANDLE = "recovery.inbox.after_handle"
    AFTER_COMMIT = "recovery.inbox.after_commit"


DeliveryChange: TypeAlias = Callable[[Transaction], object]
"""A decision of a handler: applied through the transaction and nothing else, if it still holds."""

Handler: TypeAlias = Callable[[StoredDelivery], DeliveryChange | None]
"""Decides about a delivery without changing anything; None where there is nothing to change."""

_BATCH: Final = 100
_ERROR_CHARACTERS_MAX: Final = 500
_log: Final = logging.getLogger(__name__)


class InboxStatistics(msgspec.Struct, frozen=True):
    """The counts of one round: ``failed`` for good; ``postponed`` will be tried again."""

    handled: int = 0
    failed: int = 0
    postponed: int = 0


class Inbox:
    """Accepts deliveries, and hands each to ``handler`` once. May be shared by threads.

    >>> import tempfile
    >>> from durable_agents import open_store
    >>> with tempfile.TemporaryDirectory() as folder, open_store(f"{folder}/core.db") as store:
    ...     inbox = Inbox(store, lambda delivery: print(delivery.body))
    ...     inbox.accept([StoredDelivery(0, "tracker", "id:1", "msg_1", "", "{}", received_at=1)])
    ...     inbox.run_once()
    [True]
    {}
    InboxStatistics(handled=1, failed=0, postponed=0)
    """

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
        """Insert deliveries in one commit; return for each whether it is new.

        When this returns they survive a crash and a loss of power, and their senders may be told
        so. Raises any StoreError; none of them is inserted then.
        """
        sys.audit(InboxPoint.BEFORE_ACCEPT, len(deliveries))
        with self._store.transaction() as transaction:
            are_new = [transaction.accept_delivery(delivery) for delivery in deliveries]
            sys.audit(InboxPoint.AFTER_INSERT, len(deliveries))
        sys.audit(InboxPoint.AFTER_ACCEPT, len(deliveries))
        return are_new

    def run_once(self, now: Microseconds | None = None) -> InboxStatistics:
        """Handle all waiting deliveries, oldest first; delete those that were handled long ago.

        Any number of processes may call this at once: each delivery is handled by one. Raises the
        StoreErrors that would meet every delivery.
        """
        moment = self._clock.now() if now is None else now
        outcomes: list[DeliveryStatus | None] = []
        after = 0
        while batch := self._store.pending_deliveries(after=after, limit=_BATCH):
            outcomes += [self._handle(delivery) for delivery in batch]
            after = batch[-1].delivery_number
        self._delete_handled(moment - microseconds(KEPT_S))
        return InboxStatistics(
            handled=outcomes.count(DeliveryStatus.HANDLED),
            failed=outcomes.count(DeliveryStatus.FAILED),
            postponed=outcomes.count(DeliveryStatus.PENDING),
        )

    def _handle(self, delivery: StoredDelivery) -> DeliveryStatus | None:
        """Handle one delivery in one transaction; None where another process has handled it."""
        number = delivery.delivery_number
        sys.audit(InboxPoint.BEFORE_HANDLE, number)
        try:
            change = None if self._handler is None else self._handler(delivery)
            sys.audit(InboxPoint.AFTER_DECIDE, number)
            with self._store.transaction() as transaction:
                if not transaction.end_delivery(number, status=DeliveryStatus.HANDLED, error=""):
                    return None
                if change is not None:
                    change(transaction)
                sys.audit(InboxPoint.AFTER_HANDLE, number)
        except STORE_FAILURES:
            raise
        except Exception as error:  # noqa: BLE001 - the handler is the user's code, and must not hold up other deliveries
            return self._put_aside(delivery, error)
        sys.audit(InboxPoint.AFTER_COMMIT, number)
        return DeliveryStatus.HANDLED

    def _put_aside(self, delivery: StoredDelivery, error: Exception) -> DeliveryStatus | None:
        """Count a failed attempt; the last one ends the delivery as failed."""
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

    def _delete_handled(self, before: Microseconds) -> None:
        while (oldest := self._store.oldest_handled_delivery()) is not None and oldest < before:
            with self._store.transaction() as transaction:
                transaction.delete_deliveries(before=before, limit=_BATCH)
