"""Scenarios and the names of their runs; and which of the collected tests are run.

Several tests may be runs of one scenario: they have the same marker (``pytestmark`` of a module). A
test that uses the fixture ``chaos`` without a marker is a scenario of its own, named after its
module and function.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_chaos.errors import UsageError
from pytest_chaos.plugin.session import TOOK_S, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_chaos.model.values import Scenario
    from pytest_chaos.plugin.session import ChaosSession

ITERATION_PREFIX: Final = "run-"
_ITERATION: Final = rf"^{ITERATION_PREFIX}\d+(?:-|$)|-{ITERATION_PREFIX}\d+(?=-|$)"
_ID: Final = r"[a-z0-9][a-z0-9._-]{0,79}"
_SLUG_CHARACTERS_MAX: Final = 60
_ARGUMENTS: Final = {"id", "title", "why", "steps", "min_pass_rate"}


def from_marker(
    arguments: tuple[object, ...], keywords: Mapping[str, Any], *, fallback: str, docstring: str
) -> Scenario:
    """Build the scenario of a ``chaos`` marker; the test's name and docstring fill in the rest.

    Raises UsageError for arguments that the marker does not take.

    >>> from_marker((), {"id": "01-kill-9"}, fallback="test_kill", docstring="It survives.").title
    'It survives.'
    """
    from pytest_chaos.model.values import Scenario  # 30 ms, for suites with chaos tests alone

    if arguments or (unknown := sorted(set(keywords) - _ARGUMENTS)):
        given = [*(repr(value) for value in arguments), *(unknown if not arguments else ())]
        msg = f"@pytest.mark.chaos must have only id=, title=, why=, steps=, min_pass_rate=; got {', '.join(given)}"
        raise UsageError(msg)
    first_line = docstring.strip().split("\n", 1)[0]
    scenario_id = keywords.get("id") or _short(slug(fallback))
    if not isinstance(scenario_id, str) or not re.fullmatch(_ID, scenario_id):
        msg = f"the id of a scenario must be like '01-kill-9' (small letters, digits, '-_.'); got {scenario_id!r}"
        raise UsageError(msg)
    steps = keywords.get("steps", ())
    if isinstance(steps, str) or not all(isinstance(step, str) for step in steps):
        msg = f"the steps of scenario {scenario_id} must be a list of sentences; got {steps!r}"
        raise UsageError(msg)
    return Scenario(
        id=scenario_id,
        title=str(keywords.get("title") or first_line or fallback),
        why=str(keywords.get("why", "")),
        steps=tuple(steps),
        pass_rate_min=_rate(scenario_id, keywords.get("min_pass_rate")),
    )


def _rate(scenario_id: str, given: object) -> float | None:
    if given is None or (isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= 1):
        return given
    msg = f"the min_pass_rate of scenario {scenario_id} must be a share from 0 to 1 (0.98 for 98 %); got {given!r}"
    raise UsageError(msg)


def _short(scenario_id: str) -> str:
    """Return an id that is short enough, and still this test's own."""
    if re.fullmatch(_ID, scenario_id):
        return scenario_id
    return f"{scenario_id[:_SLUG_CHARACTERS_MAX]}-{hashlib.sha256(scenario_id.encode()).hexdigest()[:8]}"


def without_iteration(node_id: str) -> str:
    """Return the node id of a test without its iteration: the key of its randomness and replay.

    Not for a test that is run once: its own parameters may look like an iteration.

    >>> without_iteration("test_kill.py::test_kill[run-07-wal]")
    'test_kill.py::test_kill[wal]'
    """
    file, colons, name = node_id.partition("::")  # neither a folder's brackets nor a parameter's colons count
    function, bracket, parameters = name.partition("[")
    if not bracket or not parameters.endswith("]"):
        return node_id
    rest = re.sub(_ITERATION, "", parameters[:-1], count=1)
    return f"{file}{colons}{function}" + (f"[{rest}]" if rest else "")


def run_id(base: str, iteration: int) -> str:
    """Return a run's name, unique in a session and fit for a folder: slug, hash, iteration.

    ``base`` is the test's node id without iterations.
    """
    digest = hashlib.sha256(base.encode()).hexdigest()[:8]
    return f"{slug(base.rpartition('::')[2])[:_SLUG_CHARACTERS_MAX]}-{digest}-{iteration}"


