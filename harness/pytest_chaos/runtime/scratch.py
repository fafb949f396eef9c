"""The scratch folder of a pytest process: where its runs work, removed however it ends.

Its owner and the guardian hold a lock in it (``owner.py``). So a later session, in whatever
container, can tell a folder in use from one whose owner, and even its guardian, were killed: it
saves the evidence in such a folder and removes it. The guardian, which outlives pytest, saves
evidence in the same way. Under xdist the controller writes all records; this module does so only if
the controller is gone, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

import msgspec

from pytest_chaos.errors import EvidenceError, UsageError
from pytest_chaos.evidence import open_pack, salvage
from pytest_chaos.evidence.records import SessionFolder
from pytest_chaos.model.campaign import CUT_SHORT
from pytest_chaos.model.values import RunRecord, SessionHeader
from pytest_chaos.runtime import journal, owner, processes
from pytest_chaos.runtime.journal import Journal

_NAME: Final = re.compile(r"\.?session-\d+-\d+-[0-9a-f]+")
_ATTEMPTS: Final = 20
_ABANDONED: Final = "the process that ran this test ended before the test did"
FAILURE_CHARACTERS_MAX: Final = 4000


def create(base: Path) -> Path:
    """Make a folder for this process, and for its user alone, under ``base``. Raises UsageError."""
    here = processes.own()
    try:
        return _make(home(base), f"session-{here.pid}-{here.start_ticks}")
    except OSError as error:
        how = "Give another with --scratch, or under pytest with --chaos-scratch=DIR"
        msg = f"the scratch folder {base} must be writable; got: {error.strerror}. {how}"
        raise UsageError(msg) from error


def _make(parent: Path, name: str) -> Path:
    attempts_left = _ATTEMPTS
    while True:
        attempts_left -= 1
        folder = parent / f"{name}-{secrets.token_hex(4)}"
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_ours(parent):
                msg = f"{parent} must belong to this user. Give another scratch folder with --chaos-scratch=DIR"
                raise UsageError(msg)
            owner.make(folder)
        except (FileExistsError, FileNotFoundError, BlockingIOError):  # another session removed the home, or this
            if not attempts_left:
                raise
        else:
            return folder


def _is_ours(parent: Path) -> bool:
    status = parent.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def remove(folder: Path) -> None:
    """Remove a session's folder, and the home of all sessions if it was the last one."""
    owner.remove(folder)
    if folder.parent.name == home(folder).name:
        with contextlib.suppress(OSError):  # not empty: other sessions use it
            folder.parent.rmdir()


def home(base: Path) -> Path:
    """Return the folder of all sessions of this user."""
    return base / f"pytest-chaos-{os.getuid()}"


def sweep(base: Path) -> list[Path]:
    """Save the evidence in each folder whose owners are gone, and remove it; return the removed."""
    removed: list[Path] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        folders = sorted(home(base).iterdir()) if _is_ours(home(base)) else []
        for folder in folders:
            if _NAME.fullmatch(folder.name) is None or folder.is_symlink():
                continue
            with owner.abandoned(folder) as is_abandoned:
                if is_abandoned:
                    processes.end_marked(owner.VARIABLE, str(folder.resolve()))
                    clear(folder)
                    removed.append(folder)
    return removed


def clear(folder: Path) -> None:
    """Save the evidence in a folder whose owners are gone, and remove it."""
    for header in folder.glob(f"*/{journal.HEADER}"):
        with contextlib.suppress(Exception):  # what cannot be saved must not stop a new session
            save(header.parent, _ABANDONED)
    remove(folder)


def runs_under_way(base: Path, session_folder: Path) -> set[str]:
    """Return the node ids of this session's runs whose journal is there: not over, or not saved."""
    found: set[str] = set()
    for path in home(base).glob(f"session-*/*/{journal.HEADER}"):
        with contextlib.suppress(EvidenceError):
            header = journal.Journal(path.parent).header()
            if header.session_folder == str(session_folder):
                found.add(header.node_id)
    return found


def save(journal_folder: Path, reason: str, *, alone: bool = False) -> Path | None:
    """Make the evidence pack of a journal, add its record to its session, and return the pack.

    The record of an xdist worker's run is left to xdist's controller, unless ``alone`` says that it
    is gone. Returns None if the folder holds no journal. Raises EvidenceError and ResultsError.
    """
    path = salvage(journal_folder, reason)
    if path is None:
        return None
    header = Journal(journal_folder).header()
    if alone or not header.worker:
        session = Path(header.session_folder)
        SessionFolder(session.parents[1], session.name).add_orphan(
            SessionHeader(
                session=session.name,
                seed=header.seed,
                started=header.started,
                versions=header.versions,
                command=header.command,
            ),
            msgspec.structs.replace(record_of(path), notes={CUT_SHORT: reason}),
        )
    return path


def record_of(path: Path, failure: str = "") -> RunRecord:
    """Return a pack's run as a record, with ``failure`` in place of the pack's own if given."""
    pack = open_pack(path)
    return RunRecord(
        scenario=pack.scenario,
        node_id=pack.node_id,
        run_id=pack.run_id,
        seed=pack.seed,
        verdict=pack.verdict,
        iteration=pack.iteration,
        plan=pack.plan,
        receipts=pack.receipts,
        findings=pack.findings,
        assertions=pack.assertions,
        started=pack.started,
        failure=(failure or pack.failure)[-FAILURE_CHARACTERS_MAX:],
        evidence=f"evidence/{path.name}",
        reproduce=pack.reproduce,
    )
