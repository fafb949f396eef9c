"""A run as a trace that Perfetto opens: ``trace.json`` of a pack, in Chrome's trace event format.

The place of a mark in the mark file is the only clock, so one millisecond of the trace is one mark.
An operation is an asynchronous slice from its intent to its ack: several of one process may be
under way at once. Without an ack it has no end. A process is a slice on a track of its own; faults
are instants across all tracks; a pause is a slice until its resume.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.model.history import History
from pytest_chaos.model.values import Mark, MarkKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.evidence.gather import Facts

FILE_NAME: Final = "trace.json"
MARKS_MAX: Final = 20_000
"""The newest marks; a trace of more would be larger than the rest of many packs."""
_MARK_US: Final = 1_000
_FAULTS: Final = 0
"""The process number of the track of faults, which no process has."""
_UNNAMED_FIRST: Final = 1 << 30
"""Numbers for agents whose marks have none, above every process number."""

Event = dict[str, Any]


def trace(facts: Facts) -> bytes:
    """Return the trace of a run as JSON."""
    marks = facts.marks[-MARKS_MAX:]
    events = [*_names(facts, marks), *_processes(facts), *_operations(marks), *_notes(marks), *_faults(facts)]
    header = facts.header
    about = {
        "run": header.run_id,
        "scenario": header.scenario.id,
        "seed": header.seed,
        "verdict": str(facts.verdict),
        "clock": "1 ms is one mark; the order of marks is the only clock",
        "marks left out": len(facts.marks) - len(marks),
    }
    return msgspec.json.encode({"displayTimeUnit": "ms", "otherData": about, "traceEvents": events})


def _names(facts: Facts, marks: tuple[Mark, ...]) -> Iterator[Event]:
    names = {_number(mark): mark.agent for mark in marks}
    names |= {agent.pid: agent.name for agent in facts.started}
    yield _named(_FAULTS, "faults")
    for number, name in names.items():
        yield _named(number, name or f"process {number}")


def _named(number: int, name: str) -> Event:
    return {"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}}


def _number(mark: Mark) -> int:
    """Return the process of a mark; one that says none has a number made from its agent's name."""
    return mark.pid or _UNNAMED_FIRST + (zlib.crc32(mark.agent.encode(errors="replace")) >> 4)


def _processes(facts: Facts) -> Iterator[Event]:
    last: defaultdict[int, int] = defaultdict(int)
    for mark in facts.marks:
        last[mark.pid] = mark.order + 1
    ended = {(agent.name, agent.pid): agent for agent in facts.ended}
    length = facts.marks[-1].order + 1 if facts.marks else 1
    for agent in facts.started:
        end = ended.get((agent.name, agent.pid))
        start = max(agent.order or 0, 0)
        stop = length if end is None else max(last[agent.pid], start + 1)
        told = {"command": agent.command, "end": end.exit_status if end else "not seen"}
        yield _slice(agent.pid, f"{agent.name}: {told['end']}", start, stop, told)


def _slice(number: int, name: str, start: int, stop: int, args: dict[str, str]) -> Event:
    return {
        "ph": "X", "cat": "process", "name": name, "pid": number, "tid": number, "ts": start * _MARK_US,
        "dur": max(1, stop - start) * _MARK_US, "args": args,
    }  # fmt: skip


def _operations(marks: tuple[Mark, ...]) -> Iterator[Event]:
    history = History(marks=marks)
    for name in dict.fromkeys(mark.operation for mark in marks):
        for pair in history.operations(name):
            yield _async("b", pair.intent, pair.intent.order)
            if pair.ack is not None:
                yield _async("e", pair.ack, pair.intent.order)
        for stray in history.strays(name):
            yield _instant(stray, "acknowledged without an intent")


def _async(phase: str, mark: Mark, begun: int) -> Event:
    number = _number(mark)
    event = {
        "ph": phase, "cat": mark.operation, "name": _label(mark), "id": begun, "pid": number, "tid": number,
        "ts": mark.order * _MARK_US,
    }  # fmt: skip
    return event if mark.value is None else {**event, "args": {"value": mark.value}}


def _label(mark: Mark) -> str:
    return mark.operation if mark.key is None else f"{mark.operation} {mark.key}"


def _notes(marks: tuple[Mark, ...]) -> Iterator[Event]:
    yield from (_instant(mark, "note") for mark in marks if mark.kind is MarkKind.NOTE)


def _instant(mark: Mark, kind: str) -> Event:
    number = _number(mark)
    return {
        "ph": "i", "s": "t", "cat": kind, "name": _label(mark), "pid": number, "tid": number,
        "ts": mark.order * _MARK_US, "args": {"value": mark.value},
    }  # fmt: skip


def _faults(facts: Facts) -> Iterator[Event]:
    """Yield the faults that fired. A receipt's order is the number of marks written before it."""
    fired = [each for each in facts.receipts if each.fired and each.order is not None]
    length = facts.marks[-1].order + 1 if facts.marks else 1
    for place, receipt in enumerate(fired):
        at = max((receipt.order or 0) * _MARK_US - _MARK_US // 2, 0)
        name = f"{receipt.kind} {receipt.agent}".rstrip()
        told = {"when": receipt.when, "receipt": receipt.evidence}
        yield {
            "ph": "i", "s": "g", "cat": "fault", "name": name, "pid": _FAULTS, "tid": _FAULTS, "ts": at, "args": told
        }  # fmt: skip
        if receipt.kind == "pause":
            later = (each for each in fired[place + 1 :] if each.kind == "resume" and each.agent == receipt.agent)
            until = next((each.order or 0 for each in later), length) * _MARK_US
            yield {
                "ph": "b", "cat": "fault", "name": name, "id": place, "pid": _FAULTS, "tid": _FAULTS, "ts": at
            }  # fmt: skip
            yield {
                "ph": "e", "cat": "fault", "name": name, "id": place, "pid": _FAULTS, "tid": _FAULTS,
                "ts": max(until, at + 1),
            }  # fmt: skip
