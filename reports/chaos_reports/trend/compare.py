"""What changed between two sessions: worse, better, undecided. Pure.

A scenario is *worse* if it is violated and was not, if a cause of violations is new, or if its pass
rate fell by more than chance explains. It is *undecided* if the later session cannot say: not run,
not complete, inconclusive. All else is better, changed, or the same.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

import msgspec
from pytest_chaos.model.signatures import cause_of
from pytest_chaos.model.statistics import drop_probability
from pytest_chaos.model.values import Verdict

from chaos_reports.figures import clip, duration, moment, percent, plural
from chaos_reports.matrix import headline, row_label

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.model.campaign import FailureSummary, MatrixSummary, ScenarioSummary

CHANCE_MAX: Final = 0.05
"""A drop of a rate that chance explains more often than this is no change."""
SLOWER_FACTOR: Final = 1.5
SLOWER_MIN_S: Final = 0.5
"""A run's mean duration that changed by this factor, and by so much, is told."""


class Direction(enum.StrEnum):
    """Where a scenario went, the worst first."""

    WORSE = "worse"
    UNDECIDED = "undecided"
    BETTER = "better"
    CHANGED = "changed"
    SAME = "same"


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario in both sessions. ``texts`` say what changed; the first one is the verdict."""

    id: str
    title: str
    direction: Direction
    before: str
    after: str
    texts: tuple[str, ...] = ()


class SessionResult(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two sessions, and its result in a sentence."""

    started: str
    seed: str
    result: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The difference of two sessions, by scenario, the worst first."""

    before: SessionResult
    after: SessionResult
    direction: Direction
    scenarios: tuple[Changed, ...]
    versions: tuple[str, ...] = ()
    format: int = 1


def compare(before: MatrixSummary, after: MatrixSummary) -> Comparison:
    """Compare two sessions."""
    old = {each.scenario.id: each for each in before.scenarios}
    new = {each.scenario.id: each for each in after.scenarios}
    found = [_changed(old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
    order = list(Direction)
    found.sort(key=lambda each: order.index(each.direction))
    undecided = Direction.UNDECIDED if after.incomplete or not after.scenarios else Direction.SAME
    worst = min([undecided, *(each.direction for each in found)], key=order.index)
    return Comparison(
        before=_session(before),
        after=_session(after),
        direction=worst,
        scenarios=tuple(found),
        versions=tuple(_versions(before.header.versions, after.header.versions)),
    )


def lines(found: Comparison) -> Iterator[str]:
    """Yield a comparison as lines of text."""
    for name, session in (("before", found.before), ("after", found.after)):
        yield f"{name}: {session.started or 'no date'}, seed {session.seed}: {session.result}"
    if found.versions:
        yield f"versions: {'; '.join(found.versions)}"
    for each in found.scenarios:
        if each.direction is not Direction.SAME:
            verdicts = each.after if each.before == each.after else f"{each.before} -> {each.after}"
            yield f"{each.direction:<9}  {each.id}: {verdicts}"
            yield from (f"           {text}" for text in each.texts)
    counts = [(sum(each.direction is way for each in found.scenarios), way) for way in Direction]
    said = ", ".join(f"{count} {way}" for count, way in counts if count) or "none in either"
    yield f"{found.direction.upper()}: {plural(len(found.scenarios), 'scenario')}: {said}"


def _session(matrix: MatrixSummary) -> SessionResult:
    return SessionResult(
        started=moment(clip(matrix.header.started, 40)), seed=clip(matrix.header.seed, 80), result=headline(matrix)
    )


def _versions(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield clip(f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}", 160)


def _changed(old: ScenarioSummary | None, new: ScenarioSummary | None) -> Changed:
    named = new or old
    assert named is not None  # noqa: S101 - an id of one of both
    before, after = (row_label(each) if each else "NOT RUN" for each in (old, new))
    texts: list[str] = []
    ways: list[Direction] = []
    if old is None or new is None:
        is_violated = new is not None and new.verdict is Verdict.VIOLATED
        missing = Direction.UNDECIDED if new is None else Direction.CHANGED
        ways.append(Direction.WORSE if is_violated else missing)
        texts.append("it is not in the later session" if new is None else "it was not in the earlier session")
    else:
        ways.append(_verdicts(old.verdict, new.verdict, is_other=before != after))
    for way, text in _findings(old, new):
        ways.append(way)
        texts.append(text)
    if old is not None and new is not None:
        for way, text in (*_rates(old, new), *_figures(old, new)):
            ways.append(way)
            texts.append(text)
    return Changed(
        id=clip(named.scenario.id, 120),
        title=clip(named.scenario.title, 240),
        direction=min(ways, key=list(Direction).index),
        before=before,
        after=after,
        texts=tuple(texts),
    )


def _verdicts(old: Verdict, new: Verdict, *, is_other: bool) -> Direction:
    if new is Verdict.VIOLATED:
        return Direction.SAME if old is Verdict.VIOLATED else Direction.WORSE
    if new is Verdict.INCONCLUSIVE:
        return Direction.UNDECIDED
    if old is Verdict.HELD:
        return Direction.CHANGED if is_other else Direction.SAME
    return Direction.BETTER


def _findings(old: ScenarioSummary | None, new: ScenarioSummary | None) -> Iterator[tuple[Direction, str]]:
    """Yield the causes that are new, and those that are gone."""
    earlier, later = _causes(old), _causes(new)
    for cause in later.keys() - earlier.keys():
        found = later[cause]
        way = Direction.UNDECIDED if found.kind == "harness" else Direction.WORSE
        text = " ".join(clip(found.texts.values[0][0], 200).split()) if found.texts.values else ""
        yield way, f"new finding {clip(found.signature, 120)} ({plural(found.runs, 'run')}): {text}"
    if new is None or new.failures_omitted:
        return
    for cause in earlier.keys() - later.keys():
        gone = f"finding gone: {clip(earlier[cause].signature, 120)}"
        yield (Direction.BETTER if new.verdict is not Verdict.INCONCLUSIVE else Direction.UNDECIDED), gone


def _causes(summary: ScenarioSummary | None) -> dict[str, FailureSummary]:
    return {cause_of(each.signature): each for each in summary.failures} if summary else {}


def _rates(old: ScenarioSummary, new: ScenarioSummary) -> Iterator[tuple[Direction, str]]:
    was, now = old.held + old.violated, new.held + new.violated
    if not was or not now or old.pass_rate == new.pass_rate:
        return
    text = f"pass rate {percent(old.pass_rate)} of {was:,} -> {percent(new.pass_rate)} of {now:,}"
    is_lower = (new.pass_rate or 0.0) < (old.pass_rate or 0.0)
    if is_lower:
        chance = drop_probability(old.held, was, new.held, now)
    else:
        chance = drop_probability(new.held, now, old.held, was)
    said = f"chance alone gives that in {percent(chance)} of cases"
    if chance > CHANCE_MAX:
        yield Direction.SAME, f"{text} (no change is shown: {said})"
    else:
        yield (Direction.WORSE if is_lower else Direction.BETTER), f"{text} ({said})"


def _figures(old: ScenarioSummary, new: ScenarioSummary) -> Iterator[tuple[Direction, str]]:
    hit, hit_before = (sum(point.fired > 0 for point in each.crash_points) for each in (new, old))
    if hit < hit_before:
        yield Direction.CHANGED, f"crash points hit: {hit_before} -> {hit}"
    was, now = (each.duration_s / max(1, each.runs) for each in (old, new))
    if abs(now - was) >= SLOWER_MIN_S and max(now, was) >= SLOWER_FACTOR * min(now, was):
        yield Direction.CHANGED, f"duration of a run {duration(was)} -> {duration(now)}"
