"""``chaos report`` and ``python -m chaos_reports``: render a matrix again, from records.

Exit codes of the ``chaos`` command: 0 held, 1 violated, 2 inconclusive, 3 a user's mistake, 4 an
error of ours. With ``--diff``: 0 nothing is worse, 1 worse, 2 undecided.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Sequence  # noqa: TC003 - click's decorators keep the annotations of what they wrap
from pathlib import Path
from typing import Final

import click
import msgspec
from pytest_chaos.errors import ChaosError, ResultsError
from pytest_chaos.evidence.records import Records, merge, read_all_that_can_be
from pytest_chaos.evidence.redact import clean
from pytest_chaos.model.campaign import MatrixSummary, summarise
from pytest_chaos.model.values import Verdict

from chaos_reports.ci.summary import add_summary
from chaos_reports.contract import FailureDocument
from chaos_reports.failure.source import is_failure
from chaos_reports.failure.write import write_one, write_pages
from chaos_reports.matrix import packs_of
from chaos_reports.power import with_power
from chaos_reports.render import DEFAULT_FORMATS, FORMATS, check_formats, to_json, write
from chaos_reports.terminal import lines
from chaos_reports.trend.compare import Direction, compare, lines as lines_of_difference
from chaos_reports.trend.history import history_of

EXIT_CODES: Final = {Verdict.HELD: 0, Verdict.VIOLATED: 1, Verdict.INCONCLUSIVE: 2}
USER_MISTAKE: Final = 3
OWN_ERROR: Final = 4


DOCUMENTS: Final = {
    "report": "chaos_reports.contract:MatrixDocument",
    "report PACK": "chaos_reports.contract:FailureDocument",
    "report --diff": "chaos_reports.trend.compare:Comparison",
}
"""What the command prints with ``--json``, for ``chaos schema``."""
DIFF_CODES: Final = {Direction.WORSE: 1, Direction.UNDECIDED: 2}


@click.command(name="report")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "formats",
    default=",".join(DEFAULT_FORMATS),
    show_default=True,
    help=f"Formats, separated by commas: {', '.join(FORMATS)}.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the report; by default the session's own, or the current one when several are merged.",
)
@click.option("--open", "is_opened", is_flag=True, help="Open the page in a browser.")
@click.option(
    "--summary",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append a page of Markdown to this file, such as the one that $GITHUB_STEP_SUMMARY names.",
)
@click.option("--diff", "is_diff", is_flag=True, help="Compare two sessions, the earlier one first; write no report.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def report(
    context: click.Context,
    results: Sequence[Path],
    formats: str,
    output: Path | None,
    summary: Path | None,
    *,
    is_opened: bool,
    is_diff: bool,
    as_json: bool,
) -> None:
    """Render the chaos matrix again, from the records of one or more RESULTS folders.

    A results folder stands for its latest session; a session's folder, or its records.jsonl, for
    itself. Each run that did not hold gets a failure page, and the page has the history of earlier
    sessions. Given the evidence pack of a run, or the states of an exploration, write the failure
    page of that alone.

    Exits 0 when all held, 1 when something was violated, 2 when it was inconclusive or incomplete,
    3 for a mistake in the call. With --diff A B: 0 when nothing is worse in B, 1 when a scenario is
    worse (newly violated, a new finding, a pass rate that fell by more than chance explains), 2
    when B cannot say (not run, incomplete, inconclusive).
    """
    try:
        if is_diff:
            context.exit(difference(results, as_json=as_json))
        if len(results) == 1 and is_failure(results[0]):
            context.exit(one_failure(results[0], is_opened=is_opened, as_json=as_json))
        wanted = [name.strip() for name in formats.split(",") if name.strip()]
        verdict = render(results, wanted, output, is_opened=is_opened, as_json=as_json, summary=summary)
    except ChaosError as error:
        click.echo(f"Error: {error}", err=True)
        context.exit(USER_MISTAKE)
    context.exit(EXIT_CODES[verdict])


def difference(results: Sequence[Path], *, as_json: bool = False) -> int:
    """Print what changed between two sessions, and return the exit code.

    Raises ResultsError unless there are two sessions that can be read.
    """
    if len(results) != 2:
        msg = f"--diff must get two sessions, the earlier one first; got {len(results)}. Give for instance A B"
        raise ResultsError(msg)
    found = compare(*(summarise(clean(read_all_that_can_be(path))) for path in results))
    if as_json:
        print_json(found)
    else:
        for line in lines_of_difference(found):
            click.echo(line)
    return DIFF_CODES.get(found.direction, 0)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def one_failure(path: Path, *, is_opened: bool = False, as_json: bool = False) -> int:
    """Write the page of one pack or exploration, and return the exit code of its verdict.

    Raises ResultsError when nothing can be written.
    """
    page, label = write_one(path)
    if as_json:
        print_json(FailureDocument(verdict=label, page=str(page)))
    else:
        click.echo(f"failure page: {page}")
    if is_opened:
        open_page(page)
    return EXIT_CODES[Verdict(label)]


def open_page(page: Path) -> None:
    """Open a page in the user's browser, or say that there is none."""
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        click.echo(f"no browser was found here: open {page.resolve().as_uri()}", err=True)


