"""Runs of variants within a budget, and how often one is tried before it is believed."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from pytest_chaos.narrow.variant import Narrowed, TrialOutcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.narrow.variant import RunVariant, TrialRun

BASELINE: Final = 5
"""Runs of the plan as it is, before anything is changed."""
NEEDED: Final = 2
"""Runs with the same finding that make a smaller variant believed."""
MISSED: Final = 0.05
"""How likely a variant that is violated as often as the first one may be passed over."""
TRIES_MAX: Final = 20
_OTHERS_MAX: Final = 5


class Spent(Exception):  # noqa: N818 - no error: the budget is used up
    """No run or no second is left."""


class Trials:
    """Makes the runs of a narrowing, counts them, and stops when the budget is used up."""

    def __init__(
        self, execute: Callable[[RunVariant], TrialRun], *, tries: int, seconds: float, clock: Callable[[], float]
    ) -> None:
        self._execute = execute
        self._tries = tries
        self._clock = clock
        self._begun_s = clock()
        self._over_s = self._begun_s + seconds
        self.outcomes: Counter[TrialOutcome] = Counter()
        self.others: dict[str, None] = {}
        """Other findings that came up, in words."""
        self.misses = 1
        """So many runs in a row without the finding show that a variant is not violated."""
        self.needed = NEEDED

    @property
    def runs(self) -> int:
        """The number of runs so far."""
        return self.outcomes.total()

    @property
    def seconds(self) -> float:
        """The seconds since the beginning."""
        return self._clock() - self._begun_s

    def answer(self, problem: str = "") -> Narrowed:
        """Return the answer so far: the runs, other findings, and a problem."""
        return Narrowed(
            outcomes=dict(self.outcomes),
            problem=problem,
            others=tuple(self.others)[:_OTHERS_MAX],
            seconds=round(self.seconds, 3),
        )

    def run(self, variant: RunVariant) -> TrialRun:
        """Run a variant once. Raises Spent."""
        if self.runs >= self._tries or self._clock() >= self._over_s:
            raise Spent
        seen = self._execute(variant)
        self.outcomes[seen.outcome] += 1
        if seen.outcome is TrialOutcome.OTHER:
            self.others.setdefault(seen.why)
        return seen

    def baseline(self, variant: RunVariant) -> list[TrialRun]:
        """Run a variant some times; set how often others are tried after what it showed.

        Where the first half is always violated, the rest is left out. Raises Spent.
        """
        seen: list[TrialRun] = []
        while len(seen) < BASELINE:
            seen.append(self.run(variant))
            same = sum(each.outcome is TrialOutcome.SAME for each in seen)
            if len(seen) == same == BASELINE // 2 + 1:
                break
        if 0 < same < len(seen):
            self.misses = min(TRIES_MAX, math.ceil(math.log(MISSED) / math.log(1 - same / len(seen))))
        return seen

    def is_same(self, variant: RunVariant, *, unfired_max: int | None = None) -> TrialRun | None:
        """Return a run of a variant that is violated by the finding, more than once; else None.

        ``unfired_max`` bounds the planned faults that may not come. Raises Spent.
        """
        same = misses = 0
        while misses < self.misses:
            seen = self.run(variant)
            if seen.outcome is TrialOutcome.SAME and (unfired_max is None or seen.unfired <= unfired_max):
                same, misses = same + 1, 0
                if same >= self.needed:
                    return seen
            else:
                misses += 1
        return None
