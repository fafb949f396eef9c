"""The model of the inbox: each delivery is accepted once, handled once, and kept for a while."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scenarios.model.states import Model, Moment, Outcome, Tables, us

ATTEMPTS_MAX: Final = 5
KEPT_S: Final = 7 * 24 * 3600.0
"""How long a handled delivery is kept, so that a replay of it is known."""


@dataclass
class Delivery:
    """A delivery that was accepted."""

    received_at: int
    status: str = "pending"
    attempts: int = 0


class Inbox(Model):
    """Deliveries by source and identity, in the order in which they were accepted."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.deliveries: dict[str, Delivery] = {}

    def accept(self, moment: Moment, identities: list[str], source: str = "forge") -> Outcome:
        """Accept deliveries; one that is there already is not new."""
        names = [f"{source} {identity}" for identity in identities]
        are_new = []
        for name in names:
            are_new.append(name not in self.deliveries)
            self.deliveries.setdefault(name, Delivery(moment.now))
        return {"are_new": are_new}

    def run(self, moment: Moment, failing: list[str]) -> Outcome:
        """Handle what is pending, oldest first; delete what was handled long ago."""
        tried = [name for name, delivery in self.deliveries.items() if delivery.status == "pending"]
        for name in tried:
            delivery = self.deliveries[name]
            delivery.attempts += 1
            is_last = delivery.attempts >= ATTEMPTS_MAX
            if name not in failing:
                delivery.status = "handled"
            elif is_last:
                delivery.status = "failed"
        statuses = [self.deliveries[name].status for name in tried]
        self.deliveries = {
            name: delivery
            for name, delivery in self.deliveries.items()
            if delivery.status != "handled" or delivery.received_at >= moment.now - us(KEPT_S)
        }
        return {"tried": tried, **{status: statuses.count(status) for status in ("handled", "failed", "pending")}}

    def tables(self) -> Tables:
        """Return the rows of the inbox."""
        return {
            "inbox": {
                name: {"status": delivery.status, "attempts": delivery.attempts}
                for name, delivery in self.deliveries.items()
            }
        }
