"""Linearizability: exact against brute force, right on published histories, and honest in doubt."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given, settings, strategies as st
from pytest_chaos import History, Receipt
from pytest_chaos.checkers import run_checkers
from pytest_chaos.checkers.linearizability import linearizable, models
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Call, Outcome, calls_of

from tests.harness.checkers.published import published

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

LINE = re.compile(r"jepsen\.util - (\d+)\s+:(\w+)\s+:(\w+)\s+(.*)")
PAIR = re.compile(r'\{:process (\d+), :type :(\w+), :f :(\w+), :key "(.*)", :value (nil|"(.*)")\}')


def etcd_calls(path: Path) -> list[Call]:
    """Return the calls of a log of Jepsen's etcd test: a register with cas."""
    events = ((match.groups()) for line in path.read_text().splitlines() if (match := LINE.search(line)))
    return paired((process, kind, function, None, edn(text)) for process, kind, function, text in events)


def key_value_calls(path: Path) -> list[Call]:
    """Return the calls of a history of porcupine's key-value store."""
    events = (match.groups() for line in path.read_text().splitlines() if (match := PAIR.match(line)))
    return paired((process, kind, function, key, text) for process, kind, function, key, _, text in events)


def edn(text: str) -> Any:
    """Return ``nil``, a number or a pair."""
    numbers = [int(word) for word in re.findall(r"-?\d+", text)]
    return None if text.strip() in {"nil", ":timed-out"} else tuple(numbers) if "[" in text else numbers[0]


def paired(events: Iterable[tuple[str, str, str, Any, Any]]) -> list[Call]:
    """Return calls; whoever does not return is unknown."""
    calls: list[list[Any]] = []
    opened: dict[str, list[Any]] = {}
    for place, (process, kind, function, key, value) in enumerate(events):
        if kind == "invoke":
            opened[process] = [function, key, value, None, process, place, None, Outcome.UNKNOWN]
            calls.append(opened[process])
        elif kind in {"ok", "fail"}:
            call = opened.pop(process)
            call[3:4] = [value if function in {"read", "get"} else None]
            call[6:8] = [place, Outcome(kind)]
    return [Call(*call) for call in calls]


def test_the_verdicts_of_porcupine() -> None:
    """All 108 published histories of etcd and of a key-value store get the published verdict."""
    folder = published("porcupine")
    rows = [line.split("\t") for line in (folder / "expected.tsv").read_text().splitlines()[1:]]
    assert len(rows) == 108
    for name, expected in rows:
        if name.startswith("jepsen/"):
            found = linearizable("cas-register").judge(etcd_calls(folder / name))
        else:
            found = linearizable(models.MapModel(missing="")).judge(key_value_calls(folder / name))
        assert [finding.signature for finding in found][:1] == ["linearizability:no-order"] * (expected == "false"), (
            name
        )


def has_order(calls: Sequence[Call], model: models.ObjectModel) -> bool:
    """Whether some order of the calls is allowed: each order of each choice of the unknown ones."""
    known = [call for call in calls if call.outcome is Outcome.OK]
    unknown = [call for call in calls if call.outcome is Outcome.UNKNOWN]
    chosen = (known + list(some) for size in range(len(unknown) + 1) for some in itertools.combinations(unknown, size))
    return any(is_allowed(order, model) for some in chosen for order in itertools.permutations(some))


def is_allowed(order: Sequence[Call], model: models.ObjectModel) -> bool:
    """Whether an order keeps real time, and the model allows each step."""
    for place, call in enumerate(order):
        if any(later.end is not None and later.end < call.start for later in order[place + 1 :]):
            return False
    state = model.initial
    return all((state := model.step(state, call)) is not None for call in order)


