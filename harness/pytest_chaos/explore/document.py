"""The result of an exploration for other programs: a contract, which ``--json`` writes.

A new key comes within format 1; none changes its meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.explore.baseline import AgainstBaseline
from pytest_chaos.explore.doubt.result import Doubt
from pytest_chaos.explore.report import Discovery, Exploration

if TYPE_CHECKING:
    from pytest_chaos.explore.causes import Cause
    from pytest_chaos.explore.report import FamilyResult
    from pytest_chaos.model.values import Finding

FORMAT: Final = 1


class FindingEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A finding of no state. Its ``kind`` is harness for one about the exploration itself."""

    signature: str
    kind: str
    text: str


class DiscoveryEntry(Discovery, frozen=True, kw_only=True):
    """A discovery, and whether a real kill or a real run has shown it."""

    confirmed: bool


class VariantEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A state in which a cause shows: its family and code, and in how many states it does."""

    family: str
    signature: str
    text: str
    code: str
    model: str
    state: str
    at: str
    line: str
    label: str
    states: int


class CauseEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A cause: its example, the step in words, the program line, and every variant.

    ``others`` is what the check said of other keys, or with other numbers.
    """

    signature: str
    text: str
    at: str
    line: str
    code: str
    others: list[str]
    variants: list[VariantEntry]


class FamilyEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A family: ``points`` of ``points_total`` is its coverage; ``violated`` of ``states``."""

    states: int
    points: int
    points_total: int
    confirmed: int
    violated: int
    kinds: int
    unseen: str
    outcome: str
    sampled: bool
    complete: bool
    coverage: str
    verdict: str
    findings: list[DiscoveryEntry]
    problems: list[FindingEntry]


class ExplorationDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result. ``steps`` are the durable steps of the clean run."""

    target: str
    seed: str
    verdict: str
    coverage: str
    steps: int
    schedules: int
    source: str
    duration_s: float
    findings: list[FindingEntry]
    notes: list[str]
    outcome: str
    causes: list[CauseEntry]
    families: dict[str, FamilyEntry]
    baseline: AgainstBaseline | None = None
    """What is new, if there was a baseline. The other keys tell all that was found."""
    workload: str = ""
    """The operations of the workload that was explored, if the target is a state machine."""
    doubt: Doubt | None = None
    """What the check notices of damaged recordings, with ``--doubt``. No verdict of the program."""
    format: int = FORMAT


def document(exploration: Exploration, baseline: AgainstBaseline | None = None) -> ExplorationDocument:
    """Return the result of an exploration in the promised shape."""
    return ExplorationDocument(
        target=exploration.target,
        seed=exploration.seed,
        verdict=str(exploration.verdict),
        coverage=exploration.coverage,
        steps=exploration.steps,
        schedules=exploration.schedules,
        source=exploration.source,
        duration_s=round(exploration.duration_s, 3),
        findings=[_finding(each) for each in exploration.findings],
        notes=list(exploration.notes),
        outcome=exploration.outcome,
        causes=[_cause(each) for each in exploration.causes],
        families={str(each.family): _family(each) for each in exploration.families},
        baseline=baseline,
        workload=exploration.workload,
        doubt=exploration.doubt,
    )


def _family(result: FamilyResult) -> FamilyEntry:
    return FamilyEntry(
        states=result.states,
        points=result.points,
        points_total=result.points_total,
        confirmed=result.confirmed,
        violated=result.violated,
        kinds=result.kinds,
        unseen=result.unseen,
        outcome=result.outcome,
        sampled=result.is_sampled,
        complete=result.is_complete,
        coverage=result.coverage,
        verdict=result.judged,
        findings=[
            DiscoveryEntry(**msgspec.structs.asdict(each), confirmed=each.is_confirmed) for each in result.discoveries
        ],
        problems=[_finding(each) for each in result.problems],
    )


def _cause(cause: Cause) -> CauseEntry:
    lead = cause.lead
    return CauseEntry(
        signature=lead.signature, text=lead.text, at=lead.at, line=lead.line, code=lead.code,
        others=list(cause.others), variants=[_variant(each) for each in cause.every],
    )  # fmt: skip


def _variant(found: Discovery) -> VariantEntry:
    return VariantEntry(
        family=found.code.partition(":")[0], signature=found.signature, text=found.text, code=found.code,
        model=found.model, state=found.state, at=found.at, line=found.line, label=found.label, states=found.states,
    )  # fmt: skip


def _finding(finding: Finding) -> FindingEntry:
    return FindingEntry(signature=finding.signature, kind=finding.kind, text=finding.text)
