"""Summary to page: labels, listed runs, cuts, and a digest of the records. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec
from pytest_chaos.model.campaign import MatrixSummary, ScenarioSummary
from pytest_chaos.model.values import RunRecord, Verdict

from chaos_reports.figures import known_limitations, not_proved, percent, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

RUNS_LISTED_MAX: Final = 50
"""Runs of one scenario that a page lists, those that did not hold first."""

RUNS_LISTED_TOTAL: Final = 1_000
"""Runs that a page lists in all, about: with many scenarios, each lists fewer."""

RUNS_LISTED_MIN: Final = 5

TOLERATED: Final = "TOLERATED"
INCOMPLETE: Final = "INCOMPLETE"

GLYPHS: Final = {"HELD": "✓", TOLERATED: "≈", "INCONCLUSIVE": "?", INCOMPLETE: "?", "VIOLATED": "✗"}
"""Shown beside the word, so that nothing depends on colour."""


class ScenarioView(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the matrix and its details."""

    summary: ScenarioSummary
    label: str
    anchor: str
    runs: tuple[RunRecord, ...]
    runs_omitted: int

    @property
    def points_hit(self) -> int:
        """Number of crash points at which a fault fired."""
        return sum(point.fired > 0 for point in self.summary.crash_points)


class MatrixView(msgspec.Struct, frozen=True, kw_only=True):
    """The whole page. ``digest`` is the SHA-256 of the records, to compare two renderings."""

    summary: MatrixSummary
    label: str
    headline: str
    scenarios: tuple[ScenarioView, ...]
    not_proved: tuple[str, ...]
    limitations: tuple[str, ...]
    digest: str


def view(matrix: MatrixSummary) -> MatrixView:
    """Make the view of a summary."""
    share = RUNS_LISTED_TOTAL // max(1, len(matrix.scenarios))
    listed = max(RUNS_LISTED_MIN, min(RUNS_LISTED_MAX, share))
    return MatrixView(
        summary=matrix,
        label=label(matrix.verdict, tolerated=matrix.tolerated, incomplete=matrix.incomplete),
        headline=headline(matrix),
        scenarios=tuple(_scenario(each, place, listed) for place, each in enumerate(matrix.scenarios, start=1)),
        not_proved=not_proved(matrix),
        limitations=known_limitations(matrix),
        digest=_digest(matrix),
    )


def row_label(summary: ScenarioSummary) -> str:
    """Return the word for a scenario."""
    return label(summary.verdict, tolerated=summary.tolerated, incomplete=summary.missing > 0)


def label(verdict: Verdict, *, tolerated: bool, incomplete: bool = False) -> str:
    """Return the word for a verdict. A tolerated one has its own word and is never green.

    So has an incomplete one, unless what was seen is a violation already.
    """
    if incomplete and verdict is not Verdict.VIOLATED:
        return INCOMPLETE
    return TOLERATED if tolerated and verdict is Verdict.HELD else verdict.value


def headline(matrix: MatrixSummary) -> str:
    """Return the result in one sentence."""
    if not matrix.runs and not matrix.incomplete:
        return "No run was recorded, so nothing was shown."
    labels = Counter(row_label(each) for each in matrix.scenarios)
    counts = [
        (labels["HELD"], "held"),
        (labels[TOLERATED], "held with tolerated failures"),
        (labels["VIOLATED"], "violated"),
        (labels["INCONCLUSIVE"], "inconclusive"),
        (labels[INCOMPLETE], "incomplete"),
    ]
    said = ", ".join(f"{count} {word}" for count, word in counts if count)
    scenarios = plural(len(matrix.scenarios), "scenario")
    if matrix.scenarios_selected < matrix.scenarios_collected:
        scenarios = f"{matrix.scenarios_selected} of {plural(matrix.scenarios_collected, 'scenario')} selected"
    left_out = f" ({plural(matrix.deselected, 'run')} deselected)" if matrix.deselected else ""
    sentence = f"{scenarios}, {plural(matrix.runs, 'run')}{left_out}" + (f": {said}." if said else ".")
    return sentence if not matrix.incomplete else f"{INCOMPLETE}: {'; '.join(matrix.reasons)}. {sentence}"


def outcome(summary: ScenarioSummary) -> str:
    """Return the runs counted by verdict."""
    parts = (
        (summary.held, "held"),
        (summary.violated, "violated"),
        (summary.inconclusive, "inconclusive"),
        (summary.missing, "not made"),
    )
    return ", ".join(f"{count} {word}" for count, word in parts if count)


def bound(summary: ScenarioSummary) -> str:
    """Return the confidence bound of the pass rate in words."""
    return "no conclusive run" if summary.pass_rate_lower is None else f"at least {percent(summary.pass_rate_lower)}"


def _scenario(summary: ScenarioSummary, place: int, listed: int) -> ScenarioView:
    runs = _worst_first(summary.records)[:listed]
    return ScenarioView(
        summary=summary,
        label=row_label(summary),
        anchor=f"scenario-{place}",
        runs=tuple(runs),
        runs_omitted=len(summary.records) - len(runs),
    )


def _worst_first(runs: Sequence[RunRecord]) -> list[RunRecord]:
    order = (Verdict.VIOLATED, Verdict.INCONCLUSIVE, Verdict.HELD)
    return sorted(runs, key=lambda run: order.index(run.verdict))


def _digest(matrix: MatrixSummary) -> str:
    content = hashlib.sha256(msgspec.json.encode(matrix.header, order="sorted"))
    for record in (record for each in matrix.scenarios for record in each.records):
        content.update(msgspec.json.encode(record, order="sorted"))
    return content.hexdigest()
