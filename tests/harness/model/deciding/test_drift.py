"""Drift over a campaign: against Kendall's table, SciPy, and series that only look like one."""

from __future__ import annotations

import itertools
import math

import pytest
from pytest_chaos.model.deciding import drift
from pytest_chaos.model.deciding.drift import AGENT_FILES, FILES, MEASURES, TIME, drift_of, drifts_of, trend
from pytest_chaos.model.seed import stream
from pytest_chaos.model.values import AgentSummary, Level, RunRecord, Scenario, Verdict

KENDALL = {19: 0.054, 21: 0.036, 23: 0.023, 25: 0.014, 27: 0.0083, 29: 0.0046}
"""P(S >= s) of ten values (Kendall, Rank Correlation Methods, 1970; Gilbert 1987, table A18)."""


def series_with(pairs_that_rise: int) -> list[int]:
    """Return ten values, none twice, with so many more rising than falling pairs."""
    falling = (45 - pairs_that_rise) // 2
    values = list(range(10))
    for _ in range(falling):  # each exchange of neighbours makes one pair fall
        place = next(place for place in range(9) if values[place] < values[place + 1])
        values[place], values[place + 1] = values[place + 1], values[place]
    return values


@pytest.mark.parametrize(("rises", "chance"), KENDALL.items())
def test_the_chance_agrees_with_the_published_table(rises: int, chance: float) -> None:
    """The normal approximation is within a few thousandths from ten values on."""
    assert trend(series_with(rises)).chance == pytest.approx(chance, abs=0.003)


def test_the_trend_agrees_with_scipy() -> None:
    """The median slope is SciPy's; the chance is that of Kendall's tau, with ties."""
    stats = pytest.importorskip("scipy.stats", reason="SciPy is installed with the extra 'bench' only")
    drawn = stream("drift", "scipy")
    for size, step in itertools.product((12, 50, 150), (0.0, 0.05, 1.0)):
        values = [round(place * step + drawn.random() * 5) for place in range(size)]
        found = trend(values)
        assert found.slope == pytest.approx(stats.theilslopes(values).slope)
        tau = stats.kendalltau(range(size), values, alternative="greater", method="asymptotic")
        if 1e-12 < found.chance < 0.5:
            assert math.log(found.chance) == pytest.approx(math.log(tau.pvalue), rel=0.2)


def test_series_without_a_trend_raise_no_alarm() -> None:
    """Noise, outliers, steps down and a start that is slower: none of 300 series is a drift."""
    drawn = stream("drift", "alarms")
    for number in range(60):
        size = 12 + number % 60
        noise = [drawn.random() for _ in range(size)]
        for values in (
            noise,
            [100 * each**8 for each in noise],
            [10.0] * size,
            [50.0 * (place < 3) + each for place, each in enumerate(noise)],
            [float(place % 7) for place in range(size)],
        ):
            assert all(drift_of(measure, "t", values) is None for measure in MEASURES)


def test_a_leak_of_a_file_in_each_run_is_a_drift() -> None:
    """Fifty runs that each leave a file open, among noise of some files."""
    drawn = stream("drift", "leak")
    values = [20 + place + int(drawn.random() * 4) for place in range(50)]
    found = drift_of(FILES, "t.py::t", values)
    assert found is not None
    assert found.per_run == pytest.approx(1.0, abs=0.1)
    assert found.last - found.first == pytest.approx(49, abs=5)
    assert found.chance < 1 / drift.FALSE_ALARMS_ONE_IN


def test_a_growth_that_is_worth_nothing_is_none() -> None:
    """A trend may be certain and small."""
    assert drift_of(FILES, "t", [20 + place // 20 for place in range(100)]) is None
    assert drift_of(AGENT_FILES, "t", [100 + place // 10 for place in range(100)]) is None


def test_few_runs_say_nothing() -> None:
    """From twelve runs on there is an answer."""
    assert drift_of(FILES, "t", list(range(0, 110, 10))) is None
    assert drift_of(FILES, "t", list(range(0, 120, 10))) is not None


def test_long_series_are_divided_into_blocks() -> None:
    """A slope is still one per run."""
    found = trend([place / 10 for place in range(10_000)])
    assert found.slope == pytest.approx(0.1)
    assert found.chance < 1e-90


def record(iteration: int, *, test: str = "t.py::t", time_s: float = 0.1, files: int = 9, pid: int = 1) -> RunRecord:
    """Return a run that held."""
    agent = AgentSummary(name="a", target="t", pid=2, exit_status="0", open_files_max=files, memory_bytes_max=20 << 20)
    return RunRecord(
        scenario=Scenario(id="s", title="s"), node_id=test, run_id=f"{test}-{iteration}", seed="s",
        verdict=Verdict.HELD, iteration=iteration, agents=(agent,), duration_s=time_s,
        level=Level(pid=pid, processes=4, open_files=30 + (iteration if pid == 1 else 0), memory_bytes=100 << 20),
    )  # fmt: skip


def test_each_test_and_each_process_has_series_of_its_own() -> None:
    """Two tests that differ are no drift, nor are two workers."""
    mixed = [record(each, test=f"t.py::t[{each % 2}]", files=9 + 50 * (each % 2), pid=7) for each in range(60)]
    assert drifts_of(mixed) == ()
    workers = [record(each, pid=each // 30 + 2) for each in range(60)]
    assert drifts_of(workers) == ()


def test_what_grows_is_named() -> None:
    """Files of agents and of the processes that stay are judged; the time is told alone."""
    runs = [record(each, files=9 + each, time_s=0.1 + each / 50) for each in range(40)]
    found = {each.measure: each.is_judged for each in drifts_of(runs)}
    assert found == {TIME.name: False, AGENT_FILES.name: True, FILES.name: True}
