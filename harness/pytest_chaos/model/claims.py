"""Claims: what must come up in some run of a campaign, and places that some run must reach.

A scenario in which no lease was ever taken over is green for the wrong reason. Antithesis calls the
two assertions *sometimes* (a condition is true at least once) and *reachable* (a line is reached at
least once). Both are about all runs of a scenario together, in whatever process: one run alone is
no campaign.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from pytest_chaos.model.values import MarkKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_chaos.model.history import History
    from pytest_chaos.model.values import Json, RunRecord

SOMETIMES: Final = "chaos.sometimes"
"""The note, and the operation of marks, with conditions: names, and whether each held."""
REACHABLE: Final = "chaos.reachable"
"""The note, and the operation of marks, with places: names, and whether each was reached."""

_LACKS: Final = {
    SOMETIMES: (
        "{name!r} must hold in some run of {scenario}; got none of {times}. Make it come up, or leave out {kind}"
    ),
    REACHABLE: (
        "the place {name!r} must be reached in some run of {scenario}; got none of {times}. Make a run come there, or "
        "leave out {kind}"
    ),
}


class Claims:
    """The claims of one run, by kind and name.

    >>> claims = Claims()
    >>> claims.add(REACHABLE, "the retry", holds=False)
    >>> claims.notes()
    {'chaos.reachable': {'the retry': False}}
    """

    def __init__(self) -> None:
        self._held: dict[str, dict[str, bool]] = {}

    def add(self, kind: str, name: str, *, holds: bool) -> None:
        """Add a claim. One that has held once in this run holds."""
        held = self._held.setdefault(kind, {})
        held[name] = held.get(name, False) or holds

    def read(self, history: History) -> None:
        """Add what agents said in their marks."""
        for kind in _LACKS:
            for mark in history.select(MarkKind.NOTE, kind):
                self.add(kind, str(mark.key), holds=kind == REACHABLE or bool(mark.value))

    def notes(self) -> dict[str, Json]:
        """Return the notes of the run's record."""
        return {kind: dict(held) for kind, held in self._held.items()}


def never_held(groups: Mapping[str, Sequence[RunRecord]]) -> Iterator[str]:
    """Yield a sentence for each claim that held in no run of a campaign of two or more runs."""
    for scenario, runs in groups.items():
        for kind, lacks in _LACKS.items() if len(runs) > 1 else ():
            asked: Counter[str] = Counter()
            held: set[str] = set()
            for run in runs:
                said = run.notes.get(kind)
                if isinstance(said, dict):
                    asked.update(said.keys())
                    held |= {name for name, holds in said.items() if holds}
            for name, times in asked.items():
                if name not in held:
                    yield lacks.format(name=name, scenario=scenario, times=times, kind=kind)
