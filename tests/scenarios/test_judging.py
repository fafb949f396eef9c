"""A history is judged by the model: what was told, what is unknown, and how a finding is named."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos import History
from pytest_chaos.model.values import Mark, MarkKind

from scenarios.judging import SKIPPED, STEP, Script, broken, check_model
from scenarios.model.states import Holding, Moment
from scenarios.model.work import Work

if TYPE_CHECKING:
    from scenarios.model.states import Tables


def history(script: Script, outcomes: list[dict[str, Any] | None]) -> History:
    """Return the history of an agent that got these outcomes; None where it was killed."""
    marks = []
    for number, (step, outcome) in enumerate(zip(script.steps, outcomes, strict=True)):
        value = {"do": step[0], "at": list(step[1]), "with": step[2]}
        marks.append(Mark(kind=MarkKind.INTENT, operation=STEP, key=number, value=value, pid=number))
        if outcome is not None:
            marks.append(Mark(kind=MarkKind.ACK, operation=STEP, key=number, value=outcome, pid=number))
    return History(tuple(marks))


def told(script: Script) -> tuple[list[dict[str, Any] | None], Work]:
    """Return what the model says of a script, and the state in the end."""
    model = Work()
    return [model.do(operation, Moment(*moment), arguments) for operation, moment, arguments in script.steps], model


@pytest.fixture
def script() -> Script:
    """Return the script of one item that is taken and renewed."""
    script = Script().then("create", task_id="t").then("enqueue", task_id="t", max_retries=1)
    return script.then("acquire", holder="a", ttl_s=10).wait(1).then("renew", token=1)


def signatures(script: Script, outcomes: list[dict[str, Any] | None], tables: Tables) -> list[str]:
    """Return what is found."""
    return [finding.signature for finding in check_model(history(script, outcomes), Work(), lambda: tables)]


def test_what_the_model_says_is_allowed(script: Script) -> None:
    """A history of the model's own outcomes has no finding."""
    outcomes, model = told(script)
    assert signatures(script, outcomes, model.tables()) == []


def test_what_is_unknown_may_have_happened_or_not(script: Script) -> None:
    """Without its ack a renewal may be in the tables or not; nothing else may."""
    outcomes, after = told(script)
    before = copy.deepcopy(after)
    before.items[1].expires_at = (after.items[1].expires_at or 0) - 1_000_000
    outcomes[-1] = None
    for model in (before, after):
        assert signatures(script, outcomes, model.tables()) == []
    before.items[1].retries = 1
    assert signatures(script, outcomes, before.tables()) == ["model:retry-not-counted"]


def test_a_later_outcome_tells_which_way_it_was(script: Script) -> None:
    """What an unknown operation did is seen in the next outcome, and then in the tables."""
    script.wait(9.5).then("sweep")
    outcomes, renewed = told(script)
    assert outcomes[-1] == {"expired_found": 0, "recovered": 0, "failed": 0}
    outcomes[3] = None
    assert signatures(script, outcomes, renewed.tables()) == []
    outcomes[-1] = {"expired_found": 1, "recovered": 1, "failed": 0}
    assert signatures(script, outcomes, renewed.tables())[:1] == ["model:work_items-status"]


def test_a_step_that_was_passed_over_changes_nothing(script: Script) -> None:
    """A lease whose grant nobody knows of is not used."""
    outcomes, _ = told(script)
    outcomes[2:] = [None, SKIPPED]
    model = Work()
    for operation, moment, arguments in script.steps[:3]:
        model.do(operation, Moment(*moment), arguments)
    assert signatures(script, outcomes, model.tables()) == []


@pytest.mark.parametrize(
    ("operation", "expected", "seen", "name"),
    [
        ("renew", {"refused": "LeaseExpired"}, {"expires_at": 1}, "lease-renewed-after-expiry"),
        ("complete", {"refused": "LeaseLost"}, {}, "lease-completed-after-loss"),
        ("renew", {"expires_at": 1}, {"refused": "LeaseLost"}, "renew-refused-without-reason"),
        ("renew", {"refused": "LeaseExpired"}, {"refused": "LeaseLost"}, "renew-refused-otherwise"),
        ("acquire", {"items": [2, 1]}, {"items": [1, 2]}, "order-not-by-priority-and-age"),
        ("sweep", {}, {"raised": "IntegrityError: no"}, "sweep-raised"),
        ("look", {"dead": 1}, {"dead": 2}, "dead-streak-not-as-promised"),
        ("tell", {"a_b": 1}, {"a_b": 2}, "tell-a-b"),
    ],
)
def test_a_finding_is_named_by_the_promise(
    operation: str, expected: dict[str, Any], seen: dict[str, Any], name: str
) -> None:
    """The name says what was done, and why it was not to be."""
    assert broken(operation, expected, seen) == name


def test_a_text_must_hold_its_parts() -> None:
    """An error text may say more than the model knows, and nothing less."""
    assert Holding("a", 7, "1/3") == "lease of 'a' expired at 7: retry 1/3"
    assert Holding("a", 7, "1/3") != "lease of 'a' expired at 7: retry 2/3"
