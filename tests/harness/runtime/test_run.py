"""A run fixes its plan first, keeps what it was told, ends what it started,
and is judged by the worst of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pytest_chaos import kill
from pytest_chaos.checkers.durability import acknowledged_present
from pytest_chaos.errors import AgentError, GuardianLost, SpawnError, TooLate, UsageError, WaitExpired
from pytest_chaos.evidence import open_pack, verify
from pytest_chaos.model import plan, verdict
from pytest_chaos.model.values import Assertion, Finding, Plan, Verdict
from pytest_chaos.model.verdict import AGENT_FAILED, reason
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.agent import GuardianClient
from pytest_chaos.runtime.run import OBSERVED_CHARACTERS_MAX

from tests.harness.runtime import targets
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.model.values import When
    from pytest_chaos.runtime.run import Run

    from tests.harness.conftest import StartRun


def expected(run: Run) -> Run:
    """Let a run have its key assertion."""
    run.expect("all is well", observed=1, holds=True)
    return run


def test_a_run_has_one_plan(run: Run) -> None:
    """A second plan would make it unclear what was carried out."""
    fixed = run.plan(kill("writer"))
    assert fixed == Plan(seed="seed", scenario="98-test", faults=(kill("writer"),))
    with pytest.raises(UsageError, match="a run must have one plan, fixed before its first agent starts"):
        run.plan(kill("writer"))


def test_a_plan_comes_before_the_first_agent(run: Run) -> None:
    """An agent that runs already could have passed the point that is planned for it."""
    run.spawn(targets.tell)
    with pytest.raises(UsageError, match="fixed before its first agent starts"):
        run.plan(kill("writer"))


def test_a_plan_that_was_refused_leaves_no_trace(run: Run) -> None:
    """All its problems are told at once, and another plan can be made."""
    bad = kill("writer", plan.at_point("", occurrence=0))
    with pytest.raises(UsageError, match=r"must have a name(.|\n)*occurrence must be 1 or more"):
        run.plan(bad)
    assert run.plan().faults == ()


def test_the_plan_is_on_disk_before_anything_starts(run: Run) -> None:
    """Whoever saves the evidence of a killed run finds the plan in the header of its journal."""
    fixed = run.plan(kill("writer", plan.at_moment(0.5)))
    assert run._journal.header().plan == fixed


def test_a_replay_carries_out_the_packs_plan(start_run: StartRun) -> None:
    """In a replay it is the pack's plan that is fired,
    and a note says that the test has another one now.
    """
    old = Plan(seed="seed", scenario="98-test", faults=(kill("writer", plan.after_mark("step", count=2)),))
    run = start_run(replay=old)
    assert run.plan(kill("writer", plan.after_mark("step", count=7))) == old
    run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    record = expected(run).conclude()
    assert record.plan == old
    assert record.receipts[0].when == "after its 2nd ack of step"
    assert "the pack's were carried out" in record.notes["replay"]


def test_a_replay_of_the_same_plan_needs_no_note(start_run: StartRun) -> None:
    """Where test and pack agree there is nothing to say."""
    faults = (kill("writer"),)
    run = start_run(replay=Plan(seed="seed", scenario="98-test", faults=faults))
    run.plan(*faults)
    assert "replay" not in run.conclude().notes


def test_randomness_depends_on_seed_iteration_and_purpose_alone(start_run: StartRun) -> None:
    """The same run again draws the same; any other seed,
    iteration or purpose draws something else.
    """

    def drawn(run: Run, *purpose: str) -> tuple[float, ...]:
        stream = run.random(*purpose)
        return tuple(stream.random() for _ in range(4))

    assert drawn(start_run(), "delay") == drawn(start_run(), "delay")
    others = [
        drawn(start_run(), "delay"),
        drawn(start_run(), "point"),
        drawn(start_run(iteration=1), "delay"),
        drawn(start_run(seed="seed2"), "delay"),
    ]
    assert len(set(others)) == 4


def test_an_expectation_does_not_stop_the_test(run: Run) -> None:
    """Everything that was expected is in the record, and the one that is broken fails the run."""
    assert run.expect("leases", observed=[1, 2], holds=True)
    assert not run.expect("orders", observed=None, holds=False)
    record = run.conclude()
    assert record.verdict is Verdict.VIOLATED
    assert record.assertions == (
        Assertion(name="leases", observed="[1, 2]", holds=True),
        Assertion(name="orders", observed="None", holds=False),
    )
    assert [(finding.signature, finding.text) for finding in record.findings] == [
        ("expectation:orders", "orders: None")
    ]


def test_a_key_of_the_marks_is_no_cause_of_its_own(run: Run) -> None:
    """What is said of each key has one signature; the texts keep their words."""
    keys = ["one", "two", "ann-lee"]
    reader = run.spawn(["sh", "-c", 'for key; do echo "$key" | ' + _ACK_LINES, "sh", *keys], name="reader")
    reader.wait_exit()
    assert [mark.key for mark in run.history.marks] == keys
    run.check([f"the long-winded note of nobody else, which has the key {key}, is lost" for key in keys])
    for key in keys:
        run.expect(f"note {key} is kept", observed=0, holds=False)
        run.expect(key, observed=0, holds=False)
    record = run.conclude()

    long = "check:the long-winded note of nobody else, which has the key #, is"
    own = ["expectation:note # is kept", "expectation:one", "expectation:two", "expectation:ann-lee"]
    assert sorted({each.signature for each in record.findings}) == sorted([long, *own])
    assert len({each.text for each in record.findings}) == 9


_ACK_LINES = """sed 's/.*/{"kind": "ack", "operation": "put", "key": "&"}/' >> "$CHAOS_MARKS"; done"""


def test_what_was_observed_is_kept_short_and_encodable(run: Run) -> None:
    """A long or a strange value costs nobody the record."""
    run.expect("long", observed="x" * 10_000, holds=True)
    run.expect("strange", observed="\udce9", holds=True)
    long, strange = run.conclude().assertions
    assert len(long.observed) == OBSERVED_CHARACTERS_MAX
    assert strange.observed == "?"


def test_a_run_that_expected_nothing_proves_nothing(run: Run) -> None:
    """Not even a run in which nothing went wrong."""
    run.spawn(targets.tell).wait_exit()
    record = run.conclude()
    assert record.verdict is Verdict.INCONCLUSIVE
    assert [finding.signature for finding in record.findings] == ["harness:nothing-asserted"]


@pytest.mark.parametrize(
    ("error", "signature", "kind"),
    [
        (WaitExpired("it did not come"), "harness:wait-expired", "harness"),
        (WaitExpired("it did not come", owed="within 1 s"), "liveness:wait-expired", "liveness"),
        (AgentError("it ended"), "harness:agent-ended", "harness"),
        (AgentError("it ended", owed="it works for ever"), "liveness:agent-ended", "liveness"),
        (AgentError("it ended", owed="it works for ever", by_fault=True), "harness:ended-by-fault", "harness"),
        (TooLate("it has ended already"), "harness:too-late", "harness"),
        (AssertionError("1 == 2"), "assertion", "safety"),
        (AssertionError(), "assertion", "safety"),
        (pytest.fail.Exception("no good"), "assertion", "safety"),
        (pytest.fail.Exception("async def functions are not natively supported."), "harness:async-test", "harness"),
        (ExceptionGroup("tasks", [OSError("x"), AssertionError("1 == 2")]), "assertion", "safety"),
        (ExceptionGroup("tasks", [OSError("x"), KeyError("y")]), "harness:OSError", "harness"),
        (ModuleNotFoundError("No module named 'shop'"), "harness:ModuleNotFoundError", "harness"),
        (pytest.exit.Exception("enough"), "harness:interrupted", "harness"),
        (pytest.fail.Exception("Timeout (>1.0s) from pytest-timeout."), "harness:timeout", "harness"),
        (GuardianLost("it was killed"), "harness:GuardianLost", "harness"),
        (SpawnError("no such file"), "harness:SpawnError", "harness"),
        (UsageError("a mistake"), "harness:UsageError", "harness"),
        (KeyboardInterrupt(), "harness:interrupted", "harness"),
        (ZeroDivisionError("in the test"), "harness:ZeroDivisionError", "harness"),
        (OSError("caf\udce9"), "harness:OSError", "harness"),
    ],
    ids=ascii,
)
def test_each_error_of_a_test_says_what_it_may_say(run: Run, error: BaseException, signature: str, kind: str) -> None:
    """What speaks about the target is a violation; what only ended the test leaves the run
    undecided.
    """
    record = expected(run).conclude(error)
    (finding,) = record.findings
    assert (finding.signature, finding.kind) == (signature, kind)
    assert record.verdict is (Verdict.INCONCLUSIVE if kind == "harness" else Verdict.VIOLATED)
    assert finding.text
    finding.text.encode()


def test_the_worst_of_all_findings_decides(run: Run) -> None:
    """An undecided part does not hide a violation."""
    run.inconclusive("too little load")
    run.check(["a checkpoint is missing"])
    record = expected(run).conclude()
    assert record.verdict is Verdict.VIOLATED
    assert [finding.signature for finding in record.findings] == [
        "harness:inconclusive",
        "check:a checkpoint is missing",
    ]
    assert "a checkpoint is missing" in reason(record)
    assert "too little load" not in reason(record)


def test_the_reason_of_a_failure_cannot_steer_the_terminal(run: Run) -> None:
    """Texts of an agent may hold escape sequences, and letters that turn the line around."""
    run.check(["lost \x1b[31m\u202e7"])
    assert "lost \\x1b[31m\\u202e7" in reason(expected(run).conclude())


def test_a_run_can_say_that_it_decides_nothing(run: Run) -> None:
    """Too little load is not a pass."""
    run.inconclusive("only 3 of 20 kills hit the load")
    record = expected(run).conclude()
    assert record.verdict is Verdict.INCONCLUSIVE
    assert "only 3 of 20 kills hit the load" in reason(record)


def test_a_check_with_a_name_is_a_key_assertion(run: Run) -> None:
    """Its name and what it found are in the record, and a finding is not counted twice."""
    run.check([], expect="numbers are contiguous")
    run.check([Finding(signature="durability:lost", text="7 is gone")], expect="nothing is lost")
    record = run.conclude()
    assert [(assertion.name, assertion.observed, assertion.holds) for assertion in record.assertions] == [
        ("numbers are contiguous", "no finding", True),
        ("nothing is lost", "durability:lost", False),
    ]
    assert [finding.signature for finding in record.findings] == ["durability:lost"]


def test_a_violation_without_faults_is_of_its_own_kind(run: Run) -> None:
    """What is found within ``clean_run`` is a bug of the target or a wrong checker, and says so."""
    with run.clean_run():
        run.check(["it was so from the beginning"])
    run.check(["it was so after the fault"])
    assert [finding.kind for finding in expected(run).conclude().findings] == ["clean-run", "safety"]


def test_notes_are_json(run: Run) -> None:
    """A fact that cannot be stored is refused with its name, and the others are in the record."""
    run.note("kills in the window", 17)
    with pytest.raises(UsageError, match="the note 'bad' must be JSON"):
        run.note("bad", object())
    assert expected(run).conclude().notes == {"kills in the window": 17}


def test_a_second_conclusion_changes_nothing(run: Run) -> None:
    """The record of a run is made once, though teardown asks again."""
    record = expected(run).conclude()
    assert run.conclude(AssertionError("too late")) is record


def test_the_record_says_what_became_of_each_agent(run: Run) -> None:
    """One ended by itself, one by a fault, one was ended by the harness."""
    run.spawn(targets.exit_with, kwargs={"code": 3}, name="self", may_fail=True).wait_exit()
    run.spawn(targets.count_up, name="killed").kill()
    run.spawn(targets.count_up, name="left").wait_for("step")
    record = expected(run).conclude()
    assert [(agent.name, agent.exit_status) for agent in record.agents] == [
        ("self", "exit code 3"),
        ("killed", "signal 9"),
        ("left", "ended by the harness"),
    ]
    assert record.verdict is Verdict.HELD


def failed_agents(run: Run) -> list[str]:
    """Conclude a run; return the texts of its findings about agents that failed,
    and check the verdict.
    """
    record = expected(run).conclude()
    texts = [finding.text for finding in record.findings if finding.signature == AGENT_FAILED]
    assert record.verdict is (Verdict.INCONCLUSIVE if texts else Verdict.HELD)
    return texts


def test_an_agent_that_raised_is_never_held(run: Run) -> None:
    """That it raised is a reason of its own, with what it printed last and what to change."""
    run.spawn(targets.raise_error, kwargs={"text": "disk on fire"}, name="w").wait_exit()
    (text,) = failed_agents(run)
    assert text.startswith("agent 'w' ended with exit code 1 (ValueError: disk on fire), and nothing in the test")
    assert "Traceback" in text
    assert text.endswith("or spawn it with may_fail=True")


def test_a_program_that_is_not_found_is_told(run: Run) -> None:
    """A shell's exit code 127 is an end that nothing expected, with the shell's word."""
    run.spawn(["/bin/sh", "-c", "no-such-program"], name="w").wait_exit()
    (text,) = failed_agents(run)
    assert "exit code 127" in text
    assert "not found" in text


@pytest.mark.parametrize("way", ["code", "ok", "equal", "later"])
def test_a_test_that_compares_the_status_has_judged_it(run: Run, way: str) -> None:
    """Whatever it then expects is the test's own word about the end."""
    agent = run.spawn(targets.exit_with, kwargs={"code": 3})
    status = agent.wait_exit()
    if way == "later":
        assert agent.exit_status is not None
        assert agent.exit_status.code == 3
    else:
        assert {"code": lambda: status.code == 3, "ok": lambda: not status.ok, "equal": lambda: status == (3, None)}[
            way
        ]()
    assert failed_agents(run) == []


