"""From a failure back to the failure: evidence packs, replays,
and the ``chaos`` command around them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos.evidence import records
from pytest_chaos.model.story import STEPS_NAME, RunSteps
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from pytest_chaos.evidence.records import Records

PROJECT = """
import sys
from pathlib import Path
import pytest
from pytest_chaos import at_point, kill

def worker(path, marks):
    for number in range(1, 50):
        marks.intent("row", number)
        sys.audit("mine.before", number)
        marks.ack("row", number)
        sys.audit("mine.after", number)
        with Path(path).open("a") as out:
            out.write(f"{number}\\n")

@pytest.mark.chaos(id="ack-first", title="A row that was acknowledged is there")
def test_rows(chaos):
    when = at_point("mine.after", occurrence=5 + int(chaos.random("point").random() * 20))
    chaos.plan(kill("worker", when))
    path = chaos.directory / "rows"
    chaos.spawn(worker, kwargs={"path": str(path)}, name="worker").wait_exit()
    there = path.read_text().split() if path.exists() else []
    lost = [mark.key for mark in chaos.history.acknowledged("row") if str(mark.key) not in there]
    chaos.expect("acknowledged rows that are lost", observed=lost, holds=not lost)
"""
QUIET = ("-q", "-p", "no:randomly", "-p", "no:cacheprovider")


def chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the ``chaos`` command in a folder."""
    command = [sys.executable, "-c", "from pytest_chaos.cli.main import main; main()", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"COLUMNS": "200", "PYTEST_ADDOPTS": "-p no:randomly -p no:cacheprovider"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def violated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project in which two iterations of a scenario have been violated."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_rows.py").write_text(PROJECT)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", *QUIET, "--chaos-seed", "back", "--chaos-iterations", "2"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 1
    (folder / "output.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def first(violated: Path) -> Records:
    """Return the records of the session that found the violation."""
    return records.read(violated / "chaos-results" / "latest")


def pack_of(violated: Path, first: Records, iteration: int) -> Path:
    """Return the evidence pack of an iteration."""
    (session,) = {path.parent for path in violated.glob("chaos-results/sessions/*/records.jsonl")} & {
        violated / "chaos-results" / "sessions" / first.header.session
    }
    (run,) = [run for run in first.runs if run.iteration == iteration]
    return session / run.evidence


def test_a_violation_is_replayed_before_it_is_reported(violated: Path, first: Records) -> None:
    """A violation at a crash point is repeated by both replays, and the output says so."""
    assert "reproduced: 2/2" in (violated / "output.txt").read_text()
    assert {run.notes["reproduced"] for run in first.runs} == {"2/2"}
    assert all(run.reproduce.startswith("chaos replay chaos-results/sessions/") for run in first.runs)


@pytest.mark.parametrize("iteration", [0, 1])
def test_a_replay_has_the_seed_and_the_plan_of_the_pack(violated: Path, first: Records, iteration: int) -> None:
    """Each iteration has its own plan, and its replay carries out that one."""
    pack = pack_of(violated, first, iteration)
    done = chaos(violated, "replay", str(pack), "--results", f"again-{iteration}", *["--steps"] * iteration)
    assert done.returncode == 1, done.stdout + done.stderr
    (again,) = records.read(violated / f"again-{iteration}").runs
    (run,) = [run for run in first.runs if run.iteration == iteration]
    assert (again.seed, again.plan, again.verdict) == (run.seed, run.plan, Verdict.VIOLATED)
    assert again.plan is not None


def test_what_a_run_lost_is_joined_to_the_line_that_acknowledged_it(violated: Path, first: Records) -> None:
    """The first pack of a cause has the steps of a watched replay; any other names the command."""
    joined, other = (pack_of(violated, first, iteration) for iteration in (0, 1))
    assert chaos(violated, "evidence", "verify", str(joined)).returncode == 0
    if not (joined / "attachments" / STEPS_NAME).exists():
        pytest.skip("no step can be seen here")
    seen = msgspec.json.decode((joined / "attachments" / STEPS_NAME).read_bytes(), type=RunSteps)
    lost = next(run.assertions[0].observed for run in first.runs if run.iteration == 0)
    assert seen.is_repeat
    assert [item.mark.key for item in seen.lost] == json.loads(lost)
    assert {item.why.partition("; ")[2] for item in seen.lost} == {"test_rows.py:11 in worker acknowledged it"}
    assert {step.line for step in seen.steps if step.text == "write rows"} == {"test_rows.py:13 in worker"}

    pages = other.parent.parent / "failures"
    assert "test_rows.py:11 in worker acknowledged it" in (pages / f"{joined.name}.html").read_text()
    assert "of a replay with the same finding" in (pages / f"{joined.name}.html").read_text()
    assert not (other / "attachments" / STEPS_NAME).exists()
    command = f"chaos replay {other.relative_to(violated)} --steps"
    assert command in (pages / f"{other.name}.html").read_text()


def test_the_plans_of_two_iterations_differ(first: Records) -> None:
    """What is drawn depends on the iteration, so fifty iterations try more than one does."""
    plans = {str(run.plan) for run in first.runs}
    assert len(plans) == 2


def test_a_pack_that_was_changed_is_refused(violated: Path, first: Records, tmp_path: Path) -> None:
    """Neither verified nor replayed: one sentence says which file is not as it was written."""
    import shutil

    pack = tmp_path / "pack"
    shutil.copytree(pack_of(violated, first, 0), pack)
    (pack / "failure.txt").write_text("nothing happened")
    verified = chaos(violated, "evidence", "verify", str(pack))
    assert verified.returncode == 1
    assert "failure.txt" in verified.stdout + verified.stderr
    replayed = chaos(violated, "replay", str(pack))
    assert replayed.returncode == 3
    assert "Traceback" not in replayed.stderr


def test_a_folder_that_is_no_pack_is_the_users_mistake(violated: Path) -> None:
    """Exit code 3 and one sentence, from the command and from pytest alike (there it is pytest's
    4).
    """
    done = chaos(violated, "replay", "chaos-results")
    assert done.returncode == 3
    command = [sys.executable, "-m", "pytest", *QUIET, "--chaos-replay", "chaos-results"]
    done = subprocess.run(command, cwd=violated, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr


def test_show_says_what_is_in_a_pack(violated: Path, first: Records) -> None:
    """Scenario, seed, receipt and finding are on the screen, and machine readable."""
    pack = pack_of(violated, first, 0)
    shown = chaos(violated, "evidence", "show", str(pack))
    assert shown.returncode == 0
    for word in ("ack-first", "back", "process ended by signal 9", "acknowledged rows that are lost"):
        assert word in shown.stdout
    facts = json.loads(chaos(violated, "evidence", "show", "--json", str(pack)).stdout)
    assert facts["seed"] == "back"


def test_list_names_the_scenarios(violated: Path) -> None:
    """The list is made without running anything."""
    listed = json.loads(chaos(violated, "list", "--json").stdout)
    assert [scenario["id"] for scenario in listed] == ["ack-first"]


def test_report_renders_again_from_the_records(violated: Path, tmp_path: Path) -> None:
    """The matrix can be made on another day, elsewhere, and its exit code is the verdict's."""
    done = chaos(violated, "report", "chaos-results", "--output", str(tmp_path / "matrix"))
    assert done.returncode == 1
    assert {path.name for path in (tmp_path / "matrix").iterdir()} >= {"matrix.html", "matrix.md", "matrix.json"}


def test_a_violation_that_no_replay_repeats_is_flaky(pytester: pytest.Pytester) -> None:
    """A test that fails the first time alone is still violated, and is called flaky."""
    marker = Path(pytester.path, "seen-before")
    pytester.makepyfile(
        f"""
        from pathlib import Path
        import pytest

        @pytest.mark.chaos(id="once")
        def test_once(chaos):
            seen = Path({str(marker)!r})
            first = not seen.exists()
            seen.touch()
            chaos.expect("seen before", observed=not first, holds=not first)
        """
    )
    result = pytester.runpytest_subprocess("-m", "chaos", *QUIET)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*reproduced: 0/2, flaky*"])


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('marks.ack("row", number)', "pass", 0),
        ("lost = [", "chaos.inconclusive('not today'); lost = 0 and [", 2),
    ],
    ids=["held", "inconclusive"],
)
def test_a_replay_of_a_changed_program_says_what_is_true_now(
    violated: Path, first: Records, tmp_path: Path, old: str, new: str, code: int
) -> None:
    """Where the bug is gone the exit code is 0, where there is no answer it is 2;
    what follows -- goes to pytest.
    """
    project = tmp_path / "project"
    project.mkdir()
    source = (violated / "test_rows.py").read_text()
    (project / "test_rows.py").write_text(source.replace(old, new))
    results = f"--results={project / 'chaos-results'}"
    done = chaos(project, "replay", results, str(pack_of(violated, first, 0)), "--", "--chaos-report=json")
    assert done.returncode == code, done.stdout + done.stderr
    written = {path.name for path in (project / "chaos-results" / "latest").iterdir()} - {"evidence"}
    assert written == {"records.jsonl", "matrix.json"}


