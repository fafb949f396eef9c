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
    """The result of a session: its summary, the files by format, or an error."""

    matrix: MatrixSummary
    files: dict[str, Path]
    problem: str


FINISHED = pytest.StashKey[Finished]()


@pytest.hookimpl(optionalhook=True)
def pytest_chaos_session_finished(
    session_folder: Path, records: Records, formats: tuple[str, ...], config: pytest.Config
) -> None:
    """Write the matrix into the session's folder. An error is shown, and changes no verdict."""
    if not records.runs and not any(account.missing for account in records.accounts):
        return
    from pytest_chaos.errors import ResultsError
    from pytest_chaos.model.campaign import summarise

    from chaos_reports.render import write

    matrix = summarise(records)
    try:
        config.stash[FINISHED] = Finished(matrix, write(matrix, session_folder, formats), "")
    except ResultsError as error:
        config.stash[FINISHED] = Finished(matrix, {}, str(error))


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
    if finished.problem:
        terminalreporter.write_line(finished.problem, red=True)
