"""``matrix.json``: a shape promised to other programs, so it is written out here and not derived from our own types.

A consumer may decode it with these very types. New keys may be added within format 1; none changes
its meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pytest_chaos.model.campaign import AssertionSummary, FailureSummary, MatrixSummary, ScenarioSummary


class FaultEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of fault: how many were planned, how many are known to have fired."""

    kind: str
    planned: int
    fired: int


class AssertionEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A key assertion: the most frequent values seen, those that did not hold first."""

    name: str
    observed: list[str]
    holds: bool
    seen: int
    failed: int


class FailureEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Findings with one signature: in how many runs, what they said, the evidence, and the lines that show it again."""

    signature: str
    kind: str
    runs: int
    texts: list[str]
    evidence: list[str]
    reproduce: list[str]
    reproduced: list[str] = []


class ScenarioEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario. ``pass_rate`` is passed / (passed + failed), or null; ``evidence`` names folders."""

    id: str
    title: str
    why: str
    steps: list[str]
    verdict: str
    tolerated: bool
    runs: int
    passed: int
    failed: int
    inconclusive: int
    pass_rate: float | None
    duration_s: float
    faults: list[FaultEntry]
    assertions: list[AssertionEntry]
    failures: list[FailureEntry]
    evidence: list[str]


class MatrixDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    seed: str
    started: str
    versions: dict[str, str]
    scenarios: list[ScenarioEntry]
    format: int = 1


def document(matrix: MatrixSummary) -> MatrixDocument:
    """Put a summary into the promised shape."""
    return MatrixDocument(
        seed=matrix.header.seed,
        started=matrix.header.started,
        versions=matrix.header.versions,
        scenarios=[_scenario(each) for each in matrix.scenarios],
    )


def _scenario(summary: ScenarioSummary) -> ScenarioEntry:
    scenario = summary.scenario
    return ScenarioEntry(
        id=scenario.id,
        title=scenario.title,
        why=scenario.why,
        steps=list(scenario.steps),
        verdict=summary.verdict.value,
        tolerated=summary.tolerated,
        runs=summary.runs,
        passed=summary.held,
        failed=summary.violated,
        inconclusive=summary.inconclusive,
        pass_rate=summary.pass_rate,
        duration_s=summary.duration_s,
        faults=[FaultEntry(kind=each.kind, planned=each.planned, fired=each.fired) for each in summary.faults],
        assertions=[_assertion(each) for each in summary.assertions],
        failures=[_failure(each) for each in summary.failures],
        evidence=list(summary.evidence),
    )


def _assertion(summary: AssertionSummary) -> AssertionEntry:
    values = [*summary.broken.values, *summary.observed.values]
    return AssertionEntry(
        name=summary.name,
        observed=list(dict.fromkeys(value for value, _ in values)),
        holds=summary.holds,
        seen=summary.seen,
        failed=summary.failed,
    )


def _failure(summary: FailureSummary) -> FailureEntry:
    return FailureEntry(
        signature=summary.signature,
        kind=summary.kind,
        runs=summary.runs,
        texts=[text for text, _ in summary.texts.values],
        evidence=list(summary.evidence),
        reproduce=list(summary.reproduce),
        reproduced=[text for text, _ in summary.reproduced.values],
    )
