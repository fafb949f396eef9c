"""Running checkers: every one is heard, and one that fails has decided nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.checkers import checker_name, counts, durability, listed, run_checkers
from pytest_chaos.model.history import History
from pytest_chaos.model.values import Finding, Mark, MarkKind, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_chaos.checkers import Checker

ONE_ACK = History((Mark(kind=MarkKind.ACK, operation="put", key=1, order=0),))


def holds(history: History) -> tuple[Finding, ...]:
    """Find nothing, whatever happened."""
    del history
    return ()


def violated(history: History) -> Iterable[Finding]:
    """Find one thing for each mark."""
    return [Finding(signature="x:y", text=mark.operation) for mark in history.marks]


def violated_then_raises(history: History) -> Iterator[Finding]:
    """Find one thing, and fail while looking for the next."""
    yield from violated(history)
    msg = "no such key"
    raise KeyError(msg)


class OfTheUser:
    """A checker that is an object, as a user may write it."""

    def __call__(self, history: History) -> list[Finding]:
        """Find one thing and say by itself who found it."""
        return [Finding(signature="x:z", text=str(len(history.marks)), checker="mine")]


def test_all_findings_are_gathered_with_the_name_of_their_checker() -> None:
    """Findings come in the order of their checkers; one that names its checker keeps that name."""
    findings = run_checkers([holds, violated, OfTheUser()], ONE_ACK)

    assert [(finding.signature, finding.checker, finding.text) for finding in findings] == [
        ("x:y", "test_checkers.violated", "put"),
        ("x:z", "mine", "1"),
    ]


def test_without_checkers_nothing_is_found() -> None:
    """No checkers, no findings: that nothing was judged at all is for the verdict to say."""
    assert run_checkers([], ONE_ACK) == ()


@pytest.mark.parametrize(
    ("checker", "reason"),
    [
        (violated_then_raises, "raised KeyError: 'no such key'"),
        (lambda _history: None, "raised TypeError: 'NoneType' object is not iterable"),
        (lambda _history: ["lost"], "raised TypeError: expected findings, got str ('lost')"),
        (lambda: (), "raised TypeError: "),
    ],
)
def test_a_checker_that_fails_leaves_the_run_undecided(checker: Checker, reason: str) -> None:
    """Whatever a checker raises or returns instead of findings, it is never a pass,
    and never silences the others.
    """
    findings = run_checkers([checker, OfTheUser()], ONE_ACK)

    assert [finding.signature for finding in findings] == ["harness:checker-raised", "x:z"]
    assert findings[0].verdict is Verdict.INCONCLUSIVE
    assert reason in findings[0].text


def test_stopping_the_session_is_not_a_checker_that_fails() -> None:
    """Ctrl-C in a long checker stops the run instead of becoming a finding."""

    def interrupted(history: History) -> tuple[Finding, ...]:
        del history
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_checkers([interrupted], ONE_ACK)


def test_a_checker_is_named_by_its_module_and_function() -> None:
    """A partial has the name of the function within; an object that of its class."""
    checker = partial(partial(durability.acknowledged_present, operation="put"), found=[1])

    assert checker_name(checker) == "durability.acknowledged_present"
    assert run_checkers([checker], ONE_ACK) == ()
    assert checker_name(OfTheUser()) == "test_checkers.OfTheUser"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], ""),
        ([1, "two", None], "1, 'two', None"),
        (range(10), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        (range(13), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more"),
        (["x" * 200], f"'{'x' * 76}..."),
    ],
)
def test_a_list_in_a_finding_is_bounded(values: Iterable[object], text: str) -> None:
    """Ten entries, how many more, and no entry longer than a line."""
    assert listed(list(values)) == text


def test_counts_are_listed_by_key() -> None:
    """Each key is shown with how often it was seen."""
    assert listed(counts({1: 2, "x": 3})) == "1: 2, 'x': 3"
