"""Wall clocks of real processes jump, run, stand and are healed; each receipt is their word."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos import (
    after_mark,
    at_moment,
    at_point,
    at_step,
    clock_drift,
    clock_freeze,
    clock_heal,
    clock_jump,
    clock_uptime,
    hold,
    release,
)
from pytest_chaos.clocks import process, uptime, vdso
from pytest_chaos.clocks.cell import ClockCell, Motion
from pytest_chaos.errors import AgentError, ClockNotMoved, TooLate, UsageError
from pytest_chaos.model.values import Verdict

from tests.harness.clocks import clockwork

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.runtime.run import Run

DAY = 86_400
YEAR = 365 * DAY
READ = at_point("clockwork.read")


def ahead(run: Run, number: int) -> dict[str, int]:
    """Return by how many seconds each reading was ahead of the machine's clock."""
    (mark,) = [mark for mark in run.history.select("note", "ahead") if mark.key in {number, None}]
    found: dict[str, int] = mark.value
    return found


@pytest.mark.parametrize("by_s", [-DAY, YEAR])
def test_every_way_to_read_the_clock_moves(run: Run, by_s: int) -> None:
    """Behind the point each reading is moved by the jump, a child's and a raw call's, too;
    the monotonic clock goes on.
    """
    run.plan(clock_jump("reader", READ, by_s=by_s))
    run.spawn(clockwork.read_twice, name="reader").wait_exit()
    run.wait_for_faults()
    near = {name: abs(value) for name, value in ahead(run, 1).items() if name != "tai"}
    assert max(near.values()) <= 2, near
    moved = {name: abs(value - by_s) for name, value in ahead(run, 2).items() if name != "tai"}
    assert max(moved.values()) <= 2, moved
    assert abs(ahead(run, 2)["tai"] - ahead(run, 1)["tai"] - by_s) <= 2
    first, second = (mark.value for mark in run.history.select("note", "monotonic"))
    assert 0 < second - first < DAY / 2
    (receipt,) = run.receipts
    assert receipt.fired
    assert f"{by_s:+,}.0" in receipt.evidence.replace(f"{by_s - 1:+,}.9", f"{by_s:+,}.0"), receipt.evidence


def test_a_program_in_another_language_moves_with_what_it_starts(run: Run) -> None:
    """A shell, and each program that it starts later, read the moved clock from the start."""
    run.plan(clock_jump("shell", after_mark("up", kind="note"), by_s=-DAY))
    wait = "until [ -e go ]; do sleep 0.01; done"
    shell = run.spawn(
        ["sh", "-c", f"chaos mark note up; {wait}; date +%s; sh -c 'date +%s'; exec date +%s"], name="shell"
    )
    run.wait_for_faults()
    (run.directory / "go").touch()
    shell.wait_exit(timeout_s=60)
    shown = [int(line) for line in shell.output().split()]
    assert len(shown) == 3
    assert all(abs(each + DAY - time.time()) < 600 for each in shown)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_moves(run: Run) -> None:
    """A program with threads and code of its own reads the moved clock."""
    program = (
        "const fs = require('fs'); fs.writeFileSync('up', '');"
        "const timer = setInterval(() => { if (!fs.existsSync('go')) return;"
        "console.log(Date.now()); clearInterval(timer); }, 5)"
    )
    node = run.spawn(["node", "-e", program], name="node")
    run.wait_until((run.directory / "up").exists, timeout_s=60, what="node")
    node.fire("clock-jump", {"by_s": YEAR})
    (run.directory / "go").touch()
    node.wait_exit(timeout_s=60)
    assert abs(int(node.output()) / 1000 - YEAR - time.time()) < 600


def test_no_reading_is_half_moved(run: Run) -> None:
    """Threads that read without a pause see the one time or the other, through many jumps."""
    reader = run.spawn(clockwork.hammer, name="reader", kwargs={"threads": 2})
    reader.wait_for("up", kind="note")
    for number in range(10):
        reader.fire("clock-jump", {"by_s": DAY if number % 2 else -DAY})
    (run.directory / "go").touch()
    reader.wait_exit(timeout_s=60)
    (wrong,) = run.history.select("note", "wrong")
    assert wrong.value == []
    assert len(run.receipts) == 10