@st.composite
def histories(draw: st.DrawFn, inputs: st.SearchStrategy[tuple[str, Any, Any]], size: int = 6) -> list[Call]:
    """Draw up to six calls that overlap as they like, with any outcome."""
    drawn = draw(st.lists(st.tuples(inputs, st.sampled_from([*Outcome, Outcome.OK])), min_size=1, max_size=size))
    ends = [nth for nth in range(len(drawn)) for _ in "se"]
    events = draw(st.permutations(ends))
    places = {nth: [place for place, other in enumerate(events) if other == nth] for nth in range(len(drawn))}
    calls = [
        Call(
            function, None, given_value, None if outcome is Outcome.UNKNOWN else output, nth % 3, places[nth][0],
            None if outcome is Outcome.UNKNOWN else places[nth][1], outcome,
        )
        for nth, ((function, given_value, output), outcome) in enumerate(drawn)
    ]  # fmt: skip
    return sorted(calls, key=lambda call: call.start)


EXAMPLES = 600 if os.environ.get("CHAOS_NIGHTLY") else 60
SMALL = st.integers(1, 2)
READS = st.tuples(st.just("read"), st.none(), st.one_of(st.none(), SMALL))
WRITES = st.tuples(st.just("write"), SMALL, st.none())
CAS = st.tuples(st.just("cas"), st.tuples(SMALL, SMALL), st.sampled_from([None, False]))
KINDS: dict[str, st.SearchStrategy[tuple[str, Any, Any]]] = {
    "register": st.one_of(READS, WRITES),
    "cas-register": st.one_of(READS, WRITES, CAS),
    "queue": st.one_of(
        st.tuples(st.just("enqueue"), SMALL, st.none()),
        st.tuples(st.just("dequeue"), st.none(), st.one_of(st.none(), SMALL)),
    ),
    "unordered-queue": st.one_of(
        st.tuples(st.just("enqueue"), SMALL, st.none()),
        st.tuples(st.just("dequeue"), st.none(), st.one_of(st.none(), SMALL)),
    ),
    "mutex": st.tuples(st.sampled_from(["acquire", "release"]), st.none(), st.none()),
    "map": st.one_of(
        st.tuples(st.sampled_from(["put", "append"]), st.sampled_from(["a", "b"]), st.none()),
        st.tuples(st.just("delete"), st.none(), st.none()),
        st.tuples(st.just("get"), st.none(), st.sampled_from([None, "a", "b", "ab", "ba"])),
    ),
    "set": st.one_of(
        st.tuples(st.sampled_from(["add", "remove"]), SMALL, st.sampled_from([None, True, False])),
        st.tuples(st.just("contains"), SMALL, st.booleans()),
        st.tuples(st.just("read"), st.none(), st.sampled_from([(), (1,), (1, 2)])),
    ),
    "lock": st.one_of(
        st.tuples(st.just("acquire"), st.none(), st.sampled_from([False, 1, 2, 3])),
        st.tuples(st.just("release"), st.sampled_from([None, 1, 2]), st.sampled_from([None, False])),
    ),
    "lease": st.one_of(
        st.tuples(st.just("acquire"), st.none(), st.sampled_from([None, 1, 2, 3])),
        st.tuples(st.sampled_from(["write", "complete"]), SMALL, st.booleans()),
    ),
    "counter": st.one_of(
        st.tuples(st.just("add"), SMALL, st.none()), st.tuples(st.just("read"), st.none(), st.integers(0, 4))
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_brute_force_agrees(name: str) -> None:
    """On any history of up to six operations the answer is that of trying every order."""

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(histories(KINDS[name]))
    def agree(calls: list[Call]) -> None:
        expected = has_order(calls, models.model_named(name))
        assert (not linearizable(name).judge(calls)) is expected

    agree()


READING = frozenset({"read", "get", "contains", "dequeue"})
"""Functions whose output is the state, or a part of it."""


@st.composite
def played(draw: st.DrawFn, name: str, clients: int = 4) -> list[Call]:
    """Draw a history that an object has really made: each call takes effect within its window."""
    model, state = models.model_named(name), models.model_named(name).initial
    moments = sorted(draw(st.lists(st.integers(0, 1000), min_size=1, max_size=25, unique=True)))
    calls: list[Call] = []
    free = [0] * clients
    for moment in moments:
        client = draw(st.integers(0, clients - 1))
        start = max(free[client], moment * 10 - draw(st.integers(0, 40)))
        if start >= moment * 10:
            continue
        end = moment * 10 + draw(st.integers(1, 40))
        drawn = [draw(KINDS[name]) for _ in range(3)]
        times = (client, start * 2 + 1, end * 2)
        tried = [Call(function, None, value, output, *times) for function, value, output in drawn]
        if (call := next((each for each in tried if model.step(state, each) is not None), None)) is not None:
            state, free[client] = model.step(state, call), end
            calls.append(call)
    return sorted(calls, key=lambda call: call.start)


@pytest.mark.parametrize("name", KINDS)
def test_what_an_object_has_done_is_accepted_and_a_flipped_read_is_not(name: str) -> None:
    """A history made by the object holds; with an output that no state gives it does not."""
    told = {"register": models.Register(None), "cas-register": models.CasRegister(None)}.get(name, name)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(played(name), st.data())
    def judged(calls: list[Call], data: st.DataObject) -> None:
        assume(calls)
        assert linearizable(told).judge(calls) == ()
        reads = [nth for nth, call in enumerate(calls) if call.function in READING]
        if reads:
            flipped = list(calls)
            nth = data.draw(st.sampled_from(reads))
            call = calls[nth]
            wrong = (99,) if name == "set" and call.function == "read" else 99
            flipped[nth] = Call(call.function, None, call.input, wrong, call.process, call.start, call.end)
            (finding,) = linearizable(told).judge(flipped)
            assert finding.signature == "linearizability:no-order"

    judged()


def test_a_beginning_that_nobody_told_is_asked_for_and_is_no_violation() -> None:
    """A register that held 0 before: INCONCLUSIVE, with what to say; told, it is judged."""
    calls = [Call("cas", None, [0, 1], None, "a", 0, 1), Call("read", None, None, 1, "b", 2, 3)]
    (finding,) = linearizable("cas-register").judge(calls)
    assert (finding.signature, finding.kind) == ("linearizability:beginning-untold", "harness")
    assert "is in order if it held 0 at first" in finding.text
    assert "linearizable(models.CasRegister(0)) or chaos check --initial" in finding.text
    assert linearizable(models.CasRegister(0)).judge(calls) == ()
    (finding,) = linearizable(models.CasRegister(None)).judge(calls)
    assert finding.signature == "linearizability:no-order"


def test_what_no_beginning_explains_is_a_violation_from_the_likeliest() -> None:
    """Two clients both took 0 for 1 and for 2."""
    calls = [Call("cas", None, [0, nth], None, str(nth), nth, nth + 10) for nth in (1, 2)]
    (finding,) = linearizable("cas-register").judge(calls)
    assert finding.signature == "linearizability:no-order"
    assert "the state is then: 1" in finding.text


ODD = [None, True, 1, 1.5, "x", [], [1], [1, 2, 3], {"a": 1}, [[1], [2]]]


@pytest.mark.parametrize("name", KINDS)
def test_values_of_another_model_get_a_sentence(name: str) -> None:
    """Whatever a client says, it is judged or refused, and no exception of Python comes out."""
    for function, given_value, output in itertools.product(models.model_named(name).functions, ODD, ODD):
        calls = [Call(function, None, given_value, output, nth, 2 * nth, 2 * nth + 1) for nth in range(2)]
        with contextlib.suppress(UsageError):
            linearizable(name).judge(calls)


def test_a_call_that_the_model_cannot_judge_is_named() -> None:
    """A read of a set that gave a number is no violation: the place, the call and the reason."""
    calls = [Call("add", None, 1, None, "a", 0, 1), Call("read", None, None, 99, "b", 2, 3)]
    with pytest.raises(UsageError, match=r"values of set; got read\(\) -> 99 by b at place 3 .*Correct the call"):
        linearizable("set").judge(calls)


def marks(*lines: tuple[Any, ...]) -> History:
    """Return a history of marks: kind, operation, key, value, agent."""
    texts = [
        f'{{"kind": "{kind}", "operation": "{operation}", "key": "{key}", "value": {value}, "agent": "{agent}"}}'
        for kind, operation, key, value, agent in lines
    ]
    receipt = Receipt(kind="kill", agent="b", when="after 2 acks", fired=True, evidence="signal 9", order=3)
    return History.from_lines("\n".join(texts).encode(), receipts=[receipt])


def test_a_counter_example_says_what_cannot_follow_and_the_fault() -> None:
    """The finding has the longest order, the call that cannot follow, its state, and the fault."""
    history = marks(
        ("intent", "write", "x", 1, "a"), ("ack", "write", "x", "null", "a"),
        ("intent", "read", "x", "null", "b"), ("ack", "read", "x", 1, "b"),
        ("intent", "read", "x", "null", "c"), ("ack", "read", "x", "null", "c"),
        ("intent", "read", "y", "null", "c"), ("ack", "read", "y", "null", "c"),
    )  # fmt: skip
    (finding,) = run_checkers([linearizable("register")], history)
    assert finding.signature == "linearizability:no-order"
    assert finding.orders == (4, 5)
    assert finding.text.splitlines() == [
        "read('x') -> None by c:0 cannot follow (register, 'x'; 2 of 3 operations are in order)",
        "  the order ends: write('x', 1) -> None by a:0; read('x') -> 1 by b:0",
        "  the state is then: 1",
        "  fault: kill b after 2 acks: signal 9",
    ]


def test_an_unknown_call_may_happen_late_or_never_and_a_failed_one_not() -> None:
    """A write without an ack may be read at any later time; one that has failed may not."""
    begun = [Call("write", None, 1, None, 0, 0, None, Outcome.UNKNOWN)]
    reads = [
        Call("read", None, None, value, 1, 2 + 2 * nth, 3 + 2 * nth) for nth, value in enumerate([None, None, 1, 1])
    ]
    assert linearizable("register").judge(begun + reads) == ()
    assert linearizable("register").judge(begun + reads[:2]) == ()
    assert linearizable("register").judge([*begun, reads[2], Call("read", None, None, None, 1, 9, 10)])
    failed = [Call("write", None, 1, None, 0, 0, 1, Outcome.FAIL)]
    assert linearizable("register").judge(failed + reads)


def test_a_note_of_failure_ends_an_intent() -> None:
    """``{"failed": ...}`` in a note says that the operation did not happen."""
    history = marks(("intent", "write", "x", 1, "a"), ("note", "write", "x", '{"failed": "refused"}', "a"))
    (call,) = calls_of(history)
    assert (call.outcome, call.end) == (Outcome.FAIL, 1)


def test_a_note_of_doubt_ends_an_intent_too() -> None:
    """``{"unknown": ...}`` in a note keeps the next ack of the key from being taken for its own."""
    history = marks(
        ("intent", "dequeue", "q", "null", "a"), ("note", "dequeue", "q", '{"unknown": "time is over"}', "a"),
        ("intent", "dequeue", "q", "null", "a"), ("ack", "dequeue", "q", 1, "a"),
    )  # fmt: skip
    assert [call.outcome for call in calls_of(history)] == [Outcome.UNKNOWN, Outcome.OK]


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"configurations": 3000}, "configurations were tried"),
        ({"memory_bytes": 1_000_000}, "MB of configurations are remembered"),
    ],
)
def test_a_budget_that_ends_is_undecided(budget: dict[str, Any], reason: str) -> None:
    """A search that costs too much is INCONCLUSIVE, and says what ended it."""
    writes = [Call("enqueue", None, nth, None, nth, nth, 100 + nth) for nth in range(16)]
    wrong = Call("dequeue", None, None, "never put in", 99, 200, 201)
    (finding,) = linearizable("queue", **budget).judge([*writes, wrong])
    assert (finding.signature, finding.kind) == ("linearizability:undecided", "harness")
    assert reason in finding.text


