"""A mutant is put into modules that were imported before."""

from __future__ import annotations

import importlib.util
import marshal
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.mutate import runner

if TYPE_CHECKING:
    from pathlib import Path

SOUND = """\
LIMIT = 3
BOUNDS = {"low": LIMIT}

def is_over(count):
    def beyond():
        return count > LIMIT
    return beyond()

class Shop:
    @property
    def wait_s(self):
        return 5
"""


@pytest.fixture
def patch() -> ModuleType:
    """Return the module that runs in the processes of the tests."""
    return loaded("chaos_mutate_patch", runner.INSIDE / "chaos_mutate_patch.py")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return an imported module."""
    (tmp_path / "patched_shop.py").write_text(SOUND)
    found = loaded("patched_shop", tmp_path / "patched_shop.py")
    monkeypatch.setitem(sys.modules, "patched_shop", found)
    return found


def loaded(name: str, path: Path) -> ModuleType:
    """Import a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write(folder: Path, shop: ModuleType, old: str, new: str) -> Path:
    """Write the compiled mutant; return its folder."""
    assert old in SOUND
    (folder / "mutant").mkdir()
    code = compile(SOUND.replace(old, new), str(shop.__file__), "exec")
    (folder / "mutant/patched_shop.code").write_bytes(marshal.dumps(code))
    return folder / "mutant"


def test_functions_get_other_code(tmp_path: Path, patch: ModuleType, shop: ModuleType) -> None:
    """Who has imported a function calls the mutant; a function within it and a property count."""
    is_over = shop.is_over
    known = patch.functions_of("patched_shop")

    assert patch.apply(str(write(tmp_path, shop, "count > LIMIT", "count >= LIMIT")), known, constants=False)
    assert is_over(3)

    (tmp_path / "again").mkdir()
    assert patch.apply(str(write(tmp_path / "again", shop, "return 5", "return 6")), known, constants=False)
    assert shop.Shop().wait_s == 6


def test_constants_get_other_values(
    tmp_path: Path, patch: ModuleType, shop: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant, and one made of it, change where they are, and where they were imported."""
    other = ModuleType("patched_other")
    other.LIMIT = shop.LIMIT = 3_000_000 // 1_000_000  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "patched_other", other)

    assert patch.apply(str(write(tmp_path, shop, "LIMIT = 3", "LIMIT = 9")), {}, constants=True)

    assert (shop.LIMIT, shop.BOUNDS, other.LIMIT) == (9, {"low": 9}, 9)


def test_what_cannot_be_changed_is_told(tmp_path: Path, patch: ModuleType, shop: ModuleType) -> None:
    """A function that nobody has any more is not changed, and that is told."""
    assert not patch.apply(str(write(tmp_path, shop, "return 5", "return 6")), {}, constants=False)
