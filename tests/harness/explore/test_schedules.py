"""Programs that do not make the same steps twice: each gets a verdict, for the right reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.explore.document import document
from pytest_chaos.explore.launch import judge_state, launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Exploration, Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.history import History
from pytest_chaos.model.values import Verdict

from tests.harness.explore import explored as targets, parallel

CRASH, POWER, IO = Family.CRASH, Family.POWER, Family.IO


@pytest.fixture(autouse=True)
def _steps() -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))


def options(tmp_path: Path, *families: Family, **chosen: Any) -> Options:
    """Return options with a folder for states that fail."""
    return Options(seed="test", families=families or (CRASH, POWER), kept=tmp_path / "kept", **chosen)


def explore(target: type, tmp_path: Path, *families: Family, **chosen: Any) -> Exploration:
    """Explore a target."""
    return launch(subject_of(target), options(tmp_path, *families, **chosen))


@pytest.mark.parametrize("target", [parallel.Threads, parallel.Tasks, parallel.Pool, parallel.Counter])
def test_a_sound_program_with_threads_holds_in_each_schedule(tmp_path: Path, target: type) -> None:
    """A recording of each order is explored, and the verdict says in how many."""
    explored = explore(target, tmp_path, CRASH, samples=8)

    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert explored.schedules == 5
    assert explored.coverage.endswith("in 5 schedules")
    assert any("need not make the same steps twice" in note for note in explored.notes)
    assert any("schedules step by step" in note for note in explored.notes)
    assert document(explored).schedules == 5
    crash = explored.families[0]
    assert crash.points == crash.points_total > explored.steps
    assert crash.confirmed > 8, "kills of each schedule"


@pytest.mark.parametrize("target", [parallel.UnsyncedThreads, parallel.Commands])
def test_an_unsynced_program_with_threads_is_violated_by_a_power_loss(tmp_path: Path, target: type) -> None:
    """The state is built from the kept recording of its schedule, without running the program."""
    explored = explore(target, tmp_path, POWER, schedules=2, samples=8)

    assert explored.verdict is Verdict.VIOLATED
    assert explored.schedules == 2
    (found,) = {each.signature: each for each in explored.discoveries}.values()
    assert found.text.endswith("is lost")
    code, _, number = found.code.partition("@")
    assert (code.partition(":")[0], number.isdecimal()) == ("power", True)

    class Fails(target):  # type: ignore[misc]
        def run(self, *_: object) -> None:
            raise AssertionError

    judged = judge_state(subject_of(Fails), options(tmp_path), found.code, tmp_path / "state")
    assert found.signature in {finding.signature for finding in judged.findings}
    assert "recorded anew" not in judged.state

    lost = options(tmp_path / "elsewhere")
    assert "recorded anew" in judge_state(subject_of(target), lost, "crash:1@2", tmp_path / "state").state


def test_a_lost_update_is_a_race_that_a_schedule_shows(tmp_path: Path) -> None:
    """No fault is needed: the clean run of a schedule ends wrong, and is told with the schedule."""
    explored = explore(parallel.HiddenRace, tmp_path, CRASH)

    races = [finding for finding in explored.findings if finding.kind == "race"]
    assert explored.verdict is Verdict.VIOLATED
    assert races
    assert all("of 2 acknowledged additions 1 are there" in race.text for race in races)
    assert all(race.text.startswith("in schedule ") for race in races)


def test_an_unguarded_counter_is_violated_and_a_guarded_one_is_not(tmp_path: Path) -> None:
    """The first run may show it already; the lock alone makes the difference."""
    assert explore(parallel.Unguarded, tmp_path, CRASH, schedules=10).verdict is Verdict.VIOLATED
    assert explore(parallel.Counter, tmp_path, CRASH, schedules=10).verdict is Verdict.HELD


def test_a_deadlock_is_found_and_shows_who_waits(tmp_path: Path) -> None:
    """It is ended long before the time of a run is over."""
    explored = explore(parallel.Deadlock, tmp_path, CRASH, run_timeout_s=60)

    deadlocks = [finding for finding in explored.findings if finding.signature == "liveness:deadlock"]
    assert explored.verdict is Verdict.VIOLATED
    (deadlock,) = deadlocks  # which tells of the other schedules, too
    assert deadlock.text.count("in futex) waits for a lock or another thread, at parallel.py:") == 3
    assert len(re.findall(r"at parallel.py:\d+ in work", deadlock.text)) == 2


def test_processes_that_follow_each_other_need_one_schedule(tmp_path: Path) -> None:
    """The order is the program's own: each further schedule would be the same."""
    explored = explore(parallel.Following, tmp_path, CRASH)

    assert (explored.verdict, explored.schedules) == (Verdict.HELD, 1), explored.all_findings


