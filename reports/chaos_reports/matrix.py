"""Summary to page: labels, listed runs, cuts, and a digest of the records. Pure."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec
from pytest_chaos.model.campaign import MatrixSummary, ScenarioSummary
from pytest_chaos.model.deciding.sequential import Standing
from pytest_chaos.model.signatures import cause_of
from pytest_chaos.model.values import RunRecord, Verdict

from chaos_reports.figures import known_limitations, not_proved, percent, plural
from chaos_reports.grid import COLUMNS_MAX, NOT_RUN, Cell, Grid, GridRow, cells_of, kinds_of, not_run
from chaos_reports.trend.history import SESSIONS_MAX, Sessions, Trend

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.model.deciding.sequential import Proof

RUNS_LISTED_MAX: Final = 50
"""Runs of one scenario that a page lists, those that did not hold first."""

RUNS_LISTED_TOTAL: Final = 1_000
"""Runs that a page lists in all, about: with many scenarios, each lists fewer."""

RUNS_LISTED_MIN: Final = 5

DURATIONS_MIN: Final = 5
"""Runs from which on their durations are drawn."""
DURATION_BINS: Final = 32

SESSIONS_SHOWN_TOTAL: Final = 1_200
"""Points of all histories of a page, about: with many scenarios, each shows fewer sessions."""

SESSIONS_SHOWN_MIN: Final = 5

TOLERATED: Final = "TOLERATED"
INCOMPLETE: Final = "INCOMPLETE"

GLYPHS: Final = {"HELD": "✓", TOLERATED: "≈", "INCONCLUSIVE": "?", INCOMPLETE: "?", "VIOLATED": "✗", NOT_RUN: "○"}
"""Shown beside the word, so that nothing depends on colour."""
_WORST_FIRST: Final = ("VIOLATED", INCOMPLETE, "INCONCLUSIVE", TOLERATED, "HELD")


class DurationBin(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of about one duration, by verdict."""

    held: int = 0
    inconclusive: int = 0
    violated: int = 0


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """The durations of a scenario's runs, from 0 to ``high_s`` in bins of one width."""

    bins: tuple[DurationBin, ...]
    low_s: float
    median_s: float
    high_s: float
    runs_max: int


