"""The proof of a pass rate: against Robbins' inequality, exact integrals, and every path."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st
from pytest_chaos.errors import UsageError
from pytest_chaos.model.deciding import sequential
from pytest_chaos.model.deciding.sequential import Standing, decide, proof, runs_to_prove
from pytest_chaos.model.statistics import runs_needed, tail

ONE_IN_20 = 0.05


def integral(low: Fraction, high: Fraction, held: int, failed: int) -> Fraction:
    """Integrate ``q ** held * (1 - q) ** failed`` as a polynomial: exact, and without a tail."""
    total = Fraction(0)
    for power in range(failed + 1):
        term = math.comb(failed, power) * (-1) ** power
        up = held + power + 1
        total += Fraction(term, up) * (high**up - low**up)
    return total


def paths(true_rate: float, rate: float, runs: int) -> dict[Standing, float]:
    """Return how often each decision comes within so many runs, over all paths."""
    found: dict[Standing, float] = defaultdict(float)
    open_ways = {0: 1.0}
    for number in range(1, runs + 1):
        ways: dict[int, float] = defaultdict(float)
        for held, weight in open_ways.items():
            ways[held + 1] += weight * true_rate
            ways[held] += weight * (1 - true_rate)
        open_ways = {}
        for held, weight in ways.items():
            standing = decide(rate, held, number - held)
            if standing is Standing.UNDECIDED:
                open_ways[held] = weight
            else:
                found[standing] += weight
    return found


@pytest.mark.parametrize("rate", [0.9, 0.98])
def test_a_rate_is_proved_or_refuted_wrongly_at_most_one_time_in_twenty(rate: float) -> None:
    """At the rate itself, where it is hardest, looking after each of 200 runs: every path is added
    up. A bound for a fixed number, looked at in the same way, fails far more often.
    """
    found = paths(rate, rate, 200)
    assert 0.01 < found[Standing.PROVED] <= ONE_IN_20
    assert 0.01 < found[Standing.REFUTED] <= ONE_IN_20
    assert paths(rate - 0.01, rate, 200)[Standing.PROVED] < found[Standing.PROVED]
    assert paths(rate + 0.01, rate, 200)[Standing.REFUTED] < found[Standing.REFUTED]


def test_a_fixed_bound_that_is_looked_at_after_each_run_breaks_its_word() -> None:
    """Why the sequential test is needed: Clopper and Pearson's bound is wrong 1 time in 10."""
    rate, wrong, open_ways = 0.9, 0.0, {0: 1.0}
    for number in range(1, 200):
        ways: dict[int, float] = defaultdict(float)
        for held, weight in open_ways.items():
            ways[held + 1] += weight * rate
            ways[held] += weight * (1 - rate)
        open_ways = {held: weight for held, weight in ways.items() if tail(held, number, rate) >= ONE_IN_20}
        wrong += sum(weight for held, weight in ways.items() if held not in open_ways)
    assert wrong > 2 * ONE_IN_20


def test_most_campaigns_are_decided() -> None:
    """What never fails is proved, what fails one time in ten is refuted; in how many runs."""
    assert paths(1.0, 0.98, 171)[Standing.PROVED] == 1.0
    assert paths(0.9, 0.98, 200)[Standing.REFUTED] > 0.97
    assert paths(0.95, 0.98, 300)[Standing.REFUTED] > 0.4


@given(st.integers(1, 40), st.data(), st.sampled_from([Fraction(1, 2), Fraction(9, 10), Fraction(49, 50)]))
def test_the_mixture_is_the_mean_likelihood(runs: int, data: st.DataObject, rate: Fraction) -> None:
    """Both sides are the integral of the likelihood over the rates above, or below."""
    held = data.draw(st.integers(0, runs))
    failed = runs - held
    of_rate = rate**held * (1 - rate) ** failed
    above = integral(rate, Fraction(1), held, failed) / (1 - rate) / of_rate
    below = integral(Fraction(0), rate, held, failed) / rate / of_rate
    assert sequential.evidence_evenly(float(rate), held, runs) == pytest.approx(math.log(above), abs=1e-6)
    assert sequential.evidence_below(float(rate), held, runs) == pytest.approx(math.log(below), abs=1e-6)


