"""``chaos shrink``, ``chaos explain`` and ``chaos bisect``: options in, sentences out.

The work is done in the room ``narrow``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from pytest_chaos.cli.documents import BisectDocument, ExplainDocument, JudgedCommit, ShrinkDocument
from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import Verdict
from pytest_chaos.model.verdict import harmless

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from pytest_chaos.evidence.open import Pack
    from pytest_chaos.narrow.bisect import Bisected
    from pytest_chaos.narrow.variant import Heard, Narrowed

_INCONCLUSIVE: Final = 2
_CURVE_WIDTH: Final = 30
_ROWS_MAX: Final = 100
_Command = Any

_pack = click.argument("pack", type=click.Path(path_type=Path))
_own = click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of sentences.")
_again = click.option("--again", is_flag=True, help="Replace what the pack has from before.")
_trust = click.option(
    "--trust", is_flag=True, help="Run a test outside of the current project, too: its code is run as yours."
)
_finding = click.option(
    "--finding", metavar="SIGNATURE", default="", help="The finding that counts.  [default: the first of the pack]"
)


def _budget(tries: int, seconds: float) -> Callable[[_Command], _Command]:
    """Return the options that bound the runs."""

    def decorated(command: _Command) -> _Command:
        command = click.option(
            "--seconds", type=click.FloatRange(min=0, min_open=True, max=1e6), default=seconds, show_default=True,
            help="Stop after so many seconds.",
        )(command)  # fmt: skip
        return click.option(
            "--tries", type=click.IntRange(min=1, max=100_000), default=tries, show_default=True, help="Runs at most."
        )(command)

    return decorated


@click.command()
@_pack
@_finding
@_budget(300, 120.0)
@_again
@_trust
@_json
@_own
def shrink(
    pack: Path, *, finding: str, tries: int, seconds: float, again: bool, trust: bool, as_json: bool,
    pytest_arguments: tuple[str, ...],
) -> None:  # fmt: skip
    """Find the least that is violated as the run of PACK was: faults, workload, times.

    The test runs again and again with fewer faults, smaller sizes (chaos.size), simpler values
    (chaos.draw), earlier times and shorter pauses. What has the same finding more than once counts.
    Then each fault that is left is removed in turn, to say whether it is necessary. The shrunk plan
    goes into the pack, with a test to paste. Arguments after -- go to pytest.

    Exits 0 when it was shrunk, or cannot be; 2 when the violation did not come back or the time was
    over before that; 3 when there is nothing to shrink, or the test is not found or refused.
    """
    from pytest_chaos.model.story import SHRUNK_NAME
    from pytest_chaos.narrow import add, work

    opened, root = _opened(pack, trust=trust)
    add.check_free(pack, SHRUNK_NAME, again=again)
    cause = work.finding_of(opened, finding)
    with _Progress(as_json=as_json) as progress:
        answer = work.shrink(
            opened, cause, root=root, tries=tries, seconds=seconds, arguments=pytest_arguments, on_line=progress
        )
    problem = answer.problem
    if answer.shrunk is not None and not problem:
        problem_of_pack = add.add_shrunk(pack, answer.shrunk)
        answer = msgspec.structs.replace(answer, notes=(*answer.notes, *[problem_of_pack] * bool(problem_of_pack)))
    if as_json:
        _print_json(
            ShrinkDocument(
                pack=str(pack), problem=problem, shrunk=answer.shrunk, runs=answer.runs, others=list(answer.others),
                notes=list(answer.notes),
            )
        )  # fmt: skip
    elif not problem:
        _say(work.told(answer, pack))
    if problem:
        _fail(problem, as_json=as_json)


@click.command()
@_pack
@_finding
@click.option("--fault", type=int, help="The fault that is moved, from 1.  [default: the first kill that can be moved]")
@click.option("--each", type=click.IntRange(1, 1000), default=3, show_default=True, help="Runs at each moment.")
@click.option(
    "--moments", type=click.IntRange(4, 10_000), default=80, show_default=True,
    help="Moments at most; of more, some are tried, and then those between two that differ.",
)  # fmt: skip
@click.option("--whole", is_flag=True, help="Move the fault in the plan of the pack, not in its shrunk plan.")
@_budget(600, 180.0)
@_again
@_trust
@_json
@_own
def explain(
    pack: Path, *, finding: str, fault: int | None, each: int, moments: int, whole: bool, tries: int, seconds: float,
    again: bool, trust: bool, as_json: bool, pytest_arguments: tuple[str, ...],
) -> None:  # fmt: skip
    """Find when a fault of PACK is fatal: the run again, with the fault at every step and mark.

    It prints P(violation) against the moment of the fault, and each moment that holds beside one
    that does not, with the line of the program. The curve goes into the pack, for its failure page.
    The shrunk plan is taken, if the pack has one. Arguments after -- go to pytest.

    Exits 0 when there is a curve; 2 when the violation did not come back, or no moment came to an
    answer; 3 when there is no fault to move, or the test is not found or refused.
    """
    from pytest_chaos.model.story import CURVE_NAME
    from pytest_chaos.narrow import add, work

    opened, root = _opened(pack, trust=trust)
    add.check_free(pack, CURVE_NAME, again=again)
    cause = work.finding_of(opened, finding)
    start = work.start_of(opened, whole=whole)
    with _Progress(as_json=as_json) as progress:
        answer = work.explain(
            opened, cause, start, root=root, fault=fault, each=each, moments=moments, tries=tries, seconds=seconds,
            arguments=pytest_arguments, on_line=progress,
        )  # fmt: skip
    if answer.curve is not None and not answer.problem:
        problem_of_pack = add.add_curve(pack, answer.curve)
        answer = msgspec.structs.replace(answer, notes=(*answer.notes, *[problem_of_pack] * bool(problem_of_pack)))
    if as_json:
        _print_json(
            ExplainDocument(
                pack=str(pack), problem=answer.problem, curve=answer.curve, runs=answer.runs, notes=list(answer.notes)
            )
        )
    elif answer.curve is not None:
        _say(_drawn(answer, pack))
    if answer.problem:
        _fail(answer.problem, as_json=as_json)


@click.command()
@_pack
@click.option(
    "--between", nargs=2, metavar="GOOD BAD", required=True, help="A commit without the bug, and one with it."
)
@click.option(
    "--with", "overlay", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
    help="A file of the checkout that is laid over each commit: today's test, say. May be given again.",
)  # fmt: skip
@click.option(
    "--runs", type=click.IntRange(1, 1000), default=20, show_default=True,
    help="Runs of a commit at most; so many are made as a flaky violation needs.",
)  # fmt: skip
@_finding
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True, max=1e6), default=120.0, show_default=True,
    help="Stop judging a commit after so many seconds.",
)  # fmt: skip
@_trust
@_json
@_own
def bisect(
    pack: Path, *, between: tuple[str, str], overlay: tuple[Path, ...], runs: int, finding: str, seconds: float,
    trust: bool, as_json: bool, pytest_arguments: tuple[str, ...],
) -> None:  # fmt: skip
    """Find the commit that brought the violation of PACK, with git bisect.

    Commits are checked out in a clone of our own, in the scratch folder: the checkout is not
    touched. Each is judged by replays of the pack. One that cannot be judged (an import fails, a
    fault does not come) is skipped, and said. A test that a commit does not have is today's.

    Exits 0 when the commit was found; 2 when only skipped commits are left, or an end cannot be
    judged; 3 when GOOD is bad, BAD is good, or there is no git repository.
    """
    from pytest_chaos.narrow import bisect as bisecting, work

    opened, root = _opened(pack, trust=trust)
    cause = work.finding_of(opened, finding)

    def say(text: str) -> None:
        if not as_json:
            click.echo(harmless(text))

    found = bisecting.bisect(
        opened, cause, root=root, good=between[0], bad=between[1], overlay=overlay, runs=runs, seconds=seconds,
        arguments=pytest_arguments, say=say,
    )  # fmt: skip
    if as_json:
        _print_json(
            BisectDocument(
                pack=str(pack),
                first_bad=found.first_bad,
                candidates=list(found.candidates),
                judged=[
                    JudgedCommit(commit=each.commit, subject=each.subject, verdict=each.verdict, why=each.why)
                    for each in found.judged
                ],
                problem=found.problem,
            )
        )
    elif found.first_bad:
        _say(_told_bisect(found))
    if found.problem:
        _fail(found.problem, as_json=as_json)


def _opened(pack: Path, *, trust: bool) -> tuple[Pack, Path]:
    """Open a pack of a violated run, with the folder of its test. Raises UsageError."""
    from pytest_chaos.narrow.own import folder_of, opened_as_written

    opened = opened_as_written(pack)
    if opened.verdict is not Verdict.VIOLATED:
        msg = f"{pack} must be the pack of a violated run; got one that is {opened.verdict}. Give another pack"
        raise UsageError(msg)
    return opened, folder_of(opened, trust=trust)


def _fail(problem: str, *, as_json: bool) -> None:
    if not as_json:
        click.echo(harmless(f"chaos: {problem}"), err=True)
    raise click.exceptions.Exit(_INCONCLUSIVE)


class _Progress:
    """How many runs were made: in one line of a terminal, which is removed at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._shows = sys.stderr.isatty() and not as_json
        self._length = 0

    def __enter__(self) -> Self:
        return self

    def __call__(self, line: Heard) -> None:
        """Show a line."""
        if self._shows:
            self._put(f"{line.runs} runs; now with {line.text}")

    def __exit__(self, *_: object) -> None:
        if self._shows:
            self._put("")
            click.echo("\r", nl=False, err=True)

    def _put(self, text: str) -> None:
        click.echo("\r" + text.ljust(self._length), nl=False, err=True)
        self._length = len(text)


