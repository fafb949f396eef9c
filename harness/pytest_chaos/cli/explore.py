"""The commands ``chaos explore`` and ``chaos init``: what a user gives, a bar while it goes on, and what came of it.

Exit codes are those of ``chaos``: 0 held, 1 violated, 2 inconclusive, 3 a mistake in the call, 4 an
error of ours.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pytest_chaos.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID

    from pytest_chaos.explore.report import Discovery, Exploration
    from pytest_chaos.explore.session import Options, Progress
    from pytest_chaos.explore.target import Subject

if TYPE_CHECKING:  # older versions of click have a plain class
    _DurationBase = click.ParamType[float]
    _ListedBase = click.ParamType[tuple[str, ...]]
else:
    _DurationBase = _ListedBase = click.ParamType

RESULTS: Final = Path("chaos-results")
_UNITS_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?")
_FAMILIES: Final = ("crash", "recovery", "power", "io")
_SHOWN: Final = 20
_NAME_CHARACTERS_MAX: Final = 40
_EXITS: Final = {"HELD": 0, "VIOLATED": 1, "INCONCLUSIVE": 2}
_DESTINATION: Final = click.Path(path_type=Path, dir_okay=False)
_FOLDER: Final = click.Path(path_type=Path, file_okay=False)


class _Duration(_DurationBase):
    """A time such as ``60s``, ``5m`` or ``1h``; a number alone is seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"a time reads 60s, 5m or 1h, and this is {value!r}", param, ctx)
        return float(match[1]) * _UNITS_S[match[2] or ""]


class _Listed(_ListedBase):
    """Some of several words, with commas between them."""

    name = "list"

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        given = tuple(word.strip() for word in str(value).split(",") if word.strip())
        if not given or set(given) - set(self._words):
            wrong = ", ".join(sorted(set(given) - set(self._words))) or "nothing"
            self.fail(f"there are {', '.join(self._words)}, and this is {wrong}", param, ctx)
        return tuple(word for word in self._words if word in given)


@click.command()
@click.argument("target", required=False)
@click.option("--run", "run_command", help="A command to explore, in any language; it is run in a folder of its own.")
@click.option("--check", "check_command", help="The command that judges the folder: findings on lines, exit 0 or 1.")
@click.option(
    "--faults", type=_Listed(_FAMILIES), default=",".join(_FAMILIES), show_default=True, help="What to explore."
)
@click.option(
    "--model", type=click.Choice(["strict", "ext4", "both"]), default="both", show_default=True,
    help="What a file system is taken to promise when power fails.",
)  # fmt: skip
@click.option("--jobs", type=int, default=1, show_default=True, help="Worker processes that judge states.")
@click.option("--budget", type=_Duration(), help="Time in all: 60s, 5m, 1h. Without it everything is explored.")
@click.option("--seed", help="Draws what is sampled; drawn itself, and printed, when it is not given.")
@click.option("--samples", type=int, help="Power-loss states of a moment that allows more than 64.  [default: 24]")
@click.option("--recoveries", type=int, help="Crash states whose recovery is interrupted.  [default: 64]")
@click.option("--io-runs", type=int, help="I/O errors that a run is told of, each one run.  [default: 2000]")
@click.option("--json", "json_file", type=_DESTINATION, help="Write the result there as JSON.")
@click.option("--state", help="Build this state alone, keep it, and judge it; a report names it.")
@click.option("--results", type=_FOLDER, default=RESULTS, show_default=True, help="Where failing states are kept.")
@click.option("--scratch", type=_FOLDER, help="Where states are written.  [default: memory, /dev/shm]")
@click.option(
    "--source", type=click.Choice(["seccomp", "audit"]),
    help="How steps are seen: system calls, or a Python program's audit events.  [default: what works here]",
)  # fmt: skip
@click.option("--run-timeout", type=_Duration(), default="60s", show_default=True, help="Time for one run.")
@click.option("--check-timeout", type=_Duration(), default="10s", show_default=True, help="Time for one check.")
@click.option("--fresh", is_flag=True, help="Begin again, whatever an interrupted exploration has done.")
def explore(
    *,
    target: str | None,
    run_command: str | None,
    check_command: str | None,
    faults: tuple[str, ...],
    model: str,
    jobs: int,
    budget: float | None,
    seed: str | None,
    samples: int | None,
    recoveries: int | None,
    io_runs: int | None,
    json_file: Path | None,
    state: str | None,
    results: Path,
    scratch: Path | None,
    source: str | None,
    run_timeout: float,
    check_timeout: float,
    fresh: bool,
) -> None:
    """Find every state that a crash, a power loss or an I/O error leaves of TARGET, and judge each.

    TARGET is module:Target or path/to/file.py:Target, a class with run(directory, marks) and
    check(directory, marks). Instead of it, --run and --check give two commands.
    """
    from pytest_chaos.explore.report import Family
    from pytest_chaos.explore.session import IO_RUNS, RECOVERIES, Options
    from pytest_chaos.explore.simulate.power import SAMPLES, Model
    from pytest_chaos.model.seed import draw_seed, normalise_seed

    subject, command = _subject(target, run_command, check_command, check_timeout)
    options = Options(
        seed=normalise_seed(seed) if seed is not None else draw_seed(),
        families=tuple(Family(each) for each in faults),
        models=tuple(Model) if model == "both" else (Model(model),),
        jobs=jobs,
        budget_s=budget,
        samples=SAMPLES if samples is None else samples,
        recoveries=RECOVERIES if recoveries is None else recoveries,
        io_runs=IO_RUNS if io_runs is None else io_runs,
        run_timeout_s=run_timeout,
        check_timeout_s=check_timeout,
    )
    if state is not None:
        raise click.exceptions.Exit(_show_state(subject, options, state, results, scratch))
    if json_file is not None:
        _check_json(json_file)
    explored = run_and_show(subject, options, command, results=results, scratch=scratch, source=source, fresh=fresh)
    if json_file is not None:
        _write_json(explored, json_file)
    raise click.exceptions.Exit(exit_code(explored))