@pytest.mark.parametrize("way", ["nothing", "text", "signal"])
def test_a_test_that_only_waits_has_judged_nothing(run: Run, way: str) -> None:
    """Nor has one that prints the status, or asks only whether a signal ended it."""
    status = run.spawn(targets.exit_with, kwargs={"code": 3}).wait_exit()
    assert {"nothing": True, "text": str(status) == "exit code 3", "signal": status[1] is None}[way]
    if way == "signal":
        assert status.signal is None
    assert len(failed_agents(run)) == 1


def test_agents_that_faults_end_are_expected_to(run: Run) -> None:
    """By SIGKILL, or with an exit code of their own after SIGTERM;
    the restart's new process is judged by itself.
    """
    run.spawn(targets.count_up, name="killed").kill()
    stopped = run.spawn(["/bin/sh", "-c", "trap 'exit 4' TERM; echo up; while :; do sleep 0.01; done"], name="stopped")
    stopped.wait_for_output("up")
    stopped.terminate()
    stopped.wait_exit()
    run.spawn(targets.count_up, name="again").restart()
    assert failed_agents(run) == []


def test_a_handle_follows_its_agent_through_a_restart(run: Run) -> None:
    """The waits, actions and the status of the old handle are those of the new process."""
    agent = run.spawn(targets.count_up, name="w", kwargs={"total": 30})
    agent.kill()
    agent.restart()
    assert agent.wait_for("step", count=30)[-1].key == 30
    assert agent.wait_exit().code == 0
    assert (agent.running, agent.state) == (False, "exit code 0")
    assert agent.newest is run.agent("w") is not agent
    third = agent.restart()
    assert third is agent.newest
    agent.kill()
    assert str(agent.exit_status) == "signal 9"


