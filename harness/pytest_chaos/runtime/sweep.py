"""What one run is in a sweep of points: the survey that finds the places, or one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_chaos.errors import UsageError
from pytest_chaos.faults.every_point import NOTE, EveryPoint
from pytest_chaos.model.campaign import CRASH_POINTS, place_name
from pytest_chaos.model.values import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos.faults.every_point import SweepPlace
    from pytest_chaos.model.seed import Stream
    from pytest_chaos.model.values import Fault, Json


class RunSweep:
    """The part of one run in a sweep. ``place`` is its place; None for a survey, or no sweep."""

    def __init__(self, place: SweepPlace | None) -> None:
        self._place = place
        self._sweep: EveryPoint | None = None
        self.places: list[SweepPlace] = []
        """In a survey: all places at which the test can be executed again."""
        self.sampled: list[SweepPlace] = []
        """Those that the sweep asks for."""
        self.drawn: list[SweepPlace] = []
        """One of them, for an iteration of a campaign."""
        self.notes: dict[str, Json] = {}

    @property
    def is_survey(self) -> bool:
        """Whether this run finds the places of a sweep."""
        return self._sweep is not None and self._place is None

    @property
    def has_steps(self) -> bool:
        """Whether durable steps are places, too."""
        return self._sweep is not None and bool(self._sweep.steps)

    def expanded(self, faults: Sequence[Fault | EveryPoint]) -> tuple[Fault, ...]:
        """Return the faults of this execution. Raises UsageError for two sweeps in a plan."""
        sweeps = [fault for fault in faults if isinstance(fault, EveryPoint)]
        if len(sweeps) > 1:
            msg = f"a plan must have one sweep at most; got {len(sweeps)}. Give each a test of its own"
            raise UsageError(msg)
        self._sweep = sweeps[0] if sweeps else None
        planned: list[Fault] = []
        for fault in faults:
            if not isinstance(fault, EveryPoint):
                planned.append(fault)
            elif self._place is not None:
                planned += fault.faults(self._place.when)
                self.notes[NOTE] = self._place.note()
        return tuple(planned)

    def look(self, survey: Path, randomness: Stream, problem: str) -> Iterator[Finding]:
        """Find the places of a sweep in a survey; ``problem`` is why no steps could be watched."""
        from pytest_chaos.trace.survey import read  # only in a survey

        assert self._sweep is not None  # noqa: S101 - this is a survey
        agent = self._sweep.agent
        seen = [(each.kind, each.name, each.path) for each in read(survey) if each.agent == agent]
        found = self._sweep.places(seen)
        self.notes = {CRASH_POINTS: [place_name(when) for when in found]}
        self.notes[NOTE] = {"place": "none: this is the survey", "number": 0, "of": len(found)}
        if problem and self.has_steps:
            yield Finding(signature="harness:unwatched", text=problem, kind="harness")
        elif found:
            self.places = self._sweep.chosen(found, randomness, None)
            self.sampled = self._sweep.chosen(found, randomness, self._sweep.sample)
            self.drawn = self._sweep.chosen(found, randomness, 1)
        else:
            yield self._sweep.nothing_found(seen)