def test_time_that_is_over_is_undecided() -> None:
    """A search asks whether its time is over."""
    writes = [("intent", "enqueue", "q", nth, f"a{nth}") for nth in range(12)]
    acks = [("ack", "enqueue", "q", "null", f"a{nth}") for nth in range(12)]
    wrong = [("intent", "dequeue", "q", "null", "b"), ("ack", "dequeue", "q", 99, "b")]
    (finding,) = run_checkers([linearizable("queue")], marks(*writes, *acks, *wrong), is_over=lambda: True)
    assert "the time is over" in finding.text


def test_a_history_without_operations_proves_nothing() -> None:
    """A model that knows no operation of the history leaves the run INCONCLUSIVE."""
    (finding,) = linearizable("register")(marks(("ack", "order", "x", 1, "a")))
    assert (finding.signature, finding.kind) == ("linearizability:nothing-to-judge", "harness")


@pytest.mark.parametrize(
    ("model", "text"),
    [("registre", "the model must be one of register, cas-register"), (3, "a model must have initial and step")],
)
def test_what_is_no_model_is_a_mistake(model: object, text: str) -> None:
    """A misspelt name and a value without step are named."""
    with pytest.raises(UsageError, match=text):
        linearizable(model)


def test_a_function_that_the_model_does_not_know_is_a_mistake() -> None:
    """A call of another function is named with its place; a mapping gives it a meaning."""
    calls = [Call("put", None, 1, None, 0, 0, 1), Call("read", None, None, 2, 0, 2, 3)]
    with pytest.raises(UsageError, match=r"must be one of read, write \(register\); got 'put' at place 1"):
        linearizable("register").judge(calls)
    assert linearizable("register", {"put": "write"}).judge(calls)


