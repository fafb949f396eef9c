"""The scratch folder of one pytest process: where its runs work, removed when it ends, however it ends.

The folder's name says whose it is (pid and start time), so a later session can tell a folder that is in use from one
whose owner, and even its guardian, were killed: it saves the evidence that is in it and removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING, Final

from harness import journal
from harness.agents import tree
from harness.agents.process import OWNER_VARIABLE
from harness.errors import EvidenceError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

_NAME: Final = re.compile(r"session-(\d+)-(\d+)-[0-9a-f]+")
_ATTEMPTS: Final = 20


def create(base: Path) -> Path:
    """Make a folder for this process, and its user alone, under ``base``. Raises UsageError when that fails."""
    process = tree.read(os.getpid())
    ticks = process.start_ticks if process is not None else 0
    folder = home(base) / f"session-{os.getpid()}-{ticks}-{secrets.token_hex(4)}"
    try:
        _make(folder)
    except OSError as error:
        how = "give another with --scratch, or under pytest with --chaos-scratch=DIR"
        msg = f"no scratch folder can be made in {base} ({error.strerror}): {how}"
        raise UsageError(msg) from error
    return folder


def _make(folder: Path) -> None:
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.parent.stat().st_uid != os.getuid():
                msg = f"{folder.parent} belongs to somebody else: give another scratch folder with --chaos-scratch=DIR"
                raise UsageError(msg)
            folder.mkdir(mode=0o700)
        except (FileExistsError, FileNotFoundError):  # the last session of all removed the home between our steps
            if not attempts_left:
                raise
        else:
            return


def remove(folder: Path) -> None:
    """Remove a session's folder with all that is in it, and the home of all sessions if that was the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.name == home(folder).name:
        with contextlib.suppress(OSError):  # not empty: it is somebody's home still
            folder.parent.rmdir()


def home(base: Path) -> Path:
    """Return the folder under which all sessions of this user keep theirs."""
    return base / f"pytest-chaos-{os.getuid()}"


def sweep(base: Path) -> list[Path]:
    """Save the evidence in, and remove, every folder whose owner is gone; return those that were removed."""
    removed: list[Path] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for folder in sorted(home(base).iterdir()):
            match = _NAME.fullmatch(folder.name)
            if match is None or tree.is_running(int(match[1]), int(match[2])) or _guarded(folder):
                continue
            tree.end_marked(OWNER_VARIABLE, str(folder.resolve()))
            for header in folder.glob(f"*/{journal.HEADER}"):
                _save(header.parent)
            remove(folder)
            removed.append(folder)
    return removed


def runs_under_way(base: Path, session_folder: Path) -> set[str]:
    """Return the node ids of this session's runs that have a journal still: not over, or not saved yet."""
    found: set[str] = set()
    for path in home(base).glob(f"session-*/*/{journal.HEADER}"):
        with contextlib.suppress(EvidenceError):
            header = journal.Journal(path.parent).header()
            if header.session_folder == str(session_folder):
                found.add(header.node_id)
    return found


def claim(folder: Path, guardian: tree.Process) -> None:
    """Write down which guardian will remove the folder, so that no sweep gets in its way."""
    (folder / "guardian").write_text(f"{guardian.pid} {guardian.start_ticks}")


def _guarded(folder: Path) -> bool:
    try:
        pid, ticks = (folder / "guardian").read_text().split()
    except (OSError, ValueError):
        return False
    return tree.is_running(int(pid), int(ticks))


def _save(run_folder: Path) -> None:
    from harness.salvage import save  # hardly ever needed

    with contextlib.suppress(Exception):  # what cannot be saved must not stand in the way of a new session
        save(run_folder, "the process that ran this test ended before the test did, and so did its guardian")
