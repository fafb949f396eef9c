"""Every parameter of every fault has bounds, and a plan beyond them is refused in a sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import UsageError
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model.plan import TIME_S_MAX, validate
from pytest_chaos.model.values import AtDelivery, Fault, Now, Plan

if TYPE_CHECKING:
    from pytest_chaos.model.values import Json

BEYOND = {
    "1e20": 1e20,
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "20 digits": 10**19,
    "5,000 digits": 10**5000,
    "True": True,
}
PARAMETERS = {
    f"{kind}:{name}": parameter
    for kind, rules in sorted(REGISTRY.items())
    for name, parameter in rules.parameters.items()
}
NUMBERS = sorted(name for name, parameter in PARAMETERS.items() if parameter.type in {int, float})


def _refused(of: str, value: Json) -> str:
    kind, _, name = of.partition(":")
    given = {other: 1 if PARAMETERS[f"{kind}:{other}"].type is not str else "x" for other in REGISTRY[kind].parameters}
    when = AtDelivery() if AtDelivery in REGISTRY[kind].takes else Now()
    fault = Fault(kind=kind, agent="agent", when=when, parameters={**given, name: value})
    with pytest.raises(UsageError) as refused:
        validate(Plan(seed="s", scenario="x", faults=(fault,)), kinds=REGISTRY)
    return str(refused.value)


@pytest.mark.parametrize("value", BEYOND.values(), ids=BEYOND)
@pytest.mark.parametrize("of", NUMBERS)
def test_a_number_beyond_all_bounds_is_refused(of: str, value: Json) -> None:
    """Too large, too small, no number: the rule with both bounds, and what was given."""
    if value == -1 and PARAMETERS[of].low < 0:  # a clock may be set back
        return
    said = _refused(of, value)
    assert f"{of.partition(':')[2]} must be a " in said or "plain values" in said
    assert len(said) < 1000


@pytest.mark.parametrize("of", NUMBERS)
def test_a_parameter_has_an_upper_bound(of: str) -> None:
    """A time is at most what the kernel's clocks take."""
    parameter = PARAMETERS[of]
    assert parameter.high < math.inf
    is_time = of.endswith("_s") and not of.endswith("_per_s") and of not in {"clock-jump:by_s", "clock-uptime:by_s"}
    assert parameter.high <= TIME_S_MAX or not is_time
    assert "must be a " in _refused(of, parameter.high * 2)