def test_a_pack_of_another_project_is_refused(violated: Path, first: Records, pytester: pytest.Pytester) -> None:
    """A project without the test runs nothing instead of everything, alone and with workers."""
    pytester.makepyfile("def test_other(chaos):\n    chaos.expect('x', observed=1, holds=True)\n")
    for arguments in ((), ("-n", "2")):
        result = pytester.runpytest_subprocess(
            *QUIET, f"--chaos-replay={pack_of(violated, first, 0).absolute()}", *arguments
        )
        assert result.ret == 4
        assert "the test of the pack must be collected; got no test_rows.py::test_rows" in (
            result.stderr.str() + result.stdout.str()
        )


NEXT = """
import pytest

@pytest.mark.chaos
def test_next(chaos):
    chaos.expect("x", observed=1, holds=True)
"""
BROKEN = """
from pathlib import Path
import pytest
import signal

@pytest.mark.timeout(600, method="signal")
@pytest.mark.chaos(id="broken")
def test_broken(chaos):
    is_replay = Path("seen-before").exists()
    Path("seen-before").touch()
    if not is_replay:  # all that is left of the time limit, which two replays exceed
        signal.setitimer(signal.ITIMER_REAL, 4)
    chaos.wait_until(lambda: False, timeout_s=3 if is_replay else 0.01, owed='it is what is replayed')
"""


