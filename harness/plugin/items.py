"""Tests as chaos sees them: whether one is a run of a scenario, of which, and what it is called without iterations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.model import Scenario


def base_of(item: pytest.Item) -> str:
    """Return a test's node id as it is without iterations."""
    from harness import scenarios

    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return scenarios.without_iteration(item.nodeid) if "_chaos_iteration" in parameters else item.nodeid


def is_deep(item: Any) -> bool:
    """Whether a test, or the definition of several, is a thorough variant."""
    return item.get_closest_marker("chaos_deep") is not None


def is_chaos(item: pytest.Item) -> bool:
    """Whether a test is a run of a scenario."""
    return "chaos" in getattr(item, "fixturenames", ()) or item.get_closest_marker("chaos") is not None


def scenario_of(item: pytest.Item) -> Scenario:
    """Return the scenario of a test. Raises pytest.UsageError for a marker that cannot be understood."""
    from harness import scenarios
    from harness.errors import UsageError

    marker = item.get_closest_marker("chaos")
    base = base_of(item)
    fallback = f"{Path(base.partition('::')[0]).stem}-{base.rpartition('::')[2]}"
    docstring = getattr(getattr(item, "function", None), "__doc__", None) or ""
    try:
        return scenarios.from_marker(
            marker.args if marker else (), marker.kwargs if marker else {}, fallback=fallback, docstring=docstring
        )
    except UsageError as error:
        msg = f"{item.nodeid}: {error}"
        raise pytest.UsageError(msg) from error
