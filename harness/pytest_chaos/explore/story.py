"""Tells the story of an exploration that found something, for its failure page.

What a page cannot know later is gathered here, while the recording is open: the steps around the
crash, the state that was promised, the nearest state in which nothing is found (judged anew), and
the step that each lost item relied on. :mod:`pytest_chaos.model.story` has the values.
"""

from __future__ import annotations

import platform
import re
import shlex
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pytest_chaos.evidence.redact import clean
from pytest_chaos.explore.judge import StateTask
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.simulate.crash import crash_states, moments
from pytest_chaos.explore.simulate.disk import Disk
from pytest_chaos.explore.simulate.folder import StateFolder
from pytest_chaos.explore.simulate.state import State, live_items
from pytest_chaos.model.promises import named, relied_on
from pytest_chaos.model.story import FILE_NAME, CauseStory, FamilyStory, LostItem, Reference, Story, StoryStep
from pytest_chaos.model.values import MarkKind, Verdict
from pytest_chaos.trace.step import SYNCS, Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_chaos.explore.causes import Cause
    from pytest_chaos.explore.judge import Pool
    from pytest_chaos.explore.options import Options
    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.report import Discovery, Exploration, FamilyResult
    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.step import Step

REFERENCES_MAX: Final = 8
"""So many discoveries of an exploration get their surroundings: each costs a few judgements."""
REFERENCE_BYTES_MAX: Final = 4 << 20
"""A larger state is not kept for comparison."""
CAUSES_MAX: Final = 20
OUTPUT_CHARACTERS_MAX: Final = 16_000
_STEPS_BEFORE: Final = 300
_STEPS_AFTER: Final = 60
_NEIGHBOURS_TRIED: Final = 6
_LOST_MAX: Final = 20
_LINES_MAX: Final = 3


class Surroundings(NamedTuple):
    """What is gathered of one discovery while its recording is open."""

    steps: tuple[StoryStep, ...] = ()
    lost: tuple[LostItem, ...] = ()
    promised: Reference | None = None
    neighbour: Reference | None = None
    after: Reference | None = None


def surroundings(
    recorded: Recorded, pool: Pool, found: Discovery, folder: Path | None, line_of: Callable[[int], str]
) -> Surroundings:
    """Gather what surrounds a discovery; ``folder`` is its kept state, or None.

    ``line_of`` returns the program line that makes a step, or an empty text.
    """
    trail = _Trail(recorded)
    lost = tuple(_with_lines(trail.lost(found), line_of))
    lines = {each.step: each.line for each in lost if each.line} | ({found.step: found.line} if found.line else {})
    steps = trail.around(found.step, found.marks, lines)
    if folder is None:
        return Surroundings(steps, lost)
    keep = _Keeper(folder)
    before, after = _neighbours(recorded, pool, found)
    return Surroundings(
        steps,
        lost,
        _promised(recorded, found, lost, keep),
        keep.reference("neighbour", before) if before is not None else None,
        keep.reference("after", after) if after is not None else None,
    )


class _Trail:
    """The steps and marks of a recording in their common order."""

    def __init__(self, recorded: Recorded) -> None:
        self._items: list[tuple[Step, Mark | None]] = []
        marks = iter(recorded.marks)
        for step in recorded.recording.steps:
            self._items.append((step, next(marks, None) if step.is_mark else None))
        self._trail = [(None if mark is not None else step, mark) for step, mark in self._items]

    def around(self, number: int, marks: int, lines: Mapping[int, str]) -> tuple[StoryStep, ...]:
        """Return the steps and marks around the crash before this step, after so many marks."""
        said = 0
        place = len(self._items)
        for index, (step, mark) in enumerate(self._items):
            if (not step.is_mark and step.number >= number) or (mark is not None and said >= marks > 0):
                place = index
                break
            said += mark is not None
        window = self._items[max(0, place - _STEPS_BEFORE) : place + _STEPS_AFTER]
        return tuple(
            StoryStep(
                number=step.number,
                text="" if mark is not None else str(step).partition(": ")[2],
                process=step.process,
                thread=step.thread,
                syncs=step.action in SYNCS,
                mark=mark,
                line="" if mark is not None else lines.get(step.number, ""),
            )
            for step, mark in window
        )

    def lost(self, found: Discovery) -> Iterator[LostItem]:
        """Yield the acknowledged operations that a finding names, with the step they relied on."""
        acks = [(place, mark) for place, (_, mark) in enumerate(self._items) if mark is not None][: found.marks]
        acks = [(place, mark) for place, mark in acks if mark.kind is MarkKind.ACK]
        said = named([mark for _, mark in acks], found.text)
        for place, mark in acks:
            if mark in said:
                yield self._relied_on(place, mark)

    def _relied_on(self, place: int, ack: Mark) -> LostItem:
        relied = relied_on(self._trail, place, _is_sync)
        if relied.place is None:
            return LostItem(mark=ack, why=relied.why)
        step = self._items[relied.place][0]
        text = str(step).partition(": ")[2]
        return LostItem(mark=ack, why=relied.why, step=step.number, text=text, is_synced=relied.is_synced)


def _is_sync(step: Step) -> bool:
    return step.action in SYNCS and step.action is not Action.SYNC_RANGE


def _with_lines(items: Iterator[LostItem], line_of: Callable[[int], str]) -> Iterator[LostItem]:
    for place, item in zip(range(_LOST_MAX), items, strict=False):
        line = line_of(item.step) if item.step and place < _LINES_MAX else ""
        yield msgspec.structs.replace(item, line=line)


