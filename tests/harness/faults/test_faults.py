"""Every fault, at every kind of time, is seen to have happened, or its run decides nothing."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import hold_lock, kill, pause, restart, terminate
from pytest_chaos.errors import AgentError, TooLate, UsageError, WaitExpired
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model import plan
from pytest_chaos.model.values import AfterMark, Fault, Receipt, Verdict
from pytest_chaos.runtime import processes

from tests.harness.runtime import targets

if TYPE_CHECKING:
    from pytest_chaos.model.values import RunRecord, When
    from pytest_chaos.runtime.run import Run

POINT = "targets.step.between"


def judged(run: Run) -> RunRecord:
    """Conclude a run that expected nothing else than its faults."""
    run.expect("it came to this", observed=True, holds=True)
    return run.conclude()


def only(run: Run) -> Receipt:
    """Return the one receipt that there is."""
    (receipt,) = run.receipts
    return receipt


def test_a_kill_by_hand_has_a_receipt(run: Run) -> None:
    """SIGKILL, at once: the receipt is the exit status of the process."""
    agent = run.spawn(targets.count_up, name="writer")
    agent.wait_for("step", count=2)
    agent.kill()
    receipt = only(run)
    assert (receipt.kind, receipt.agent, receipt.when) == ("kill", "writer", "at once")
    assert (receipt.fired, receipt.evidence, receipt.fault) == (True, "process ended by signal 9", None)
    assert receipt.order is not None
    assert receipt.order >= 4
    assert judged(run).verdict is Verdict.HELD


@pytest.mark.parametrize("when", [plan.at_point(POINT), plan.after_mark("step")], ids=["point", "mark"])
def test_a_fault_within_the_agent_has_the_program_line(run: Run, when: When) -> None:
    """The agent notes, as it dies, which line of the program it had come to."""
    run.plan(kill("writer", when))
    run.spawn(targets.count_up, name="writer", kwargs={"total": 3}).wait_exit()
    (note,) = [mark for mark in run.history.marks if mark.operation == "chaos.fault"]
    assert re.fullmatch(r"targets\.py:\d+ in count_up", note.value["line"])


def test_a_kill_spares_the_children(run: Run) -> None:
    """One process is killed, exactly; its children are ended with the run."""
    agent = run.spawn(targets.family)
    agent.wait_for("ready")
    children = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _group(pid) == agent.pid]
    assert len(children) >= 3
    agent.kill()
    assert {pid for pid in children if _group(pid) == agent.pid} == set(children) - {agent.pid}
    run.conclude()
    assert [pid for pid in children if _group(pid) == agent.pid] == []


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def test_a_terminated_agent_ends_by_the_signal(run: Run) -> None:
    """SIGTERM ends a program that does nothing about it."""
    agent = run.spawn(targets.count_up)
    agent.terminate()
    assert only(run).evidence == "process ended with signal 15 after SIGTERM"


def test_a_terminated_agent_may_refuse(run: Run) -> None:
    """A program that handles SIGTERM and goes on has got it all the same."""
    agent = run.spawn(targets.ignore_terminate)
    agent.wait_for("ready")
    agent.terminate()
    agent.wait_for("refused")
    assert only(run).evidence == "SIGTERM was taken by the handler that the process has for it"
    assert agent.running


def test_a_terminated_agent_may_ignore_it(run: Run) -> None:
    """A program that ignores SIGTERM was sent it, and that is what the receipt says."""
    agent = run.spawn(["/bin/sh", "-c", "trap '' TERM; echo ready; kill -STOP $$"])
    agent.wait_for_output("ready")
    agent.terminate()
    assert only(run).evidence == "SIGTERM was sent, and the process ignores it"
    assert agent.running


def test_a_pause_and_its_end_are_the_kernels_word(run: Run) -> None:
    """While another agent works, the stopped one marks nothing;
    afterwards it goes on where it stood.
    """
    agent = run.spawn(targets.count_up, name="stopped")
    agent.wait_for("step")
    agent.pause()
    stood = len(run.history.select(agent="stopped"))
    run.spawn(targets.count_up, name="working").wait_for("step", count=50)
    assert len(run.history.select(agent="stopped")) == stood
    agent.resume()
    agent.wait_for("step", count=stood)
    assert [(receipt.kind, receipt.fired) for receipt in run.receipts] == [("pause", True), ("resume", True)]
    assert run.receipts[0].evidence == "process state T (stopped)"
    assert run.receipts[1].evidence.endswith("after SIGCONT")


def test_what_has_ended_cannot_be_hit(run: Run) -> None:
    """A fault fired by hand at an agent that is no more is an error,
    not a fault without a receipt.
    """
    agent = run.spawn(targets.exit_with, kwargs={"code": 0})
    agent.wait_exit()
    for fire in (agent.kill, agent.terminate, agent.pause, agent.resume):
        with pytest.raises(AgentError, match="cannot happen: it has ended already"):
            fire()


def test_an_agent_killed_from_outside_is_told_as_it_is(run: Run) -> None:
    """A kill that nobody planned has no receipt, and the wait says by what the agent ended."""
    agent = run.spawn(targets.count_up)
    agent.wait_for("step")
    os.kill(agent.pid, signal.SIGKILL)
    with pytest.raises(AgentError, match="signal 9"):
        agent.wait_for("never")
    assert run.receipts == ()
    assert run.conclude(AgentError("it ended", owed="it works for ever")).verdict is Verdict.VIOLATED


@pytest.mark.parametrize(
    ("when", "acked"),
    [
        (plan.at_point(POINT, occurrence=3), 2),
        (plan.after_mark("step", count=3), 3),
        (plan.after_mark("step", kind="intent", count=3), 2),
    ],
    ids=["point", "ack", "intent"],
)
def test_a_planned_kill_from_within_is_exact(run: Run, when: When, acked: int) -> None:
    """At a crash point, or after a mark, the agent dies right there:
    not one mark more, not one less.
    """
    run.plan(kill("writer", when))
    agent = run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    assert str(agent.exit_status) == "signal 9"
    marks = run.history.select(operation="step", agent="writer")
    assert [mark.key for mark in marks if mark.kind == "ack"] == list(range(1, acked + 1))
    assert [mark.key for mark in marks if mark.kind == "intent"] == [1, 2, 3]
    receipt = only(run)
    assert (receipt.fired, receipt.fault, receipt.evidence) == (True, 0, "process ended by signal 9")
    assert receipt.when == plan.describe_when(when)
    assert judged(run).verdict is Verdict.HELD


@pytest.mark.parametrize("kind", ["terminate", "pause"])
@pytest.mark.parametrize("when", [plan.at_point(POINT, occurrence=2), plan.after_mark("step", count=2)])
def test_other_faults_fire_from_within_as_well(run: Run, kind: str, when: When) -> None:
    """SIGTERM and SIGSTOP, too, come from the agent itself at a point or a mark."""
    run.plan({"terminate": terminate, "pause": pause}[kind]("writer", when))
    agent = run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    assert only(run).fired
    assert agent.state == {"terminate": "signal 15", "pause": "T"}[kind]
    assert len(run.history.select(operation="step", kind="intent")) == 2


def test_a_mark_of_any_program_can_be_what_a_fault_waits_for(run: Run) -> None:
    """A program that is not ours is hit by the injector as soon as its mark is seen."""
    line = r"""printf '\n{"kind":"ack","operation":"up","agent":"shell","pid":%d}\n' $$ >> "$CHAOS_MARKS" """
    run.plan(kill("shell", plan.after_mark("up", count=2)))
    agent = run.spawn(["/bin/sh", "-c", f"{line}; {line}; kill -STOP $$"], name="shell")
    run.wait_for_faults()
    assert str(agent.exit_status) == "signal 9"
    assert only(run).fired


@pytest.mark.parametrize("after", [None, plan.after_mark("step", count=2)], ids=["start", "mark"])
def test_a_kill_at_a_moment_comes_no_sooner(run: Run, after: AfterMark | None) -> None:
    """The delay counts from the start, or from when the mark was seen."""
    run.plan(kill("writer", plan.at_moment(0.05, after=after)))
    agent = run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    assert only(run).fired
    assert agent.summary().duration_s >= 0.05
    assert after is None or len(run.history.acknowledged("step")) >= 2


def test_a_kill_at_once_comes_with_the_start(run: Run) -> None:
    """A planned fault without a time fires as soon as the agent is there."""
    run.plan(kill("writer"))
    agent = run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    assert (only(run).fired, str(agent.exit_status)) == (True, "signal 9")


def test_a_pause_with_a_duration_ends_by_itself(run: Run) -> None:
    """Two receipts: one that it stood, one that it went on, no sooner than planned."""
    run.plan(pause("writer", plan.after_mark("step", count=2), duration_s=0.05))
    agent = run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    assert [(receipt.kind, receipt.fired) for receipt in run.receipts] == [("pause", True), ("resume", True)]
    agent.wait_for("step", count=20)
    assert judged(run).verdict is Verdict.HELD


def test_several_faults_hit_one_agent_in_their_order(run: Run) -> None:
    """A pause, its end and a kill of one agent: each with a receipt, in the plan's places."""
    run.plan(
        pause("writer", plan.after_mark("step", count=2), duration_s=0.02),
        kill("writer", plan.after_mark("step", count=30)),
    )
    run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    assert [(receipt.kind, receipt.fault) for receipt in run.receipts] == [("pause", 0), ("resume", None), ("kill", 1)]