@pytest.mark.nightly  # two sessions and their replays
def test_a_selection_and_a_time_limit_do_not_hold_for_replays(pytester: pytest.Pytester) -> None:
    """A project that leaves chaos tests out by default gets its replays,
    and they may take longer than the test.
    """
    pytester.makeini("[pytest]\naddopts = -m 'not chaos'\n")
    pytester.makepyfile(test_broken=BROKEN, test_next=NEXT)
    result = pytester.runpytest_subprocess("-m", "chaos", *QUIET)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*reproduced: 2/2*"])
    (pack,) = Path(pytester.path).glob("chaos-results/latest/evidence/*")
    assert chaos(Path(pytester.path), "replay", str(pack)).returncode == 1


@pytest.mark.nightly  # two sessions and their replays
def test_results_outside_of_the_project_are_replayed_all_the_same(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """A pack in a folder that exists elsewhere does not change where pytest thinks
    the project is.
    """
    project = Path(pytester.path, "deep")
    project.mkdir()
    (project / "test_broken.py").write_text(BROKEN)
    results = tmp_path / "results"
    results.mkdir()
    command = [sys.executable, "-m", "pytest", *QUIET, "deep", f"--chaos-results={results}", "--chaos-confirm=1"]
    done = subprocess.run(command, cwd=pytester.path, capture_output=True, text=True, timeout=600, check=False)
    assert "reproduced: 1/1" in done.stdout
    (run,) = records.read(results).runs
    assert chaos(Path(pytester.path), *run.reproduce.split()[1:]).returncode == 1


def test_a_test_elsewhere_is_repeated_from_where_pytest_was_typed(pytester: pytest.Pytester, tmp_path: Path) -> None:
    """The line that repeats it goes to the test's project first, and works as it stands."""
    project, here = tmp_path / "project", tmp_path / "here"
    for folder in (project, here):
        folder.mkdir()
    (project / "test_broken.py").write_text(BROKEN)
    command = [sys.executable, "-m", "pytest", *QUIET, str(project / "test_broken.py"), "--chaos-confirm=0"]
    subprocess.run(command, cwd=here, capture_output=True, timeout=600, check=False)
    (results,) = tmp_path.rglob("latest")
    (run,) = records.read(results).runs
    assert run.reproduce.startswith(f"cd {tmp_path} && chaos replay {tmp_path}")
    assert pytester.run("sh", "-c", f"cd {here} && {run.reproduce}").ret == 1


def test_replays_that_come_to_no_answer_do_not_make_a_violation_flaky(pytester: pytest.Pytester) -> None:
    """Where the test cannot be run again at all, that is what is said."""
    pytester.makepyfile(BROKEN + "assert not Path('seen-before').exists()\n")
    done = pytester.runpytest_subprocess("-m", "chaos", *QUIET)
    done.stdout.fnmatch_lines(["*reproduced: 0/2, no replay came to an answer*"])
    assert ", flaky" not in done.stdout.str()
