"""The arithmetic of pass rates, against published figures,
against its own definition and against SciPy.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st
from pytest_chaos.errors import UsageError
from pytest_chaos.model.statistics import drop_probability, gate_pass_probability, rate_lower_bound, runs_needed


def exact_tail(held: int, runs: int, rate: float) -> float:
    """Add up the binomial terms as fractions: slow, and without any rounding."""
    chance = Fraction(rate)
    terms = (math.comb(runs, count) * chance**count * (1 - chance) ** (runs - count) for count in range(held, runs + 1))
    return float(sum(terms))


def test_fifty_clean_runs_show_less_than_they_seem_to() -> None:
    """Fifty of fifty bound the rate at 94.2 %."""
    assert round(rate_lower_bound(50, 50), 3) == 0.942


def test_claiming_ninety_eight_percent_needs_149_clean_runs() -> None:
    """The number of runs is the smallest one whose bound reaches the rate."""
    assert runs_needed(0.98) == 149
    assert rate_lower_bound(149, 149) >= 0.98 > rate_lower_bound(148, 148)


def test_a_scenario_that_fails_one_time_in_twenty_often_passes_the_gate() -> None:
    """A true rate of 95 % passes 0.98 of 50 in 28 % of all campaigns."""
    assert round(gate_pass_probability(0.95, 50, 0.98), 2) == 0.28


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_a_gate_always_stops_what_never_holds_and_passes_what_always_does(rate: float, expected: float) -> None:
    """The ends of the scale are exact."""
    assert gate_pass_probability(rate, 50, 0.98) == expected


def test_a_gate_of_nothing_lets_everything_through() -> None:
    """A minimum rate of zero is passed by a scenario that never holds."""
    assert gate_pass_probability(0.0, 5, 0.0) == 1.0


@given(st.integers(1, 60), st.data())
def test_at_the_bound_the_runs_seen_would_be_just_this_unlikely(runs: int, data: st.DataObject) -> None:
    """At the lower bound, as many runs that hold have a probability of 5 %,
    which is what the bound means.
    """
    held = data.draw(st.integers(1, runs))
    bound = rate_lower_bound(held, runs)
    assert exact_tail(held, runs, bound) == pytest.approx(0.05, rel=1e-9)
    assert 0.0 < bound < held / runs


@given(st.integers(1, 40), st.floats(0.05, 0.95), st.floats(0.0, 1.0))
def test_a_gate_passes_as_often_as_the_terms_add_up_to(runs: int, true_rate: float, rate_min: float) -> None:
    """Below and above the mean, the probability agrees with the sum of all terms that pass."""
    enough = min(held for held in range(runs + 1) if held / runs >= rate_min)
    expected = exact_tail(enough, runs, true_rate)
    assert gate_pass_probability(true_rate, runs, rate_min) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("runs", [1, 2, 7, 50, 350, 5_000, 100_000])
def test_the_bound_agrees_with_scipy(runs: int) -> None:
    """SciPy's exact bound is the same, from one run to a hundred thousand."""
    stats = pytest.importorskip("scipy.stats", reason="SciPy is installed with the extra 'bench' only")
    for held in {0, 1, runs // 3, runs // 2, runs - 1, runs}:
        one_sided = stats.binomtest(held, runs, alternative="greater").proportion_ci(0.95, method="exact")
        assert rate_lower_bound(held, runs) == pytest.approx(one_sided.low, abs=1e-9)


@pytest.mark.parametrize(
    ("held", "runs", "message"),
    [
        (0, 0, "the conclusive runs must be at least 1; got 0. Run the scenario until one is conclusive"),
        (3, 2, "the runs that held must be from 0 to the 2 runs there were; got 3. Count them again"),
        (-1, 2, "the runs that held must be from 0 to the 2 runs there were; got -1. Count them again"),
    ],
)
def test_counts_that_make_no_sense_are_refused(held: int, runs: int, message: str) -> None:
    """The bound says in one sentence what was wrong."""
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        rate_lower_bound(held, runs)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, math.nan])
def test_certainty_cannot_be_claimed(rate: float) -> None:
    """No number of clean runs shows that something never fails."""
    with pytest.raises(UsageError, match=r"^the rate to claim must be above 0 and below 1; got .+ 0\.98$"):
        runs_needed(rate)


def test_a_gate_outside_of_the_scale_is_refused() -> None:
    """A rate given in percent is a mistake that is said."""
    with pytest.raises(UsageError, match=r"^the rate of the gate must be from 0 to 1; got 98. Give a share"):
        gate_pass_probability(0.95, 50, 98)


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_the_chance_of_a_drop_is_that_of_drawing_by_lot(runs: int, later: int, data: st.DataObject) -> None:
    """The share of all ways to choose which runs held, in which the later ones hold as seldom."""
    held = data.draw(st.integers(0, runs))
    held_later = data.draw(st.integers(0, later))
    total = math.comb(runs + later, held + held_later)
    as_seldom = sum(
        math.comb(later, count) * math.comb(runs, held + held_later - count)
        for count in range(held_later + 1)
        if 0 <= held + held_later - count <= runs
    )
    assert drop_probability(held, runs, held_later, later) == pytest.approx(as_seldom / total)
