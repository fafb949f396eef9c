"""Histories: every mark that was written is read, in order, whatever happened to the file;
intents find their acks.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.model.history import History, MarkParser, TornLine, not_marks
from pytest_chaos.model.values import Key, Mark, MarkKind, Operation, Receipt, Verdict

Keys = st.none() | st.integers(-(2**70), 2**70) | st.text(st.characters(codec="utf-8"), max_size=5)
Values = (
    st.none() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=8) | st.lists(st.booleans(), max_size=3)
)
Marks = st.builds(
    Mark,
    kind=st.sampled_from(MarkKind),
    operation=st.sampled_from(["put", "get", "lösche\n"]),
    key=Keys,
    value=Values,
    agent=st.sampled_from(["writer", "reader", ""]),
    pid=st.integers(0, 2**22),
)
Contents = st.lists(Marks, max_size=12).map(lambda marks: History(tuple(marks)).to_lines())


def _mark(kind: str, key: Key = None, *, operation: str = "put", agent: str = "writer", pid: int = 1) -> Mark:
    return Mark(kind=MarkKind(kind), operation=operation, key=key, agent=agent, pid=pid)


def _history(*marks: Mark) -> History:
    return History.from_lines(History(marks).to_lines())


def _unordered(marks: tuple[Mark, ...]) -> list[tuple[object, ...]]:
    return [(mark.kind, mark.operation, mark.key, mark.value, mark.agent, mark.pid) for mark in marks]


def test_marks_are_numbered_by_their_place_in_the_file() -> None:
    """Blank lines and lines of other writers' styles count for nothing; only marks are counted."""
    content = (
        b'\n{"kind":"intent","operation":"put","key":1,"agent":"w","pid":4,"order":99}\n'
        b"\n   \n"
        b'{"operation": "put", "kind": "ack", "key": "x", "value": null}\r\n'
        b'\n{"kind":"note","operation":"pragmas","value":{"synchronous":2}}\n'
    )

    history = History.from_lines(content)

    assert history.marks == (
        Mark(kind=MarkKind.INTENT, operation="put", key=1, agent="w", pid=4, order=0),
        Mark(kind=MarkKind.ACK, operation="put", key="x", order=1),
        Mark(kind=MarkKind.NOTE, operation="pragmas", value={"synchronous": 2}, order=2),
    )
    assert history.torn == ()


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"intent","oper',
        b"Traceback (most recent call last):",
        b'{"kind":"maybe","operation":"put"}',
        b'{"kind":"ack"}',
        b'{"kind":"ack","operation":"put","key":1.5}',
        b'{"kind":"ack","operation":"put","value":NaN}',
        b'{"kind":"ack","operation":"\xff"}',
        b'{"kind":"ack","operation":"put"}{"kind":"ack","operation":"put"}',
        b"[" * 5_000,
        b"\x00" * 20,
    ],
)
def test_a_line_that_is_no_mark_is_kept_with_the_reason(line: bytes) -> None:
    """Garbage between two marks costs neither of them, and is neither dropped nor fatal."""
    mark = b'{"kind":"ack","operation":"put","key":1}'

    history = History.from_lines(b"\n".join([mark, line, mark]))

    assert [found.order for found in history.marks] == [0, 1]
    assert [(torn.order, torn.content, bool(torn.reason)) for torn in history.torn] == [(1, line, True)]
    assert History.from_lines(history.to_lines()) == history


@given(
    st.lists(
        st.binary(max_size=60)
        | st.dictionaries(
            st.sampled_from(["kind", "operation", "key", "value", "agent", "pid", "op"]),
            st.sampled_from(["intent", "ack", "acked"]) | st.integers() | st.none() | st.lists(st.text(max_size=3)),
        ).map(lambda fields: json.dumps(fields).encode()),
        max_size=4,
    )
)
def test_each_line_is_a_mark_or_is_told_with_what_is_wrong(lines: list[bytes]) -> None:
    """Whatever is in a mark file: there is a finding exactly where a line is no mark,
    and it is inconclusive.
    """
    history = History.from_lines(b"\n".join(lines))

    found = not_marks(history.torn, may_be_cut=False)
    assert bool(found) is bool(history.torn)
    assert all(finding.verdict is Verdict.INCONCLUSIVE and finding.text.isprintable() for finding in found)
    uncut = [line for line in history.torn if not line.is_cut]
    assert bool(not_marks(history.torn, may_be_cut=True)) is bool(uncut)