def _drawn(answer: Narrowed, pack: Path) -> list[str]:
    """Return a curve in lines: a bar for each moment."""
    from pytest_chaos.narrow.work import command_of_page, flat

    curve = answer.curve
    assert curve is not None  # noqa: S101 - the caller has looked
    lines = [
        f"P(violation) by the {curve.unit} of the fault ({curve.fault}), {answer.runs} runs ({answer.seconds:.1f} s)"
    ]
    width = max(len(f"{point.at:,}") for point in curve.points)
    for point in curve.points[:_ROWS_MAX]:
        bar = "█" * round(point.violated / point.runs * _CURVE_WIDTH)
        share = f"{point.violated}/{point.runs}"
        what = "  ".join(part for part in (point.text, point.line) if part)
        lines.append(f"  {point.at:>{width},} {bar:<{_CURVE_WIDTH}} {share:>7}  {what}".rstrip())
    if (more := len(curve.points) - _ROWS_MAX) > 0:
        lines.append(f"  and {more:,} more moments, in the pack")
    lines += curve.neighbours or (flat(curve),)
    lines += answer.notes
    if not answer.is_whole:
        lines.append("the budget was used up before every moment was run as often as asked")
    return [*lines, command_of_page(pack)]


def _told_bisect(found: Bisected) -> list[str]:
    skipped = [each for each in found.judged if each.verdict == "skipped"]
    lines = [f"the violation came with {found.first_bad[:12]}: {found.subject}"]
    lines += [f"  {found.author}, {found.date}"] if found.author else []
    lines += [f"skipped {each.commit[:12]} ({each.subject}): {each.why}" for each in skipped]
    return lines


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(harmless(line))


def _print_json(value: object) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=1))
