"""The command ``chaos points``: what there is in a program to stop at, and the code that does.

It is a run without pytest: the program is started once, as an agent with a survey.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from pytest_chaos.cli.documents import ListedPlace, PointsDocument
from pytest_chaos.errors import SpawnError, UsageError, WaitExpired
from pytest_chaos.runtime.agent import check_bound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.explore.target import Subject
    from pytest_chaos.runtime.agent import Agent
    from pytest_chaos.runtime.marks import Marks
    from pytest_chaos.runtime.run import Run
    from pytest_chaos.trace.survey import PlaceToStop

_INCONCLUSIVE: Final = 2
_TIMEOUT_S: Final = 60.0
_DRAWN: Final = re.compile(r"[0-9a-f]{6,}|\d{2,}|[A-Za-z0-9_]{8}(?=\.|$)")
"""A part of a name that another execution may draw anew: digits, or eight letters of tempfile."""


@click.command()
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="TARGET | -- COMMAND...")
@click.option("--timeout", "timeout_s", type=float, default=_TIMEOUT_S, show_default=True, help="Seconds for the run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def points(*, words: tuple[str, ...], timeout_s: float, as_json: bool) -> None:
    """List what there is to stop at in TARGET: named points, and durable steps.

    TARGET is module:function or path/to/file.py:function, as chaos.spawn takes it, or a target of
    chaos explore (module:Target). In place of it, give a command after --. It is executed once, in
    an empty folder; each line has the code to paste into a plan, how often the program came there,
    and the program's own line.

    Exits 0 when something was found, 2 when the program failed, was ended after --timeout, or
    passed nothing, 3 for a mistake in the call.
    """
    if not words:
        msg = "points must get a target, module:function, or a command after --; got nothing. Give one of them"
        raise UsageError(msg)
    check_bound(timeout_s)
    is_command = len(words) > 1 or (":" not in words[0] and not words[0].endswith(".py") and shutil.which(words[0]))
    found = survey(None if is_command else words[0], words, timeout_s=timeout_s)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
    else:
        _print(found)
    if found.problem or not found.places:
        raise click.exceptions.Exit(_INCONCLUSIVE)


def survey(target: str | None, argv: Sequence[str], *, timeout_s: float) -> PointsDocument:
    """Execute a program once, and return the places that it came to. Raises UsageError."""
    from pytest_chaos.model.values import Scenario
    from pytest_chaos.runtime.agent import GuardianClient
    from pytest_chaos.runtime.journal import Journal, RunHeader
    from pytest_chaos.runtime.run import Run

    with tempfile.TemporaryDirectory(prefix="chaos-points-") as scratch:
        folder = Path(scratch).resolve()
        header = RunHeader(
            run_id="points",
            node_id="chaos points",
            scenario=Scenario(id="points", title="points"),
            seed=secrets.token_hex(4),
            session_folder=scratch,
        )
        with GuardianClient(folder) as client:
            run = Run(Journal(folder / "run"), header, lambda: client)
            try:
                return _surveyed(run, target, argv, timeout_s)
            finally:
                run.conclude()


def _surveyed(run: Run, target: str | None, argv: Sequence[str], timeout_s: float) -> PointsDocument:
    from pytest_chaos.trace.survey import read

    subject = _subject(target) if target is not None else None
    kwargs = {} if subject is None else {"target": _absolute(target or ""), "directory": str(run.directory)}
    try:
        if subject is not None:
            run.spawn(f"{__name__}:set_up", kwargs=kwargs, name="setup").wait_exit(timeout_s=timeout_s)
        path = run.begin_survey(steps=True, lines=True)
        started: Any = (
            argv if target is None else f"{__name__}:run_target" if subject is not None else _absolute(target)
        )
        agent = run.spawn(started, kwargs=kwargs, name="target", may_fail=True)
    except SpawnError as error:
        msg = f"the target must be one that can be started; got: {error}. Give module:function or file.py:function"
        raise UsageError(msg) from None
    problem = run.steps.problem
    try:
        status = agent.wait_exit(timeout_s=timeout_s)
        ended = f"it ended with {status}"
        if not status.ok:
            problem = f"{ended}{_said(agent)}"
    except WaitExpired:
        problem = ended = f"it did not end within {timeout_s:g} s, and was ended"
    return PointsDocument(places=_places(list(read(path)), str(run.directory)), ended=ended, problem=problem)


def _absolute(target: str) -> str:
    """Return a target as an agent finds it, which works in another folder."""
    module_name, separator, name = target.partition(":")
    return f"{Path(module_name).resolve() if module_name.endswith('.py') else module_name}{separator}{name}"


def _said(agent: Agent) -> str:
    lines = agent.output().strip().splitlines()
    return f"; it printed last: {lines[-1]}" if lines else ""


def _subject(target: str) -> Subject | None:
    """Return a target of an exploration; None for a plain function. Raises UsageError."""
    import inspect

    from pytest_chaos.explore.target import load_subject
    from pytest_chaos.runtime import child

    sys.path[:0] = [place for place in (str(Path.cwd()),) if place not in sys.path]  # as python -m has it
    module_name, _, name = target.rpartition(":")
    if module_name and name:
        try:
            module: Any = child.load(module_name)
            found: Any = module
            for part in name.split("."):
                if (found := getattr(found, part, None)) is None:
                    break
        except (Exception, SystemExit) as error:
            msg = (
                f"the target must be one that can be imported; got {type(error).__name__}: {error}. "
                "Give module:function or file.py:function"
            )
            raise UsageError(msg) from error
        if found is None:
            known = [
                key
                for key, value in vars(module).items()
                if not key.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__
            ]
            msg = (
                f"the target must be defined in {module_name}; got {name}. It defines: {', '.join(known) or 'nothing'}"
            )
            raise UsageError(msg)
        if inspect.isfunction(found):
            return None
    subject = load_subject(target)
    if subject.is_server:
        msg = f"the target must be a program that ends; got the server {target}. Give its command after --"
        raise UsageError(msg)
    return subject


def set_up(target: str, directory: str) -> None:
    """Do what a target's ``setup`` does, as an agent."""
    from pytest_chaos.explore.target import load_subject

    load_subject(target).setup(Path(directory))


