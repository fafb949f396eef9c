"""The statements on the inbox of deliveries: a part of the SQLite store.

They are mixed into the store and its transaction (``sqlite``), which lend them ``execute`` and ``_read``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from recovery.store.rows import DeliveryStatus, StoredDelivery

if TYPE_CHECKING:
    import sqlite3

    from recovery.clock import Microseconds
    from recovery.store.rows import Scalar

_ACCEPT: Final = (
    "INSERT INTO webhook_inbox (source, identity, delivery_id, event, received_at, status, attempts, error, body) "
    "VALUES (?, ?, ?, ?, ?, 'pending', 0, '', ?) ON CONFLICT (source, identity) DO NOTHING"
)
_PENDING: Final = (
    "SELECT delivery_number, source, identity, delivery_id, event, body, received_at, status, attempts, error "
    "FROM webhook_inbox WHERE status = 'pending' AND delivery_number > ? ORDER BY delivery_number LIMIT ?"
)
_END: Final = (
    "UPDATE webhook_inbox SET status = ?, error = ?, attempts = attempts + 1 "
    "WHERE delivery_number = ? AND status = 'pending'"
)
_DELETE: Final = (
    "DELETE FROM webhook_inbox WHERE delivery_number IN (SELECT delivery_number FROM webhook_inbox "
    "WHERE status = 'handled' AND received_at < ? ORDER BY received_at LIMIT ?)"
)
_OLDEST: Final = "SELECT min(received_at) FROM webhook_inbox WHERE status = 'handled'"
# Said and not bound: SQLite uses a partial index only where it can see that its condition holds.
COUNTS: Final = {
    status: f"SELECT count(*) FROM webhook_inbox WHERE status = '{status}'"  # noqa: S608 - our own constants
    for status in DeliveryStatus
}


class InboxWrites:
    """What a transaction can do with deliveries."""

    __slots__ = ()

    def execute(self, statement: str, parameters: tuple[Scalar, ...]) -> sqlite3.Cursor:
        """Execute one statement; the transaction itself knows how."""
        raise NotImplementedError

    def accept_delivery(self, delivery: StoredDelivery) -> bool:
        """Put a delivery into the inbox; False, and no change, where its identity is there."""
        known = (delivery.source, delivery.identity, delivery.delivery_id, delivery.event)
        return self.execute(_ACCEPT, (*known, delivery.received_at, delivery.body)).rowcount == 1

    def end_delivery(self, number: int, *, status: DeliveryStatus, error: str) -> bool:
        """Count an attempt at a waiting delivery and give it its status."""
        return self.execute(_END, (status.value, error, number)).rowcount == 1

    def delete_deliveries(self, *, before: Microseconds, limit: int) -> int:
        """Delete handled deliveries that were received before; return how many."""
        return self.execute(_DELETE, (before, limit)).rowcount


class InboxReads:
    """What a store can tell about deliveries."""

    def _read(self, statement: str, parameters: tuple[Scalar, ...]) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    def pending_deliveries(self, *, after: int, limit: int) -> list[StoredDelivery]:
        """Return waiting deliveries in the order they were accepted."""
        return [_delivery(row) for row in self._read(_PENDING, (after, limit))]

    def oldest_handled_delivery(self) -> Microseconds | None:
        """Return when the oldest of the handled deliveries was received, or None."""
        oldest: Microseconds | None = self._read(_OLDEST, ())[0][0]
        return oldest

    def deliveries(self, status: DeliveryStatus) -> int:
        """Return how many deliveries in the inbox have this status."""
        count: int = self._read(COUNTS[status], ())[0][0]
        return count


def _delivery(row: tuple[Any, ...]) -> StoredDelivery:
    number, source, identity, delivery_id, event, body, received_at, status, attempts, error = row
    known = StoredDelivery(number, source, identity, delivery_id, event, body, received_at)
    return msgspec.structs.replace(known, status=DeliveryStatus(status), attempts=attempts, error=error)