def slug(text: str) -> str:
    """Return the text in small letters, digits and single dashes.

    >>> slug("Test Kill (9)")
    'test-kill-9'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "scenario"


def base_of(item: pytest.Item) -> str:
    """Return a test's node id without its iteration."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    return without_iteration(item.nodeid) if "_chaos_iteration" in parameters else item.nodeid


def iteration_of(item: pytest.Item) -> int:
    """Return the iteration of a test, from 0."""
    return int(getattr(getattr(item, "callspec", None), "params", {}).get("_chaos_iteration", 0))


def _early_iterations_first(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the items with the chaos runs in the order of their iterations, at the same places."""
    ordered = iter(sorted(filter(is_chaos, items), key=iteration_of))
    return [next(ordered) if is_chaos(item) else item for item in items]


def is_deep(item: Any) -> bool:
    """Whether a test, or the definition of several, is a thorough variant."""
    return item.get_closest_marker("chaos_deep") is not None


def is_marked_once(item: Any) -> bool:
    """Whether a test, or the definition of several, comes out the same in each iteration."""
    return item.get_closest_marker("chaos_once") is not None


def quick_forms(items: Iterable[pytest.Item]) -> set[str]:
    """Return the node id, without iterations, of one test of each scenario.

    It is the first one in the file that is not deep; in whatever order a plugin has put them.
    """
    first: dict[str, tuple[bool, str, int, list[int], str]] = {}
    for item in items:
        path, line, _ = item.location
        indices = getattr(getattr(item, "callspec", None), "indices", {})
        order = [index for name, index in indices.items() if name != "_chaos_iteration"]
        place = (is_deep(item), path, line or 0, order, base_of(item))
        scenario = scenario_of(item).id
        first[scenario] = min(place, first.get(scenario, place))
    return {base for *_, base in first.values()}


def longest_first(items: list[pytest.Item], took_s: Mapping[str, float]) -> list[pytest.Item]:
    """Return tests with the scenarios' runs in another order: the longest first.

    A long run that starts last keeps one worker busy while the others wait. ``took_s`` has the
    times of long runs, by node id without iterations; without any, deep runs count as long. An
    iteration is never before an earlier one, and other tests keep their places.
    """

    def key(item: pytest.Item) -> tuple[int, float]:
        known_s = took_s.get(base_of(item), 0.0) if took_s else float(is_deep(item))
        return iteration_of(item), -known_s

    ordered = iter(sorted(filter(is_chaos, items), key=key))
    return [next(ordered) if is_chaos(item) else item for item in items]


def is_chaos(item: pytest.Item) -> bool:
    """Whether a test is a run of a scenario."""
    return "chaos" in getattr(item, "fixturenames", ()) or item.get_closest_marker("chaos") is not None


def scenario_of(item: pytest.Item) -> Scenario:
    """Return the scenario of a test. Raises pytest.UsageError for a wrong marker."""
    marker = item.get_closest_marker("chaos")
    base = base_of(item)
    fallback = f"{Path(base.partition('::')[0]).stem}-{base.rpartition('::')[2]}"
    docstring = getattr(getattr(item, "function", None), "__doc__", None) or ""
    try:
        return from_marker(
            marker.args if marker else (), marker.kwargs if marker else {}, fallback=fallback, docstring=docstring
        )
    except UsageError as error:
        msg = f"{item.nodeid}: {error}"
        raise pytest.UsageError(msg) from error


WORKER_OUTPUT: Final = "chaos_mistake"
"""Key of a mistake in a worker's output: only workers collect."""


class Selection:
    """The hooks about collection."""

    def __init__(self, session: ChaosSession) -> None:
        """Select by the settings of this session."""
        self._session = session
        self._is_incomplete = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a module that cannot be collected: a missing scenario may be in it."""
        self._is_incomplete |= report.failed

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Select the tests that the options ask for, and check every marker before anything runs.

        A worker cannot show a mistake: it runs nothing, and the controller shows the mistake.
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
        if config.getoption("chaos_quick_forms") and self._session.replayed is None:
            forms = quick_forms(keep)
            keep = {item for item in keep if base_of(item) in forms}
        settings = self._session.settings
        narrow = settings.replay is not None or settings.scenarios
        self._check_suite(mine)
        self._session.elsewhere = frozenset(item for item in keep if self._is_elsewhere(item))
        keep -= self._session.elsewhere
        selected = [item for item in items if item in keep or (item not in mine and not narrow)]
        if settings.iterations > 1:
            selected = _early_iterations_first(selected)
        chosen = set(selected)
        if dropped := [item for item in items if item not in chosen]:
            config.hook.pytest_deselected(items=dropped)
        if selected != items:
            items[:] = selected
        if TOOK_S in self._session.given:
            items[:] = longest_first(items, self._session.given[TOOK_S])

    def _is_elsewhere(self, item: pytest.Item) -> bool:
        """Whether another shard has a run, or the session that goes on has made it."""
        settings, base, iteration = self._session.settings, base_of(item), iteration_of(item)
        if self._session.resumed is not None and (base, iteration) in self._session.resumed.made:
            return True
        return settings.shard is not None and not settings.shard.has(
            scenario_of(item).id, base, iteration, settings.seed
        )

    def _check_suite(self, mine: list[pytest.Item]) -> None:
        """Refuse to go on with a campaign of other tests, or of another program."""
        if self._session.resumed is None or self._is_incomplete:
            return
        from pytest_chaos.plugin.campaign.suite import Suite, difference, suite_of

        header = self._session.resumed.header
        then = Suite(header.suite, header.code, header.commit)
        if told := difference(then, suite_of(mine, self._session.config.rootpath)):
            msg = (
                f"--chaos-resume must go on with the suite and the program of the campaign; {told} since it began "
                f"({header.command}). Put that back, or begin a new campaign"
            )
            raise pytest.UsageError(msg)

    def _wanted(self, item: pytest.Item, scenario: Scenario) -> bool:
        if self._session.replayed is not None:
            return base_of(item) == self._session.replayed.node_id
        if self._session.settings.scenarios and scenario.id not in self._session.settings.scenarios:
            return False
        campaign = self._session.settings.iterations > 1
        return not (campaign and is_deep(item))

    def _check_selection(self, mine: list[pytest.Item], keep: set[pytest.Item]) -> None:
        if self._is_incomplete:  # pytest shows a module that could not be collected, which may be the reason
            return
        if self._session.replayed is not None and not keep:
            test = self._session.replayed.node_id
            msg = f"the test of the pack must be collected; got no {test}. Run pytest where the pack was made"
            raise pytest.UsageError(msg)
        known = {scenario_of(item).id for item in mine}
        if unknown := [name for name in self._session.settings.scenarios if name not in known]:
            there_are = ", ".join(sorted(known)) or "none"
            msg = f"--chaos-scenario must name a scenario here; got {unknown[0]!r}. There are: {there_are}"
            raise pytest.UsageError(msg)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Write the list of scenarios for ``--chaos-list-json``."""
        if target := self._session.config.getoption("chaos_list_json"):
            listed: dict[str, dict[str, Any]] = {}
            for item in filter(is_chaos, session.items):
                scenario = scenario_of(item)
                facts = {"id": scenario.id, "title": scenario.title, "why": scenario.why, "steps": list(scenario.steps)}
                listed.setdefault(scenario.id, {**facts, "tests": []})["tests"].append(item.nodeid)
            Path(target).write_text(json.dumps([listed[key] for key in sorted(listed)], indent=2))

    def pytest_report_collectionfinish(self, config: pytest.Config, items: list[pytest.Item]) -> list[str]:
        """Show the seed, if there are chaos runs."""
        if (
            self._session.is_worker
            or config.getoption("verbose") < 0
            or not (mine := [item for item in items if is_chaos(item)])
        ):
            return []
        count = len({scenario_of(item).id for item in mine})
        runs = f"{len(mine)} run{'s' if len(mine) != 1 else ''} of {count} scenario{'s' if count != 1 else ''}"
        return [f"chaos: seed {self._session.settings.seed}, {runs}; results in {shown(self._session.folder, config)}"]
