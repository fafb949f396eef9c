"""The command ``chaos bank``: public bugs, each shown again and held once mended."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from pytest_chaos.cli.explore import RESULTS, code_of
from pytest_chaos.errors import UsageError
from pytest_chaos.model.verdict import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.bank.entries import BankEntry
    from pytest_chaos.bank.results import BankDocument, EntryResult, Outcome

SEED: Final = "bank"
"""The default: an entry is to show the same each time."""
BANK_DOCUMENT: Final = "bank.json"
_FOLDER: Final = "bank"
_LOCK: Final = ".in-use"
_WIDTH: Final = 100
_STYLES: Final[dict[Outcome, str]] = {
    "shown": "green", "not shown": "red", "not held": "red", "undecided": "yellow", "skipped": "yellow",
}  # fmt: skip
_bank_option = click.option(
    "--bank", "folder", type=click.Path(path_type=Path),
    help="A folder of entries.  [default: those that came with pytest-chaos]",
)  # fmt: skip


@click.group("bank")
def bank() -> None:
    """Show public bugs of other people's programs again, and hold each in its mended form.

    Exits as its commands list and run do.
    """


@bank.command("list")
@click.option("--long", "-l", "is_long", is_flag=True, help="Show promise, findings and what is reproduced, too.")
@_bank_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def list_entries(folder: Path | None, *, is_long: bool, as_json: bool) -> None:
    """List the entries of the bank, and the reports that were not reproduced, with the reason.

    Exits 0, or 3 when an entry's file is wrong.
    """
    from pytest_chaos.bank.entries import default_folder, read_bank
    from pytest_chaos.bank.results import BankListDocument, listed

    found = read_bank(folder or default_folder())
    if as_json:
        document = BankListDocument(
            entries=[listed(entry) for entry in found.entries.values()],
            not_reproduced=list(found.not_reproduced),
        )
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1))
        return
    for line in _long(found.entries) if is_long else _short(found.entries):
        click.echo(harmless(line))
    if found.not_reproduced:
        click.echo("\nnot reproduced:")
    for each in found.not_reproduced:
        for line in _wrapped(f"{each.report}, {each.kind}: {each.reason}", "  ", "    "):
            click.echo(harmless(line))


@bank.command("run")
@click.argument("names", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Run every entry, and write RESULTS/bank/bank.json.")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Entries at a time.")
@click.option("--seed", default=SEED, show_default=True, help="Seed of everything random.")
@click.option("--no-install", is_flag=True, help="Install nothing: skip entries whose libraries are not there.")
@_bank_option
@click.option(
    "--results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True,
    help="Results and evidence go to its folder bank.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else.")
def run_bank(
    names: tuple[str, ...], *, is_all: bool, jobs: int, seed: str, no_install: bool, folder: Path | None, results: Path,
    as_json: bool,
) -> None:  # fmt: skip
    """Run the entries NAMES: the reported form must show the bug, the mended form must hold.

    Libraries are installed on demand, in an environment of the entry's own. An entry whose
    libraries or programs cannot be had is skipped, and says why.

    Exits 0 when each was shown and its mended form held, 1 when one was not, 2 when one was skipped
    or undecided, 3 for a mistake in the call, or a wrong file of an entry.
    """
    from pytest_chaos.bank.campaign import run_entries
    from pytest_chaos.bank.entries import default_folder, read_bank
    from pytest_chaos.bank.environments import Environments
    from pytest_chaos.model.seed import normalise_seed

    if bool(names) == is_all:
        got = "both" if is_all else "neither"
        msg = f"bank run must get names of entries, or --all; got {got}. chaos bank list shows the names"
        raise UsageError(msg)
    found = read_bank(folder or default_folder())
    entries = found.named(names) if names else list(found.entries.values())
    place = _results_folder(results)
    width = max(len(entry.name) for entry in entries)

    def tell(result: EntryResult) -> None:
        outcome = click.style(f"{result.outcome:<9}", fg=_STYLES[result.outcome])
        text = f"{result.name:<{width}}  {result.kind}: {result.sentence}  {result.duration_s:.1f} s"
        click.echo(f"{outcome}  {harmless(text)}", err=as_json)

    with _alone_in(place), _ended_as_by_ctrl_c():
        environments = Environments(may_install=not no_install)
        document = run_entries(entries, environments, place, seed=normalise_seed(seed), jobs=jobs, tell=tell)
    written = msgspec.json.format(msgspec.json.encode(document), indent=1)
    if is_all:
        _write(place / BANK_DOCUMENT, written + b"\n")
    if as_json:
        click.echo(written)
    else:
        click.echo(_summary(document))
        click.echo(f"results: {place / BANK_DOCUMENT if is_all else place}")
    raise click.exceptions.Exit(code_of(document.verdict))


def _results_folder(results: Path) -> Path:
    """Make the folder for results, ignored by git. Raises UsageError."""
    place = (results / _FOLDER).absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not (ignore := results / ".gitignore").exists():
            ignore.write_text("*\n")
    except OSError as error:
        msg = f"--results must be a folder that can be written; got {results}: {error.strerror}. Give another"
        raise UsageError(msg) from error
    return place


@contextlib.contextmanager
def _alone_in(place: Path) -> Iterator[None]:
    """Keep other runs of the bank out of a folder. Raises UsageError where one is at work."""
    with (place / _LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = (
                f"--results must be a folder that no other bank run is using; got {place.parent}. "
                "Wait for that run, or give another"
            )
            raise UsageError(msg) from error
        yield


def _write(file: Path, content: bytes) -> None:
    """Write the document. Raises UsageError where the disk is full."""
    try:
        file.write_bytes(content)
    except OSError as error:
        msg = (
            f"--results must be a folder that can be written; got {file}: {error.strerror}. Make room, or give another"
        )
        raise UsageError(msg) from error


def _summary(document: BankDocument) -> str:
    counts = ", ".join(f"{document.counts[each]} {each}" for each in _STYLES if each in document.counts)
    many = "1 entry" if len(document.entries) == 1 else f"{len(document.entries)} entries"
    return f"{document.verdict.name}: {many}: {counts}; {document.duration_s:.1f} s"


def _short(entries: dict[str, BankEntry]) -> Iterator[str]:
    names = max(len(name) for name in entries)
    kinds = max(len(entry.kind) for entry in entries.values())
    for entry in entries.values():
        yield f"{entry.name:<{names}}  {entry.kind:<{kinds}}  {entry.title}"
    yield "1 entry" if len(entries) == 1 else f"{len(entries)} entries"


def _long(entries: dict[str, BankEntry]) -> Iterator[str]:
    for entry in entries.values():
        yield f"{entry.name}  {entry.title}"
        facts = {
            "reports": ", ".join(entry.reports), "read": entry.read, "kind": entry.kind, "subject": entry.subject,
            "promise": entry.promise, "expects": ", ".join(entry.expects), "reproduced": entry.reproduced,
            "left out": entry.left_out, "mended": entry.mended,
        }  # fmt: skip
        for name, text in facts.items():
            yield from _wrapped(f"{name}: {text}", "  ", "    ") if text else ()
        yield ""
    yield f"{len(entries)} entries"


def _wrapped(text: str, first: str, later: str) -> Iterator[str]:
    yield from textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does: the forms under way end, too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
