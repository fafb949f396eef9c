"""The power of a gate."""

from __future__ import annotations

import pytest
from pytest_chaos.model.deciding.gate import GatePower, gate


def test_a_gate_lets_a_worse_rate_pass() -> None:
    """The example fails two and a half times as often as the gate allows."""
    found = gate(0.98, 50)
    assert found is not None
    assert (found.true_rate, round(found.passes, 2)) == (0.95, 0.28)


@pytest.mark.parametrize(("rate_min", "runs", "passes"), [(1.0, 10, 0.95**10), (0.95, 10, 0.875**10)])
def test_few_runs_let_much_pass(rate_min: float, runs: int, passes: float) -> None:
    """Ten runs of which all must hold, as 0.95 of ten asks for, too."""
    found = gate(rate_min, runs)
    assert isinstance(found, GatePower)
    assert found.passes == pytest.approx(passes)


@pytest.mark.parametrize(("rate_min", "runs"), [(0.98, 1), (0.5, 50), (0.0, 50)])
def test_no_gate_has_no_power(rate_min: float, runs: int) -> None:
    """One run is no campaign, and a rate that hardly asks anything is none."""
    assert gate(rate_min, runs) is None
