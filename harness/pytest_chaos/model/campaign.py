"""Summaries of many runs: run records in, one summary per scenario and one for the matrix out.

Pure: the same records give the same summary on any machine, so a matrix can be rendered again on
another day or from the records of several machines. Nothing here knows how a summary is shown.

A campaign is a scenario run several times. With a minimum pass rate ``p`` it is

* VIOLATED when fewer than ``p`` of the runs that were conclusive held;
* INCONCLUSIVE when no run was conclusive, or fewer than ``p`` of all runs were: a rate over the few
  runs whose fault happened to fire would be a rate of something else;
* HELD otherwise, and *tolerated* when some run of it was not HELD: never shown as green.

With ``p`` = 1.0, the default for one iteration, one violated run violates and one inconclusive run
leaves it open.

Runs that were planned and not made, because the session was interrupted, leave a campaign
*incomplete*: it is INCONCLUSIVE, unless it is VIOLATED even if all of them had held.

With a rate to prove (``deciding.sequential``) it is HELD once the rate is proved, VIOLATED once it
is refuted, and INCONCLUSIVE as long as it is neither. A campaign whose runs drift
(``deciding.drift``) is never HELD.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import msgspec

from pytest_chaos.model.claims import never_held
from pytest_chaos.model.deciding.drift import Drift, drifts_of
from pytest_chaos.model.deciding.gate import GatePower, gate
from pytest_chaos.model.deciding.sequential import Proof, Standing, proof
from pytest_chaos.model.signatures import cause_of
from pytest_chaos.model.statistics import rate_lower_bound
from pytest_chaos.model.values import (
    Account,
    AtPoint,
    AtStep,
    Finding,
    Json,
    RunRecord,
    Scenario,
    SessionEnd,
    SessionHeader,
    Verdict,
)
from pytest_chaos.model.verdict import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

GroupKey = TypeVar("GroupKey")
Member = TypeVar("Member")

VALUES_MAX: Final = 5
"""How many distinct values, texts or receipts a group names; the others are counted."""

FAILURES_MAX: Final = 20
"""How many failure groups, and links within one, a scenario names; the others are counted."""

CRASH_POINTS: Final = "crash_points"
"""The note that lists the names of the crash points a run knew of."""

REPRODUCED: Final = "reproduced"
"""The note with how many replays of a violation repeated it, such as ``2/2`` or ``0/2, flaky``."""

CUT_SHORT: Final = "cut_short"
"""The note of a run whose session was killed: it came to no answer, and may be made again."""

LIMITATIONS: Final = "limitations"
"""The note with the limitations of the scenario on this machine, in sentences."""


class RecordsLike(Protocol):
    """A header and its runs, as :class:`pytest_chaos.evidence.records.Records` has them."""

    @property
    def header(self) -> SessionHeader:
        """The header of the session."""

    @property
    def runs(self) -> Sequence[RunRecord]:
        """The runs, in any order."""

    @property
    def accounts(self) -> Sequence[Account]:
        """The accounts of the planned runs, by scenario; empty if they are not known."""

    @property
    def reasons(self) -> Sequence[str]:
        """Sentences on why the records are not whole."""


class Tally(msgspec.Struct, frozen=True):
    """The most frequent values, at most :data:`VALUES_MAX`; ``distinct`` counts all there were."""

    values: tuple[tuple[str, int], ...] = ()
    distinct: int = 0

    @classmethod
    def of(cls, values: Iterable[str]) -> Tally:
        """Count the values."""
        counts = Counter(values)
        return cls(tuple(counts.most_common(VALUES_MAX)), len(counts))

    @property
    def omitted(self) -> int:
        """How many distinct values are not named."""
        return self.distinct - len(self.values)


class ValueRange(msgspec.Struct, frozen=True):
    """The range of a number over the runs."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> ValueRange:
        """Order the numbers; there must be one at least."""
        ordered = sorted(numbers)
        return cls(ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1])


class FaultSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How many faults of one kind were planned and fired, with the receipts."""

    kind: str
    planned: int
    fired: int
    receipts: Tally = Tally()
    not_fired: Tally = Tally()


class AssertionSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A key assertion over all runs, with the values of when it held and of when it did not."""

    name: str
    seen: int
    failed: int
    observed: Tally
    broken: Tally

    @property
    def holds(self) -> bool:
        """Whether it held every time."""
        return self.failed == 0


class FailureSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Findings of one cause, with the first signature. ``runs`` counts runs; the lists are cut."""

    signature: str
    kind: str
    checker: str
    runs: int
    texts: Tally
    evidence: tuple[str, ...] = ()
    reproduce: tuple[str, ...] = ()
    reproduced: Tally = Tally()


class CrashPointSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A named point of the target: how many runs knew of it, and how many faults fired at it."""

    name: str
    runs: int
    fired: int


class AgentUse(msgspec.Struct, frozen=True, kw_only=True):
    """Resources of all processes of one name: processor time in all, maxima of memory and files."""

    name: str
    processes: int
    cpu_s: float
    memory_bytes_max: int
    open_files_max: int
    exits: Tally


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """A number that runs noted: a saving, a rate, a duration. Its name ends with its unit."""

    name: str
    runs: int
    total: float
    range: ValueRange


class ScenarioSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One scenario in the matrix. ``duration_s`` is the sum over its runs."""

    scenario: Scenario
    verdict: Verdict
    tolerated: bool
    runs: int
    held: int
    violated: int
    inconclusive: int
    pass_rate: float | None
    pass_rate_min: float
    pass_rate_lower: float | None
    duration_s: float
    faults: tuple[FaultSummary, ...] = ()
    assertions: tuple[AssertionSummary, ...] = ()
    failures: tuple[FailureSummary, ...] = ()
    failures_omitted: int = 0
    crash_points: tuple[CrashPointSummary, ...] = ()
    agents: tuple[AgentUse, ...] = ()
    measures: tuple[Measure, ...] = ()
    limitations: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    records: tuple[RunRecord, ...] = ()
    account: Account | None = None
    proof: Proof | None = None
    gate: GatePower | None = None
    drifts: tuple[Drift, ...] = ()

    @property
    def not_begun(self) -> int:
        """How many of its runs were not begun, as the rate was decided or the budget used up."""
        return self.account.decided + self.account.over_budget if self.account else 0

    @property
    def missing(self) -> int:
        """How many of its runs were planned and not made."""
        return self.account.missing if self.account else 0

    @property
    def planned(self) -> int:
        """How many runs there should be."""
        return self.runs + self.missing


class SideTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table beside a matrix, such as the bug bank. ``looks`` gives words of cells a verdict.

    Without a ``title`` it is a sentence alone.
    """

    title: str
    text: str
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    looks: dict[str, str] = {}


class MatrixSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The whole matrix: scenarios in the order of their ids, and the worst of their verdicts.

    ``reasons`` are sentences on why it is incomplete; empty when it is whole. ``power`` says how
    many mutants the suite noticed, ``noticed`` which ones by scenario, and ``planted`` which
    planted defects; ``bank`` says what was seen of the bug bank. ``beside`` are tables of the bank
    and of the library matrix. No verdict depends on these.
    """

    header: SessionHeader
    scenarios: tuple[ScenarioSummary, ...]
    verdict: Verdict
    tolerated: bool
    runs: int
    held: int
    violated: int
    inconclusive: int
    pass_rate: float | None
    duration_s: float
    missing: int = 0
    skipped: int = 0
    deselected: int = 0
    scenarios_selected: int = 0
    scenarios_collected: int = 0
    reasons: tuple[str, ...] = ()
    campaign: tuple[str, ...] = ()
    """Sentences on what the campaign did not begin, and on the part of it that this is."""
    power: tuple[str, ...] = ()
    bank: tuple[str, ...] = ()
    noticed: dict[str, tuple[str, ...]] = {}
    planted: dict[str, tuple[str, ...]] = {}
    beside: tuple[SideTable, ...] = ()

    @property
    def incomplete(self) -> bool:
        """Whether runs are missing: then nothing here is green."""
        return bool(self.reasons)


def summarise(records: RecordsLike) -> MatrixSummary:
    """Sum up all records, with the minimum pass rate that their header asks for."""
    groups = _grouped((run.scenario.id, run) for run in records.runs)
    accounts = {each.scenario.id: each for each in records.accounts}
    owed = {name for name, account in accounts.items() if account.missing or account.over_budget}
    header = records.header
    scenarios = tuple(
        summarise_scenario(groups.get(name, ()), header.pass_rate_min, account=accounts.get(name), prove=header.prove)
        for name in sorted(groups.keys() | owed)
    )
    missing = sum(each.missing for each in accounts.values())
    lacking = [*([_missing_text(accounts.values())] if missing else []), *never_held(groups)]
    lacking += short_budget(header, accounts.values())
    reasons = tuple(dict.fromkeys([*lacking, *records.reasons]))
    held, violated = sum(each.held for each in scenarios), sum(each.violated for each in scenarios)
    return MatrixSummary(
        header=records.header,
        scenarios=scenarios,
        verdict=Verdict.worst([*(each.verdict for each in scenarios), *[Verdict.INCONCLUSIVE] * bool(reasons)]),
        tolerated=any(each.tolerated for each in scenarios),
        runs=len(records.runs),
        held=held,
        violated=violated,
        inconclusive=sum(each.inconclusive for each in scenarios),
        pass_rate=held / (held + violated) if held + violated else None,
        duration_s=sum(each.duration_s for each in scenarios),
        missing=missing,
        skipped=sum(each.skipped for each in accounts.values()),
        deselected=sum(each.deselected for each in accounts.values()),
        scenarios_selected=sum(each.planned > 0 for each in accounts.values()),
        scenarios_collected=len(accounts),
        reasons=reasons,
        campaign=tuple(_not_begun(header, scenarios)),
    )


def account_for(header: SessionHeader, runs: Iterable[RunRecord], end: SessionEnd) -> tuple[Account, ...]:
    """Return the accounts of the runs that a session planned. A test that ran again counts once."""
    made = Counter(scenario for scenario, *_ in {(run.scenario.id, run.node_id, run.iteration) for run in runs})
    return tuple(
        Account(
            scenario=each.scenario,
            planned=each.runs,
            made=min(made[each.scenario.id], each.runs),
            skipped=end.skipped.get(each.scenario.id, 0),
            deselected=each.deselected,
            decided=end.decided.get(each.scenario.id, 0),
            over_budget=end.over_budget.get(each.scenario.id, 0),
        )
        for each in header.planned
    )


def is_cut_short(run: RunRecord) -> bool:
    """Whether a run has no answer because its session ended: by Ctrl-C, or killed."""
    is_interrupted = any(each.signature == INTERRUPTED for each in run.findings)
    return run.verdict is Verdict.INCONCLUSIVE and (CUT_SHORT in run.notes or is_interrupted)


def join_accounts(accounts: Iterable[Account]) -> tuple[Account, ...]:
    """Add up the accounts of several sessions, by scenario.

    What is missing in one session is not made up for by another.
    """
    return tuple(
        Account(
            scenario=each[0].scenario,
            planned=sum(one.planned for one in each),
            made=sum(one.made for one in each),
            skipped=sum(one.skipped for one in each),
            deselected=sum(one.deselected for one in each),
            decided=sum(one.decided for one in each),
            over_budget=sum(one.over_budget for one in each),
        )
        for each in _grouped((account.scenario.id, account) for account in accounts).values()
    )


def _missing_text(accounts: Collection[Account]) -> str:
    missing, planned = sum(each.missing for each in accounts), sum(each.planned for each in accounts)
    were = "was" if missing == 1 else "were"
    runs = "run" if planned == 1 else "runs"
    return f"{missing} of {planned} planned {runs} {were} not made: the session ended early. Run it again"


def short_budget(header: SessionHeader, accounts: Collection[Account]) -> Iterator[str]:
    """Yield a sentence if the budget was over before each test had a run."""
    iterations = 1_000_000 if header.shard else max(1, header.iterations)  # a shard has some of the iterations
    tests = {each.scenario.id: -(-each.runs // iterations) for each in header.planned}
    late = [each.scenario.id for each in accounts if each.over_budget and each.made < tests.get(each.scenario.id, 1)]
    if late:
        named = ", ".join(late[:VALUES_MAX]) + (f" and {len(late) - VALUES_MAX} more" if len(late) > VALUES_MAX else "")
        yield f"the budget was over before each test of {named} had a run. Give more time, or fewer scenarios"


def _not_begun(header: SessionHeader, scenarios: Sequence[ScenarioSummary]) -> Iterator[str]:
    accounts = [each.account for each in scenarios if each.account is not None]
    planned = sum(each.planned for each in accounts)
    if over := sum(each.over_budget for each in accounts):
        had = f" of {header.budget_s:g} s" if header.budget_s is not None else ""
        yield f"the budget{had} left out {over:,} of {planned:,} planned runs"
    if decided := sum(each.decided for each in accounts):
        yield f"{decided:,} of {planned:,} planned runs were not needed, as the rate was decided"
    if header.shard:
        yield f"this is shard {header.shard} of the campaign"


def summarise_scenario(
    runs: Sequence[RunRecord],
    pass_rate_min: float = 1.0,
    *,
    account: Account | None = None,
    prove: float | None = None,
) -> ScenarioSummary:
    """Sum up the runs of one scenario. The first, or else its account, names the scenario."""
    ordered = tuple(sorted(runs, key=lambda run: (run.iteration, run.node_id, run.started)))
    counts = Counter(run.verdict for run in ordered)
    held, violated, inconclusive = counts[Verdict.HELD], counts[Verdict.VIOLATED], counts[Verdict.INCONCLUSIVE]
    own_rates = [run.scenario.pass_rate_min for run in ordered if run.scenario.pass_rate_min is not None]
    rate_min = max(own_rates, default=pass_rate_min)
    missing = account.missing if account else 0
    conclusive = held + violated
    proved = None if prove is None else proof(_rate_to_prove(prove, own_rates), held, violated, inconclusive)
    if proved is None:
        verdict = judge(held, violated, inconclusive, rate_min, missing)
    else:
        verdict = _of_proof(proved, is_refuted=bool(own_rates) and rate_min >= 1 and violated > 0)
    drifts = drifts_of(ordered)
    if verdict is Verdict.HELD and any(each.is_judged for each in drifts):
        verdict = Verdict.INCONCLUSIVE
    failures = [*_failures(ordered), *map(_drifting, drifts)]
    return ScenarioSummary(
        scenario=ordered[0].scenario if ordered or account is None else account.scenario,
        verdict=verdict,
        tolerated=verdict is Verdict.HELD and held < len(ordered),
        runs=len(ordered),
        held=held,
        violated=violated,
        inconclusive=inconclusive,
        pass_rate=held / conclusive if conclusive else None,
        pass_rate_min=rate_min,
        pass_rate_lower=_lower(held, conclusive, proved),
        duration_s=sum(run.duration_s for run in ordered),
        proof=proved,
        gate=gate(rate_min, held + violated + inconclusive) if proved is None else None,
        drifts=drifts,
        faults=_faults(ordered),
        assertions=_assertions(ordered),
        failures=tuple(failures[:FAILURES_MAX]),
        failures_omitted=max(0, len(failures) - FAILURES_MAX),
        crash_points=_crash_points(ordered),
        agents=_agents(ordered),
        measures=_measures(ordered),
        limitations=tuple(dict.fromkeys(text for run in ordered for text in _texts(run.notes.get(LIMITATIONS)))),
        evidence=tuple(run.evidence for run in ordered if run.evidence),
        records=ordered,
        account=account,
    )


def _rate_to_prove(prove: float, own_rates: Sequence[float]) -> float:
    """Return the scenario's own rate, if a number of runs can prove it; else the session's."""
    return max((each for each in own_rates if 0 < each < 1), default=prove)


def _of_proof(proved: Proof, *, is_refuted: bool = False) -> Verdict:
    if is_refuted or proved.decision is Standing.REFUTED:
        return Verdict.VIOLATED
    return Verdict.HELD if proved.decision is Standing.PROVED else Verdict.INCONCLUSIVE


def _lower(held: int, conclusive: int, proved: Proof | None) -> float | None:
    """Return the lower bound of the rate: that of a proof holds at whatever run it is asked for."""
    if not conclusive:
        return None
    return rate_lower_bound(held, conclusive) if proved is None else proved.lower


def _drifting(drift: Drift) -> FailureSummary:
    said = f"{drift.measure} grows from run to run, from {drift.first:,.4g} to {drift.last:,.4g} over {drift.runs} runs"
    because = (
        "What a run meets depends on the runs before it, so they are not drawn alike. Close what each run opens"
        if drift.is_judged
        else "A machine that gets busier does the same, so no verdict depends on it"
    )
    test = drift.test.rpartition("::")[2]
    text = f"{said} of {test} (by chance 1 in {1 / max(drift.chance, 1e-300):,.0g}). {because}"
    return FailureSummary(
        signature=f"drift:{drift.measure}", kind="drift", checker="drift", runs=drift.runs, texts=Tally.of([text])
    )


def judge_proof(prove: float, held: int, violated: int, inconclusive: int) -> Verdict:
    """Return the verdict of a campaign that was to prove a rate."""
    return _of_proof(proof(prove, held, violated, inconclusive))


def judge(held: int, violated: int, inconclusive: int, pass_rate_min: float, missing: int = 0) -> Verdict:
    """Return the verdict of a campaign: see the module's text for the rule.

    Shares are compared as quotients, not as ``1 - p``: 9/10 is 0.9 exactly, but 1/10 is more than 1
    - 0.9.
    """
    conclusive = held + violated
    if conclusive and (held + missing) / (conclusive + missing) < pass_rate_min:
        return Verdict.VIOLATED
    if missing or not conclusive or conclusive / (conclusive + inconclusive) < pass_rate_min:
        return Verdict.INCONCLUSIVE
    return Verdict.HELD


def _faults(runs: Iterable[RunRecord]) -> tuple[FaultSummary, ...]:
    planned: Counter[str] = Counter()
    fired: Counter[str] = Counter()
    evidence: dict[tuple[str, bool], list[str]] = {}
    for run in runs:
        faults = run.plan.faults if run.plan else ()
        planned.update(fault.kind for fault in faults)
        seen: set[int] = set()
        for receipt in run.receipts:
            from_plan = receipt.fault is not None and receipt.fault < len(faults)
            planned[receipt.kind] += not from_plan
            evidence.setdefault((receipt.kind, receipt.fired), []).append(receipt.evidence)
            fired[receipt.kind] += receipt.fired and not (from_plan and receipt.fault in seen)
            if receipt.fired and receipt.fault is not None:
                seen.add(receipt.fault)
    return tuple(
        FaultSummary(
            kind=kind,
            planned=planned[kind],
            fired=fired[kind],
            receipts=Tally.of(evidence.get((kind, True), ())),
            not_fired=Tally.of(evidence.get((kind, False), ())),
        )
        for kind in sorted(planned)
    )


def _assertions(runs: Iterable[RunRecord]) -> tuple[AssertionSummary, ...]:
    groups = _grouped((each.name, each) for run in runs for each in run.assertions)
    return tuple(
        AssertionSummary(
            name=name,
            seen=len(seen),
            failed=sum(not each.holds for each in seen),
            observed=Tally.of(each.observed for each in seen if each.holds),
            broken=Tally.of(each.observed for each in seen if not each.holds),
        )
        for name, seen in groups.items()
    )


def _failures(runs: Iterable[RunRecord]) -> list[FailureSummary]:
    """Group by cause, the most frequent first; violations before undecided runs.

    Signatures that differ in numbers and keys alone are one cause, named by its first.
    """
    groups = _grouped(
        ((cause_of(finding.signature), finding.kind), (run, finding))
        for run in runs
        for finding in run.findings or _unexplained(run)
    )
    summaries = [_failure(cases) for cases in groups.values()]
    return sorted(summaries, key=lambda failure: (failure.kind == "harness", -failure.runs, failure.signature))


def _failure(cases: Sequence[tuple[RunRecord, Finding]]) -> FailureSummary:
    runs, (_, first) = {id(run): run for run, _ in cases}.values(), cases[0]
    return FailureSummary(
        signature=first.signature,
        kind=first.kind,
        checker=first.checker,
        runs=len(runs),
        texts=Tally.of(finding.text for _, finding in cases),
        evidence=tuple(dict.fromkeys(run.evidence for run in runs if run.evidence))[:FAILURES_MAX],
        reproduce=tuple(dict.fromkeys(run.reproduce for run in runs if run.reproduce))[:FAILURES_MAX],
        reproduced=Tally.of(str(run.notes[REPRODUCED]) for run in runs if REPRODUCED in run.notes),
    )


def _unexplained(run: RunRecord) -> tuple[Finding, ...]:
    """Return a finding for a run that did not hold and has none, so that the list names it."""
    if run.verdict is Verdict.HELD:
        return ()
    failed = [f"{each.name}: {each.observed}" for each in run.assertions if not each.holds]
    unfired = [f"{each.kind} did not fire: {each.evidence}" for each in run.receipts if not each.fired]
    said = [line for line in run.failure.splitlines() if line.strip()]
    text = "; ".join(failed or unfired or said[-1:]) or "the run left no text"
    if run.verdict is Verdict.VIOLATED:
        return (Finding(signature="test-failed", text=text),)
    return (Finding(signature="fault-not-fired" if unfired else "run-undecided", text=text, kind="harness"),)


def place_name(when: AtPoint | AtStep) -> str:
    """Return a point or a durable step as the matrix names it.

    >>> place_name(AtStep(step="rename", path="a.json", occurrence=2))
    'rename of a.json (2)'
    """
    if isinstance(when, AtPoint):
        return when.point
    again = f" ({when.occurrence})" if when.occurrence > 1 else ""
    return f"{when.step} of {when.path}{again}" if when.path else f"{when.step}{again}"


def _crash_points(runs: Iterable[RunRecord]) -> tuple[CrashPointSummary, ...]:
    known: Counter[str] = Counter()
    fired: Counter[str] = Counter()
    for run in runs:
        known.update(dict.fromkeys(_texts(run.notes.get(CRASH_POINTS)), 1))
        faults = run.plan.faults if run.plan else ()
        for place in {each.fault for each in run.receipts if each.fired and each.fault is not None}:
            if place < len(faults) and isinstance(when := faults[place].when, AtPoint | AtStep):
                fired[place_name(when)] += 1
    return tuple(CrashPointSummary(name=name, runs=known[name], fired=fired[name]) for name in known | fired)


def _agents(runs: Iterable[RunRecord]) -> tuple[AgentUse, ...]:
    groups = _grouped((agent.name, agent) for run in runs for agent in run.agents)
    return tuple(
        AgentUse(
            name=name,
            processes=len(agents),
            cpu_s=sum(agent.cpu_s for agent in agents),
            memory_bytes_max=max(agent.memory_bytes_max for agent in agents),
            open_files_max=max(agent.open_files_max for agent in agents),
            exits=Tally.of(agent.exit_status for agent in agents),
        )
        for name, agents in groups.items()
    )


def _measures(runs: Iterable[RunRecord]) -> tuple[Measure, ...]:
    numbers = _grouped(
        (name, value)
        for run in runs
        for name, value in run.notes.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    return tuple(
        Measure(name=name, runs=len(values), total=sum(values), range=ValueRange.of(values))
        for name, values in numbers.items()
    )


def _grouped(pairs: Iterable[tuple[GroupKey, Member]]) -> dict[GroupKey, list[Member]]:
    groups: dict[GroupKey, list[Member]] = {}
    for key, member in pairs:
        groups.setdefault(key, []).append(member)
    return groups


def _texts(value: Json) -> tuple[str, ...]:
    """Return the strings of a note; a note that is no list has none."""
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list | tuple) else ()