def run_target(marks: Marks, target: str, directory: str) -> None:
    """Be a target of an exploration, as an agent."""
    from pytest_chaos.explore.target import load_subject
    from pytest_chaos.runtime.marks import MARKS_VARIABLE

    del marks
    program = load_subject(target).program(Path(directory), Path(os.environ[MARKS_VARIABLE]))
    assert callable(program)  # noqa: S101 - a class or functions; commands come with --
    program()


def _places(stops: list[PlaceToStop], directory: str) -> list[ListedPlace]:
    """Return the places of a survey, in the order in which the program first came to each."""
    from pytest_chaos.trace.survey import MARK

    inside = directory + "/"
    counted: Counter[tuple[str, str, str, str]] = Counter()
    for stop in stops:
        if stop.kind == MARK:  # it is there for its place in the order
            continue
        path = stop.path.removeprefix(inside)
        counted[stop.kind, stop.name, _pattern(path), stop.line] += 1
    return [
        ListedPlace(kind=kind, name=name, path=path, times=count, line=line, code=_code(kind, name, path))
        for (kind, name, path, line), count in counted.items()
    ]


def _pattern(path: str) -> str:
    """Return a path as a pattern: what another execution may draw anew becomes a star."""
    folder, separator, name = path.rpartition("/")
    return folder + separator + re.sub(r"\*[*.\-_]*\*", "*", _DRAWN.sub("*", name))


def _code(kind: str, name: str, path: str) -> str:
    last = path.rpartition("/")[2]
    of = f', path="{last}"' if last and last != "*" else ""
    return f'at_{kind}("{name}"{of})'


def _print(found: PointsDocument) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pytest_chaos.model.verdict import harmless

    if found.places:
        table = Table(box=box.SIMPLE)
        for column in ("code", "times", "path", "line"):
            table.add_column(column, overflow="fold", justify="right" if column == "times" else "left")
        for each in found.places:
            cells = (each.code, f"{each.times:,}", each.path, each.line)
            table.add_row(*(Text(harmless(cell)) for cell in cells))
        Console(highlight=False).print(table)
    else:
        click.echo("it passed no named point, and made no durable step in its folder")
    click.echo(harmless(found.problem or found.ended))
