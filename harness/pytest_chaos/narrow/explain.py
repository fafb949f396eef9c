"""The same run with its fault at each moment in turn: when is it violated, and when not.

The moments are the durable steps of the agent (the fault comes before the step is made) and its
marks (the fault comes right after the mark). A survey finds them. Where no step can be seen, they
are times since the agent's start. Where there are more moments than may be tried, some are tried
first, spread over the run, and then those between two that differ.

Antithesis calls such a curve causality analysis, and computes it in a simulator.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model.plan import describe, time_agent
from pytest_chaos.model.story import Curve, CurvePoint
from pytest_chaos.model.values import AfterMark, AtDelivery, AtMoment, AtStep, MarkKind
from pytest_chaos.narrow.shrink import faults_of, not_again, with_faults
from pytest_chaos.narrow.trial import Spent
from pytest_chaos.narrow.variant import TrialOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos.model.values import Fault, When
    from pytest_chaos.narrow.trial import Trials
    from pytest_chaos.narrow.variant import AgentMoment, Narrowed, RunVariant, TrialRun

TIMES: Final = 20
"""Moments where neither steps nor marks are known: spread over the agent's life."""
NEIGHBOURS_MAX: Final = 6
STEP: Final = "step"
_SHOWN_MAX: Final = 12


class FaultMoment(NamedTuple):
    """A moment for a fault: its number, the time that a plan has for it, and what it is."""

    at: int
    when: When
    text: str
    line: str
    is_step: bool


class _Count:
    """The runs at one place."""

    def __init__(self) -> None:
        self.runs = self.violated = self.unanswered = 0

    def add(self, outcome: TrialOutcome) -> None:
        """Count a run; one that came to no answer, or has another finding, is not of the curve."""
        if outcome in {TrialOutcome.SAME, TrialOutcome.HELD}:
            self.runs += 1
            self.violated += outcome is TrialOutcome.SAME
        else:
            self.unanswered += 1

    @property
    def share(self) -> float | None:
        return self.violated / self.runs if self.runs else None


def faults_to_move(faults: Sequence[Fault], place: int | None) -> Sequence[int]:
    """Return the places of faults to move: the one asked for, or each kill, or the first fault.

    Raises UsageError for a plan without one.
    """
    if not faults:
        why = "the test plans none, or fires its faults by hand. Plan it with chaos.plan(...)"
        msg = f"explain must have a plan with a fault to move; got none: {why}"
        raise UsageError(msg)
    if place is not None:
        if not 1 <= place <= len(faults):
            msg = f"--fault must be 1 to {len(faults)}; got {place}. chaos evidence show lists the faults"
            raise UsageError(msg)
        return [place - 1]
    return [at for at, fault in enumerate(faults) if fault.kind == "kill"] or [0]


def explain(trials: Trials, start: RunVariant, *, fault: int | None, each: int, moments: int) -> Narrowed:
    """Return the curve of a fault over the moments of its agent. Raises UsageError.

    Without a place of a ``fault``, the first kill is moved that comes to an answer: where others
    wait for what it does, a kill that is moved leaves no run to judge.
    """
    places = faults_to_move(faults_of(start), fault)
    trials.needed = 1
    seen = trials.baseline(start)
    same = sum(one.outcome is TrialOutcome.SAME for one in seen)
    if not same:
        return trials.answer(not_again(seen))
    passed_over: list[str] = []
    for place in places:
        is_last = place == places[-1]
        answer = _curve(trials, start, place, each=each, moments=moments, is_probed=not is_last)
        if answer.curve is not None:
            break
        moved, why = faults_of(start)[place], "; ".join([answer.problem, *answer.notes])
        passed_over.append(f"fault {place + 1} ({describe(moved)}), moved: {why}")
        if not answer.is_whole:
            break
    if answer.curve is None:
        answer = msgspec.structs.replace(answer, problem="; ".join(passed_over), notes=())
    else:
        other = [f"fault {place + 1} of {len(faults_of(start))} was moved; --fault moves another one"]
        notes = (*answer.notes, *passed_over, *other * (fault is None and len(faults_of(start)) > 1))
        answer = msgspec.structs.replace(answer, notes=notes)
    return msgspec.structs.replace(answer, repeated=same, repeats=len(seen), variant=start)


def _curve(trials: Trials, start: RunVariant, place: int, *, each: int, moments: int, is_probed: bool) -> Narrowed:
    """Return the curve of the fault at a place of the plan; without one, why there is none.

    One that ``is_probed`` is given up if neither the first, nor the last, nor the moment in the
    middle comes to an answer: a run that waits in vain may take a minute.
    """
    moved = faults_of(start)[place]
    whole, without = _surveyed(trials, start, place)
    unit, places = places_of(moved, whole, without)
    if not places:
        what = "neither a durable step nor a mark of the agent was seen, and its life had no length"
        return trials.answer(what)
    walk = _Walk(trials, start, place, places, each)
    is_whole = True
    try:
        if not is_probed or walk.is_answered():
            walk.work(moments)
    except Spent:
        is_whole = False
    points = tuple(walk.points())
    curve = Curve(
        points=points,
        unit=unit,
        fault=f"{moved.kind} {moved.agent}",
        neighbours=tuple(neighbours(walk.tried(), moved.kind, unit)),
        runs=trials.runs,
    )
    notes = [f"without the fault ({describe(moved)}) the run is violated, too"] * (without.outcome is TrialOutcome.SAME)
    notes += [whole.problem] if whole.problem else []
    notes += walk.notes()
    answer = trials.answer("" if points else "no run at any moment came to an answer")
    return msgspec.structs.replace(answer, curve=curve if points else None, is_whole=is_whole, notes=tuple(notes))


