"""The registry finds the faults of all distributions, and says which one is broken."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import UsageError
from pytest_chaos.faults import registry
from pytest_chaos.faults.kill import Kill
from pytest_chaos.faults.registry import REGISTRY, Registry

if TYPE_CHECKING:
    from collections.abc import Callable


def only(*entries: tuple[str, str]) -> Callable[..., list[EntryPoint]]:
    """Return a stand-in for ``importlib.metadata.entry_points`` that finds these."""
    return lambda group: [EntryPoint(name, value, group) for name, value in entries]


def test_every_fault_of_ours_can_be_loaded() -> None:
    """Each entry point of the group is a kind of fault of that name."""
    assert len(REGISTRY) >= 14
    assert {kind.kind for kind in REGISTRY.values()} == set(REGISTRY)
    assert isinstance(REGISTRY["kill"], Kill)
    assert "meteor" not in REGISTRY


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("no_such_module:Meteor", "must be importable; got ModuleNotFoundError: No module named 'no_such_module'"),
        ("pytest_chaos.faults.kill:Kill", "must be a FaultKind of that kind; got <pytest_chaos.faults.kill.Kill"),
        ("builtins:dict", "must be a FaultKind of that kind; got {}"),
    ],
)
def test_a_broken_fault_is_told_when_it_is_planned(monkeypatch: pytest.MonkeyPatch, value: str, problem: str) -> None:
    """Somebody else's broken fault stands in nobody's way until a plan names it."""
    monkeypatch.setattr(registry, "entry_points", only(("kill", "pytest_chaos.faults.kill:Kill"), ("meteor", value)))
    found = Registry()
    assert isinstance(found["kill"], Kill)
    with pytest.raises(UsageError) as caught:
        found["meteor"]
    assert str(caught.value).startswith(f"the fault meteor {problem}")
    assert str(caught.value).endswith(f"Mend {value}")


def test_metadata_that_is_older_than_the_code_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that was not installed again has no faults at all; the error says what to do."""
    monkeypatch.setattr(registry, "entry_points", only())
    with pytest.raises(UsageError, match=r"installed with its entry points; got none of its faults\. Install it again"):
        "kill" in Registry()  # noqa: B015 - it is asked
