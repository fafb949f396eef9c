"""Bounds of a pass rate after a number of runs: exact binomial arithmetic.

Fifty clean runs of fifty do not show that a scenario always holds; they show, with 95 % confidence,
that it holds at least 94.2 % of the time. The bounds are those of Clopper and Pearson ("The use of
confidence or fiducial limits", Biometrika 26, 1934): exact, so never narrower than they claim, also
near 0 and 1, where the normal approximation promises too much.

They hold for runs that are independent and drawn alike: forty runs of one seed are one run,
whatever they add up to.

The packages that do this either pull in SciPy or use an approximation (Wilson's), so the few lines
are here; SciPy, which is too heavy for a plugin, checks them in the tests.
"""

from __future__ import annotations

import math
from typing import Final

from pytest_chaos.errors import UsageError

CONFIDENCE: Final = 0.95
"""The confidence of every bound."""

_TAIL: Final = 1.0 - CONFIDENCE

_HALVINGS_MAX: Final = 200
_NEGLIGIBLE: Final = 1e-17


def rate_lower_bound(held: int, runs: int) -> float:
    """Return the one-sided lower bound of the pass rate after ``held`` of ``runs``.

    Raises UsageError when the counts make no sense.
    """
    _check(held, runs)
    if held == 0:
        return 0.0
    if held == runs:
        return float(_TAIL ** (1.0 / runs))
    low, high = 0.0, held / runs
    for _ in range(_HALVINGS_MAX):  # the rate at which so many or more have the probability of the tail
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if tail(held, runs, middle) < _TAIL else (low, middle)
    return low


def unseen_share(once: int, drawn: int) -> float:
    """Return the estimated share of all that is of a kind not drawn yet (Good and Turing).

    ``once`` counts the kinds of which a sample of ``drawn`` has one (Good, "The population
    frequencies of species", Biometrika 40, 1953). After a sample of none it is 1.

    >>> unseen_share(3, 1500)
    0.002
    """
    return min(1.0, once / drawn) if drawn > 0 else 1.0


def runs_needed(rate: float) -> int:
    """Return how many runs, all clean, are needed to claim a pass rate of at least ``rate``.

    Raises UsageError for a rate that no number of runs can show (1.0), or that needs none.
    """
    if not 0.0 < rate < 1.0:
        msg = f"the rate to claim must be above 0 and below 1; got {rate}. Give a share, such as 0.98"
        raise UsageError(msg)
    estimate = max(1, math.floor(math.log(_TAIL) / math.log(rate)) - 1)
    while _TAIL ** (1.0 / estimate) < rate:
        estimate += 1
    return estimate


def gate_pass_probability(true_rate: float, runs: int, rate_min: float) -> float:
    """Return how often a scenario with this ``true_rate`` passes a gate over ``runs``.

    A green campaign may hide that much: a scenario that fails one time in twenty passes 0.98 of 50
    in 28 % of campaigns. Raises UsageError when a rate is not between 0 and 1 or there are no runs.
    """
    for name, rate in (("true rate", true_rate), ("rate of the gate", rate_min)):
        if not 0.0 <= rate <= 1.0:
            msg = f"the {name} must be from 0 to 1; got {rate}. Give a share, such as 0.98"
            raise UsageError(msg)
    _check(0, runs)
    enough = next(held for held in range(math.ceil(rate_min * runs) - 1, runs + 1) if held / runs >= rate_min)
    if enough <= true_rate * runs:
        return 1.0 - tail(runs - enough + 1, runs, 1.0 - true_rate)
    return tail(enough, runs, true_rate)


def drop_probability(held: int, runs: int, held_later: int, runs_later: int) -> float:
    """Return how likely chance alone makes the later runs hold as seldom as they did, or seldomer.

    Fisher's exact test, one-sided: that many held of all these runs, drawn without regard to when.

    >>> round(drop_probability(50, 50, 44, 50), 4), drop_probability(10, 10, 10, 10)
    (0.0133, 1.0)

    Raises UsageError when there are no runs, or more held than there were.
    """
    _check(held, runs)
    _check(held_later, runs_later)
    all_held = held + held_later
    total = choices(runs + runs_later, all_held)
    least = max(0, all_held - runs)
    likely = sum(
        math.exp(choices(runs_later, count) + choices(runs, all_held - count) - total)
        for count in range(least, held_later + 1)
    )
    return min(1.0, likely)


def choices(of: int, count: int) -> float:
    """Return the logarithm of the number of ways to choose ``count``."""
    return math.lgamma(of + 1) - math.lgamma(count + 1) - math.lgamma(of - count + 1)


def tail(held: int, runs: int, rate: float) -> float:
    """Return the probability of ``held`` or more of ``runs``.

    Exact and fast where ``held`` is not below the mean, which is where all callers ask: the terms
    then fall from the first one on, so the sum ends after some standard deviations instead of after
    ``runs`` terms.
    """
    if held <= 0:
        return 1.0
    if held > runs or rate <= 0.0:
        return 0.0
    if rate >= 1.0:
        return 1.0
    term = math.exp(choices(runs, held) + held * math.log(rate) + (runs - held) * math.log1p(-rate))
    odds, total = rate / (1.0 - rate), 0.0
    for count in range(held, runs + 1):
        total += term
        if term <= total * _NEGLIGIBLE:
            break
        term *= (runs - count) / (count + 1) * odds
    return min(total, 1.0)


def _check(held: int, runs: int) -> None:
    if runs < 1:
        msg = f"the conclusive runs must be at least 1; got {runs}. Run the scenario until one is conclusive"
        raise UsageError(msg)
    if not 0 <= held <= runs:
        msg = f"the runs that held must be from 0 to the {runs} runs there were; got {held}. Count them again"
        raise UsageError(msg)
