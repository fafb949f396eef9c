"""Judge operations that overlap: look for an order in which the model allows all of them.

Each operation takes effect at one moment between its intent and its ack. An operation without an
ack took effect at any later moment, or never. The order that is looked for respects that, and gives
each acknowledged operation its outcome, and the database its rows. If there is none, a promise is
broken (Wing and Gong, "Testing and verifying concurrent objects", 1993).

The clocks go on meanwhile, and an agent may have been stopped between two looks at them. So an
operation has several moments at which it may have looked.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_chaos import Finding

from scenarios.judging import broken, differences
from scenarios.model.states import Moment, us
from scenarios.model.work import trusted_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos import History
    from pytest_chaos.model.values import Mark

    from scenarios.model.states import Model, Outcome, Tables

NEVER = 2**62
NAMES = {"lease": "acquire", "effect": "save"}
"""The operations of the model, where agents call them otherwise."""


@dataclass(frozen=True)
class Overlapping:
    """An operation, from its intent to its ack; ``outcome`` is None where it is unknown."""

    name: str
    arguments: dict[str, Any]
    begun: int
    ended: int
    moments: tuple[Moment, ...]
    outcome: Outcome | None


def check_overlapping(operations: Sequence[Overlapping], model: Model, seen: Tables) -> Iterator[Finding]:
    """Find that no order of the operations gives their outcomes and these rows."""
    search = _Search(seen)
    if not search.finds(model, tuple(operations)):
        text = f"no order of {len(operations)} operations gives what was seen: {search.text}"
        yield Finding(signature=f"model:{search.signature}", text=text, checker="check_overlapping")


class _Search:
    """The search for an order; what stopped the longest attempt is what is told."""

    def __init__(self, seen: Tables) -> None:
        self._seen = seen
        self._failed: set[tuple[tuple[int, ...], str]] = set()
        self._fewest = NEVER
        self.signature = self.text = ""

    def finds(self, model: Model, left: tuple[Overlapping, ...]) -> bool:
        """Tell whether the operations that are left can follow."""
        if all(operation.outcome is None for operation in left):
            found = list(differences(self._seen, model.tables()))
            if not found:
                return True
            self._note(len(left), *found[0])
        key = (tuple(operation.begun for operation in left), repr(model.tables()) + repr(vars(model).get("held")))
        if key in self._failed:
            return False
        self._failed.add(key)
        until = min((operation.ended for operation in left), default=NEVER)
        return any(self._can_be_next(model, operation, left) for operation in left if operation.begun < until)

    def _can_be_next(self, model: Model, operation: Overlapping, left: tuple[Overlapping, ...]) -> bool:
        rest = tuple(other for other in left if other is not operation)
        for moment in operation.moments:
            after = copy.deepcopy(model)
            outcome = after.do(operation.name, moment, operation.arguments)
            if operation.outcome is not None and outcome != operation.outcome:
                text = f"{operation.name} {operation.arguments} gave {operation.outcome}; the model: {outcome}"
                self._note(len(left), broken(operation.name, outcome, operation.outcome), text)
            elif self.finds(after, rest):
                return True
        return False

    def _note(self, left: int, signature: str, text: str) -> None:
        if left < self._fewest:
            self._fewest, self.signature, self.text = left, signature, text


def lease_operations(history: History) -> list[Overlapping]:
    """Return what holders and sweepers did, by their marks (``scenarios.work.lease_agents``)."""
    begun: dict[tuple[str, int], Mark] = {}
    found: list[Overlapping] = []
    for mark in history.marks:
        who = (mark.agent, mark.pid)
        if mark.kind == "intent" and mark.operation in {"lease", "renew", "effect", "complete", "sweep"}:
            begun[who] = mark
        elif who in begun and _ends(mark, begun[who]):
            found.append(_operation(begun.pop(who), mark))
    return found + [_operation(mark, None) for mark in begun.values()]


def _ends(mark: Mark, intent: Mark) -> bool:
    is_ack = mark.kind == "ack" and mark.operation == intent.operation
    return (
        is_ack or (mark.operation == "refused" and mark.key == intent.operation) or mark.operation == "nothing-to-take"
    )


def _operation(intent: Mark, end: Mark | None) -> Overlapping:
    arguments, began = intent.value["with"], Moment(*intent.value["at"])
    name = NAMES.get(intent.operation, intent.operation)
    if end is None:
        return Overlapping(name, arguments, intent.order, NEVER, (began,), None)
    ended, outcome = Moment(*end.value["at"]), end.value["outcome"]
    moments = [began, ended, Moment(ended.now, began.monotonic)]
    if until := end.value.get("until"):
        moments = [_granted_at(arguments["ttl_s"], until, began, ended)]
    return Overlapping(name, arguments, intent.order, end.order, tuple(dict.fromkeys(moments)), outcome)


def _granted_at(ttl_s: float, until: list[int], began: Moment, ended: Moment) -> Moment:
    """Return when a lease was granted that ends then: while the agent was about it."""
    now, monotonic = until[0] - us(ttl_s), until[1] - trusted_until(0, ttl_s)
    return Moment(min(max(now, began.now), ended.now), min(max(monotonic, began.monotonic), ended.monotonic))
