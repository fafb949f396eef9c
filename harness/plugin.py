"""The pytest plugin: options, the ``chaos`` fixture, iterations, verdicts, records, evidence and the end of a session.

Inert until a test is a chaos run: nothing is started, written or printed before, and what is needed then is imported
then. Only the controller writes records; under xdist they travel in the reports. Verdicts are made right after the
test function, so that a violated run is a failed test like any other; the evidence is packed when pytest has put the
failure into words.

This module is long because it is the one place where pytest's hooks are met; each hook is short and hands over.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest.outcomes import Failed  # pytest.fail.Exception, by the name under which it can be a base class

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from harness.agents.process import GuardianClient
    from harness.evidence.open import Pack
    from harness.explore.fixture import Explore
    from harness.model import RunRecord, Scenario, SessionHeader
    from harness.records import SessionFolder
    from harness.run import Run
    from harness.settings import Settings

_RUN: Final = pytest.StashKey["Run"]()
_CALLED: Final = pytest.StashKey[bool]()
_SESSION: Final = pytest.StashKey["ChaosSession"]()
_SETTINGS: Final = pytest.StashKey["Settings"]()
_RECORD: Final = "chaos_record"
_WORKER_INPUT: Final = "chaos"
_WORKER_OUTPUT: Final = "chaos_mistake"
_CRASH_TIMEOUT_S: Final = 15.0

_OPTIONS: Final = ("seed", "iterations", "min_pass_rate", "confirm", "results", "report", "scratch")


class Violated(Failed):
    """A run was VIOLATED though the test's own code raised nothing."""


class Inconclusive(Failed):
    """A run came to no answer: a fault did not fire, nothing was asserted, or the harness itself failed."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Let other plugins hear of what happens here."""
    from harness import hookspecs  # see the module's docstring; so for all imports below

    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each also as ini value and environment variable."""
    from harness.options import FLAGS, OPTIONS

    group = parser.getgroup("chaos", "chaos: crashes, pauses and races against real processes")
    for option in OPTIONS:
        group.addoption(option.flag, dest=option.name, metavar=option.metavar, default=None, help=option.help)
        parser.addini(
            option.name, f"{option.help} Also {option.variable} in the environment.", type="string", default=""
        )
    for flag in FLAGS:
        group.addoption(flag.flag, dest=flag.name, help=flag.help, **flag.arguments)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and look at the options now if any was given: a mistake is told before anything runs."""
    import _pytest_chaos

    for package in ("harness", "reports"):  # once more, now that the root folder is known
        _pytest_chaos.check(package, config.rootpath)
    _refuse_a_lost_root(config)
    config.addinivalue_line(
        "markers", "chaos(id, title, why, steps, min_pass_rate): a scenario: what must survive what."
    )
    config.addinivalue_line("markers", "chaos_deep: a thorough variant of a scenario; campaigns leave it out.")
    config.stash[_SESSION] = session = ChaosSession(config)
    config.pluginmanager.register(session, "chaos-session")
    if any(config.getoption(f"chaos_{name}") is not None for name in _OPTIONS) or config.getoption("chaos_replay"):
        _ = session.settings
    if config.getoption("chaos_list_json"):
        config.option.collectonly = True


