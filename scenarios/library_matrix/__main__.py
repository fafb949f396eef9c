"""``python -m scenarios.library_matrix [NAMES]``: measure the library matrix and write its page.

Exits 0 if all were measured, with ``--check`` if all was as before; 1 if ``--check`` found a
difference; 2 if a program is not installed, or the page is not of the data; 3 for a mistake in the
call.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from pytest_chaos.errors import UsageError

from scenarios.library_matrix import measure, page
from scenarios.library_matrix.rows import chosen, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scenarios.library_matrix.rows import Row


@click.command()
@click.argument("names", nargs=-1)
@click.option("--check", is_flag=True, help="Compare with what was measured before, and write nothing.")
@click.option("--page", "is_page", is_flag=True, help="Measure nothing: write the page of what was measured.")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Workers of an exploration.")
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    default=measure.BUDGET_S,
    show_default=True,
    help="Seconds for each cell: programs that start slowly need more.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("chaos-results"),
    show_default=True,
    help="Where libraries.json is written for the report.",
)
def main(*, names: tuple[str, ...], check: bool, is_page: bool, jobs: int, budget: float, results: Path) -> None:
    """Explore the libraries of these NAMES, or all, and write measured.json and the page."""
    try:
        rows = read_rows()
        wanted = chosen(rows, names)
        code = 0 if is_page else _measured(wanted, jobs, budget, check=check)
        if not check:
            _write(rows, results)
    except UsageError as error:
        click.echo(f"error: {error}", err=True)
        code = 3
    sys.exit(code)


def _measured(wanted: Iterable[Row], jobs: int, budget_s: float, *, check: bool) -> int:
    code = 0
    for row in wanted:
        if missing := measure.missing(row):
            click.echo(f"skipped    {row.name}: not installed: {missing}; pip install -e '.[targets]'")
            code = max(code, 2)
            continue
        before = measure.read_measured()
        now = measure.measure(row, jobs=jobs, budget_s=budget_s)
        click.echo(f"measured   {row.name}: {', '.join(f'{name} {cell.verdict}' for name, cell in now.cells.items())}")
        found = list(measure.differences(row, before.get(row.name), now))
        for line in found:
            click.echo(f"  {line}")
        if check:
            code = 1 if found else code
        else:
            measure.write_measured(before | {row.name: now})
    return code


def _write(rows: dict[str, Row], results: Path) -> None:
    measured = measure.read_measured()
    page.DOCUMENT.write_text(page.with_matrix(page.DOCUMENT.read_text(encoding="utf-8"), rows, measured), "utf-8")
    results.mkdir(parents=True, exist_ok=True)
    (results / "libraries.json").write_bytes(msgspec.json.encode(page.libraries(rows, measured)))


if __name__ == "__main__":
    main()
