"""The baseline of ``chaos explore``: read before, compared, printed and written after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.baseline import (
    BaselineError,
    check_destination,
    compared,
    read_baseline,
    rest,
    write_baseline,
)
from pytest_chaos.model.values import Verdict
from pytest_chaos.model.verdict import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.explore.baseline import AgainstBaseline, KnownFinding
    from pytest_chaos.explore.report import Exploration
    from pytest_chaos.explore.target import Subject

EXITS: Final = {"HELD": 0, "KNOWN": 0, "VIOLATED": 1, "INCONCLUSIVE": 2}
SHOWN_MAX: Final = 20
"""So many findings, and so many entries of each kind, are printed; the JSON has all."""


class KnownFindings:
    """The baseline of a call, read before anything is explored, and where to write a new one.

    Raises UsageError for a mistake in the call, and Exit for a baseline that is of no use.
    """

    def __init__(self, subject: Subject, baseline: Path | None, written: Path | None, *, is_state: bool) -> None:
        self.name = harmless(str(baseline))
        self._written = written
        if is_state and (baseline or written):
            msg = "--baseline and --write-baseline must come without --state; got both. Leave one of them out"
            raise UsageError(msg)
        if written is not None:
            check_destination(written)
        try:
            self._baseline = read_baseline(baseline, subject.name) if baseline is not None else None
        except BaselineError as error:
            click.echo(harmless(f"chaos: {error}"), err=True)
            raise click.exceptions.Exit(EXITS[Verdict.INCONCLUSIVE]) from None

    def compared(self, explored: Exploration) -> AgainstBaseline | None:
        """Return what is new; None without a baseline."""
        return compared(explored, self._baseline) if self._baseline is not None else None

    def write(self, explored: Exploration, code: int) -> int:
        """Write the new baseline, if one is wanted; return the exit code of the call."""
        if self._written is None:
            return code
        name = harmless(str(self._written))
        if rest(explored) is not Verdict.HELD:
            click.echo(f"{name} was not written: it would lack what this exploration did not come to; see above")
            return code or EXITS[Verdict.INCONCLUSIVE]
        count = len(set(map(_cause, write_baseline(explored, self._written).known)))
        entries = "1 known finding" if count == 1 else f"{count:,} known findings"
        click.echo(f"wrote {name}: {entries}; --baseline {name} fails on what is new")
        return code if self._baseline is not None else 0


def counted(known: AgainstBaseline, baseline: str) -> str:
    """Return how many causes are new, and how many are known; empty without any."""
    if not known.new and not known.known:
        return ""
    new, rest_of_them = (len(set(map(_cause, entries))) for entries in (known.new, known.known))
    return f"{f'{new:,} new' if new else 'nothing new'}, {rest_of_them:,} known ({baseline}): "


def lines_of(known: AgainstBaseline, baseline: str) -> Iterator[str]:
    """Yield what the baseline says of what was found, and what of it was not: a line a cause."""
    for word, entries in (("known", known.known), ("new", known.new), ("gone", known.gone)):
        causes: dict[tuple[str, str], list[KnownFinding]] = {}
        for entry in entries:
            causes.setdefault(_cause(entry), []).append(entry)
        for each in list(causes.values())[:SHOWN_MAX]:
            yield f"{word}: {each[0].text}: {', '.join(entry.where for entry in each[:SHOWN_MAX])}"
        if (more := len(causes) - SHOWN_MAX) > 0:
            yield f"{word}: {more:,} more, which the JSON has"
    if known.gone:
        yield f"what is gone was not found any more: --write-baseline {baseline} takes it out"
    if known.unseen:
        yield f"not seen this time: {len(known.unseen):,} known, in what was sampled, not explored, or not to its end"


def _cause(entry: KnownFinding) -> tuple[str, str]:
    return entry.kind, entry.signature
