"""The ``chaos`` command.

Exit codes: 0 held or in order, 1 violated, 2 inconclusive, 3 a user's mistake (wrong options too:
click's own 2 is mapped), 4 an error of ours. An error is one sentence without a traceback;
``CHAOS_TRACEBACK=1`` shows where an error of ours came from.

More commands come from the entry-point group ``chaos.commands``, each a ``click.Command``. A
command that cannot be loaded is listed with the reason, and fails only when it is called.
"""

from __future__ import annotations

import enum
import os
import subprocess
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from pytest_chaos.cli.bank import bank
from pytest_chaos.cli.check import check
from pytest_chaos.cli.documents import CleanDocument, ReplayDocument, VerifyDocument
from pytest_chaos.cli.explore import RESULTS, explore
from pytest_chaos.cli.init import init
from pytest_chaos.cli.inspect import inspect_state
from pytest_chaos.cli.listing import list_scenarios
from pytest_chaos.cli.mark import mark
from pytest_chaos.cli.narrow.commands import bisect, explain, shrink
from pytest_chaos.cli.points import points
from pytest_chaos.cli.power.doubt import doubt
from pytest_chaos.cli.power.mutate import mutate
from pytest_chaos.cli.schema import GROUP, schema
from pytest_chaos.errors import ChaosError, UsageError
from pytest_chaos.evidence.redact import clean
from pytest_chaos.model.verdict import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from pytest_chaos.evidence.open import Pack
    from pytest_chaos.model.values import Json, Verdict

TRACEBACK: Final = "CHAOS_TRACEBACK"
_STANDARD_ERROR: Final = 2
_TEXTS_SHOWN: Final = 20
_TEXT_BYTES_SHOWN: Final = 4000
_MARKS_SHOWN: Final = 10


class Exit(enum.IntEnum):
    """The meaning of the exit code."""

    HELD = 0
    VIOLATED = 1
    INCONCLUSIVE = 2
    MISTAKE = 3
    OUR_ERROR = 4


class _Commands(click.Group):
    """A group whose further commands come from other distributions."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted({*super().list_commands(context), *_foreign()})

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        own = super().get_command(context, name)
        if own is not None or name not in _foreign():
            return own
        return _load(name, _foreign()[name])


def _foreign() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(name: str, entry: EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except Exception as error:  # noqa: BLE001 - other distributions must not break our commands
        return _broken(name, entry, f"{type(error).__name__}: {error}")
    return command if isinstance(command, click.Command) else _broken(name, entry, "it is not a click.Command")


def _broken(name: str, entry: EntryPoint, reason: str) -> click.Command:
    sentence = f"the command {name} of {entry.value} cannot be loaded: {reason}"

    def fail() -> NoReturn:
        raise _BrokenCommandError(sentence)

    return click.Command(name, callback=fail, short_help=sentence, help=sentence)


class _BrokenCommandError(Exception):
    """A command of another distribution cannot be loaded."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and end the process with its exit code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    try:
        with chaos.make_context("chaos", list(arguments)) as context:
            chaos.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        click.echo(clean(error.format_message() if _is_help(error) else _sentence(error)), err=True)
        return Exit.MISTAKE
    except ChaosError as error:
        click.echo(clean(f"chaos: {error}"), err=True)
        return Exit.MISTAKE
    except (click.Abort, KeyboardInterrupt):
        click.echo("chaos: interrupted", err=True)
        return Exit.INCONCLUSIVE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no reader is left: write nothing, nor at exit
        return Exit.INCONCLUSIVE  # what it would have said is not known here
    except Exception as error:  # noqa: BLE001 - the last resort: one sentence instead of a traceback
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        text = f"chaos: an error of its own, {type(error).__name__}: {error}; {TRACEBACK}=1 shows where it came from"
        click.echo(clean(text), err=True)
        return Exit.OUR_ERROR
    return Exit.HELD


def _is_help(error: click.ClickException) -> bool:
    """Whether an error is the help of a group that was called without a command."""
    return type(error).__name__ == "NoArgsIsHelpError"  # of click 8.2 and later


