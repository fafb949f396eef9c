"""Reads of several objects: each anomaly is named, sound histories hold, brute force agrees."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st
from pytest_chaos.checkers.snapshots import bank, comments, long_fork, sequential
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Call, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.checkers.elements import CallChecker


def signatures(checker: CallChecker, calls: Sequence[Call]) -> list[str]:
    """Return the signatures of the findings."""
    return [finding.signature for finding in checker.judge(calls)]


def reads(*outputs: Any) -> list[Call]:
    """Return reads one after the other."""
    return [Call("read", None, None, output, nth, 2 * nth, 2 * nth + 1) for nth, output in enumerate(outputs)]


@pytest.mark.parametrize(
    ("outputs", "options", "expected"),
    [
        ([{"a": 1, "b": 9}, {"a": 2, "b": 8}], {}, []),
        ([{"a": 1, "b": 9}, {"a": 2, "b": 9}], {}, ["bank:wrong-total"]),
        ([{"a": 1, "b": 9}], {"total": 11}, ["bank:wrong-total"]),
        ([{"a": 1, "b": 9}, {"a": -1, "b": 11}], {}, ["bank:negative-balance"]),
        ([{"a": 1, "b": 9}, {"a": -1, "b": 11}], {"negative": True}, []),
        ([{"a": 1, "b": 9}, {"a": None, "b": 9}], {}, ["bank:no-balance"]),
        ([{"a": 1, "b": 9}, {"a": 1, "c": 9}], {}, ["bank:unexpected-account"]),
        ([{"a": 1}], {"accounts": ["b"]}, ["bank:unexpected-account"]),
        ([], {}, ["bank:nothing-to-judge"]),
    ],
)
def test_each_anomaly_of_a_bank_has_its_name(outputs: list[Any], options: dict[str, Any], expected: list[str]) -> None:
    """Totals, balances and accounts that no bank shows are named."""
    assert signatures(bank(**options), reads(*outputs)) == expected


BITS = st.lists(st.sampled_from([None, 1]), min_size=3, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.lists(BITS, min_size=2, max_size=6))
def test_reads_fork_where_no_order_of_the_writes_explains_them(seen: list[list[int | None]]) -> None:
    """Brute force over all orders of three writes agrees with the checker."""
    calls = reads(*([["r", key, value] for key, value in enumerate(values)] for values in seen))
    explained = any(
        all({key for key, value in enumerate(values) if value} in (set(order[:n]) for n in range(4)) for values in seen)
        for order in itertools.permutations(range(3))
    )
    assert (signatures(long_fork(group_size=3), calls) == []) is explained


def test_what_cannot_be_judged_for_forks_is_said() -> None:
    """A key with two values is undecided; another size, and a mixed transaction, are mistakes."""
    twice = reads([["r", "x", 1]], [["r", "x", 2]])
    assert signatures(long_fork(), twice) == ["long-fork:written-twice"]
    assert signatures(long_fork(), twice[:1]) == ["long-fork:nothing-to-judge"]
    with pytest.raises(UsageError, match=r"must be a read of 2 keys \(group size\); got 1 keys at place 1"):
        long_fork(group_size=2).judge(twice)
    with pytest.raises(UsageError, match="must be one write, or reads alone"):
        long_fork().judge(reads([["r", "x", 1], ["w", "y", 1]]))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_comments_are_missed_where_an_earlier_one_is_not_there(data: st.DataObject) -> None:
    """The quick answer is that of comparing all pairs of writes."""
    places = data.draw(st.permutations(range(8)))
    spans = [sorted(places[2 * nth : 2 * nth + 2]) for nth in range(4)]
    writes = [Call("write", None, nth, None, nth, start, end) for nth, (start, end) in enumerate(spans)]
    seen = data.draw(st.sets(st.integers(0, 3)))
    read = Call("read", None, None, sorted(seen), 9, 20, 21)
    missing = any(
        one.end is not None and one.end < other.start and one.input not in seen and other.input in seen
        for one in writes
        for other in writes
    )
    assert (signatures(comments(), [*writes, read]) != []) is missing


def test_a_comment_that_failed_or_is_unknown_may_be_missing() -> None:
    """Only writes that are known to have ended must be there."""
    failed = Call("write", None, 1, None, 0, 0, 1, Outcome.FAIL)
    unknown = Call("write", None, 2, None, 0, 2, None, Outcome.UNKNOWN)
    later = Call("write", None, 3, None, 0, 4, 5)
    read = Call("read", None, None, [3], 1, 6, 7)
    assert signatures(comments(), [failed, unknown, later, read]) == []
    assert signatures(comments(), [later]) == ["comments:nothing-to-judge"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["k_2", "k_1", "k_0"], []),
        ([None, "k_1", "k_0"], []),
        ([None, None, None], []),
        (["k_2", None, None], ["sequential:missing"]),
        (["k_2", None, "k_0"], ["sequential:missing"]),
    ],
)
def test_values_of_one_client_appear_in_its_order(values: list[Any], expected: list[str]) -> None:
    """A newer value without an older one is named: four of these are elle-cli's own cases."""
    assert signatures(sequential(), reads(["k", values])) == expected


@pytest.mark.parametrize(
    ("checker", "output", "text"),
    [
        (bank(), [1], "the output of read must be an object of accounts and numbers; got \\[1\\] at place 1"),
        (long_fork(), 3, "must be a list of .* got 3 at place 1"),
        (sequential(), 3, "the output of read must be \\[key, values\\]; got 3 at place 1"),
    ],
)
def test_a_shape_that_cannot_be_read_is_a_mistake(checker: CallChecker, output: Any, text: str) -> None:
    """A wrong output is told with its place, and nothing is judged."""
    with pytest.raises(UsageError, match=text):
        checker.judge(reads(output))