@pytest.mark.parametrize(
    "target",
    [
        parallel.ProcessId,
        parallel.LoggedTimes,
        parallel.DrawnFolder,
        parallel.AnsweredChild,
        targets.Random,
        targets.OtherMarks,
    ],
)
def test_a_program_that_draws_lengths_gets_a_verdict(tmp_path: Path, target: type) -> None:
    """Its recordings differ; each was a real run."""
    explored = explore(target, tmp_path, CRASH, IO, io_runs=4)

    assert not [each for each in explored.all_findings if each.kind == "harness"]
    assert explored.schedules == 5


def test_a_thread_of_setup_is_not_missed_in_run(tmp_path: Path) -> None:
    """Setup has a process of its own, so that run starts its own thread."""
    explored = explore(parallel.ThreadOfSetup, tmp_path, CRASH, run_timeout_s=60)

    assert explored.verdict is Verdict.HELD, explored.all_findings


def test_a_real_kill_of_another_run_is_judged_with_its_own_marks(tmp_path: Path) -> None:
    """A kill tears the file in each run; what it left is kept as it was."""
    explored = explore(targets.Random, tmp_path, CRASH, schedules=1, confirmations=20)

    assert explored.verdict is Verdict.VIOLATED
    own = [found for found in explored.discoveries if found.code.startswith("kill:")]
    built = [found for found in explored.discoveries if found.code.startswith("crash:")]
    assert built or own
    for found in own:
        assert (Path(found.folder) / "directory").is_dir()
        assert (Path(found.folder) / "marks.jsonl").is_file()


def test_what_a_program_leaves_running_is_a_note(tmp_path: Path) -> None:
    """A child that works after its parent's end is seen; a daemon that sleeps is ended."""
    explored = explore(parallel.LateChild, tmp_path, CRASH, schedules=1)

    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert any("left processes running" in note for note in explored.notes)
    assert explored.steps >= 5, "those of the late child are among them"


def test_a_process_that_dies_alone_is_survived_by_a_supervisor(tmp_path: Path) -> None:
    """Each process is killed at each step, and the others go on: the sound one makes up for it."""
    explored = explore(parallel.Supervised, tmp_path, CRASH, schedules=1, victim="each")

    assert explored.verdict is Verdict.HELD, explored.all_findings
    (crash,) = explored.families
    assert crash.points_total > 2 * explored.steps
    assert crash.points == crash.points_total


def test_a_parent_that_does_not_look_loses_what_its_worker_had_to_do(tmp_path: Path) -> None:
    """It survives each crash of all processes; the code of the finding kills the worker again."""
    assert explore(parallel.Blind, tmp_path, CRASH, schedules=1).verdict is Verdict.HELD

    explored = explore(parallel.Blind, tmp_path, CRASH, schedules=1, victim="each")
    assert explored.verdict is Verdict.VIOLATED
    (found, *_) = explored.discoveries
    assert found.state == f"process 2 alone was killed before step {found.step}"
    assert found.code == f"crash:{found.step}!2"
    judged = judge_state(subject_of(parallel.Blind), options(tmp_path), found.code, tmp_path / "state")
    assert found.signature in {finding.signature for finding in judged.findings}


