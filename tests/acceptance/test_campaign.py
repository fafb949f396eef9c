"""Campaigns as a user runs them: iterations, pass rates, what is tolerated, and what never is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pytest_chaos.evidence import records

COUNTED = """
import pytest

@pytest.mark.chaos(id="counted", title="Holds but for some iterations")
def test_counted(chaos):
    chaos.expect("iteration", observed=chaos.iteration, holds=chaos.iteration not in {violated})
    if chaos.iteration in {inconclusive}:
        chaos.inconclusive("nothing was hit")
"""
QUIET = ("-p", "no:randomly", "-p", "no:cacheprovider", "--chaos-confirm", "0")


def run(pytester: pytest.Pytester, *arguments: str, violated: Any = (), inconclusive: Any = ()) -> pytest.RunResult:
    """Run the counted scenario with these iterations violated and inconclusive."""
    pytester.makepyfile(
        test_counted=COUNTED.format(violated=set(violated) or "()", inconclusive=set(inconclusive) or "()")
    )
    return pytester.runpytest_subprocess("-m", "chaos", *QUIET, *arguments)


def matrix(pytester: pytest.Pytester) -> dict[str, Any]:
    """Return what the newest session wrote for other programs."""
    found: dict[str, Any] = json.loads(Path(pytester.path, "chaos-results/latest/matrix.json").read_text())
    return found


def test_iterations_are_separate_tests_and_one_row(pytester: pytest.Pytester) -> None:
    """Five iterations are five tests with five runs in one scenario, and all hold."""
    result = run(pytester, "--chaos-iterations", "5", "-v")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_counted[[]run-1] PASSED*", "*test_counted[[]run-5] PASSED*"])
    (scenario,) = matrix(pytester)["scenarios"]
    assert (scenario["runs"], scenario["passed"], scenario["pass_rate"]) == (5, 5, 1.0)


def test_a_violation_that_the_rate_tolerates_is_never_green(pytester: pytest.Pytester) -> None:
    """One of ten is tolerated at 0.9: the exit code is 0, the word is TOLERATED,
    and the pack is kept.
    """
    result = run(pytester, "--chaos-iterations", "10", "--chaos-min-pass-rate", "0.9", violated=[3])
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*TOLERATED*counted*", "*9 passed, 1 tolerated in*"])
    (scenario,) = matrix(pytester)["scenarios"]
    assert scenario["tolerated"]
    assert scenario["pass_rate"] == 0.9
    assert len(list(Path(pytester.path).glob("chaos-results/latest/evidence/*/manifest.json"))) == 1
    for word in ("*✓ HELD*", "*FAILED*", "*1 failed*", "VIOLATED *"):
        result.stdout.no_fnmatch_line(word)
    result.stdout.fnmatch_lines(["TOLERATED *test_counted*: chaos replay *"])


def test_too_many_violations_fail_the_campaign(pytester: pytest.Pytester) -> None:
    """Two of ten are too many at 0.9."""
    result = run(pytester, "--chaos-iterations", "10", "--chaos-min-pass-rate", "0.9", violated=[3, 4])
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*VIOLATED*counted*"])


def test_quick_is_ten_iterations_at_95_percent(pytester: pytest.Pytester) -> None:
    """One of ten violated is below 0.95."""
    assert run(pytester, "--chaos-quick").ret == 0
    assert matrix(pytester)["scenarios"][0]["runs"] == 10
    assert run(pytester, "--chaos-quick", violated=[0]).ret == 1


def test_a_single_inconclusive_run_fails_and_has_a_section_of_its_own(pytester: pytest.Pytester) -> None:
    """It is neither passed nor failed, is named with its reason, and the exit code is 1."""
    result = run(pytester, inconclusive=[0])
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*= chaos: INCONCLUSIVE =*", "*nothing was hit*", "*1 inconclusive in*"])
    (scenario,) = matrix(pytester)["scenarios"]
    assert (scenario["verdict"], scenario["inconclusive"]) == ("INCONCLUSIVE", 1)


def test_inconclusive_runs_are_tolerated_no_more_than_violations(pytester: pytest.Pytester) -> None:
    """A campaign of which a fifth came to no answer has proved nothing at 0.9,
    though all answers were good.
    """
    result = run(pytester, "--chaos-iterations", "10", "--chaos-min-pass-rate", "0.9", inconclusive=[1, 2])
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*INCONCLUSIVE*counted*"])


def test_another_failing_test_is_never_forgiven(pytester: pytest.Pytester) -> None:
    """The pass rate of a scenario says nothing about an ordinary test that fails."""
    pytester.makepyfile(test_plain="def test_plain():\n    assert False\n")
    pytester.makepyfile(test_counted=COUNTED.format(violated={3}, inconclusive="()"))
    result = pytester.runpytest_subprocess(*QUIET, "--chaos-iterations", "10", "--chaos-min-pass-rate", "0.9")
    assert result.ret == 1
    result.assert_outcomes(failed=1, passed=9)  # and one that is tolerated


@pytest.mark.parametrize(("own", "code"), [(0.5, 0), (1.0, 1)], ids=["lower", "higher"])
def test_a_scenario_may_ask_for_a_pass_rate_of_its_own(pytester: pytest.Pytester, own: float, code: int) -> None:
    """The marker's least pass rate wins over the command line's, for its scenario alone."""
    scenario = COUNTED.format(violated={1}, inconclusive="()").replace('title="', f'min_pass_rate={own}, title="')
    pytester.makepyfile(test_counted=scenario)
    result = pytester.runpytest_subprocess(*QUIET, "--chaos-iterations=3", f"--chaos-min-pass-rate={1.5 - own}")
    assert result.ret == code
    assert matrix(pytester)["scenarios"][0]["tolerated"] == (code == 0)


def test_verdicts_reach_junit(pytester: pytest.Pytester) -> None:
    """Each test of the file that continuous integration reads has its verdict, seed and line."""
    run(pytester, "--chaos-iterations=2", "--junitxml=junit.xml", inconclusive=[1])
    written = Path(pytester.path, "junit.xml").read_text()
    for verdict in ("HELD", "INCONCLUSIVE"):
        assert written.count(f'name="chaos_verdict" value="{verdict}"') == 1
    assert written.count('name="chaos_seed"') == 2
    assert written.count('name="chaos_reproduce" value="chaos replay ') == 1


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_tolerated_run_is_an_expected_failure_in_junit(pytester: pytest.Pytester, workers: str) -> None:
    """What the pass rate forgives is skipped, as with pytest.mark.xfail; the rest is a failure."""
    arguments = ("--chaos-iterations=3", "--junitxml=junit.xml", "-n", workers)
    for rate, failures, skipped in (("0.5", 0, 1), ("1.0", 1, 0)):
        run(pytester, *arguments, f"--chaos-min-pass-rate={rate}", violated=[1])
        suite = ElementTree.parse(Path(pytester.path, "junit.xml")).getroot()[0]  # noqa: S314 - pytest's own
        assert (suite.get("failures"), suite.get("skipped")) == (str(failures), str(skipped))
        assert len(suite.findall("testcase/failure")) == failures
        tolerated = suite.findall("testcase/skipped")
        assert [each.get("type") for each in tolerated] == ["pytest.xfail"] * skipped
        assert all(str(each.get("message")).startswith("TOLERATED: VIOLATED: ") for each in tolerated)


def test_a_campaign_that_was_cut_short_forgives_nothing(pytester: pytest.Pytester) -> None:
    """With -x the first violation ends it: what was not run has not held."""
    result = run(pytester, "--chaos-iterations", "10", "--chaos-min-pass-rate", "0.5", "-x", violated=[1])
    assert result.ret == 1
    result.assert_outcomes(failed=1, passed=1)


def test_deep_variants_are_left_out_of_campaigns(pytester: pytest.Pytester) -> None:
    """Once, a scenario runs quick and deep; in a campaign its quick form alone."""
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.chaos(id="both", title="both")

        def test_quick(chaos):
            chaos.expect("quick", observed=1, holds=True)

        @pytest.mark.chaos_deep
        def test_deep(chaos):
            chaos.expect("deep", observed=1, holds=True)
        """
    )
    pytester.runpytest_subprocess("-m", "chaos", *QUIET).assert_outcomes(passed=2)
    result = pytester.runpytest_subprocess("-m", "chaos", *QUIET, "--chaos-iterations", "3")
    result.assert_outcomes(passed=3, deselected=1)


