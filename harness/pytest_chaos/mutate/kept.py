"""The clean run that is kept: it is not repeated while package and tests are the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.mutate.clean import CleanRun

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE_NAME: Final = "clean.json"


_VERSION: Final = 2
"""Since 2 a test with a sweep of points has its places."""


class _KeptRun(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    key: tuple[str, ...]
    sources: dict[str, str]
    run: CleanRun


def read(path: Path, key: tuple[str, ...]) -> CleanRun | None:
    """Return the kept clean run, or None if there is none, or a file of the tests has changed."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_KeptRun)
    except (OSError, msgspec.MsgspecError):
        return None
    is_same = (found.version, found.key, found.sources) == (_VERSION, key, _digests(found.run))
    return found.run if is_same else None


def write(path: Path, key: tuple[str, ...], run: CleanRun) -> None:
    """Keep a clean run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(_KeptRun(version=_VERSION, key=key, sources=_digests(run), run=run)))
    new.replace(path)


def _digests(run: CleanRun) -> dict[str, str]:
    """Return the digests of all files beside the tests, and of all that the tests have imported."""
    beside = {file for test in run.tests for file in _beside(Path(test.path).parent)}
    return {str(file): _digest(file) for file in sorted({*beside, *map(Path, run.sources)})}


def _beside(folder: Path) -> Iterable[Path]:
    return folder.glob("*.py")


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError:
        return ""
