"""The matrix as lines of text, for pytest's terminal summary and for ``chaos report``."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from chaos_reports.columns import TERMINAL, shown_in
from chaos_reports.figures import clip, percent, plural
from chaos_reports.matrix import GLYPHS, INCOMPLETE, headline, row_label, view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.model.campaign import FailureSummary, MatrixSummary, ScenarioSummary

    from chaos_reports.columns import Column

FAILURES_SHOWN_MAX: Final = 10
"""Findings of one scenario that the terminal shows; the page has more."""

_COLOURS: Final = {
    "HELD": "green",
    "TOLERATED": "yellow",
    "INCONCLUSIVE": "magenta",
    "INCOMPLETE": "magenta",
    "VIOLATED": "red",
}
_ASCII: Final = str.maketrans({"✓": "+", "≈": "~", "✗": "x", "—": "-", "…": "...", "µ": "u", "≥": ">=", "○": "o"})
_WIDTH_MIN: Final = 40
_INDENT: Final = " "
_GAP: Final = "  "


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
    """Return a line of figures for each scenario, and below it what is a line of its own.

    A line is wrapped at spaces; only a word that is wider than the terminal is folded.
    """
    rows = view(matrix).scenarios
    columns = [column for column in shown_in(TERMINAL) if not column.is_below]
    below = [column for column in shown_in(TERMINAL) if column.is_below]
    cells = [[_shown(column.line(row), ascii_only=ascii_only) for column in columns] for row in rows]
    widths = [
        max(cell_len(text) for text in texts) for texts in zip([each.title for each in columns], *cells, strict=True)
    ]
    is_wide = sum(widths) + len(_INDENT) + len(_GAP) * (len(columns) - 1) <= width
    indent = len(_INDENT) + (widths[0] + len(_GAP) if is_wide else 0)
    console = _console(width, colour=colour)
    if is_wide and rows:
        heads = _GAP.join(_fit(each.title, size, each) for each, size in zip(columns, widths, strict=True))
        console.print(Text(f"{_INDENT}{heads}".rstrip()))
        console.print(Text(_INDENT + ("-" if ascii_only else "─") * (sum(widths) + len(_GAP) * (len(columns) - 1))))
    for row, texts in zip(rows, cells, strict=True):
        if is_wide:
            fitted = zip(texts, widths, columns, strict=True)
            first = _GAP.join(_fit(text, size, column) for text, size, column in fitted)
            lines = [Text(f"{_INDENT}{first}".rstrip())]
        else:
            figures = "; ".join(f"{each.title} {text}" for each, text in zip(columns[2:], texts[2:], strict=True))
            lines = _wrapped(f"{texts[0]}{_GAP}{texts[1]}", 0, console) + _wrapped(figures, indent, console)
        lines[0].stylize(_COLOURS[row.label], 0, lines[0].plain.find(texts[0]) + len(texts[0]))
        for column in below:
            lines += _wrapped(_shown(column.line(row), ascii_only=ascii_only), indent, console)
        console.print(Text("\n").join(lines), soft_wrap=True)
    written = console.file
    assert isinstance(written, StringIO)  # noqa: S101 - see _console
    return [line.rstrip() for line in written.getvalue().splitlines()]


def _console(width: int, *, colour: bool) -> Console:
    return Console(
        file=StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
        highlight=False,
    )


def _shown(text: str, *, ascii_only: bool) -> str:
    flat = " ".join(text.split())
    return flat.translate(_ASCII) if ascii_only else flat


def _fit(text: str, width: int, column: Column) -> str:
    """Return a text with as many spaces as a column needs: numbers end at one place."""
    space = " " * (width - cell_len(text))
    return f"{space}{text}" if column.is_number else f"{text}{space}"


def _wrapped(text: str, indent: int, console: Console) -> list[Text]:
    """Return a text as lines that begin at a column and fit the console."""
    if not text:
        return []
    margin = Text(" " * indent)
    return [margin + line for line in Text(text).wrap(console, max(1, console.width - indent))]


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
