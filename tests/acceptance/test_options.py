"""Options, and what the plugin does when nobody asks for it: nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

SCENARIO = """
import pytest

@pytest.mark.chaos(id="one", title="One thing holds")
def test_one(chaos):
    chaos.expect("seed", observed=chaos.seed, holds=True)
"""
QUIET = ("-p", "no:randomly", "-p", "no:cacheprovider")
NOT_IMPORTED = (
    "msgspec",
    "jinja2",
    "psutil",
    "rich",
    "sqlite3",
    "pytest_chaos.runtime.run",
    "pytest_chaos.model.values",
    "chaos_reports.render",
)


@pytest.fixture
def scenario(pytester: pytest.Pytester) -> pytest.Pytester:
    """Return a project with one scenario that holds."""
    pytester.makepyfile(test_one=SCENARIO)
    return pytester


def test_the_seed_is_shown_before_and_after(scenario: pytest.Pytester) -> None:
    """The seed that was given is in the header, at the end, and in the record."""
    result = scenario.runpytest_subprocess(*QUIET, "--chaos-seed", "mine7")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["chaos: seed mine7, 1 run of 1 scenario; results in chaos-results*", "chaos: seed mine7;*"]
    )
    assert "mine7" in Path(scenario.path, "chaos-results/latest/records.jsonl").read_text()


@pytest.mark.parametrize("option", ["--chaos-results", "--chaos-scratch", "--chaos-replay"])
def test_a_path_after_a_space_does_not_cost_the_configuration(
    scenario: pytest.Pytester, tmp_path: Path, option: str
) -> None:
    """Pytest takes an existing path for tests and reads the configuration there:
    this is said, and nothing runs.

    Found by a run of our own suite, which had lost its settings and went on without a word.
    """
    scenario.makeini("[pytest]\nchaos_seed = fromini")
    result = scenario.runpytest_subprocess(*QUIET, option, str(tmp_path.parent))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: Expected {option}={tmp_path.parent} but got two words;*"])
    assert not Path(scenario.path, "chaos-results").exists()


@pytest.mark.parametrize("separator", [" ", "="])
def test_a_path_inside_may_come_after_a_space(scenario: pytest.Pytester, separator: str) -> None:
    """A folder of the project that is there already: the configuration is found from it, too."""
    scenario.makeini("[pytest]\nchaos_seed = fromini")
    Path(scenario.path, "results").mkdir()
    result = scenario.runpytest_subprocess(*QUIET, *f"--chaos-results{separator}results".split())
    assert result.ret == 0
    result.stdout.fnmatch_lines(["chaos: seed fromini;*"])


def test_quiet_is_one_line_a_scenario(scenario: pytest.Pytester) -> None:
    """With -q neither header nor table is printed."""
    result = scenario.runpytest_subprocess(*QUIET, "-q")
    result.stdout.fnmatch_lines(["*HELD one: 1 run*"])
    result.stdout.no_fnmatch_line("chaos: seed*")


def test_a_suite_without_scenarios_pays_nothing(pytester: pytest.Pytester) -> None:
    """No output, no folder, no process, and none of the heavy modules is imported."""
    pytester.makepyfile(
        f"""
        import sys

        def test_plain():
            assert [name for name in {NOT_IMPORTED!r} if name in sys.modules] == []
        """
    )
    others = ("xdist", "hypothesispytest", "langsmith_plugin", "anyio")  # which import some of these for themselves
    result = pytester.runpytest_subprocess(*QUIET, *(part for name in others for part in ("-p", f"no:{name}")))
    assert result.ret == 0
    assert "chaos:" not in result.stdout.str()
    assert "chaos matrix" not in result.stdout.str()
    assert not Path(pytester.path, "chaos-results").exists()


@pytest.mark.parametrize("off", [("chaos", "chaos-reports"), ("chaos",)], ids=["both", "harness"])
def test_the_plugin_can_be_switched_off(pytester: pytest.Pytester, off: tuple[str, ...]) -> None:
    """A suite of somebody else's runs without it, and does not know its options."""
    pytester.makepyfile("def test_plain():\n    pass\n")
    switches = [part for name in off for part in ("-p", f"no:{name}")]
    assert pytester.runpytest_subprocess(*QUIET, *switches).ret == 0
    assert pytester.runpytest_subprocess(*QUIET, *switches, "--chaos-seed", "x").ret == 4


