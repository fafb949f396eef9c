"""Histories of other tools: both notations, both ways, and what cannot be read is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings, strategies as st
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Call, Outcome
from pytest_chaos.model.edn import parse_edn
from pytest_chaos.model.interchange import read_calls, to_edn, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pytest_chaos import Receipt

EDN = """; a comment
[{:type :invoke, :f :cas, :value [1 2], :process 0, :time 1000000000}
 {:type :info, :f :kill, :process :nemesis, :value "n1"}
 #jepsen.history.Op{:type :ok, :f :cas, :value [1 2], :process 0, :time 3000000000}
 {:type :invoke :f :read
  :value nil :process 1} #_ {:type :skipped}
 {:type :info, :f :read, :error [:timeout "a \\"b\\" ;{"], :process 1}]
"""
JSON = (
    '[{"type":"invoke","f":"cas","value":[1,2],"process":0,"time":1000000000},\n'
    '{"type":"info","f":"kill","process":"nemesis","value":"n1"},{"type":"ok","f":"cas","value":[1,2],"process":0,\n'
    '"time":3000000000},{"type":"invoke","f":"read","value":null,"process":1},{"type":"info","f":"read","process":1}]'
)


def lines(text: str) -> list[bytes]:
    """Return the lines of a file."""
    return text.encode().splitlines(keepends=True)


@pytest.mark.parametrize("text", [EDN.replace("#_ {:type :skipped}", ""), JSON], ids=["edn", "json"])
def test_both_notations_give_the_same_calls(text: str) -> None:
    """Forms over several lines, several in one, comments, tags, faults and times are read."""
    receipts: list[Receipt] = []
    assert read_calls(lines(text), receipts=receipts) == [
        Call("cas", None, [1, 2], None, 0, 0, 1, Outcome.OK, 1.0, 3.0),
        Call("read", None, None, None, 1, 2, None, Outcome.UNKNOWN),
    ]
    assert [(receipt.kind, receipt.evidence, receipt.order) for receipt in receipts] == [("kill", "'n1'", 1)]


def test_a_console_log_of_jepsen_is_read() -> None:
    """The lines of ``jepsen.util`` are events."""
    log = "INFO  jepsen.util - 0\t:invoke\t:read\tnil\nINFO  jepsen.util - 0\t:ok\t:read\t3\n"
    assert read_calls(lines(log)) == [Call("read", None, None, 3, 0, 0, 1)]


def test_marks_are_read() -> None:
    """The mark file of a run is a history."""
    begin = '{"kind": "intent", "operation": "read", "key": "x"}'
    text = f'{begin}\n\n{begin.replace("intent", "ack")[:-1]}, "value": 3}}\n'
    assert read_calls(lines(text)) == [Call("read", "x", None, 3, ":0", 0, 1)]


def test_keyed_values_are_split() -> None:
    """``[key, value]`` is a key and a value if the caller says so."""
    text = (
        "{:type :invoke, :f :cas, :value [:x [1 2]], :process 0}\n{:type :ok, :f :cas, :value [:x [1 2]], :process 0}"
    )
    assert read_calls(lines(text), is_keyed=True) == [Call("cas", "x", [1, 2], None, 0, 0, 1)]


BEGIN = "{:type :invoke, :f :read, :process 0, :time 5}\n"
END = "{:type :ok, :f :read, :process 0, :value 1}\n"
WRONG = [
    (END, 'line 1: "process" must be that of a call that is open; got 0'),
    (BEGIN + END + END, 'line 3: "process" must be that of a call that is open'),
    (BEGIN + BEGIN, 'line 2: "process" must be free: its call of line 1 has not ended'),
    (BEGIN + END.replace("0,", '0, :time "noon",'), "line 2: \"time\" must be a number of nanoseconds; got 'noon'"),
    (BEGIN + END.replace("0,", "0, :time 4,"), 'line 2: "time" must be at least that of line 1'),
    (BEGIN + END.replace(":ok", ":done"), "line 2: \"type\" must be one of invoke, ok, fail, info; got 'done'"),
    (BEGIN + END.replace(":read", ":write"), "line 2: \"f\" must be read, which began at line 1; got 'write'"),
    (BEGIN.replace(":read", ":pop"), "line 1: \"f\" must be one of read, write; got 'pop'"),
    (BEGIN + "{:type :ok", "line 2: the history must end with a whole operation; .* The file was cut short"),
    (BEGIN + "hello\n", "line 2 must hold events .*; got 'hello'"),
    (BEGIN + "{:type}\n", "line 2 must be EDN or JSON; got .*a map must have a value for each key"),
    (BEGIN + '"}"\n', "line 2 must hold events"),
    ("", "must hold at least one operation"),
    ("\x00\xff", "must"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_no_history_is_named_by_line_and_field(text: str, message: str) -> None:
    """A mistake in the file gives a sentence with its line and field, and no calls."""
    with pytest.raises(UsageError, match=message):
        read_calls(lines(text), functions=("read", "write"))


def test_bytes_that_are_no_text_are_named() -> None:
    """A binary file is refused at its first line."""
    with pytest.raises(UsageError, match="line 1 must be UTF-8"):
        read_calls([b"\xff\xfe{}"])


def test_a_history_without_end_is_refused_when_memory_is_full() -> None:
    """A file may be endless: it is read until the memory is full, and then refused."""

    def endless() -> Iterator[bytes]:
        while True:
            yield from lines(BEGIN + END)

    answers = iter(["", "", "5 MB of 4"])
    with pytest.raises(UsageError, match=r"must fit the memory .*; got 5 MB of 4 at line 8193"):
        read_calls(endless(), is_full=lambda: next(answers))


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(VALUES, VALUES, st.sampled_from([*Outcome])), min_size=1, max_size=5),
    st.sampled_from([to_edn, to_json]),
)
def test_what_is_written_is_read_again(
    drawn: list[tuple[Any, Any, Outcome]], write: Callable[[Iterable[Call]], Iterator[bytes]]
) -> None:
    """Any calls, written in either notation, are read as they were."""
    calls = [
        Call("do", None, given_value, output if outcome is Outcome.OK else None, nth, 2 * nth, 2 * nth + 1, outcome)
        for nth, (given_value, output, outcome) in enumerate(drawn)
    ]
    again = read_calls(b"".join(write(calls)).splitlines(keepends=True))
    said = [(call.function, call.input, call.output, call.process, call.outcome) for call in again]
    assert said == [(call.function, call.input, call.output, call.process, call.outcome) for call in calls]


@pytest.mark.parametrize("text", ["[1", "(]", "}", '"a', "1 2", "#{1", "{1}", "#_"])
def test_what_is_no_edn_is_refused(text: str) -> None:
    """Malformed EDN raises, and never hangs or gives a value."""
    with pytest.raises(ValueError, match=r"."):
        parse_edn(text)