SCENARIOS = """
import pytest

first = pytest.mark.chaos(id="first", title="first")
second = pytest.mark.chaos(id="second", title="second")

@first
@pytest.mark.chaos_deep
def test_thorough(chaos):
    chaos.expect("deep", observed=1, holds=True)

@first
@pytest.mark.parametrize("name", ["z", "a"])
def test_plain(chaos, name):
    chaos.expect("plain", observed=1, holds=True)

@second
@pytest.mark.chaos_once
def test_same(chaos):
    chaos.expect("same", observed=1, holds=True)

@second
@pytest.mark.chaos_deep
def test_last(chaos):
    chaos.expect("last", observed=1, holds=True)
"""


@pytest.mark.parametrize("more", [(), ("-p", "randomly")], ids=["in order", "shuffled"])
def test_the_quick_forms_are_one_run_of_each_scenario(pytester: pytest.Pytester, more: tuple[str, ...]) -> None:
    """The first test in the file that is not deep, with its first parameters, in any order."""
    pytester.makepyfile(test_forms=SCENARIOS)
    quiet = QUIET[2:] if more else QUIET

    result = pytester.runpytest_subprocess("-m", "chaos", "-v", *quiet, "--chaos-quick-forms")

    result.assert_outcomes(passed=2, deselected=3)
    result.stdout.fnmatch_lines_random(["*test_plain[[]z] PASSED*", "*test_same PASSED*"])