def _refuse_a_lost_root(config: pytest.Config) -> None:
    """Raise UsageError where pytest has taken an option's value for tests, and so its configuration from elsewhere.

    It looks for the root folder and its ini file before it knows the options of plugins. So the path in ``--option
    PATH``, if it exists, counts as an argument then, and settings and markers of the project are silently not there.
    """
    from harness.options import FLAGS, OPTIONS

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
    """Give each xdist worker the seed, the session's name, and whom its guardian has to watch as well."""
    node.workerinput[_WORKER_INPUT] = node.config.stash[_SESSION].for_worker()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test item of each iteration, so that xdist spreads them; its name stands before other parameters."""
    if "_chaos_iteration" not in metafunc.fixturenames or _is_deep(metafunc.definition):
        return
    iterations = metafunc.config.stash[_SESSION].settings.iterations
    if iterations > 1 and metafunc.config.getoption("chaos_replay") is None:
        width = len(str(iterations))
        names = [f"run-{number:0{width}d}" for number in range(1, iterations + 1)]
        metafunc.parametrize("_chaos_iteration", range(iterations), indirect=True, ids=names)


@pytest.fixture
def _chaos_iteration(request: pytest.FixtureRequest) -> int:
    iteration = getattr(request, "param", None)
    return request.config.stash[_SESSION].first_iteration if iteration is None else int(iteration)


@pytest.fixture
def chaos(request: pytest.FixtureRequest, _chaos_iteration: int) -> Iterator[Run]:
    """Give a run of a scenario: start real processes, plan and fire faults, say what is expected."""
    session = request.config.stash[_SESSION]
    run = session.start_run(request.node, _chaos_iteration)
    request.node.stash[_RUN] = run
    yield run
    session.finish_run(run)


@pytest.fixture
def explore(chaos: Run) -> Explore:
    """Give the means to explore a target within a run: every crash point, every power-loss state, every I/O error."""
    from harness.explore.fixture import Explore

    return Explore(chaos)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Judge the run as soon as the test function is done: a run that did not hold is a failed test."""
    try:
        _check_run_possible(item)
        result = yield
    except BaseException as error:
        if (run := item.stash.get(_RUN, None)) is not None and not isinstance(error, pytest.skip.Exception):
            run.conclude(error)
        raise
    finally:
        item.stash[_CALLED] = True
    if (run := item.stash.get(_RUN, None)) is not None:
        _raise_unless_held(run.conclude())
    elif item.get_closest_marker("chaos") is not None:
        msg = "the test is marked chaos and made no run, so it proves nothing: let it take the fixture chaos"
        raise Inconclusive(msg, pytrace=False)
    return result


def _check_run_possible(item: pytest.Item) -> None:
    """Say of a scenario in a unittest class why it has no run, before Python says something about arguments."""
    unittest = sys.modules.get("unittest")
    if unittest is None or not issubclass(getattr(item, "cls", None) or object, unittest.TestCase):
        return
    if item.get_closest_marker("chaos") is not None and item.stash.get(_RUN, None) is None:
        msg = (
            "a method of a unittest.TestCase cannot take the fixture chaos: make the scenario a function, or a method "
            "of a class that is no TestCase"
        )
        raise Inconclusive(msg, pytrace=False)


