"""Receivers, inboxes and handlers with one known bug each.

| variant | bug | seen by |
|---|---|---|
| AcknowledgesFirst | a delivery is acknowledged and written when it is handled | a kill after the answers |
| HandlesInHalves | "handled" is committed before the handler's changes are | a kill between the two |
| KnowsNobody | each delivery counts as new, whatever its id and body | deliveries that come three times |
| TrustsAnybody | signatures are not verified | forged deliveries |
| KnowsNoTime | a signature is good for ever | old deliveries that are replayed |
| ChecksThenInserts | a task is looked for, then made, and no unique key keeps a second out (D22) | both at once |
| BelievesTheStatus | a green status moves the task, and the gate is not asked | a green that is old |
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec
from durable_agents.jobs.stages import Move
from durable_agents.pipeline.handlers import Decision, EventOutcome, Handled, Handlers
from durable_agents.store.rows import DeliveryStatus
from durable_agents.webhooks.events import CiState
from durable_agents.webhooks.inbox import Inbox, InboxPoint, InboxStatistics
from durable_agents.webhooks.receiver import Receiver
from durable_agents.webhooks.signatures import Sender

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from durable_agents.clock import Microseconds
    from durable_agents.store import Transaction
    from durable_agents.store.rows import StoredDelivery
    from durable_agents.webhooks.events import CiStatus, StartRequested
    from durable_agents.webhooks.signatures import SignatureScheme


class AcknowledgesFirst(Inbox):
    """Keeps deliveries in memory until somebody has time."""

    def accept(self, deliveries: Sequence[StoredDelivery]) -> list[bool]:
        """Say that they are there."""
        sys.audit(InboxPoint.BEFORE_ACCEPT, len(deliveries))
        self.__dict__.setdefault("waiting", []).extend(deliveries)
        sys.audit(InboxPoint.AFTER_ACCEPT, len(deliveries))
        return [True] * len(deliveries)

    def run_once(self, now: Microseconds | None = None) -> InboxStatistics:
        """Write what came, and handle it."""
        waiting: list[StoredDelivery] = self.__dict__.get("waiting", [])
        taken, waiting[:] = list(waiting), []
        super().accept(taken)
        return super().run_once(now)


class HandlesInHalves(Inbox):
    """Notes that it is done, and does it."""

    def _handle(self, delivery: StoredDelivery) -> DeliveryStatus | None:
        sys.audit(InboxPoint.BEFORE_HANDLE, delivery.delivery_number)
        change = None if self._handler is None else self._handler(delivery)
        with self._store.transaction() as transaction:
            if not transaction.end_delivery(delivery.delivery_number, status=DeliveryStatus.HANDLED, error=""):
                return None
        sys.audit(InboxPoint.AFTER_HANDLE, delivery.delivery_number)
        if change is not None:
            with self._store.transaction() as transaction:
                change(transaction)
        return DeliveryStatus.HANDLED


class KnowsNobody(Inbox):
    """Takes each delivery for another one."""

    def accept(self, deliveries: Sequence[StoredDelivery]) -> list[bool]:
        """Give each a name of its own."""
        count = self.__dict__.setdefault("count", [0])
        named = []
        for delivery in deliveries:
            count[0] += 1
            named.append(msgspec.structs.replace(delivery, identity=f"{delivery.identity} {count[0]}"))
        return super().accept(named)


class _Gullible:
    """Believes the headers."""

    def verify(self, headers: Mapping[str, str], body: bytes, now: Microseconds) -> Sender:
        """Take the sender's word."""
        del body, now
        name = headers.get("webhook-id") or headers.get("x-github-delivery") or headers.get("x-gitea-delivery") or "?"
        event = headers.get("x-github-event") or headers.get("x-gitea-event") or ""
        return Sender(name, f"id:{name}", event)


class _Patient:
    """Verifies as of the moment at which the delivery says that it was signed."""

    def __init__(self, scheme: SignatureScheme) -> None:
        self._scheme = scheme

    def verify(self, headers: Mapping[str, str], body: bytes, now: Microseconds) -> Sender:
        """Forgive any age."""
        stamp = headers.get("webhook-timestamp", "")
        return self._scheme.verify(headers, body, int(stamp) * 1_000_000 if stamp.isdecimal() else now)


class TrustsAnybody(Receiver):
    """Has no secrets."""

    def __init__(self, inbox: Inbox, schemes: Mapping[str, SignatureScheme], **arguments: Any) -> None:
        """Believe everybody."""
        super().__init__(inbox, {source: _Gullible() for source in schemes}, **arguments)


class KnowsNoTime(Receiver):
    """Has no clock."""

    def __init__(self, inbox: Inbox, schemes: Mapping[str, SignatureScheme], **arguments: Any) -> None:
        """Be patient."""
        super().__init__(inbox, {source: _Patient(scheme) for source, scheme in schemes.items()}, **arguments)


class BelievesTheStatus(Handlers):
    """Needs no gates."""

    def ci_status(self, event: CiStatus) -> Decision:
        """Move the task, since somebody has said that something is green."""
        task = self._task_of(event)
        if event.state is not CiState.SUCCESS or task is None:
            return super().ci_status(event)
        move = Move(task, self.engine.pipeline.stage(task.stage), event.repo, "said so")

        def leave(transaction: Transaction) -> EventOutcome:
            self.engine.apply(transaction, move)
            return EventOutcome(Handled.MOVED, task)

        return leave


class ChecksThenInserts(Handlers):
    """Has looked, so there is none."""

    def _create(self, transaction: Transaction, event: StartRequested) -> EventOutcome:
        answer = super()._create(transaction, event)
        if answer.handled is Handled.KNOWN:  # what the store's unique key has kept out gets in under another name
            return super()._create(transaction, msgspec.structs.replace(event, tracker_key=f"{event.tracker_key} "))
        return answer
