"""Agents that are held, stopped and killed at durable steps, and at the times of other agents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import after_mark, at_moment, at_point, at_step, hold, kill, pause, release, resume
from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import Verdict
from pytest_chaos.runtime import processes

from tests.harness.faults import programs
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.model.values import RunRecord
    from pytest_chaos.runtime.run import Run


def judged(run: Run) -> RunRecord:
    """Conclude a run that expected nothing else than its faults."""
    run.expect("it came to this", observed=True, holds=True)
    return run.conclude()


@pytest.mark.parametrize("locks", [False, True])
def test_a_race_is_built_between_check_and_act(run: Run, locks: bool) -> None:  # noqa: FBT001 - a parameter
    """One agent is held between its look and its rename, while the other one looks.

    Without a lock an addition is lost, each time; with the lock none is.
    """
    (run.directory / "counter.json").write_text("0")
    run.plan(
        hold("one", at_step("rename", path="counter.json")),
        release("one", after_mark("looked", kind="note", agent="two")),
    )
    one = run.spawn(programs.add, kwargs={"amount": 1, "locks": locks}, name="one")
    run.wait_until(lambda: one.held)
    assert json.loads((run.directory / "counter.json").read_text()) == 0
    two = run.spawn(programs.add, kwargs={"amount": 10, "locks": locks}, name="two")
    one.wait_exit()
    two.wait_exit()
    assert (json.loads((run.directory / "counter.json").read_text()) == 11) is locks
    held, released = run.receipts
    assert f"(pid {one.pid} at rename: rename counter.1 -> counter.json)" in held.evidence
    assert held.evidence.startswith(f"thread {one.pid} waits in its call, state ")
    assert released.evidence.startswith(
        f"pid {one.pid} goes on with rename: rename counter.1 -> counter.json, held for"
    )
    assert (held.order or 0) < (released.order or 0)
    assert judged(run).verdict is Verdict.HELD


def test_only_the_call_is_held(run: Run) -> None:
    """Other threads of the agent go on, with steps of theirs; the call is not done yet."""
    run.plan(hold("writer", at_step("create", path="beside*")))
    writer = run.spawn(programs.save_and_count, name="writer")
    run.wait_for_faults()
    before = len(writer.marks)
    writer.wait_for("step", count=before)
    assert not (run.directory / "beside.txt").exists()
    writer.release()
    writer.wait_for("beside", kind="note")
    assert (run.directory / "beside.txt").exists()
    assert judged(run).verdict is Verdict.HELD


def test_what_is_held_at_the_end_ends_with_the_run(run: Run) -> None:
    """Nobody releases it: the run ends all the same, and the step was never made."""
    run.plan(hold("shell", at_step("rename")))
    shell = run.spawn(["sh", "-c", "touch a; mv a b"], name="shell")
    run.wait_for_faults()
    process = processes.read(int(run.receipts[0].evidence.partition("(pid ")[2].partition(" ")[0]))
    assert process is not None
    assert process.name == "mv"
    assert process.pid != shell.pid
    assert judged(run).verdict is Verdict.HELD
    assert not processes.is_running(process.pid, process.start_ticks)
    assert [path.name for path in run.directory.iterdir()] == ["a"]


def test_a_hold_that_never_came_says_what_came(run: Run) -> None:
    """Without a receipt the run is INCONCLUSIVE, and shows the steps that there were."""
    run.plan(hold("writer", at_step("rename", path="*.yaml")))
    run.spawn(programs.have_a_child_save, name="writer").wait_exit()
    record = judged(run)
    assert record.verdict is Verdict.INCONCLUSIVE
    (receipt,) = record.receipts
    expected = "agent 'writer' ended (exit code 0) before it came to that; steps it came to: rename saved.json"
    assert receipt.evidence == expected


def test_a_release_without_a_hold_lets_the_other_one_go_on(run: Run) -> None:
    """The agent whose time it was does not stand there for ever."""
    run.plan(release("one", after_mark("made", agent="two")))
    run.spawn(["true"], name="one").wait_exit()
    two = run.spawn(programs.make_then_move, name="two")
    two.wait_exit()
    (receipt,) = run.receipts
    assert not receipt.fired
    assert receipt.evidence == "agent 'one' ended (exit code 0) before it could be hit; agent 'two' waited"
    assert judged(run).verdict is Verdict.INCONCLUSIVE


def test_a_zombie_is_stopped_in_front_of_a_step(run: Run) -> None:
    """A pause at a step stops all threads; the call is done when the agent goes on."""
    run.plan(
        pause("writer", at_step("rename", path="saved.json", occurrence=2)),
        resume("writer", after_mark("made", agent="other")),
    )
    writer = run.spawn(programs.save_and_count, name="writer")
    writer.wait_state("T")
    run.wait_until(lambda: run.receipts, what="the receipt")
    assert (run.directory / "saved.json").read_text() == "1"
    assert (run.directory / "new.tmp").read_text() == "2"
    run.spawn(programs.make_then_move, name="other").wait_exit()
    writer.wait_for("step", count=3)
    assert [receipt.kind for receipt in run.receipts] == ["pause", "resume"]
    assert judged(run).verdict is Verdict.HELD


def test_a_kill_at_a_step_of_another_agent(run: Run) -> None:
    """The other agent stands in front of its step until the kill was seen."""
    run.plan(kill("writer", at_step("rename", agent="other")))
    writer = run.spawn(programs.save_and_count, name="writer")
    writer.wait_for("step")
    other = run.spawn(programs.make_then_move, name="other")
    assert str(writer.wait_exit()) == "signal 9"
    assert str(other.wait_exit()) == "exit code 0"
    (receipt,) = run.receipts
    assert f"(pid {other.pid} at rename: rename first.log -> later.log)" in receipt.evidence
    (made,) = run.history.acknowledged("made")
    assert (receipt.order or 0) <= made.order
    assert judged(run).verdict is Verdict.HELD


def test_a_file_that_another_agent_made_and_moved_is_known(run: Run) -> None:
    """A step on it is found by the path that it has now."""
    run.plan(hold("reader", at_step("write", path="later.log")), release("reader"))
    reader = run.spawn(programs.append_to_a_file_of_another, name="reader")
    run.spawn(programs.make_then_move, name="maker").wait_exit()
    reader.wait_exit()
    assert (run.directory / "later.log").read_text() == "made\na line"
    assert [receipt.fired for receipt in run.receipts] == [True, True]
    assert judged(run).verdict is Verdict.HELD


def test_a_point_has_a_path(run: Run) -> None:
    """Only events with such a path are counted; the receipt has the path."""
    run.plan(kill("writer", at_point("os.rename", path="saved.*", occurrence=2)))
    writer = run.spawn(programs.save_and_count, name="writer")
    writer.wait_exit()
    (receipt,) = run.receipts
    assert receipt.evidence.endswith(f"(pid {writer.pid} at os.rename of {run.directory / 'saved.json'})")
    assert (run.directory / "saved.json").read_text() == "1"


@pytest.mark.parametrize(
    "when", [at_point("programs.ready"), at_step("create", path="made"), after_mark("ready"), None]
)
def test_a_kill_tells_of_children_that_live_on(run: Run, when: object) -> None:
    """Without tree=True the receipt names them; they are ended with the run."""
    if when is not None:
        run.plan(kill("parent", when))  # type: ignore[arg-type] # one of three times
    parent = run.spawn(programs.have_children_and_wait, name="parent")
    (ready,) = parent.wait_for("ready")
    if when is None:
        parent.kill()
    parent.wait_exit()
    until(lambda: bool(run.receipts))
    (receipt,) = run.receipts
    assert f"without tree=True 1 of its processes live on: sleep (pid {ready.value})" in receipt.evidence


def test_a_dead_watcher_is_no_violation(run: Run) -> None:
    """What its agents do then is not their own fault: the run is INCONCLUSIVE."""
    run.plan(hold("writer", at_step("rename", path="never")))
    writer = run.spawn(programs.save_and_count, name="writer", may_fail=True)
    writer.wait_for("step")
    run.agent("step-watcher-1").kill()
    writer.wait_exit()
    run.expect("all is well", observed=False, holds=False)
    record = run.conclude()
    assert record.verdict is Verdict.INCONCLUSIVE
    assert "harness:step-watcher" in {finding.signature for finding in record.findings}


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "an unknown step": (
        lambda: at_step("fsync"),
        "the step must be one of create, .*; got 'fsync'. Did you mean 'sync'?",
    ),
    "an absolute path": (lambda: at_step("rename", path="/etc/*"), "relative to the run's directory; got '/etc/\\*'"),
    "no first time": (lambda: at_step("rename", occurrence=0), "occurrence must be 1 or more; got 0"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_time_that_cannot_come_is_refused(bad: str) -> None:
    """Each in one sentence, where it is written."""
    make, said = BAD[bad]
    with pytest.raises(UsageError, match=said):
        make()


def test_a_plan_that_cannot_be_is_refused(run: Run) -> None:
    """A hold at a mark, or of another agent's step; a moment with two agents."""
    moment = at_moment(1.0, after=after_mark("put", agent="one"), agent="two")
    with pytest.raises(UsageError) as caught:
        run.plan(
            hold("writer", after_mark("step")),  # type: ignore[arg-type] # the mistake
            hold("writer", at_step("rename", agent="other")),
            kill("writer", moment),
        )
    text = str(caught.value)
    assert "the time of hold must be at_step(...); got after_mark(...). At another time, pause(...) stops" in text
    assert "the step of a hold must be of the agent that is held; got 'other'. Hold that one" in text
    assert "a moment after a mark must have the agent of the mark; got 'two'. Give after_mark(..., agent='two')" in text


def test_steps_are_the_actions_of_the_trace() -> None:
    """The names that a plan takes are those that the step source gives."""
    from pytest_chaos.model.plan import STEPS
    from pytest_chaos.trace.step import Action

    assert set(STEPS) == set(Action) - {Action.POINT, Action.MARK}


def test_nothing_is_left_in_the_folder_of_the_run(run: Run) -> None:
    """The watcher writes beside the target's files, never among them."""
    run.plan(pause("writer", at_step("create", path="beside*")))
    run.spawn(programs.save_and_count, name="writer").wait_state("T")
    assert {path.name for path in Path(run.directory).iterdir()} <= {"saved.json", "new.tmp"}