def sweep(trials: Trials, start: RunVariant, *, fault: int | None, moments: int) -> Narrowed:
    """Run a fault at each moment once, or at so many, until one is violated. Raises UsageError."""
    place = faults_to_move(faults_of(start), fault)[0]
    moved = faults_of(start)[place]
    _, places = places_of(moved, *_surveyed(trials, start, place))
    walk = _Walk(trials, start, place, places, 1)
    is_whole = True
    try:
        walk.work(moments, until_violated=True)
    except Spent:
        is_whole = False
    points = list(walk.points())
    worst = next((point for point in points if point.violated), None)
    where = f"with the {moved.kind} at {worst.text or worst.at}" if worst is not None else ""
    problem = "" if points else "; ".join(walk.notes()) or "no moment for the fault was seen"
    return msgspec.structs.replace(
        trials.answer(problem), repeated=int(worst is not None), repeats=len(points), where=where, is_whole=is_whole
    )


def _surveyed(trials: Trials, start: RunVariant, place: int) -> tuple[TrialRun, TrialRun]:
    """Return a survey of a run as it is, and of the run without one of its faults."""
    rest = [one for at, one in enumerate(faults_of(start)) if at != place]
    whole = trials.run(msgspec.structs.replace(start, survey=True))
    return whole, trials.run(msgspec.structs.replace(with_faults(start, rest), survey=True))


def places_of(fault: Fault, whole: TrialRun, without: TrialRun) -> tuple[str, list[FaultMoment]]:
    """Return the unit of the moments, and the moments at which a fault can come.

    ``whole`` is a survey of the run as it is, ``without`` one without the fault.
    """
    takes = REGISTRY[fault.kind].takes if fault.kind in REGISTRY else ()
    if isinstance(fault.when, AtDelivery):
        found = range(1, max(whole.deliveries, without.deliveries) + 1)
        return "delivery", [
            FaultMoment(
                number, msgspec.structs.replace(fault.when, number=number), f"delivery {number}", "", is_step=False
            )
            for number in found
        ]
    agent = time_agent(fault)
    other = agent if agent != fault.agent else ""
    ways = [[each for each in seen.moments if each.agent == agent] for seen in (without, whole)]
    seen = max(ways, key=len)
    places = []
    if AtStep in takes and AfterMark in takes:
        places = list(_of_moments(seen, other))
    if places:
        return (STEP if all(each.is_step for each in places) else "moment"), places
    life_s = max(without.agents.get(agent, 0.0), whole.agents.get(agent, 0.0))
    if AtMoment not in takes or not life_s:
        return "ms", []
    spread = [life_s * number / TIMES for number in range(TIMES)]
    return "ms", [
        FaultMoment(round(delay_s * 1000), AtMoment(delay_s=round(delay_s, 4), agent=other), "", "", is_step=False)
        for delay_s in spread
    ]


def _of_moments(moments: Sequence[AgentMoment], agent: str) -> Iterator[FaultMoment]:
    counts: Counter[tuple[str, str]] = Counter()
    for at, each in enumerate(moments, start=1):
        counts[each.kind, f"{each.name} {each.operation}"] += 1
        count = counts[each.kind, f"{each.name} {each.operation}"]
        when: When
        if each.kind == STEP:
            when = AtStep(step=each.name, occurrence=count, agent=agent)
        else:
            when = AfterMark(kind=MarkKind(each.name), operation=each.operation, count=count, agent=agent)
        yield FaultMoment(at, when, each.text, each.line, is_step=each.kind == STEP)