def exit_code(explored: Exploration) -> int:
    """Return the exit code of ``chaos`` that a verdict has."""
    return _EXITS[explored.verdict.name]


def _subject(
    target: str | None, run_command: str | None, check_command: str | None, check_timeout_s: float
) -> tuple[Subject, str]:
    """Return what is to be explored, and the beginning of the command that explores it again."""
    from pytest_chaos.explore.target import CommandSubject, load_subject, words_of

    if (target is None) == (run_command is None):
        msg = "give either a target, module:Target or file.py:Target, or the two commands --run and --check"
        raise UsageError(msg)
    if target is not None:
        return load_subject(target), f"chaos explore {shlex.quote(target)}"
    run, check = words_of(run_command or "", "--run"), words_of(check_command or "", "--check")
    again = f"chaos explore --run {shlex.quote(run_command or '')} --check {shlex.quote(check_command or '')}"
    return CommandSubject(run, check, timeout_s=check_timeout_s), again


def run_and_show(
    subject: Subject,
    options: Options,
    command: str,
    *,
    results: Path,
    scratch: Path | None = None,
    source: str | None = None,
    fresh: bool = False,
) -> Exploration:
    """Explore, with a bar where there is a terminal, and print what came of it."""
    from pytest_chaos.explore.launch import launch

    folder = results / "explore" / _folder_name(subject)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (ignore := results / ".gitignore").exists():
            ignore.write_text("*\n")
    except OSError as error:
        msg = f"failing states cannot be kept in {folder} ({error.strerror}): give another folder with --results"
        raise UsageError(msg) from error
    progress = folder / "progress.json"
    if fresh:
        progress.unlink(missing_ok=True)
    with _bar() as listen:
        explored = launch(
            subject,
            options,
            base=scratch,
            source_name=source,
            kept=folder / f"states-{_file_name(options.seed)}",
            progress=progress,
            command=command,
            listen=listen,
        )
    _show(explored)
    return explored


