"""Smaller variants of a violated run that are violated by the same finding.

Fewest faults come first, then the smallest workload (sizes, which may count agents, and drawn
values), the earliest times, and the shortest pauses; and again, until nothing gets smaller.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model.plan import describe
from pytest_chaos.model.story import Shrunk
from pytest_chaos.model.values import AfterMark, AtDelivery, AtMoment, AtPoint, AtStep
from pytest_chaos.narrow.trial import Spent
from pytest_chaos.narrow.variant import TrialOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_chaos.model.values import Fault, Json, When
    from pytest_chaos.narrow.trial import Trials
    from pytest_chaos.narrow.variant import Narrowed, RunVariant, TrialRun

    Smallest = Callable[[str, Callable[[Json], bool], Json], Json]

ROUNDS_MAX: Final = 4
_WHY_MAX: Final = 160
_PAIRS_MAX: Final = 8
_HALVINGS_MAX: Final = 6
WITHOUT: Final = 3
"""Runs without a fault that say whether it is necessary, where the violation always comes."""


def shrink(trials: Trials, start: RunVariant, *, smallest: Smallest) -> Narrowed:
    """Return the smallest variant that was found.

    ``smallest`` shrinks a drawn value: its name, whether a value is violated, and the value that is
    known to be.
    """
    seen = trials.baseline(start)
    same = [each for each in seen if each.outcome is TrialOutcome.SAME]
    if not same:
        return trials.answer(not_again(seen))
    shrinking = _Shrinking(trials, start, same[0], smallest)
    is_whole = True
    necessary: tuple[str, ...] = ()
    try:
        shrinking.work()
        necessary = tuple(_necessary(trials, shrinking.best))
    except Spent:
        is_whole = False
    best = shrinking.best
    return msgspec.structs.replace(
        trials.answer(),
        repeated=len(same),
        repeats=len(seen),
        variant=best,
        is_whole=is_whole,
        shrunk=Shrunk(
            faults=tuple(describe(fault) for fault in faults_of(best)),
            faults_before=len(faults_of(start)),
            necessary=necessary,
            runs=trials.runs,
            plan=best.plan,
            sizes={name: (before, best.sizes.get(name, before)) for name, before in shrinking.sizes_before.items()},
            drawn={name: (before, best.drawn.get(name, before)) for name, before in shrinking.drawn_before.items()},
        ),
    )


def repeat(trials: Trials, variant: RunVariant, times: int, *, stop_at_first: bool = False) -> Narrowed:
    """Run a variant so many times; return how often it was violated by the finding.

    With ``stop_at_first``, its first violation ends it.
    """
    seen: list[TrialRun] = []
    is_whole = True
    try:
        while len(seen) < times:
            seen.append(trials.run(variant))
            if stop_at_first and seen[-1].outcome is TrialOutcome.SAME:
                break
    except Spent:
        is_whole = False
    same = sum(each.outcome is TrialOutcome.SAME for each in seen)
    problem = "" if same else not_again(seen)
    silent = [each for each in seen if each.outcome is TrialOutcome.UNANSWERED]
    return msgspec.structs.replace(
        trials.answer(problem),
        repeated=same,
        repeats=len(seen),
        variant=variant,
        is_whole=is_whole,
        unfired=bool(silent) and all(each.unfired for each in silent),
    )


def not_again(seen: Sequence[TrialRun]) -> str:
    """Return in one sentence what came in place of the finding."""
    counts = {each.outcome: sum(other.outcome is each.outcome for other in seen) for each in seen}
    words = {
        TrialOutcome.HELD: "held",
        TrialOutcome.OTHER: "had another finding",
        TrialOutcome.UNANSWERED: "came to no answer",
    }
    said = ", ".join(f"{count} {words[outcome]}" for outcome, count in counts.items() if outcome in words)
    why = next(
        (each.why or each.problem for each in seen if each.outcome in {TrialOutcome.OTHER, TrialOutcome.UNANSWERED}), ""
    )
    of = f"of {len(seen)} run{'' if len(seen) == 1 else 's'}"
    short = why if len(why) <= _WHY_MAX else f"{why[:_WHY_MAX]}…"
    return f"{of} {said or 'all were violated'}{f' ({short})' if why else ''}"


def faults_of(variant: RunVariant) -> tuple[Fault, ...]:
    """Return the faults of a variant."""
    return variant.plan.faults if variant.plan is not None else ()


def with_faults(variant: RunVariant, faults: Sequence[Fault]) -> RunVariant:
    """Return a variant with other faults."""
    assert variant.plan is not None  # noqa: S101 - it has faults
    return msgspec.structs.replace(variant, plan=msgspec.structs.replace(variant.plan, faults=tuple(faults)))


class _Shrinking:
    """One shrinking: ``best`` is the smallest variant so far."""

    def __init__(self, trials: Trials, start: RunVariant, seen: TrialRun, smallest: Smallest) -> None:
        self._trials = trials
        self._smallest = smallest
        self.best = start
        self._seen = seen
        self.sizes_before = {name: number for name, (number, _) in seen.sizes.items()}
        self.drawn_before = dict(seen.drawn)

    def work(self) -> None:
        """Make it smaller until nothing helps. Raises Spent."""
        for _ in range(ROUNDS_MAX):
            before = self.best
            self._fewer_faults()
            self._smaller_sizes()
            self._simpler_values()
            self._earlier()
            self._shorter()
            if self.best == before:
                return

    def _takes(self, variant: RunVariant) -> bool:
        """Whether a variant is violated, too: then it is the best."""
        if variant == self.best:
            return False
        seen = self._trials.is_same(variant, unfired_max=self._seen.unfired)
        if seen is None:
            return False
        self.best, self._seen = variant, seen
        return True

    # Fewest faults

    def _fewer_faults(self) -> None:
        if not faults_of(self.best) or self._takes(with_faults(self.best, ())):
            return
        size = len(faults_of(self.best)) // 2
        while size >= 1:
            self._without(size)
            size = size // 2
        if 2 < len(faults_of(self.best)) <= _PAIRS_MAX:  # a pause and its end go together
            self._without_pairs()

    def _without(self, size: int) -> None:
        """Leave out runs of so many faults, as long as one can be."""
        place = 0
        while place < len(faults := faults_of(self.best)) > 1:
            left = (*faults[:place], *faults[place + size :])
            if not left or not self._takes(with_faults(self.best, left)):
                place += size

    def _without_pairs(self) -> None:
        taken = True
        while taken:
            faults = faults_of(self.best)
            pairs = itertools.combinations(range(len(faults)), 2)
            taken = any(
                len(faults) > 2
                and self._takes(with_faults(self.best, [each for at, each in enumerate(faults) if at not in pair]))
                for pair in pairs
            )

    # Smallest workload

    def _smaller_sizes(self) -> None:
        for name, (number, least) in list(self._seen.sizes.items()):
            self._lower(number, least, partial(self._with_size, name))

    def _with_size(self, name: str, number: int) -> RunVariant:
        return msgspec.structs.replace(self.best, sizes={**self.best.sizes, name: number})

    def _simpler_values(self) -> None:
        for name, value in list(self._seen.drawn.items()):
            is_over = False

            def is_wrong(other: Json, name: str = name) -> bool:
                nonlocal is_over
                if is_over:
                    return False
                try:
                    return self._takes(msgspec.structs.replace(self.best, drawn={**self.best.drawn, name: other}))
                except Spent:
                    is_over = True
                    return False

            self._smallest(name, is_wrong, value)
            if is_over:
                raise Spent

    # Earliest times, shortest pauses

    def _earlier(self) -> None:
        for place in range(len(faults_of(self.best))):
            when = faults_of(self.best)[place].when
            if isinstance(when, AtDelivery) and when.count is None:
                self._takes(self._with_when(place, msgspec.structs.replace(when, count=1)))
            for number, lower in _counts(when):
                self._lower(number, 1, partial(self._at, place, lower))
            if isinstance(when, AtMoment):
                self._halve(when.delay_s, partial(self._delayed, place, when))

    def _at(self, place: int, lower: Callable[[int], When], number: int) -> RunVariant:
        return self._with_when(place, lower(number))

    def _delayed(self, place: int, when: AtMoment, delay_s: float) -> RunVariant:
        return self._with_when(place, msgspec.structs.replace(when, delay_s=delay_s))

    def _with_when(self, place: int, when: When) -> RunVariant:
        faults = list(faults_of(self.best))
        faults[place] = msgspec.structs.replace(faults[place], when=when)
        return with_faults(self.best, faults)

    def _shorter(self) -> None:
        for place, fault in enumerate(faults_of(self.best)):
            known = REGISTRY[fault.kind].parameters if fault.kind in REGISTRY else {}
            for name, value in fault.parameters.items():
                rule = known.get(name)
                if rule is None or isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                change = self._parameter_of(place, name)
                if isinstance(value, int) and rule.type is int:
                    self._lower(value, int(rule.low), change)
                elif name.endswith("_s"):
                    self._halve(float(value), change, least=float(rule.low))

    def _parameter_of(self, place: int, name: str) -> Callable[[Any], RunVariant]:
        def change(value: Any) -> RunVariant:
            faults = list(faults_of(self.best))
            parameters = {**faults[place].parameters, name: value}
            faults[place] = msgspec.structs.replace(faults[place], parameters=parameters)
            return with_faults(self.best, faults)

        return change

    # Numbers

    def _lower(self, number: int, least: int, change: Callable[[int], RunVariant]) -> None:
        """Lower a whole number as far as it is still violated, by halves of what is left."""
        if number <= least or self._takes(change(least)):
            return
        while number - least > 1:
            middle = (number + least) // 2
            if self._takes(change(middle)):
                number = middle
            else:
                least = middle

    def _halve(self, seconds: float, change: Callable[[float], RunVariant], *, least: float = 0.0) -> None:
        """Shorten a time: to the least, or by halves."""
        if seconds <= least or self._takes(change(least)):
            return
        for _ in range(_HALVINGS_MAX):
            seconds = float(f"{seconds / 2:.2g}")
            if seconds <= least or not self._takes(change(seconds)):
                return


def _counts(when: When) -> Iterator[tuple[int, Callable[[int], When]]]:
    """Yield the numbers of a time that can be lower, each with the time for a lower one."""
    match when:
        case AtPoint() | AtStep():
            yield when.occurrence, lambda number: msgspec.structs.replace(when, occurrence=number)
        case AfterMark():
            yield when.count, lambda number: msgspec.structs.replace(when, count=number)
        case AtMoment(after=AfterMark() as after):
            yield (
                after.count,
                lambda number: msgspec.structs.replace(when, after=msgspec.structs.replace(after, count=number)),
            )
        case AtDelivery():
            yield when.number, lambda number: msgspec.structs.replace(when, number=number)
            if when.count is not None:
                yield when.count, lambda number: msgspec.structs.replace(when, count=number)


def _necessary(trials: Trials, best: RunVariant) -> Iterator[str]:
    """Yield for each fault what came without it, with the runs counted."""
    faults = faults_of(best)
    for place, fault in enumerate(faults):
        without = with_faults(best, [*faults[:place], *faults[place + 1 :]])
        seen = [trials.run(without) for _ in range(max(WITHOUT, trials.misses))]
        same = sum(each.outcome is TrialOutcome.SAME for each in seen)
        of = f"{same} of {len(seen)} runs violated"
        if same:
            said = f"{of}: it makes the violation likelier, and is not necessary"
        elif all(each.outcome is TrialOutcome.HELD for each in seen):
            said = f"{of}, all held: it is necessary"
        else:
            said = f"{of} ({not_again(seen)}): it is necessary for this finding"
        if any(each.outcome is TrialOutcome.UNANSWERED for each in seen) and not same:
            said = f"{of}, and {not_again(seen)}: whether it is necessary is not known"
        yield f"without {describe(fault)}: {said}"
