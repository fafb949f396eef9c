"""Campaigns that decide, as a user runs them: proofs, budgets, resumed sessions, shards, drift."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from chaos_reports import cli
from pytest_chaos.evidence import records

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.model.values import RunRecord

PROJECT = """
import os, signal
import pytest

def holds(chaos, name):
    failing = {{"good": (), "bad": range(1, 99, 2)}}[name]
    if (name, str(chaos.iteration)) == ("good", os.environ.get("STOPPED")):
        {act}
    chaos.expect("it", observed=chaos.iteration, holds=chaos.iteration not in failing)

@pytest.mark.chaos(id="good", title="It holds")
def test_good(chaos):
    holds(chaos, "good")

@pytest.mark.chaos(id="bad", title="It fails every other time")
def test_bad(chaos):
    holds(chaos, "bad")
"""
ONCE = ("-p", "no:randomly", "--chaos-confirm", "0", "--chaos-report", "json")
BASIC = (*ONCE, "-p", "no:cacheprovider")
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def write(pytester: pytest.Pytester, act: str = "pass") -> None:
    """Write the project."""
    pytester.makepyfile(test_two=PROJECT.format(act=act))


def run(pytester: pytest.Pytester, *arguments: str, stopped: int | None = None) -> pytest.RunResult:
    """Run the project, stopped in an iteration of the good scenario."""
    with pytest.MonkeyPatch.context() as patch:
        if stopped is not None:
            patch.setenv("STOPPED", str(stopped))
        return pytester.runpytest_subprocess(*BASIC, *arguments)


def matrix(folder: Path) -> dict[str, Any]:
    """Return what a session wrote for other programs, its scenarios by id."""
    found: dict[str, Any] = json.loads((folder / "matrix.json").read_text())
    return {**found, "scenarios": {each["id"]: each for each in found["scenarios"]}}


def latest(pytester: pytest.Pytester) -> Path:
    """Return the folder of the newest session."""
    return Path(pytester.path, "chaos-results", "latest").resolve()


def made(runs: Iterable[RunRecord]) -> list[tuple[str, int]]:
    """Return the runs by scenario and iteration."""
    return sorted((run.scenario.id, run.iteration) for run in runs)


ALL = sorted((name, number) for name in ("bad", "good") for number in range(4))


def test_a_rate_is_proved_or_refuted_and_the_rest_is_not_run(pytester: pytest.Pytester) -> None:
    """90 % of what always holds are proved after 33 runs; what fails every other time is refuted
    before. The verdict, its numbers and its errors stand in the terminal and in the JSON.
    """
    write(pytester)
    result = run(pytester, "--chaos-prove", "0.9", "-m", "chaos")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "* planned runs were not needed, as the rate was decided.",
            "*refuted after 8 runs: below 90.0 %, at most *",
            "*refuted 5.0 % of the time)",
            "*proved after 33 runs: at least 90.0 % (a lower rate*",
            "*passed, * not needed in *",
        ]
    )
    found = matrix(latest(pytester))["scenarios"]
    good, bad = found["good"], found["bad"]
    assert (good["verdict"], bad["verdict"]) == ("HELD", "VIOLATED")
    assert (good["proof"]["decision"], good["proof"]["runs"], good["not_begun"]) == ("proved", 33, 95 - 33)
    assert good["pass_rate_lower"] == good["proof"]["lower"] >= 0.9
    assert bad["proof"]["upper"] < 0.9
    assert bad["runs"] + bad["not_begun"] == 95
    assert not matrix(latest(pytester))["incomplete"]


def test_what_is_decided_nowhere_is_inconclusive(pytester: pytest.Pytester) -> None:
    """Four runs prove no 98 %."""
    write(pytester)
    result = run(pytester, "--chaos-prove=0.98", "--chaos-iterations=4", "-k", "good")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*undecided after 4 runs: between * and 100 %; 167*"])
    assert matrix(latest(pytester))["scenarios"]["good"]["verdict"] == "INCONCLUSIVE"


CLOCK = """
from pytest_chaos.plugin.campaign import stopping

class Clock:
    now_s = 0.0

def pytest_configure():
    stopping.now_s = lambda: Clock.now_s

def pytest_runtest_call():
    Clock.now_s += 10.0  # the test runs
