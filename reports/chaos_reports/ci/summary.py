"""A page of Markdown for the summary of a job: what failed first, and how to run it again.

Code hosts give each job a file, such as the one that $GITHUB_STEP_SUMMARY names, and show what is
appended to it. The page is short: details are in the reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_chaos.errors import ResultsError

from chaos_reports.environment import environment
from chaos_reports.matrix import view

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.model.campaign import MatrixSummary

BYTES_MAX: Final = 200_000
"""Of one page; code hosts refuse a summary of more than a megabyte, which jobs share."""


def to_summary(matrix: MatrixSummary) -> str:
    """Render the page: the headline, failures with their lines, and a table of all scenarios."""
    shown = view(matrix, is_worst_first=True)
    text = environment(autoescape=False).get_template("summary.md.j2").render(page=shown)
    cut = text.encode("utf-8", "replace")
    if len(cut) <= BYTES_MAX:
        return text
    kept = cut[:BYTES_MAX].decode("utf-8", "ignore").rpartition("\n")[0]
    return f"{kept}\n\nThe rest is left out here; the reports have it.\n"


def add_summary(matrix: MatrixSummary, path: Path) -> Path:
    """Append the page to a file, and return its path.

    Raises ResultsError when it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8", errors="replace") as stream:
            stream.write(to_summary(matrix) + "\n")
    except OSError as error:
        reason = error.strerror or error
        msg = f"the summary must be a file that can be written; got {path} ({reason}). Give another"
        raise ResultsError(msg) from error
    return path
