"""Histories as swim lanes: the marks of a run, or the steps and marks of a recording. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec
from pytest_chaos.model.history import History
from pytest_chaos.model.values import Mark, MarkKind

from chaos_reports.failure.lanes import Chart, Instant, Span, Strike, layout
from chaos_reports.figures import clip

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_chaos.evidence.open import Pack
    from pytest_chaos.model.story import CauseStory, StoryStep
    from pytest_chaos.model.values import Key, Operation, Receipt

_OWN_LANES: Final = (
    ("leases", "lease", re.compile(r"(?i)lease|claim|lock\b|token")),
    ("checkpoints", "checkpoint", re.compile(r"(?i)checkpoint")),
)
"""Operations whose names match have a lane of their own."""
_ENDINGS: Final = frozenset({"kill", "terminate"})
_NAME_MAX: Final = 60
_LABEL_MAX: Final = 40


def of_run(pack: Pack, about: Iterable[int]) -> Chart | None:
    """Lay out the marks of a run: a lane for each agent, with its processes and operations.

    ``about`` are the orders of the marks that findings name.
    """
    marks, base = _from_zero(pack.marks)
    if not marks and not pack.agents:
        return None
    length = max(len(marks), 1)
    history = History(marks=marks)
    named = {order - base for order in about}
    fired = [each for each in pack.receipts if each.fired and each.order is not None]
    spans = [*_processes(pack, marks, base, fired), *_operations(history, named)]
    notes = [
        Instant(lane=_agent(mark), at=mark.order, kind="note", title=_said(mark))
        for mark in marks
        if mark.kind is MarkKind.NOTE
    ]
    strikes = list(_strikes(fired, base, length))
    unknown = [span.start for span in spans if span.kind == "unknown"]
    starts = [span.start for span in spans if span.kind.startswith("process")]
    return layout(length, spans, notes, strikes, matters=[*sorted(named), *starts, *unknown], unit="mark")


def _from_zero(marks: Sequence[Mark]) -> tuple[tuple[Mark, ...], int]:
    """Return the marks in their order, counted from 0, and the order of the first.

    Orders that do not rise by one, which no run writes, are replaced by the place in the list.
    """
    if not marks:
        return (), 0
    base = marks[0].order
    return tuple(msgspec.structs.replace(mark, order=place) for place, mark in enumerate(marks)), base


def _agent(mark: Mark) -> str:
    return clip(mark.agent or (f"process {mark.pid}" if mark.pid else "unnamed"), _NAME_MAX)


def _processes(pack: Pack, marks: Sequence[Mark], base: int, fired: Sequence[Receipt]) -> Iterator[Span]:
    """Yield a bar for each process, from its start to its end as far as the marks tell."""
    places: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for mark in marks:
        places[mark.agent, mark.pid].append(mark.order)
    by_name: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pack.agents:
        by_name[str(row["name"])].append(row)
    for name, rows in by_name.items():
        begins = [_begin(row, name, places, base) for row in rows]
        for place, (row, start) in enumerate(zip(rows, begins, strict=True)):
            later = begins[place + 1] if place + 1 < len(rows) else None
            own = places.get((name, _int(row["pid"])), [])
            status = str(row["exit_status"] or "")
            deaths = [
                each.order - base
                for each in fired
                if each.agent == name
                and each.kind in _ENDINGS
                and each.order is not None
                and each.order - base >= start
            ]
            end: int | None = max([start, *own[-1:]])
            if status.startswith("signal") and deaths:
                end = max(deaths[0] - 1, start)
            elif not status or "harness" in status:
                end = None if later is None else max(later - 1, start)
            title = f"process {row['pid']} of {name}: {status or 'no end was seen'}"
            yield Span(
                lane=clip(name, _NAME_MAX),
                start=start,
                end=end,
                kind="process-died" if status.startswith("signal") else "process",
                label="",
                title=clip(title, 200),
                row=1,
            )


def _begin(row: Mapping[str, object], name: str, places: Mapping[tuple[str, int], list[int]], base: int) -> int:
    order = row.get("started_order")
    if isinstance(order, int) and order >= base:
        return order - base
    own = places.get((name, _int(row["pid"])), [0])
    return own[0] if own else 0


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _operations(history: History, named: Iterable[int]) -> Iterator[Span]:
    lost = set(named)
    for name in dict.fromkeys(mark.operation for mark in history.marks):
        for operation in history.operations(name):
            yield _span(operation, lost)
        for stray in history.strays(name):
            kind = "lost" if stray.order in lost else "stray"
            yield Span(
                lane=_lane(stray)[0],
                start=stray.order,
                end=stray.order,
                kind=kind,
                label=_label(stray),
                brief=_brief(stray),
                title=f"{_said(stray)} (acknowledged without an intent)",
            )


def _span(operation: Operation, lost: set[int]) -> Span:
    intent, ack = operation.intent, operation.ack
    lane, kind = _lane(intent)
    if ack is None:
        kind, title = "unknown", f"{_said(intent)}: never acknowledged, so it may or may not have happened"
    else:
        title = f"{_said(intent)}, acknowledged as mark {ack.order + 1:,}"
    if lost & {intent.order, -1 if ack is None else ack.order}:
        kind, title = "lost", f"{title}; a finding names it"
    return Span(
        lane=lane,
        start=intent.order,
        end=None if ack is None else ack.order,
        kind=kind,
        label=_label(intent),
        brief=_brief(intent),
        title=title,
    )


def _lane(mark: Mark) -> tuple[str, str]:
    for name, kind, pattern in _OWN_LANES:
        if pattern.search(mark.operation):
            return name, kind
    return _agent(mark), "ack"


def _label(mark: Mark) -> str:
    text = mark.operation if mark.key is None else f"{mark.operation} {mark.key}"
    if _lane(mark)[1] != "ack" and mark.agent:
        text = f"{mark.agent}: {text}"
    return clip(text, _LABEL_MAX)


def _brief(mark: Mark) -> str:
    return clip(mark.operation if mark.key is None else str(mark.key), _LABEL_MAX)


def _said(mark: Mark) -> str:
    key = "" if mark.key is None else f" {mark.key}"
    who = f" by {mark.agent}" if mark.agent else ""
    return clip(f"{mark.kind} {mark.operation}{key}{who}", 160)


def _strikes(fired: Sequence[Receipt], base: int, length: int) -> Iterator[Strike]:
    """Yield the faults that fired; a pause lasts until its agent is resumed."""
    for place, receipt in enumerate(fired):
        if receipt.kind.startswith("explore:"):
            continue  # it struck everywhere, in runs of its own
        at = min(max((receipt.order or 0) - base, 0), length)
        end = None
        if receipt.kind == "pause":
            later = (each for each in fired[place + 1 :] if each.kind == "resume" and each.agent == receipt.agent)
            resumed = next(later, None)
            end = length if resumed is None else min(max((resumed.order or 0) - base, at), length)
        label = clip(f"{receipt.kind} {receipt.agent}", _LABEL_MAX)
        yield Strike(at=at, end=end, label=label, title=clip(f"{label} {receipt.when}: {receipt.evidence}", 300))


def of_recording(cause: CauseStory) -> Chart | None:
    """Lay out the steps and marks around a crash: a lane for each process, its operations above."""
    steps = cause.steps
    if not steps:
        return None
    crash = crash_place(cause)
    lost = {(item.mark.operation, item.mark.key) for item in cause.lost}
    spans = list(_recorded_operations(steps, crash, lost))
    moments = [
        Instant(
            lane=_process(step),
            at=place,
            kind=f"{'sync' if step.syncs else 'write'}{'' if place < crash else '-not'}",
            title=clip(f"step {step.number}: {step.text}{f', at {step.line}' if step.line else ''}", 200),
        )
        for place, step in enumerate(steps)
        if step.mark is None
    ]
    word = {"power": "power lost", "io": "I/O error"}.get(cause.family, "killed")
    strikes = [Strike(at=crash, label=word, title=clip(cause.state, 300))]
    numbers = [0 if step.mark is not None else step.number for step in steps]
    relied = [place for place, step in enumerate(steps) if step.number in {item.step for item in cause.lost}]
    return layout(len(steps), spans, moments, strikes, matters=relied, unit="step", numbers=numbers)


def _process(step: StoryStep) -> str:
    return f"process {step.process}" + ("" if step.thread in {0, step.process} else f" · t{step.thread}")


def crash_place(cause: CauseStory) -> int:
    """Return the place among the steps of a story before which the crash came."""
    first = next((step.number for step in cause.steps if step.mark is None), 1)
    said = sum(1 for step in cause.steps if step.mark is not None)
    before = max(0, cause.marks - said) if first > 1 else 0
    for place, step in enumerate(cause.steps):
        if step.mark is None and step.number >= cause.step:
            return place
        if step.mark is not None and step.mark.order >= cause.marks > before:
            return place
    return len(cause.steps)


def _recorded_operations(steps: Sequence[StoryStep], crash: int, lost: set[tuple[str, Key]]) -> Iterator[Span]:
    open_at: dict[tuple[object, ...], tuple[int, StoryStep]] = {}
    for place, step in enumerate(steps):
        mark = step.mark
        if mark is None:
            continue
        key = (mark.agent, mark.pid, mark.operation, mark.key)
        if mark.kind is MarkKind.INTENT:
            open_at[key] = (place, step)
        elif mark.kind is MarkKind.ACK:
            start, begun = open_at.pop(key, (place, step))
            if start < crash:
                yield _recorded(begun, mark, start, place if place < crash else None, lost)
    for start, begun in open_at.values():
        if start < crash and begun.mark is not None:
            yield _recorded(begun, begun.mark, start, None, lost)


def _recorded(begun: StoryStep, mark: Mark, start: int, end: int | None, lost: set[tuple[str, Key]]) -> Span:
    is_lost = end is not None and (mark.operation, mark.key) in lost
    own = {"lease": "lease", "checkpoint": "checkpoint"}.get(_lane(mark)[1], "ack")
    kind = "lost" if is_lost else "unknown" if end is None else own
    title = _said(mark) if end is not None else f"{_said(mark)}: not acknowledged before the crash"
    lane = _process(begun) if own == "ack" else _lane(mark)[0]
    return Span(lane=lane, start=start, end=end, kind=kind, label=_label(mark), brief=_brief(mark), title=title)
