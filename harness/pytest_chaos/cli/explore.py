"""The command ``chaos explore``: options in, a progress bar, then a table and findings.

On a terminal there is a bar and a table. Into a pipe go plain lines,
and progress at most each 10 s.

Exit codes are those of ``chaos``: 0 held, 1 violated, 2 inconclusive, 3 a mistake in the call, 4 an
error of ours.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from hashlib import blake2b
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import msgspec

from pytest_chaos.cli.baseline import EXITS, SHOWN_MAX, KnownFindings, counted, lines_of
from pytest_chaos.cli.progress import Bar, Lines
from pytest_chaos.errors import UsageError
from pytest_chaos.explore.causes import clipped, one_line
from pytest_chaos.explore.options import (
    ALL,
    CHECK_TIMEOUT_S,
    IO_RUNS,
    OPERATIONS,
    RECOVERIES,
    RUN_TIMEOUT_S,
    WATCHES,
    WORKLOADS,
    Options,
)
from pytest_chaos.explore.report import Exploration, Family
from pytest_chaos.explore.session import set_aside, unfinished_seed
from pytest_chaos.explore.simulate.power import SAMPLES, Model
from pytest_chaos.model.seed import draw_seed, normalise_seed
from pytest_chaos.model.story import FILE_NAME as STORY
from pytest_chaos.model.values import Verdict
from pytest_chaos.model.verdict import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Set as AbstractSet

    from pytest_chaos.explore.baseline import AgainstBaseline
    from pytest_chaos.explore.causes import Cause
    from pytest_chaos.explore.inspection import StateDocument
    from pytest_chaos.explore.report import FamilyResult
    from pytest_chaos.explore.target import Subject

if TYPE_CHECKING:  # older versions of click have a plain class
    _DurationBase = click.ParamType[float]
    _ListedBase = click.ParamType[tuple[Family, ...]]
else:
    _DurationBase = _ListedBase = click.ParamType

RESULTS: Final = Path("chaos-results")
PAGES: Final = "chaos.pages"
"""Entry points that write the page of a folder: its path in; the page's path and the verdict out.
"""
_UNITS_S: Final = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?")
_NAME_CHARACTERS_MAX: Final = 40
_NOTICES_LESS: Final = 1
_DESTINATION: Final = click.Path(path_type=Path, dir_okay=False, allow_dash=True)
_FOLDER: Final = click.Path(path_type=Path, file_okay=False)
_BASELINE: Final = click.Path(path_type=Path)


class Duration(_DurationBase):
    """A time such as ``60s``, ``5m`` or ``1h``; a number alone is seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"a time must read 60s, 5m or 1h; got {value!r}", param, ctx)
        return float(match[1]) * _UNITS_S[match[2] or ""]


class _Families(_ListedBase):
    """A list of families, separated by commas."""

    name = "list"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Family, ...]:
        given = {word.strip() for word in str(value).split(",") if word.strip()}
        if not given or given - set(Family):
            wrong = ", ".join(sorted(given - set(Family))) or "nothing"
            self.fail(f"faults must be some of {', '.join(Family)}; got {wrong}", param, ctx)
        return tuple(family for family in Family if family in given)


