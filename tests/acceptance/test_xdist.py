"""Under xdist: the same plans, one writer of records, and nothing lost when a worker is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_chaos.evidence import records
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    import pytest
    from pytest_chaos.model.values import RunRecord

PROJECT = """
import os, signal
import pytest
from pytest_chaos import at_moment, kill

def idle(marks):
    marks.ack("up")
    signal.pause()

@pytest.mark.parametrize("case", range(4))
@pytest.mark.chaos(id="idle", title="An idle agent dies when it is killed")
def test_idle(chaos, case):
    delay_s = round(chaos.random("delay").random() * 0.01, 6)
    chaos.plan(kill("idle", at_moment(delay_s)))
    status = chaos.spawn(idle, name="idle").wait_exit()
    chaos.expect("exit", observed=status, holds=status.signal == 9)
"""
CRASH = """
import os, signal
import pytest

def idle(marks):
    marks.ack("up")
    signal.pause()

@pytest.mark.chaos(id="crash", title="The worker itself dies")
def test_crash(chaos):
    chaos.spawn(idle, name="idle").wait_for("up")
    os.kill(os.getpid(), signal.SIGKILL)

def test_other():
    pass
"""
BASIC = ("-p", "no:cacheprovider", "--chaos-confirm", "0")


def plans(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the plan of each run of the newest session."""
    return {run.node_id: _plan(run) for run in records.read(folder / "chaos-results" / "latest").runs}


def _plan(run: RunRecord) -> tuple[str, ...]:
    assert run.plan is not None
    return tuple(str(fault) for fault in run.plan.faults)


def test_the_same_seed_gives_the_same_plans_in_any_order(pytester: pytest.Pytester) -> None:
    """Alone, with two workers, and in a random order: the plans are the seed's."""
    pytester.makepyfile(PROJECT)
    found = []
    for arguments in (("-p", "no:randomly"), ("-p", "no:randomly", "-n", "2"), ("-p", "randomly", "-p", "no:xdist")):
        assert pytester.runpytest_subprocess(*BASIC, "--chaos-seed", "same", *arguments).ret == 0
        found.append(plans(Path(pytester.path)))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 4
    assert len(set(found[0].values())) == 4


def test_another_seed_gives_other_plans(pytester: pytest.Pytester) -> None:
    """A seed that is not given is drawn, and so are the plans."""
    pytester.makepyfile(PROJECT)
    found = []
    for _ in range(2):
        pytester.runpytest_subprocess(*BASIC)
        found.append(plans(Path(pytester.path)))
    assert found[0] != found[1]


def test_workers_records_are_written_once_and_the_matrix_is_whole(pytester: pytest.Pytester) -> None:
    """Every run of every worker is in one file, named by its worker, and the seed is shown."""
    pytester.makepyfile(PROJECT)
    result = pytester.runpytest_subprocess(*BASIC, "-n", "2", "--chaos-iterations", "3", "--chaos-seed", "pair")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*HELD*idle*", "chaos: seed pair;*"])
    runs = records.read(Path(pytester.path, "chaos-results/latest")).runs
    assert len(runs) == len({run.run_id for run in runs}) == 12
    assert {run.worker for run in runs} == {"gw0", "gw1"}


def test_a_killed_worker_leaves_a_record_and_evidence(pytester: pytest.Pytester) -> None:
    """The run that died with its worker is INCONCLUSIVE with a pack; the other tests are run."""
    pytester.makepyfile(CRASH)
    result = pytester.runpytest_subprocess(*BASIC, "-p", "no:randomly", "-n", "2")
    assert result.ret == 1
    result.assert_outcomes(passed=1)
    (run,) = records.read(Path(pytester.path, "chaos-results/latest")).runs
    assert run.verdict is Verdict.INCONCLUSIVE
    assert Path(pytester.path, "chaos-results/latest", run.evidence, "manifest.json").exists()


def test_two_sessions_share_a_results_folder(pytester: pytest.Pytester) -> None:
    """Each has a folder of its own in it, whole, and latest leads to one of them."""
    pytester.makepyfile(PROJECT)
    command = [sys.executable, "-m", "pytest", *BASIC, "-q"]
    running = [
        subprocess.Popen(command, cwd=pytester.path, env=os.environ.copy(), stdout=subprocess.DEVNULL) for _ in range(2)
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    folders = list(Path(pytester.path, "chaos-results/sessions").iterdir())
    assert [len(records.read(folder).runs) for folder in folders] == [4, 4]
    assert Path(pytester.path, "chaos-results/latest").resolve() in folders