def test_a_planned_restart_starts_it_again(run: Run) -> None:
    """After the mark the old process is killed, and a new one of that name goes on from the
    beginning.
    """
    run.plan(restart("writer", plan.after_mark("step", count=5)))
    first = run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    second = run.agent("writer")
    assert second.pid != first.pid
    assert only(run).evidence == f"pid {first.pid} ended by signal 9, started again as pid {second.pid}"
    second.wait_for("step", count=5)
    assert [mark.key for mark in second.marks if mark.kind == "ack"][:5] == [1, 2, 3, 4, 5]
    assert judged(run).verdict is Verdict.HELD


def test_a_held_lock_is_proved_by_a_refusal(run: Run) -> None:
    """The write lock is taken by another process, and the receipt has what SQLite told a third."""
    path = run.directory / "held.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE rows (number INTEGER)")
    connection.close()
    run.plan(hold_lock("writer", plan.after_mark("step", count=2), database=str(path), duration_s=0.05))
    run.spawn(targets.count_up, name="writer")
    run.wait_for_faults()
    receipt = only(run)
    assert receipt.fired
    assert "another connection was told: database is locked" in receipt.evidence
    holder = run.agent("lock-holder-1")
    holder.wait_for("write-lock-released", kind="note")
    assert str(holder.wait_exit()) == "exit code 0"
    assert judged(run).verdict is Verdict.HELD