def test_a_wait_that_our_own_kill_ends_says_so(run: Run) -> None:
    """It is no finding against the target, though the test calls it owed."""
    run.plan(kill("w", plan.after_mark("step")))
    agent = run.spawn(targets.count_up, name="w")
    with pytest.raises(AgentError, match="a fault of this run ended it before") as caught:
        agent.wait_for("step", count=10, owed="ten steps")
    record = expected(run).conclude(caught.value)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert [finding.signature for finding in record.findings] == ["harness:ended-by-fault"]


@pytest.mark.parametrize("owed", ["", "a step is made at once"])
def test_a_wait_that_runs_out_is_a_finding_if_it_is_owed(run: Run, owed: str) -> None:
    """Of an agent and of the run: VIOLATED with the reason,
    or else INCONCLUSIVE with what to change.
    """
    agent = run.spawn(targets.wait_forever)
    caught: list[WaitExpired] = []
    for wait in (
        lambda: agent.wait_for("step", timeout_s=0.05, owed=owed),
        lambda: agent.wait_for_output("x", timeout_s=0.05, owed=owed),
        lambda: agent.wait_exit(timeout_s=0.05, owed=owed),
        lambda: agent.wait_state("Z", timeout_s=0.05, owed=owed),
        lambda: run.wait_until(lambda: False, timeout_s=0.05, owed=owed),
    ):
        with pytest.raises(WaitExpired) as each:
            wait()
        caught.append(each.value)
    findings = [verdict.of_error(error) for error in caught]
    assert {finding.signature for finding in findings} == {f"{'liveness' if owed else 'harness'}:wait-expired"}
    assert all(finding.text.startswith(owed) for finding in findings)
    assert all(("give owed=" in finding.text) == (not owed) for finding in findings)


