"""The matrix as lines of text, for pytest's terminal summary and for ``chaos report``."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from chaos_reports.columns import TERMINAL, shown_in
from chaos_reports.figures import clip, percent, plural
from chaos_reports.matrix import GLYPHS, INCOMPLETE, headline, row_label, view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.model.campaign import FailureSummary, MatrixSummary, ScenarioSummary

FAILURES_SHOWN_MAX: Final = 10
"""Findings of one scenario that the terminal shows; the page has more."""

_COLOURS: Final = {
    "HELD": "green",
    "TOLERATED": "yellow",
    "INCONCLUSIVE": "magenta",
    "INCOMPLETE": "magenta",
    "VIOLATED": "red",
}
_ASCII: Final = str.maketrans({"✓": "+", "≈": "~", "✗": "x", "—": "-", "…": "...", "µ": "u"})
_WIDTH_MIN: Final = 40
_WIDTH_UNWRAPPED: Final = 72
"""From this width on, figures stay on one line; below it they are folded, not cut."""


def lines(
    matrix: MatrixSummary, *, width: int = 80, page: Path | None = None, colour: bool = False, ascii_only: bool = False
) -> list[str]:
    """Return a table of the scenarios, the findings, and the path of the page."""
    shown = [headline(matrix), *_table_lines(matrix, max(width, _WIDTH_MIN), colour=colour, ascii_only=ascii_only)]
    for each in matrix.scenarios:
        shown.extend(_findings(each))
    if page is not None:
        shown.append(f"chaos matrix: {page}")
    return [line.translate(_ASCII) for line in shown] if ascii_only else shown


def short_lines(matrix: MatrixSummary, *, ascii_only: bool = False) -> list[str]:
    """Return one line per scenario, for ``pytest -q``."""
    shown = [_short(each) for each in matrix.scenarios]
    if matrix.incomplete:
        shown.append(f"{GLYPHS[INCOMPLETE]} {headline(matrix)}")
    return [line.translate(_ASCII) for line in shown] if ascii_only else shown


def _short(summary: ScenarioSummary) -> str:
    runs, rate = plural(summary.runs, "run"), percent(summary.pass_rate)
    if summary.missing:
        runs = f"{summary.runs} of {plural(summary.planned, 'run')}"
    name = row_label(summary)
    return f"{GLYPHS[name]} {name} {clip(summary.scenario.id, 60)}: {runs}, pass rate {rate}"


def _table_lines(matrix: MatrixSummary, width: int, *, colour: bool, ascii_only: bool) -> list[str]:
    written = StringIO()
    console = Console(
        file=written,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
    )
    console.print(_table(matrix, width, ascii_only=ascii_only))
    return [line.rstrip() for line in written.getvalue().splitlines()]


def _table(matrix: MatrixSummary, width: int, *, ascii_only: bool) -> Table:
    table = Table(box=box.ASCII2 if ascii_only else box.SIMPLE_HEAD, expand=False, pad_edge=False)
    columns = shown_in(TERMINAL)
    for column in columns:
        if column.is_number:
            table.add_column(column.title, justify="right", no_wrap=width >= _WIDTH_UNWRAPPED)
        else:
            table.add_column(column.title, no_wrap=column.name == "verdict", overflow="fold")
    for row in view(matrix).scenarios:
        # Text, not str: square brackets in a title are no markup.
        cells = [Text("\n".join(column.cell(row))) for column in columns]
        cells[0].stylize(_COLOURS[row.label])
        table.add_row(*cells)
    return table


def _findings(summary: ScenarioSummary) -> Iterator[str]:
    for failure in summary.failures[:FAILURES_SHOWN_MAX]:
        yield from _finding(summary, failure)
    if (omitted := len(summary.failures) + summary.failures_omitted - FAILURES_SHOWN_MAX) > 0:
        yield f"{clip(summary.scenario.id, 60)}: {plural(omitted, 'more signature')} in the report"


def _finding(summary: ScenarioSummary, failure: FailureSummary) -> Iterator[str]:
    runs = plural(failure.runs, "run")
    text = " ".join(clip(failure.texts.values[0][0], 240).split()) if failure.texts.values else ""
    yield f"{clip(summary.scenario.id, 60)}: {clip(failure.signature, 120)} ({failure.kind}, {runs}): {text}"
    if failure.reproduce:
        replayed = ", ".join(text for text, _ in failure.reproduced.values)
        yield f"    reproduce{f' (replays: {replayed})' if replayed else ''}: {clip(failure.reproduce[0], 1_000)}"
    if failure.evidence:
        yield f"    evidence:  {clip(failure.evidence[0], 1_000)}"
