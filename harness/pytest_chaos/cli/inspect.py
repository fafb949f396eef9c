"""The command ``chaos inspect``: a held state as a folder, with what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from pytest_chaos.cli.explore import RESULTS
from pytest_chaos.errors import UsageError
from pytest_chaos.model.verdict import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_chaos.explore.inspection import SaidMark, StateDocument, StateFile
    from pytest_chaos.model.story import LostItem

_SHOWN: Final = 20
_INSPECTED: Final = "inspected"


@click.command("inspect")
@click.argument("state")
@click.option(
    "--states", type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The failing states of an exploration, whose recording has the code.  [default: those written last]",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False),
    help="Where the state of a code is built.  [default: explore/inspected in the results folder]",
)  # fmt: skip
@click.option(
    "--results", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True,
    help="The results folder.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def inspect_state(*, state: str, states: Path | None, output: Path | None, results: Path, as_json: bool) -> None:
    """Show a held STATE: where it struck, what was acknowledged, what is missing, and its files.

    STATE is a folder that chaos explore has kept, or the state code of a finding
    ('power:ext4:4m2:1.w'): the state is then built from the recording that the exploration kept,
    without the program, as a folder with directory/, marks.jsonl and known.json.

    Exits 0 when the state is shown, 3 for a mistake in the call.
    """
    from pytest_chaos.explore.inspection import build, inspect_folder, newest_states

    if state and Path(state).is_dir():
        found = inspect_folder(Path(state))
    else:
        place = states or newest_states(results)
        if place is None:
            msg = f"a state must be a folder, or a code of a recording; got {state}, and {results} has no recording. "
            raise UsageError(msg + "Name the folder of failing states with --states")
        found = build(state, place, output or results / "explore" / _INSPECTED)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
        return
    for line in lines(found):
        click.echo(harmless(line))


def lines(found: StateDocument) -> Iterator[str]:
    """Yield what is known of a state as lines of text."""
    if found.code:
        yield f"{found.code}: {found.state}"
    if found.step:
        line = f", at {found.line}" if found.line else ""
        missing = f"{found.at or found.step}{line} (of {found.steps:,}) did not happen any more"
        yield f"step:          {missing if found.step <= found.steps else f'all {found.steps:,} had happened'}"
    for text in found.findings:
        yield f"found:         {text}"
    if not found.verdict:
        yield "found:         no check has judged it here"
    yield from _listed("acknowledged:", [_said(mark) for mark in found.acknowledged], "nothing")
    yield from _listed("begun:", [f"{_said(mark)} (outcome unknown)" for mark in found.begun], "nothing more")
    if found.missing:
        yield from _listed("missing:", [_lost(item) for item in found.missing], "")
    yield from _listed("files:", [_file(each) for each in found.files], "none")
    yield f"in:            {found.folder}"
    if found.again:
        yield f"again:         {found.again}"


def _listed(title: str, texts: Sequence[str], nothing: str) -> Iterator[str]:
    shown = list(texts[-_SHOWN:]) or [nothing]
    if len(texts) > _SHOWN:
        shown.insert(0, f"{len(texts) - _SHOWN:,} more, which the JSON has")
    for place, text in enumerate(shown):
        yield f"{'' if place else title:<15}{text}"


def _said(mark: SaidMark) -> str:
    key = "" if mark.key is None else f" {mark.key}"
    return f"{mark.operation}{key}{f' by {mark.agent}' if mark.agent else ''}, mark {mark.order + 1:,}"


def _lost(item: LostItem) -> str:
    key = "" if item.mark.key is None else f" {item.mark.key}"
    step = f"step {item.step}: {item.text}{f', at {item.line}' if item.line else ''}; " if item.step else ""
    return f"{item.mark.operation}{key}: {step}{item.why}"


def _file(each: StateFile) -> str:
    told = {
        "same": "as promised", "other": "not as promised", "new": "was not promised", "gone": "promised, and not there"
    }  # fmt: skip
    size = f"{each.size_bytes:,} bytes" if each.kind == "file" else f"{each.kind} {each.target}".rstrip()
    return f"{each.path}  {size}" + (f"  {told[each.promised]}" if each.promised in told else "")
