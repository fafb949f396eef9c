"""Sessions that end early, as a user sees them: what was planned and not made is counted,
and nothing is green.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.evidence import records
from pytest_chaos.model.values import RunRecord, Verdict

from tests.waiting import until

if TYPE_CHECKING:
    from pytest_chaos.evidence.records import Records

PROJECT = """
import os, signal
import pytest

@pytest.mark.parametrize("case", range(3))
@pytest.mark.chaos(id="first", title="The first")
def test_first(chaos, case):
    chaos.expect("case", observed=case, holds=case != int(os.environ.get("BROKEN", 9)))
    if case == int(os.environ.get("STOPPED", 9)):
        {act}

@pytest.mark.chaos(id="second", title="The second")
def test_second(chaos):
    chaos.expect("it", observed=1, holds=True)

@pytest.mark.chaos(id="third", title="The third")
def test_third(chaos):
    pytest.skip("not here")
"""
INTERRUPTED = "os.kill(os.getpid(), signal.SIGINT)"
WAITING = "print('waiting', flush=True); chaos.wait_until(lambda: False, timeout_s=60)"
BASIC = ("-p", "no:cacheprovider", "-p", "no:randomly", "--chaos-confirm", "0")


def run(
    pytester: pytest.Pytester, *arguments: str, act: str = INTERRUPTED, stopped: int = 9, broken: int = 9
) -> pytest.RunResult:
    """Run the project, stopped or broken in the run of this case."""
    pytester.makepyfile(PROJECT.format(act=act))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOPPED", str(stopped))
        patch.setenv("BROKEN", str(broken))
        return pytester.runpytest_subprocess(*BASIC, *arguments)


def kept(pytester: pytest.Pytester) -> Records:
    """Return the records of the newest session."""
    return records.read(Path(pytester.path, "chaos-results", "latest"))


def matrix(pytester: pytest.Pytester, name: str = "matrix.json") -> str:
    """Return a report of the newest session."""
    return Path(pytester.path, "chaos-results", "latest", name).read_text()


def document(pytester: pytest.Pytester) -> dict[str, Any]:
    """Return what the newest session wrote for other programs."""
    found: dict[str, Any] = json.loads(matrix(pytester))
    return found


def interrupted_run(pytester: pytest.Pytester) -> RunRecord:
    """Return the record of the run that was interrupted, which has a pack."""
    (record,) = [record for record in kept(pytester).runs if record.verdict is Verdict.INCONCLUSIVE]
    assert Path(pytester.path, "chaos-results", "latest", record.evidence, "manifest.json").exists()
    return record


def test_an_interrupted_session_is_incomplete_in_every_format(pytester: pytest.Pytester) -> None:
    """Ctrl-C in the second of five runs: its record and pack are there, three are counted,
    nothing is green.
    """
    result = run(pytester, stopped=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["INCOMPLETE: 3 of 5 planned runs were not made: *", "*INCOMPLETE*first*2 of 3*"])
    assert {finding.signature for finding in interrupted_run(pytester).findings} == {"harness:interrupted"}
    found = document(pytester)
    assert (found["incomplete"], found["missing"]) == (True, 3)
    assert {each["id"]: (each["incomplete"], each["missing"]) for each in found["scenarios"]} == {
        "first": (True, 1),
        "second": (True, 1),
        "third": (True, 1),
    }
    assert "# ? Chaos matrix: INCOMPLETE" in matrix(pytester, "matrix.md")
    assert '<span class="pill incomplete large">' in matrix(pytester, "matrix.html")


def test_a_report_made_again_knows_that_runs_are_missing(pytester: pytest.Pytester) -> None:
    """``chaos report`` has the records alone; it says INCOMPLETE, and exits 2."""
    run(pytester, stopped=1)
    done = pytester.run("chaos", "report", "chaos-results", "--output", "again")
    assert done.ret == 2
    done.stdout.fnmatch_lines(["INCOMPLETE: 3 of 5 planned runs were not made: *"])
    assert json.loads(Path(pytester.path, "again", "matrix.json").read_text())["incomplete"]


@pytest.mark.parametrize(
    "arguments", [(), ("-n", "2"), ("--continue-on-collection-errors",)], ids=["alone", "workers", "continued"]
)
def test_a_module_that_cannot_be_collected_leaves_the_matrix_incomplete(
    pytester: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    """Nobody knows its scenarios, so nothing is green, also in a report made again."""
    pytester.makepyfile(test_broken="import no_such_module\n")
    result = run(pytester, *arguments)
    assert result.ret in {pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED}
    result.stdout.fnmatch_lines(["*INCOMPLETE: *1 module could not be collected. Mend what pytest says of*"])
    assert document(pytester)["incomplete"]
    done = pytester.run("chaos", "report", "chaos-results")
    assert done.ret == 2
    done.stdout.fnmatch_lines(["INCOMPLETE: *1 module could not be collected. *"])


@pytest.mark.parametrize("option", ["-x", "--maxfail=1"])
def test_a_session_that_stops_at_a_failure_is_incomplete(pytester: pytest.Pytester, option: str) -> None:
    """What -x leaves out is no failure and no pass; the exit code stays pytest's,
    also for a campaign's rate.
    """
    result = run(pytester, option, "--chaos-min-pass-rate=0.1", broken=0)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert document(pytester)["missing"] == 4
    result.stdout.fnmatch_lines(["INCOMPLETE: 4 of 5 planned runs were not made: *", "*INCOMPLETE*first*1 of 3*"])


def test_what_is_deselected_or_skipped_is_counted_and_owed_by_nobody(pytester: pytest.Pytester) -> None:
    """-k is the user's choice: the matrix is green, and says how much was selected."""
    result = run(pytester, "-k", "test_first or test_third")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["2 of 3 scenarios selected, 3 runs (1 run deselected): 1 held.", "*HELD*first*"])
    found = document(pytester)
    assert (found["incomplete"], found["missing"], found["deselected"], found["skipped"]) == (False, 0, 1, 1)


