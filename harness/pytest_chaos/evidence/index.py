"""``evidence.sqlite``: the file of a pack to query, with the facts of the run and its databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.evidence.databases import Database, printable
from pytest_chaos.evidence.sqlite import Answer, Contents, Header, Table, read_header, read_wal_header
from pytest_chaos.model.values import Json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pytest_chaos.evidence.files import RunFile
    from pytest_chaos.evidence.gather import Facts
    from pytest_chaos.evidence.limits import Limits, Problems
    from pytest_chaos.evidence.redact import Redactor
    from pytest_chaos.model.values import Mark

FILE_NAME: Final = "evidence.sqlite"
FORMAT: Final = 1
"""The ``user_version``; raised with the manifest's when a table changes its meaning."""

SCHEMA: Final = """
CREATE TABLE run (run_id TEXT, node_id TEXT, scenario TEXT, title TEXT, why TEXT, steps TEXT, seed TEXT,
                  iteration INTEGER, started TEXT, command TEXT, reproduce TEXT, root TEXT, worker TEXT,
                  controller_pid INTEGER, versions TEXT, plan TEXT, verdict TEXT, duration_s REAL, notes TEXT);
CREATE TABLE plan (fault INTEGER PRIMARY KEY, kind TEXT, agent TEXT, "when" TEXT, parameters TEXT);
CREATE TABLE faults (fault INTEGER, kind TEXT, agent TEXT, "when" TEXT, fired INTEGER, evidence TEXT, "order" INTEGER);
CREATE TABLE marks ("order" INTEGER PRIMARY KEY, kind TEXT, operation TEXT, key, value TEXT, agent TEXT, pid INTEGER);
CREATE TABLE torn_lines ("order" INTEGER, content TEXT, reason TEXT);
CREATE TABLE agents (name TEXT, pid INTEGER, command TEXT, kwargs TEXT, started_at TEXT, exit_status TEXT,
                     duration_s REAL, cpu_s REAL, memory_bytes_max INTEGER, open_files_max INTEGER,
                     output_bytes INTEGER, started_order INTEGER);
CREATE TABLE log_lines (agent TEXT, line INTEGER, text TEXT);
CREATE TABLE findings (signature TEXT, kind TEXT, checker TEXT, text TEXT, orders TEXT);
CREATE TABLE assertions (name TEXT, observed TEXT, holds INTEGER);
CREATE TABLE failure (text TEXT);
CREATE TABLE databases (name TEXT PRIMARY KEY, path TEXT, copied INTEGER, header TEXT, header_error TEXT,
                        page_size_bytes INTEGER, journal_mode TEXT, user_version INTEGER, application_id INTEGER,
                        change_counter INTEGER, page_count INTEGER, wal_frames INTEGER, integrity_check TEXT,
                        foreign_key_check TEXT, pragmas TEXT, error TEXT);
CREATE TABLE database_files (database TEXT, suffix TEXT, size_bytes INTEGER, modified TEXT, locks TEXT, copied INTEGER);
CREATE TABLE table_counts (database TEXT, table_name TEXT, row_count INTEGER, error TEXT);
CREATE TABLE table_rows (database TEXT, table_name TEXT, place INTEGER, row TEXT);
CREATE TABLE answers (database TEXT, query TEXT, sql TEXT, columns TEXT, rows TEXT, error TEXT);
CREATE TABLE files (path TEXT, kind TEXT, size_bytes INTEGER, modified TEXT, copied INTEGER, excerpt TEXT, head TEXT,
                    target TEXT);
CREATE TABLE problems (kind TEXT, part TEXT, text TEXT);
"""

Cell = Json
"""A value of a row: stored as it is where SQLite can hold it, else as JSON."""

_run = attrgetter(
    "run_id", "node_id", "scenario.id", "scenario.title", "scenario.why", "scenario.steps", "seed", "iteration",
    "started", "command", "reproduce", "root", "worker", "controller_pid", "versions", "plan",
)  # fmt: skip
_fault = attrgetter("kind", "agent", "when", "parameters")
_receipt = attrgetter("fault", "kind", "agent", "when", "fired", "evidence", "order")
_torn = attrgetter("order", "text", "reason")
_finding = attrgetter("signature", "kind", "checker", "text", "orders")
_assertion = attrgetter("name", "observed", "holds")
_figures = attrgetter("exit_status", "duration_s", "cpu_s", "memory_bytes_max", "open_files_max", "output_bytes")
_header = attrgetter(
    "page_size_bytes", "journal_mode", "user_version", "application_id", "change_counter", "page_count"
)
_file = attrgetter("suffix", "size_bytes", "modified", "locks", "copied")
_run_file = attrgetter("path", "kind", "size_bytes", "modified", "copied", "excerpt", "head", "target")