def render(
    results: Sequence[Path],
    formats: Sequence[str],
    output: Path | None = None,
    *,
    is_opened: bool = False,
    as_json: bool = False,
    summary: Path | None = None,
) -> Verdict:
    """Read, merge and render; print the table; return the verdict of the matrix.

    Raises ResultsError for records that cannot be read or a report that cannot be written.
    """
    check_formats(formats)
    folders = [session_folder(path) for path in results]
    target = output or (folders[0] if len(folders) == 1 else Path.cwd())
    # records of earlier versions hold secrets that are known by now
    found = [clean(read_all_that_can_be(path)) for path in results]
    parts = [moved(records, folder, target) for records, folder in zip(found, folders, strict=True)]
    refuse_twice(parts, results)
    records = merge(parts)
    matrix = with_power(summarise(records), folders[-1])
    pages = write_pages(target, packs_of(matrix)) if "html" in formats else {}
    history = history_of(folders[0], target) if len(folders) == 1 and "html" in formats else None
    files = write(matrix, target, formats, pages, history)
    if summary is not None:
        add_summary(matrix, summary)
    page = files.get("html") or next(iter(files.values()))
    if as_json:
        click.echo(to_json(matrix), nl=False)
    else:
        show(matrix, page)
    if is_opened:
        open_page(page)
    return matrix.verdict


def show(matrix: MatrixSummary, page: Path) -> None:
    """Print the table and the findings."""
    ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    width = terminal_width()
    for line in lines(matrix, width=width, page=page, colour=sys.stdout.isatty(), ascii_only=ascii_only):
        click.echo(line)


def session_folder(results: Path) -> Path:
    """Return the folder of the session that :func:`pytest_chaos.evidence.records.read` reads."""
    if results.is_file():
        return results.parent.resolve()
    latest = results / "latest"
    return (latest if latest.exists() and not (results / "records.jsonl").exists() else results).resolve()


def moved(records: Records, folder: Path, target: Path) -> Records:
    """Rewrite the paths of the evidence from relative to the session to relative to the report."""
    prefix = os.path.relpath(folder, target.resolve())
    if prefix == ".":
        return records
    runs = (
        msgspec.structs.replace(run, evidence=f"{Path(prefix, run.evidence)}") if run.evidence else run
        for run in records.runs
    )
    return records._replace(runs=tuple(runs))


def refuse_twice(parts: Sequence[Records], results: Sequence[Path]) -> None:
    """Raise ResultsError for a session that is given twice: its runs would count twice."""
    seen: dict[tuple[str, str, str], Path] = {}
    for part, path in zip(parts, results, strict=True):
        identity = (part.header.session, part.header.started, part.header.seed)
        if identity in seen:
            msg = f"each session must be given once; got {path}, the same session as {seen[identity]}. Leave one out"
            raise ResultsError(msg)
        seen[identity] = path


def terminal_width() -> int:
    """Return the width of the terminal, or 100 columns without one."""
    return shutil.get_terminal_size((100, 24)).columns


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. Only an error of ours has a traceback."""
    try:
        code = report.main(args=arguments, prog_name="python -m chaos_reports", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return USER_MISTAKE
    except click.Abort:
        return USER_MISTAKE
    except Exception:  # noqa: BLE001 - any other error is ours, and is shown whole
        traceback.print_exc()
        return OWN_ERROR
    return int(code or 0)
