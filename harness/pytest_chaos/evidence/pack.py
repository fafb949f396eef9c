"""Puts an evidence pack together from a journal: copies, questions, index, manifest."""

from __future__ import annotations

import re
import secrets
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import EvidenceError
from pytest_chaos.evidence import index, manifest, perfetto
from pytest_chaos.evidence.databases import Database, copy_all, find, scratch
from pytest_chaos.evidence.files import copy_files
from pytest_chaos.evidence.gather import Facts, Log, gather, header_or_none
from pytest_chaos.evidence.limits import DEFAULT, Limits, Problems, full
from pytest_chaos.evidence.redact import SECRETS, redactor
from pytest_chaos.evidence.sqlite import Answer, Contents, ask
from pytest_chaos.runtime import owner
from pytest_chaos.runtime.journal import ATTACHMENTS, FAILURE, MARKS, OUTPUT, WORK, Journal

if TYPE_CHECKING:
    from collections.abc import Mapping


_SCRATCH: Final = ".scratch"
_PACK: Final = "pack"


def write(
    journal_folder: Path,
    destination: Path,
    *,
    queries: Mapping[str, str] | None = None,
    outcome: str | None = None,
    limits: Limits = DEFAULT,
) -> Path:
    """Make a pack of a journal at ``destination`` and return it.

    ``queries`` (name to SQL) are asked of every database. ``outcome`` is the failure of a run that
    has no record, such as ``the controller was killed``; its verdict is INCONCLUSIVE. A part that
    cannot be read becomes a problem in the pack. When the disk is too full for the copies of the
    databases, the pack is made without them.

    Raises EvidenceError when the folder is no journal, when ``destination`` exists, or when nothing
    can be written there. Then nothing is left behind, and the journal is unchanged.
    """
    if destination.exists():
        msg = f"{destination} must be a new folder; it exists already. Remove it or give another folder"
        raise EvidenceError(msg)
    under_way = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.building")
    building = under_way / _PACK
    try:
        manifest.make_folders(destination.parent)
        _remove_left_over(destination)
        owner.make(under_way)
        _build_as_far_as_it_fits(building, journal_folder, queries or {}, outcome, limits)
        building.rename(destination)
        manifest.sync_folder(destination.parent)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        msg = (
            f"the evidence pack {destination} could not be written ({reason}). Free space there or give another folder "
            "with --chaos-results=DIR"
        )
        raise EvidenceError(msg) from error
    finally:
        owner.remove(under_way)
    return destination


def salvage(journal_folder: Path, reason: str) -> Path | None:
    """Save the evidence of a run whose controller is gone, into its session's ``evidence`` folder.

    The guardian and the sweep of a later session call it, perhaps both: a pack that exists is
    returned. Returns None when the folder holds no journal. Raises EvidenceError.
    """
    header = header_or_none(journal_folder)
    if header is None:
        return None
    destination = Path(header.session_folder) / "evidence" / header.run_id
    if not (destination / manifest.FILE_NAME).exists():
        for value in Journal(journal_folder).secrets():
            SECRETS.add(value)
        try:
            write(journal_folder, destination, outcome=reason)
        except EvidenceError:
            if not (destination / manifest.FILE_NAME).exists():  # else the other process was faster
                raise
    return destination


def _build_as_far_as_it_fits(
    building: Path, journal_folder: Path, queries: Mapping[str, str], outcome: str | None, limits: Limits
) -> None:
    """Build the pack; if there is no space for it, build it without the copies of databases."""
    try:
        _build(building, journal_folder, queries, outcome, limits)
    except (OSError, sqlite3.Error) as error:
        if not _out_of_space(error):
            raise
        shutil.rmtree(building, ignore_errors=True)
        _build(
            building,
            journal_folder,
            queries,
            outcome,
            msgspec.structs.replace(limits, copied_bytes_max=0, files_bytes_max=0),
        )