def test_a_fault_that_did_not_fire_is_the_first_reason(run: Run) -> None:
    """What came after it follows from it."""
    run.plan(kill("w", plan.at_point("no.such.point")))
    agent = run.spawn(targets.wait_forever, name="w")
    with pytest.raises(WaitExpired) as caught:
        agent.wait_exit(timeout_s=0.05)
    record = expected(run).conclude(caught.value)
    assert [finding.signature for finding in record.findings] == [
        "harness:fault-not-fired:kill",
        "harness:wait-expired",
    ]
    assert "still runs (state S)" in record.findings[0].text


@pytest.mark.parametrize(("when", "hinted"), [(plan.at_moment(0.01), True), (plan.after_mark("step"), False)])
def test_a_run_that_held_with_moments_alone_has_a_hint(run: Run, when: When, *, hinted: bool) -> None:
    """Named points find what random moments miss."""
    run.plan(kill("w", when))
    run.spawn(targets.count_up, name="w").wait_exit()
    record = expected(run).conclude()
    assert record.verdict is Verdict.HELD
    assert ("at_point" in str(record.notes.get("hint", ""))) == hinted


@pytest.mark.parametrize(
    ("target", "reads", "hinted"),
    [("quiet", True, True), ("quiet", False, False), ("count_up", True, False)],
    ids=["an-empty-history", "a-history-that-is-not-read", "marks"],
)
def test_a_run_without_marks_has_a_hint_if_the_test_reads_them(
    run: Run, target: str, *, reads: bool, hinted: bool
) -> None:
    """Nothing was promised, so a check of the history has checked nothing."""
    if target == "quiet":
        run.spawn(["true"]).wait_exit()
    else:
        run.spawn(targets.count_up, kwargs={"total": 3}).wait_exit()
    if reads:
        lost = acknowledged_present(run.history, "step", range(100))
        run.check(lost, expect="nothing is lost")
    record = expected(run).conclude()
    assert record.verdict is Verdict.HELD
    assert (verdict.NO_MARK in record.notes.get("hint", ())) == hinted


