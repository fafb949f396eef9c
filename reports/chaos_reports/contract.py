"""``matrix.json``: a shape that is promised to other programs.

A consumer may decode it with these types. A new column adds a key within format 1; no key changes
its meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from chaos_reports.columns import COLUMNS

if TYPE_CHECKING:
    from pytest_chaos.model.campaign import FailureSummary, MatrixSummary, ScenarioSummary

FORMAT: Final = 1


class FaultEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of fault: how many were planned, how many fired."""

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
    """Findings of one cause, with the first of their signatures: texts, evidence, lines."""

    signature: str
    kind: str
    runs: int
    texts: list[str]
    evidence: list[str]
    reproduce: list[str]
    reproduced: list[str] = []


class ProofEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Where the proof of a pass rate stands: ``proved``, ``refuted`` or ``undecided``.

    ``lower`` and ``upper`` bound the true rate at whatever run one looks. ``alpha`` bounds how
    often a lower rate is proved, ``beta`` how often one that is there is refuted. ``runs_needed``
    clean runs would prove it.
    """

    rate: float
    decision: str
    runs: int
    held: int
    violated: int
    lower: float
    upper: float
    runs_needed: int
    alpha: float
    beta: float


class GateEntry(msgspec.Struct, frozen=True, kw_only=True):
    """How often a scenario with ``true_rate`` passes ``rate_min`` of so many runs, by chance."""

    rate_min: float
    runs: int
    true_rate: float
    passes: float


class DriftEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What grows over the runs of a test; ``is_judged`` if the verdict depends on it."""

    measure: str
    test: str
    runs: int
    first: float
    last: float
    per_run: float
    chance: float
    is_judged: bool


class ScenarioEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario. ``pass_rate`` is passed / (passed + failed), or null.

    ``missing`` counts the runs that were planned and not made, ``not_begun`` those that were left
    out as the rate was decided or the budget used up. ``pass_rate_lower`` is the bound at 95 %.
    ``proof``, ``gate`` and ``drifts`` are left out where there is none.
    """

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
    incomplete: bool = False
    missing: int = 0
    pass_rate_lower: float | None = None
    not_begun: int = 0
    proof: ProofEntry | None = None
    gate: GateEntry | None = None
    drifts: list[DriftEntry] = []


class MatrixDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. ``incomplete``: it must not be taken for green; ``reasons`` say why.

    ``missing`` runs were planned and not made; ``skipped`` and ``deselected`` ones were not wanted.
    ``campaign`` says what was not begun, and of which shard this is.
    ``power`` has a sentence for each package that chaos mutate has tried; it is left out without.
    So is ``bank``, which says where the bug bank was run, and what of it was not shown.
    """

    seed: str
    started: str
    versions: dict[str, str]
    scenarios: list[ScenarioEntry]
    format: int = FORMAT
    incomplete: bool = False
    missing: int = 0
    skipped: int = 0
    deselected: int = 0
    reasons: list[str] = []
    campaign: list[str] = []
    power: list[str] = []
    bank: list[str] = []


class FailureDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What ``chaos report PACK --json`` prints: the verdict, and the path of the failure page."""

    verdict: str
    page: str
    format: int = FORMAT


def document(matrix: MatrixSummary) -> dict[str, Any]:
    """Return a summary in the promised shape, which is validated, with the keys of all columns."""
    found = {
        "seed": matrix.header.seed,
        "started": matrix.header.started,
        "versions": matrix.header.versions,
        "scenarios": [_scenario(each) for each in matrix.scenarios],
        "format": FORMAT,
        "incomplete": matrix.incomplete,
        "missing": matrix.missing,
        "skipped": matrix.skipped,
        "deselected": matrix.deselected,
        "reasons": list(matrix.reasons),
    }
    if matrix.campaign:
        found["campaign"] = list(matrix.campaign)
    if matrix.power:
        found["power"] = list(matrix.power)
    if matrix.bank:
        found["bank"] = list(matrix.bank)
    msgspec.convert(found, MatrixDocument)
    return found


def _scenario(summary: ScenarioSummary) -> dict[str, Any]:
    found: dict[str, Any] = {"failures": [_failure(each) for each in summary.failures]}
    for column in COLUMNS:
        found |= column.keys(summary)
    promised = ScenarioEntry.__struct_fields__
    return {name: found[name] for name in (*promised, *(found.keys() - set(promised))) if name in found}


def _failure(summary: FailureSummary) -> dict[str, Any]:
    return {
        "signature": summary.signature,
        "kind": summary.kind,
        "runs": summary.runs,
        "texts": [text for text, _ in summary.texts.values],
        "evidence": list(summary.evidence),
        "reproduce": list(summary.reproduce),
        "reproduced": [text for text, _ in summary.reproduced.values],
    }