def test_without_reports_records_are_kept_all_the_same(scenario: pytest.Pytester) -> None:
    """The report plugin is a guest: without it the run,
    its record and its exit code are the same.
    """
    result = scenario.runpytest_subprocess(*QUIET, "-p", "no:chaos-reports")
    assert result.ret == 0
    assert {path.name for path in Path(scenario.path, "chaos-results/latest/").iterdir()} == {"records.jsonl"}


def test_strict_markers_know_ours(scenario: pytest.Pytester) -> None:
    """Both markers are registered."""
    assert scenario.runpytest_subprocess(*QUIET, "--strict-markers").ret == 0


def test_the_command_line_wins_over_the_environment_and_that_over_the_ini_file(
    scenario: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same option from three places: the nearest wins."""
    scenario.makeini("[pytest]\nchaos_seed = fromini\n")
    scenario.runpytest_subprocess(*QUIET).stdout.fnmatch_lines(["chaos: seed fromini,*"])
    monkeypatch.setenv("CHAOS_SEED", "fromenv")
    scenario.runpytest_subprocess(*QUIET).stdout.fnmatch_lines(["chaos: seed fromenv,*"])
    given = scenario.runpytest_subprocess(*QUIET, "--chaos-seed", "given")
    given.stdout.fnmatch_lines(["chaos: seed given,*"])


def test_all_wrong_options_are_told_together(scenario: pytest.Pytester) -> None:
    """One message names each with what was expected and what came; nothing runs."""
    result = scenario.runpytest_subprocess(
        *QUIET, "--chaos-iterations", "-3", "--chaos-min-pass-rate", "98", "--chaos-report", "pdf"
    )
    assert result.ret == 4
    message = result.stderr.str()
    for part in ("--chaos-iterations", "-3", "--chaos-min-pass-rate", "'98'", "--chaos-report", "pdf"):
        assert part in message
    assert "Traceback" not in message


@pytest.mark.parametrize("value", ["1e20", "nan", "inf", "-1", "9" * 20, "True"])
def test_a_number_beyond_all_bounds_is_a_sentence(scenario: pytest.Pytester, value: str) -> None:
    """Every option of the plugin that takes a number says its bounds; nothing runs."""
    numbers = ("--chaos-iterations", "--chaos-min-pass-rate", "--chaos-confirm")
    result = scenario.runpytest_subprocess(*QUIET, *(f"{option}={value}" for option in numbers))
    said = result.stderr.str()
    assert result.ret == 4
    assert "Traceback" not in said
    assert all(f"{option}: must be a " in said for option in numbers)
    assert said.count(f"got {value!r}") == len(numbers)


def test_an_unknown_scenario_is_named_with_those_there_are(scenario: pytest.Pytester) -> None:
    """A misspelt id runs nothing, least of all everything."""
    result = scenario.runpytest_subprocess(*QUIET, "--chaos-scenario", "tow")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*got 'tow'*one*"])


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("id='A b'", "*01-kill-9*'A b'*"),
        ("identity='x'", "*must have only id=*identity*"),
        ("id='x', steps='one'", "*list of sentences*"),
        ("id='x', min_pass_rate=98", "*share from 0 to 1*98"),
    ],
    ids=["id", "argument", "steps", "rate"],
)
def test_a_marker_that_cannot_be_understood_is_told(pytester: pytest.Pytester, marker: str, said: str) -> None:
    """The sentence names the test and what the marker takes."""
    pytester.makepyfile(f"import pytest\n@pytest.mark.chaos({marker})\ndef test_x(chaos):\n    pass\n")
    result = pytester.runpytest_subprocess(*QUIET)
    assert result.ret == 4
    result.stderr.fnmatch_lines([said])


def test_the_fixture_works_without_a_marker(pytester: pytest.Pytester) -> None:
    """To try something out, the fixture is enough:
    the scenario is named after module and function.
    """
    pytester.makepyfile(test_try="def test_it(chaos):\n    chaos.expect('x', observed=1, holds=True)\n")
    result = pytester.runpytest_subprocess(*QUIET)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*HELD*test-try-test-it*"])


def test_a_fixture_that_is_asked_for_late_is_a_run_like_any_other(pytester: pytest.Pytester) -> None:
    """Through getfixturevalue, too, a violation leaves its record and its pack."""
    pytester.makepyfile(
        """
        def test_late(request):
            request.getfixturevalue("chaos").expect("x", observed=1, holds=False)
        """
    )
    result = pytester.runpytest_subprocess(*QUIET, "--chaos-confirm=0")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["VIOLATED *::test_late: chaos replay *"])
    assert len(list(Path(pytester.path).glob("chaos-results/latest/evidence/*/manifest.json"))) == 1


def test_a_marker_without_the_fixture_is_no_pass(pytester: pytest.Pytester) -> None:
    """A scenario that never began a run is INCONCLUSIVE and says what to do."""
    pytester.makepyfile("import pytest\n@pytest.mark.chaos(id='bare')\ndef test_bare():\n    pass\n")
    result = pytester.runpytest_subprocess(*QUIET)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*marked chaos must make a run*the fixture chaos", "*INCONCLUSIVE*bare*"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--chaos-scenario=tow",), "*scenario here; got 'tow'*one*"),
        (("--chaos-iterations=0",), "*--chaos-iterations: *'0'*"),
    ],
    ids=["scenario", "option"],
)
def test_mistakes_are_told_with_workers_too(scenario: pytest.Pytester, arguments: tuple[str, ...], said: str) -> None:
    """Only the workers collect, so only they see some mistakes;
    the message and the exit code are the same.
    """
    result = scenario.runpytest_subprocess(*QUIET, "-n", "2", *arguments)
    assert result.ret == 4
    assert "INTERNALERROR" not in result.stdout.str()
    (result.stdout if "scenario" in said else result.stderr).fnmatch_lines([said])


def test_a_marker_that_cannot_be_understood_is_told_with_workers_too(pytester: pytest.Pytester) -> None:
    """The sentence is the same as without workers."""
    pytester.makepyfile("import pytest\n@pytest.mark.chaos(id='A b')\ndef test_x(chaos):\n    pass\n")
    result = pytester.runpytest_subprocess(*QUIET, "-n", "2")
    assert result.ret == 4
    result.stdout.fnmatch_lines(["chaos: *01-kill-9*'A b'*"])


def test_results_that_cannot_be_written_are_one_sentence(scenario: pytest.Pytester) -> None:
    """With a file where the results folder should be,
    the exit is not green and one sentence says what to do.
    """
    Path(scenario.path, "chaos-results").write_text("in the way")
    result = scenario.runpytest_subprocess(*QUIET)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["chaos: the results folder * cannot be written *--chaos-results=DIR*"])
    assert "Traceback" not in result.stdout.str()
    assert Path(scenario.path, "chaos-results").read_text() == "in the way"


def test_a_time_limit_leaves_evidence(pytester: pytest.Pytester) -> None:
    """A run that pytest-timeout ends is INCONCLUSIVE, with a pack and the agents' output in it."""
    pytester.makepyfile(
        """
        import pytest
        import signal

        @pytest.mark.timeout(600, method="signal")
        @pytest.mark.chaos(id="slow")
        def test_slow(chaos):
            sleeper = chaos.spawn(["sh", "-c", "echo I was here; sleep 1000"], name="sleeper")
            sleeper.wait_for_output("I was here")
            signal.setitimer(signal.ITIMER_REAL, 0.001)  # the time limit of pytest-timeout expires now
            chaos.wait_until(lambda: False, timeout_s=600)
        """
    )
    result = pytester.runpytest_subprocess(*QUIET)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*harness:timeout*"])
    (log,) = Path(pytester.path).glob("chaos-results/latest/evidence/*/agents/sleeper.log")
    assert "I was here" in log.read_text()


def test_only_the_formats_asked_for_are_written(scenario: pytest.Pytester) -> None:
    """--chaos-report json writes no page."""
    scenario.runpytest_subprocess(*QUIET, "--chaos-report", "json")
    written = {path.name for path in Path(scenario.path, "chaos-results/latest/").iterdir()}
    assert written == {"records.jsonl", "matrix.json"}
