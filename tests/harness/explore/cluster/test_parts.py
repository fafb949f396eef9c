"""Addresses, packed folders, and modules that were shipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import UsageError
from pytest_chaos.explore.cluster.address import Kind, read_address, require_extra
from pytest_chaos.explore.cluster.items import archive, extract, packed_items, unpacked_items
from pytest_chaos.explore.cluster.parcel import own_versions, pickled
from pytest_chaos.explore.cluster.process import _versions_of, other_version
from pytest_chaos.explore.cluster.sources import ModuleSource, ShippedModules, sources_of
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.explore.simulate.folder import StateFolder, read_folder
from pytest_chaos.explore.simulate.state import durable_digest
from pytest_chaos.explore.target import subject_of

from tests.harness.explore.explored import Careful

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "kind", "workers"),
    [
        ("local:4", Kind.LOCAL, 4),
        (" local:1 ", Kind.LOCAL, 1),
        ("slurm", Kind.SLURM, 4),
        ("slurm:16", Kind.SLURM, 16),
        ("tcp://10.0.0.7:8786", Kind.REMOTE, 0),
        ("tls://head.example.org:8786", Kind.REMOTE, 0),
        ("tcp://[::1]:8786", Kind.REMOTE, 0),
    ],
)
def test_an_address_is_read(text: str, kind: Kind, workers: int) -> None:
    """Each kind has its own words."""
    found = read_address(text)
    assert (found.kind, found.workers) == (kind, workers)


@pytest.mark.parametrize(
    "text",
    [
        *("", "local", "local:0", "local:-1", "local:1025", "local:two", "slurm:0", "kubernetes", "local:2 local:3"),
        *("tcp://host", "tcp://host:0", "tcp://host:70000", "tcp://:8786", "http://host:8786", "host:8786"),
    ],
)
def test_an_address_that_says_nothing_is_refused(text: str) -> None:
    """The rule, the value and the remedy are told."""
    with pytest.raises(UsageError, match=r"^cluster must be local:N .*; got '.*'\. Give local:2"):
        read_address(text)


@pytest.mark.parametrize(("text", "package"), [("local:2", "distributed"), ("slurm:2", "dask-jobqueue")])
def test_a_package_that_is_missing_is_told(text: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs it."""
    missing = package.replace("-", "_")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else found("sys" if name else name)
    )
    with pytest.raises(UsageError, match=rf"cluster {text} must have the package {package}; .* Install it: pip"):
        require_extra(read_address(text))


def test_slurm_needs_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without sbatch no job can be started, which is told at once."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match=r"cluster slurm must be used where SLURM's sbatch is on the PATH; got none"):
        require_extra(read_address("slurm"))


def test_items_come_back_as_they_were(tmp_path: Path) -> None:
    """Files with holes, links, folders, and names that are no UTF-8."""
    folder = tmp_path / "before"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "text").write_text("x" * 10_000)
    with (folder / "hole").open("wb") as file:
        file.seek(1 << 22)
        file.write(b"end")
    os.link(folder / "hole", folder / "again")
    (folder / "link").symlink_to("sub/text")
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"1")
    store, other = PageStore(tmp_path), PageStore(tmp_path)
    items = read_folder(folder, store)
    content = packed_items(items)
    assert len(content) < 1 << 16
    again = unpacked_items(content, other)
    assert durable_digest(again) == durable_digest(items)
    StateFolder(tmp_path / "after").put(again)
    assert (tmp_path / "after" / "hole").stat().st_nlink == 2
    store.close()
    other.close()


def test_a_folder_is_sent_back_as_it_was_left(tmp_path: Path) -> None:
    """Links that lead nowhere, too; a folder that cannot be entered becomes one that can."""
    left = tmp_path / "left"
    (left / "directory").mkdir(parents=True)
    (left / "directory" / "file").write_text("content")
    (left / "directory" / "dangling").symlink_to("/nowhere")
    os.mkfifo(left / "directory" / "pipe")
    extract(archive(left), tmp_path / "here")
    found = {path.name for path in (tmp_path / "here" / "directory").iterdir()}
    assert found == {"file", "dangling", "pipe"}
    assert (tmp_path / "here" / "directory" / "file").read_text() == "content"


def test_what_a_user_wrote_is_shipped_and_nothing_else(tmp_path: Path) -> None:
    """No module of Python, of an installed package, or of ours."""
    own = ModuleType("own")
    own.__file__ = str(tmp_path / "own.py")
    (tmp_path / "own.py").write_text("VALUE = 1\n")
    found = sources_of([own, os, pytest, importlib.util, sys.modules["pytest_chaos.explore"], ModuleType("typed_in")])
    assert [source.module for source in found] == ["own"]


def test_a_shipped_module_is_imported_where_its_file_is_not(tmp_path: Path) -> None:
    """Packages with and without a file of their own; the file that is the same here is used."""
    here = tmp_path / "shipped_there.py"
    here.write_text("PLACE = __file__\n")
    sources = [
        ModuleSource("shipped_shop", "/nowhere/shipped_shop/__init__.py", b"NAME = 'shop'\n", is_package=True),
        ModuleSource("shipped_shop.till", "/nowhere/shipped_shop/till.py", b"from shipped_shop import NAME\n"),
        ModuleSource("shipped_loose.part", "/nowhere/shipped_loose/part.py", b"NAME = 'part'\n"),
        ModuleSource("shipped_there", str(here), here.read_bytes()),
    ]
    finder = ShippedModules(sources, tmp_path / "shipped")
    values = {}
    before = sys.meta_path.copy()
    sys.meta_path.insert(0, finder)
    try:
        for name, attribute in (
            ("shipped_shop.till", "NAME"),
            ("shipped_loose.part", "NAME"),
            ("shipped_there", "PLACE"),
        ):
            values[name] = getattr(importlib.import_module(name), attribute)
    finally:
        sys.meta_path[:] = before
        for name in ("shipped_shop", "shipped_shop.till", "shipped_loose", "shipped_loose.part", "shipped_there"):
            sys.modules.pop(name, None)
    assert values == {"shipped_shop.till": "shop", "shipped_loose.part": "part", "shipped_there": str(here)}


def test_a_target_that_cannot_be_sent_is_refused() -> None:
    """The sentence says which one, why, and what to do."""
    pytest.importorskip("cloudpickle", reason="targets are pickled by it: pip install 'pytest-chaos[cluster]'")

    class Open(Careful):
        def __init__(self) -> None:
            self.file = sys.stdout

    with pytest.raises(UsageError, match=r"the target careful must be one that can be sent.*; got \w+: .*\. Open in"):
        pickled(subject_of(Open()))


def test_versions_are_compared(tmp_path: Path) -> None:
    """Each part that has another one is told in a sentence."""
    del tmp_path
    assert own_versions() == own_versions()
    assert own_versions().startswith(f"Python {sys.version.split()[0]}, pytest-chaos ")
    told = {"packages": {"python": "3.12.1.final.0", "distributed": "2020.1"}}
    assert _versions_of(told) == {"python": "3.12.1", "distributed": "2020.1"}
    assert _versions_of(OSError("no answer")) == {}
    at = read_address("tcp://host:8786")
    expected = (
        "the worker tcp://1.2.3.4:5 of cluster tcp://host:8786 must have python 3.11.7, as here; got python 3.12.1. "
        "Install the same there, or leave the cluster out"
    )
    assert other_version(at, "tcp://1.2.3.4:5", "python", "3.12.1", "3.11.7") == expected
    assert "got no pytest-chaos" in other_version(at, "w", "pytest-chaos", None, "0.1.0")
