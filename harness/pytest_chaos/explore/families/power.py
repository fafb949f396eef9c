"""The family *power*: what a power failure may leave, and of each finding the smallest loss that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.explore.report import Discovery, Family, FamilyResult, grouped
from pytest_chaos.explore.session import Hearing
from pytest_chaos.explore.simulate.power import Model, power_states, walk_moments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.judge import Judgement
    from pytest_chaos.explore.session import Session
    from pytest_chaos.explore.simulate.crash import Moment
    from pytest_chaos.explore.simulate.power import Choice, Pending, PowerLoss
    from pytest_chaos.explore.simulate.state import State

REDUCED_MAX: Final = 12
"""So many findings of a model are reduced to a smaller loss; a target that fails in more ways has other worries."""
REDUCTIONS_MAX: Final = 100
"""So many smaller losses are tried for one finding."""


def explore_power_losses(session: Session) -> FamilyResult:
    """Judge what a power failure may leave, under each model that was asked for."""
    hearing = Hearing(session, Family.POWER)
    every = max(1, -(-_moments(session) * session.options.samples // session.options.power_states))
    hearing.points_total = _moments(session) * len(session.options.models)
    hearing.total = hearing.points_total // every
    is_complete, is_sampled = True, every > 1
    for model in session.options.models:
        moment = ""
        for state, is_exhaustive in _states(session, model, every):
            if session.is_over:
                is_complete = False
                break
            hearing.judge(state, model=str(model))
            is_sampled |= not is_exhaustive
            hearing.done += moment != state.moment
            moment = state.moment
        hearing.settle()
    if is_complete:
        reduced = [_reduced(session, found) for found in grouped(hearing.discoveries)[:REDUCED_MAX]]
        hearing.discoveries = [*reduced, *grouped(hearing.discoveries)[REDUCED_MAX:]]
    result = FamilyResult(
        family=Family.POWER,
        points=hearing.done,
        points_total=hearing.points_total,
        is_sampled=is_sampled,
        is_complete=is_complete,
    )
    return hearing.finish(result)


def _moments(session: Session) -> int:
    """Return at how many moments the power may fail: before each step and each mark, and at the end."""
    return len(session.recorded.recording.steps) + 1


def _states(session: Session, model: Model, every: int) -> Iterator[tuple[State, bool]]:
    recorded, options = session.recorded, session.options
    return power_states(
        recorded.recording, recorded.store, model, seed=options.seed, samples=options.samples, every=every
    )


def find_loss(session: Session, code: str) -> State | None:
    """Return the state that a code names, or None where there is no such moment."""
    _, model, place, text = code.split(":", 3)
    recorded = session.recorded
    for moment, loss in walk_moments(recorded.recording, recorded.store, Model(model)):
        if f"{moment.number}m{moment.marks}" == place:
            pending = loss.pending
            return loss.build(pending, pending.decode(text), moment)
    return None


def _reduced(session: Session, found: Discovery) -> Discovery:
    """Return the finding with as little lost as still shows it: what can be there, is."""
    recorded = session.recorded
    _, model, place, text = found.code.split(":", 3)
    for moment, loss in walk_moments(recorded.recording, recorded.store, Model(model)):
        if f"{moment.number}m{moment.marks}" == place:
            return _Reduction(session, found, moment, loss).reduce(loss.pending.decode(text))
    return found


class _Reduction:
    """Takes from a loss what is not needed to show the finding."""

    def __init__(self, session: Session, found: Discovery, moment: Moment, loss: PowerLoss) -> None:
        self._session = session
        self._found = found
        self._moment = moment
        self._loss = loss
        self._pending: Pending = loss.pending
        self._tries = 0

    def reduce(self, choice: Choice) -> Discovery:
        """Return the discovery with the smallest loss that was found in so many tries."""
        best = self._found
        tried: set[Choice] = {choice}
        while True:
            for smaller in self._pending.smaller(choice):
                if smaller in tried or self._tries >= REDUCTIONS_MAX or self._session.is_over:
                    continue
                tried.add(smaller)
                state = self._loss.build(self._pending, smaller, self._moment)
                if self._shows(state):
                    best, choice = self._told(best, state), smaller
                    break
            else:
                return best

    def _shows(self, state: State) -> bool:
        self._tries += 1
        heard: list[str] = []

        def done(judgement: Judgement, _: Path) -> None:
            heard.extend(finding.signature for finding in judgement.findings)

        self._session.pool.check(state.items, state.marks, done)
        self._session.pool.drain()
        return self._found.signature in heard

    def _told(self, found: Discovery, state: State) -> Discovery:
        return msgspec.structs.replace(found, code=state.code, state=str(state), lost=state.lost)