@click.command()
@click.argument("target", required=False)
@click.option("--run", "run_command", help="A command to explore, in any language; it is run in a folder of its own.")
@click.option(
    "--check",
    "check_command",
    help="The command that judges the folder: exit 0 and silence, or exit 1 and one finding a line.",
)
@click.option(
    "--oracle", type=click.Choice(["restart"]),
    help="In place of --check: a run that was killed and started again must end as one that was not.  [default: with "
    "--run alone]",
)  # fmt: skip
@click.option("--compare-output", is_flag=True, help="A restart must print what each complete run prints, too.")
@click.option("--serve", "serve_command", help="In place of --run: a server; {port} in all commands is a free port.")
@click.option("--ready", help="When it is ready: port:{port} (the default), a number, output:TEXT, or a file's name.")
@click.option("--drive", "drive_command", help="The client that uses the server; it writes the marks.")
@click.option(
    "--recover", "recover_command", help="The command that a restart is, before each check; exit 0 if it works."
)
@click.option("--setup", "setup_command", help="The command that puts into the folder what is there before --run.")
@click.option(
    "--faults",
    "families",
    type=_Families(),
    default=None,
    help=f"What to explore.  [default: {','.join(Family)}; with --run alone crash]",
)
@click.option(
    "--model", type=click.Choice([*map(str, Model), "both"]), default="both", show_default=True,
    help="What a file system is taken to promise when power fails.",
)  # fmt: skip
@click.option("--jobs", type=int, default=1, show_default=True, help="Worker processes that judge states.")
@click.option(
    "--cluster", default="", metavar="ADDRESS",
    help="Workers of Dask that judge, in place of --jobs: local:N, tcp://HOST:PORT or slurm:N.",
)  # fmt: skip
@click.option(
    "--budget", "budget_s", type=Duration(), help="Time in all: 60s, 5m, 1h. Without it everything is explored."
)
@click.option("--seed", help="Draws what is sampled; drawn itself, and printed, when it is not given.")
@click.option(
    "--samples",
    type=int,
    default=SAMPLES,
    show_default=True,
    help="Power-loss states of a moment that allows more than 64.",
)
@click.option(
    "--recoveries", type=int, default=RECOVERIES, show_default=True, help="Crash states whose recovery is interrupted."
)
@click.option(
    "--io-runs", type=int, default=IO_RUNS, show_default=True, help="I/O errors that are made, each in a run."
)
@click.option(
    "--workloads", type=int, default=WORKLOADS, show_default=True, help="Workloads to draw of a state machine."
)
@click.option(
    "--operations", type=int, default=OPERATIONS, show_default=True, help="Operations of such a workload, at most."
)
@click.option(
    "--schedules",
    type=int,
    default=0,
    help="Orders of threads and processes to record.  [default: 1 if one thread does the same twice, else 5]",
)
@click.option(
    "--victim", metavar="all|each|NAME", default=ALL, show_default=True,
    help="What a crash ends: all processes at once, or also each of them alone, or those of this name, and the "
    "others go on.",
)  # fmt: skip
@click.option(
    "--watch", multiple=True, type=click.Choice(WATCHES),
    help="Look in one more run for what corrupts a SQLite database: dropped locks, replaced files, copies.",
)  # fmt: skip
@click.option("--doubt", is_flag=True, help="Try the check, too: does it notice what damaged runs of it would leave?")
@click.option(
    "--at-least", "share_min", type=click.FloatRange(0, 1), help="With --doubt: exit 1 unless this share is noticed."
)
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Files that are no data, such as '*.log'; repeatable.")
@click.option(
    "--volatile", multiple=True, metavar="PATTERN",
    help="Files that no power loss leaves, such as 'run/*.pid': locks and shared memory; without a check, also what "
    "a restart may leave otherwise: 'logs/**', 'app.db:TABLE.COLUMN'; repeatable.",
)  # fmt: skip
@click.option(
    "--json", "json_file", type=_DESTINATION, help="Write the result there as JSON; - prints it, and nothing else."
)
@click.option(
    "--baseline", type=_BASELINE, help="Known findings, which do not fail it: only what is not in this file does."
)
@click.option("--write-baseline", type=_BASELINE, help="Write what was found there, as known findings, and exit 0.")
@click.option("--state", help="Build this state alone, keep it, and judge it; a report names it.")
@click.option("--results", type=_FOLDER, default=RESULTS, show_default=True, help="Where failing states are kept.")
@click.option("--scratch", type=_FOLDER, help="Where states are written.  [default: memory, /dev/shm]")
@click.option(
    "--source", type=click.Choice(["seccomp", "audit"]),
    help="How steps are seen: system calls, or a Python program's audit events.  [default: what works here]",
)  # fmt: skip
@click.option(
    "--run-timeout",
    "run_timeout_s",
    type=Duration(),
    default=f"{RUN_TIMEOUT_S:g}s",
    show_default=True,
    help="Time for one run.",
)
@click.option(
    "--check-timeout",
    "check_timeout_s",
    type=Duration(),
    default=f"{CHECK_TIMEOUT_S:g}s",
    show_default=True,
    help="Time for one check.",
)
@click.option("--fresh", is_flag=True, help="Begin again, whatever an interrupted exploration has done.")
def explore(
    *,
    target: str | None,
    run_command: str | None,
    serve_command: str | None,
    ready: str | None,
    drive_command: str | None,
    check_command: str | None,
    recover_command: str | None,
    setup_command: str | None,
    oracle: str | None,
    compare_output: bool,
    share_min: float | None,
    model: str,
    seed: str | None,
    json_file: Path | None,
    baseline: Path | None,
    write_baseline: Path | None,
    state: str | None,
    results: Path,
    fresh: bool,
    check_timeout_s: float,
    **chosen: Any,
) -> None:
    """Find every state that a crash, a power loss or an I/O error leaves of TARGET, and judge each.

    TARGET is module:Target or path/to/file.py:Target, a class with run(directory, marks) and
    check(directory, marks), or a RuleBasedStateMachine of Hypothesis, of which workloads are drawn.
    Instead of it, --run and --check give two commands, and --recover and
    --setup two more if they are needed. With --run alone a state is judged by a restart: run again
    to its end, the program must leave what an unkilled run leaves. A server has --serve, --drive
    (its client) and --check: a restart is its start on the state. A command says with marks what it
    has promised: one line a mark, appended to the file that CHAOS_MARKS names; see chaos mark
    --help.

    A program with findings that are to be mended later gets a baseline: --write-baseline FILE once,
    then --baseline FILE. What is in it is told as KNOWN; what is new fails.

    With --doubt the check is tried, once the program has held: the recording is damaged (a flush
    left out, two writes swapped, a rename before its data, a write missing), and what the check
    lets pass is listed by program line. That says nothing of the program.

    Exits 0 when all held, or all that was found is in the baseline; 1 when something was violated,
    with a baseline something new, or when the check notices less than --at-least; 2 when it was
    inconclusive or ended early, or the baseline is damaged, of another target or of another
    version; 3 for a mistake in the call.
    """
    commands = {"run": run_command, "serve": serve_command, "ready": ready, "drive": drive_command}
    commands |= {"check": check_command, "recover": recover_command, "setup": setup_command}
    if share_min is not None and not chosen["doubt"]:
        msg = "--at-least must come with --doubt, which tries the check; got no --doubt. Add it"
        raise UsageError(msg)
    restart = RestartOptions(oracle is not None, compare_output, chosen["volatile"])
    subject, command = _subject(target, commands, check_timeout_s, restart)
    for option in ("ignore", "volatile", "watch"):
        command += "".join(f" --{option} {shlex.quote(pattern)}" for pattern in chosen[option])
    chosen["families"] = chosen["families"] or ((Family.CRASH,) if subject.is_by_restart else tuple(Family))
    models = tuple(Model) if model == "both" else (Model(model),)
    chosen |= {"models": models, "check_timeout_s": check_timeout_s}
    options = options_for(subject, command, results, seed, fresh=fresh or state is not None, **chosen)
    known = KnownFindings(subject, baseline, write_baseline, is_state=state is not None)
    with contextlib.redirect_stdout(sys.stderr) if str(json_file) == "-" else contextlib.nullcontext():
        code, found = _explored(subject, options, known, state, json_file, results, fresh=fresh)
    if json_file is not None:
        _write_json(found, json_file)
    doubt = getattr(found, "doubt", None)
    if share_min is not None and doubt is not None and doubt.share < share_min:
        click.echo(f"the check notices {doubt.share:.0%} of the damages, less than {share_min:.0%}", err=True)
        code = code or _NOTICES_LESS
    raise click.exceptions.Exit(code)


