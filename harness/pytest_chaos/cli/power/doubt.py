"""The command ``chaos doubt``: lay patches over a target, and see which scenario notices."""

from __future__ import annotations

import contextlib
import datetime
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from pytest_chaos.cli.explore import RESULTS, Duration
from pytest_chaos.cli.power.mutate import command_of, ended_as_by_ctrl_c
from pytest_chaos.errors import UsageError
from pytest_chaos.model.seed import draw_seed, normalise_seed
from pytest_chaos.model.verdict import harmless

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.mutate.clean import CleanRun
    from pytest_chaos.mutate.doubt import DoubtDocument, PatchResult
    from pytest_chaos.mutate.patches import TargetPatch
    from pytest_chaos.mutate.runner import PytestCommand

_VIOLATED: Final = 1
_INCONCLUSIVE: Final = 2
_FOLDER: Final = "mutation"
_CLEAN: Final = "doubt-clean.json"


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PATCH... -- pytest ARGUMENTS...")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Patches at a time.")
@click.option(
    "--patience", "patience_s", type=Duration(), default="20s", show_default=True,
    help="Time for a test, beyond five times its clean time.",
)  # fmt: skip
@click.option("--seed", help="Draws the faults of all runs.")
@click.option("--at-least", "share_min", type=click.FloatRange(0, 1), help="Exit 1 unless this share is noticed.")
@click.option(
    "--results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True,
    help="Results go to its folder mutation.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, and nothing else.")
def doubt(
    *, words: tuple[str, ...], jobs: int, patience_s: float, seed: str | None,
    share_min: float | None, results: Path, as_json: bool,
) -> None:  # fmt: skip
    """Lay each PATCH over the target, and see which scenario notices.

    A PATCH is a diff (no-sync.patch), or a function in place of another one
    (shop.store:Store.save=twins:save). The command after -- is how the chaos tests are run; it must
    pass without a patch. Each patch is run against all of them, until one notices. No file is
    changed.

    Exits 0, or 1 when less than --at-least was noticed, 2 when a patch could not be judged, 3 for a
    mistake in the call.
    """
    from pytest_chaos.mutate.patches import patch_of

    names, arguments = _parted(words)
    command = command_of(arguments, "doubt")
    patches = [patch_of(name) for name in dict.fromkeys(names)]
    drawn = normalise_seed(seed) if seed else draw_seed()
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        found = _run(patches, command, seed=drawn, jobs=jobs, patience_s=patience_s, results=results)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
    if share_min is not None and found.noticed < share_min * len(found.results):
        click.echo(f"less than {share_min:.0%} was noticed", err=as_json)
        raise click.exceptions.Exit(_VIOLATED)
    if not all(each.is_judged for each in found.results):
        raise click.exceptions.Exit(_INCONCLUSIVE)


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the patches, and the test command: the first word that may be none begins it."""
    at = next((at for at, word in enumerate(words) if _is_program(word)), None)
    names, arguments = list(words[:at]), [] if at is None else list(words[at:])
    if not names:
        msg = "doubt must get a patch; got none. Give for instance: chaos doubt no-sync.patch -- pytest -m chaos"
        raise UsageError(msg)
    return names, arguments


def _is_program(word: str) -> bool:
    """Whether a word is the program of a test command, and not a patch of such a name.

    >>> _is_program("python3.12"), _is_program("python-path.diff"), _is_program("pytest_x:f=x:f")
    (True, False, False)
    """
    from pytest_chaos.mutate.patches import ENDINGS

    is_patch = "=" in word or word.endswith(ENDINGS)
    return not is_patch and Path(word).name.startswith(("pytest", "py.test", "python"))


def _run(
    patches: Sequence[TargetPatch], command: PytestCommand, *, seed: str, jobs: int, patience_s: float, results: Path
) -> DoubtDocument:
    from pytest_chaos.mutate.doubt import DoubtDocument, doubt as run_patches
    from pytest_chaos.mutate.results import power

    clean = _clean(command, results / _FOLDER / _CLEAN, seed=seed, jobs=jobs)
    found: dict[str, PatchResult] = {}

    def keep(result: PatchResult) -> None:
        found[result.patch] = result
        click.echo(harmless(line_of(result)))
        _keep(results, result)

    with ended_as_by_ctrl_c():
        run_patches(patches, clean, command, keep, seed=seed, jobs=jobs, patience_s=patience_s)
    ordered = [found[patch.name] for patch in patches]
    noticed = sum(each.is_noticed for each in ordered)
    click.echo(f"your scenarios notice {power(noticed, len(ordered))} {'patch' if len(ordered) == 1 else 'patches'}")
    return DoubtDocument(seed=seed, noticed=noticed, results=ordered)


def _clean(command: PytestCommand, path: Path, *, seed: str, jobs: int) -> CleanRun:
    """Return the clean run that was kept, or make it."""
    from pytest_chaos.mutate import kept
    from pytest_chaos.mutate.clean import run_clean

    key = ("", *command.arguments, seed, platform.python_version(), str(Path.cwd()))
    clean, begun = kept.read(path, key), time.monotonic()
    how = "as before"
    if clean is None:
        with tempfile.TemporaryDirectory(prefix="chaos-clean-") as folder:
            clean = run_clean(command, "", [], Path(folder), seed=seed, jobs=jobs, without="a patch")
        kept.write(path, key, clean)
        how = f"run in {time.monotonic() - begun:.1f} s"
    took = sum(test.whole_s for test in clean.tests)
    click.echo(f"clean run: {_tests(len(clean.tests))} pass in {took:.1f} s ({how}); seed {seed}")
    return clean


def line_of(result: PatchResult) -> str:
    """Return a result in one line."""
    head, took = f"{result.outcome}: {result.patch}", f"  ({result.duration_s:.1f} s)"
    if result.is_noticed:
        return f"{head}, by {result.scenario or result.test}: {result.signature}{took}"
    if result.outcome in {"let pass", "not reached"}:
        return f"{head}, by {_tests(result.tests)}{took}"
    by = f", {result.scenario or result.test}: {result.signature}" if result.test else ""
    return f"{head}{by}: {result.text}{took}"


def _tests(count: int) -> str:
    return f"{count:,} test{'' if count == 1 else 's'}"


def _keep(results: Path, result: PatchResult) -> None:
    """Keep a patch that was noticed for the matrix page, which lists it with the scenario."""
    from pytest_chaos.mutate.planted import Planted, keep

    if result.is_noticed and result.scenario:
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        keep(
            results,
            Planted(
                scenario=result.scenario, defect=result.patch, signature=result.signature, test=result.test,
                started=started,
            ),
        )  # fmt: skip
