"""The environment of an entry: made once, in just these versions, or refused with the reason."""

from __future__ import annotations

import errno
import os
import subprocess
import zipfile
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.bank.environments import Environments, NotInstalled, cache_folder

if TYPE_CHECKING:
    from pathlib import Path

LIBRARY = "tinylib"


@pytest.fixture
def environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environments:
    """Return environments whose only index is a folder with one wheel."""
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / f"{LIBRARY}-1.0-py3-none-any.whl", "w") as wheel:
        info = f"{LIBRARY}-1.0.dist-info"
        files = {
            f"{LIBRARY}.py": "VALUE = 7\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {LIBRARY}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS"):
        monkeypatch.setenv(name, str(tmp_path / "wheels"))
    for name in ("PIP_NO_INDEX", "UV_NO_INDEX"):
        monkeypatch.setenv(name, "1")
    return Environments(tmp_path / "environments")


def test_a_library_is_installed_once_beside_our_own_packages(environments: Environments) -> None:
    """The interpreter has the library and pytest-chaos; the second time nothing is installed."""
    python = environments.python_for([f"{LIBRARY}==1.0"])
    code = f"import {LIBRARY}, pytest_chaos; print({LIBRARY}.VALUE)"
    assert subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout == "7\n"
    assert Environments(environments.folder, may_install=False).python_for([f"{LIBRARY}==1.0"]) == python
    python.unlink()  # as after an upgrade of Python
    assert environments.python_for([f"{LIBRARY}==1.0"]).exists()
    (metadata,) = environments.folder.rglob(f"{LIBRARY}-1.0.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("1.0", "0.9"))
    with pytest.raises(NotInstalled, match=r"the library tinylib must be version 1\.0; got 0\.9\. Remove"):
        environments.python_for([f"{LIBRARY}==1.0"])


def test_what_cannot_be_installed_is_refused_with_the_reason(environments: Environments) -> None:
    """No such version, or nothing may be installed: a sentence, and no environment is left."""
    with pytest.raises(NotInstalled, match=r"could not install tinylib==2\.0: .*tinylib==2\.0"):
        environments.python_for([f"{LIBRARY}==2.0"])
    with pytest.raises(NotInstalled, match=r"with --no-install, tinylib==1\.0 must be installed already"):
        Environments(environments.folder, may_install=False).python_for([f"{LIBRARY}==1.0"])
    assert [each for each in environments.folder.iterdir() if each.is_dir()] == []


def test_a_filled_cache_may_be_protected(environments: Environments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no lock can be taken, an environment that is complete is used; no other one is made."""
    python = environments.python_for([f"{LIBRARY}==1.0"])

    def refuses(*_args: object, **_options: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pytest_chaos.bank.environments.os.open", refuses)
    assert environments.python_for([f"{LIBRARY}==1.0"]) == python
    with pytest.raises(NotInstalled, match="must be writable; got: Read-only file system"):
        environments.python_for([f"{LIBRARY}==2.0"])


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[Errno 111] Connection refused')': /simple/", "no index could be reached: Connection refused"),
        ("Temporary failure in name resolution", "no index could be reached: Temporary failure in name resolution"),
        ("a line of another kind", "ERROR: No matching distribution found for tinylib==1.0"),
    ],
)
def test_without_a_network_the_reason_is_the_network(
    environments: Environments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, reason: str
) -> None:
    """What an installer says at last, that there is no such version, would mislead."""
    uv = tmp_path / "uv"
    uv.write_text(
        f"#!/bin/sh\necho \"WARNING: {said}\"\necho 'ERROR: No matching distribution found for tinylib==1.0'\nexit 1\n"
    )
    uv.chmod(0o755)
    monkeypatch.setattr("pytest_chaos.bank.environments.shutil.which", lambda _: str(uv))
    monkeypatch.setattr("pytest_chaos.bank.environments.importlib.util.find_spec", lambda _: None)
    with pytest.raises(NotInstalled) as caught:
        environments.python_for([f"{LIBRARY}==1.0"])
    assert str(caught.value) == f"could not install tinylib==1.0: {reason}"


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is below XDG_CACHE_HOME; a folder that cannot be written is a sentence."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pytest-chaos" / "bank"
    (tmp_path / "pytest-chaos").write_text("")
    with pytest.raises(NotInstalled, match=r"the cache folder .* must be writable"):
        Environments().python_for(["tinylib==1.0"])