def _sentence(error: click.ClickException) -> str:
    """Return an error of click in one line, as every other one has."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return f"chaos: {text}"
    path = context.command_path
    return f"{path}: {text}. {path} --help says what there is"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
@click.version_option(package_name="pytest-chaos")
def chaos() -> None:
    """Prove, or disprove, that a program survives being killed, paused and raced.

    Exits 0 when all held, 1 when something was violated, 2 when it was inconclusive, 3 for a
    mistake in the call, 4 for an error of its own. What a code means for a command stands at the
    end of its --help. Every command has --json; chaos schema prints what it looks like.
    """


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
_pack_argument = click.argument("pack", type=click.Path(path_type=Path))


@chaos.command()
@_as_json
def doctor(*, as_json: bool) -> None:
    """Show what works on this machine, and what to use where it does not.

    Exits 2 when something is missing that every scenario needs.
    """
    from pytest_chaos.cli.doctor import examine

    checks = examine()
    if as_json:
        _print_json(checks)
    else:
        rows = [
            (check.name, check.status, check.found, check.purpose, "" if check.status == "works" else check.otherwise)
            for check in checks
        ]
        _print_table("", ("", "", "found", "for", "without it"), rows)
    if any(check.required and check.status == "missing" for check in checks):
        raise click.exceptions.Exit(Exit.INCONCLUSIVE)


chaos.add_command(bank)
chaos.add_command(bisect)
chaos.add_command(check)
chaos.add_command(explain)
chaos.add_command(explore)
chaos.add_command(init)
chaos.add_command(inspect_state)
chaos.add_command(list_scenarios)
chaos.add_command(mark)
chaos.add_command(mutate)
chaos.add_command(doubt)
chaos.add_command(points)
chaos.add_command(schema)
chaos.add_command(shrink)


@chaos.group()
def evidence() -> None:
    """Look at an evidence pack."""


@evidence.command()
@_pack_argument
@_as_json
def verify(pack: Path, *, as_json: bool) -> None:
    """Compare a pack with its manifest: nothing missing, changed or added.

    Exits 1 when it is not as it was written, 3 when the folder is no pack.
    """
    from pytest_chaos.evidence import manifest

    listed = manifest.read(pack)
    problems = manifest.verify(pack)
    if as_json:
        _print_json(VerifyDocument(pack=str(pack), files=len(listed.files), problems=problems))
    else:
        for problem in problems:
            click.echo(problem)
        click.echo(
            f"{pack}: {_counted(len(problems), 'problem')}"
            if problems
            else f"{pack}: {_counted(len(listed.files), 'file')}, as written"
        )
    if problems:
        raise click.exceptions.Exit(Exit.VIOLATED)


@evidence.command()
@_pack_argument
@_as_json
def show(pack: Path, *, as_json: bool) -> None:
    """Show a pack: the run, faults with receipts, findings, agents, databases, the failure.

    Exits 0 when it is shown, whatever its verdict, 3 when the folder is no pack.
    """
    from pytest_chaos.evidence.open import open_pack

    opened = open_pack(pack)
    if as_json:
        _print_json(opened)
    else:
        _show(opened)


def _show(pack: Pack) -> None:
    scenario = f"{pack.scenario.id}  {pack.scenario.title}"
    facts = [
        ("scenario", scenario), ("test", pack.node_id), ("verdict", str(pack.verdict)), ("seed", pack.seed),
        ("iteration", str(pack.iteration)), ("started", pack.started), ("reproduce", pack.reproduce),
    ]  # fmt: skip
    _print_table(pack.run_id, ("", ""), facts)
    receipts = [
        (item.kind, item.agent, item.when, "yes" if item.fired else "no", item.evidence) for item in pack.receipts
    ]
    _print_table("faults", ("fault", "agent", "when", "fired", "receipt"), receipts)
    _print_table(
        "findings", ("signature", "kind", "text"), [(item.signature, item.kind, item.text) for item in pack.findings]
    )
    assertions = [(item.name, item.observed, "yes" if item.holds else "no") for item in pack.assertions]
    _print_table("key assertions", ("assertion", "observed", "holds"), assertions)
    marks = [(str(mark.order), mark.agent, str(mark.kind), mark.operation, str(mark.key)) for mark in pack.marks]
    _print_table("last marks", ("order", "agent", "kind", "operation", "key"), marks[-_MARKS_SHOWN:])
    _print_rows("agents", pack.agents, ("name", "pid", "command", "exit_status", "duration_s"))
    _print_rows("databases", pack.databases, ("name", "path", "journal_mode", "integrity_check", "error"))
    _print_rows("left out or not readable", pack.problems, ("kind", "part", "text"))
    for text in _texts(pack):
        click.echo(harmless(text))
    click.echo(harmless(pack.failure))


def _texts(pack: Pack) -> Iterator[str]:
    """Yield the beginnings of the attached texts, which tell how to reproduce an exploration."""
    from pytest_chaos.evidence.manifest import start_of

    listed = [entry for entry in pack.manifest.files if entry.path.startswith("attachments/")]
    texts = sorted((entry for entry in listed if entry.path.endswith(".txt")), key=lambda entry: entry.path)
    for entry in texts[:_TEXTS_SHOWN]:
        try:
            yield start_of(pack.path, entry, _TEXT_BYTES_SHOWN)
        except (OSError, ValueError) as error:
            yield f"{entry.path} is not shown: {error}"


@chaos.command()
@_pack_argument
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the results of the replay go.  [default: replays/ in the session folder of the pack]",
)
@click.option(
    "--steps", is_flag=True, help="Watch durable steps and program lines: what should have kept a lost item? Slow."
)
@click.option("--trust", is_flag=True, help="Run a test outside of the current project, too: its code is run as yours.")
@_as_json
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
def replay(
    pack: Path, results: Path | None, *, steps: bool, trust: bool, as_json: bool, pytest_arguments: tuple[str, ...]
) -> None:
    """Run the failure of a PACK again, with its seed and plan.

    The test is looked for below the current folder, then below the root of its project. A pack may
    come from an untrusted source: a test that it names elsewhere, or within a pack, is refused and
    shown, unless you say ``--trust``. Arguments after ``--`` go to pytest. A pack that is not as it
    was written is refused.

    Exits 0 when it held this time, 1 when it was violated again, 2 when it was inconclusive, 3 when
    the test is not found or refused.
    """
    from pytest_chaos.evidence.replay import STEPS_OPTION, options
    from pytest_chaos.narrow.own import folder_of, opened_as_written

    opened = opened_as_written(pack)
    folder = folder_of(opened, trust=trust)
    target = (results or _replays_of(pack)).absolute()
    before = _latest(target)
    command = [*_pytest(), opened.node_id, *options(pack.absolute(), target), *[STEPS_OPTION] * steps]
    command += pytest_arguments
    done = subprocess.run(command, cwd=folder, check=False, stdout=_STANDARD_ERROR if as_json else None)
    after = _latest(target)
    verdict = _verdict_in(after) if after is not None and after != before else None
    if as_json:
        session = str(after) if verdict is not None else ""
        shown = verdict.name if verdict is not None else None
        _print_json(ReplayDocument(pack=str(pack), verdict=shown, pytest_exit_code=done.returncode, session=session))
    raise click.exceptions.Exit(_exit_of(done.returncode, verdict))


def _replays_of(pack: Path) -> Path:
    """Return the folder for replays of a pack.

    It is in the session of the pack, or beside a pack that is in no session. If neither can be
    written, it is the default results folder.
    """
    beside = pack.resolve().parent
    session = beside.parent if beside.name == "evidence" else beside
    return session / "replays" if os.access(session, os.W_OK) else RESULTS


@chaos.command("clean")
@click.argument("results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS)
@click.option("--keep", type=int, default=20, show_default=True, help="Sessions to keep, the newest ones.")
@click.option("--with-packs", is_flag=True, help="Remove old sessions that hold evidence packs, too.")
@_as_json
def clean_results(results: Path, keep: int, *, with_packs: bool, as_json: bool) -> None:
    """Remove old sessions of a RESULTS folder (chaos-results).

    Sessions that hold evidence packs stay, unless --with-packs is given. So does the latest.

    Exits 0, or 3 when the folder is none, or a session cannot be removed.
    """
    from pytest_chaos.evidence import retention

    if not (results / "sessions").is_dir():
        msg = f"{results} must be a results folder with sessions; got none. Give the one of --chaos-results"
        raise UsageError(msg)
    cleaned = retention.clean(results, keep=keep, with_packs=with_packs)
    if as_json:
        removed, kept_for_evidence = list(cleaned.removed), list(cleaned.kept_for_evidence)
        _print_json(CleanDocument(results=str(results), removed=removed, kept_for_evidence=kept_for_evidence))
        return
    click.echo(f"removed {_counted(len(cleaned.removed), 'session')} of {results}")
    if cleaned.kept_for_evidence:
        kept = _counted(len(cleaned.kept_for_evidence), "session")
        click.echo(f"kept {kept} for the evidence; --with-packs removes such, too")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _latest(results: Path) -> Path | None:
    latest = results / "latest"
    return latest.resolve() if latest.exists() else None


def _verdict_in(session: Path) -> Verdict | None:
    """Return the verdict of a session's runs, or None without runs."""
    from pytest_chaos.evidence import records
    from pytest_chaos.model.values import Verdict

    runs = records.read(session).runs
    return Verdict.worst(run.verdict for run in runs) if runs else None