def write(
    path: Path,
    facts: Facts,
    asked: Sequence[tuple[Database, Contents]],
    files: Sequence[RunFile],
    redactor: Redactor,
    limits: Limits,
    problems: Problems,
) -> None:
    """Write the index. Raises sqlite3.Error or OSError when the disk is full."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # The pack is renamed into place when it is whole, so the file needs no journal and no sync.
        connection.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA user_version={FORMAT}; BEGIN; {SCHEMA}"
        )
        index = _Index(connection, redactor, limits, problems)
        index.add_run(facts)
        index.add_agents(facts)
        index.add_logs(facts)
        index.add("files", map(_run_file, files))
        for database, contents in asked:
            with problems.catching(database.name):
                index.add_database(database, contents)
        index.add("problems", ((item.kind, item.part, redactor.text(item.text)) for item in problems.found))
        connection.execute("COMMIT")


@dataclass(slots=True)
class _Index:
    connection: sqlite3.Connection
    redactor: Redactor
    limits: Limits
    problems: Problems
    rows_bytes: int = 0
    rows_left_out: bool = False

    def add(self, table: str, rows: Iterable[Sequence[Cell]]) -> None:
        for row in rows:
            places = ", ".join("?" * len(row))
            sql = f"INSERT INTO {table} VALUES ({places})"  # noqa: S608 - table names are ours
            self.connection.execute(sql, [_storable(cell) for cell in row])

    def add_run(self, facts: Facts) -> None:
        header = facts.header
        self.add("run", [(*_run(header), facts.verdict.value, facts.duration_s, facts.notes)])
        faults = header.plan.faults if header.plan else ()
        self.add("plan", ((place, *_fault(fault)) for place, fault in enumerate(faults)))
        self.add("faults", map(_receipt, facts.receipts))
        self.add("marks", map(_mark, facts.marks))
        self.add("torn_lines", map(_torn, facts.torn))
        self.add("findings", map(_finding, facts.findings))
        self.add("assertions", map(_assertion, facts.assertions))
        self.add("failure", [(facts.failure,)])

    def add_agents(self, facts: Facts) -> None:
        ended = {(agent.name, agent.pid): agent for agent in facts.ended}
        for agent in facts.started:
            end = ended.pop((agent.name, agent.pid), None)
            figures = _figures(end) if end else ("", None, None, None, None, None)
            self.add(
                "agents",
                [(agent.name, agent.pid, agent.command, agent.kwargs, agent.started_at, *figures, agent.order)],
            )
        self.add("agents", ((end.name, end.pid, end.target, None, "", *_figures(end), None) for end in ended.values()))

    def add_logs(self, facts: Facts) -> None:
        length_max = self.limits.value_length_max
        for log in facts.logs:
            lines = log.text.splitlines()
            first = max(0, len(lines) - self.limits.log_lines_max)
            if first:
                text = f"{len(lines)} lines, of which the last {len(lines) - first} are here"
                self.problems.cut(f"log_lines of {log.agent}", text)
            numbered = enumerate(lines[first:], start=first + 1)
            self.add("log_lines", ((log.agent, number, line[:length_max]) for number, line in numbered))

    def add_database(self, database: Database, contents: Contents) -> None:
        name, text = database.name, self.redactor.text
        header, header_error = _read_header(database)
        wal = read_wal_header(database.wal_head, database.size_bytes("-wal"))
        told = _header(header) if header else (None,) * 6
        integrity, foreign_keys = text("\n".join(contents.integrity)), text("\n".join(contents.foreign_keys))
        self.add("databases", [(
            name, printable(database.path), database.copy is not None, {"file": header, "wal": wal}, header_error,
            *told, wal.frames if wal else None, integrity, foreign_keys, contents.pragmas, text(contents.error),
        )])  # fmt: skip
        self.add("database_files", ((name, *_file(file)) for file in database.files))
        for table in contents.tables:
            self.add_table(name, table)
        if contents.tables_left_out:
            self.problems.cut(name, f"{contents.tables_left_out} tables after the first {self.limits.tables_max}")
        for answer in contents.answers:
            self.add_answer(name, answer)

    def add_table(self, database: str, table: Table) -> None:
        name = self.redactor.text(table.name)
        self.add("table_counts", [(database, name, table.row_count, self.redactor.text(table.error))])
        rows = enumerate(self._bounded(database, row) for row in table.rows)
        self.add("table_rows", ((database, name, place, row) for place, row in rows if row is not None))

    def add_answer(self, database: str, answer: Answer) -> None:
        if answer.cut:
            self.problems.cut(
                f"{database}, {answer.query}", f"only the first {self.limits.answer_rows_max} rows are here"
            )
        rows = self._bounded(database, [dict(zip(answer.columns, row, strict=False)) for row in answer.rows])
        sql, error = self.redactor.text(answer.sql), self.redactor.text(answer.error)
        self.add("answers", [(database, answer.query, sql, self.redactor.json(answer.columns), rows, error)])

    def _bounded(self, database: str, value: Json) -> str | None:
        """Return redacted JSON, or None once the pack has rows_bytes_max of it."""
        text = _json(self.redactor.json(value))
        self.rows_bytes += len(text)
        if self.rows_bytes <= self.limits.rows_bytes_max:
            return text
        if not self.rows_left_out:
            self.problems.cut(
                database, f"rows after the first {self.limits.rows_bytes_max} bytes of all rows are not here"
            )
            self.rows_left_out = True
        return None


def _read_header(database: Database) -> tuple[Header | None, str]:
    try:
        return read_header(database.head), ""
    except ValueError as error:
        return None, str(error)


def _mark(mark: Mark) -> tuple[Cell, ...]:
    return mark.order, mark.kind.value, mark.operation, mark.key, _json(mark.value), mark.agent, mark.pid


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode(errors="replace")


def _storable(cell: Cell) -> str | int | float | None:
    """Return a value that fits into SQLite (64 bits, UTF-8): as text if need be."""
    if isinstance(cell, int) and not -(2**63) <= cell < 2**63:
        return str(cell)
    if isinstance(cell, str):
        return cell.encode(errors="backslashreplace").decode()
    return cell if cell is None or isinstance(cell, int | float) else _json(cell)
