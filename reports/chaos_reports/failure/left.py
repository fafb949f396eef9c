"""What a run left: its files and databases as found, and the output of its agents. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from chaos_reports.failure.difference import hex_row
from chaos_reports.failure.values import AgentView, FoundFile, FoundTable
from chaos_reports.figures import clip, duration, plural, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_chaos.evidence.open import Pack

    from chaos_reports.failure.source import Told

OUTPUT_LINES_MAX: Final = 40
EXCERPT_LINES_MAX: Final = 30
ROWS_MAX: Final = 10
TABLES_MAX: Final = 30


def files_of(pack: Pack) -> Iterator[FoundFile]:
    """Yield the databases and files of a run's folder as they were found."""
    for database in pack.databases:
        yield _database(pack, database)
    for row in pack.files:
        yield _file(row)


def _database(pack: Pack, database: dict[str, object]) -> FoundFile:
    name = str(database["name"])
    integrity = str(database["integrity_check"] or "")
    wrong = str(database["error"] or database["header_error"] or ("" if integrity in {"", "ok"} else integrity))
    facts = [f"SQLite, {database['journal_mode'] or 'journal mode not known'}"]
    facts.append(wrong or f"integrity: {integrity or 'not checked'}")
    tables: list[FoundTable] = []
    empty: list[str] = []
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for row in pack.rows:
        if row["database"] == name:
            rows[str(row["table_name"])].append(clip(str(row["row"]), 300))
    for table in pack.tables:
        if table["database"] == name and table["row_count"] == 0:
            empty.append(clip(str(table["table_name"]), 80))
        elif table["database"] == name and len(tables) < TABLES_MAX:
            shown = rows[str(table["table_name"])][-ROWS_MAX:]
            count = table["row_count"]
            said = plural(count, "row") if isinstance(count, int) else clip(str(table["error"] or "not counted"), 120)
            more = f", the newest {len(shown)}" if isinstance(count, int) and count > len(shown) > 0 else ""
            tables.append(FoundTable(name=clip(str(table["table_name"]), 80), count=said + more, rows=tuple(shown)))
    return FoundFile(
        path=clip(name, 200),
        facts=clip("; ".join(facts), 400),
        lines=(f"without rows: {', '.join(empty)}",) if empty else (),
        tables=tuple(tables),
        is_bad=bool(wrong),
    )


def _file(row: dict[str, object]) -> FoundFile:
    count = row["size_bytes"]
    kind = str(row["kind"])
    facts = size(count) if isinstance(count, int) and kind == "file" else kind
    lines: Sequence[str] = ()
    if kind == "link":
        facts = f"link to {row['target']}"
    elif isinstance(row["excerpt"], str):
        lines = row["excerpt"].splitlines()
        facts += ", empty" if not count else ""
    elif row["head"]:
        head = bytes.fromhex(str(row["head"]))
        lines = [hex_row(head, at) for at in range(0, min(len(head), 128), 16)]
        facts += ", no text"
    if kind == "file" and not row["copied"]:
        facts += ", too large to be copied"
    return FoundFile(
        path=clip(str(row["path"]), 200),
        facts=clip(facts, 200),
        lines=tuple(clip(line, 300) for line in lines[:EXCERPT_LINES_MAX]),
        lines_omitted=max(0, len(lines) - EXCERPT_LINES_MAX),
    )


def agents_of(pack: Pack) -> Iterator[AgentView]:
    """Yield the agents of a run, each with its last output."""
    output: defaultdict[str, list[str]] = defaultdict(list)
    logs: defaultdict[str, list[str]] = defaultdict(list)
    for row in pack.log_lines:
        logs[str(row["agent"])].append(str(row["text"]))
    names = {str(row["name"]) for row in pack.agents}
    for log in sorted(logs, key=_incarnation):
        name, number = _incarnation(log) if log not in names else (log, 1)
        output[name] += [f"--- process {number} of {name} ---"] * (number > 1) + logs[log]
    ends: defaultdict[str, list[str]] = defaultdict(list)
    commands: dict[str, str] = {}
    for row in pack.agents:
        name = str(row["name"])
        commands.setdefault(name, str(row["command"]))
        lasted = row["duration_s"]
        after = f" after {duration(lasted)}" if isinstance(lasted, int | float) and lasted > 0 else ""
        ends[name].append(clip(f"process {row['pid']}: {row['exit_status'] or 'no end was seen'}{after}", 200))
    for name in dict.fromkeys([*ends, *output]):
        lines = output.get(name, [])
        shown = lines[-OUTPUT_LINES_MAX:]
        yield AgentView(
            name=clip(name, 120),
            command=clip(commands.get(name, ""), 300),
            ends=tuple(ends[name][:10]),
            lines=tuple(clip(line, 400) for line in shown),
            lines_omitted=len(lines) - len(shown),
            is_open=any("Traceback" in line or "Error" in line for line in shown),
        )


def printed(stories: Iterable[Told]) -> Iterator[AgentView]:
    """Yield what explored programs printed in their recorded runs."""
    for told in stories:
        lines = told.story.output.splitlines()
        if lines:
            shown = lines[-OUTPUT_LINES_MAX:]
            yield AgentView(
                name=clip(told.story.target, 120),
                command="",
                ends=("its recorded run, without a fault",),
                lines=tuple(clip(line, 400) for line in shown),
                lines_omitted=len(lines) - len(shown),
                is_open=any("Traceback" in line or "Error" in line for line in shown),
            )


def _incarnation(log: str) -> tuple[str, int]:
    """Return agent and number of the process whose output a log is."""
    match = re.fullmatch(r"(.+)\.(\d+)", log)
    return (match[1], int(match[2])) if match else (log, 1)
