"""The door through which pytest loads pytest-chaos.

The packages ``harness`` and ``reports`` have names that a project under test may have, too. Two packages of one name
cannot live in one interpreter, so this module, which has a name of its own, looks first, and says which two
collide and what to do before anything fails strangely.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Final

import pytest

_PLUGINS: Final = {
    "harness_plugin": ("harness", "harness.plugin"),
    "reports_plugin": ("reports", "reports.plugin"),
}
"""What the entry points ask for: the package it is in and the module it is."""

_HOME: Final = Path(__file__).resolve().parent


def collision(name: str, folder: Path) -> str | None:
    """Say which two packages share ``name``, ours and one found first or in ``folder``; ``None`` if none do."""
    spec = importlib.util.find_spec(name)
    ours = _HOME / name
    if spec is None or not ours.is_dir():
        return f"there is no package {name!r} beside {__file__}, although pytest-chaos brings one"
    places = [Path(place).resolve() for place in spec.submodule_search_locations or [spec.origin or "?"]]
    if places != [ours]:
        return f"the name {name!r} leads to {places[0]}, and pytest-chaos has its own in {ours}"
    for rival in (folder / name, (folder / name).with_suffix(".py")):
        if rival.resolve() != ours and (rival.is_file() or (rival.is_dir() and any(rival.glob("*.py")))):
            return f"this project has {rival} and pytest-chaos has {ours}, and one interpreter holds only one {name!r}"
    return None


def check(name: str, folder: Path) -> None:
    """Raise pytest.UsageError with a sentence that says what collides and what to do."""
    if (problem := collision(name, folder)) is not None:
        remedy = "run pytest with '-p no:harness.plugin -p no:reports.plugin' to leave pytest-chaos out"
        msg = f"pytest-chaos: {problem}: rename the package of the project, or {remedy}"
        raise pytest.UsageError(msg)


def __getattr__(name: str) -> object:
    """Import a plugin when its entry point is loaded, after a look at what else has its name."""
    if name not in _PLUGINS:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    package, module = _PLUGINS[name]
    check(package, Path.cwd())
    return importlib.import_module(module)