def test_an_agent_that_does_not_exist_is_named(run: Run) -> None:
    """The error has the names that there are."""
    with pytest.raises(UsageError, match="agent 'x' must have been started; got: none"):
        run.agent("x")
    run.spawn(targets.tell, name="y")
    with pytest.raises(UsageError, match="agent 'x' must have been started; got: y"):
        run.agent("x")


def test_torn_marks_are_noted(run: Run) -> None:
    """A line that is no mark is not lost without a word."""
    run._journal.marks_path.write_bytes(b'\n{"kind":"ack","op\n')
    (line,) = expected(run).conclude().notes["torn_marks"]
    assert line.startswith('{"kind":"ack","op (')


@pytest.mark.parametrize("given", [True, 7, "", ["torn", ""], [None], {"torn": 1}, b"torn"])
def test_what_is_no_finding_is_told(run: Run, given: Any) -> None:
    """A check that answers with a bool or an empty text has decided nothing."""
    with pytest.raises(UsageError, match="must get findings or texts, none of them empty; got"):
        run.check(given)


def test_a_text_is_one_finding(run: Run) -> None:
    """A plain text is a finding, and not its letters are."""
    assert [finding.text for finding in run.check("torn")] == ["torn"]


def test_a_pack_of_a_run_is_whole_and_named_in_its_record(run: Run, tmp_path: Path) -> None:
    """The pack holds the databases of the run's folder and those that it named elsewhere."""
    for path in (run.directory / "in.db", run.database(tmp_path / "out.db")):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE rows (number INTEGER)")
    run.check(["something is wrong"])
    record = run.pack(expected(run).conclude(), "the failure", tmp_path / "evidence", queries={})
    pack = tmp_path / "evidence" / record.run_id
    assert record.evidence == f"evidence/{record.run_id}"
    assert verify(pack) == []
    opened = open_pack(pack)
    assert {row["path"].rpartition("/")[2] for row in opened.databases} == {"in.db", "out.db"}
    assert "the failure" in opened.failure


