"""The page of the library matrix, and what the report shows of it. Pure."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scenarios.library_matrix.measure import NOTHING as NONE
from scenarios.library_matrix.rows import CELLS, TITLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scenarios.library_matrix.measure import Cell, Found, Measured
    from scenarios.library_matrix.rows import Row

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "library-matrix.md"
BEGIN: Final = "<!-- matrix: made from scenarios/targets by python -m scenarios.library_matrix -->"
END: Final = "<!-- end of matrix -->"
BY_DESIGN: Final = "by design"
_NOTE_MAX: Final = 190


def verdict_of(row: Row, cell: str, measured: Measured | None) -> str:
    """Return what the report shows of a cell: a verdict, ``by design`` or ``not explored``."""
    found = measured.cells.get(cell) if measured is not None else None
    if found is None:
        return NONE
    return BY_DESIGN if found.verdict == "VIOLATED" and cell in row.by_design else found.verdict


def libraries(rows: Mapping[str, Row], measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Return ``libraries.json``, which the matrix page of a results folder shows."""
    shown = [
        {
            "library": f"{name} ({_versions(measured[name])})",
            "cells": {title: verdict_of(row, cell, measured[name]) for cell, title in zip(CELLS, TITLES, strict=True)},
            "note": _clipped(row.promise),
        }
        for name, row in rows.items()
        if name in measured
    ]
    days = [each.day for each in measured.values()]
    return {"rows": shown, "started": max(days, default=datetime.date.min.isoformat())}


def with_matrix(text: str, rows: Mapping[str, Row], measured: Mapping[str, Measured]) -> str:
    """Return the page with the table and the details of what was measured."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = "\n".join([*_table(rows, measured), "", *_details(rows, measured)])
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def _table(rows: Mapping[str, Row], measured: Mapping[str, Measured]) -> Iterator[str]:
    yield f"| program | {' | '.join(TITLES)} |"
    yield f"|---{'|---' * len(TITLES)}|"
    for name, row in rows.items():
        cells = (_in_table(row, cell, measured.get(name)) for cell in CELLS)
        yield f"| [{name}](#{_anchor(name)}) | {' | '.join(cells)} |"


def _in_table(row: Row, cell: str, measured: Measured | None) -> str:
    verdict = verdict_of(row, cell, measured)
    if verdict == NONE or measured is None:
        return "-"
    found = measured.cells[cell]
    if verdict == "HELD":
        return "held"
    if verdict == "INCONCLUSIVE":
        return "undecided"
    words = ", ".join(sorted(_word(each) for each in found.signatures)) or "violated"
    is_confirmed = cell in row.confirmed or any(_is_confirmed(each) for each in found.findings)
    proof = "confirmed" if is_confirmed else "modelled"
    return f"{BY_DESIGN}: {words}, {proof}" if verdict == BY_DESIGN else f"**{words}**, {proof}"


def _details(rows: Mapping[str, Row], measured: Mapping[str, Measured]) -> Iterator[str]:
    for name, row in rows.items():
        yield f"### {name}"
        yield ""
        found = measured.get(name)
        if found is None:
            yield f"Not measured. Promise: {row.promise} Source: {row.source}."
            yield ""
            continue
        yield f"{_versions(found)}; {found.where}; {found.day}."
        yield ""
        yield f"- Promise: {row.promise}"
        yield f"- Source: {row.source}."
        yield f"- Upstream: {row.upstream}"
        if row.by_hand:
            yield f"- By hand: {row.by_hand}"
        for cell, title in zip(CELLS, TITLES, strict=True):
            if cell in found.cells:
                yield from _cell(row, cell, title, found.cells[cell])
            elif cell in row.unexplored:
                yield f"- {title}: not explored; {row.unexplored[cell]}."
        yield ""


def _cell(row: Row, cell: str, title: str, found: Cell) -> Iterator[str]:
    agreed = f", {found.confirmed:,} by real kills or runs" if found.confirmed else ""
    design = row.by_design.get(cell, "") if found.verdict == "VIOLATED" else ""
    yield f"- {title}: {found.verdict}; {found.coverage}{agreed}.{f' By design: {design}' if design else ''}"
    for each in found.findings:
        where = f" State: {_safe(each.state)}." if each.state else ""
        yield f"  - `{each.signature}`, {each.label}: {_safe(each.text)}.{where}"
        if each.again:
            yield f"    `{each.again}`"
    for problem in found.problems:
        yield f"  - {_safe(problem)}"
    if not found.findings:
        yield f"  - `{found.command}`"


def _is_confirmed(found: Found) -> bool:
    return found.label.startswith("confirmed")


def _word(signature: str) -> str:
    kind = signature.partition(":")[0]
    return {"clean-run": "fails", "recovery-fails": "does not start", "liveness": "hangs"}.get(kind, kind)


def _versions(measured: Measured) -> str:
    return ", ".join(f"{name} {version}" for name, version in measured.versions.items())


def _anchor(name: str) -> str:
    return name.lower().replace(".", "")


def _safe(text: str) -> str:
    """Return a text of a program as Markdown that shows it as it is."""
    return "".join(f"\\{char}" if char in "\\`*_[]<>|" else char for char in text)


def _clipped(text: str) -> str:
    return text if len(text) <= _NOTE_MAX else f"{text[:_NOTE_MAX]} ..."
