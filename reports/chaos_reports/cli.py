"""``chaos report`` and ``python -m chaos_reports``: render a matrix again, from records.

Exit codes of the ``chaos`` command: 0 held, 1 violated, 2 inconclusive, 3 a user's mistake, 4 an
error of ours.
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
from pytest_chaos.evidence.records import Records, merge, read
from pytest_chaos.evidence.redact import clean
from pytest_chaos.model.campaign import summarise
from pytest_chaos.model.values import Verdict

from chaos_reports.render import FORMATS, check_formats, write
from chaos_reports.terminal import lines

EXIT_CODES: Final = {Verdict.HELD: 0, Verdict.VIOLATED: 1, Verdict.INCONCLUSIVE: 2}
USER_MISTAKE: Final = 3
OWN_ERROR: Final = 4


@click.command(name="report", help="Render the chaos matrix again from the records of one or more RESULTS folders.")
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--format", "formats", default=",".join(FORMATS), show_default=True, help="Formats, separated by commas.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the report; by default the session's own, or the current one when several are merged.",
)
@click.pass_context
def report(context: click.Context, results: Sequence[Path], formats: str, output: Path | None) -> None:
    """Render, show the table, and exit with the code of the verdict."""
    try:
        verdict = render(results, [name.strip() for name in formats.split(",") if name.strip()], output)
    except ChaosError as error:
        click.echo(f"Error: {error}", err=True)
        context.exit(USER_MISTAKE)
    context.exit(EXIT_CODES[verdict])


def render(results: Sequence[Path], formats: Sequence[str], output: Path | None = None) -> Verdict:
    """Read, merge and render; print the table; return the verdict of the matrix.

    Raises ResultsError for records that cannot be read or a report that cannot be written.
    """
    check_formats(formats)
    folders = [session_folder(path) for path in results]
    target = output or (folders[0] if len(folders) == 1 else Path.cwd())
    # records of earlier versions hold secrets that are known by now
    parts = [moved(clean(read(path)), folder, target) for path, folder in zip(results, folders, strict=True)]
    refuse_twice(parts, results)
    records = merge(parts)
    if not records.runs and not any(account.missing for account in records.accounts):
        msg = f"{results[0]} must have run records; got none. Give the results of a session that ran chaos scenarios"
        raise ResultsError(msg)
    matrix = summarise(records)
    files = write(matrix, target, formats)
    page = files.get("html") or next(iter(files.values()))
    ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    width = terminal_width()
    for line in lines(matrix, width=width, page=page, colour=sys.stdout.isatty(), ascii_only=ascii_only):
        click.echo(line)
    return matrix.verdict


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