def test_a_clock_stands_runs_and_is_healed(run: Run) -> None:
    """What its own vDSO shows is what was planned, within the time between two looks of ours."""
    agent = run.spawn(clockwork.stay, name="reader")
    agent.wait_for("up", kind="note")
    agent.fire("clock-freeze", {})
    first, second = (process.read_clock(agent.pid, time.time_ns).shown_ns for _ in range(2))
    assert first == second
    agent.fire("clock-drift", {"rate": 500.0})
    one = process.read_clock(agent.pid, time.monotonic_ns)
    other = process.read_clock(agent.pid, time.monotonic_ns)
    low, high = other.before_ns - one.after_ns, other.after_ns - one.before_ns
    assert 490 * low <= other.shown_ns - one.shown_ns <= 510 * high
    agent.fire("clock-heal", {})
    healed = process.read_clock(agent.pid, time.time_ns)
    assert healed.before_ns <= healed.shown_ns <= healed.after_ns
    (run.directory / "go").touch()
    agent.wait_exit()
    assert [receipt.evidence.split("machine's")[1].split(";")[0] for receipt in run.receipts] == [
        ", and stands still",
        ", and runs 500 times as fast",
        "",
    ]


def test_all_agents_of_a_run_move_and_those_that_come_later(run: Run) -> None:
    """One fault moves the clock of another agent as well, and of one that starts afterwards."""
    run.plan(clock_jump("reader", READ, by_s=-DAY, everyone=True))
    other = run.spawn(clockwork.stay, name="other")
    other.wait_for("up", kind="note")
    run.spawn(clockwork.read_twice, name="reader").wait_exit()
    run.wait_for_faults()
    later = run.spawn(clockwork.stay, name="later")
    (run.directory / "go").touch()
    for agent in (other, later):
        agent.wait_exit()
        (mark,) = [mark for mark in agent.marks if mark.operation == "ahead"]
        assert abs(mark.value + DAY) <= 2
    assert {part.split(":")[0] for part in run.receipts[0].evidence.split("; ") if "its clock showed" in part} == {
        "reader",
        "other",
    }


def test_a_clock_jumps_in_front_of_a_durable_step(run: Run) -> None:
    """Steps are watched and the clock is moved by one filter."""
    run.plan(clock_jump("shell", at_step("rename"), by_s=-DAY))
    shell = run.spawn(["sh", "-c", "echo 1 > a; mv a b; date +%s"], name="shell")
    run.wait_for_faults()
    shell.wait_exit(timeout_s=60)
    assert abs(int(shell.output()) + DAY - time.time()) < 600


def test_a_frozen_clock_is_healed_after_its_duration(run: Run) -> None:
    """The end of a freeze has a receipt of its own."""
    run.plan(clock_freeze("reader", after_mark("up", kind="note"), duration_s=0.01))
    reader = run.spawn(clockwork.stay, name="reader")
    run.wait_for_faults()
    (run.directory / "go").touch()
    reader.wait_exit()
    assert [(receipt.kind, receipt.fired) for receipt in run.receipts] == [("clock-freeze", True), ("clock-heal", True)]


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (clock_jump("a", by_s=0), "by_s must be another number than 0; got 0. Give the seconds of the jump"),
        (
            clock_jump("a", by_s=1e10),
            "by_s must be a finite number from -9223372036 to 9,223,372,036; got 10000000000.0",
        ),
        (clock_drift("a", rate=1), "rate must be another number than 1; got 1. Plan clock_heal"),
        (clock_drift("a", rate=-1), "rate must be a finite number from 0.001 to 1,000; got -1"),
        (clock_freeze("a", duration_s=1, everyone=True), "duration_s must be left out for everyone; got both"),
    ],
)
def test_what_changes_nothing_or_cannot_be_is_refused(run: Run, fault: Any, text: str) -> None:
    """Before anything starts, in one sentence."""
    with pytest.raises(UsageError) as raised:
        run.plan(fault)
    assert text.replace("-9223372036", "-9.22337e+09") in str(raised.value)


def test_a_jump_out_of_64_bits_is_no_green_run(run: Run) -> None:
    """The year is told, and the run is INCONCLUSIVE."""
    run.plan(clock_jump("reader", READ, by_s=-100 * YEAR))
    run.spawn(clockwork.read_twice, name="reader").wait_exit()
    run.expect("it ran", observed=True, holds=True)
    record = run.conclude()
    assert record.verdict is Verdict.INCONCLUSIVE
    assert record.receipts[0].evidence.startswith("a moved clock must show a time from 1970 to 2261; got the year 19")


def test_what_is_healed_must_have_been_moved(run: Run) -> None:
    """By hand it raises; in a plan it is INCONCLUSIVE."""
    agent = run.spawn(clockwork.stay, name="reader")
    agent.wait_for("up", kind="note")
    with pytest.raises(AgentError, match="clock-heal of agent 'reader' did not happen: it changes nothing"):
        agent.fire("clock-heal", {})
    (run.directory / "go").touch()
    agent.wait_exit()
    with pytest.raises(TooLate, match="clock-jump of agent 'reader' cannot happen: it has ended already"):
        agent.fire("clock-jump", {"by_s": 5})


