"""What is saved of a run whose pytest is gone: its evidence, and the record that nobody else will write.

For the guardian, which outlives pytest, and for the sweep of a later session, in case that the
guardian died as well. Under xdist the controller writes all records; only where it is gone, too,
this does it.

The scratch folder of one pytest process: where its runs work, removed when it ends, however it
ends.

The folder's name says whose it is (pid and start time), so a later session can tell a folder that
is in use from one whose owner, and even its guardian, were killed: it saves the evidence that is in
it and removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Final

from pytest_chaos.errors import EvidenceError, UsageError
from pytest_chaos.evidence import open_pack, salvage
from pytest_chaos.evidence.records import SessionFolder
from pytest_chaos.model.values import RunRecord, SessionHeader
from pytest_chaos.runtime import journal, processes
from pytest_chaos.runtime.agent import OWNER_VARIABLE
from pytest_chaos.runtime.journal import Journal

FAILURE_CHARACTERS_MAX: Final = 4000


def save(journal_folder: Path, reason: str, *, alone: bool = False) -> Path | None:
    """Make the evidence pack of a journal and add its record to its session's; return the pack.

    The record of an xdist worker's run is left to xdist's controller, unless with ``alone``: it is
    gone. ``None`` when the folder holds no journal. Raises EvidenceError and ResultsError.
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
            record_of(path),
        )
    return path


def record_of(path: Path, failure: str = "") -> RunRecord:
    """Return what a pack knows of its run as a record; ``failure`` is a better text for it than the pack's own."""
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


_NAME: Final = re.compile(r"session-(\d+)-(\d+)-[0-9a-f]+")
_ATTEMPTS: Final = 20


def create(base: Path) -> Path:
    """Make a folder for this process, and its user alone, under ``base``. Raises UsageError when that fails."""
    owner = processes.own()
    folder = home(base) / f"session-{owner.pid}-{owner.start_ticks}-{secrets.token_hex(4)}"
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
            if match is None or processes.is_running(int(match[1]), int(match[2])) or _guarded(folder):
                continue
            processes.end_marked(OWNER_VARIABLE, str(folder.resolve()))
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


def claim(folder: Path, guardian: processes.Process) -> None:
    """Write down which guardian will remove the folder, so that no sweep gets in its way."""
    with contextlib.suppress(OSError):  # a full disk: then a sweep may remove the folder, too
        (folder / "guardian").write_text(f"{guardian.pid} {guardian.start_ticks}")


def _guarded(folder: Path) -> bool:
    try:
        pid, ticks = (folder / "guardian").read_text().split()
    except (OSError, ValueError):
        return False
    return processes.is_running(int(pid), int(ticks))


def _save(run_folder: Path) -> None:
    # SELFIMPORT  # hardly ever needed

    with contextlib.suppress(Exception):  # what cannot be saved must not stand in the way of a new session
        save(run_folder, "the process that ran this test ended before the test did, and so did its guardian")