def never_fired(run: Run, fault: Fault, **kwargs: object) -> str:
    """Carry out a plan of one fault that cannot fire, and return why it did not,
    from an INCONCLUSIVE record.
    """
    run.plan(fault)
    run.spawn(targets.count_up, name="writer", kwargs={"total": 5, **kwargs}).wait_exit()
    record = judged(run)
    assert record.verdict is Verdict.INCONCLUSIVE
    (receipt,) = record.receipts
    assert not receipt.fired
    assert receipt.order is None
    (finding,) = record.findings
    assert finding.signature == f"harness:fault-not-fired:{fault.kind}"
    assert receipt.evidence in finding.text
    return receipt.evidence


def test_a_point_that_was_never_passed_is_told_with_those_that_were(run: Run) -> None:
    """A misspelt crash point leaves the run INCONCLUSIVE,
    and the reason has the names that there are.
    """
    why = never_fired(run, kill("writer", plan.at_point("targets.step.betwen")))
    assert why.startswith("agent 'writer' ended (exit code 0) before it came to that; points it passed: ")
    assert why.endswith(f"{POINT} (5 times); did you mean {POINT!r}?")


def test_a_point_that_was_passed_too_seldom_is_told(run: Run) -> None:
    """Six times were planned, and it was passed five times."""
    assert "(5 times)" in never_fired(run, kill("writer", plan.at_point(POINT, occurrence=6)))


def test_points_of_another_family_are_not_listed(run: Run) -> None:
    """A point of a family that the agent knows nothing of says so."""
    why = never_fired(run, kill("writer", plan.at_point("elsewhere.there")))
    assert "elsewhere" not in why
    assert f"points it passed: {POINT}" in why or f", {POINT}" in why


def test_a_point_of_an_agent_that_goes_on_is_told_with_those_that_were(run: Run) -> None:
    """An agent that runs when the run ends has not ended,
    and the names of its points are known all the same.
    """
    run.plan(kill("writer", plan.at_point("targets.step.betwen")))
    run.spawn(targets.count_up, name="writer").wait_for("step")
    judged(run)
    why = only(run).evidence
    assert "agent 'writer' still runs (state" in why
    assert why.endswith(f"points it passed: {POINT}; did you mean {POINT!r}?")


def test_a_misspelt_mark_is_told_with_those_that_were(run: Run) -> None:
    """The reason has the marks that there are, and the one that was meant."""
    why = never_fired(run, kill("writer", plan.after_mark("stepp")))
    assert why.endswith("marks it wrote: 5 intent of step, 5 ack of step; did you mean 'step'?")


def test_a_tree_is_killed_with_a_receipt_for_each(run: Run) -> None:
    """A server ends with its children at a named point;
    each process has a receipt, and none is left.
    """
    run.plan(kill("server", plan.after_mark("ready"), tree=True))
    agent = run.spawn(targets.parent_of_two, name="server")
    run.wait_for_faults()
    assert str(agent.exit_status) == "signal 9"
    children = [mark.value for mark in run.history.select("note", "child")]
    assert len(children) == 2
    first, *others = run.receipts
    assert (first.agent, first.evidence, first.fired) == ("server", "process ended by signal 9", True)
    assert sorted(receipt.agent.rpartition("pid ")[2] for receipt in others) == sorted(f"{pid})" for pid in children)
    assert not any(process is not None and process.alive for process in map(processes.read, children))
    assert judged(run).verdict is Verdict.HELD