def test_a_restarted_agent_keeps_its_clock(run: Run) -> None:
    """The clock is the machine's that it runs on, not the process's."""
    agent = run.spawn(clockwork.stay, name="reader")
    agent.wait_for("up", kind="note")
    agent.fire("clock-jump", {"by_s": YEAR})
    again = agent.restart()
    (run.directory / "go").touch()
    again.wait_exit()
    (mark,) = [mark for mark in again.marks if mark.operation == "ahead"]
    assert abs(mark.value - YEAR) <= 2


def test_a_refusal_of_ptrace_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that allows no ptrace leaves the run INCONCLUSIVE, with the remedy."""
    from pytest_chaos.clocks import tracee

    def refuse(request: int, thread: int, address: int = 0, data: int = 0) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(tracee, "ptrace", refuse)
    agent = run.spawn(clockwork.stay, name="reader")
    agent.wait_for("up", kind="note")
    with pytest.raises(AgentError, match=r"ptrace is refused \(Operation not permitted\)\. Allow it"):
        agent.fire("clock-jump", {"by_s": 5})


def test_a_clock_jumps_while_programs_are_started(run: Run) -> None:
    """The watcher traces each program that is started; a jump at that moment waits for it."""
    run.plan(clock_jump("shell", after_mark("up", kind="note"), by_s=-DAY))
    program = "chaos mark note up; until [ -e go ]; do /bin/true; done; date +%s"
    shell = run.spawn(["sh", "-c", program], name="shell")
    run.wait_for_faults()
    (run.directory / "go").touch()
    shell.wait_exit(timeout_s=60)
    assert run.receipts[0].fired, run.receipts[0].evidence
    assert abs(int(shell.output()) + DAY - time.time()) < 600


def test_an_agent_that_is_held_in_a_call_is_asked_when_it_goes_on(run: Run) -> None:
    """Its only thread waits in the kernel: the clock moves once, after the call was released."""
    run.plan(
        hold("shell", at_step("create", path="f")), clock_jump("shell", at_moment(0.0), by_s=-DAY), release("shell")
    )
    shell = run.spawn(["sh", "-c", "echo 1 > f; until [ -e go ]; do sleep 0.01; done; date +%s"], name="shell")
    run.wait_for_faults(timeout_s=60)
    (run.directory / "go").touch()
    shell.wait_exit(timeout_s=60)
    assert abs(int(shell.output()) + DAY - time.time()) < 600
    assert {receipt.kind for receipt in run.receipts if receipt.fired} == {"hold", "clock-jump", "release"}


def test_a_process_without_a_vdso_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """There is nothing to write to."""
    agent = run.spawn(clockwork.stay, name="reader")
    monkeypatch.setattr(process, "spans", lambda pid: [each for each in vdso.spans(pid) if each.name != "[vdso]"])
    ClockCell(tmp_path / "cell").move(Motion())
    with pytest.raises(ClockNotMoved, match="must have a vDSO, in which clocks are read; got none"):
        process.patch(agent.pid, str(tmp_path / "cell"))


def test_a_heal_is_planned_like_any_other(run: Run) -> None:
    """A jump and its end, each with its receipt."""
    run.plan(clock_jump("reader", READ, by_s=-DAY), clock_heal("reader", at_point("clockwork.read", occurrence=2)))
    run.spawn(clockwork.read_twice, name="reader").wait_exit()
    run.wait_for_faults()
    assert all(receipt.fired for receipt in run.receipts)


@pytest.mark.parametrize("program", ["forked", "sh"])
def test_monotonic_clocks_start_elsewhere(run: Run, program: str) -> None:
    """Of a forked agent and of a program, with what it starts; the wall clock moves beside."""
    if problem := uptime.why_not():
        pytest.skip(f"this machine allows no time namespaces: {problem}")
    days_s = 50 * DAY
    before = time.monotonic()
    run.plan(clock_uptime("agent", by_s=days_s), clock_jump("agent", after_mark("up", kind="note"), by_s=-DAY))
    if program == "forked":
        agent = run.spawn(clockwork.stay, name="agent")
    else:
        wait = "until [ -e go ]; do sleep 0.01; done"
        text = f"chaos mark note up; {wait}; read up rest < /proc/uptime; echo ${{up%.*}}; date +%s"
        agent = run.spawn(["sh", "-c", text], name="agent")
    run.wait_for_faults()
    (run.directory / "go").touch()
    agent.wait_exit(timeout_s=60)
    assert [receipt.fired for receipt in run.receipts] == [True, True]
    if program == "forked":
        (mark,) = [mark for mark in agent.marks if mark.operation == "monotonic"]
        assert days_s <= mark.value - before < days_s + 600
    else:
        shown, wall = map(int, agent.output().split())
        assert shown - days_s < time.clock_gettime(time.CLOCK_BOOTTIME) + 1
        assert shown > days_s
        assert abs(wall + DAY - time.time()) < 600