"""


def test_a_budget_makes_early_iterations_of_all_first_and_says_the_rest(pytester: pytest.Pytester) -> None:
    """Each run takes 10 s of a clock that the tests move: 45 s are five runs, as the last one that
    begins must be expected to end in time.
    """
    write(pytester)
    pytester.makeconftest(CLOCK)
    result = run(pytester, "--chaos-budget=45s", "--chaos-iterations=4", "--chaos-min-pass-rate=0.4", "-v")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*test_good?run-1?*PASSED*", "*test_bad?run-1?*PASSED*", "*test_good?run-2?*PASSED*",
            "*test_bad?run-2?*VIOLATED*", "*test_good?run-3?*NOT RUN (over budget)*",
            "*The budget of 45 s left out 4 of 8 planned runs.", "*4 over budget, *",
        ]
    )  # fmt: skip
    found = matrix(latest(pytester))
    assert {name: (each["runs"], each["not_begun"]) for name, each in found["scenarios"].items()} == {
        "good": (2, 2),
        "bad": (2, 2),
    }
    assert (found["incomplete"], found["missing"]) == (False, 0)


@pytest.mark.nightly
def test_a_budget_shorter_than_the_first_runs_is_no_pass(pytester: pytest.Pytester) -> None:
    """Nothing was run of one scenario: it is told, and nothing is green."""
    write(pytester)
    pytester.makeconftest(CLOCK)
    result = run(pytester, "--chaos-budget=5s", "--chaos-iterations=4")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["INCOMPLETE: the budget was over before each test of bad had a run. Give more time*"])


@pytest.mark.parametrize(
    ("act", "arguments"),
    [
        pytest.param(INTERRUPT, (), id="interrupt"),
        pytest.param(KILL, (), id="kill", marks=pytest.mark.nightly),
        pytest.param(INTERRUPT, ("-n", "2"), id="interrupt-workers", marks=pytest.mark.nightly),
    ],
)
def test_a_campaign_goes_on_where_it_ended(pytester: pytest.Pytester, act: str, arguments: tuple[str, ...]) -> None:
    """After Ctrl-C, and after a kill of pytest: each run counts once, and what was
    cut short is made again. Going on with what is whole runs nothing.
    """
    write(pytester, act)
    options = ("--chaos-iterations=4", "--chaos-seed=s", "--chaos-min-pass-rate=0.4")
    first = run(pytester, *options, *arguments, stopped=2)
    assert first.ret != 0
    folder = latest(pytester)
    result = run(pytester, *arguments, "--chaos-resume", "latest")
    assert latest(pytester) == folder
    found = records.read(folder)
    assert made(found.runs) == ALL
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*2 scenarios, 8 runs: 1 held, 1 held with tolerated failures.*"])
    assert found.reasons == ()
    assert all(account.missing == 0 for account in found.accounts)
    again = run(pytester, *arguments, "--chaos-resume", folder.name)
    assert again.ret == 0
    assert made(records.read(folder).runs) == ALL
    assert cli.main([str(folder), "--format", "json"]) == 0


def test_another_program_or_campaign_is_not_gone_on_with(pytester: pytest.Pytester) -> None:
    """A changed file, another seed, another rate, and what is no session: a sentence, and the
    records stay as they are.
    """
    write(pytester, INTERRUPT)
    run(pytester, "--chaos-iterations=4", "--chaos-seed=s", stopped=1)
    path = latest(pytester) / "records.jsonl"
    before = path.read_bytes()
    for options, said in (
        (("latest", "--chaos-seed=t"), "--chaos-seed must be that of the campaign, s; got t. Leave it out"),
    ):
        result = run(pytester, "--chaos-resume", *options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: {said}"])
    module = Path(pytester.path, "test_two.py")
    module.write_text(module.read_text() + "\n# another program\n")
    result = run(pytester, "--chaos-resume", "latest")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --chaos-resume must go on with the suite and the program of the campaign; test_two.py changed since *"]
    )
    assert path.read_bytes() == before


def test_last_failed_iterations_are_run_again_with_their_seed(pytester: pytest.Pytester) -> None:
    """``--lf`` alone: the two that failed, with the draws that they had."""
    write(pytester)
    first = pytester.runpytest_subprocess(*ONCE, "--chaos-iterations=4")
    assert first.ret == 1
    seed = records.read(latest(pytester)).header.seed
    again = pytester.runpytest_subprocess(*ONCE, "--lf")
    assert again.ret == 1
    found = records.read(latest(pytester))
    assert (found.header.seed, found.header.iterations) == (seed, 4)
    assert made(found.runs) == [("bad", 1), ("bad", 3)]


def test_shards_are_parts_of_one_campaign(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    """Two machines run all of it between them; one report has one bound. A part that is missing, or
    runs that are there twice, are told.
    """
    write(pytester)
    options = ("--chaos-iterations=4", "--chaos-seed=s", "--chaos-min-pass-rate=0.4")
    folders = [str(pytester.path / f"part-{number}") for number in (1, 2)]
    for number, folder in enumerate(folders, start=1):
        run(pytester, *options, f"--chaos-shard={number}/2", f"--chaos-results={folder}")
    sizes = [len(records.read(Path(each)).runs) for each in folders]
    assert sum(sizes) == 8
    assert max(sizes) < 8

    def report(*parts: str) -> int:
        capsys.readouterr()
        return cli.main([*parts, "--output", str(pytester.path / "all"), "--format", "json"])

    assert report(*folders) == 0
    found = matrix(pytester.path / "all")
    assert found["scenarios"]["good"]["runs"] == 4
    assert round(found["scenarios"]["good"]["pass_rate_lower"], 3) == 0.473
    assert not found["incomplete"]
    assert report(folders[0]) == 0
    assert "This is shard 1/2 of the campaign" in capsys.readouterr().out
    shutil.copytree(folders[0], pytester.path / "copy", symlinks=True)
    whole = Path(pytester.path, "copy", "sessions")
    changed(next(whole.iterdir()), '"session":"', '"session":"again-')
    assert report(folders[0], str(next(whole.iterdir()))) == 3
    assert "Error: each run must be counted once; got run " in capsys.readouterr().err
    changed(next(whole.iterdir()), '"shard":"1/2"', '"shard":"2/3"')
    assert report(folders[1], str(next(whole.iterdir()))) == 2
    assert "3 shards are missing: 1/2, 1/3, 3/3. Give all of them" in capsys.readouterr().out


def changed(folder: Path, old: str, new: str) -> None:
    """Change the records of a session by hand."""
    path = folder / "records.jsonl"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def test_results_that_were_edited_doubled_or_cut_are_told(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    """A value that was mended by hand, a line that stands twice, half a file, a file of another
    version or of other code: each has its sentence, exit code 2, and is never green.
    """
    write(pytester)
    run(pytester, "--chaos-iterations=2", "--chaos-seed=s", "-k", "good")
    whole = latest(pytester)
    assert list(records.read(whole).header.code) == ["test_two.py"]
    assert cli.main([str(whole), "--format", "json"]) == 0

    def report(name: str, said: str, *more: Path) -> None:
        capsys.readouterr()
        out = str(pytester.path / "out")
        assert cli.main([str(pytester.path / name), *map(str, more), "--output", out, "--format", "json"]) == 2
        assert said in capsys.readouterr().out

    for name in ("edited", "doubled", "half"):
        shutil.copytree(whole, pytester.path / name)
    changed(pytester.path / "edited", '"observed":"1"', '"observed":"2"')
    report("edited", "INCOMPLETE: records.jsonl was changed after the session had written it, so nothing")
    path = pytester.path / "doubled" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[1]]))
    report("doubled", "INCOMPLETE: records.jsonl has a line with a run that stands there before, first line 5")
    path = pytester.path / "half" / "records.jsonl"
    path.write_bytes(b"".join(lines)[: len(lines[0]) + len(lines[1]) + len(lines[2]) // 2])
    report("half", "INCOMPLETE: 1 of 2 planned runs was not made")
    content = path.read_text().replace('"seed":"s"', '"seed":"t"').replace('"session":"', '"session":"other-')
    path.write_text(content.replace('"pytest-chaos":"', '"pytest-chaos":"9.'))
    report("half", "are of different versions of pytest-chaos: ", whole)
    path.write_text(content.replace('"test_two.py":"', '"test_two.py":"f'))
    report("half", "test_two.py differ between ", whole)


LEAKING = """
import os
import pytest

