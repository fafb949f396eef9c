"""The test that a pack names: found in the current project, and refused elsewhere.

A pack may come from an untrusted source, and its test is run as code of the user.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.evidence.manifest import verify
from pytest_chaos.evidence.open import open_pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.evidence.open import Pack

_PROJECT_FILES: Final = (".git", "pyproject.toml", "pytest.ini", "tox.ini", "setup.cfg", "setup.py")
_INDEX: Final = "evidence.sqlite"
"""The file that makes a folder an evidence pack, whole or damaged."""


def opened_as_written(path: Path) -> Pack:
    """Open a pack that is to be run again. Raises UsageError if it is not as it was written."""
    opened = open_pack(path)
    if problems := verify(path):
        msg = f"{path} is not as it was written ({problems[0]}). Replay an undamaged copy"
        raise UsageError(msg)
    return opened


def folder_of(pack: Pack, *, trust: bool) -> Path:
    """Return the folder to run a pack's test in. Raises UsageError if the test is not found."""
    file = pack.node_id.partition("::")[0]
    if not file or file.startswith(("-", "@")) or file != file.strip() or "\0" in file + pack.root:
        msg = f"{pack.path} must name a test to run again; got {pack.node_id!r}. It was not made by a pytest run"
        raise UsageError(msg)
    projects = _projects()
    named = [Path(pack.root)] if pack.root else []
    there = [folder for folder in [*projects, *named] if (folder / file).exists()]
    for folder in there:
        if trust or _is_own(folder / file, projects, pack.path):
            return folder
    if there:
        msg = (
            f"the test of a pack must be below the current project {projects[-1]}; got {(there[0] / file).resolve()}. "
            "Run the command in the project of the test; or, if you trust pack and test, with --trust"
        )
        raise UsageError(msg)
    msg = f"{file} is neither below {Path.cwd()} nor below {pack.root}. Run the command in the project's root folder"
    raise UsageError(msg)


def _projects() -> list[Path]:
    """Return the current folder, and the nearest one above it that is the root of a project."""
    here = Path.cwd()
    roots = [folder for folder in (here, *here.parents) if any((folder / name).exists() for name in _PROJECT_FILES)]
    return list(dict.fromkeys([here, *roots[:1]]))


def _is_own(file: Path, projects: Sequence[Path], pack: Path) -> bool:
    """Whether a file is the current project's, and not of a pack that lies somewhere in it."""
    real = file.resolve()
    if not any(real.is_relative_to(project.resolve()) for project in projects):
        return False
    within = (folder for folder in real.parents if folder.is_relative_to(projects[-1].resolve()))
    return not real.is_relative_to(pack.resolve()) and not any((folder / _INDEX).exists() for folder in within)
