"""The runs that a session planned: selected and deselected by the user, skipped, and not made.

A session that ends early (Ctrl-C, ``-x``, ``--maxfail``, a worker that died) lacks records of tests
that it had selected. The header of its records has the number of planned runs, so that a matrix
made on another day counts the missing ones, too. Deselected runs are not missing.

Under xdist only workers collect. Each leaves the list in the session's folder, where the controller
takes it over before the first test runs.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from pytest_chaos.plugin.campaign.stopping import DECIDED, NOT_BEGUN, OVER_BUDGET
from pytest_chaos.plugin.runs import RECORD
from pytest_chaos.plugin.selection import is_chaos, scenario_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Set as AbstractSet
    from pathlib import Path

    from pytest_chaos.model.values import SessionEnd
    from pytest_chaos.plugin.results import Results
    from pytest_chaos.plugin.session import ChaosSession


class Planned:
    """The hooks that record the planned runs. ``results`` begin once these are known."""

    def __init__(self, session: ChaosSession, results: Results) -> None:
        """Count for this session."""
        self._session = session
        self._results = results
        self._scenario_of: dict[str, str] = {}
        self._deselected: list[pytest.Item] = []
        self._skipped: Counter[str] = Counter()
        self._not_begun: dict[str, Counter[str]] = {DECIDED: Counter(), OVER_BUDGET: Counter()}
        self.is_decided: Callable[[str], bool] = lambda _: False
        """Whether further runs of a scenario are not needed; set by the plugin."""
        self._uncollected = 0
        self._scheduler: Any = None
        """The scheduler of ``--dist load``, in a controller."""
        self.has_others = False
        """Whether tests are run that are no scenarios."""
        results.end = self.end

    @property
    def waiting(self) -> Mapping[str, str]:
        """The planned runs without a record yet: the scenario of each, by node id."""
        return self._scenario_of

    @property
    def is_campaign(self) -> bool:
        """Whether each test is run in several iterations, which its node id names."""
        return self._session.settings.iterations > 1

    def end(self) -> SessionEnd:
        """Return the last line of the session's records."""
        from pytest_chaos.model.values import SessionEnd

        count = self._uncollected
        modules = "module" if count == 1 else "modules"
        reasons = (f"{count} {modules} could not be collected. Mend what pytest says of the collection",) * bool(count)
        decided = self._not_begun[DECIDED] + Counter(filter(self.is_decided, self._scenario_of.values()))
        over_budget = dict(self._not_begun[OVER_BUDGET])
        return SessionEnd(skipped=dict(self._skipped), reasons=reasons, decided=dict(decided), over_budget=over_budget)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count the modules that cannot be collected: their planned runs are not known."""
        self._uncollected += report.failed

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Keep the scenarios that the user leaves out."""
        self._deselected += (item for item in items if is_chaos(item) and item not in self._session.elsewhere)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the runs that are selected; a worker writes them to a file for its controller."""
        mine = [item for item in session.items if is_chaos(item)]
        elsewhere = self._session.elsewhere
        if not (mine or elsewhere) or session.config.option.collectonly:
            return
        listed = self._listed(mine, len(session.items) - len(mine), elsewhere)
        self._plan(listed)
        if self._session.is_worker:
            with contextlib.suppress(OSError):  # the controller says why the folder cannot be written
                self._session.folder.mkdir(parents=True, exist_ok=True)
                self._file(session.config.workerinput["workerid"]).write_text(  # type: ignore[attr-defined] # xdist's
                    json.dumps(listed)
                )

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Begin the session's records, which list the planned runs however the session ends."""
        del session
        self._begin()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any) -> None:
        """Take over what a worker has collected; all of them collect the same."""
        file = self._file(node.gateway.id)
        with contextlib.suppress(OSError, ValueError):
            listed = json.loads(file.read_text())
            file.unlink()
            if not self._session.planned:
                self._plan(listed)
                self._begin()
                if self._scheduler is not None and self._scenario_of:  # it reads that when all have collected
                    self._scheduler.maxschedchunk = 1

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> object:
        """Hand chaos runs to workers one by one: in batches the first worker gets all long ones."""
        if config.getoption("dist") != "load" or config.getoption("maxschedchunk") is not None:
            return None
        from xdist.scheduler import LoadScheduling  # type: ignore[import-untyped] # only in a session with workers

        self._scheduler = LoadScheduling(config, log)
        return self._scheduler

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        """Ignore further interrupts, before pytest's own hook, which takes a while."""
        self._session.interrupts.hold_off()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the planned runs that the test skipped, by itself or by a mark."""
        if hasattr(report, RECORD):
            self._scenario_of.pop(report.nodeid, None)
        elif (why := getattr(report, NOT_BEGUN, None)) is not None and report.nodeid in self._scenario_of:
            self._not_begun[why][self._scenario_of.pop(report.nodeid)] += 1
        elif (report.skipped or (report.when == "call" and report.passed)) and report.nodeid in self._scenario_of:
            self._skipped[self._scenario_of.pop(report.nodeid)] += 1

    def _begin(self) -> None:
        if self._session.planned and not self._session.is_worker:
            self._results.begin()

    def _file(self, worker: str) -> Path:
        return self._session.folder / f".planned-{worker}.json"

    def _listed(self, mine: Sequence[pytest.Item], others: int, elsewhere: AbstractSet[pytest.Item]) -> dict[str, Any]:
        import msgspec

        from pytest_chaos.plugin.campaign.suite import suite_of

        scenarios = {item.nodeid: scenario_of(item) for item in mine}
        left_out = []
        for item in self._deselected:
            with contextlib.suppress(pytest.UsageError):  # a wrong marker of a test that is not run
                left_out.append(scenario_of(item))
        away = [scenario_of(item) for item in elsewhere]
        known = {each.id: each for each in (*left_out, *away, *scenarios.values())}
        collected = {*mine, *elsewhere, *self._deselected}
        return {
            "scenarios": {name: msgspec.to_builtins(each) for name, each in known.items()},
            "tests": {node_id: each.id for node_id, each in scenarios.items()},
            "deselected": Counter(each.id for each in left_out),
            "others": others,
            "suite": suite_of(collected, self._session.config.rootpath),
        }

    def _plan(self, listed: dict[str, Any]) -> None:
        import msgspec

        from pytest_chaos.model.values import PlannedRuns, Scenario
        from pytest_chaos.plugin.campaign.suite import Suite

        self._scenario_of = dict(listed["tests"])
        self.has_others = listed["others"] > 0
        self._session.suite = Suite(*listed["suite"])
        runs = Counter(self._scenario_of.values())
        self._session.planned = tuple(
            PlannedRuns(
                scenario=msgspec.convert(each, Scenario), runs=runs[name], deselected=listed["deselected"].get(name, 0)
            )
            for name, each in sorted(listed["scenarios"].items())
        )
