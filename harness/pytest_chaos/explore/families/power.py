"""The power family: states that a power loss may leave; each finding gets its smallest loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.explore.judge import StateTask
from pytest_chaos.explore.simulate.power import Model, power_states, walk_moments

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.record import Rebuilt, Recorded
    from pytest_chaos.explore.report import Discovery, FamilyResult
    from pytest_chaos.explore.session import Collector
    from pytest_chaos.explore.simulate.crash import Moment
    from pytest_chaos.explore.simulate.power import Choice, PowerLoss
    from pytest_chaos.explore.simulate.state import State

TITLE: Final = "survives a power loss"
REDUCED_MAX: Final = 12
"""At most this many findings are reduced to a smaller loss."""
REDUCTIONS_MAX: Final = 100
"""At most this many smaller losses are tried for one finding."""


def explore(recorded: Recorded, found: Collector) -> None:
    """Judge the states that a power loss may leave, under each model of the options."""
    options = found.session.options
    moments = len(recorded.recording.steps) + 1  # before each step and each mark, and at the end
    every = max(1, -(-moments * options.samples // options.power_states))
    found.points_total = moments * len(options.models)
    found.total = found.points_total // every
    found.is_sampled = every > 1
    for model in options.models:
        found.judge(_states(recorded, found, model, every), model=str(model))
    if found.is_complete:
        groups = found.grouped()
        reduced = [_reduced(recorded, found, each) for each in groups[:REDUCED_MAX]]
        found.discoveries = [*reduced, *groups[REDUCED_MAX:]]


def _states(recorded: Recorded, found: Collector, model: Model, every: int) -> Iterator[State]:
    """Yield the states of a model, and count the moments of those that were handed in."""
    options = found.session.options

    def states() -> Iterator[State]:
        for state, is_exhaustive in power_states(
            recorded.recording, recorded.store, model, seed=options.seed, samples=options.samples, every=every
        ):
            yield state
            found.is_sampled |= not is_exhaustive

    moments: set[str] = set()
    for state in found.in_order(states):
        yield state
        found.done += state.moment not in moments
        moments.add(state.moment)


def rebuild(recorded: Recorded, code: str, folder: Path, *, timeout_s: float) -> Rebuilt | None:
    """Build the state of a code again."""
    del folder, timeout_s
    if (at := _find(recorded, code)) is None:
        return None
    moment, loss, choice = at
    return recorded.rebuilt(loss.build(loss.pending, choice, moment))


def _find(recorded: Recorded, code: str) -> tuple[Moment, PowerLoss, Choice] | None:
    _, model, place, text = code.split(":", 3)
    for moment, loss in walk_moments(recorded.recording, recorded.store, Model(model)):
        if f"{moment.number}m{moment.marks}" == place:
            return moment, loss, loss.pending.decode(text)
    return None


def coverage(result: FamilyResult) -> str:
    """Return the coverage in words."""
    extent = result.extent
    at = f"at {result.points:,} of {result.points_total:,} moments"
    if result.points < result.points_total:
        extent = f" (sampled, {at})" if result.is_complete else f" so far, {at}"
    return f"{result.states:,} power-loss states{extent or (' (all there are)' if result.states else '')}"


def _reduced(recorded: Recorded, found: Collector, discovery: Discovery) -> Discovery:
    """Return the discovery with the smallest loss that still shows it, within a bound on tries."""
    if (at := _find(recorded, discovery.code)) is None:
        return discovery
    moment, loss, choice = at
    tried: set[Choice] = {choice}
    while True:
        for smaller in loss.pending.smaller(choice):
            if smaller in tried or len(tried) > REDUCTIONS_MAX or found.is_over:
                continue
            tried.add(smaller)
            state = loss.build(loss.pending, smaller, moment)
            judgement = found.session.pool.judge(StateTask(state.items, state.marks, family=found.family))
            if discovery.signature in {finding.signature for finding in judgement.findings}:
                changes = {"code": state.code, "state": str(state), "lost": state.lost}
                discovery, choice = msgspec.structs.replace(discovery, **changes), smaller
                break
        else:
            return discovery