def test_a_run_that_comes_out_the_same_is_in_the_first_iteration_alone(pytester: pytest.Pytester) -> None:
    """Three iterations run it once, and three times if that is asked for."""
    pytester.makepyfile(test_forms=SCENARIOS)
    three = ("-m", "chaos", *QUIET, "--chaos-iterations", "3", "--chaos-scenario", "second")

    pytester.runpytest_subprocess(*three).assert_outcomes(passed=1, deselected=8)
    pytester.runpytest_subprocess(*three, "--chaos-all-iterations").assert_outcomes(passed=3, deselected=8)


def test_the_longest_runs_begin_first_on_workers(pytester: pytest.Pytester) -> None:
    """Deep ones where no time is known, else those that took longest; all runs are made once."""
    pytester.makepyfile(test_forms=SCENARIOS)
    workers = ("-m", "chaos", "-v", "-n1", *QUIET[:2], *QUIET[4:])

    unknown = pytester.runpytest_subprocess(*workers)
    unknown.assert_outcomes(passed=5)
    unknown.stdout.fnmatch_lines(["*PASSED*test_thorough*", "*PASSED*test_last*", "*PASSED*test_plain*"])
    durations = pytester.path / ".pytest_cache/v/chaos/durations"
    assert len(json.loads(durations.read_text())) == 5
    durations.write_text(json.dumps({"test_forms.py::test_plain[a]": 3, "test_forms.py::test_same": 9}))
    known = pytester.runpytest_subprocess(*workers)

    known.assert_outcomes(passed=5)
    known.stdout.fnmatch_lines(["*PASSED*test_same*", "*PASSED*test_plain[[]a]*", "*PASSED*test_thorough*"])


def test_a_run_that_asserts_nothing_is_no_pass(pytester: pytest.Pytester) -> None:
    """A scenario without a key assertion is INCONCLUSIVE and says what to do."""
    pytester.makepyfile("import pytest\n@pytest.mark.chaos(id='empty')\ndef test_empty(chaos):\n    pass\n")
    result = pytester.runpytest_subprocess("-m", "chaos", *QUIET)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*nothing-asserted*chaos.expect*"])


def test_a_fault_that_never_fires_is_no_pass_and_says_why(pytester: pytest.Pytester) -> None:
    """A misspelt crash point leaves the run INCONCLUSIVE, with the points that were passed."""
    pytester.makepyfile(
        """
        import sys, pytest
        from pytest_chaos import at_point, kill

        def agent():
            sys.audit("mine.saved")

        @pytest.mark.chaos(id="misspelt")
        def test_misspelt(chaos):
            chaos.plan(kill("agent", at_point("mine.safed")))
            chaos.spawn(agent, name="agent").wait_exit()
            chaos.expect("something", observed=1, holds=True)
        """
    )
    result = pytester.runpytest_subprocess("-m", "chaos", *QUIET)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*fault-not-fired:kill*mine.safed did not fire*mine.saved (once)*"])


def test_a_skip_inside_a_run_is_a_skip(pytester: pytest.Pytester) -> None:
    """A test that skips itself has no verdict and no record."""
    pytester.makepyfile("import pytest\n@pytest.mark.chaos(id='s')\ndef test_s(chaos):\n    pytest.skip('not here')\n")
    result = pytester.runpytest_subprocess("-m", "chaos", *QUIET)
    result.assert_outcomes(skipped=1)
    assert result.ret == 0
    (session,) = Path(pytester.path, "chaos-results", "sessions").iterdir()
    assert records.read(session).runs == ()
    assert not (session / "evidence").exists()


def test_a_scenario_whose_setup_fails_is_in_the_matrix(pytester: pytest.Pytester) -> None:
    """A run that could not begin is INCONCLUSIVE, not absent."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def broken():
            raise RuntimeError("no database here")

        @pytest.mark.chaos(id="unborn")
        def test_unborn(broken, chaos):
            chaos.expect("x", observed=1, holds=True)
        """
    )
    result = pytester.runpytest_subprocess("-m", "chaos", *QUIET)
    assert result.ret == 1
    (scenario,) = matrix(pytester)["scenarios"]
    assert (scenario["id"], scenario["verdict"]) == ("unborn", "INCONCLUSIVE")


PLACES = """
import pytest

def agent(marks, number):
    if number == {reached}:
        marks.reachable("the retry")

@pytest.mark.chaos(id="places", title="Some run comes to the retry")
@pytest.mark.parametrize("number", [1, 2])
def test_places(chaos, number):
    chaos.reachable("the retry")
    chaos.spawn(agent, kwargs={{"number": number}}).wait_exit()
    chaos.expect("an end", observed=1, holds=True)
"""


@pytest.mark.parametrize(("reached", "code"), [(2, 0), (0, 1)])
def test_a_place_must_be_reached_in_some_run_of_some_process(
    pytester: pytest.Pytester, reached: int, code: int
) -> None:
    """One run in one of two workers is enough; with none the exit code is not 0."""
    pytester.makepyfile(test_places=PLACES.format(reached=reached))
    result = pytester.runpytest_subprocess("-m", "chaos", "-n", "2", *QUIET)
    assert result.ret == code
    missed = "*the place 'the retry' must be reached in some run of places; got none of 2*"
    if code:
        result.stdout.fnmatch_lines([missed])
    else:
        result.stdout.no_fnmatch_line(missed)