def test_a_tree_is_killed_at_once(run: Run) -> None:
    """``agent.kill(tree=True)`` does the same by hand; without it, the children live on."""
    one = run.spawn(targets.parent_of_two, name="one")
    two = run.spawn(targets.parent_of_two, name="two")
    for agent in (one, two):
        agent.wait_for("ready")
    one.kill()
    two.kill(tree=True)

    def alive(name: str) -> int:
        pids = [mark.value for mark in run.history.select("note", "child", name)]
        return sum(process is not None and process.alive for process in map(processes.read, pids))

    assert (alive("one"), alive("two")) == (2, 0)
    assert [receipt.agent.partition(" > ")[0] for receipt in run.receipts] == ["one", "two", "two", "two"]


def test_a_kill_that_comes_too_late_says_so_at_once(run: Run) -> None:
    """An agent whose end nobody waited for has ended all the same:
    no ten seconds for a receipt that cannot come.
    """
    agent = run.spawn(targets.exit_with, kwargs={"code": 0})
    run.wait_until(lambda: (process := processes.read(agent.pid)) is None or not process.alive, what="its end")
    with pytest.raises(TooLate, match=r"kill of agent .* cannot happen: it has ended already \(exit code 0\)"):
        agent.kill()
    assert run.conclude(TooLate("late")).findings[0].signature == "harness:too-late"


@pytest.mark.parametrize("when", [plan.after_mark("step", count=6), plan.at_moment(60.0)], ids=["mark", "moment"])
@pytest.mark.parametrize("kind", ["kill", "pause"])
def test_a_time_that_never_came_leaves_the_run_undecided(run: Run, kind: str, when: When) -> None:
    """An agent that ended before its fault was due was not hit by it."""
    why = never_fired(run, kill("writer", when) if kind == "kill" else pause("writer", when))
    assert why.startswith("agent 'writer' ended (exit code 0) before it came to that")
    assert ("marks it wrote: 5 intent of step, 5 ack of step" in why) == isinstance(when, AfterMark)


def test_a_fault_of_an_agent_that_nobody_started_is_told(run: Run) -> None:
    """The reason names the agents that there were."""
    why = never_fired(run, kill("writr", plan.after_mark("step")))
    assert why == "no agent called 'writr' was started (there were: writer)"


def test_a_point_of_a_program_that_is_not_ours_is_told(run: Run) -> None:
    """Crash points are Python's; a shell has none."""
    run.plan(kill("shell", plan.at_point(POINT)))
    run.spawn(["/bin/true"], name="shell").wait_exit()
    judged(run)
    assert only(run).evidence == "a named crash point exists only in a Python agent (module:function)"


def test_waiting_for_a_fault_that_does_not_come_expires(run: Run) -> None:
    """``wait_for_faults`` has a bound."""
    run.plan(kill("writer", plan.after_mark("never")))
    run.spawn(targets.count_up, name="writer")
    with pytest.raises(WaitExpired, match="all planned faults to fire"):
        run.wait_for_faults(timeout_s=0.1)


def test_crash_points_are_traced_on_request(run: Run) -> None:
    """With ``trace_points`` each point of that prefix becomes a mark,
    in its place among the others.
    """
    agent = run.spawn(targets.count_up, kwargs={"total": 2}, trace_points="targets.")
    agent.wait_exit()
    run.conclude()
    assert [(str(mark.kind), mark.key) for mark in agent.marks] == [
        ("intent", 1), ("note", POINT), ("ack", 1), ("intent", 2), ("note", POINT), ("ack", 2)
    ]  # fmt: skip


def test_the_second_incarnation_of_an_agent_is_not_hit_again(run: Run) -> None:
    """A fault of a plan happens once: the agent that is started again after it lives."""
    run.plan(kill("writer", plan.at_point(POINT, occurrence=2)))
    first = run.spawn(targets.count_up, name="writer", kwargs={"total": 10})
    run.wait_for_faults()
    second = first.restart()
    assert str(second.wait_exit()) == "exit code 0"
    assert [receipt.kind for receipt in run.receipts] == ["kill", "restart"]


def test_an_unknown_fault_is_refused_with_the_nearest_name(run: Run) -> None:
    """A plan is checked against the registry before anything starts."""
    fault = Fault(kind="kil", agent="writer")
    with pytest.raises(UsageError, match=f"one of {', '.join(sorted(REGISTRY))}; got 'kil'. Did you mean 'kill'"):
        run.plan(fault)
