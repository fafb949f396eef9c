"""Durability and exactly-once checkers: correct runs pass,
and each violation is found under its own signature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, strategies as st
from pytest_chaos.checkers import durability, exactly_once
from pytest_chaos.model.history import History, TornLine
from pytest_chaos.model.values import Key, Mark, MarkKind, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_chaos.model.values import Finding

Keys = st.integers(0, 30) | st.text("abc", max_size=2)


class Outcome:
    """What really became of operations: each acknowledged, done but unacknowledged,
    or not done at all.
    """

    def __init__(self, fates: Mapping[int, str] | Mapping[str, str] | Mapping[int | str, str]) -> None:
        """Write the history that agents would have left, and the keys that would be found."""
        marks: list[Mark] = []
        for key, fate in fates.items():
            marks.append(Mark(kind=MarkKind.INTENT, operation="put", key=key, agent="w", pid=1))
            if fate == "acknowledged":
                marks.append(Mark(kind=MarkKind.ACK, operation="put", key=key, agent="w", pid=1))
        self.history = History.from_lines(History(tuple(marks)).to_lines())
        self.found: list[Key] = [key for key, fate in fates.items() if fate != "not done"]
        self.acknowledged: list[Key] = [key for key, fate in fates.items() if fate == "acknowledged"]


Outcomes = st.dictionaries(Keys, st.sampled_from(["acknowledged", "done", "not done"]), max_size=12).map(Outcome)


def signatures(findings: tuple[Finding, ...]) -> list[str]:
    """Return the signatures of findings, in order."""
    return [finding.signature for finding in findings]


def judged(history: History, found: list[Key]) -> list[str]:
    """Return what all checkers of keys and effects say of what was found."""
    return signatures(
        durability.acknowledged_present(history, "put", found)
        + durability.nothing_invented(history, "put", found)
        + durability.found_once(found)
        + exactly_once.effects_once(history, "put", found)
    )


@given(Outcomes)
def test_a_correct_run_is_never_accused(outcome: Outcome) -> None:
    """Whether an unacknowledged operation happened or not,
    a run that lost nothing has no findings.
    """
    assert judged(outcome.history, outcome.found) == []


@given(Outcomes, st.data())
def test_losing_one_acknowledged_key_is_always_found(outcome: Outcome, data: st.DataObject) -> None:
    """Whichever acknowledged key is missing, it is found missing, and only it."""
    assume(outcome.acknowledged)
    lost = data.draw(st.sampled_from(outcome.acknowledged))
    found = [key for key in outcome.found if key != lost]

    assert judged(outcome.history, found) == [
        "durability:acknowledged-lost",
        "exactly-once:acknowledged-without-effect",
    ]
    (finding,) = durability.acknowledged_present(outcome.history, "put", found)
    assert finding.text == f"1 acknowledged put lost: {lost!r}"
    assert [outcome.history.marks[order].key for order in finding.orders] == [lost]


@given(Outcomes, st.data())
def test_doing_one_thing_twice_is_always_found(outcome: Outcome, data: st.DataObject) -> None:
    """Whichever key is there twice, acknowledged or not, it is found."""
    assume(outcome.found)
    twice = data.draw(st.sampled_from(outcome.found))

    assert judged(outcome.history, [*outcome.found, twice]) == ["durability:duplicated", "exactly-once:repeated"]


@given(Outcomes)
def test_what_nobody_intended_is_always_found(outcome: Outcome) -> None:
    """A key that no agent wrote an intent for was invented."""
    assert judged(outcome.history, [*outcome.found, "invented"]) == ["durability:invented", "exactly-once:uncaused"]


def test_an_invention_beside_torn_lines_is_undecided() -> None:
    """The intent may have been in a line that cannot be read: no verdict on the target."""
    history = History((), torn=(TornLine(0, b'{"kind":"int'),))

    findings = durability.nothing_invented(history, "put", [7]) + exactly_once.effects_once(history, "put", [7])

    assert signatures(findings) == ["durability:invented-or-torn", "exactly-once:uncaused-or-torn"]
    assert {finding.verdict for finding in findings} == {Verdict.INCONCLUSIVE}
    assert "1 lines of the mark file cannot be read" in findings[0].text


def test_a_loss_beside_torn_lines_is_a_loss() -> None:
    """An ack that was read is certain, whatever else could not be read."""
    history = History((Mark(kind=MarkKind.ACK, operation="put", key=1, order=0),), torn=(TornLine(0, b"{"),))

    (finding,) = durability.acknowledged_present(history, "put", [])

    assert (finding.signature, finding.verdict) == ("durability:acknowledged-lost", Verdict.VIOLATED)


def test_other_operations_are_judged_by_themselves() -> None:
    """A key that was acknowledged for one operation says nothing of another."""
    history = Outcome({1: "acknowledged"}).history

    assert durability.acknowledged_present(history, "take", []) == ()
    assert signatures(durability.nothing_invented(history, "take", [1])) == ["durability:invented"]


def test_a_great_loss_is_one_short_finding() -> None:
    """Three thousand lost keys are one finding with ten of them."""
    history = Outcome(dict.fromkeys(range(3_000), "acknowledged")).history

    (finding,) = durability.acknowledged_present(history, "put", [])

    assert finding.text == "3000 acknowledged put lost: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2990 more"
    assert len(finding.orders) == 3_000


def test_what_is_half_there_is_found_with_its_reason() -> None:
    """Whole items pass; each half one is named with what is wrong with it."""
    items = [durability.FoundItem(1, whole=True), durability.FoundItem(2, whole=False, reason="hash differs")]

    assert durability.whole(items[:1]) == ()
    (finding,) = durability.whole([*items, durability.FoundItem("x", whole=False)], "checkpoints")
    assert finding.signature == "durability:half-there"
    assert finding.text == "2 checkpoints half there: 2: hash differs, 'x': not whole"


@given(st.integers(-5, 5), st.integers(0, 40), st.data())
def test_numbers_without_gaps_pass_in_any_order(start: int, count: int, data: st.DataObject) -> None:
    """Contiguity is of the set of numbers, not of the order in which they were read."""
    numbers = data.draw(st.permutations(range(start, start + count)))

    assert durability.contiguous(numbers, start) == ()


@given(st.integers(2, 40), st.data())
def test_a_number_that_is_missing_is_always_found(count: int, data: st.DataObject) -> None:
    """Taking any number but the last leaves a gap with that number in it."""
    missing = data.draw(st.integers(1, count - 1))

    (finding,) = durability.contiguous([number for number in range(1, count + 1) if number != missing])

    assert (finding.signature, finding.text) == ("durability:number-missing", f"numbers missing: {missing}")


@pytest.mark.parametrize(
    ("numbers", "start", "expected"),
    [
        ([1, 2, 2, 3, 3, 3], 1, [("durability:number-repeated", "numbers repeated (number: times): 2: 2, 3: 3")]),
        ([5, 2, 1], 1, [("durability:number-missing", "numbers missing: 3 to 4")]),
        ([1, 10**15], 1, [("durability:number-missing", "numbers missing: 2 to 999999999999999")]),
        ([0, 1, 2], 1, [("durability:number-before-start", "numbers before 1, where they start: 0")]),
        ([4, 5], 3, [("durability:number-missing", "numbers missing: 3")]),
        (
            [0, 2, 2],
            1,
            [
                ("durability:number-missing", "numbers missing: 1"),
                ("durability:number-repeated", "numbers repeated (number: times): 2: 2"),
                ("durability:number-before-start", "numbers before 1, where they start: 0"),
            ],
        ),
    ],
)
def test_gaps_repetitions_and_false_starts_are_told_apart(
    numbers: list[int], start: int, expected: list[tuple[str, str]]
) -> None:
    """Each way of not being contiguous has its own signature, and a wide gap costs no memory."""
    findings = durability.contiguous(numbers, start)

    assert [(finding.signature, finding.text) for finding in findings] == expected


def test_repetitions_are_allowed_up_to_the_honest_bound() -> None:
    """In a world without idempotency each kill may cost one effect more,
    and no kill may cost two.
    """
    effects: list[Key] = ["a", "a", "a", "b"]

    assert exactly_once.at_most(effects, 1 + 2) == ()
    (finding,) = exactly_once.at_most(effects, 1 + 1)
    assert finding.signature == "exactly-once:repeated"
    assert finding.text == "1 effects happened more often than 2 (key: times): 'a': 3"