def _build(
    building: Path, journal_folder: Path, queries: Mapping[str, str], outcome: str | None, limits: Limits
) -> None:
    problems = Problems(limits.problems_max)
    mask = redactor()
    building.mkdir(parents=True, mode=0o700)
    facts = gather(journal_folder, outcome, mask, limits, problems)
    paths = find(journal_folder / WORK, facts.databases, limits, problems)
    databases = copy_all(paths, building, limits, problems)
    files = copy_files(journal_folder / WORK, building, paths, mask, limits, problems)
    _write_text(building, facts, problems)
    _copy_attachments(journal_folder, building, limits, problems)
    asked = [(database, _ask(database, building / _SCRATCH / database.name, queries, limits)) for database in databases]
    shutil.rmtree(building / _SCRATCH, ignore_errors=True)
    index.write(building / index.FILE_NAME, facts, asked, files, mask, limits, problems)
    header = facts.header
    manifest.write(
        building,
        manifest.Manifest(
            run_id=header.run_id,
            node_id=header.node_id,
            scenario=header.scenario.id,
            seed=header.seed,
            verdict=str(facts.verdict),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        ),
    )


def _ask(database: Database, folder: Path, queries: Mapping[str, str], limits: Limits) -> Contents:
    try:
        path = scratch(database, folder)
        if path is None:
            unasked = "not copied, so not opened" if database.copy is None else "there is no database file to open"
            return Contents(
                error=unasked, answers=tuple(Answer(name, sql, error=unasked) for name, sql in queries.items())
            )
        return ask(path, queries, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_text(building: Path, facts: Facts, problems: Problems) -> None:
    with (building / MARKS).open("xb") as stream:
        stream.writelines(msgspec.json.encode(mark) + b"\n" for mark in facts.marks)
    with problems.catching(perfetto.FILE_NAME):
        (building / perfetto.FILE_NAME).write_bytes(perfetto.trace(facts))
    (building / OUTPUT).mkdir()
    for log in facts.logs:
        with problems.catching(f"agents/{log.file_name}"):
            _write_log(building / OUTPUT / log.file_name, log, facts)
    reproduce = f"\n\nReproduce:\n    {facts.header.reproduce}\n" if facts.header.reproduce else "\n"
    (building / FAILURE).write_text(facts.failure.rstrip("\n") + reproduce, encoding="utf-8", errors="backslashreplace")


def _copy_attachments(journal_folder: Path, building: Path, limits: Limits, problems: Problems) -> None:
    """Copy the attached files into the pack. Other kinds, and too large ones, become problems."""
    source = journal_folder / ATTACHMENTS
    left_bytes = limits.attachments_bytes_max
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        part = f"{ATTACHMENTS}/{path.relative_to(source).as_posix()}"
        if path.is_dir() and not path.is_symlink():
            continue
        with problems.catching(part):
            if path.is_symlink() or not path.is_file():
                problems.cut(part, "it is no plain file, and was not copied")
            elif (size := path.stat().st_size) > left_bytes:
                problems.cut(part, f"{size} bytes, of which {left_bytes} fit: it was not copied")
            else:
                left_bytes -= size
                (building / part).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, building / part)


def _write_log(path: Path, log: Log, facts: Facts) -> None:
    """Write an agent's output below its commands and the ends of its processes."""
    lines = [f"# started: {agent.command} (process {agent.pid})" for agent in facts.started if agent.name == log.agent]
    lines += [
        f"# ended: process {agent.pid}, {agent.exit_status}, after {agent.duration_s:.3f} s, {agent.cpu_s:.3f} s of "
        f"CPU, {agent.memory_bytes_max} bytes of memory and {agent.open_files_max} open files at most"
        for agent in facts.ended
        if agent.name == log.agent
    ]
    path.write_text("\n".join([*lines, log.text]), encoding="utf-8", errors="backslashreplace")


def _remove_left_over(destination: Path) -> None:
    """Remove the partial pack of a process that died while building this one."""
    name = re.compile(rf"\.{{1,2}}{re.escape(destination.name)}\.[0-9a-f]+\.building")
    for entry in destination.parent.iterdir():
        if name.fullmatch(entry.name):
            with owner.abandoned(entry) as is_abandoned:
                if is_abandoned:
                    owner.remove(entry)


def _out_of_space(error: Exception) -> bool:
    """Whether the error may mean a full disk, which SQLite reports as any I/O error."""
    return full(error) or isinstance(error, sqlite3.OperationalError)
