"""Overlapping operations are judged by whether the model allows them in any order."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from scenarios.interleaving import NEVER, Overlapping, check_overlapping
from scenarios.model.states import Moment
from scenarios.model.work import Work

if TYPE_CHECKING:
    from scenarios.model.states import Outcome

SOON, LATE = Moment(0, 0), Moment(20_000_000, 20_000_000)
MIXED = Moment(20_000_000, 0)


@pytest.fixture
def model() -> Work:
    """Return a state with one item, which the first holder has for ten seconds."""
    model = Work()
    model.create(SOON, "t")
    model.enqueue(SOON, "t")
    model.acquire(SOON, "first", 10)
    return model


def operation(
    name: str, begun: int, ended: int, outcome: Outcome | None, *moments: Moment, **arguments: Any
) -> Overlapping:
    """Return an operation that may have looked at the clocks at these moments."""
    return Overlapping(name, arguments, begun, ended, moments, outcome)


def signatures(model: Work, *operations: Overlapping, after: Work) -> list[str]:
    """Return what is found."""
    return [finding.signature for finding in check_overlapping(operations, model, after.tables())]


def taken_over(model: Work) -> tuple[Work, list[Overlapping]]:
    """Return what is after a sweep and a second holder, and their operations."""
    after = copy.deepcopy(model)
    swept, granted = after.sweep(LATE), after.acquire(LATE, "second", 10)
    operations = [
        operation("sweep", 2, 3, swept, LATE),
        operation("acquire", 4, 5, granted, LATE, holder="second", ttl_s=10),
    ]
    return after, operations


def test_a_zombie_that_is_refused_is_allowed(model: Work) -> None:
    """It began before the expiry, looked at its own clock, and was refused by the store's."""
    after, operations = taken_over(model)
    zombie = operation("complete", 1, 6, {"refused": "LeaseLost"}, SOON, LATE, MIXED, token=1)
    assert signatures(model, zombie, *operations, after=after) == []


def test_a_zombie_that_is_believed_is_found(model: Work) -> None:
    """No order allows that it completes an item whose lease has been swept."""
    after, operations = taken_over(model)
    after.items[1].end("completed")
    zombie = operation("complete", 1, 6, {}, SOON, LATE, MIXED, token=1)
    assert signatures(model, zombie, *operations, after=after) != []


def test_an_operation_takes_effect_between_its_intent_and_its_ack(model: Work) -> None:
    """What had ended before another began comes before it."""
    after = copy.deepcopy(model)
    after.complete(SOON, 1)
    done = operation("complete", 3, 4, {}, SOON, token=1)
    for begun, ended, expected in ((1, 2, []), (1, 9, []), (5, 6, ["model:lease-renewed-after-the-end"])):
        renewed = operation(
            "renew", begun, ended, {"expires_at": 10_000_000, "trusted_until": 9_000_000}, SOON, token=1
        )
        assert signatures(model, renewed, done, after=after) == expected


def test_what_is_unknown_may_have_happened_at_any_later_time_or_never(model: Work) -> None:
    """Both ways are allowed, and nothing else."""
    completed = copy.deepcopy(model)
    completed.complete(SOON, 1)
    unknown = operation("complete", 1, NEVER, None, SOON, token=1)
    for after in (model, completed):
        assert signatures(model, unknown, after=after) == []
    completed.items[1].retries = 1
    assert signatures(model, unknown, after=completed) == ["model:retry-not-counted"]