def _exit_of(pytest_code: int, verdict: Verdict | None) -> Exit:
    """Map pytest's exit code, using the recorded verdict if there is one."""
    if verdict is not None and pytest_code in {0, 1}:
        return Exit[verdict.name]
    interrupted, internal_error, wrong_call, nothing_ran = 2, 3, 4, 5
    known = {
        0: Exit.INCONCLUSIVE, 1: Exit.VIOLATED, interrupted: Exit.INCONCLUSIVE, internal_error: Exit.OUR_ERROR,
        wrong_call: Exit.MISTAKE, nothing_ran: Exit.MISTAKE,
    }  # fmt: skip
    return known.get(pytest_code, Exit.INCONCLUSIVE)


def _pytest() -> list[str]:
    return [sys.executable, "-m", "pytest"]


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=1))


def _print_rows(title: str, rows: Sequence[dict[str, Json]], columns: Sequence[str]) -> None:
    _print_table(title, columns, [tuple(str(row[column]) for column in columns) for row in rows])


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table unless it is empty. Text from a pack is never read as markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(harmless(cell), style=_STYLES.get(cell, "")) for cell in row))
    _console().print(table)


_STYLES: Final = {
    "works": "green",
    "HELD": "green",
    "limited": "yellow",
    "unknown": "yellow",
    "INCONCLUSIVE": "yellow",
    "missing": "red",
    "VIOLATED": "red",
}


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=False)