def _explored(
    subject: Subject,
    options: Options,
    known: KnownFindings,
    state: str | None,
    json_file: Path | None,
    results: Path,
    *,
    fresh: bool,
) -> tuple[int, msgspec.Struct]:
    """Explore, or build one state; return the exit code and the document."""
    from pytest_chaos.explore.document import document

    if json_file is not None:
        _check_json(json_file)
    if state is not None:
        return _show_state(subject, options, state, results / "explore" / "state")
    if fresh and options.progress is not None:
        set_aside(options.progress)
    explored = _run(subject, options)
    comparison = known.compared(explored)
    _show(explored, options, comparison, known.name)
    code = exit_code(explored) if comparison is None else EXITS[comparison.verdict]
    return known.write(explored, code), document(explored, comparison)


def options_for(
    subject: Subject, command: str, results: Path, seed: str | None, *, fresh: bool = False, **chosen: Any
) -> Options:
    """Return the options of an exploration that keeps its files in the results folder.

    Without a given seed, the seed of a stopped exploration of this target is used, unless
    ``fresh``.
    """
    folder = results / "explore" / _folder_name(subject)
    wanted = Options(seed="-", command=command, **chosen)
    found = unfinished_seed(folder, wanted.choice) if seed is None and not fresh else None
    if found is not None:
        text = f"goes on with the exploration of {subject.name} that was stopped (seed {found}); --fresh begins anew"
        click.echo(harmless(text), err=True)
    drawn = normalise_seed(seed) if seed is not None else found or draw_seed()
    return msgspec.structs.replace(
        wanted,
        seed=drawn,
        kept=folder / f"states-{_file_name(drawn)}",
        progress=folder / f"progress-{wanted.choice}-{_digest(drawn)}.json",
    )


