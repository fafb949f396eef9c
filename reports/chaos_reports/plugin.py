"""The pytest plugin of the reports: writes the matrix after a chaos session, and shows it.

It is silent in a session without chaos runs, and imports the renderers only if there are some.
``-p no:chaos-reports`` switches it off.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.evidence.records import Records
    from pytest_chaos.model.campaign import MatrixSummary


class Finished(NamedTuple):
    """The result of a session: its summary, the files by format, or an error.

    ``pages`` are the failure pages, by the path of the pack in the record.
    """

    matrix: MatrixSummary
    files: dict[str, Path]
    problem: str
    pages: dict[str, Path] = {}  # noqa: RUF012 - a named tuple's default, never changed


FINISHED = pytest.StashKey[Finished]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the option of the job summary, unless the plugin that makes records is left out."""
    if pluginmanager.is_blocked("chaos"):
        return
    parser.getgroup("chaos").addoption(
        "--chaos-summary",
        metavar="FILE",
        default=None,
        help="Append a page of Markdown to this file: the summary of a job, such as $GITHUB_STEP_SUMMARY.",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_chaos_session_finished(
    session_folder: Path, records: Records, formats: tuple[str, ...], config: pytest.Config
) -> None:
    """Write the matrix into the session's folder. An error is shown, and changes no verdict."""
    if not records.runs and not any(each.missing or each.over_budget for each in records.accounts):
        return
    from pytest_chaos.errors import ResultsError
    from pytest_chaos.model.campaign import summarise

    from chaos_reports.ci.summary import add_summary
    from chaos_reports.power import with_power
    from chaos_reports.render import write
    from chaos_reports.trend.history import history_of

    matrix, problem = summarise(records), ""
    try:
        matrix = with_power(matrix, session_folder)
    except ResultsError as error:  # results of another command, which no verdict depends on
        problem = str(error)
    try:
        pages = _pages(session_folder, matrix) if "html" in formats else {}
        history = history_of(session_folder) if "html" in formats else None
        config.stash[FINISHED] = Finished(
            matrix, write(matrix, session_folder, formats, pages, history), problem, pages
        )
        if summary := config.getoption("chaos_summary", None):
            add_summary(matrix, config.invocation_params.dir / summary)
    except ResultsError as error:
        made = config.stash.get(FINISHED, Finished(matrix, {}, ""))
        config.stash[FINISHED] = made._replace(problem=str(error))


def _pages(session_folder: Path, matrix: MatrixSummary) -> dict[str, Path]:
    """Write the failure pages of the session, violated runs first."""
    from chaos_reports.matrix import packs_of

    evidence = packs_of(matrix)
    if not evidence:
        return {}
    from chaos_reports.failure.write import write_pages

    return write_pages(session_folder, evidence)


PAGES_SHOWN_MAX = 5


def _page_lines(finished: Finished) -> list[str]:
    """Return a line for each of the first failure pages."""
    pages = list(finished.pages.values())
    lines = [f"failure page: {page}" for page in pages[:PAGES_SHOWN_MAX]]
    if len(pages) > PAGES_SHOWN_MAX:
        lines.append(f"and {len(pages) - PAGES_SHOWN_MAX} more in {pages[0].parent}")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show the matrix: a table with findings, or one line per scenario under ``-q``."""
    finished = config.stash.get(FINISHED, None)
    if finished is None:
        return
    from chaos_reports.terminal import lines, short_lines

    writer = config.get_terminal_writer()
    ascii_only = not (getattr(sys.__stdout__, "encoding", None) or "utf-8").lower().startswith("utf")
    if config.get_verbosity() < 0:
        shown = short_lines(finished.matrix, ascii_only=ascii_only)
    else:
        terminalreporter.section("chaos matrix")
        page = finished.files.get("html") or next(iter(finished.files.values()), None)
        colour = writer.hasmarkup
        shown = lines(finished.matrix, width=writer.fullwidth, page=page, colour=colour, ascii_only=ascii_only)
    for line in shown:
        terminalreporter.write_line(line)
    for line in _page_lines(finished):
        terminalreporter.write_line(line)
    if finished.problem:
        terminalreporter.write_line(finished.problem, red=True)
