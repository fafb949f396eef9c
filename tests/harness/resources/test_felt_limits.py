"""A running agent meets a bound on what it may use; the receipt says which call failed by it."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import after_mark, at_point, pause
from pytest_chaos.errors import TooLate, UsageError
from pytest_chaos.model.values import Fault, Verdict
from pytest_chaos.resources import crowd, limit, starve, unlimit
from pytest_chaos.runtime import processes

from tests.harness.faults import programs

if TYPE_CHECKING:
    from pytest_chaos.runtime.run import Run

MOST = {"files": 3, "processes": 0, "file-size": 1000, "address-space": 4096}
REFUSED = {"files": "EMFILE", "processes": "EAGAIN", "file-size": "EFBIG", "address-space": "ENOMEM"}


@pytest.mark.parametrize("what", MOST)
def test_a_bound_is_felt_by_a_call_of_the_agent(run: Run, what: str) -> None:
    """The program is told the error, and the receipt has the kernel's bound and the call."""
    if what == "processes" and os.getuid() == 0:
        pytest.skip("the kernel does not bound the processes of root")
    run.plan(limit("user", what, at_point("programs.use"), most=MOST[what]))
    run.spawn(programs.use, name="user", kwargs={"what": what}).wait_exit()
    run.wait_for_faults()
    (told,) = run.history.select("note", "refused")
    (receipt,) = run.receipts
    assert told.value == REFUSED[what]
    assert receipt.fired
    assert f"is {MOST[what]:,}" in receipt.evidence
    assert f"failed with {REFUSED[what]}" in receipt.evidence


def test_a_bound_that_nothing_meets_is_inconclusive(run: Run) -> None:
    """It was in force, and was not felt."""
    run.plan(limit("user", "files", at_point("programs.use"), most=1000))
    run.spawn(programs.use, name="user", kwargs={"what": "files"}).wait_exit()
    run.expect("it came to this", observed=True, holds=True)
    record = run.conclude()
    assert record.verdict is Verdict.INCONCLUSIVE
    assert not record.receipts[0].fired
    assert "RLIMIT_NOFILE is 1,000, with " in record.receipts[0].evidence
    assert "no call of it failed by that before it ended (exit code 0)" in record.receipts[0].evidence
    assert record.findings[0].text.endswith("the agent must feel it, and let the agent live until then")


def test_a_bound_is_lifted_and_the_agent_works_again(run: Run) -> None:
    """It is refused, the bound is lifted by the plan, and the same process opens files."""
    run.plan(
        limit("user", "files", after_mark("begun", kind="note"), most=3),
        unlimit("user", after_mark("refused", kind="note")),
    )
    user = run.spawn(programs.open_until_it_works, name="user")
    user.wait_exit()
    run.wait_for_faults()
    assert [receipt.fired for receipt in run.receipts] == [True, True]
    before, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert f"RLIMIT_NOFILE went from 3 to {before:,}" in run.receipts[1].evidence
    assert run.history.select("note", "opened")


def test_any_program_is_bounded_and_its_children_are(run: Run) -> None:
    """A shell is no Python agent: the program that it starts meets the bound."""
    run.plan(limit("shell", "file-size", most=1000))
    script = "read line < go; head -c 5000 /dev/zero > big; :"
    os.mkfifo(run.directory / "go")
    run.spawn(["sh", "-c", script], name="shell", may_fail=True)
    run.wait_until(lambda: _bound(run) == 1000)
    (run.directory / "go").write_text("go\n")
    run.wait_for_faults()
    assert "write of thread" in run.receipts[0].evidence
    assert "failed with EFBIG" in run.receipts[0].evidence


def _bound(run: Run) -> int:
    return resource.prlimit(run.all_agents[0].pid, resource.RLIMIT_FSIZE)[0]


def test_other_faults_stop_an_agent_that_a_witness_traces(run: Run) -> None:
    """A bound that nothing has met yet is in no other fault's way."""
    run.plan(
        limit("writer", "files", most=1000),
        pause("writer", after_mark("step", count=3), duration_s=0.02),
        starve("writer", after_mark("step", count=6), duration_s=0.05),
    )
    writer = run.spawn(programs.save_and_count, name="writer")
    run.wait_until(lambda: any(receipt.kind == "starve" for receipt in run.receipts))
    writer.kill()
    run.wait_for_faults()
    fired = {receipt.kind: receipt.fired for receipt in run.receipts}
    assert fired == {"limit-files": False, "pause": True, "resume": True, "starve": True, "kill": True}


def test_an_agent_over_its_memory_is_killed(run: Run) -> None:
    """It grows, is killed, and the receipt says how that was decided."""
    run.plan(limit("user", "memory", at_point("programs.use"), most=120_000_000))
    user = run.spawn(programs.use, name="user", kwargs={"what": "memory"})
    run.wait_for_faults()
    assert user.wait_exit() == (None, 9)
    assert "more than 120.0 MB (RSS was watched and SIGKILL sent" in run.receipts[0].evidence


def test_a_starved_agent_goes_on_afterwards(run: Run) -> None:
    """It stood still most of the time, was never left stopped, and ends its work."""
    run.plan(starve("writer", after_mark("step", count=3), duration_s=0.2))
    writer = run.spawn(programs.save_and_count, name="writer")
    run.wait_for_faults()
    count = len(writer.marks)
    run.wait_until(lambda: len(writer.marks) > count)
    assert run.receipts[0].fired
    assert "it was seen stopped" in run.receipts[0].evidence


def test_processes_of_root_are_not_bounded(run: Run) -> None:
    """The kernel does not hold root to it, so the run says so instead of being green."""
    if os.getuid() != 0:
        pytest.skip("needs root, whom the kernel does not bound")
    run.plan(limit("user", "processes", at_point("programs.use"), most=1))
    run.spawn(programs.use, name="user", kwargs={"what": "files"}).wait_exit()
    run.expect("it came to this", observed=True, holds=True)
    assert "the kernel does not bound the processes of root" in run.conclude().receipts[0].evidence


def test_an_agent_that_has_ended_cannot_be_bounded(run: Run) -> None:
    """A sentence says that it is too late."""
    user = run.spawn(programs.use, name="user", kwargs={"what": "files"})
    user.wait_exit()
    with pytest.raises(TooLate, match="limit-files of agent 'user' cannot happen: it has ended already"):
        run._fire("limit-files", user, {"most": 3})


def test_what_is_limited_must_be_known() -> None:
    """The error names the words, and the close one."""
    with pytest.raises(UsageError, match=r"what is limited must be one of .*; got 'file'\. Did you mean 'files'\?"):
        limit("user", "file", most=3)
    with pytest.raises(UsageError, match="most must be a whole number from 0"):
        limit("user", "files", most=-1)
    assert isinstance(limit("user", "files", most=3), Fault)


def test_a_crowded_agent_waits_for_its_processor(run: Run) -> None:
    """By the scheduler's own account. Afterwards it may use all it could before, and none spins."""
    run.plan(crowd("counter", after_mark("begun", kind="note"), duration_s=1.0, spinners=3))
    counter = run.spawn(programs.count_until_told, name="counter")
    run.wait_for_faults()
    (receipt,) = run.receipts
    assert receipt.evidence.startswith("it was ready and did not run for ")
    assert receipt.evidence.endswith("beside 3 that spin")
    crowder = run.agent("crowder-1")
    crowder.wait_exit()
    assert os.sched_getaffinity(counter.pid) == os.sched_getaffinity(0)
    assert not processes.descendants(crowder.pid)
    (run.directory / "enough").touch()
    assert counter.wait_exit().ok