def leak():
    os.open("/dev/null", os.O_RDONLY)

if {leaks}:
    os.register_at_fork(before=leak)  # the template forks each agent

def work(marks):
    marks.ack("work", 1)

@pytest.mark.chaos(id="work", title="Work is acknowledged")
def test_work(chaos):
    chaos.spawn(work, name="worker").wait_exit()
    chaos.expect("work", observed=1, holds=len(chaos.history.acknowledged("work")) == 1)
"""


@pytest.mark.parametrize("leaks", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["planted", "sound"])
def test_a_template_that_leaks_files_is_a_drift(pytester: pytest.Pytester, *, leaks: bool) -> None:
    """Each run holds, and each leaves a file open in the process that agents are forked from: a
    finding with its test, and no green. The sound twin holds.
    """
    pytester.makepyfile(LEAKING.format(leaks=leaks))
    result = run(pytester, "--chaos-iterations=14")
    (scenario,) = matrix(latest(pytester))["scenarios"].values()
    judged = [each for each in scenario.get("drifts", []) if each["is_judged"]]
    assert result.ret == leaks
    assert scenario["verdict"] == ("INCONCLUSIVE" if leaks else "HELD")
    assert [each["measure"] for each in judged] == ["open_files"] * leaks
    if leaks:
        assert judged[0]["per_run"] == pytest.approx(1.0, abs=0.3)
        result.stdout.fnmatch_lines(
            ["work: drift:open_files (drift, 14 runs): open_files grows from run to run, from *"]
        )


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--chaos-prove=1.2", "--chaos-prove: must be a share from 0 to 1 (0.98 for 98 %); got '1.2'"),
        ("--chaos-prove=1", "--chaos-prove: must be above 0 and below 1 (0.98 for 98 %); got 1"),
        ("--chaos-budget=0", "--chaos-budget: must be a time above zero, such as 90s, 10m or 2h; got '0'"),
        ("--chaos-budget=soon", "--chaos-budget: must be a time above zero, such as 90s, 10m or 2h; got 'soon'"),
        ("--chaos-shard=1/2", "--chaos-shard=1/2 must come with --chaos-seed, the same for all shards; got none"),
        ("--chaos-shard=3/2", "--chaos-shard: must be I/N with 1 <= I <= N <= 10,000, such as 2/5; got '3/2'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    """Before anything runs, with the rule; in this process, as nothing is started."""
    write(pytester)
    assert pytester.runpytest_inprocess(*BASIC, option).ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {said}" in capsys.readouterr().err
    assert not Path(pytester.path, "chaos-results").exists()