def _folder_name(subject: Subject) -> str:
    """Return what a target's folder is called: its name, and a digest of its place, as two may have one name."""
    digest = blake2b(f"{subject.name}\0{subject.place}".encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return f"{_file_name(subject.name)[:_NAME_CHARACTERS_MAX] or 'target'}-{digest}"


def _file_name(text: str) -> str:
    """Return a text without what leads out of a folder: a target and a seed may be called anything."""
    return re.sub(r"[^\w.-]+", "-", text)


class _bar:  # noqa: N801 - used like a function, as a context
    """A bar with a live count on a terminal; nothing where standard error is none."""

    def __enter__(self) -> Callable[[Progress], None]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._progress.start()
        self._tasks: dict[str, TaskID] = {}
        return self._listen

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _listen(self, now: Progress) -> None:
        if now.family not in self._tasks:
            self._tasks[now.family] = self._progress.add_task(now.family, total=None, count="")
        count = f"{now.states:,} states, {now.findings} findings"
        task = self._tasks[now.family]
        self._progress.update(task, total=now.total or None, completed=now.done, count=count)


def _show(explored: Exploration) -> None:
    """Print the families as a table, then each finding with its reproduction."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE, title=f"{explored.target}: {explored.steps:,} durable steps", title_justify="left")
    for column in ("fault", "verdict", "coverage", "states", "confirmed"):
        table.add_column(column, overflow="fold")
    for family in explored.families:
        style = _STYLES[family.verdict.name]
        cells = (str(family.family), family.coverage, f"{family.states:,}", f"{family.confirmed:,}")
        table.add_row(Text(cells[0]), Text(family.verdict.name, style=style), *map(Text, cells[1:]))
    if explored.families:
        console.print(table)
    for line in _lines(explored):
        click.echo(line)
    click.echo(f"{explored.verdict.name}: {explored.coverage}; seed {explored.seed}, {explored.duration_s:.1f} s")


_STYLES: Final = {"HELD": "green", "INCONCLUSIVE": "yellow", "VIOLATED": "red"}


def _lines(explored: Exploration) -> Iterator[str]:
    shown = {(found.code.partition(":")[0], found.signature): found for found in reversed(explored.discoveries)}
    for found in [found for found in explored.discoveries if found in shown.values()][:_SHOWN]:
        yield harmless(found.reproduction or _short(found))
    if (more := len(shown) - _SHOWN) > 0:
        yield f"and {more} more findings, which the JSON has"
    told = {found.signature for found in explored.discoveries}
    for finding in explored.all_findings:
        if finding.signature not in told:  # what every family says is told once
            told.add(finding.signature)
            yield harmless(f"[{finding.signature}] {finding.text}")
    for note in explored.notes:
        yield harmless(f"note: {note}")


def _short(found: Discovery) -> str:
    return f"[{found.signature}] {found.text} ({found.label}, {found.state})"


def harmless(text: str) -> str:
    """Return text that cannot steer a terminal: what a target says may hold escape sequences."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def _write_json(explored: Exploration, path: Path) -> None:
    from pytest_chaos.explore.report import to_json

    try:
        path.write_text(json.dumps(to_json(explored), indent=1) + "\n")
    except OSError as error:
        msg = f"the result cannot be written to {path} ({error.strerror}): give another file with --json"
        raise UsageError(msg) from error


def _check_json(path: Path) -> None:
    """Raise UsageError for a file that cannot be written: to learn that after hours is too late."""
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "that cannot be written" if path.parent.is_dir() else "there is no such folder"
        msg = f"the result cannot be written to {path} ({reason}): give another file with --json"
        raise UsageError(msg)


def _show_state(subject: Subject, options: Options, code: str, results: Path, scratch: Path | None) -> int:
    """Build one state, keep it under the results, print what the check says of it, and return the exit code."""
    from pytest_chaos.explore.single import judge_state

    folder = results / "explore" / "state"
    judged = judge_state(subject, options, code, folder, base=scratch)
    click.echo(f"{code}: {harmless(judged.state)}")
    click.echo(f"the state is in {folder}")
    for finding in judged.findings:
        click.echo(harmless(f"[{finding.signature}] {finding.text}"))
    click.echo(judged.verdict.name)
    return _EXITS[judged.verdict.name]