def _digest(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=4).hexdigest()


def exit_code(explored: Exploration) -> int:
    """Return the exit code of ``chaos`` that an exploration has."""
    return code_of(explored.verdict)


def code_of(verdict: Verdict) -> int:
    """Return the exit code of ``chaos`` that a verdict has."""
    return EXITS[verdict.name]


class RestartOptions(NamedTuple):
    """Options of the restart as the oracle: is it asked for, is output compared, what varies."""

    is_asked: bool
    output: bool
    volatile: tuple[str, ...]


def _subject(
    target: str | None, commands: Mapping[str, str | None], check_timeout_s: float, restart: RestartOptions
) -> tuple[Subject, str]:
    """Return the target, and the start of the command that explores it. Raises UsageError."""
    from pytest_chaos.explore.server.started import FREE_PORT
    from pytest_chaos.explore.server.subject import ServerCommands
    from pytest_chaos.explore.target import CommandSubject, load_subject, words_of

    given = {name: text for name, text in commands.items() if text is not None}
    ways = [way for way in ("run", "serve") if way in given]
    if (target is not None) + len(ways) != 1:
        got = "none of them" if not ways else "several"
        rule = "module:Target, file.py:Target, --run with --check, or --serve with --drive and --check"
        msg = f"a target must be {rule}; got {got}. Give one of them"
        raise UsageError(msg)
    _check_restart(restart, given.keys(), target)
    if target is not None:
        if given:
            msg = f"--{next(iter(given))} must come with --run; got the target {target!r}. Give its method instead"
            raise UsageError(msg)
        return load_subject(target), f"chaos explore {shlex.quote(target)}"
    way = ways[0]
    for name, what in (("drive", "the client that uses the server"), ("check", "the command that judges a state")):
        if name not in given and way != "run":
            msg = f"--{way} must come with --{name}, {what}; got none. Give --{name}"
            raise UsageError(msg)
    if way == "run" and (alien := given.keys() & {"ready", "drive"}):
        msg = f"--{min(alien)} must come with --serve; got --run. Give --serve in place of --run"
        raise UsageError(msg)
    words: dict[str, Any] = {name: words_of(text, f"--{name}") for name, text in given.items() if name != "ready"}
    again = " ".join(["chaos explore", *(f"--{name} {shlex.quote(text)}" for name, text in given.items())])
    if way == "run" and "check" not in given:
        return _by_restart(words, again, check_timeout_s, restart)
    if way == "run":
        return CommandSubject(**words, timeout_s=check_timeout_s), again
    return ServerCommands(**words, ready=given.get("ready", FREE_PORT), timeout_s=check_timeout_s), again


