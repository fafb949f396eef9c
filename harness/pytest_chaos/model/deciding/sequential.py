"""Proof of a pass rate that may be looked at after every run.

A bound for a fixed number of runs does not hold for who looks after each run and stops when it
suits: a scenario at the very rate then passes far more often than one time in twenty. Wald
("Sequential Analysis", 1947) tests one rate against another, and needs the second one from the
user. Here the second one is drawn from a mixture, as by Robbins ("Statistical methods related to
the law of the iterated logarithm", Annals of Mathematical Statistics 41, 1970). What the runs say
for the mixture, divided by what they say for a rate, exceeds 20 at *any* run with a probability of
at most 1 in 20 if that rate is true (Ville 1939). So a campaign may stop there, or at the end of
its budget, or go on another day, and several machines may stop each by itself: the likelihood of
their runs together does not know who stopped when.

The mixture of a proof has half its weight on a rate of 1, as most scenarios never fail, and spreads
the other half evenly above the rate. That of a refutation is spread evenly below it. Without a
violated run, 98 % is proved after 171 runs; a fixed number needs 149, decided on before.

A run without an answer counts against both: it may have been either.
"""

from __future__ import annotations

import enum
import math
from typing import Final

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.statistics import CONFIDENCE, choices, tail

ERROR: Final = 1.0 - CONFIDENCE
"""How often, at most, a rate is proved that is lower, and one is refuted that is there."""

_ENOUGH: Final = -math.log(ERROR)
_SURE: Final = 0.5
"""The weight of a rate of 1 in the mixture of a proof."""
_HALVINGS: Final = 60
_RUNS_MAX: Final = 10_000_000


class Standing(enum.StrEnum):
    """What the runs so far say about a rate."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """Where the proof of a rate stands. ``lower`` and ``upper`` bound the true rate at any run.

    ``alpha`` bounds how often a lower rate is proved, ``beta`` how often a rate that is there is
    refuted.
    """

    rate: float
    decision: Standing
    runs: int
    held: int
    violated: int
    lower: float
    upper: float
    runs_needed: int
    """Clean runs that a proof still needs; 0 once it is decided."""
    alpha: float = ERROR
    beta: float = ERROR


def proof(rate: float, held: int, violated: int, inconclusive: int = 0) -> Proof:
    """Return where the proof of ``rate`` stands after these runs.

    >>> proof(0.98, 171, 0).decision, proof(0.98, 6, 4).decision, proof(0.98, 50, 0).decision
    (<Standing.PROVED: 'proved'>, <Standing.REFUTED: 'refuted'>, <Standing.UNDECIDED: 'undecided'>)

    Raises UsageError for a rate that no number of runs can prove.
    """
    check_rate(rate)
    decision = decide(rate, held, violated, inconclusive)
    runs = held + violated + inconclusive
    return Proof(
        rate=rate,
        decision=decision,
        runs=runs,
        held=held,
        violated=violated,
        lower=lower_bound(held, runs),
        upper=upper_bound(held + inconclusive, runs),
        runs_needed=0 if decision is not Standing.UNDECIDED else _clean_runs_left(rate, held, runs),
    )


def decide(rate: float, held: int, violated: int, inconclusive: int = 0) -> Standing:
    """Return what the runs say about ``rate``, which lies between 0 and 1."""
    runs = held + violated + inconclusive
    if runs == 0:
        return Standing.UNDECIDED
    if evidence_above(rate, held, runs) >= _ENOUGH:
        return Standing.PROVED
    if evidence_below(rate, held + inconclusive, runs) >= _ENOUGH:
        return Standing.REFUTED
    return Standing.UNDECIDED


def check_rate(rate: float) -> None:
    """Raise UsageError unless a number of runs can prove this rate."""
    if not 0.0 < rate < 1.0:
        msg = f"must be above 0 and below 1 (0.98 for 98 %); got {rate:g}"
        raise UsageError(msg)


def evidence_above(rate: float, held: int, runs: int) -> float:
    """Return the logarithm of how much better rates above ``rate`` explain the runs."""
    found = evidence_evenly(rate, held, runs)
    if held < runs:
        return found + math.log1p(-_SURE)
    sure = -runs * math.log(rate)
    high = max(found, sure)
    return high + math.log(_SURE * math.exp(sure - high) + (1.0 - _SURE) * math.exp(found - high))


def evidence_below(rate: float, held: int, runs: int) -> float:
    """Return the logarithm of how much better rates below ``rate`` explain the runs."""
    return evidence_evenly(1.0 - rate, runs - held, runs)


def evidence_evenly(rate: float, held: int, runs: int) -> float:
    """Return the logarithm of the likelihood of the rates above ``rate``, over that of ``rate``.

    The mean over the interval: the integral of the likelihood is a binomial tail.
    """
    more = _at_most(held, runs + 1, rate)
    if more <= 0.0:
        return -math.inf
    mean = math.log(more) - math.log(runs + 1) - choices(runs, held) - math.log1p(-rate)
    return mean - held * math.log(rate) - (runs - held) * math.log1p(-rate)


def lower_bound(held: int, runs: int) -> float:
    """Return the rate below which the true one lies, at whatever run one looks, 1 time in 20."""
    if held == 0:
        return 0.0
    low, high = 0.0, held / runs
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if evidence_above(middle, held, runs) >= _ENOUGH else (low, middle)
    return low


def upper_bound(held: int, runs: int) -> float:
    """Return the rate above which the true one lies, at whatever run one looks, 1 time in 20."""
    if held == runs:
        return 1.0
    low, high = held / runs, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if evidence_below(middle, held, runs) >= _ENOUGH else (middle, high)
    return high


def runs_to_prove(rate: float, violated: int = 0) -> int:
    """Return how many runs prove ``rate`` if so many of them are violated.

    >>> runs_to_prove(0.98), runs_to_prove(0.98, 3)
    (171, 584)

    Raises UsageError for a rate that no number of runs can prove.
    """
    check_rate(rate)
    return violated + _clean_runs_left(rate, 0, violated)


def _clean_runs_left(rate: float, held: int, runs: int) -> int:
    """Return how many runs that hold would prove the rate; many more than anyone makes are cut."""
    low, high = 0, 1
    while high < _RUNS_MAX and evidence_above(rate, held + high, runs + high) < _ENOUGH:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if evidence_above(rate, held + middle, runs + middle) >= _ENOUGH else (middle, high)
    return high


def _at_most(held: int, runs: int, rate: float) -> float:
    """Return the probability that at most ``held`` of the runs hold."""
    failed = runs - held
    if failed >= runs * (1.0 - rate):
        return tail(failed, runs, 1.0 - rate)
    return 1.0 - tail(held + 1, runs, rate)
