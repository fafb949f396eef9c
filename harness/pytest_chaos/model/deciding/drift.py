"""Drift: whether time, memory, open files or processes grow from run to run of a campaign.

The test is that of Mann ("Nonparametric tests against trend", Econometrica 13, 1945) and Kendall:
of all pairs of runs, how many more rise than fall. It asks for no distribution and is not impressed
by a single outlier. The size is the median of the slopes of all pairs (Theil 1950, Sen 1968). A
drift is told if chance alone makes as many pairs rise at most once in :data:`FALSE_ALARMS_ONE_IN`
series, *and* the growth is worth a look (:data:`MEASURES`).

Memory, files and processes that grow are a finding: what a run meets depends on how many came
before it, so the runs are not drawn alike, and their rate has no bound. A growing time is told and
changes no verdict, since a machine that gets busier does the same.
"""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos.model.values import RunRecord

FALSE_ALARMS_ONE_IN: Final = 100_000
RUNS_MIN: Final = 12
"""Fewer runs can hardly show a drift: with ten that all rise, chance is one in 25,000."""
_POINTS_MAX: Final = 200


class Quantity(NamedTuple):
    """A measure that may grow: from how much on it is told, in its unit and as a share."""

    name: str
    growth_min: float
    share_min: float
    is_judged: bool = True


TIME: Final = Quantity("duration_s", 0.05, 1.0, is_judged=False)
AGENT_MEMORY: Final = Quantity("agent_memory_bytes", 4e6, 0.25)
AGENT_FILES: Final = Quantity("agent_open_files", 5, 0.25)
AGENTS: Final = Quantity("agents", 3, 0.25)
MEMORY: Final = Quantity("memory_bytes", 32e6, 0.25)
FILES: Final = Quantity("open_files", 8, 0.0)
PROCESSES: Final = Quantity("processes", 3, 0.0)
MEASURES: Final = (TIME, AGENT_MEMORY, AGENT_FILES, AGENTS, MEMORY, FILES, PROCESSES)


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A measure that grows over the runs of a test, from ``first`` to ``last`` by its median slope.

    ``chance`` is how often chance alone makes as many pairs of runs rise.
    """

    measure: str
    test: str
    runs: int
    first: float
    last: float
    per_run: float
    chance: float
    is_judged: bool = True


class Slope(NamedTuple):
    """The median slope of a series, per value, and the chance of as many rising pairs."""

    slope: float
    chance: float


def trend(values: Sequence[float]) -> Slope:
    """Return the trend of a series, upwards. A long one is divided into blocks, by their medians.

    >>> trend([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]).slope
    1.0
    """
    block = math.ceil(len(values) / _POINTS_MAX)
    points = [median(values[place : place + block]) for place in range(0, len(values), block or 1)]
    pairs = [(later, earlier) for later in range(len(points)) for earlier in range(later)]
    if not pairs:
        return Slope(0.0, 1.0)
    rises = sum((points[later] > points[earlier]) - (points[later] < points[earlier]) for later, earlier in pairs)
    slope = median((points[later] - points[earlier]) / (later - earlier) for later, earlier in pairs)
    return Slope(slope / block, _chance(rises, points))


def _chance(rises: int, points: Sequence[float]) -> float:
    """Return the chance of so many more rising than falling pairs, by the normal approximation."""
    count = len(points)
    ties = defaultdict[float, int](int)
    for value in points:
        ties[value] += 1
    tied = sum(each * (each - 1) * (2 * each + 5) for each in ties.values())
    variance = (count * (count - 1) * (2 * count + 5) - tied) / 18
    if variance <= 0 or rises <= 0:
        return 1.0
    return 0.5 * math.erfc((rises - 1) / math.sqrt(2 * variance))


def drift_of(measure: Quantity, test: str, values: Sequence[float]) -> Drift | None:
    """Return the drift of a series, if it is one."""
    if len(values) < RUNS_MIN:
        return None
    found = trend(values)
    growth = found.slope * (len(values) - 1)
    middle = median(values)
    if found.chance > 1 / FALSE_ALARMS_ONE_IN or growth < measure.growth_min or growth < measure.share_min * middle:
        return None
    first = max(0.0, middle - growth / 2)
    return Drift(
        measure=measure.name,
        test=test,
        runs=len(values),
        first=first,
        last=first + growth,
        per_run=found.slope,
        chance=found.chance,
        is_judged=measure.is_judged,
    )


def drifts_of(runs: Sequence[RunRecord]) -> tuple[Drift, ...]:
    """Return what drifts over the runs of a scenario, which are in the order of their iterations.

    Levels of the processes that stay (pytest, the guardian, templates, servers of a fixture) are
    compared within one process of pytest.
    """
    tests: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        tests[run.node_id].append(run)
    found = [drift_of(measure, test, values) for test, each in tests.items() for measure, values in _series(each)]
    return tuple(each for each in found if each is not None)


def _series(runs: Sequence[RunRecord]) -> Iterator[tuple[Quantity, list[float]]]:
    if len(runs) < RUNS_MIN:
        return
    yield TIME, [run.duration_s for run in runs]
    yield AGENTS, [len(run.agents) for run in runs]
    for measure, attribute in ((AGENT_MEMORY, "memory_bytes_max"), (AGENT_FILES, "open_files_max")):
        seen = (max((getattr(agent, attribute) for agent in run.agents), default=0) for run in runs)
        yield measure, [float(value) for value in seen if value]  # 0: it ended before it was looked at
    levels: dict[int, list[RunRecord]] = defaultdict(list)
    for run in runs:
        if run.level is not None:
            levels[run.level.pid].append(run)
    for each in levels.values():
        yield PROCESSES, [run.level.processes for run in each if run.level]
        yield FILES, [run.level.open_files for run in each if run.level]
        yield MEMORY, [float(run.level.memory_bytes) for run in each if run.level]
