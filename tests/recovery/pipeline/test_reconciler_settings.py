"""The settings of a reconciler: what cannot be meant is refused, and a bad override is a warning and no outage."""

from __future__ import annotations

import pytest
from durable_agents.errors import InvalidSetting
from durable_agents.pipeline.reconciler import Graces, ReconcilerSettings


@pytest.mark.parametrize("text", ["{not json", "[1, 2]", "7", '"review"', "null", "\ud800", "[" * 100_000])
def test_overrides_that_cannot_be_read_are_one_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """The default holds, and nothing is raised."""
    graces = Graces(ReconcilerSettings(reconcile_grace_overrides_json=text), ["review"])
    assert [graces.grace_for_stage("review") for _ in range(3)] == [600.0] * 3
    (record,) = caplog.records
    assert "and 600 s hold instead" in record.getMessage()


def test_single_overrides_that_cannot_be_meant_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Each is named, and the others hold: a misspelt stage would otherwise be found out in an incident."""
    text = '{"review": -1, "build": "1", "check": true, "talk": 5, "reviw": 9, "far": 1e300}'
    graces = Graces(
        ReconcilerSettings(reconcile_grace_overrides_json=text), ["review", "build", "check", "talk", "far"]
    )
    assert [graces.grace_for_stage(stage) for stage in ("review", "build", "check", "far", "talk")] == [600] * 4 + [5]
    (record,) = caplog.records
    for part in ("'review' is -1", "'build' is '1'", "'check' is True", "'far' is 1e+300", "'reviw' is no stage"):
        assert part in record.getMessage()


@pytest.mark.parametrize(
    "settings",
    [{"reconcile_grace_default_s": -1}, {"reconcile_interval_s": 0}, {"reconcile_interval_s": float("nan")}],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, float]) -> None:
    """With the name of the setting."""
    with pytest.raises(InvalidSetting, match=next(iter(settings))):
        ReconcilerSettings(**settings)  # type: ignore[arg-type]