class _Keeper:
    """Keeps states for comparison beside a failing one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reference(self, name: str, state: State) -> Reference:
        """Keep a state, unless it is too large, and return the reference to it."""
        size = sum(item.content.size for item in state.items.values() if item.content is not None)
        kept = ""
        if size <= REFERENCE_BYTES_MAX:
            StateFolder(self._folder / name).put(state.items)
            kept = f"{self._folder.name}/{name}"
        return Reference(code=state.code, text=str(state), step=state.step, folder=kept)


def _promised(recorded: Recorded, found: Discovery, lost: Sequence[LostItem], keep: _Keeper) -> Reference | None:
    """Keep the state at the last ack that a finding names, or what was written at a power loss."""
    acks = [place for place, mark in enumerate(recorded.marks[: found.marks]) if mark.kind is MarkKind.ACK]
    named = [item.mark.order for item in lost]
    place = max(named) if named else acks[-1] if acks else None
    disk = Disk(recorded.recording, recorded.store)
    if place is not None:
        mark = recorded.marks[place]
        text = f"when it acknowledged {mark.operation}{'' if mark.key is None else f' {mark.key}'}"
        for moment, _ in moments(recorded.recording, disk):
            if moment.marks > place:
                return keep.reference("promised", State("", moment.number, moment.marks, live_items(disk), text=text))
    elif found.code.startswith(f"{Family.POWER}:"):
        for moment, _ in moments(recorded.recording, disk):
            if moment.number >= found.step:
                text = "as the program had written it, when the power was lost"
                return keep.reference("promised", State("", moment.number, moment.marks, live_items(disk), text=text))
    return None


def _neighbours(recorded: Recorded, pool: Pool, found: Discovery) -> tuple[State | None, State | None]:
    """Return the nearest crash states before and after in which nothing is found, judged anew.

    For a power loss, the first that is tried is the kill at the same step, which loses nothing.
    """
    family = found.code.partition(":")[0]
    if family not in {Family.CRASH, Family.POWER}:
        return None, None
    here = (found.step, found.marks)
    before: list[State] = []
    after: list[State] = []
    for state in crash_states(recorded.recording, recorded.store, recorded.seed):
        if not re.fullmatch(r"crash:\d+(m\d+)?", state.code):
            continue
        at = (state.step, state.marks)
        if at < here or (at == here and family == Family.POWER):
            before = [*before[1 - _NEIGHBOURS_TRIED :], state]
        elif at > here and family == Family.CRASH and len(after) < _NEIGHBOURS_TRIED * 2:
            after.append(state)
    return _holds(pool, reversed(before)), _holds(pool, after)


def _holds(pool: Pool, states: Iterable[State]) -> State | None:
    """Return the first of these states in which the check finds nothing."""
    for state in states:
        judgement = pool.judge(StateTask(state.items, state.marks, family=state.code.partition(":")[0]))
        if judgement.is_out_of_time:
            return None
        if not judgement.findings:
            return state
    return None


def tell(
    explored: Exploration, gathered: Mapping[tuple[str, str], Surroundings], options: Options, *, output: str = ""
) -> Story:
    """Return the story of an exploration, without secrets; ``output`` is that of the clean run."""
    causes = explored.causes
    story = Story(
        target=explored.target,
        seed=explored.seed,
        verdict=str(explored.verdict),
        coverage=explored.coverage,
        steps=explored.steps,
        schedules=explored.schedules,
        source=explored.source,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_s=round(explored.duration_s, 3),
        command=options.command,
        families=tuple(map(_family, explored.families)),
        causes=tuple(_cause(each, gathered, options) for each in causes[:CAUSES_MAX]),
        causes_omitted=max(0, len(causes) - CAUSES_MAX),
        findings=tuple(each for each in explored.findings if each.verdict is Verdict.VIOLATED),
        undecided=tuple(
            f"[{each.signature}] {each.text}" for each in explored.all_findings if each.verdict is Verdict.INCONCLUSIVE
        ),
        notes=explored.notes,
        output=output[-OUTPUT_CHARACTERS_MAX:],
        versions={
            "pytest-chaos": version("pytest-chaos"),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "kernel": f"{platform.system()} {platform.release()}",
        },
    )
    return clean(story)


def write(story: Story, folder: Path) -> None:
    """Write a story into the folder of the failing states."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_bytes(msgspec.json.encode(story))


def _family(result: FamilyResult) -> FamilyStory:
    return FamilyStory(
        family=str(result.family),
        verdict=result.judged,
        outcome=result.unexplored or result.outcome,
        coverage=result.coverage,
        states=result.states,
        confirmed=result.confirmed,
    )


def _cause(cause: Cause, gathered: Mapping[tuple[str, str], Surroundings], options: Options) -> CauseStory:
    lead = cause.lead
    around = gathered.get((lead.code, lead.signature), Surroundings())
    again = f"{options.command} --seed {shlex.quote(options.seed)} --state '{lead.code}'" if options.command else ""
    struck: dict[str, set[int]] = {}
    for found in cause.every:
        struck.setdefault(found.code.partition(":")[0], set()).update(found.struck)
    return CauseStory(
        signature=lead.signature,
        kind=lead.kind,
        text=lead.text,
        family=lead.code.partition(":")[0],
        code=lead.code,
        state=lead.state,
        label=lead.label,
        model=lead.model,
        step=lead.step,
        marks=lead.marks,
        states=sum(found.states for found in cause.every),
        at=lead.at,
        line=lead.line,
        again=again,
        folder=lead.folder.rpartition("/")[2],
        output=next((found.output for found in (lead, *cause.every) if found.output), ""),
        promised=around.promised,
        neighbour=around.neighbour,
        after=around.after,
        lost=around.lost,
        steps=around.steps,
        struck={family: tuple(sorted(steps)) for family, steps in struck.items()},
        variants=tuple(cause.variant_lines()),
    )
