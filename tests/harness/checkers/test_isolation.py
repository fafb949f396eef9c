"""Isolation: each anomaly is found by its name, and what ran in some order is accepted."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st
from pytest_chaos import History
from pytest_chaos.checkers import TIME_IS_UP
from pytest_chaos.checkers.isolation import graph, list_append, rw_register
from pytest_chaos.checkers.isolation.rw_register import RwRegister
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Call, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

Step = tuple[str, Any, Any]


def overlapping(*transactions: Sequence[Step], outcomes: Sequence[Outcome] = ()) -> list[Call]:
    """Return transactions that all overlap, each of a process of its own."""
    return [
        Call("txn", None, steps, steps, nth, nth, 100 + nth, outcomes[nth] if outcomes else Outcome.OK)
        for nth, steps in enumerate(transactions)
    ]


def one_by_one(*transactions: Sequence[Step], process: int | None = None) -> list[Call]:
    """Return transactions of which each ends before the next begins."""
    return [
        Call("txn", None, steps, steps, nth if process is None else process, 2 * nth, 2 * nth + 1)
        for nth, steps in enumerate(transactions)
    ]


OK, FAIL, UNKNOWN = Outcome.OK, Outcome.FAIL, Outcome.UNKNOWN
LISTS: dict[str, tuple[list[Call], set[str]]] = {
    "write cycle": (
        overlapping(
            [("append", "x", 1), ("append", "y", 1)],
            [("append", "x", 2), ("append", "y", 2)],
            [("r", "x", [1, 2]), ("r", "y", [2, 1])],
        ),
        {"G0"},
    ),
    "aborted read": (overlapping([("append", "x", 1)], [("r", "x", [1])], outcomes=[FAIL, OK]), {"G1a"}),
    "intermediate read": (
        overlapping([("append", "x", 1), ("append", "x", 2)], [("r", "x", [1])], [("r", "x", [1, 2])]),
        {"G1b", "G-single"},
    ),
    "circular information": (
        overlapping([("append", "x", 1), ("r", "y", [1])], [("append", "y", 1), ("r", "x", [1])]),
        {"G1c"},
    ),
    "lost update": (
        overlapping([("r", "x", []), ("append", "x", 1)], [("r", "x", []), ("append", "x", 2)], [("r", "x", [1, 2])]),
        {"lost-update", "G-single", "G2-item"},
    ),
    "read skew": (
        overlapping([("append", "x", 1), ("append", "y", 1)], [("r", "x", [1]), ("r", "y", [])], [("r", "y", [1])]),
        {"G-single"},
    ),
    "write skew": (
        overlapping([("r", "x", []), ("append", "y", 1)], [("r", "y", []), ("append", "x", 1)]),
        {"G2-item"},
    ),
    "long fork": (
        overlapping(
            [("append", "x", 1)],
            [("append", "y", 1)],
            [("r", "x", [1]), ("r", "y", [])],
            [("r", "x", []), ("r", "y", [1])],
        ),
        {"G-nonadjacent"},
    ),
    "stale read": (one_by_one([("append", "x", 1)], [("r", "x", [])], [("r", "x", [1])]), {"G-single-realtime"}),
    "stale read of one's own": (
        one_by_one([("append", "x", 1)], [("r", "x", [])], [("r", "x", [1])], process=3), {"G-single-process"}
    ),
    "disagreement": (
        overlapping([("append", "x", 1)], [("append", "x", 2)], [("r", "x", [1])], [("r", "x", [2])]),
        {"incompatible-order"},
    ),
    "own writes in another order": (
        overlapping([("append", "x", 1), ("append", "x", 2)], [("r", "x", [2, 1])]), {"internal", "G1b"}
    ),
    "own write seen before": (overlapping([("r", "x", [1]), ("append", "x", 1)]), {"future-read"}),
    "own write not seen": (overlapping([("append", "x", 1), ("r", "x", [])]), {"internal"}),
    "a value from nowhere": (overlapping([("r", "x", [7])]), {"invented"}),
    "a value twice": (overlapping([("append", "x", 1)], [("r", "x", [1, 1])]), {"duplicate-elements"}),
    "unknown, and seen": (overlapping([("append", "x", 1)], [("r", "x", [1])], outcomes=[UNKNOWN, OK]), set()),
    "unknown, and not seen": (overlapping([("append", "x", 1)], [("r", "x", [])], outcomes=[UNKNOWN, OK]), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_each_anomaly_of_lists_has_its_name(name: str) -> None:
    """The smallest history with an anomaly shows it, and no other."""
    calls, expected = LISTS[name]
    assert set(list_append().anomalies(calls)) == expected


REGISTERS: dict[str, tuple[list[Call], set[str]]] = {
    "aborted read": (overlapping([("w", "x", 1)], [("r", "x", 1)], outcomes=[FAIL, OK]), {"G1a"}),
    "intermediate read": (overlapping([("w", "x", 1), ("w", "x", 2)], [("r", "x", 1)]), {"G1b", "G-single"}),
    "circular information": (overlapping([("w", "x", 1), ("r", "y", 1)], [("w", "y", 1), ("r", "x", 1)]), {"G1c"}),
    "read skew": (overlapping([("w", "x", 1), ("w", "y", 1)], [("r", "x", 1), ("r", "y", None)]), {"G-single"}),
    "write skew": (overlapping([("r", "x", None), ("w", "y", 1)], [("r", "y", None), ("w", "x", 1)]), {"G2-item"}),
    "lost update": (
        overlapping([("r", "x", None), ("w", "x", 1)], [("r", "x", None), ("w", "x", 2)]), {"lost-update", "G2-item"}
    ),
    "stale read": (one_by_one([("w", "x", 1)], [("r", "x", None)]), {"G-single-realtime"}),
    "own write not seen": (overlapping([("w", "x", 1), ("r", "x", None)]), {"internal"}),
}  # fmt: skip


@pytest.mark.parametrize("name", REGISTERS)
def test_each_anomaly_of_registers_has_its_name(name: str) -> None:
    """The smallest history with an anomaly shows it, and no other."""
    calls, expected = REGISTERS[name]
    assert set(rw_register().anomalies(calls)) == expected


def test_facts_about_a_register_order_its_versions() -> None:
    """Real time on keys, or writes that follow reads, show what a single read cannot."""
    stale = one_by_one([("w", "x", 1)], [("w", "x", 2)], [("r", "x", 1)])
    assert rw_register().anomalies(stale) == ()
    assert rw_register(linearizable_keys=True).anomalies(stale) == ("cyclic-versions",)
    skew = overlapping([("w", "x", 1)], [("r", "x", 1), ("w", "x", 2), ("w", "y", 2)], [("r", "x", 1), ("r", "y", 2)])
    assert rw_register("serializable").anomalies(skew) == ()
    assert rw_register("serializable", wfr_keys=True).anomalies(skew) == ("G-single",)


def test_a_level_allows_what_it_allows() -> None:
    """Write skew is a finding under serializable, and none under snapshot isolation."""
    calls, _ = LISTS["write skew"]
    assert [found.signature for found in list_append("serializable").judge(calls)] == ["isolation:G2-item"]
    assert list_append("snapshot-isolation").judge(calls) == ()
    stale, _ = LISTS["stale read"]
    assert list_append("serializable").judge(stale) == ()
    with pytest.raises(UsageError, match=r"the level must be one of read-uncommitted, .*; got 'acid'"):
        list_append("acid")


def test_a_finding_is_an_argument() -> None:
    """The text names the transactions, each step with its reason, and the contradiction."""
    calls, _ = LISTS["lost update"]
    found = {finding.signature: finding for finding in list_append("snapshot-isolation").judge(calls)}
    assert found["isolation:lost-update"].orders == (0, 1)
    assert found["isolation:G-single"].text.splitlines()[1:] == [
        '  T0 = [["r", "x", []], ["append", "x", 1]] by 0',
        '  T1 = [["r", "x", []], ["append", "x", 2]] by 1',
        "  T0 before T1, because T1 appended 2 to 'x' after T0 had appended 1;",
        "  but T1 before T0, because T1 did not see T0's append of 1 to 'x': a contradiction",
    ]


def test_marks_carry_transactions() -> None:
    """Intents and acks of ``txn`` are judged; a history without any proves nothing."""
    history = History.from_lines(
        b'{"kind": "intent", "operation": "txn", "key": 1, "value": [["append", "x", 1]]}\n'
        b'{"kind": "ack", "operation": "txn", "key": 1, "value": [["append", "x", 1]]}\n'
        b'{"kind": "intent", "operation": "txn", "key": 2, "value": [["r", "x", null]]}\n'
        b'{"kind": "ack", "operation": "txn", "key": 2, "value": [["r", "x", []]]}\n'
    )
    assert [found.signature for found in list_append()(history)] == ["isolation:G-single-process"]
    (nothing,) = list_append()(History(()))
    assert (nothing.signature, nothing.kind) == ("isolation:nothing-to-judge", "harness")


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([("w", "x", 1)], r'must be a list of \["r", key, value\] and \["append", key, value\]; got \(\'w\''),
        ("append", "got 'append' at place 1"),
        ([("append", "x", 1), ("append", "x", 1)], "an appended value must be unique within its key; got 1 for 'x'"),
    ],
)
def test_what_is_no_transaction_is_a_mistake(steps: Any, text: str) -> None:
    """A wrong function, a wrong shape and a value that is not unique are named with their place."""
    with pytest.raises(UsageError, match=text):
        list_append().judge(overlapping(steps))


STEPS = st.lists(st.tuples(st.sampled_from(["r", "append"]), st.sampled_from("xy")), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_what_ran_in_some_order_is_accepted(drawn: list[list[tuple[str, str]]], random: Any) -> None:
    """Transactions that took effect one after the other, within their windows, have no anomaly."""
    lists: dict[str, list[int]] = {"x": [], "y": []}
    calls = []
    for nth, steps in enumerate(drawn):
        done: list[Step] = []
        for function, key in steps:
            if function == "append":
                lists[key].append(len(lists[key]) + 1)
            done.append((function, key, lists[key][-1] if function == "append" else list(lists[key])))
        start, end = 100 * nth - random.randrange(400), 100 * nth + random.randrange(400)
        calls.append(Call("txn", None, done, done, nth, 2 * start, 2 * end + 1))
    shuffled = sorted(calls, key=lambda call: call.start)
    assert list_append().anomalies(shuffled) == ()


def is_serializable(calls: Sequence[Call]) -> bool:
    """Whether an order of the transactions explains all reads."""
    return any(explains(order) for order in itertools.permutations(calls))


def explains(order: Sequence[Call]) -> bool:
    """Whether the reads of transactions are those of this order."""
    lists: dict[str, list[int]] = {}
    for call in order:
        for function, key, value in call.output:
            if function == "append":
                lists.setdefault(key, []).append(value)
            elif list(value) != lists.get(key, []):
                return False
    return True


@st.composite
def small(draw: st.DrawFn) -> list[Call]:
    """Draw up to five transactions with reads of anything, and a last one that reads all."""
    counts = {"x": 0, "y": 0}
    transactions: list[list[Step]] = []
    for steps in draw(st.lists(STEPS, min_size=1, max_size=4)):
        done: list[Step] = []
        for function, key in steps:
            if function == "append":
                counts[key] += 1
            done.append((function, key, counts[key] if function == "append" else None))
        transactions.append(done)
    orders = {key: draw(st.permutations(range(1, count + 1))) for key, count in counts.items()}
    for done in transactions:
        for place, (function, key, _) in enumerate(done):
            if function == "r":
                done[place] = (function, key, list(orders[key][: draw(st.integers(0, counts[key]))]))
    return overlapping(*transactions, [("r", key, list(orders[key])) for key in "xy"])


@settings(max_examples=80, deadline=None)
@given(small())
def test_brute_force_agrees(calls: list[Call]) -> None:
    """With a last read of all, a finding comes exactly where no order explains the reads."""
    assert (not list_append("serializable").judge(calls)) is is_serializable(calls)


ELLE: list[tuple[str, str, str]] = [
    ("serializable", "ax1ay1 ax2ay2 rx12ry21", "G0"),
    ("serializable", "-ax1 rx1", "G1a"),
    ("serializable", "ax1ax2 rx1", "G1b G-single"),
    ("serializable", "ax1ry1 ax2ay1 rx12ry1", "G1c"),
    ("serializable", "ax1ay1 ax2ry rx12", "G-single"),
    ("serializable", "ax1ry ay1rx", "G2-item"),
    ("read-committed", "ax1ry ay1rx", "G2-item"),
    ("strict-serializable", "ax1 ax2 rx1 rx12", "G-single-realtime"),
    ("serializable", "ax1 ax2 rx1 rx12", ""),
    ("serializable", "ax1ay1 ax2ay2 ax3ay3 rx12 ry2", "G0 G-single"),
    ("serializable", "ax1 rx1ry ay1 ry1rx", "G-nonadjacent"),
    ("repeatable-read", "ax1at1 rx1ry ay1az2 rz2rt", "G-nonadjacent"),
    ("repeatable-read", "ax1ay1 rx1ry", "G-single"),
    ("strict-serializable", "ax0 rx0ax1 rx0ax2", "lost-update G2-item G-single-realtime"),
    ("strict-serializable", "rxax1ax2 rx12", ""),
    ("serializable", "rxrx2 ax2", "internal G-single"),
    ("serializable", "rx01ax1 ax0", "future-read"),
]
"""What Elle's own tests expect (jepsen-io/elle, test/elle/list_append_test.clj): a level, the
transactions one after the other (a minus: it failed), and the anomalies. Elle's names end in
``-item`` where ours need not; that a lost update is a stale read, too, and a list that changes
within a transaction a read skew, is ours.
"""


def shorthand(text: str) -> list[Call]:
    """Return transactions in Elle's shorthand: ``ax1ry12`` appends 1 to x, reads [1, 2] of y."""
    calls = []
    for nth, word in enumerate(text.split()):
        steps: list[Step] = []
        for function, key, digits in re.findall(r"([ar])([a-z])(\d*)", word.lstrip("-")):
            values = [int(digit) for digit in digits]
            steps.append(("append", key, values[0]) if function == "a" else ("r", key, values))
        calls.append(Call("txn", None, steps, steps, nth, 2 * nth, 2 * nth + 1, FAIL if word[0] == "-" else OK))
    return calls