def _raise_unless_held(record: RunRecord) -> None:
    from harness.model import Verdict
    from harness.run import reason

    if record.verdict is Verdict.VIOLATED:
        raise Violated(reason(record), pytrace=False)
    if record.verdict is Verdict.INCONCLUSIVE:
        raise Inconclusive(reason(record), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the run's record into the report of its test, and its evidence into a pack if it did not hold."""
    report = yield
    session = item.config.stash.get(_SESSION, None)
    if session is None:
        return report
    if call.when == "call" and not item.stash.get(_CALLED, False):
        _note_subtest(item, call)
    elif call.when == "call" or (call.when == "setup" and report.failed):
        session.report_run(item, call, report)
    return report


def _note_subtest(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Take what a subtest failed by for a finding: its report comes while the run goes on."""
    error = call.excinfo.value if call.excinfo is not None else None
    if (run := item.stash.get(_RUN, None)) is None or error is None or isinstance(error, pytest.skip.Exception):
        return
    from harness import verdict

    run.check([verdict.of_error(error)])


def _base(item: pytest.Item) -> str:
    """Return a test's node id as it is without iterations."""
    from harness import scenarios

    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return scenarios.without_iteration(item.nodeid) if "_chaos_iteration" in parameters else item.nodeid


def _is_deep(item: Any) -> bool:
    return item.get_closest_marker("chaos_deep") is not None


def is_chaos(item: pytest.Item) -> bool:
    """Whether a test is a run of a scenario."""
    return "chaos" in getattr(item, "fixturenames", ()) or item.get_closest_marker("chaos") is not None


def scenario_of(item: pytest.Item) -> Scenario:
    """Return the scenario of a test. Raises pytest.UsageError for a marker that cannot be understood."""
    from harness import scenarios
    from harness.errors import UsageError

    marker = item.get_closest_marker("chaos")
    base = _base(item)
    fallback = f"{Path(base.partition('::')[0]).stem}-{base.rpartition('::')[2]}"
    docstring = getattr(getattr(item, "function", None), "__doc__", None) or ""
    try:
        return scenarios.from_marker(
            marker.args if marker else (), marker.kwargs if marker else {}, fallback=fallback, docstring=docstring
        )
    except UsageError as error:
        msg = f"{item.nodeid}: {error}"
        raise pytest.UsageError(msg) from error


class ChaosSession:
    """What one pytest process knows of its chaos session: a controller or alone all of it, a worker its part."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self._given: Mapping[str, Any] = getattr(config, "workerinput", {}).get(_WORKER_INPUT, {})
        self.is_worker = hasattr(config, "workerinput")
        self.first_iteration = 0
        self._settings: Settings | None = None
        self._name = ""
        self._client: GuardianClient | None = None
        self._scratch: Path | None = None
        self._replayed: Pack | None = None
        self._header: SessionHeader | None = None
        self._folder: SessionFolder | None = None
        self._records: list[RunRecord] = []
        self._expected: list[RunRecord] = []
        self._problems: list[str] = []
        self._mistakes: list[str] = []
        self._other_failures = 0
        self._confirmed: dict[tuple[str, frozenset[str]], str] = {}

    @property
    def settings(self) -> Settings:
        """The settings, built at the first question. Raises pytest.UsageError that lists all that is wrong."""
        if self._settings is None:
            self._settings = self._collect_settings()
        return self._settings

    @property
    def name(self) -> str:
        """The session's name: when it was, and by which seed."""
        if not self._name:
            import datetime

            moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
            self._name = self._given.get("name") or f"{moment}-{self.settings.seed}-{secrets.token_hex(2)}"
        return self._name

    @property
    def session_folder(self) -> Path:
        """Where records, reports and evidence of this session go."""
        return self.settings.results / "sessions" / self.name

    def _collect_settings(self) -> Settings:
        import msgspec

        from harness import settings
        from harness.errors import ChaosError

        option = self.config.getoption
        try:
            found = settings.collect(
                command_line={f"chaos_{name}": option(f"chaos_{name}") for name in _OPTIONS},
                environment=os.environ,
                ini=lambda name: str(self.config.getini(name)),
                quick=bool(option("chaos_quick")),
                scenarios=tuple(option("chaos_scenario") or ()),
                replay=option("chaos_replay"),
                root=self.config.rootpath,
            )
            if found.replay is not None:
                from harness.evidence import open_pack

                self._replayed = pack = open_pack(found.replay)
                self.first_iteration = pack.iteration
                found = msgspec.structs.replace(found, seed=pack.seed, iterations=1)
        except ChaosError as error:
            raise pytest.UsageError(str(error)) from error
        if "seed" in self._given:
            found = msgspec.structs.replace(found, seed=self._given["seed"])
        return found

    def for_worker(self) -> dict[str, Any]:
        """Return what an xdist worker has to know."""
        from harness.agents import tree

        here = tree.read(os.getpid())
        watch = [here.pid, here.start_ticks] if here is not None else None
        return {"seed": self.settings.seed, "name": self.name, "watch": watch}

    # Collection

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what the options do not ask for; look at every marker while nothing has run yet.

        In a worker, where pytest can tell nobody of a mistake, nothing is run and the controller tells it.
        """
        try:
            self._select(config, items)
        except pytest.UsageError as error:
            if not self.is_worker:
                raise
            items.clear()
            config.workeroutput[_WORKER_OUTPUT] = str(error)  # type: ignore[attr-defined] # xdist puts it there

    def _select(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        mine = [item for item in items if is_chaos(item)]
        if not mine and not config.getoption("chaos_scenario") and not config.getoption("chaos_replay"):
            return
        keep = {item for item in mine if self._wanted(item, scenario_of(item))}
        self._check_selection(mine, keep)
        narrow = self.settings.replay is not None or self.settings.scenarios
        selected = [item for item in items if item in keep or (item not in mine and not narrow)]
        chosen = set(selected)
        if dropped := [item for item in items if item not in chosen]:
            config.hook.pytest_deselected(items=dropped)
            items[:] = selected

    def _wanted(self, item: pytest.Item, scenario: Scenario) -> bool:
        if self._replayed is not None:
            return _base(item) == self._replayed.node_id
        if self.settings.scenarios and scenario.id not in self.settings.scenarios:
            return False
        campaign = self.settings.iterations > 1
        return not (campaign and _is_deep(item))

    def _check_selection(self, mine: list[pytest.Item], keep: set[pytest.Item]) -> None:
        if self._other_failures:  # a module could not be collected, which pytest tells, and which may be the reason
            return
        if self._replayed is not None and not keep:
            msg = (
                f"the pack is of {self._replayed.node_id}, and no such test was collected: run pytest where it was made"
            )
            raise pytest.UsageError(msg)
        known = {scenario_of(item).id for item in mine}
        if unknown := [name for name in self.settings.scenarios if name not in known]:
            there_are = ", ".join(sorted(known)) or "none"
            msg = f"--chaos-scenario: there is no scenario {unknown[0]!r} here; there are {there_are}"
            raise pytest.UsageError(msg)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write the list of scenarios, if that is all that was asked for."""
        if target := self.config.getoption("chaos_list_json"):
            listed: dict[str, dict[str, Any]] = {}
            for item in filter(is_chaos, session.items):
                scenario = scenario_of(item)
                facts = {"id": scenario.id, "title": scenario.title, "why": scenario.why, "steps": list(scenario.steps)}
                listed.setdefault(scenario.id, {**facts, "tests": []})["tests"].append(item.nodeid)
            Path(target).write_text(json.dumps([listed[key] for key in sorted(listed)], indent=2))

    def pytest_report_collectionfinish(self, config: pytest.Config, items: list[pytest.Item]) -> list[str]:
        """Show the seed, once there is something that it decides."""
        if (
            self.is_worker
            or config.getoption("verbose") < 0
            or not (mine := [item for item in items if is_chaos(item)])
        ):
            return []
        count = len({scenario_of(item).id for item in mine})
        runs = f"{len(mine)} run{'s' if len(mine) != 1 else ''} of {count} scenario{'s' if count != 1 else ''}"
        return [f"chaos: seed {self.settings.seed}, {runs}; results in {_shown(self.session_folder, config)}"]

    # A run

    def start_run(self, item: pytest.Item, iteration: int) -> Run:
        """Make the run of a test: its journal and its header, before anything else happens."""
        from harness.errors import UsageError
        from harness.journal import Journal
        from harness.run import Run

        header = self._run_header(item, iteration)
        replayed = self._replayed.plan if self._replayed is not None else None
        try:
            journal = Journal(self._scratch_folder() / f"{header.run_id}-{secrets.token_hex(2)}")
            return Run(journal, header, self._connect, replay=replayed)
        except UsageError as error:
            raise Inconclusive(str(error), pytrace=False) from None
        except OSError as error:
            folder = self.settings.scratch
            msg = f"the scratch folder {folder} cannot be written ({error.strerror}): give another, --chaos-scratch=DIR"
            raise Inconclusive(msg, pytrace=False) from None

    def _run_header(self, item: pytest.Item, iteration: int) -> Any:
        import datetime

        from harness import scenarios
        from harness.journal import RunHeader

        base = _base(item)
        name = self._free_name(scenarios.run_id(base, iteration))
        return RunHeader(
            run_id=name,
            node_id=base,
            scenario=scenario_of(item),
            seed=self.settings.seed,
            session_folder=str(self.session_folder),
            iteration=iteration,
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            command=_command_line(),
            reproduce=self._reproduce(name),
            root=str(self.config.rootpath),
            versions=_versions(),
            controller_pid=os.getpid(),
            worker=os.environ.get("PYTEST_XDIST_WORKER", ""),
        )

    def _reproduce(self, name: str) -> str:
        """Return the line that repeats a run, with what the project's own options add to it."""
        import shlex

        own = self._own_arguments()
        words = ["chaos", "replay", _shown(self.session_folder / "evidence" / name, self.config)]
        return shlex.join([*words, "--", *own] if own else words)

    def _free_name(self, name: str) -> str:
        """Return the name, numbered if this session has evidence of that name already (a test that was run again)."""
        evidence = self.session_folder / "evidence"
        candidates = (name, *(f"{name}-again-{number}" for number in range(2, 1000)))
        return next(candidate for candidate in candidates if not (evidence / candidate).exists())

    def finish_run(self, run: Run) -> None:
        """Remove what a run left in the scratch folder; its evidence, if any, is packed by now."""
        run.conclude()
        run.remove()

    def _scratch_folder(self) -> Path:
        if self._scratch is None:
            from harness import scratch

            scratch.sweep(self.settings.scratch)
            self._scratch = scratch.create(self.settings.scratch)
        return self._scratch

    def _connect(self) -> GuardianClient:
        """Return the guardian of this process's agents, started at the first need and again if it was killed."""
        if self._client is not None:
            self._client.pump()  # hears of its end, if that was between two runs
        if self._client is None or not self._client.alive:
            from harness import scratch
            from harness.agents import tree
            from harness.agents.process import GuardianClient

            watch = tree.read(self._given["watch"][0]) if self._given.get("watch") else None
            self._client = GuardianClient(self._scratch_folder(), watch=watch)
            if (guardian := tree.read(self._client.pid)) is not None:
                scratch.claim(self._scratch_folder(), guardian)
        return self._client

    def report_run(self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
        """Finish a run's record now that pytest has put its failure into words; pack the evidence unless it held."""
        run = item.stash.get(_RUN, None)  # also of a test that asked for the fixture only while it ran
        is_expected = hasattr(report, "wasxfail")
        if (report.skipped and not is_expected) or (run is None and not is_chaos(item)):
            return
        error = call.excinfo.value if call.excinfo is not None else None
        if run is not None:
            record = run.conclude(error)
        elif report.failed or is_expected:
            record = self._record_without_run(item, error)
        else:
            return
        record = self._pack(item, run, record, report)
        import msgspec

        for properties in (item.user_properties, report.user_properties):  # JUnit has the item's, at its very end
            properties.append(("chaos_verdict", str(record.verdict)))
        setattr(report, _RECORD, msgspec.json.encode(record).decode())

    def _record_without_run(self, item: pytest.Item, error: BaseException | None) -> RunRecord:
        """A scenario whose run could not even begin is in the matrix all the same."""
        from harness import verdict
        from harness.model import RunRecord

        header = self._run_header(item, 0)
        findings = (verdict.of_error(error),) if error is not None else ()
        return RunRecord(
            scenario=header.scenario,
            node_id=header.node_id,
            run_id=header.run_id,
            seed=header.seed,
            verdict=verdict.of_run([*findings, verdict.NOTHING_ASSERTED]),
            findings=findings,
            started=header.started,
            worker=header.worker,
        )

    def _stop_time_limit(self, item: pytest.Item) -> None:
        """Let pytest-timeout, where it is there, end its clock: saving and replaying a failure is not the test's time.

        It does so by itself for every failure, only later; between now and then it would end the session.
        """
        if (stop := getattr(self.config.hook, "pytest_timeout_cancel_timer", None)) is not None:
            stop(item=item)

    def _pack(self, item: pytest.Item, run: Run | None, record: RunRecord, report: pytest.TestReport) -> RunRecord:
        import msgspec

        from harness import campaign, verdict
        from harness.model import Verdict

        if record.verdict is Verdict.HELD:
            return record
        self._stop_time_limit(item)
        failure = verdict.encodable(report.longreprtext)
        record = msgspec.structs.replace(record, failure=failure[-4000:])
        if run is None:
            return record
        record = run.pack(record, failure, self.session_folder / "evidence", queries=self._evidence_queries())
        if record.evidence:
            record = self._confirm(record)
        lines = [f"seed {record.seed}; reproduce: {record.reproduce}"]
        if campaign.REPRODUCED in record.notes:
            lines.append(f"reproduced: {record.notes[campaign.REPRODUCED]}")
        if record.evidence:
            lines.append(f"evidence: {_shown(self.session_folder / record.evidence, self.config)}")
        lines += [f"evidence is incomplete: {text}" for text in record.notes.get("evidence_problems", ())]
        report.sections.append(("chaos", "\n".join(lines)))
        return record

    def _confirm(self, record: RunRecord) -> RunRecord:
        """Replay a violation, once for all runs of a scenario that have the same findings."""
        import msgspec

        from harness import campaign, confirm
        from harness.model import Verdict

        if record.verdict is not Verdict.VIOLATED or not self.settings.replays or self._replayed is not None:
            return record
        key = (record.scenario.id, confirm.signatures(record))
        if key not in self._confirmed:
            pack = self.session_folder / record.evidence
            folder = self._scratch_folder() / f"confirm-{record.run_id}"
            confirmation = confirm.confirm(
                record,
                pack,
                root=self.config.rootpath,
                folder=folder,
                arguments=self._own_arguments(),
                replays=self.settings.replays,
            )
            self._confirmed[key] = str(confirmation)
        notes = {**record.notes, campaign.REPRODUCED: self._confirmed[key]}
        return msgspec.structs.replace(record, notes=notes)

    def _own_arguments(self) -> list[str]:
        answers: list[list[str]] = self.config.hook.pytest_chaos_replay_arguments(config=self.config)
        return [argument for answer in answers for argument in answer]

    def _evidence_queries(self) -> dict[str, str]:
        asked: list[Mapping[str, str]] = self.config.hook.pytest_chaos_evidence_queries(config=self.config)
        return {name: sql for answer in reversed(asked) for name, sql in answer.items()}

    # Reports and the end

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write each record as soon as it is known, in the one process that has them all."""
        if self.is_worker:
            return
        text = getattr(report, _RECORD, None)
        if text is None:
            self._other_failures += report.failed
            return
        import msgspec

        from harness.model import RunRecord, Verdict

        record = msgspec.json.decode(text, type=RunRecord)
        self._other_failures += report.failed and record.verdict is Verdict.HELD  # by xfail(strict=True), say
        if hasattr(report, "wasxfail") and record.verdict is not Verdict.HELD:
            self._expected.append(record)
        self._add_record(record)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be collected is a failure that no pass rate forgives."""
        self._other_failures += report.failed

    def _add_record(self, record: RunRecord) -> None:
        from harness.errors import ResultsError
        from harness.records import SessionFolder

        self._records.append(record)
        try:
            if self._folder is None:
                self._folder = SessionFolder(self.settings.results, self.name)
                self._folder.create(self.header)
            self._folder.append(record)
        except ResultsError as error:
            if str(error) not in self._problems:
                self._problems.append(str(error))

    @property
    def header(self) -> SessionHeader:
        """What all records of the session share."""
        if self._header is None:
            import datetime

            from harness.model import SessionHeader

            self._header = SessionHeader(
                session=self.name,
                seed=self.settings.seed,
                started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                iterations=self.settings.iterations,
                pass_rate_min=self.settings.pass_rate_min,
                versions=_versions(),
                command=_command_line(),
            )
        return self._header

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Hear of a mistake in a marker or an option that only the workers, which collect, could see."""
        mistake = getattr(node, "workeroutput", {}).get(_WORKER_OUTPUT)
        if mistake is not None and mistake not in self._mistakes:
            self._mistakes.append(mistake)

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """A worker died: its guardian cleans up and saves the evidence; the run is in the records all the same."""
        import msgspec

        from harness.salvage import record_of

        for pack in self._packs_of_crashed(crashitem):
            record = record_of(pack, report.longreprtext)
            setattr(report, _RECORD, msgspec.json.encode(record).decode())

    def _packs_of_crashed(self, node_id: str) -> list[Path]:
        """Return the evidence of a run that died with its worker, waiting for the guardian as long as it is at it."""
        import time

        from harness import scenarios, scratch

        known = {record.run_id for record in self._records}
        is_campaign = self.settings.iterations > 1 and self._replayed is None
        base = scenarios.without_iteration(node_id) if is_campaign else node_id
        prefix = scenarios.run_id(base, 0).rpartition("-")[0]
        deadline_s = time.monotonic() + _CRASH_TIMEOUT_S
        while True:
            waiting = base in scratch.runs_under_way(self.settings.scratch, self.session_folder)
            packs = (self.session_folder / "evidence").glob(f"{prefix}-*")
            found = [pack for pack in sorted(packs) if pack.name not in known]
            if found or not waiting or time.monotonic() > deadline_s:
                return found[:1]
            time.sleep(0.01)

    def pytest_report_teststatus(self, report: pytest.CollectReport | pytest.TestReport) -> Any:
        """Show an inconclusive run as what it is: not a pass, and no verdict against the target either."""
        text = getattr(report, _RECORD, None)
        if text is not None and report.failed and json.loads(text)["verdict"] == "INCONCLUSIVE":
            return "inconclusive", "I", ("INCONCLUSIVE", {"yellow": True})
        return None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """End the guardian; let the reports be made; and let the pass rates decide over the exit code."""
        if self._client is not None:
            self._client.close()
        if self._scratch is not None:
            from harness import scratch

            scratch.remove(self._scratch)
        if self._mistakes:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        if self.is_worker or not self._records:
            return
        from harness import campaign
        from harness.model import Verdict
        from harness.records import Records

        records = Records(self.header, tuple(self._records))
        unexpected = [record for record in self._records if record not in self._expected]
        verdict = campaign.summarise(Records(self.header, tuple(unexpected))).verdict if unexpected else Verdict.HELD
        forgivable = not self._other_failures and not session.shouldfail  # with -x the campaign was not run to its end
        if exitstatus == pytest.ExitCode.TESTS_FAILED and forgivable and verdict is Verdict.HELD:
            session.exitstatus = pytest.ExitCode.OK
        elif exitstatus == pytest.ExitCode.OK and (verdict is not Verdict.HELD or self._problems):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._folder is not None and not self._problems:
            self.config.hook.pytest_chaos_session_finished(
                session_folder=self._folder.path, records=records, formats=self.settings.formats, config=self.config
            )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name every run that came to no answer, and for each that did not hold the line that repeats it."""
        for problem in (*self._mistakes, *self._problems):
            terminalreporter.write_line(f"chaos: {problem}", red=True)
        unclear = terminalreporter.getreports("inconclusive")
        if unclear and terminalreporter.config.option.tbstyle != "no":
            terminalreporter.write_sep("=", "chaos: INCONCLUSIVE", yellow=True)
            for report in unclear:
                terminalreporter.write_sep("_", report.head_line or report.nodeid)
                terminalreporter.write_line(report.longreprtext)
        if self._records and terminalreporter.config.getoption("verbose") >= 0:
            terminalreporter.write_line(
                f"chaos: seed {self.settings.seed}; results in {_shown(self.session_folder, self.config)}"
            )
        failed = [record for record in self._records if record.verdict != "HELD"]
        if failed:
            terminalreporter.write_sep("=", "chaos: reproduce")
            for record in failed:
                terminalreporter.write_line(f"{record.verdict} {record.node_id}: {record.reproduce or 'run it again'}")


def _shown(path: Path, config: pytest.Config) -> str:
    """Return a path as a person would type it where pytest was started."""
    try:
        return str(path.relative_to(config.invocation_params.dir))
    except ValueError:
        return str(path)


def _command_line() -> str:
    import shlex

    program = Path(sys.argv[0])
    named = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*named, *sys.argv[1:]])


def _versions() -> dict[str, str]:
    import platform
    import sqlite3
    from importlib.metadata import version

    return {
        "pytest-chaos": version("pytest-chaos"),
        "pytest": pytest.__version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }
