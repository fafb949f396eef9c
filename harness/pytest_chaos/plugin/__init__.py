"""The pytest plugin: options, markers, the fixtures ``chaos`` and ``explore``, and the verdicts.

    options     the options as data
    settings    their values, from command line, environment and ini
    session     one pytest process: its name, seed, settings, results folder
    selection   scenarios and their names; which tests are run
    planned     the runs that a session planned, to count those that it did not make
    progress    how far the session is, on a terminal and in a log
    interrupts  Ctrl-C: the first one ends the session, later ones are ignored
    sweeps      executes a test again, for each point of its sweep
    campaign/   proofs, budgets, shards, and sessions that go on
    narrowing   executes a replayed test again, for each variant of ``chaos shrink`` and the like
    runs        the runs of this process: made, judged, packed as evidence
    results     records, reports, exit code, terminal summary; in the controller
    junit       properties of runs, and tolerated ones, in the JUnit file
    explore_fixture, hookspecs

Only this room knows pytest, and nothing below imports it. The plugin is inert until a test is a
chaos run: nothing is started, written or printed before, and imports are made where they are
needed (a suite without chaos tests pays some 30 ms). A run is judged right after its test
function, so a violated run is a failed test like any other. Evidence is packed when pytest has put
the failure into words.

This module has the hooks of one test; ``selection`` and ``results`` are registered when pytest is
configured. ``-p no:chaos`` switches all of it off.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_chaos.plugin.campaign.stopping import Stopping
from pytest_chaos.plugin.options import FLAGS, OPTIONS
from pytest_chaos.plugin.planned import Planned
from pytest_chaos.plugin.progress import SessionProgress
from pytest_chaos.plugin.results import Results
from pytest_chaos.plugin.runs import LEVEL, RUN, Inconclusive, Runs, raise_unless_held
from pytest_chaos.plugin.selection import Selection, is_chaos, is_deep, is_marked_once
from pytest_chaos.plugin.session import WORKER_INPUT, ChaosSession
from pytest_chaos.plugin.sweeps import Sweeps

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from pytest_chaos.plugin.explore_fixture import Explore
    from pytest_chaos.runtime.run import Run

NARROW: Final = "CHAOS_NARROW"
"""The variable by which ``narrow.session`` gives its order to this process."""
_CALLED: Final = pytest.StashKey[bool]()
_SESSION: Final = pytest.StashKey[ChaosSession]()
_RUNS: Final = pytest.StashKey[Runs]()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hooks of ``hookspecs``."""
    from pytest_chaos.plugin import hookspecs  # imported late, as all below: see the module's docstring

    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each also as ini value and environment variable."""
    group = parser.getgroup("chaos", "chaos: crashes, pauses and races against real processes")
    for option in OPTIONS:
        group.addoption(option.flag, dest=option.name, metavar=option.metavar, default=None, help=option.help)
        parser.addini(
            option.name, f"{option.help} Also {option.variable} in the environment.", type="string", default=""
        )
    for flag in FLAGS:
        group.addoption(flag.flag, dest=flag.name, help=flag.help, **flag.arguments)


def pytest_configure(config: pytest.Config) -> None:
    """Register markers and plugins; check the options now, if any was given."""
    _refuse_a_lost_root(config)
    config.addinivalue_line(
        "markers", "chaos(id, title, why, steps, min_pass_rate): a scenario: what must survive what."
    )
    config.addinivalue_line("markers", "chaos_deep: a thorough variant of a scenario; campaigns leave it out.")
    config.addinivalue_line("markers", "chaos_once: a run that comes out the same each time; campaigns run it once.")
    config.stash[_SESSION] = session = ChaosSession(config)
    config.stash[_RUNS] = runs = Runs(session)
    config.pluginmanager.register(Selection(session), "chaos-selection")
    config.pluginmanager.register(Sweeps(session), "chaos-sweeps")
    config.pluginmanager.register(results := Results(session, runs), "chaos-results")
    config.pluginmanager.register(planned := Planned(session, results), "chaos-planned")
    config.pluginmanager.register(stopping := Stopping(session), "chaos-stopping")
    planned.is_decided = stopping.is_decided
    if NARROW in os.environ:
        _narrow(config, session)
    if not session.is_worker:
        config.pluginmanager.register(SessionProgress(config, planned), "chaos-progress")
    if any(config.getoption(option.name) is not None for option in OPTIONS) or any(
        config.getoption(name) for name in ("chaos_replay", "chaos_resume")
    ):
        _ = session.settings
    if config.getoption("chaos_list_json"):
        config.option.collectonly = True


def _narrow(config: pytest.Config, session: ChaosSession) -> None:
    """Narrow a violation down, if ``chaos shrink`` or the like has started this process."""
    from pytest_chaos.plugin.narrowing import Narrowing

    if (narrowing := Narrowing.ordered(session)) is not None:
        config.pluginmanager.register(narrowing, "chaos-narrowing")


def _refuse_a_lost_root(config: pytest.Config) -> None:
    """Raise UsageError if pytest took an option's path for tests, and so another root folder.

    Pytest looks for the root folder and its ini file before it knows the options of plugins. Then
    an existing path in ``--option PATH`` counts as an argument, and the project's settings and
    markers are silently missing.
    """
    flags = {option.flag for option in OPTIONS} | {flag.flag for flag in FLAGS if "metavar" in flag.arguments}
    here = config.invocation_params.dir
    words = [str(word) for word in config.invocation_params.args]
    if config.inipath is not None and here.is_relative_to(config.inipath.parent):
        return
    for flag, value in itertools.pairwise(words):
        path = here / value
        if flag in flags and path.exists() and not path.is_relative_to(here):
            message = (
                f"Expected {flag}={value} but got two words; pytest has taken the second for tests, and looked for its "
                "configuration there. Write it with '='."
            )
            raise pytest.UsageError(message)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give each xdist worker the seed, the session's name, and the process to watch."""
    node.workerinput[WORKER_INPUT] = node.config.stash[_SESSION].for_worker()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test item of each iteration, named before other parameters: xdist spreads them."""
    if "_chaos_iteration" not in metafunc.fixturenames or is_deep(metafunc.definition):
        return
    iterations = metafunc.config.stash[_SESSION].settings.iterations
    if iterations > 1 and metafunc.config.getoption("chaos_replay") is None:
        width = len(str(iterations))
        is_once = is_marked_once(metafunc.definition) and not metafunc.config.getoption("chaos_all_iterations")
        names = [f"run-{number:0{width}d}" for number in range(1, 2 if is_once else iterations + 1)]
        metafunc.parametrize("_chaos_iteration", range(len(names)), indirect=True, ids=names)


@pytest.fixture
def _chaos_iteration(request: pytest.FixtureRequest) -> int:
    iteration = getattr(request, "param", None)
    return request.config.stash[_SESSION].first_iteration if iteration is None else int(iteration)


@pytest.fixture
def chaos(request: pytest.FixtureRequest, _chaos_iteration: int) -> Iterator[Run]:
    """A run of a scenario: start real processes, plan and fire faults, record expectations."""
    runs = request.config.stash[_RUNS]
    run = runs.start(request.node, _chaos_iteration)
    request.node.stash[RUN] = run
    yield run
    runs.finish(run)


@pytest.fixture
def explore(request: pytest.FixtureRequest, chaos: Run) -> Explore:
    """Explore a target within a run: every crash point, power-loss state and I/O error."""
    from pytest_chaos.plugin.explore_fixture import Explore

    return Explore(chaos, cluster=request.config.stash[_SESSION].settings.cluster)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Hear interrupts as before the session, and end the clusters that it has started."""
    if (engine := sys.modules.get("pytest_chaos.explore.cluster.engine")) is not None:
        engine.close_clusters()
    if (session := config.stash.get(_SESSION, None)) is not None:
        session.interrupts.restore()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Record the run of a test that is interrupted: pytest reports nothing of it."""
    _note_level(item)
    try:
        return (yield)
    except (KeyboardInterrupt, pytest.exit.Exception) as error:
        item.config.stash[_SESSION].interrupts.hold_off()
        item.config.stash[_RUNS].report_interrupted(item, error)
        raise


def _note_level(item: pytest.Item) -> None:
    """Note what the processes that stay have before a run of a campaign."""
    session = item.config.stash[_SESSION]
    if is_chaos(item) and session.settings.iterations > 1:
        from pytest_chaos.plugin.campaign.levels import level

        item.stash[LEVEL] = level()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Judge the run after the test function: a run that did not hold is a failed test."""
    try:
        _check_run_possible(item)
        result = yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | pytest.exit.Exception):
            item.config.stash[_SESSION].interrupts.hold_off()
        if (run := item.stash.get(RUN, None)) is not None and not isinstance(error, pytest.skip.Exception):
            run.conclude(error)
        raise
    finally:
        item.stash[_CALLED] = True
    if (run := item.stash.get(RUN, None)) is not None:
        raise_unless_held(run.conclude())
    elif item.get_closest_marker("chaos") is not None:
        msg = "a test marked chaos must make a run, or it proves nothing. Let it take the fixture chaos"
        raise Inconclusive(msg, pytrace=False)
    return result


def _check_run_possible(item: pytest.Item) -> None:
    """Fail a scenario in a unittest class, which has no fixtures, with the reason."""
    unittest = sys.modules.get("unittest")
    if unittest is None or not issubclass(getattr(item, "cls", None) or object, unittest.TestCase):
        return
    if item.get_closest_marker("chaos") is not None and item.stash.get(RUN, None) is None:
        msg = (
            "a method of a unittest.TestCase cannot take the fixture chaos. Make the scenario a function, or a method "
            "of a class that is no TestCase"
        )
        raise Inconclusive(msg, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the run's record into the report of its test; pack its evidence if it did not hold."""
    is_ours = item.stash.get(RUN, None) is not None or is_chaos(item)
    error = call.excinfo.value if call.excinfo is not None else None
    is_plain = isinstance(error, pytest.fail.Exception) and not error.pytrace  # shown without any frame
    if is_ours and error is not None and not is_plain:
        from pytest_chaos.plugin.failure import hide_own_frames

        hide_own_frames(error)
    report = yield
    if is_ours:
        from pytest_chaos.plugin.failure import redact_report

        redact_report(report)
    runs = item.config.stash.get(_RUNS, None)
    if runs is None:
        return report
    if call.when == "call" and not item.stash.get(_CALLED, False):
        _note_subtest(item, call)
    elif call.when == "call" or (call.when == "setup" and report.failed):
        runs.report(item, call, report)
    return report


def _note_subtest(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Make a finding of a failed subtest: its report comes while the run goes on."""
    error = call.excinfo.value if call.excinfo is not None else None
    if (run := item.stash.get(RUN, None)) is None or error is None or isinstance(error, pytest.skip.Exception):
        return
    from pytest_chaos.model import verdict

    run.check([verdict.of_error(error)])
