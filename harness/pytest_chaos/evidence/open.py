"""Opens a pack, to show it or to run it again. Nothing in it is run, imported or unpacked."""

from __future__ import annotations

import itertools
import sqlite3
import urllib.parse
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - the schema of a pack is made from its annotations
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import EvidenceError
from pytest_chaos.evidence import index, manifest
from pytest_chaos.evidence.manifest import Manifest  # noqa: TC001 - see above
from pytest_chaos.model.plan import ITERATIONS_MAX
from pytest_chaos.model.values import Assertion, Finding, Json, Mark, MarkKind, Plan, Receipt, Scenario, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

_SQLITE_STEPS_MAX: Final = 50_000_000
"""Limit of the steps of SQLite's virtual machine; the largest pack takes a tenth of it."""

_STEPS_PER_CALL: Final = 10_000
_TEXT_BYTES_MAX: Final = 256_000_000

_NEWEST_MARKS: Final = 'SELECT * FROM marks ORDER BY "order" DESC'
_MARKS_UNASKED: Final = 1000

Row = dict[str, Json]


@dataclass(frozen=True, slots=True)
class Pack:
    """The content of a pack. ``plan`` is None if the run had none; ``marks`` are the newest.

    ``databases``, ``agents``, ``answers`` and ``problems`` are rows of the tables of that name.
    Only a pack that was opened whole has ``files``, ``log_lines``, ``torn_lines``, ``tables`` (of
    ``table_counts``) and ``rows`` (of ``table_rows``).
    """

    path: Path
    manifest: Manifest
    run_id: str
    node_id: str
    scenario: Scenario
    seed: str
    iteration: int
    plan: Plan | None
    verdict: Verdict
    failure: str
    reproduce: str
    root: str
    started: str
    receipts: tuple[Receipt, ...]
    findings: tuple[Finding, ...]
    assertions: tuple[Assertion, ...]
    marks: tuple[Mark, ...]
    agents: tuple[Row, ...]
    databases: tuple[Row, ...]
    answers: tuple[Row, ...]
    problems: tuple[Row, ...]
    files: tuple[Row, ...] = ()
    log_lines: tuple[Row, ...] = ()
    tables: tuple[Row, ...] = ()
    rows: tuple[Row, ...] = ()
    torn_lines: tuple[Row, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Json] = field(default_factory=dict)
    duration_s: float | None = None


def open_pack(path: Path, *, whole: bool = False) -> Pack:
    """Open a pack. Raises EvidenceError for no pack, a newer format, or a modified index.

    With ``whole`` it has all marks, and the output of agents and the rows of tables, too.

    The index is read without locks and without trust in its schema. ``verify`` checks the other
    files.

    Example::

        pack = open_pack(Path("chaos-results/latest/evidence/test-kill-9-1a2b3c4d-0"))
        print(pack.verdict, pack.failure, pack.reproduce)
    """
    listed = manifest.read(path)
    _check_index(path, listed)
    uri = f"file:{urllib.parse.quote(str((path / index.FILE_NAME).resolve()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA trusted_schema=OFF")
            _bound(connection)
            _refuse_views(connection)
            return _pack(path, listed, connection, whole=whole)
    except (sqlite3.Error, msgspec.DecodeError, LookupError, TypeError, ValueError, OverflowError) as error:
        msg = f"{path / index.FILE_NAME} must be the index of an evidence pack; got: {error}"
        raise EvidenceError(msg) from error