@pytest.mark.parametrize(("level", "text", "expected"), ELLE)
def test_what_the_tests_of_elle_expect(level: str, text: str, expected: str) -> None:
    """The smallest histories of Elle's own tests have the anomalies that it names."""
    assert set(list_append(level).anomalies(shorthand(text))) == set(expected.split())
    if expected != "G2-item" or level == "serializable":
        assert bool(list_append(level).judge(shorthand(text))) is bool(expected)
    else:
        assert list_append(level).judge(shorthand(text)) == ()


@settings(max_examples=60, deadline=None)
@given(small(), st.booleans())
def test_chains_stand_for_all_their_pairs(calls: list[Call], is_register: bool) -> None:  # noqa: FBT001 - drawn
    """Where a chain of nodes stands for edges, the anomalies are the same."""
    checker = list_append()
    if is_register:
        checker = rw_register(wfr_keys=True)
        calls = [as_registers(call) for call in calls]
    expected = checker.anomalies(calls)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(graph, "_PAIRS_MAX", 0)
        assert checker.anomalies(calls) == expected


def as_registers(call: Call) -> Call:
    """Return the transaction with the last value of each list."""
    steps = [
        ("w", key, value) if kind == "append" else ("r", key, (value or [None])[-1]) for kind, key, value in call.output
    ]
    return Call("txn", None, steps, steps, call.process, call.start, call.end)


def test_a_cache_that_is_stale_for_ever_is_told_soon() -> None:
    """Thousands of reads that miss thousands of writes cost their number, not their product."""
    steps = [[("w", "x", nth)] if nth % 2 else [("r", "x", None)] for nth in range(8000)]
    calls = [Call("txn", None, each, each, nth % 20, 2 * nth, 2 * nth + 30) for nth, each in enumerate(steps)]
    inferred = RwRegister(calls)
    inferred.infer()
    assert sum(map(len, inferred.graph.out)) < 5 * len(calls)
    (finding,) = rw_register().judge(calls)
    assert finding.signature == "isolation:G-single-realtime"
    assert "and did not see" in finding.text


def test_a_circle_that_is_not_searched_to_its_end_is_undecided() -> None:
    """Where time is over before anything forbidden is found, the answer is not that it holds."""
    calls, _ = LISTS["write skew"]
    before = TIME_IS_UP.set(lambda: True)
    try:
        (finding,) = list_append("serializable").judge(calls)
    finally:
        TIME_IS_UP.reset(before)
    assert (finding.signature, finding.kind) == ("isolation:undecided", "harness")