@given(st.integers(1, 5_000), st.data(), st.floats(0.05, 0.995))
def test_both_sides_together_are_robbins_inequality(runs: int, data: st.DataObject, rate: float) -> None:
    """Robbins (1970): the mixture over all rates is 1 / ((n + 1) b(n, p, k)), b the binomial."""
    held = data.draw(st.integers(0, runs))
    binomial = math.lgamma(runs + 1) - math.lgamma(held + 1) - math.lgamma(runs - held + 1)
    binomial += held * math.log(rate) + (runs - held) * math.log1p(-rate)
    robbins = -math.log(runs + 1) - binomial
    above = sequential.evidence_evenly(rate, held, runs) + math.log1p(-rate)
    below = sequential.evidence_below(rate, held, runs) + math.log(rate)
    high = max(above, below)
    assert high + math.log(math.exp(above - high) + math.exp(below - high)) == pytest.approx(robbins, abs=1e-6)


@pytest.mark.parametrize("runs", [2, 50, 350, 5_000, 100_000])
def test_the_mixture_agrees_with_scipy(runs: int) -> None:
    """SciPy's incomplete beta function gives the same."""
    special = pytest.importorskip("scipy.special", reason="SciPy is installed with the extra 'bench' only")
    for rate in (0.9, 0.98, 0.999):
        for held in {round(runs * rate), runs - 1, runs}:
            failed = runs - held
            share = special.betaincc(held + 1, failed + 1, rate)
            mean = math.log(share) + special.betaln(held + 1, failed + 1) - math.log1p(-rate)
            expected = mean - held * math.log(rate) - failed * math.log1p(-rate)
            assert sequential.evidence_evenly(rate, held, runs) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=30)
@given(st.integers(1, 400), st.data())
def test_the_bounds_are_where_the_decision_turns(runs: int, data: st.DataObject) -> None:
    """A rate below the lower bound is proved, one above the upper bound is refuted."""
    held = data.draw(st.integers(0, runs))
    lower, upper = sequential.lower_bound(held, runs), sequential.upper_bound(held, runs)
    assert 0.0 <= lower <= held / runs <= upper <= 1.0
    if lower > 0.01:
        assert decide(lower - 0.005, held, runs - held) is Standing.PROVED
    if upper < 0.99:
        assert decide(upper + 0.005, held, runs - held) is Standing.REFUTED
    if lower < 0.99 and upper > 0.01:
        assert decide(min(max((lower + upper) / 2, 0.001), 0.999), held, runs - held) is Standing.UNDECIDED


def test_the_price_of_looking_is_known() -> None:
    """171 clean runs prove 98 %, where 149 do if nobody looks before; each failure costs more."""
    assert (runs_to_prove(0.98), runs_needed(0.98)) == (171, 149)
    assert [runs_to_prove(0.95, failed) for failed in range(3)] == [68, 153, 194]
    for rate in (0.9, 0.98, 0.999):
        for failed in (0, 1, 5):
            runs = runs_to_prove(rate, failed)
            assert decide(rate, runs - failed, failed) is Standing.PROVED
            assert decide(rate, runs - failed - 1, failed) is not Standing.PROVED


def test_a_run_without_an_answer_counts_against_both() -> None:
    """It may have held or not: it neither proves nor refutes, and leaves the rate open."""
    assert decide(0.9, 33, 0) is Standing.PROVED
    assert decide(0.9, 33, 0, 1) is Standing.UNDECIDED
    assert decide(0.9, 5, 5) is Standing.REFUTED
    assert decide(0.9, 5, 0, 5) is Standing.UNDECIDED
    assert decide(0.9, 0, 0, 50) is Standing.UNDECIDED
    assert decide(0.9, 0, 0) is Standing.UNDECIDED


def test_a_proof_has_its_numbers() -> None:
    """Rate, runs, bounds and error rates stand in one value."""
    found = proof(0.98, 60, 1)
    assert (found.rate, found.runs, found.held, found.violated) == (0.98, 61, 60, 1)
    assert found.decision is Standing.UNDECIDED
    assert found.lower < 0.98 < found.upper
    assert found.runs_needed == runs_to_prove(0.98, 1) - 61
    assert found.alpha == found.beta == pytest.approx(ONE_IN_20)
    assert proof(0.98, 171, 0).runs_needed == 0


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.2, math.nan])
def test_a_rate_that_no_number_of_runs_proves_is_refused(rate: float) -> None:
    """0 needs no run and 1 can never be shown."""
    with pytest.raises(UsageError, match=r"must be above 0 and below 1 \(0.98 for 98 %\); got"):
        proof(rate, 1, 0)
