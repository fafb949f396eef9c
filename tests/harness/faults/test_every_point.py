"""A sweep as a user writes it: one line in a plan, a run for each point, and all of it in the
matrix.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import after_mark, at_every_point, hold, hold_lock, kill, pause
from pytest_chaos.errors import UsageError
from pytest_chaos.evidence import records
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCENARIO = '''
import json, os, sys
from pathlib import Path
import pytest
from pytest_chaos import after_mark, at_every_point, hold, hold_lock, kill, pause

def take(marks, name):
    """Take the one job of a folder: look, then act."""
    sys.audit("jobs.before_look")
    state = json.loads(Path("job.json").read_text())
    sys.audit("jobs.after_look")
    if state["by"] is None:
        Path(f"{name}.tmp").write_text(json.dumps({"by": name}))
        os.rename(f"{name}.tmp", "job.json")
        sys.audit("jobs.after_rename")
        marks.ack("took", name)
    marks.note("done")

def take_exclusively(marks, name):
    """Take it by making a file, which only one can."""
    sys.audit("jobs.before_look")
    try:
        os.close(os.open("job.taken", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        marks.note("done")
        return
    sys.audit("jobs.after_make")
    marks.ack("took", name)
    marks.note("done")

def two_take(chaos, target, fault, **where):
    (chaos.directory / "job.json").write_text('{"by": null}')
    until = after_mark("done", kind="note", agent="two") if fault in (pause, hold) else None
    chaos.plan(at_every_point("one", fault, until=until, **where))
    one = chaos.spawn(target, kwargs={"name": "one"}, name="one")
    one.wait_stopped()
    chaos.spawn(target, kwargs={"name": "two"}, name="two").wait_exit()
    one.wait_exit()
    took = [mark.key for mark in chaos.history.acknowledged("took")]
    chaos.expect("taken twice", observed=took, holds=len(took) < 2)
'''


def swept(pytester: pytest.Pytester, body: str, *options: str) -> tuple[pytest.RunResult, records.Records]:
    """Run a scenario and return pytest's result and the records."""
    pytester.makepyfile(SCENARIO + body)
    arguments = ("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:anyio", "--chaos-confirm=0", "--chaos-seed=s")
    result = pytester.runpytest_subprocess(*arguments, *options)
    return result, records.read(pytester.path / "chaos-results")


def test_every_point_is_a_run(pytester: pytest.Pytester) -> None:
    """The survey holds, and so does each run but those between check and act; each has its pack,
    and the matrix has the number of points.
    """
    body = """
@pytest.mark.chaos(id="80-take", title="One takes the job")
def test_a_zombie_at_every_point(chaos):
    two_take(chaos, take, pause, points="jobs.*")

@pytest.mark.chaos(id="81-take", title="One takes the job")
def test_a_sound_twin(chaos):
    two_take(chaos, take_exclusively, pause, points="jobs.*")
"""
    result, found = swept(pytester, body)
    assert result.ret == 1
    result.assert_outcomes(passed=1 + 2 + 3, failed=1)
    places = [(run.scenario.id, run.notes["sweep"]["place"], run.verdict) for run in found.runs]
    assert places == [
        ("80-take", "none: this is the survey", Verdict.HELD),
        ("80-take", "at jobs.before_look", Verdict.HELD),
        ("80-take", "at jobs.after_look", Verdict.VIOLATED),
        ("80-take", "at jobs.after_rename", Verdict.HELD),
        ("81-take", "none: this is the survey", Verdict.HELD),
        ("81-take", "at jobs.before_look", Verdict.HELD),
        ("81-take", "at jobs.after_make", Verdict.HELD),
    ]
    assert len({run.run_id for run in found.runs}) == len(found.runs)
    assert [run.evidence for run in found.runs if run.evidence] == [f"evidence/{found.runs[2].run_id}"]
    result.stdout.fnmatch_lines(["*fault: pause one at jobs.after_look: process state T*"])
    matrix = (pytester.path / "chaos-results" / "latest" / "matrix.md").read_text()
    assert "3/3 points" in matrix
    assert "2/2 points" in matrix

    line = next(line for line in result.outlines if "reproduce: chaos replay" in line)
    again = pytester.run("chaos", "replay", line.partition("chaos replay ")[2])
    assert again.ret == 1
    again.stdout.fnmatch_lines(["*fault: pause one at jobs.after_look*", "*1 failed*"])