@pytest.mark.parametrize("code", ["crash:999!2", "crash:1!9"])
def test_a_code_of_a_process_that_never_dies_names_no_state(tmp_path: Path, code: str) -> None:
    """Nobody is killed, so what the run left is judged as no state of that name."""
    with pytest.raises(UsageError, match="state"):
        judge_state(subject_of(parallel.Blind), options(tmp_path), code, tmp_path / "state")


@pytest.mark.nightly  # waits for a quarter of a minute
def test_a_parent_that_waits_for_a_dead_worker_hangs(tmp_path: Path) -> None:
    """It is told as such, and as no finding of the check."""
    explored = explore(parallel.Waiting, tmp_path, CRASH, schedules=1, victim="each")

    assert explored.verdict is Verdict.VIOLATED
    (hang,) = {found.signature: found for found in explored.discoveries}.values()
    assert hang.signature == "liveness:hangs-without-a-process"
    assert "came into a deadlock" in hang.text
    assert "in read" in hang.text


def test_what_a_process_that_was_ended_had_to_do_is_no_violation(tmp_path: Path) -> None:
    """The check finds it missing without any fault, but it was we who ended the process."""
    explored = explore(parallel.SleepingChild, tmp_path, CRASH)

    assert explored.verdict is Verdict.INCONCLUSIVE
    (found,) = explored.findings
    assert "file 0 is lost; but what the run had left running was ended" in found.text
    assert "let run() wait for what it starts" in found.text


def test_processes_that_take_turns_at_a_lock_have_several_schedules(tmp_path: Path) -> None:
    """Who gets the lock next is open, although at each step one process alone waits."""
    explored = explore(parallel.Turns, tmp_path, CRASH)

    assert (explored.verdict, explored.schedules) == (Verdict.HELD, 5), explored.all_findings


def test_a_budget_that_is_over_names_the_schedules_that_were_not_explored(tmp_path: Path) -> None:
    """They are not tried for some seconds each, and the target is not said to hang."""
    explored = explore(parallel.Threads, tmp_path, CRASH, schedules=10_000, budget_s=3)

    assert explored.verdict is Verdict.INCONCLUSIVE
    assert explored.duration_s < 30
    (late,) = [each for each in explored.findings if each.signature == "harness:incomplete:schedules"]
    assert late.text.endswith("of 10000 schedules: give a larger one")


def test_a_race_is_told_in_the_first_line(tmp_path: Path) -> None:
    """Families that hold do not hide it."""
    explored = explore(parallel.HiddenRace, tmp_path, CRASH)

    assert explored.outcome.startswith("in schedule ")
    assert " held, in 5 schedules" in explored.outcome


def test_what_an_io_error_left_is_kept_as_it_was(tmp_path: Path) -> None:
    """Another run with the same error may leave something else, and its text says so."""
    explored = explore(parallel.ShortWrites, tmp_path, IO, schedules=5)

    found = explored.discoveries
    assert found
    assert not explored.findings
    for each in found:
        marks = History.from_lines(Path(each.folder, "marks.jsonl").read_bytes()).marks
        findings = list(parallel.ShortWrites().check(Path(each.folder, "directory"), marks))
        assert each.text in findings
        assert "in no other run, perhaps" in each.reproduction


@pytest.mark.parametrize("count", [-1, 10_001])
def test_a_number_of_schedules_has_bounds(count: int) -> None:
    """It is told before anything runs."""
    with pytest.raises(UsageError, match=f"schedules must be 1 to 10000, or 0 .*; got {count}"):
        Options(seed="s", schedules=count)


def test_a_code_with_no_schedule_is_refused(tmp_path: Path) -> None:
    """What follows the @ is the number of a schedule."""
    with pytest.raises(UsageError, match="must end with @ and the number of a schedule; got @x"):
        judge_state(subject_of(parallel.Threads), options(tmp_path), "crash:1@x", tmp_path / "state")