def test_an_ack_without_an_intent_is_a_mistake() -> None:
    """An ack whose intent is missing is named with its line."""
    with pytest.raises(UsageError, match=r"mark 1: the ack of read 'x' by 'a' .* must follow an intent"):
        calls_of(marks(("ack", "read", "x", 1, "a")))


def test_any_class_with_step_is_a_model() -> None:
    """A class that has initial and step alone is enough."""

    class Door:
        initial = "shut"

        def step(self, state: str, call: Call) -> str | None:
            return None if state == call.function else call.function

    assert linearizable(Door()).judge([Call("open", start=0, end=1), Call("shut", start=2, end=3)]) == ()
    assert linearizable(Door).judge([Call("open", start=0, end=1), Call("open", start=2, end=3)])


BAD: list[tuple[str, list[tuple[str, Any, Any, Any]]]] = [
    ("mutex", [("acquire", 0, None, None), ("acquire", 1, None, None)]),
    ("lock", [("acquire", 0, None, 5), ("release", 0, 5, None), ("acquire", 1, None, 5)]),
    ("lease", [("acquire", 0, None, 1), ("acquire", 1, None, 2), ("write", 0, 1, True)]),
    ("unordered-queue", [("enqueue", 0, "a", None), ("dequeue", 1, None, "a"), ("dequeue", 0, None, "a")]),
    ("counter", [("add", 0, 2, None), ("read", 1, None, 3)]),
]