def test_a_session_without_interruption_is_whole(pytester: pytest.Pytester) -> None:
    """Alone and under xdist, with a skipped test: nothing is missing."""
    for workers in ((), ("-n", "2")):
        assert run(pytester, *workers).ret == pytest.ExitCode.OK
        found = document(pytester)
        assert (found["incomplete"], found["missing"], found["skipped"]) == (False, 0, 1)
    assert not list(Path(pytester.path).glob("chaos-results/latest/.planned-*"))


def test_runs_that_a_dead_worker_did_not_make_are_missing(pytester: pytest.Pytester) -> None:
    """The only worker dies and is not replaced:
    its run is INCONCLUSIVE, the others were not made.
    """
    result = run(pytester, "-n", "1", "--max-worker-restart=0", act="os.kill(os.getpid(), signal.SIGKILL)", stopped=1)
    assert result.ret != pytest.ExitCode.OK
    assert document(pytester)["missing"] == 3
    interrupted_run(pytester)


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_second_interrupt_shows_no_traceback(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    """Ctrl-C again and again until it ends: a record, a pack, and no traceback."""
    pytester.makepyfile(PROJECT.format(act="(chaos.directory / 'up').touch(); " + WAITING))
    command = [sys.executable, "-m", "pytest", *BASIC, "-s", *workers, f"--chaos-scratch={pytester.path}"]
    session = subprocess.Popen(
        command,
        cwd=pytester.path,
        env={**os.environ, "STOPPED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def is_up() -> bool:
        assert session.poll() is None
        with contextlib.suppress(FileNotFoundError):  # a folder that is removed while it is listed
            return any(Path(pytester.path).glob("pytest-chaos-*/session-*/*/*/up"))
        return False

    until(is_up, "the run that is to be interrupted")
    _press(session)
    output, _ = session.communicate(timeout=600)
    assert session.returncode == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in output
    interrupted_run(pytester)
    assert document(pytester)["missing"] == 3


def _press(session: subprocess.Popen[str]) -> None:
    """Press Ctrl-C every tenth of a second, some two seconds long."""
    for _ in range(20):
        session.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            session.wait(0.1)