def _check_restart(restart: RestartOptions, given: AbstractSet[str], target: str | None) -> None:
    """Raise UsageError for options of the restart that do not go with the others."""
    others = sorted(given & {"check", "recover", "serve"}) + ["TARGET"] * (target is not None)
    if restart.is_asked and others:
        msg = f"--oracle restart must come with --run alone; got {others[0]}. The restart is --run once more"
        raise UsageError(msg)
    if restart.output and (others or "run" not in given):
        got = others[0] if others else "no --run"
        msg = f"--compare-output must come with --run alone, where a restart is the check; got {got}. Leave it out"
        raise UsageError(msg)


def _by_restart(
    words: Mapping[str, Any], again: str, check_timeout_s: float, restart: RestartOptions
) -> tuple[Subject, str]:
    from pytest_chaos.explore.restart.subject import RestartSubject

    if "recover" in words:
        msg = "--recover must come with --check; got --run alone, whose restart is --run once more. Leave it out"
        raise UsageError(msg)
    again += " --compare-output" * restart.output
    subject = RestartSubject(
        words["run"], setup=words.get("setup", ()), volatile=restart.volatile, output=restart.output,
        timeout_s=check_timeout_s,
    )  # fmt: skip
    return subject, again


def run_and_show(subject: Subject, options: Options) -> Exploration:
    """Explore, with a bar on a terminal, and print the result."""
    explored = _run(subject, options)
    _show(explored, options)
    return explored


def _run(subject: Subject, options: Options) -> Exploration:
    from pytest_chaos.explore.launch import launch

    _make_folder(options)
    lines = contextlib.nullcontext(Lines(options.budget_s).listen)
    with Bar() if sys.stderr.isatty() else lines as listen:
        return launch(subject, options, listen=listen)


def _show_page(explored: Exploration, options: Options) -> None:
    """Write the failure page of a violated exploration, if a report that can is installed."""
    states = options.kept
    if explored.verdict is not Verdict.VIOLATED or states is None or not (states / STORY).is_file():
        return
    for entry in entry_points(group=PAGES):
        try:
            page, _ = entry.load()(states)
        except Exception as error:  # noqa: BLE001 - a page is an extra, and changes no verdict
            click.echo(harmless(f"the failure page could not be written: {error}"), err=True)
        else:
            click.echo(f"failure page: {harmless(str(page))}")


def _make_folder(options: Options) -> None:
    """Make the folder for progress and failing states, ignored by git. Raises UsageError."""
    assert options.progress is not None  # noqa: S101 - see options_for
    folder = options.progress.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (ignore := folder.parents[1] / ".gitignore").exists():
            ignore.write_text("*\n")
    except OSError as error:
        msg = f"--results must be a folder that can be written; got {folder}: {error.strerror}. Give another"
        raise UsageError(msg) from error


def _folder_name(subject: Subject) -> str:
    """Return the folder name of a target: its name, and a digest that also covers its file."""
    name = _file_name(subject.name)[:_NAME_CHARACTERS_MAX] or "target"
    return f"{name}-{_digest(f'{subject.name}{chr(0)}{subject.place}')}"


def _file_name(text: str) -> str:
    """Return a text as a file name: targets and seeds may hold any character."""
    return re.sub(r"[^\w.-]+", "-", text)


def _show(explored: Exploration, options: Options, known: AgainstBaseline | None = None, baseline: str = "") -> None:
    """Print the families, then each finding with its reproduction and its variants.

    What the baseline has is one line each.
    """
    steps = "1 durable step" if explored.steps == 1 else f"{explored.steps:,} durable steps"
    title = harmless(f"{explored.target}: {steps}")
    if sys.stdout.isatty():
        _show_table(explored, title)
    else:
        click.echo(title)
        for family in explored.families:
            counts = f"{family.states:,} judged, {family.confirmed:,} confirmed"
            click.echo(f"{family.family:<10} {family.judged:<13} {_result_of(family)}; {counts}")
    for line in _lines(explored, known):
        click.echo(line)
    for line in explored.doubt.lines() if explored.doubt is not None else ():
        click.echo(harmless(line))
    _show_page(explored, options)
    ending = f"seed {explored.seed}, {explored.duration_s:.1f} s"
    if known is None:
        click.echo(f"{explored.verdict.name}: {explored.outcome}; {ending}")
        return
    for line in lines_of(known, baseline):
        click.echo(harmless(line))
    outcome = explored.coverage if known.verdict in {"HELD", "KNOWN"} else explored.outcome
    click.echo(f"{known.verdict}: {counted(known, baseline)}{outcome}; {ending}")


