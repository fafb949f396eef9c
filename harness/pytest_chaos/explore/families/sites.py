"""Call sites: the same line of the program, the same call, the same kind of path.

A fault that costs a whole run is tried at representatives of each call site first: at the first and
at the last step of it. So a loop of a thousand rounds is judged by a few runs, and findings come
early. The rest follows in a drawn order, for as long as there is time.

The lines come from one more run of the program, which notes them (``lines``), and the functions of
compiled programs. Steps of a script in a shell have none: then call and path decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from pytest_chaos.explore.lines.noted import kind_of, lines_of
from pytest_chaos.model.seed import stream

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence
    from pathlib import Path

    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.session import Collector

FAULTS_MIN: Final = 64
"""So few faults are tried in the order of the steps."""
_Fault = TypeVar("_Fault")


class SitedFaults(NamedTuple, Generic[_Fault]):
    """Faults in the order in which they are tried, and the call site of each.

    ``representatives`` counts the first of them, which stand for all call sites; 0 if all are
    tried in the order of the steps.
    """

    faults: Sequence[_Fault]
    sites: Sequence[Hashable]
    representatives: int = 0


def planned(
    recorded: Recorded, found: Collector, faults: Sequence[_Fault], step_of: Callable[[_Fault], int],
    kind_of: Callable[[_Fault], Hashable],
) -> SitedFaults[_Fault]:  # fmt: skip
    """Return the faults in order; ``kind_of`` tells faults at one step apart."""
    options = found.session.options
    if len(faults) <= FAULTS_MIN:
        return SitedFaults(faults[: options.io_runs], ())
    sites = call_sites(recorded, found.session.folder, timeout_s=found.limited_s(options.run_timeout_s))
    groups: dict[Hashable, list[int]] = {}
    for place, fault in enumerate(faults):
        groups.setdefault((sites[step_of(fault) - 1], kind_of(fault)), []).append(place)
    first = list(dict.fromkeys([*(each[0] for each in groups.values()), *(each[-1] for each in groups.values())]))
    randomness = stream(options.seed, "explore", str(found.family), "rest")
    rest = sorted(set(range(len(faults))).difference(first), key=lambda _: randomness.random())
    order = [*first, *rest][: options.io_runs]
    chosen = [sites[step_of(faults[place]) - 1] for place in order]
    return SitedFaults([faults[place] for place in order], chosen, min(len(first), len(order)))


def settle(found: Collector, plan: SitedFaults[_Fault], tried: Sequence[int]) -> None:
    """Take the representatives for all, if the time was over once they were tried.

    ``tried`` has the places of the faults that were tried.
    """
    done = set(tried)
    found.sites_total = len(set(plan.sites[: plan.representatives]))
    found.sites = len({plan.sites[place] for place in done}) if plan.sites else 0
    if plan.representatives and not found.is_complete and not found.is_hanging:
        found.is_complete = done.issuperset(range(plan.representatives))
        found.is_sampled |= found.is_complete


def call_sites(recorded: Recorded, folder: Path, *, timeout_s: float) -> list[Hashable]:
    """Return the call site of each durable step, in their order."""
    steps = recorded.recording.durable()
    lines = [*lines_of(recorded, folder, timeout_s=timeout_s), *[""] * len(steps)]
    names = recorded.drawn
    return [
        (line, step.call, step.action, kind_of(step.path, names), kind_of(step.target, names))
        for step, line in zip(steps, lines, strict=False)
    ]