class ScenarioView(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the matrix and its details."""

    summary: ScenarioSummary
    label: str
    anchor: str
    runs: tuple[RunRecord, ...]
    runs_omitted: int
    trend: Trend | None = None
    durations: Durations | None = None

    def first_seen(self, signature: str) -> str:
        """Say when a finding was first seen; nothing without earlier sessions."""
        return self.trend.first_seen.get(cause_of(signature), "") if self.trend else ""

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
    grid: Grid
    not_proved: tuple[str, ...]
    limitations: tuple[str, ...]
    digest: str
    history: Sessions = Sessions()

    @property
    def longest_s(self) -> float:
        """The duration of the longest scenario, which the bars are scaled to."""
        return max((row.summary.duration_s for row in self.scenarios), default=0.0)


def view(matrix: MatrixSummary, *, is_worst_first: bool = False, history: Sessions | None = None) -> MatrixView:
    """Make the view of a summary. With ``is_worst_first`` violated scenarios come first."""
    history = history or Sessions()
    share = RUNS_LISTED_TOTAL // max(1, len(matrix.scenarios))
    listed = max(RUNS_LISTED_MIN, min(RUNS_LISTED_MAX, share))
    anchors = _anchors([each.scenario.id for each in matrix.scenarios])
    shown = SESSIONS_SHOWN_TOTAL // max(1, len(matrix.scenarios))
    sessions = max(SESSIONS_SHOWN_MIN, min(SESSIONS_MAX, shown))
    rows = [
        _scenario(each, anchor, listed, history.trend(each, matrix.header.started, sessions))
        for each, anchor in zip(matrix.scenarios, anchors, strict=True)
    ]
    if is_worst_first:
        rows.sort(key=lambda row: _WORST_FIRST.index(row.label))
    return MatrixView(
        summary=matrix,
        label=label(matrix.verdict, tolerated=matrix.tolerated, incomplete=matrix.incomplete),
        headline=headline(matrix),
        scenarios=tuple(rows),
        grid=_grid(matrix, rows),
        not_proved=not_proved(matrix),
        limitations=known_limitations(matrix),
        digest=_digest(matrix),
        history=history,
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
    more = (*matrix.campaign, *matrix.power, *matrix.bank)
    sentence = " ".join([sentence, *(f"{each[:1].upper()}{each[1:]}." for each in more)])
    return sentence if not matrix.incomplete else f"{INCOMPLETE}: {'; '.join(matrix.reasons)}. {sentence}"


def decision(summary: ScenarioSummary) -> str:
    """Say where the proof of the rate stands, or what the gate lets through."""
    if summary.proof is not None:
        return _of_proof(summary.proof)
    gate = summary.gate
    if gate is None:
        return ""
    asked = f"gate of {percent(gate.rate_min)} over {plural(gate.runs, 'run')}"
    return f"{asked}: a true {percent(gate.true_rate)} passes it {percent(gate.passes)} of the time"


def _of_proof(proof: Proof) -> str:
    runs, rate = plural(proof.runs, "run"), percent(proof.rate)
    if proof.decision is Standing.PROVED:
        return f"proved after {runs}: at least {rate} (a lower rate is proved {percent(proof.alpha)} of the time)"
    if proof.decision is Standing.REFUTED:
        return (
            f"refuted after {runs}: below {rate}, at most {percent(proof.upper)} "
            f"(a rate of {rate} is refuted {percent(proof.beta)} of the time)"
        )
    between = f"between {percent(proof.lower)} and {percent(proof.upper)}"
    return f"undecided after {runs}: {between}; {plural(proof.runs_needed, 'more clean run')} would prove {rate}"


def outcome(summary: ScenarioSummary) -> str:
    """Return the runs counted by verdict."""
    parts = (
        (summary.held, "held"),
        (summary.violated, "violated"),
        (summary.inconclusive, "inconclusive"),
        (summary.missing, "not made"),
        (summary.not_begun, "not begun"),
    )
    return ", ".join(f"{count} {word}" for count, word in parts if count)


def bound(summary: ScenarioSummary) -> str:
    """Return the confidence bound of the pass rate in words."""
    return "no conclusive run" if summary.pass_rate_lower is None else f"at least {percent(summary.pass_rate_lower)}"


def packs_of(matrix: MatrixSummary) -> list[str]:
    """Return the packs of all runs, violated ones first, each as its record has it."""
    runs = _worst_first([run for each in matrix.scenarios for run in each.records])
    return list(dict.fromkeys(run.evidence for run in runs if run.evidence))


def _grid(matrix: MatrixSummary, rows: Sequence[ScenarioView]) -> Grid:
    kinds = kinds_of(matrix)
    shown = kinds[:COLUMNS_MAX]
    return Grid(
        kinds=tuple(shown),
        rows=tuple(
            GridRow(
                id=row.summary.scenario.id,
                title=row.summary.scenario.title,
                label=row.label,
                cells=cells_of(row.summary, shown),
                anchor=row.anchor,
            )
            for row in rows
        )
        + tuple(
            GridRow(id=name, title=title, label=NOT_RUN, cells=(Cell(),) * len(shown), reason=reason)
            for name, title, reason in not_run(matrix)
        ),
        kinds_omitted=len(kinds) - len(shown),
    )


def _anchors(ids: Sequence[str]) -> list[str]:
    """Return a name for each scenario that a link can end with: its id, if that is plain."""
    anchors: dict[str, None] = {}
    for place, each in enumerate(ids, start=1):
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", each)[:80].strip("-") or "scenario"
        anchors[plain if plain not in anchors else f"{plain}-{place}"] = None
    return list(anchors)


def _scenario(summary: ScenarioSummary, anchor: str, listed: int, trend: Trend | None) -> ScenarioView:
    runs = _worst_first(summary.records)[:listed]
    return ScenarioView(
        summary=summary,
        label=row_label(summary),
        anchor=anchor,
        runs=tuple(runs),
        runs_omitted=len(summary.records) - len(runs),
        trend=trend,
        durations=_durations(summary.records),
    )


def _durations(runs: Sequence[RunRecord]) -> Durations | None:
    """Return the bins of the durations; None for few runs, or for times that are none."""
    times = sorted(run.duration_s for run in runs if math.isfinite(run.duration_s) and run.duration_s >= 0)
    if len(times) < DURATIONS_MIN or times[-1] <= 0:
        return None
    counts: list[Counter[Verdict]] = [Counter() for _ in range(DURATION_BINS)]
    for run in runs:
        if math.isfinite(run.duration_s) and run.duration_s >= 0:
            counts[min(DURATION_BINS - 1, int(run.duration_s / times[-1] * DURATION_BINS))][run.verdict] += 1
    return Durations(
        bins=tuple(
            DurationBin(
                held=each[Verdict.HELD], inconclusive=each[Verdict.INCONCLUSIVE], violated=each[Verdict.VIOLATED]
            )
            for each in counts
        ),
        low_s=times[0],
        median_s=times[(len(times) - 1) // 2],
        high_s=times[-1],
        runs_max=max(each.total() for each in counts),
    )


def _worst_first(runs: Sequence[RunRecord]) -> list[RunRecord]:
    order = (Verdict.VIOLATED, Verdict.INCONCLUSIVE, Verdict.HELD)
    return sorted(runs, key=lambda run: order.index(run.verdict))


def _digest(matrix: MatrixSummary) -> str:
    content = hashlib.sha256(msgspec.json.encode(matrix.header, order="sorted"))
    for record in (record for each in matrix.scenarios for record in each.records):
        content.update(msgspec.json.encode(record, order="sorted"))
    return content.hexdigest()