def _result_of(family: FamilyResult) -> str:
    return (
        f"{family.outcome}; explored: {family.coverage}" if family.discoveries else family.unexplored or family.coverage
    )


def _show_table(explored: Exploration, title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, title=Text(title), title_justify="left")
    for column in ("fault", "verdict", "result", "states", "confirmed"):
        table.add_column(column, overflow="fold")
    for family in explored.families:
        style = _STYLES[family.verdict.name]
        cells = (str(family.family), _result_of(family), f"{family.states:,}", f"{family.confirmed:,}")
        table.add_row(Text(cells[0]), Text(family.judged, style=style), *map(Text, cells[1:]))
    if explored.families:
        Console(file=sys.stdout, highlight=False).print(table)


_STYLES: Final = {"HELD": "green", "INCONCLUSIVE": "yellow", "VIOLATED": "red"}


def _lines(explored: Exploration, known: AgainstBaseline | None = None) -> Iterator[str]:
    causes = [each for each in explored.causes if known is None or any(map(known.has_new, each.every))]
    for cause in causes[:SHOWN_MAX]:
        yield harmless(_told(cause))
    if (more := len(causes) - SHOWN_MAX) > 0:
        yield "and 1 more finding, which the JSON has" if more == 1 else f"and {more} more findings, which the JSON has"
    told = {cause.lead.signature for cause in explored.causes}
    for finding in explored.all_findings:
        if known is not None and finding.kind != "harness" and not known.has_new(finding):
            continue
        if finding.signature not in told:  # a finding of every family is shown once
            told.add(finding.signature)
            yield harmless(f"[{finding.signature}] {finding.text}")
    for note in explored.notes:
        yield harmless(f"note: {note}")


def _told(cause: Cause) -> str:
    """Return a cause as text: the reproduction of its lead, and a line for each variant."""
    found = cause.lead
    first = found.reproduction.rstrip("\n") or f"{clipped(one_line(found.text))} ({found.label}, {found.state})"
    return "\n".join([first, *(f"  also {line}" for line in cause.variant_lines()), ""])


def _write_json(found: msgspec.Struct, path: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(found), indent=1).decode()
    if str(path) == "-":
        click.echo(text)
        return
    try:
        path.write_text(text + "\n")
    except OSError as error:
        msg = f"--json must be a file that can be written; got {path}: {error.strerror}. Give another"
        raise UsageError(msg) from error


def _check_json(path: Path) -> None:
    """Raise UsageError for a file that cannot be written, before hours of exploration."""
    if str(path) != "-" and not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "that cannot be written" if path.parent.is_dir() else "there is no such folder"
        msg = f"--json must be a file that can be written; got {path}: {reason}. Give another"
        raise UsageError(msg)


def _show_state(subject: Subject, options: Options, code: str, folder: Path) -> tuple[int, StateDocument]:
    """Build and keep one state, print the findings of its check; return exit code and document."""
    from pytest_chaos.explore.inspection import StateDocument, described, write_known
    from pytest_chaos.explore.launch import judge_state

    judged = judge_state(subject, options, code, folder)
    click.echo(f"{code}: {harmless(judged.state)}")
    click.echo(f"the state is in {folder}")
    for finding in judged.findings:
        click.echo(harmless(f"[{finding.signature}] {finding.text}"))
    known = StateDocument(
        folder=str(folder), code=code, state=judged.state, target=subject.name, seed=options.seed,
        verdict=judged.verdict.name, findings=tuple(f"[{each.signature}] {each.text}" for each in judged.findings),
        again=f"{options.command} --seed {shlex.quote(options.seed)} --state '{code}'",
    )  # fmt: skip
    write_known(known := described(known, folder), folder)
    click.echo(judged.verdict.name)
    return EXITS[judged.verdict.name], known
