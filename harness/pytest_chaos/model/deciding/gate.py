"""The power of a gate: what a campaign with a least pass rate lets through."""

from __future__ import annotations

from typing import Final

import msgspec

from pytest_chaos.model.statistics import gate_pass_probability

_WORSE: Final = 2.5
"""How many times as often as the gate allows the example fails: 95 % for a gate of 98 %."""
_ALL: Final = 0.95
"""The example of a gate that allows nothing."""
_RUNS_MIN: Final = 2


class GatePower(msgspec.Struct, frozen=True, kw_only=True):
    """How often a scenario with this true rate passes a gate over so many runs, by chance alone."""

    rate_min: float
    runs: int
    true_rate: float
    passes: float


def gate(rate_min: float, runs: int) -> GatePower | None:
    """Return the power of a gate; None for a single run, and for a gate that hardly asks anything.

    >>> found = gate(0.98, 50)
    >>> found.true_rate, round(found.passes, 2)
    (0.95, 0.28)
    """
    true_rate = _ALL if rate_min >= 1 else round(1 - _WORSE * (1 - rate_min), 6)
    if runs < _RUNS_MIN or true_rate <= 0:
        return None
    passes = gate_pass_probability(true_rate, runs, rate_min)
    return GatePower(rate_min=rate_min, runs=runs, true_rate=true_rate, passes=passes)
