"""Elements: lost, duplicated, stale and invented values are told apart, and doubt stays doubt."""

from __future__ import annotations

from typing import Any

import pytest
from pytest_chaos.checkers import elements
from pytest_chaos.model.calls import Call, Outcome

UNKNOWN = Outcome.UNKNOWN


def done(*steps: tuple[Any, ...]) -> list[Call]:
    """Return calls one after the other: function, input, output, and the outcome if not ok."""
    return [
        Call(
            function, None, given, output, 0, 2 * nth, None if UNKNOWN in rest else 2 * nth + 1,
            rest[0] if rest else Outcome.OK, nth, nth + 0.5,
        )
        for nth, (function, given, output, *rest) in enumerate(steps)
    ]  # fmt: skip


def signatures(checker: elements.CallChecker, *steps: tuple[Any, ...]) -> dict[str, str]:
    """Return the findings as signature and text."""
    return {finding.signature: finding.text for finding in checker.judge(done(*steps))}


ADD_1, ADD_2 = ("add", 1, None), ("add", 2, None)


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([ADD_1, ("read", None, [1])], []),
        ([ADD_1, ("read", None, [])], ["lost"]),
        ([("add", 1, None, UNKNOWN), ("read", None, [])], []),
        ([("add", 1, None, UNKNOWN), ("read", None, [1]), ("read", None, [])], ["lost"]),
        ([ADD_1, ("read", None, [1, 1])], ["duplicated"]),
        ([("add", 1, None, Outcome.FAIL), ADD_2, ("read", None, [1, 2])], ["invented"]),
        ([ADD_1], ["nothing-read"]),
    ],
)
def test_a_set_loses_doubles_and_invents_nothing(steps: list[tuple[Any, ...]], found: list[str]) -> None:
    """What was known to be there stays, and only what was added is there."""
    assert list(signatures(elements.set_full(), *steps)) == [f"set-full:{each}" for each in found]


def test_a_stale_read_has_its_worst_latency() -> None:
    """An element that is missing for a time is stale: a finding where the set is linearizable."""
    steps = [ADD_1, ADD_2, ("read", None, [2]), ("read", None, [1, 2])]
    assert signatures(elements.set_full(), *steps) == {}
    text = "1 elements were missing for a time, at worst 1 for 1.5 s: 1"
    assert signatures(elements.set_full(linearizable=True), *steps) == {"set-full:stale": text}
    assert elements.set_summary(done(*steps)).stable == (2,)


@pytest.mark.parametrize(
    ("steps", "found"),
    [
        ([("enqueue", "a", None), ("dequeue", None, "a")], []),
        ([("enqueue", "a", None), ("dequeue", None, None)], ["lost"]),
        ([("enqueue", "a", None, UNKNOWN), ("drain", None, ["a"])], []),
        ([("enqueue", "a", None, UNKNOWN), ("drain", None, [])], []),
        ([("enqueue", ["a"], None), ("drain", None, [["a"], ["a"]])], ["duplicated"]),
        ([("enqueue", "a", None), ("drain", None, ["a", "b"])], ["unexpected"]),
        ([("dequeue", None, None)], ["nothing-to-judge"]),
    ],
)
def test_a_queue_gives_what_it_got_once(steps: list[tuple[Any, ...]], found: list[str]) -> None:
    """Acknowledged values come out, none twice, and none from nowhere."""
    assert list(signatures(elements.total_queue(), *steps)) == [f"total-queue:{each}" for each in found]


def test_a_value_that_an_unknown_call_may_have_taken_is_undecided() -> None:
    """A client that died while it took a value may have it: the loss may not be the queue's."""
    steps = done(("enqueue", "a", None), ("dequeue", None, None, UNKNOWN), ("drain", None, []))
    (finding,) = elements.total_queue().judge(steps)
    assert (finding.signature, finding.kind) == ("total-queue:lost", "harness")


def test_ids_are_unique() -> None:
    """The same id twice is a finding; none at all proves nothing."""
    assert signatures(elements.unique_ids(), ("generate", None, 1), ("generate", None, 2)) == {}
    assert list(signatures(elements.unique_ids(), ("generate", None, 1), ("generate", None, 1))) == [
        "unique-ids:repeated"
    ]
    assert list(signatures(elements.unique_ids())) == ["unique-ids:nothing-to-judge"]


@pytest.mark.parametrize(
    ("steps", "is_held"),
    [
        ([("add", 2, None), ("read", None, 2)], True),
        ([("add", 2, None), ("read", None, 1)], False),
        ([("add", 2, None, UNKNOWN), ("read", None, 2), ("read", None, 0)], True),
        ([("add", -2, None, UNKNOWN), ("read", None, -2), ("read", None, -3)], False),
        ([("add", 2, None, Outcome.FAIL), ("read", None, 2)], False),
    ],
)
def test_a_counter_stays_in_its_bounds(steps: list[tuple[Any, ...]], is_held: bool) -> None:  # noqa: FBT001 - a column of the table
    """A read lies between what was added for sure and what may have been."""
    assert list(signatures(elements.counter(), *steps)) == [] if is_held else ["counter:out-of-bounds"]
    assert bool(signatures(elements.counter(), *steps)) is not is_held
