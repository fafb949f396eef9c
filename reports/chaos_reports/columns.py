"""The columns of the matrix: one list for HTML, Markdown, JSON and the terminal. Pure.

To add a column, add one entry to :data:`COLUMNS`. Every writer shows its ``cell`` as lines of plain
text, and ``matrix.json`` has its keys. A template may show a column in its own way: it then has a
macro for it, listed in its ``cells``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from chaos_reports.figures import clip, duration, percent, plural
from chaos_reports.matrix import GLYPHS, bound, decision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.model.campaign import AssertionSummary, ScenarioSummary

    from chaos_reports.matrix import ScenarioView

HTML: Final = "html"
MARKDOWN: Final = "md"
TERMINAL: Final = "terminal"
ASSERTIONS_SHOWN_MAX: Final = 3
"""Key assertions in the matrix itself; the details have all of them."""


def _nothing(_: ScenarioSummary) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the matrix.

    ``cell`` returns the lines of a row. ``keys`` returns what ``matrix.json`` has of it. The
    terminal shows ``brief`` on the scenario's line or, if ``is_below``, on a line of its own.
    """

    name: str
    title: str
    cell: Callable[[ScenarioView], Sequence[str]]
    keys: Callable[[ScenarioSummary], dict[str, Any]] = _nothing
    shown_in: frozenset[str] = frozenset({HTML, MARKDOWN, TERMINAL})
    is_number: bool = False
    brief: Callable[[ScenarioView], str] | None = None
    is_below: bool = False

    def line(self, row: ScenarioView) -> str:
        """Return the cell as one line, for the terminal."""
        return self.brief(row) if self.brief is not None else ", ".join(self.cell(row))


def shown_in(writer: str) -> tuple[Column, ...]:
    """Return the columns that a writer (HTML, MARKDOWN, TERMINAL) shows, in order."""
    return tuple(column for column in COLUMNS if writer in column.shown_in)


def _scenario_keys(summary: ScenarioSummary) -> dict[str, Any]:
    scenario = summary.scenario
    return {"id": scenario.id, "title": scenario.title, "why": scenario.why, "steps": list(scenario.steps)}


def _runs(row: ScenarioView) -> Sequence[str]:
    return [_count(row), *([points] if (points := _points(row)) else [])]


def _count(row: ScenarioView) -> str:
    summary = row.summary
    return f"{summary.runs:,} of {summary.planned:,}" if summary.missing else f"{summary.runs:,}"


def _points(row: ScenarioView) -> str:
    points = row.summary.crash_points
    return f"{row.points_hit}/{len(points)} points" if points else ""


def _faults(row: ScenarioView) -> Sequence[str]:
    return [f"{clip(fault.kind, 40)} {fault.fired}/{fault.planned}" for fault in row.summary.faults] or ["none"]


def _fired(row: ScenarioView) -> str:
    if not row.summary.faults:
        return "no fault"
    points = _points(row)
    return f"fired: {', '.join(_faults(row))}{f'; {points}' if points else ''}"


def _rate(row: ScenarioView) -> str:
    lower = row.summary.pass_rate_lower
    return percent(row.summary.pass_rate) + ("" if lower is None else f" (≥ {percent(lower)})")


def _decision_keys(summary: ScenarioSummary) -> dict[str, Any]:
    found: dict[str, Any] = {"pass_rate_lower": summary.pass_rate_lower, "not_begun": summary.not_begun}
    if summary.proof is not None:
        found["proof"] = msgspec.to_builtins(summary.proof)
    if summary.gate is not None:
        found["gate"] = msgspec.to_builtins(summary.gate)
    if summary.drifts:
        found["drifts"] = msgspec.to_builtins(summary.drifts)
    return found


def _assertions(row: ScenarioView) -> Sequence[str]:
    found = row.summary.assertions
    lines = [
        f"{'✓' if each.holds else '✗'} {clip(each.name, 80)}: {clip(first_value(each), 60)}"
        for each in found[:ASSERTIONS_SHOWN_MAX]
    ]
    more = [f"and {len(found) - ASSERTIONS_SHOWN_MAX} more"] if len(found) > ASSERTIONS_SHOWN_MAX else []
    return [*lines, *more] or ["none"]


def first_value(assertion: AssertionSummary) -> str:
    """Return the value to show of a key assertion: one that did not hold, if there is one."""
    return (assertion.broken.values or assertion.observed.values)[0][0]


def _assertion_entry(assertion: AssertionSummary) -> dict[str, Any]:
    values = [*assertion.broken.values, *assertion.observed.values]
    return {
        "name": assertion.name,
        "observed": list(dict.fromkeys(value for value, _ in values)),
        "holds": assertion.holds,
        "seen": assertion.seen,
        "failed": assertion.failed,
    }


COLUMNS: Final = (
    Column(
        "verdict",
        "Verdict",
        lambda row: [f"{GLYPHS[row.label]} {row.label}"],
        lambda each: {
            "verdict": each.verdict.value,
            "tolerated": each.tolerated,
            "incomplete": each.missing > 0,
        },
    ),
    Column(
        "id",
        "Scenario",
        lambda row: [row.summary.scenario.id],
        _scenario_keys,
        frozenset({MARKDOWN, TERMINAL}),
        brief=lambda row: clip(row.summary.scenario.id, 60),
    ),
    Column(
        "proves",
        "What it proves",
        lambda row: [row.summary.scenario.title],
        brief=lambda row: clip(row.summary.scenario.title, 240),
        is_below=True,
    ),
    Column(
        "faults",
        "Faults fired",
        _faults,
        lambda each: {
            "faults": [{"kind": fault.kind, "planned": fault.planned, "fired": fault.fired} for fault in each.faults]
        },
        brief=_fired,
        is_below=True,
    ),
    Column(
        "runs",
        "Runs",
        _runs,
        lambda each: {
            "runs": each.runs,
            "missing": each.missing,
            "passed": each.held,
            "failed": each.violated,
            "inconclusive": each.inconclusive,
        },
        is_number=True,
        brief=_count,
    ),
    Column(
        "pass_rate",
        "Pass rate",
        lambda row: [percent(row.summary.pass_rate), bound(row.summary)],
        lambda each: {"pass_rate": each.pass_rate},
        is_number=True,
        brief=_rate,
    ),
    Column(
        "decision",
        "Decision",
        lambda row: [said] if (said := decision(row.summary)) else [],
        _decision_keys,
        frozenset({TERMINAL}),
        is_below=True,
    ),
    Column(
        "assertions",
        "Key assertions, values seen",
        _assertions,
        lambda each: {"assertions": [_assertion_entry(assertion) for assertion in each.assertions]},
        frozenset({HTML, MARKDOWN}),
    ),
    Column(
        "duration",
        "Duration",
        lambda row: [duration(row.summary.duration_s)],
        lambda each: {"duration_s": each.duration_s},
        is_number=True,
    ),
    Column(
        "evidence",
        "Evidence",
        lambda row: [plural(len(row.summary.evidence), "pack") if row.summary.evidence else "—"],
        lambda each: {"evidence": list(each.evidence)},
        frozenset({HTML, MARKDOWN}),
    ),
)