def test_evidence_that_cannot_be_written_is_a_note(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A results folder in the way costs the pack its place, not the verdict."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where the pack is for now
    (tmp_path / "evidence").write_text("a file")
    run.check(["something is wrong"])
    record = run.pack(expected(run).conclude(), "the failure", tmp_path / "evidence", queries={})
    assert (record.verdict, record.evidence) == (Verdict.VIOLATED, "")
    (problem,) = record.notes["evidence_problems"]
    (pack,) = tmp_path.glob("chaos-evidence-*/*")
    assert str(pack) in problem
    assert verify(pack) == []
    assert "could not be written" in problem


def test_removing_a_run_removes_its_folder(run: Run) -> None:
    """Nothing of a finished run stays in the scratch folder."""
    (run.directory / "left").write_text("x")
    run.conclude()
    run.remove()
    assert not run.directory.parent.exists()


def test_a_run_whose_guardian_was_killed_decides_nothing(start_run: StartRun, tmp_path: Path) -> None:
    """A wait says so at once, children and daemons are ended,
    and even a violation is put down to the harness.
    """
    (tmp_path / "own").mkdir()
    with GuardianClient(tmp_path / "own") as own:
        run = start_run(client=own)
        agent = run.spawn(targets.family)
        agent.wait_for("ready")
        started = [process for process in processes.descendants(own.pid) if process.alive]
        assert len(started) >= 6
        stand_in = psutil.Process(own.pid).parent()
        os.kill(own.pid, signal.SIGKILL)
        with pytest.raises(GuardianLost, match="the guardian of the agents was killed") as caught:
            agent.wait_for("never")
        until(lambda: not [process for process in started if processes.is_running(process.pid, process.start_ticks)])
        assert stand_in is not None
        assert stand_in.status() != psutil.STATUS_ZOMBIE, "if we are killed now, nobody cleans up"
        run.check(["something is missing"])
        record = expected(run).conclude(caught.value)
    assert record.verdict is Verdict.INCONCLUSIVE
    assert {finding.kind for finding in record.findings} == {"harness"}


def test_the_end_of_a_guardian_is_no_end_of_an_agent(start_run: StartRun, tmp_path: Path) -> None:
    """An agent that was awaited and died with its guardian is not blamed for it."""
    (tmp_path / "own").mkdir()
    with GuardianClient(tmp_path / "own") as own:
        run = start_run(client=own)
        agent = run.spawn(targets.count_up)
        agent.wait_for("step")
        os.kill(own.pid, signal.SIGKILL)
        assert str(agent.wait_exit()) == "signal 9"
        run.expect("it went on", observed=agent.state, holds=agent.running)
        with pytest.raises(SpawnError, match="the guardian of the agents ended"):
            run.spawn(targets.tell, name="next")
        assert run.conclude().verdict is Verdict.INCONCLUSIVE
