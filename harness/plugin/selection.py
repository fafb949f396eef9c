"""Which of the collected tests are run: what the options ask for, and what a campaign leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from harness.plugin.items import base_of, is_chaos, is_deep, scenario_of
from harness.plugin.session import shown

if TYPE_CHECKING:
    from harness.model import Scenario
    from harness.plugin.session import ChaosSession

WORKER_OUTPUT: Final = "chaos_mistake"
"""Where a worker leaves a mistake that only those who collect can see."""


class Selection:
    """The hooks about collection."""

    def __init__(self, session: ChaosSession) -> None:
        """Select by the settings of this session."""
        self._session = session
        self._is_incomplete = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Hear of a module that cannot be collected: what is missed may be in it."""
        self._is_incomplete |= report.failed

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what the options do not ask for; look at every marker while nothing has run yet.

        In a worker, where pytest can tell nobody of a mistake, nothing is run and the controller tells it.
        """
        try:
            self._select(config, items)
        except pytest.UsageError as error:
            if not self._session.is_worker:
                raise
            items.clear()
            config.workeroutput[WORKER_OUTPUT] = str(error)  # type: ignore[attr-defined] # xdist puts it there

    def _select(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        mine = [item for item in items if is_chaos(item)]
        if not mine and not config.getoption("chaos_scenario") and not config.getoption("chaos_replay"):
            return
        keep = {item for item in mine if self._wanted(item, scenario_of(item))}
        self._check_selection(mine, keep)
        narrow = self._session.settings.replay is not None or self._session.settings.scenarios
        selected = [item for item in items if item in keep or (item not in mine and not narrow)]
        chosen = set(selected)
        if dropped := [item for item in items if item not in chosen]:
            config.hook.pytest_deselected(items=dropped)
            items[:] = selected

    def _wanted(self, item: pytest.Item, scenario: Scenario) -> bool:
        if self._session.replayed is not None:
            return base_of(item) == self._session.replayed.node_id
        if self._session.settings.scenarios and scenario.id not in self._session.settings.scenarios:
            return False
        campaign = self._session.settings.iterations > 1
        return not (campaign and is_deep(item))

    def _check_selection(self, mine: list[pytest.Item], keep: set[pytest.Item]) -> None:
        if self._is_incomplete:  # a module could not be collected, which pytest tells, and which may be the reason
            return
        if self._session.replayed is not None and not keep:
            test = self._session.replayed.node_id
            msg = f"the pack is of {test}, and no such test was collected: run pytest where it was made"
            raise pytest.UsageError(msg)
        known = {scenario_of(item).id for item in mine}
        if unknown := [name for name in self._session.settings.scenarios if name not in known]:
            there_are = ", ".join(sorted(known)) or "none"
            msg = f"--chaos-scenario: there is no scenario {unknown[0]!r} here; there are {there_are}"
            raise pytest.UsageError(msg)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write the list of scenarios, if that is all that was asked for."""
        if target := self._session.config.getoption("chaos_list_json"):
            listed: dict[str, dict[str, Any]] = {}
            for item in filter(is_chaos, session.items):
                scenario = scenario_of(item)
                facts = {"id": scenario.id, "title": scenario.title, "why": scenario.why, "steps": list(scenario.steps)}
                listed.setdefault(scenario.id, {**facts, "tests": []})["tests"].append(item.nodeid)
            Path(target).write_text(json.dumps([listed[key] for key in sorted(listed)], indent=2))

    def pytest_report_collectionfinish(self, config: pytest.Config, items: list[pytest.Item]) -> list[str]:
        """Show the seed, once there is something that it decides."""
        if (
            self._session.is_worker
            or config.getoption("verbose") < 0
            or not (mine := [item for item in items if is_chaos(item)])
        ):
            return []
        count = len({scenario_of(item).id for item in mine})
        runs = f"{len(mine)} run{'s' if len(mine) != 1 else ''} of {count} scenario{'s' if count != 1 else ''}"
        return [f"chaos: seed {self._session.settings.seed}, {runs}; results in {shown(self._session.folder, config)}"]