@pytest.mark.nightly
def test_durable_steps_and_other_faults(pytester: pytest.Pytester) -> None:
    """A call is held at each step, or the process killed, or a database locked: a run each."""
    body = """
@pytest.mark.chaos(id="80-take", title="One takes the job")
@pytest.mark.parametrize("fault", [hold, kill])
def test_steps(chaos, fault):
    two_take(chaos, take_exclusively, fault, steps="job.*")

@pytest.mark.chaos(id="81-take", title="One takes the job")
def test_lock(chaos):
    chaos.plan(at_every_point("one", hold_lock, points="jobs.*", sample=1, database="a.db", duration_s=0.01))
    chaos.spawn(take_exclusively, kwargs={"name": "one"}, name="one").wait_exit()
    chaos.expect("it came to this", observed=True, holds=True)
"""
    result, found = swept(pytester, body)
    assert result.ret == 0
    noted = [(run.notes["sweep"]["number"], run.notes["sweep"]["of"]) for run in found.runs]
    assert noted[:4] == [(0, 1), (1, 1), (0, 1), (1, 1)]
    assert [of for _, of in noted[4:]] == [2, 2]
    kinds = {receipt.kind for run in found.runs for receipt in run.receipts if receipt.fired}
    assert kinds == {"hold", "release", "kill", "hold-lock"}
    result, found = swept(pytester, body, "--chaos-all-points", "-k", "lock")
    assert [run.notes["sweep"]["number"] for run in found.runs] == [0, 1, 2]


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "a called fault": (lambda: at_every_point("a", kill("a"), points="x.*"), "Give the function, and do not call it"),  # type: ignore[arg-type]
    "no duration": (lambda: at_every_point("a", hold_lock, points="x.*", database="a.db"), "duration_s"),
    "a hold at points": (lambda: at_every_point("a", hold, points="x.*"), "the time of hold must be at_step"),
    "a wrong number": (lambda: at_every_point("a", pause, points="x.*", duration_s=-1), "duration_s must be a finite"),
    "a sample of none": (lambda: at_every_point("a", kill, points="x.*", sample=0), "sample must be a whole number"),
    "an end of its own": (
        lambda: at_every_point("a", pause, points="x.*", until=after_mark("put")),
        "the time of resume must be now(), at_moment(...) or a time of another agent",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_sweep_is_refused_where_it_is_written(mistake: str) -> None:
    """Before anything is started, in one sentence."""
    make, said = MISTAKES[mistake]
    with pytest.raises(UsageError, match=re.escape(said)):
        make()


def test_mistakes_in_a_sweep(pytester: pytest.Pytester) -> None:
    """A pattern of nothing, a clean run that fails, two sweeps, no pattern: a sentence each."""
    body = """
@pytest.mark.chaos(id="80-take", title="One takes the job")
@pytest.mark.parametrize("number", range(5))
def test_it(chaos, number):
    if number == 0:
        chaos.plan(at_every_point("one", kill, points="jbs.*"))
    elif number == 1:
        chaos.plan(at_every_point("one", kill, points="jobs.*"))
        chaos.expect("all is well", observed=False, holds=False)
    elif number == 2:
        chaos.plan(at_every_point("one", kill, points="a.*"), at_every_point("one", kill, points="b.*"))
    elif number == 3:
        at_every_point("one", kill)
    else:
        at_every_point("one", kill, points="a.*", until=after_mark("x", agent="two"))
    chaos.spawn(take_exclusively, kwargs={"name": "one"}, name="one").wait_exit()
    chaos.expect("it came to this", observed=True, holds=True)
"""
    _, found = swept(pytester, body)
    assert len(found.runs) == 5
    texts = [" ".join(finding.text for finding in run.findings) for run in found.runs]
    said = [
        "agent 'one' came to no point 'jbs.*', so nothing was swept; it came to jobs.before_look, jobs.after_make",
        "all is well: False",
        "a plan must have one sweep at most; got 2. Give each a test of its own",
        "a sweep must have points or steps; got neither. Give points=",
        "until must come with pause or hold, which end; got kill. Leave until out",
    ]
    assert all(sentence in text for sentence, text in zip(said, texts, strict=True)), texts
    assert [str(run.verdict) for run in found.runs] == ["INCONCLUSIVE", "VIOLATED", *["INCONCLUSIVE"] * 3]
    assert json.dumps(texts).count("Traceback") == 0


@pytest.mark.nightly
def test_workers_take_whole_sweeps(pytester: pytest.Pytester) -> None:
    """Under xdist each sweep stays with its worker, and all records come to the controller."""
    body = """
@pytest.mark.chaos(id="80-take", title="One takes the job")
@pytest.mark.parametrize("number", range(3))
def test_it(chaos, number):
    two_take(chaos, take_exclusively, pause, points="jobs.*")
"""
    result, found = swept(pytester, body, "-n2")
    assert result.ret == 0
    assert sorted(run.notes["sweep"]["number"] for run in found.runs) == sorted([0, 1, 2] * 3)


@pytest.mark.nightly
def test_a_sweep_ends_with_the_session(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """After the first failure with -x no other point is tried."""
    body = """
@pytest.mark.chaos(id="80-take", title="One takes the job")
def test_it(chaos):
    two_take(chaos, take, pause, points="jobs.*")
"""
    result, found = swept(pytester, body, "-x")
    assert result.ret == 1
    assert [run.notes["sweep"]["number"] for run in found.runs] == [0, 1, 2]
