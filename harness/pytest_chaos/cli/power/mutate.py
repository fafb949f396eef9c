"""The command ``chaos mutate``: remove guards, and see which scenario notices."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import platform
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from pytest_chaos.cli.documents import ListedMutant
from pytest_chaos.cli.explore import RESULTS, Duration
from pytest_chaos.errors import UsageError
from pytest_chaos.model.seed import draw_seed, normalise_seed
from pytest_chaos.model.verdict import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos.mutate.clean import CleanRun
    from pytest_chaos.mutate.mutants import Mutant
    from pytest_chaos.mutate.package import SourceModule
    from pytest_chaos.mutate.results import CampaignHeader, MutantResult, PowerDocument, ResultsFile
    from pytest_chaos.mutate.runner import PytestCommand

_VIOLATED: Final = 1
_INCONCLUSIVE: Final = 2
_FOLDER: Final = "mutation"
OUTCOMES: Final = (
    "caught", "caught by time", "caught by crash", "survived", "not reached", "inconclusive"
)  # fmt: skip


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("package")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- pytest ARGUMENTS...")
@click.option("--list", "only_list", is_flag=True, help="Show the mutants as diffs, and run nothing.")
@click.option("--only", "ids", multiple=True, metavar="ID", help="Run this mutant, again if need be; repeatable.")
@click.option(
    "--again", "outcomes", multiple=True, type=click.Choice(OUTCOMES), help="Run again what ended so; repeatable."
)
@click.option(
    "--operator",
    "operators",
    multiple=True,
    metavar="PATTERN",
    help="Only mutants of these operators, such as 'sql-*'; repeatable.",
)
@click.option(
    "--where", "patterns", multiple=True, metavar="PATTERN", help="Only functions such as 'mypackage.store*:*'."
)
@click.option(
    "--equivalent", "known", type=click.Path(path_type=Path), help="The reviewed file.  [default: mutants.toml]"
)
@click.option("--shard", metavar="I/N", help="The I-th of N equal parts, each run on its own.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Mutants at a time.")
@click.option(
    "--budget", "budget_s", type=Duration(), help="Time for the mutants: 10m, 1h. What is left is run next time."
)
@click.option(
    "--patience",
    "patience_s",
    type=Duration(),
    default="20s",
    show_default=True,
    help="Time for a test, beyond five times its clean time.",
)
@click.option(
    "--tests", "tests_s", type=Duration(), default="20s", show_default=True,
    help="Tests that are run against one mutant at most, by their clean time.",
)  # fmt: skip
@click.option("--seed", help="Draws the order of the mutants, and the faults of all runs.")
@click.option("--at-least", "share_min", type=click.FloatRange(0, 1), help="Exit 1 unless this share is noticed.")
@click.option("--fresh", is_flag=True, help="Forget the results of an earlier campaign.")
@click.option(
    "--results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True,
    help="Results go to its folder mutation.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the results, or the list, as JSON, and nothing else.")
def mutate(
    *, package: str, words: tuple[str, ...], only_list: bool, ids: tuple[str, ...], outcomes: tuple[str, ...],
    operators: tuple[str, ...], patterns: tuple[str, ...], known: Path | None, shard: str | None, jobs: int,
    budget_s: float | None, patience_s: float, tests_s: float, seed: str | None, share_min: float | None,
    fresh: bool, results: Path, as_json: bool,
) -> None:  # fmt: skip
    """Remove one guard of PACKAGE at a time, and see which scenario notices.

    The command after -- is how its chaos tests are run; it must pass without a mutant. Each mutant
    is run against the tests that reach it, until one notices. No file is changed. Results are kept,
    and a campaign that was interrupted goes on.

    Exits 0, or 1 when less than --at-least was noticed, 2 when mutants were not run, 3 for a
    mistake in the call.
    """
    from pytest_chaos.mutate.package import modules_of

    part = _shard(shard)
    modules = modules_of(package)
    mutants = _mutants(modules)
    wanted = _wanted(mutants, ids, operators, patterns)
    if part is not None:
        from pytest_chaos.mutate.campaign import share

        wanted = share(wanted, *part)
    if only_list:
        _list(wanted, as_json=as_json)
        return
    command = command_of(words, "mutate")
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        document = _run(
        package, modules, mutants, wanted, command, known=known, shard=shard or "", jobs=jobs, budget_s=budget_s,
        patience_s=patience_s, tests_s=tests_s, seed=normalise_seed(seed) if seed else draw_seed(), fresh=fresh,
        again=frozenset(ids), outcomes=frozenset(outcomes), results=results,
    )  # fmt: skip
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=1))
    if document.missing:
        raise click.exceptions.Exit(_INCONCLUSIVE)
    if share_min is not None and document.noticed < share_min * document.judged:
        click.echo(f"less than {share_min:.0%} was noticed", err=as_json)
        raise click.exceptions.Exit(_VIOLATED)


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        msg = f"--shard must be I/N with 1 <= I <= N; got {text!r}. Give for instance 1/4"
        raise UsageError(msg)
    return int(match[1]), int(match[2])


def command_of(words: Sequence[str], what: str) -> PytestCommand:
    """Return the command after ``--``. Raises UsageError unless it is pytest."""
    from pytest_chaos.mutate.runner import PytestCommand

    if not words:
        msg = f"{what} must get the test command after --; got nothing. Give for instance: -- pytest -m chaos"
        raise UsageError(msg)
    program = Path(words[0]).name
    if program in {"pytest", "py.test"}:
        return PytestCommand(tuple(words[1:]))
    if program.startswith("python") and tuple(words[1:3]) == ("-m", "pytest"):
        return PytestCommand(tuple(words[3:]), with_directory=True)
    msg = (
        f"the test command must be pytest, or python -m pytest; got {words[0]!r}. Give for instance: -- pytest -m chaos"
    )
    raise UsageError(msg)


def _mutants(modules: Sequence[SourceModule]) -> list[Mutant]:
    from pytest_chaos.mutate.mutants import mutants_of

    return [mutant for module in modules for mutant in mutants_of(module.name, module.source)]


def _wanted(
    mutants: Sequence[Mutant], ids: Sequence[str], operators: Sequence[str], patterns: Sequence[str]
) -> list[Mutant]:
    from pytest_chaos.mutate.operators import NAMES

    if unknown := [each for each in ids if each not in {mutant.id for mutant in mutants}]:
        msg = f"--only must name a mutant of the package; got {unknown[0]!r}. --list shows them"
        raise UsageError(msg)
    if unknown := [each for each in operators if not fnmatch.filter(NAMES, each)]:
        msg = f"--operator must be one of {', '.join(NAMES)}; got {unknown[0]!r}. Choose one of these"
        raise UsageError(msg)
    found = [
        mutant
        for mutant in mutants
        if not ids or mutant.id in ids
        if not operators or any(fnmatch.fnmatchcase(mutant.operator, operator) for operator in operators)
        if not patterns or any(fnmatch.fnmatchcase(mutant.place, pattern) for pattern in patterns)
    ]
    if not found:
        msg = "the package must have a mutant that is wanted; got none. --list without other options shows all"
        raise UsageError(msg)
    return found


def _list(mutants: Sequence[Mutant], *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode([_listed(mutant) for mutant in mutants]))
        return
    for mutant in mutants:
        click.echo(harmless(f"{mutant.id}  {mutant.operator}  {mutant.place}, line {mutant.line}\n{mutant.diff}\n"))
    click.echo(f"{len(mutants):,} mutants")


def _listed(mutant: Mutant) -> ListedMutant:
    return ListedMutant(**{name: getattr(mutant, name) for name in ListedMutant.__struct_fields__})


def _run(
    package: str, modules: Sequence[SourceModule], mutants: Sequence[Mutant], wanted: Sequence[Mutant],
    command: PytestCommand, *, known: Path | None, shard: str, jobs: int, budget_s: float | None, patience_s: float,
    tests_s: float, seed: str, fresh: bool, again: frozenset[str], outcomes: frozenset[str], results: Path,
) -> PowerDocument:  # fmt: skip
    from pytest_chaos.mutate import equivalents, kept
    from pytest_chaos.mutate.campaign import Campaign, shuffled
    from pytest_chaos.mutate.package import digest_of
    from pytest_chaos.mutate.results import CampaignHeader, ResultsFile, document

    excused = (
        equivalents.read(known or Path(equivalents.FILE_NAME)) if known or Path(equivalents.FILE_NAME).exists() else {}
    )
    for sentence in equivalents.stale(excused, {mutant.id: mutant for mutant in mutants}):
        click.echo(f"{known or equivalents.FILE_NAME}: {sentence}", err=True)
    name = "mutation" + (f"-{shard.replace('/', '-of-')}" if shard else "")
    file = ResultsFile(results / _FOLDER / f"{name}.jsonl")
    header = CampaignHeader(
        package=package, arguments=("pytest", *command.arguments), digest=digest_of(list(modules)), seed=seed,
        python=platform.python_version(), mutants=len(wanted), shard=shard, selected=tuple(each.id for each in wanted),
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    header, done = _resumed(file, header, mutants, again=again, fresh=fresh)
    done = {
        number: msgspec.structs.replace(each, outcome="equivalent", reason=excused[number].reason)
        if number in excused
        else each
        for number, each in done.items()
        if number in excused or each.outcome != "equivalent"  # an entry was removed: it is run
    }
    left = [
        each
        for each in shuffled(wanted, header.seed)
        if each.id not in done or each.id in again or done[each.id].outcome in outcomes
    ]
    many = f"{len(wanted):,} mutants of {package}"
    click.echo(many + (f", {len(wanted) - len(left):,} of them run before" if len(left) < len(wanted) else ""))
    if left:
        clean = _clean(file.path.with_name(kept.FILE_NAME), header, command, modules, jobs=jobs)
        file.begin(header, done)
        ended: set[str] = set()

        def keep(result: MutantResult) -> None:
            file.add(result)
            done[result.id] = result
            ended.add(result.id)
            number = len(wanted) - len(left) + len(ended)
            click.echo(harmless(f"[{number}/{len(wanted)}] {line_of(result)}"))

        campaign = Campaign(
            package, modules, clean, command, seed=header.seed, equivalent=excused, patience_s=patience_s,
            tests_s=tests_s, before=done.values(),
        )  # fmt: skip
        with ended_as_by_ctrl_c():
            campaign.run_all(left, keep, jobs=jobs, budget_s=budget_s)
    whole = document(header, done.values())
    written = msgspec.json.format(msgspec.json.encode(whole), indent=1)
    file.path.with_suffix(".json").write_bytes(written + b"\n")
    _print(whole, file.path.with_suffix(".json"))
    return whole


@contextlib.contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the campaign as Ctrl-C does: what it has started and written goes with it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _clean(
    path: Path, header: CampaignHeader, command: PytestCommand, modules: Sequence[SourceModule], *, jobs: int
) -> CleanRun:
    """Return the clean run that was kept, or make it."""
    from pytest_chaos.mutate import kept
    from pytest_chaos.mutate.clean import run_clean

    key = (header.package, header.digest, *header.arguments, header.python, str(Path.cwd()))
    clean = kept.read(path, key)
    how = "as before"
    if clean is None:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="chaos-clean-") as folder:
            clean = run_clean(command, header.package, modules, Path(folder), seed=header.seed, jobs=jobs)
        kept.write(path, key, clean)
        how = f"run in {time.monotonic() - begun:.1f} s"
    took = sum(test.whole_s for test in clean.tests)
    click.echo(f"clean run: {len(clean.tests)} tests pass in {took:.1f} s ({how}); seed {header.seed}")
    return clean


def _resumed(
    file: ResultsFile, header: CampaignHeader, mutants: Sequence[Mutant], *, again: frozenset[str], fresh: bool
) -> tuple[CampaignHeader, dict[str, MutantResult]]:
    """Return the header and results to go on with: earlier ones of the same source and tests.

    Mutants that are run by their ids are among those that the campaign was about before.
    """
    before, done = (None, {}) if fresh else file.read()
    if before is None:
        return header, {}
    if (before.package, before.arguments, before.digest) != (header.package, header.arguments, header.digest):
        click.echo("the package or the test command is another one than before: all mutants are run anew")
        return header, {}
    known = {mutant.id for mutant in mutants}
    found = {number: result for number, result in done.items() if number in known and result.outcome != "error"}
    selected = header.selected
    if again:
        selected = tuple(dict.fromkeys([*(before.selected or found), *selected]))
    header = msgspec.structs.replace(
        header, seed=before.seed, started=before.started, selected=selected, mutants=len(selected)
    )
    return header, found


def line_of(result: MutantResult) -> str:
    """Return a result in one line."""
    by = f" by {result.scenario or result.test}: {result.signature}" if result.test else ""
    text = f" ({result.text})" if result.outcome == "error" else ""
    if result.outcome == "survived" and result.tests < result.reaching:
        text = f" {result.tests} of {result.reaching} tests"
    place = f"{result.module}:{result.function}"
    what = f"{result.id} {result.operator} {place} line {result.line}"
    return f"{result.outcome}{by}{text}  {what} {result.duration_s:.1f} s"


def _print(document: PowerDocument, path: Path) -> None:
    from pytest_chaos.mutate.results import power

    shown = [each for each in document.results if each.outcome not in {"caught", "equivalent"}]
    for each in shown:
        click.echo(
            harmless(f"\n{each.outcome}: {each.id}  {each.operator}  {each.module}:{each.function}, line {each.line}")
        )
        if each.text:
            click.echo(harmless(f"  {each.signature}: {each.text}" if each.signature else f"  {each.text}"))
        click.echo(harmless(each.diff))
    findings = Counter(
        (each.scenario or each.test, each.signature) for each in document.results if each.outcome == "caught"
    )
    for (scenario, signature), count in findings.most_common():
        click.echo(harmless(f"{count:5,} caught by {scenario}: {signature}"))
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(document.counts.items()))
    click.echo(f"{counts}" + (f", {document.missing:,} not run" if document.missing else ""))
    click.echo(f"power: {power(document.noticed, document.judged)}")
    click.echo(f"results: {path}")
