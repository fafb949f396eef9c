"""Scenarios by faults at a glance: which fault struck which scenario, and how its runs ended. Pure.

A cell counts the runs in which the fault was planned, and how many of them did not hold. It takes
the worst of their verdicts, and is never green where the fault did not fire in each of them. A
scenario that was collected and not run has a row of its own, without a verdict.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

import msgspec
from pytest_chaos.model.values import Verdict

from chaos_reports.figures import plural

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.model.campaign import MatrixSummary, ScenarioSummary
    from pytest_chaos.model.values import RunRecord

NO_FAULT: Final = "no fault"
NOT_RUN: Final = "NOT RUN"
EXPLORED: Final = "explore:"
COLUMNS_MAX: Final = 24
"""Kinds of faults with a column of their own; the rarest others are left out, and counted."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """The runs of a scenario in which a fault was planned. ``label`` is a verdict, or empty."""

    label: str = ""
    text: str = ""
    title: str = ""


class GridRow(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario. ``reason`` says why one without runs has none."""

    id: str
    title: str
    label: str
    cells: tuple[Cell, ...]
    anchor: str = ""
    reason: str = ""


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """The table: the kinds of faults, and a row for each scenario."""

    kinds: tuple[str, ...]
    rows: tuple[GridRow, ...]
    kinds_omitted: int = 0


def cells_of(summary: ScenarioSummary, kinds: Iterable[str]) -> tuple[Cell, ...]:
    """Return the cells of a scenario, one for each kind."""
    runs: defaultdict[str, list[RunRecord]] = defaultdict(list)
    for run in summary.records:
        for kind in _kinds(run):
            runs[kind].append(run)
    tolerated = summary.tolerated and summary.verdict is Verdict.HELD
    return tuple(_cell(kind, runs[kind], tolerated=tolerated) if runs[kind] else Cell() for kind in kinds)


def kinds_of(matrix: MatrixSummary) -> list[str]:
    """Return the kinds of faults, explorations first, then by the number of their runs."""
    counts = Counter(kind for each in matrix.scenarios for run in each.records for kind in _kinds(run))
    return sorted(counts, key=lambda kind: (not kind.startswith(EXPLORED), kind == NO_FAULT, -counts[kind], kind))


def not_run(matrix: MatrixSummary) -> list[tuple[str, str, str]]:
    """Return id, title and reason of each scenario that was collected and has no run."""
    known = {each.scenario.id for each in matrix.scenarios}
    return [
        (
            each.scenario.id,
            each.scenario.title,
            f"{plural(each.deselected, 'run')} deselected" if not each.runs else "skipped by its test",
        )
        for each in matrix.header.planned
        if each.scenario.id not in known
    ]


def _kinds(run: RunRecord) -> set[str]:
    planned = {fault.kind for fault in run.plan.faults} if run.plan else set()
    return planned | {receipt.kind for receipt in run.receipts} or {NO_FAULT}


def _cell(kind: str, runs: list[RunRecord], *, tolerated: bool) -> Cell:
    fired = sum(kind == NO_FAULT or _fired(kind, run) for run in runs)
    verdict = Verdict.worst(run.verdict for run in runs)
    if verdict is Verdict.HELD and fired < len(runs):
        verdict = Verdict.INCONCLUSIVE
    counts = Counter(run.verdict for run in runs)
    said = ", ".join(f"{counts[each]} {each.lower()}" for each in reversed(Verdict) if counts[each])
    bad = counts[verdict] or len(runs) - fired
    text = f"{len(runs):,}" if verdict is Verdict.HELD else f"{bad:,} of {len(runs):,}"
    title = f"{kind}: {plural(len(runs), 'run')}, {said}"
    if kind != NO_FAULT:
        title += f"; it fired in {fired}"
    is_tolerated = tolerated and verdict is not Verdict.HELD
    return Cell(label="TOLERATED" if is_tolerated else str(verdict), text=text, title=title)


def _fired(kind: str, run: RunRecord) -> bool:
    """Whether each planned fault of this kind fired, and at least one."""
    receipts = [receipt for receipt in run.receipts if receipt.kind == kind]
    return bool(receipts) and all(receipt.fired for receipt in receipts)