def test_bytes_that_are_no_text_are_shown_escaped() -> None:
    """The text of a torn line can go into any report."""
    assert TornLine(0, b"caf\xe9 \xc3\xa9").text == "caf\\xe9 é"


@given(st.lists(Marks, max_size=20), st.lists(st.builds(Receipt, kind=st.just("kill"), agent=st.text(max_size=3),
       when=st.just("now"), fired=st.booleans(), evidence=st.just("exit by signal 9")), max_size=2))  # fmt: skip
def test_a_history_survives_being_written_and_read(marks: list[Mark], receipts: list[Receipt]) -> None:
    """Lines out and in again give the same marks in the same order,
    and the receipts that came along.
    """
    history = History.from_lines(History(tuple(marks)).to_lines(), receipts=receipts)

    assert _unordered(history.marks) == _unordered(tuple(marks))
    assert [mark.order for mark in history.marks] == list(range(len(marks)))
    assert history.receipts == tuple(receipts)
    assert History.from_lines(history.to_lines(), receipts=receipts) == history


@given(Contents, st.data())
def test_a_cut_costs_only_the_line_that_was_cut(content: bytes, data: st.DataObject) -> None:
    """Wherever a kill or a full disk cuts the file, all lines before stand,
    and the next writer's line is read.
    """
    whole = History.from_lines(content).marks
    cut = data.draw(st.integers(0, len(content)))
    complete = sum(1 for line in content[:cut].split(b"\n")[:-1] if line)

    history = History.from_lines(content[:cut] + History((_mark("note", "next"),)).to_lines())

    assert _unordered(history.marks[:complete]) == _unordered(whole[:complete])
    assert _unordered(history.marks[-1:]) == _unordered((_mark("note", "next"),))
    assert len(history.marks) - 1 + len(history.torn) in {complete, complete + 1}
    remainder = content[:cut].rpartition(b"\n")[2]
    assert (len(history.torn) == 1) is (bool(remainder) and len(history.marks) - 1 == complete)


@given(st.binary(max_size=200))
def test_no_content_is_an_error(content: bytes) -> None:
    """A file of random bytes makes a history too; each of its lines is accounted for."""
    history = History.from_lines(content)

    assert len(history.marks) + len(history.torn) == sum(1 for line in content.split(b"\n") if line.strip(b" \t\r\v\f"))


@given(Contents, st.lists(st.integers(0, 2_000), max_size=10))
def test_a_growing_file_gives_the_same_marks_in_any_pieces(content: bytes, cuts: list[int]) -> None:
    """However the growing file is cut into pieces, its marks come once each,
    and no later than their newline.
    """
    places = sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})
    parser = MarkParser()
    found: list[Mark] = []
    for start, end in itertools.pairwise(places):
        found += parser.feed(content[start:end])
        assert len(found) == parser.count == len(History.from_lines(content[: content.rfind(b"\n", 0, end) + 1]).marks)

    assert tuple(found) == History.from_lines(content).marks
    assert parser.finish() == []


def test_a_line_is_a_mark_only_once_it_is_finished() -> None:
    """A reader that comes while a line is being written waits for its end;
    asked to finish, it takes what is whole.
    """
    parser = MarkParser()

    assert parser.feed(b'{"kind":"ack","operation":"put"}') == []
    assert parser.finish() == [Mark(kind=MarkKind.ACK, operation="put", order=0)]
    assert parser.feed(b'{"kind":"ack","opera') == []
    assert parser.finish() == []
    assert [(torn.order, torn.text) for torn in parser.torn] == [(1, '{"kind":"ack","opera')]


def test_marks_are_selected_by_kind_operation_and_agent() -> None:
    """Each of the three narrows the selection, and an unknown name selects nothing."""
    history = _history(
        _mark("intent", 1), _mark("ack", 1), _mark("ack", 2, agent="b"), _mark("note", operation="pragmas")
    )

    assert [mark.order for mark in history.select()] == [0, 1, 2, 3]
    assert [mark.order for mark in history.select(MarkKind.ACK)] == [1, 2]
    assert [mark.order for mark in history.select("ack", "put", "b")] == [2]
    assert [mark.order for mark in history.select(operation="put", agent="writer")] == [0, 1]
    assert history.select(operation="take") == ()


def test_an_intent_without_an_ack_is_unknown() -> None:
    """What was begun and never confirmed is neither done nor failed."""
    history = _history(_mark("intent", 1), _mark("ack", 1), _mark("intent", 2), _mark("note", 2))

    first, second = history.operations("put")
    assert first == Operation(intent=history.marks[0], ack=history.marks[1])
    assert first.acknowledged
    assert second == Operation(intent=history.marks[2], ack=None)
    assert not second.acknowledged
    assert history.unknown("put") == (history.marks[2],)
    assert history.acknowledged("put") == (history.marks[1],)


