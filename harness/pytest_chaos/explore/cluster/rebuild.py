"""States built again from a recording by their codes, one after the other.

Batches come in the order of the run, so each family's walk through the recording goes on from where
it is, and begins anew only for a code that lies behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_chaos.explore.report import Family
from pytest_chaos.explore.simulate.crash import crash_states
from pytest_chaos.explore.simulate.power import Model, walk_moments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.simulate.crash import Moment
    from pytest_chaos.explore.simulate.power import PowerLoss
    from pytest_chaos.explore.simulate.state import State


def is_built(code: str) -> bool:
    """Whether a state of this code is built from the recording of the run alone."""
    return code.startswith((f"{Family.CRASH}:", f"{Family.POWER}:"))


class Builder:
    """Builds the states of one recording by their codes."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded
        self._crashes: Iterator[State] = iter(())
        self._walks: dict[str, _MomentWalk] = {}

    def build(self, code: str) -> State | None:
        """Return the state of a code; None if the recording has no such state."""
        return self._power(code) if code.startswith(f"{Family.POWER}:") else self._crash(code)

    def _crash(self, code: str) -> State | None:
        for _ in range(2):  # from here on, then once more from the beginning
            for state in self._crashes:
                if state.code == code:
                    return state
            recorded = self._recorded
            self._crashes = crash_states(recorded.recording, recorded.store, recorded.seed)
        return None

    def _power(self, code: str) -> State | None:
        _, model, place, text = code.split(":", 3)
        walk = self._walks.setdefault(model, _MomentWalk(self._recorded, Model(model)))
        at = walk.to(place)
        if at is None:
            return None
        moment, loss = at
        return loss.build(loss.pending, loss.pending.decode(text), moment)


class _MomentWalk:
    """A walk through the moments of a run, under one model."""

    def __init__(self, recorded: Recorded, model: Model) -> None:
        self._recorded = recorded
        self._model = model
        self._moments: Iterator[tuple[Moment, PowerLoss]] = iter(())
        self._place = ""
        self._here: tuple[Moment, PowerLoss] | None = None

    def to(self, place: str) -> tuple[Moment, PowerLoss] | None:
        """Go to a moment; None if there is no such moment."""
        if self._place == place:
            return self._here
        for _ in range(2):  # as above
            for moment, loss in self._moments:
                if (here := f"{moment.number}m{moment.marks}") == place:
                    self._place, self._here = here, (moment, loss)
                    return self._here
            self._moments = walk_moments(self._recorded.recording, self._recorded.store, self._model)
        self._place, self._here = "", None
        return None
