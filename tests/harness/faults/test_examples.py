"""The examples in the docstrings of faults, plans and checkers give what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from typing import Final

import pytest
import pytest_chaos.faults
import pytest_chaos.model

MODULES: Final = [
    module.name
    for package in (pytest_chaos.faults, pytest_chaos.model)
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
]
WITH_EXAMPLES: Final = {
    *(
        "calls",
        "campaign",
        "claims",
        "edn",
        "every_point",
        "hold",
        "hold_lock",
        "interchange",
        "kill",
        "kind",
        "paths",
        "pause",
        "plan",
        "restart",
    ),
    *("signatures", "statistics", "terminate", "toxics"),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_right(name: str) -> None:
    """What users call has an example, and every example runs."""
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert bool(result.attempted) == (name.rpartition(".")[2] in WITH_EXAMPLES)
