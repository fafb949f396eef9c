"""What a matrix does not prove: said next to the verdicts, with the figures of the very matrix. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from harness.statistics import CONFIDENCE, gate_pass_probability, runs_needed
from reports.figures import percent, plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.campaign import MatrixSummary

_SAMPLE_RATE: Final = 0.95
"""The true pass rate of the scenario that the text takes as its example: it fails one time in twenty."""

_WAL_RESET_FIXED: Final = (3, 51, 3)


def not_proved(matrix: MatrixSummary) -> tuple[str, ...]:
    """Return, in sentences, what stays open however green the matrix is."""
    return (*_power_loss(matrix), *_samples(matrix), *_coverage(matrix), *_SCOPE)


def known_limitations(matrix: MatrixSummary) -> tuple[str, ...]:
    """Return what is known to be limited here: what the scenarios noted themselves, and the versions in use."""
    noted = dict.fromkeys(
        f"{each.scenario.title or each.scenario.id}: {text}" for each in matrix.scenarios for text in each.limitations
    )
    return (*noted, *_versions(matrix))


_SCOPE: Final = (
    "It is about one machine. Another kernel, file system, disk or SQLite version may keep writes differently.",
    "Checkers find what they were told to look for. A property that nobody wrote down may be broken in every run.",
)


def _power_loss(matrix: MatrixSummary) -> Iterator[str]:
    if not any("power" in fault.kind and fault.fired for each in matrix.scenarios for fault in each.faults):
        yield (
            "Nothing here is about power loss. A process that is killed leaves the page cache of the kernel whole, so "
            "a commit that never reached the disk still looks durable afterwards."
        )


def _samples(matrix: MatrixSummary) -> Iterator[str]:
    judged = [each for each in matrix.scenarios if each.pass_rate_lower is not None]
    if not judged:
        return
    weakest = min(judged, key=lambda each: each.pass_rate_lower or 0.0)
    yield (
        f"Moments drawn at random are a sample, not all moments. {plural(weakest.held, 'run')} that held of "
        f"{weakest.held + weakest.violated} ({weakest.scenario.id}) show, at {percent(CONFIDENCE)} confidence, a pass "
        f"rate of at least {percent(weakest.pass_rate_lower)}; to claim 98 % takes {runs_needed(0.98)} clean runs."
    )
    chances = [(gate_pass_probability(_SAMPLE_RATE, each.runs, each.pass_rate_min), each) for each in judged]
    passed, easiest = max(chances, key=lambda chance: chance[0])
    yield (
        f"A scenario that fails one time in twenty passes the easiest gate here ({percent(easiest.pass_rate_min)} of "
        f"{plural(easiest.runs, 'run')}) in {percent(passed)} of all campaigns."
    )


def _coverage(matrix: MatrixSummary) -> Iterator[str]:
    kinds = sorted({fault.kind for each in matrix.scenarios for fault in each.faults if fault.fired})
    if kinds:
        yield f"Only these faults fired: {', '.join(kinds)}. Nothing follows from that for any other."
    points = [point for each in matrix.scenarios for point in each.crash_points]
    if missed := sum(not point.fired for point in points):
        yield f"No fault was fired at {missed} of the {plural(len(points), 'known crash point')}."


def _versions(matrix: MatrixSummary) -> Iterator[str]:
    sqlite = matrix.header.versions.get("sqlite", "")
    parts = tuple(int(part) for part in re.findall(r"\d+", sqlite)[:3])
    if parts and parts < _WAL_RESET_FIXED:
        yield (
            f"SQLite {sqlite} has the WAL-reset bug, mended in 3.51.3: with several connections it can, rarely, damage "
            "a database. Compare a finding with its signature before blaming the target."
        )