def test_repeated_keys_pair_first_in_first_out() -> None:
    """Of two open intents with one key, the older one gets the first ack."""
    history = _history(_mark("intent", 1), _mark("intent", 1), _mark("ack", 1), _mark("ack", 1), _mark("intent", 1))

    acks = [pair.ack.order if pair.ack else None for pair in history.operations("put")]

    assert acks == [2, 3, None]


def test_a_restarted_agent_does_not_acknowledge_for_the_one_before_it() -> None:
    """The same name with another process id leaves the old intent unknown and its
    own ack a stray.
    """
    history = _history(_mark("intent", 1, pid=10), _mark("ack", 1, pid=11))

    assert history.unknown("put") == (history.marks[0],)
    assert history.strays("put") == (history.marks[1],)


@pytest.mark.parametrize(
    ("intent", "ack"),
    [
        (_mark("intent", 1), _mark("ack", "1")),
        (_mark("intent", None), _mark("ack", 0)),
        (_mark("intent", 1), _mark("ack", 1, operation="take")),
        (_mark("intent", 1), _mark("ack", 1, agent="other")),
    ],
)
def test_an_ack_of_something_else_is_a_stray(intent: Mark, ack: Mark) -> None:
    """Another key (also one of another type), operation or agent is another thing."""
    history = _history(intent, ack)

    assert history.unknown("put") == (history.marks[0],)
    assert history.strays(ack.operation) == (history.marks[1],)
    assert history.acknowledged(ack.operation) == (history.marks[1],)


def test_an_ack_before_its_intent_is_a_stray() -> None:
    """An ack cannot confirm what was announced only afterwards."""
    history = _history(_mark("ack", 1), _mark("intent", 1))

    assert history.strays("put") == (history.marks[0],)
    assert history.unknown("put") == (history.marks[1],)


def test_the_questions_can_be_narrowed_to_one_agent() -> None:
    """With an agent's name, only what that agent said is answered."""
    history = _history(
        _mark("intent", 1, agent="a"),
        _mark("intent", 1, agent="b"),
        _mark("ack", 1, agent="b"),
        _mark("ack", 9, agent="b"),
    )

    assert [pair.intent.order for pair in history.operations("put", "a")] == [0]
    assert [mark.order for mark in history.unknown("put", "a")] == [0]
    assert history.unknown("put", "b") == ()
    assert [mark.order for mark in history.acknowledged("put", "b")] == [2, 3]
    assert [mark.order for mark in history.strays("put", "b")] == [3]
    assert history.strays("put", "a") == ()


@given(st.data(), st.lists(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=6), min_size=1, max_size=4))
def test_pairing_does_not_depend_on_how_agents_interleave(
    data: st.DataObject, scripts: list[list[tuple[int, bool]]]
) -> None:
    """However the lines of several agents mix, each agent's operations pair as if it had been
    alone.
    """
    alone = [
        [
            _mark(kind, key, agent=f"agent-{number}")
            for key, acknowledged in script
            for kind in (("intent", "ack") if acknowledged else ("intent",))
        ]
        for number, script in enumerate(scripts)
    ]
    turns = data.draw(st.permutations([number for number, marks in enumerate(alone) for _ in marks]))
    waiting = [iter(marks) for marks in alone]
    history = _history(*(next(waiting[number]) for number in turns))

    for number, marks in enumerate(alone):
        name = f"agent-{number}"
        expected = [(pair.intent.key, pair.acknowledged) for pair in _history(*marks).operations("put")]
        assert [(pair.intent.key, pair.acknowledged) for pair in history.operations("put", name)] == expected
        assert Counter(mark.key for mark in history.unknown("put", name)) == Counter(
            key for key, acknowledged in expected if not acknowledged
        )
    assert history.strays("put") == ()
    assert all(pair.ack is None or pair.intent.order < pair.ack.order for pair in history.operations("put"))


def test_a_history_of_a_hundred_thousand_marks_answers_a_thousand_questions() -> None:
    """Indexes are built once: asking again costs a look-up, and pairing is linear."""
    marks = itertools.chain.from_iterable((_mark("intent", key), _mark("ack", key)) for key in range(50_000))
    history = _history(*marks)

    assert len(history.operations("put")) == 50_000
    assert history.unknown("put") == ()
    assert all(history.select("ack", f"absent-{number}") == () for number in range(1_000))
