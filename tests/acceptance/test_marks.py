"""Marks of a run in a user's project: a line that is no mark is never a pass,
one that a kill has cut is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.evidence import records
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from pytest_chaos.model.values import RunRecord

QUIET = ("-p", "no:randomly", "-p", "no:cacheprovider", "--chaos-confirm", "0")
PROJECT = """
import pytest

WORDS = 'echo "ack order 1"'
OTHER_FIELD = "echo '{\\"kind\\":\\"ack\\",\\"op\\":\\"order\\",\\"key\\":1}'"
GOOD = "echo '{\\"kind\\":\\"ack\\",\\"operation\\":\\"order\\",\\"key\\":1}'"
CUT = "printf '{\\"kind\\":\\"ack\\",\\"oper'"

def run(chaos, script, wait=True):
    agent = chaos.spawn(["sh", "-c", script], name="worker")
    if wait:
        agent.wait_exit()
    else:
        chaos.wait_until(lambda: (chaos.directory / "ready").exists())
        agent.kill()
    chaos.expect("nothing is lost", observed=len(chaos.history.marks), holds=True)

@pytest.mark.chaos(id="bad", title="Marks in a wrong format")
def test_bad(chaos):
    run(chaos, f"{WORDS} >> $CHAOS_MARKS; {OTHER_FIELD} >> $CHAOS_MARKS; {GOOD} >> $CHAOS_MARKS")

@pytest.mark.chaos(id="good", title="Marks in the right format")
def test_good(chaos):
    run(chaos, f"{GOOD} >> $CHAOS_MARKS")

@pytest.mark.chaos(id="killed", title="A kill has cut the last mark")
def test_killed(chaos):
    run(chaos, f"{CUT} >> $CHAOS_MARKS; touch ready; kill -STOP $$", wait=False)

@pytest.mark.chaos(id="cut", title="A mark is cut, and nothing was killed")
def test_cut(chaos):
    run(chaos, f"{CUT} >> $CHAOS_MARKS")

@pytest.mark.chaos(id="over", title="The second mark is written over the first")
def test_over(chaos):
    run(chaos, f"{GOOD} > $CHAOS_MARKS; {GOOD} > $CHAOS_MARKS")

@pytest.mark.chaos(id="removed", title="The mark file is removed")
def test_removed(chaos):
    run(chaos, f"{GOOD} >> $CHAOS_MARKS; rm $CHAOS_MARKS")
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> tuple[str, dict[str, RunRecord]]:
    """Run the project; return what it printed, and its records by scenario."""
    pytester.makepyfile(test_mine=PROJECT)
    result = pytester.runpytest_subprocess(*QUIET)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    runs = records.read(Path(pytester.path, "chaos-results", "latest")).runs
    return str(result.stdout), {run.scenario.id: run for run in runs}


def test_marks_are_read_or_the_run_is_inconclusive(session: tuple[str, dict[str, RunRecord]]) -> None:
    """Each wrong line is shown with its number and what is wrong with it,
    in the terminal and the record.
    """
    printed, runs = session

    assert {name: run.verdict for name, run in runs.items()} == {
        "bad": Verdict.INCONCLUSIVE,
        "good": Verdict.HELD,
        "killed": Verdict.HELD,
        "cut": Verdict.INCONCLUSIVE,
        "over": Verdict.INCONCLUSIVE,
        "removed": Verdict.INCONCLUSIVE,
    }
    (finding,) = runs["bad"].findings
    assert finding.text.startswith(
        "2 lines of the mark file are no marks: line 1 (not JSON): ack order 1; "
        'line 2 (missing "operation"): {"kind":"ack","op":"order","key":1}. A mark is one line such as {"kind": "ack"'
    )
    assert "line 1 (not JSON): ack order 1" in printed
    assert runs["cut"].findings[0].text.startswith('1 line of the mark file is no mark: line 1 (cut short): {"kind"')
    for name in ("over", "removed"):
        assert [each.signature for each in runs[name].findings] == ["harness:marks-overwritten"]
