"""What many runs amount to: the rule of a campaign, and the grouping of faults, assertions,
findings and points.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, strategies as st
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.campaign import VALUES_MAX, MatrixSummary, judge, summarise, summarise_scenario
from pytest_chaos.model.values import (
    AgentSummary,
    Assertion,
    AtPoint,
    Fault,
    Finding,
    Plan,
    Receipt,
    RunRecord,
    Scenario,
    SessionHeader,
    Verdict,
)

HELD, VIOLATED, INCONCLUSIVE = Verdict.HELD, Verdict.VIOLATED, Verdict.INCONCLUSIVE
KILL = Scenario(id="01-kill-9", title="A killed agent resumes")


def record(verdict: Verdict = HELD, iteration: int = 0, scenario: Scenario = KILL, **fields: object) -> RunRecord:
    """Make a record with the fields that a test is about."""
    made = RunRecord(
        scenario=scenario, node_id="test", run_id=f"run-{iteration}", seed="1", verdict=verdict, iteration=iteration
    )
    return msgspec.structs.replace(made, **fields)


def matrix(*runs: RunRecord, pass_rate_min: float = 1.0) -> MatrixSummary:
    """Sum up runs under a minimum pass rate."""
    header = SessionHeader(session="s", seed="1", started="2026-01-01T00:00:00Z", pass_rate_min=pass_rate_min)
    return summarise(Records(header, runs))


@pytest.mark.parametrize(
    ("held", "violated", "inconclusive", "pass_rate_min", "expected"),
    [
        (1, 0, 0, 1.0, HELD),
        (0, 1, 0, 1.0, VIOLATED),
        (0, 0, 1, 1.0, INCONCLUSIVE),
        (49, 0, 1, 1.0, INCONCLUSIVE),
        (49, 1, 0, 1.0, VIOLATED),
        (48, 1, 1, 1.0, VIOLATED),
        (49, 1, 0, 0.98, HELD),
        (48, 2, 0, 0.98, VIOLATED),
        (49, 0, 1, 0.98, HELD),
        (48, 0, 2, 0.98, INCONCLUSIVE),
        (9, 0, 1, 0.9, HELD),
        (19, 1, 0, 0.95, HELD),
        (0, 0, 50, 0.0, INCONCLUSIVE),
        (0, 0, 0, 1.0, INCONCLUSIVE),
    ],
)
def test_a_campaign_is_judged_by_its_pass_rate(
    held: int, violated: int, inconclusive: int, pass_rate_min: float, expected: Verdict
) -> None:
    """Each side of each limit, including shares that floating point subtraction would get wrong."""
    assert judge(held, violated, inconclusive, pass_rate_min) is expected


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 1.0))
def test_a_violated_run_never_makes_a_verdict_better(held: int, violated: int, inconclusive: int, rate: float) -> None:
    """Turning a run that held into a violated one leaves the verdict as it is or makes it worse."""
    before = judge(held + 1, violated, inconclusive, rate)
    after = judge(held, violated + 1, inconclusive, rate)
    assert Verdict.worst((before, after)) is after


@pytest.mark.parametrize("bad", [VIOLATED, INCONCLUSIVE])
def test_what_a_rate_forgives_is_tolerated_and_said(bad: Verdict) -> None:
    """A scenario that holds by its rate alone carries the flag, and so does the matrix."""
    runs = [record(iteration=each) for each in range(49)]
    summary = matrix(*runs, record(bad, 49), pass_rate_min=0.98)
    assert summary.verdict is HELD
    assert summary.tolerated
    assert [each.tolerated for each in summary.scenarios] == [True]


def test_a_clean_campaign_is_not_tolerated() -> None:
    """Nothing was forgiven, so nothing is flagged."""
    summary = matrix(*(record(iteration=each) for each in range(50)), pass_rate_min=0.98)
    assert (summary.verdict, summary.tolerated, summary.pass_rate) == (HELD, False, 1.0)
    assert round(summary.scenarios[0].pass_rate_lower or 0, 3) == 0.942


def test_the_matrix_is_as_bad_as_its_worst_scenario_and_ordered_by_id() -> None:
    """Scenarios come in the order of their ids, whatever the order of the runs was."""
    other = Scenario(id="00-first", title="first")
    summary = matrix(record(VIOLATED), record(INCONCLUSIVE, scenario=other))
    assert [each.scenario.id for each in summary.scenarios] == ["00-first", "01-kill-9"]
    assert [each.verdict for each in summary.scenarios] == [INCONCLUSIVE, VIOLATED]
    assert summary.verdict is VIOLATED


def test_no_runs_are_inconclusive() -> None:
    """A matrix of nothing shows nothing."""
    summary = matrix()
    assert (summary.verdict, summary.runs, summary.pass_rate) == (INCONCLUSIVE, 0, None)


def test_without_a_conclusive_run_there_is_no_rate() -> None:
    """A rate over no runs is none, not zero and not one."""
    summary = summarise_scenario([record(INCONCLUSIVE)])
    assert (summary.pass_rate, summary.pass_rate_lower) == (None, None)


def test_faults_are_counted_as_planned_and_as_fired() -> None:
    """A planned fault without a receipt is planned only; one fired by hand is both;
    a repeated receipt counts once.
    """
    plan = Plan(seed="1", scenario="01", faults=(Fault(kind="kill", agent="a"), Fault(kind="kill", agent="b")))
    seen = Receipt(kind="kill", agent="a", when="now", fired=True, evidence="signal 9", fault=0)
    missed = Receipt(kind="pause", agent="a", when="now", fired=False, evidence="it had ended")
    by_hand = Receipt(kind="pause", agent="a", when="now", fired=True, evidence="state T")
    summary = summarise_scenario([record(plan=plan, receipts=(seen, seen, missed, by_hand))])
    counts = {each.kind: (each.planned, each.fired) for each in summary.faults}
    assert counts == {"kill": (2, 1), "pause": (2, 1)}
    pause = summary.faults[1]
    assert pause.receipts.values == (("state T", 1),)
    assert pause.not_fired.values == (("it had ended", 1),)


def test_the_value_that_broke_an_assertion_is_never_pushed_off_the_list() -> None:
    """Values that held are kept apart from those that did not:
    ordinary ones cannot hide the one that matters.
    """
    runs = [
        record(iteration=each, assertions=(Assertion(name="rows", observed=str(each), holds=True),))
        for each in range(9)
    ]
    runs.append(record(VIOLATED, 9, assertions=(Assertion(name="rows", observed="-1", holds=False),)))
    (rows,) = summarise_scenario(runs).assertions
    assert rows.broken.values == (("-1", 1),)
    assert (len(rows.observed.values), rows.observed.distinct, rows.observed.omitted) == (VALUES_MAX, 9, 9 - VALUES_MAX)
    assert (rows.seen, rows.failed, rows.holds) == (10, 1, False)


def test_findings_with_one_signature_are_one_failure() -> None:
    """Runs are counted once each, texts apart, and packs and reproducing lines kept."""
    first = Finding(signature="lost", text="7 is gone", checker="durability")
    second = Finding(signature="lost", text="8 is gone", checker="durability")
    harness = Finding(signature="timed-out", text="the guardian was slow", kind="harness")
    runs = [
        record(VIOLATED, 0, findings=(first, second, harness), evidence="evidence/0", reproduce="chaos replay 0"),
        record(VIOLATED, 1, findings=(first,), evidence="evidence/1", reproduce="chaos replay 1"),
    ]
    lost, slow = summarise_scenario(runs).failures
    assert (lost.signature, lost.runs, lost.texts.values) == ("lost", 2, (("7 is gone", 2), ("8 is gone", 1)))
    assert lost.evidence == ("evidence/0", "evidence/1")
    assert lost.reproduce == ("chaos replay 0", "chaos replay 1")
    assert slow.kind == "harness"


@pytest.mark.parametrize(
    ("run", "signature", "text"),
    [
        (record(VIOLATED, failure="trace\nAssertionError: 1 != 2\n"), "test-failed", "AssertionError: 1 != 2"),
        (
            record(VIOLATED, assertions=(Assertion(name="rows", observed="3", holds=False),), failure="trace"),
            "test-failed",
            "rows: 3",
        ),
        (
            record(INCONCLUSIVE, receipts=(Receipt(kind="kill", agent="a", when="now", fired=False, evidence="gone"),)),
            "fault-not-fired",
            "kill did not fire: gone",
        ),
        (record(INCONCLUSIVE), "run-undecided", "the run left no text"),
    ],
)
def test_a_run_that_did_not_hold_is_listed_even_without_findings(run: RunRecord, signature: str, text: str) -> None:
    """Whatever the run left says why: a broken assertion, a fault that did not fire,
    the end of the failure.
    """
    (failure,) = summarise_scenario([run]).failures
    assert (failure.signature, failure.texts.values) == (signature, ((text, 1),))


def test_crash_points_are_listed_with_the_faults_that_fired_at_them() -> None:
    """A point that no fault fired at stays on the list with none."""
    faults = (Fault(kind="kill", agent="a", when=AtPoint(point="commit")),)
    receipt = Receipt(kind="kill", agent="a", when="commit", fired=True, evidence="signal 9", fault=0)
    noted = {"crash_points": ["begin", "commit", "commit"]}
    run = record(notes=noted, plan=Plan(seed="1", scenario="01", faults=faults), receipts=(receipt,))
    unfired = msgspec.structs.replace(run, receipts=(msgspec.structs.replace(receipt, fired=False),))
    points = summarise_scenario([run, unfired]).crash_points
    assert [(each.name, each.runs, each.fired) for each in points] == [("begin", 2, 0), ("commit", 2, 1)]


def test_notes_of_any_shape_are_survived() -> None:
    """Numbers become measurements; what is not of the expected shape is left alone."""
    notes = {"crash_points": 3, "limitations": ["no disk", 4], "flag": True, "tokens_saved": 10}
    summary = summarise_scenario(
        [record(notes=notes), record(notes={"tokens_saved": 30}), record(notes={"tokens_saved": 20})]
    )
    assert summary.limitations == ("no disk",)
    by_name = {each.name: each for each in summary.measures}
    assert set(by_name) == {"crash_points", "tokens_saved"}
    saved = by_name["tokens_saved"]
    assert (saved.range.low, saved.range.median, saved.range.high, saved.total, saved.runs) == (10, 20, 30, 60, 3)


def test_the_use_of_resources_adds_up_by_the_name_of_the_agent() -> None:
    """Processor time adds up; memory and open files are the largest seen."""
    agent = AgentSummary(
        name="writer", target="m:f", pid=1, exit_status="signal 9", cpu_s=0.5, memory_bytes_max=10, open_files_max=3
    )
    larger = msgspec.structs.replace(agent, exit_status="exit 0", memory_bytes_max=30, open_files_max=2)
    (use,) = summarise_scenario([record(agents=(agent, larger))]).agents
    assert (use.processes, use.cpu_s, use.memory_bytes_max, use.open_files_max) == (2, 1.0, 30, 3)
    assert use.exits.values == (("signal 9", 1), ("exit 0", 1))


def test_many_signatures_are_cut_and_the_cut_is_counted() -> None:
    """A thousand different findings do not become a thousand groups in the report."""
    findings = tuple(Finding(signature="a" * each + "s", text="t") for each in range(1_000))
    summary = summarise_scenario([record(VIOLATED, findings=findings)])
    assert len(summary.failures) + summary.failures_omitted == 1_000
    assert len(summary.failures) == 20


def test_findings_that_differ_in_numbers_alone_are_one_cause() -> None:
    """Twelve jobs that one bug lost are one group with all texts; other names stay apart."""
    lost = [Finding(signature=f"durability:job {each}", text=f"job {each} is lost") for each in range(12)]
    other = Finding(signature="expectation:a", text="a: 1")
    summary = summarise_scenario([record(VIOLATED, findings=(*lost, other))])
    assert [(each.signature, each.texts.distinct) for each in summary.failures] == [
        ("durability:job 0", 12),
        ("expectation:a", 1),
    ]


@given(st.permutations(range(6)))
def test_the_order_of_the_records_changes_nothing(order: list[int]) -> None:
    """Workers report in any order; the summary is the same."""
    runs = [record(VIOLATED if each == 2 else HELD, each, duration_s=1.0) for each in range(6)]
    assert matrix(*(runs[each] for each in order)) == matrix(*runs)


def test_the_strictest_of_a_scenarios_own_rates_is_its_gate() -> None:
    """Two tests of one scenario that name different rates are held to the higher,
    not to the one that ran first.
    """
    lax, strict = (Scenario(id="01-x", title="x", pass_rate_min=rate) for rate in (0.1, 0.9))
    runs = [record(HELD, 0, lax), record(VIOLATED, 1, strict), record(HELD, 2, lax)]
    summary = summarise_scenario(runs, pass_rate_min=0.5)
    assert (summary.pass_rate_min, summary.verdict) == (0.9, VIOLATED)


def test_what_must_come_up_in_some_run_makes_a_campaign_without_it_inconclusive() -> None:
    """A claim that held in no run of two is named; one run that has it is enough, and one alone is
    no campaign.
    """
    never, once = {"chaos.sometimes": {"a takeover": False}}, {"chaos.sometimes": {"a takeover": True}}
    lacking = matrix(record(notes=never), record(iteration=1, notes=never))
    assert lacking.verdict is INCONCLUSIVE
    assert lacking.reasons == (
        "'a takeover' must hold in some run of 01-kill-9; got none of 2. Make it come up, or leave out chaos.sometimes",
    )
    assert matrix(record(notes=never), record(iteration=1, notes=once)).verdict is HELD
    assert matrix(record(notes=never)).verdict is HELD


def test_a_place_that_no_run_reaches_makes_a_campaign_inconclusive() -> None:
    """A declared place is named if no run of two comes there; one run in any process is enough."""
    never, once = {"chaos.reachable": {"the retry": False}}, {"chaos.reachable": {"the retry": True}}
    lacking = matrix(record(notes=never), record(iteration=1, notes=never))
    assert lacking.verdict is INCONCLUSIVE
    (reason,) = lacking.reasons
    assert reason.startswith(
        "the place 'the retry' must be reached in some run of 01-kill-9; got none of 2. Make a run"
    )
    assert reason.endswith("leave out chaos.reachable")
    assert matrix(record(notes=never), record(iteration=1, notes=once)).verdict is HELD
    assert matrix(record(notes=never)).verdict is HELD