class _Walk:
    """The runs at the places, first one at each, then more."""

    def __init__(self, trials: Trials, start: RunVariant, fault: int, places: Sequence[FaultMoment], each: int) -> None:
        self._trials = trials
        self._start = start
        self._fault = fault
        self._places = places
        self._each = each
        self._counts = [_Count() for _ in places]
        self._why: dict[int, str] = {}

    def is_answered(self) -> bool:
        """Try three moments; return whether any comes to an answer. Raises Spent."""
        last = len(self._places) - 1
        for at in sorted({0, last // 2, last}):
            self._run(at)
        return any(count.runs for count in self._counts)

    def work(self, moments: int, *, until_violated: bool = False) -> None:
        """Run the fault at so many moments, each some times, or until one is violated.

        Raises Spent.
        """
        many = len(self._places)
        spread = moments // 2
        chosen = {at * (many - 1) // max(1, spread - 1) for at in range(spread)} if many > moments else range(many)
        for at in sorted(chosen):
            if not self._counts[at].runs:
                self._run(at)
            if until_violated and self._counts[at].violated:
                return
        for _ in range(0 if many <= moments else moments - moments // 2):
            if (between := self._between()) is None:
                break
            self._run(between)
        edges = [at for pair in self._edges() for at in pair]
        for at in [*edges, *(at for at, count in enumerate(self._counts) if count.runs and at not in edges)]:
            for _ in range(self._each - self._counts[at].runs):
                self._run(at)

    def _run(self, at: int) -> None:
        faults = list(faults_of(self._start))
        faults[self._fault] = msgspec.structs.replace(faults[self._fault], when=self._places[at].when)
        seen = self._trials.run(with_faults(self._start, faults))
        self._counts[at].add(TrialOutcome.UNANSWERED if seen.unfired else seen.outcome)
        if seen.unfired:
            self._why.setdefault(at, seen.why or "the fault did not come there")
        elif seen.outcome is TrialOutcome.UNANSWERED:
            self._why.setdefault(at, seen.why)

    def _edges(self) -> list[tuple[int, int]]:
        """Return the pairs of tried places, next to each other, of which one alone is violated."""
        tried = [at for at, count in enumerate(self._counts) if count.runs]
        return [
            (before, after)
            for before, after in itertools.pairwise(tried)
            if (self._counts[before].violated > 0) != (self._counts[after].violated > 0)
        ]

    def _between(self) -> int | None:
        """Return an untried place in the middle of two that differ."""
        for before, after in self._edges():
            counts = self._counts[before + 1 : after]
            untried = [before + 1 + at for at, each in enumerate(counts) if not each.runs and not each.unanswered]
            if untried:
                return untried[len(untried) // 2]
        return None

    def points(self) -> Iterator[CurvePoint]:
        """Yield the points of the curve."""
        for place, count in zip(self._places, self._counts, strict=True):
            if count.runs:
                yield CurvePoint(
                    at=place.at, runs=count.runs, violated=count.violated, text=place.text, line=place.line,
                    unanswered=count.unanswered,
                )  # fmt: skip

    def notes(self) -> list[str]:
        """Return what is to be said of moments without an answer."""
        silent = [at for at, each in enumerate(self._counts) if each.unanswered and not each.runs]
        if not silent:
            return []
        numbers = ", ".join(f"{self._places[at].at:,}" for at in silent[:_SHOWN_MAX])
        more = f" and {len(silent) - _SHOWN_MAX} more" if len(silent) > _SHOWN_MAX else ""
        why = self._why.get(silent[0], "another finding")
        return [f"no run came to an answer at {numbers}{more}: {why:.200}"]

    def tried(self) -> list[tuple[FaultMoment, float]]:
        """Return the places with the share of violated runs."""
        both = zip(self._places, self._counts, strict=True)
        return [(place, count.share) for place, count in both if count.share is not None]


def neighbours(tried: Sequence[tuple[FaultMoment, float]], fault: str, unit: str) -> Iterator[str]:
    """Yield sentences about pairs of moments next to each other, of which one alone is violated.

    >>> first = FaultMoment(41, AtStep(step="truncate"), "truncate orders", "a.py:11", is_step=True)
    >>> second = FaultMoment(42, AtStep(step="write"), "write orders", "a.py:12", is_step=True)
    >>> (said,) = neighbours([(first, 0.0), (second, 1.0)], "kill", "step")
    >>> said.partition(". ")[0]
    'survives at step 41, lost at step 42: write orders (a.py:12)'
    >>> said.partition(". ")[2]
    'The kill comes after step 41 (truncate orders, a.py:11), and before step 42'
    """
    pairs = [(before, after) for before, after in itertools.pairwise(tried) if (before[1] > 0) != (after[1] > 0)]
    for (before, share), (after, later) in pairs[:NEIGHBOURS_MAX]:
        line = f" ({after.line})" if after.line else ""
        what = f": {after.text}{line}" if after.text else ""
        head = f"{_word(share)} at {unit} {before.at}, {_word(later)} at {unit} {after.at}{what}"
        gap = " (those between are not tried)" if after.at - before.at > 1 and unit != "ms" else ""
        yield f"{head}. {_between(before, after, fault)}{gap}" if before.text else head
    if (more := len(pairs) - NEIGHBOURS_MAX) > 0:
        yield f"and {more} more such neighbour{'' if more == 1 else 's'}"


def _word(share: float) -> str:
    return "survives" if not share else "lost" if share >= 1 else f"lost in {share:.0%} of runs"


def _between(before: FaultMoment, after: FaultMoment, fault: str) -> str:
    """Return what is done, and what is not, when the fault comes at the later of two moments."""
    done = f"{'step' if before.is_step else 'mark'} {before.at} ({_told(before)})"
    if after.is_step:
        return f"The {fault} comes after {done}, and before step {after.at}"
    return f"The {fault} comes after {done}, and after mark {after.at} ({_told(after)})"


def _told(place: FaultMoment) -> str:
    return f"{place.text}, {place.line}" if place.line else place.text