STATES = {
    "mutex": "held",
    "lock": "free, after token 5",
    "lease": "granted with token 2",
    "unordered-queue": "an empty queue",
    "counter": "2",
}


@pytest.mark.parametrize(("name", "steps"), BAD, ids=[name for name, _ in BAD])
def test_each_model_refuses_what_it_must(name: str, steps: list[tuple[str, Any, Any, Any]]) -> None:
    """A double grant, a token that stays, a stale write, a value taken twice, a wrong sum."""
    calls = [
        Call(function, None, given_value, output, process, 2 * nth, 2 * nth + 1)
        for nth, (function, process, given_value, output) in enumerate(steps)
    ]
    (finding,) = linearizable(name).judge(calls)
    assert finding.signature == "linearizability:no-order"
    assert finding.text.endswith(f"the state is then: {STATES[name]}")
    assert linearizable(name).judge(calls[:-1]) == ()


def test_a_map_is_judged_by_keys_unless_all_of_it_is_read() -> None:
    """Keys are parts of their own; a read of the whole map joins them."""
    puts = [Call("put", key, 1, None, 0, 2 * nth, 2 * nth + 1) for nth, key in enumerate("ab")]
    assert linearizable("map").judge([*puts, Call("get", "a", None, 1, 0, 8, 9)]) == ()
    assert linearizable("map").judge([*puts, Call("read", None, None, {"a": 1, "b": 1}, 0, 8, 9)]) == ()
    assert linearizable("map").judge([*puts, Call("read", None, None, {"a": 1}, 0, 8, 9)])
