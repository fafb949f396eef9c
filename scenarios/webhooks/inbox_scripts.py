"""What the core promises of the inbox, as a script: what is new, and how often it is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from durable_agents import open_store
from durable_agents.store.rows import StoredDelivery

from scenarios.judging import Script, ScriptClock, Steps, perform
from scenarios.model.inbox import ATTEMPTS_MAX, KEPT_S
from scenarios.work.agents import class_named

if TYPE_CHECKING:
    from durable_agents.webhooks.inbox import Inbox
    from pytest_chaos import Marks


def play_deliveries(
    marks: Marks, database: str, parts: dict[str, str], steps: list[Any], known: list[dict[str, Any]]
) -> None:
    """Do steps with an inbox."""
    assert isinstance(known, list)
    clock = ScriptClock()
    with open_store(database) as store:
        perform(marks, clock, steps, InboxSteps(store, clock, parts).do)


class InboxSteps(Steps):
    """The steps of a script, by the core's inbox and a handler that fails for some deliveries."""

    def __init__(self, store: Any, clock: ScriptClock, parts: dict[str, str]) -> None:
        """Make the inbox."""
        self.clock = clock
        self.failing: list[str] = []
        self.tried: list[str] = []
        self.inbox: Inbox = class_named(parts["inbox"])(store, self.handle, clock=clock)

    def handle(self, delivery: StoredDelivery) -> None:
        """Handle a delivery, or fail."""
        name = f"{delivery.source} {delivery.identity}"
        self.tried.append(name)
        if name in self.failing:
            raise ZeroDivisionError

    def accept(self, identities: list[str], source: str = "forge") -> dict[str, Any]:
        """Accept deliveries in one commit."""
        now = self.clock.now()
        found = [StoredDelivery(0, source, each, f"id of {each}", "push", "{}", received_at=now) for each in identities]
        return {"are_new": self.inbox.accept(found)}

    def run(self, failing: list[str]) -> dict[str, Any]:
        """Handle what is pending."""
        self.failing, self.tried = failing, []
        found = self.inbox.run_once()
        return {"tried": self.tried, "handled": found.handled, "failed": found.failed, "pending": found.postponed}


def of_deliveries() -> Script:
    """Say what is new, what is tried, how often and in which order, and what is forgotten."""
    script = (
        Script().then("run", failing=[]).then("accept", identities=["b", "a", "b"]).then("accept", identities=["a"])
    )
    script.then("accept", identities=["a"], source="tracker").wait(1).then("run", failing=["forge a"])
    script.then("accept", identities=["b", "c"])
    for _ in range(ATTEMPTS_MAX):
        script.wait(1).then("run", failing=["forge a", "forge c"])
    script.then("accept", identities=["a", "b", "c"]).then("accept", identities=["d"]).then("run", failing=[])
    script.wait(KEPT_S - ATTEMPTS_MAX - 1).then("accept", identities=["e"]).then("run", failing=["forge e"])
    script.wait(0, but_us=-1).then("run", failing=[]).then("accept", identities=["a", "b", "d", "e"])
    return script.wait(ATTEMPTS_MAX + 1).then("run", failing=[]).then("accept", identities=["d", "e"])
