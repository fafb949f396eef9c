"""The command ``chaos list``: one line a scenario; with ``--long`` its steps and tests too."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_LINES_SHOWN: Final = 20
_WIDTH_WITHOUT_TERMINAL: Final = 100
_TITLE_CHARACTERS_MIN: Final = 20
_NOTHING_COLLECTED: Final = 5
"""The exit code of pytest when it found no test."""


class ListedScenario(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario that pytest found: what it proves, why, its steps, and the ids of its tests."""

    id: str
    title: str
    why: str = ""
    steps: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()


@click.command("list")
@click.argument("paths", nargs=-1)
@click.option("--long", "-l", "is_long", is_flag=True, help="Show why, the steps and every test, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def list_scenarios(paths: tuple[str, ...], *, is_long: bool, as_json: bool) -> None:
    """List the scenarios that pytest finds in PATHS, or where it is configured to look.

    Each has a line: its id, its number of tests, and what it proves. A terminal cuts the line at
    its width. Exits 0, or 3 when pytest could not collect the tests.
    """
    found = collect(paths)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
        return
    from pytest_chaos.model.verdict import harmless

    width = shutil.get_terminal_size((_WIDTH_WITHOUT_TERMINAL, 24)).columns
    for line in long_lines(found, width) if is_long else lines(found, width if sys.stdout.isatty() else None):
        click.echo(harmless(line))


def lines(scenarios: Sequence[ListedScenario], width: int | None = None) -> Iterator[str]:
    """Yield a line for each scenario, cut at ``width`` characters unless that is None.

    >>> list(lines([ListedScenario(id="01-kill", title="Nothing is lost", tests=("a", "b"))]))
    ['01-kill  2  Nothing is lost', '1 scenario, 2 tests']
    """
    ids = max((len(each.id) for each in scenarios), default=0)
    counts = max((len(f"{len(each.tests):,}") for each in scenarios), default=0)
    for each in scenarios:
        line = f"{_flat(each.id):<{ids}}  {len(each.tests):>{counts},}  {_flat(each.title)}".rstrip()
        is_cut = width is not None and len(line) > max(width, ids + counts + _TITLE_CHARACTERS_MIN)
        yield line[: (width or 0) - 1].rstrip() + "…" if is_cut else line
    tests = sum(len(each.tests) for each in scenarios)
    yield f"{_counted(len(scenarios), 'scenario')}, {_counted(tests, 'test')}"


def long_lines(scenarios: Sequence[ListedScenario], width: int) -> Iterator[str]:
    """Yield the lines of each scenario with everything that is known of it."""
    for each in scenarios:
        yield f"{_flat(each.id)}  {_flat(each.title)}".rstrip()
        yield from _wrapped(each.why, width, "  ", "  ")
        for number, step in enumerate(each.steps, start=1):
            yield from _wrapped(step, width, f"  {number}. ", "     ")
        yield from (f"  {_flat(test)}" for test in each.tests)
        yield ""
    yield _counted(len(scenarios), "scenario")


def _wrapped(text: str, width: int, first: str, later: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text, max(width, 40), initial_indent=first, subsequent_indent=later, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _flat(text: str) -> str:
    return " ".join(text.split())


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def collect(paths: Sequence[str]) -> tuple[ListedScenario, ...]:
    """Let pytest collect in a process of its own; return the scenarios. Raises UsageError."""
    with tempfile.TemporaryDirectory(prefix="chaos-list-") as folder:
        file = Path(folder) / "scenarios.json"
        pytest = (sys.executable, "-m", "pytest")
        command = [*pytest, "--collect-only", "-q", f"--chaos-list-json={file}", "-m", "chaos", "--", *paths]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode not in {0, _NOTHING_COLLECTED} or not file.exists():
            shown = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_LINES_SHOWN:])
            msg = f"pytest could not collect the scenarios (exit {done.returncode}); it said:\n{shown}"
            raise UsageError(msg)
        return msgspec.json.decode(file.read_bytes(), type=tuple[ListedScenario, ...])