def _bound(connection: sqlite3.Connection) -> None:
    """Bound the work of SQLite for this connection: a malicious pack may try to hang us."""
    calls = itertools.count(1)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _TEXT_BYTES_MAX)
    connection.set_progress_handler(lambda: next(calls) > _SQLITE_STEPS_MAX // _STEPS_PER_CALL, _STEPS_PER_CALL)


def _refuse_views(connection: sqlite3.Connection) -> None:
    """Raise ValueError for a view, a trigger or a virtual table, which no pack has."""
    for name, kind, sql in connection.execute("SELECT name, type, sql FROM sqlite_master"):
        if kind not in {"table", "index"} or (sql is not None and not sql.upper().startswith("CREATE TABLE ")):
            msg = f"the {kind} {name!r}, where only plain tables may be"
            raise ValueError(msg)


def _check_index(path: Path, listed: Manifest) -> None:
    entries = [entry for entry in listed.files if entry.path == index.FILE_NAME]
    problems = [text for entry in entries for text in manifest.problems_of(path, entry)]
    if len(entries) != 1:
        problems.append(f"{index.FILE_NAME!r} is not in the manifest")
    if problems:
        msg = f"{path} cannot be trusted: {problems[0]}. Take an undamaged copy of the pack"
        raise EvidenceError(msg)


def _pack(path: Path, listed: Manifest, connection: sqlite3.Connection, *, whole: bool) -> Pack:
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}

    def table(name: str) -> tuple[Row, ...]:
        return _rows(connection, f"SELECT * FROM {name} ORDER BY _rowid_")  # noqa: S608 - our own names

    def large(name: str) -> tuple[Row, ...]:
        return table(name) if whole and name in present else ()

    (run,) = table("run")
    _check_run(run)
    return Pack(
        path=path,
        manifest=listed,
        run_id=run["run_id"],
        node_id=run["node_id"],
        scenario=Scenario(
            id=run["scenario"],
            title=run["title"],
            why=run["why"],
            steps=msgspec.json.decode(run["steps"], type=tuple[str, ...]),
        ),
        seed=run["seed"],
        iteration=run["iteration"],
        plan=msgspec.json.decode(run["plan"] or "null", type=Plan | None),
        verdict=Verdict(run["verdict"]),
        failure="".join(row["text"] for row in table("failure")),
        reproduce=run["reproduce"],
        root=run["root"],
        started=run["started"],
        receipts=tuple(msgspec.convert(row, Receipt, strict=False) for row in table("faults")),
        findings=tuple(
            msgspec.convert(row | {"orders": msgspec.json.decode(row["orders"])}, Finding, strict=False)
            for row in table("findings")
        ),
        assertions=tuple(msgspec.convert(row, Assertion, strict=False) for row in table("assertions")),
        marks=_marks(connection, None if whole else _MARKS_UNASKED),
        agents=table("agents"),
        databases=table("databases"),
        answers=table("answers"),
        problems=table("problems"),
        files=large("files"),
        log_lines=large("log_lines"),
        tables=large("table_counts"),
        rows=large("table_rows"),
        torn_lines=large("torn_lines"),
        versions=msgspec.json.decode(run["versions"] or "{}", type=dict[str, str]),
        notes=msgspec.json.decode(run["notes"] or "{}", type=dict[str, Json]),
        duration_s=run["duration_s"],
    )


def _check_run(run: Row) -> None:
    """Raise ValueError for a field of a run with a wrong type or an iteration out of range."""
    for name in ("run_id", "node_id", "scenario", "title", "why", "seed", "reproduce", "root", "started"):
        if not isinstance(run[name], str):
            msg = f"{name} {run[name]!r}, which must be a text"
            raise ValueError(msg)  # noqa: TRY004 - it becomes an EvidenceError
    iteration = run["iteration"]
    if not isinstance(iteration, int) or not 0 <= iteration < ITERATIONS_MAX:
        msg = f"iteration {iteration!r}, which must be 0 to {ITERATIONS_MAX - 1}"
        raise ValueError(msg)


def _marks(connection: sqlite3.Connection, count_max: int | None) -> tuple[Mark, ...]:
    newest = _rows(connection, f"{_NEWEST_MARKS} LIMIT {-1 if count_max is None else count_max}")
    return tuple(
        Mark(
            kind=MarkKind(row["kind"]),
            operation=row["operation"],
            key=row["key"],
            value=msgspec.json.decode(row["value"]),
            agent=row["agent"],
            pid=row["pid"],
            order=row["order"],
        )
        for row in reversed(newest)
    )


def _rows(connection: sqlite3.Connection, sql: str) -> tuple[Row, ...]:
    found: Sequence[sqlite3.Row] = connection.execute(sql).fetchall()
    return tuple(dict(row) for row in found)
