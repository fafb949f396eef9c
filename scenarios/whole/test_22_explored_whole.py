"""Scenario 22: the parts of our own core, and the harness's own files, explored whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from scenarios.targets.agent_state import AgentState
from scenarios.whole.core_targets import PARTS, Scripted
from scenarios.whole.harness_targets import Evidence, Progress, Sessions
from scenarios.whole.several import Callers, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_chaos.plugin.explore_fixture import Explore

SCENARIO = pytest.mark.chaos(
    id="22-explored-whole",
    title="Our own core and our own files, killed, cut off from power and refused I/O at every step",
    why="A defect hides in the one step that no scenario thought of.",
    steps=[
        "Each part of the core plays a script of all that it promises, and each step is marked.",
        "It is killed at every durable step; nightly also in its recovery, by losses of power and by I/O errors.",
        "The model says which rows may be left of what was acknowledged and of what was under way.",
        "Several processes write one database, in several schedules; each of them is killed alone, too.",
        "The harness's own records, journal, packs, progress and baseline are explored in the same way.",
    ],
)
pytestmark = [SCENARIO, pytest.mark.chaos_once]  # one iteration shows all

OWN: Final[Mapping[str, Callable[[], object]]] = {
    "records": Sessions,
    "evidence": Evidence,
    "progress": Progress,
}
"""The harness's own files."""

OWN_IN_POWER: Final[Mapping[str, Callable[[], object]]] = {
    "records": lambda: Sessions(is_power=True),
    "evidence": lambda: Evidence(is_power=True),
    "progress": Progress,
}
"""What is not flushed may be lost in a loss of power, but must not pass for the whole."""


@pytest.mark.parametrize("name", PARTS)
def test_a_part_killed_at_every_step(explore: Explore, parts: dict[str, str], name: str) -> None:
    """What is left of a part is what the model allows."""
    explore(Scripted(name, parts), faults=("crash",), confirmations=1, jobs=2)


@pytest.mark.parametrize("name", OWN)
def test_our_own_files_killed_at_every_step(explore: Explore, name: str) -> None:
    """What the harness wrote is there, and can be read."""
    explore(OWN[name](), faults=("crash",), schedules=1, confirmations=1, jobs=2)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PARTS)
def test_a_part_under_everything(explore: Explore, parts: dict[str, str], name: str) -> None:
    """Crashes in the recovery, losses of power and I/O errors leave what the model allows."""
    explore(Scripted(name, parts), faults=("recovery", "power", "io"), samples=2, recoveries=8, io_runs=100, jobs=2)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_state_of_an_agent_under_everything(explore: Explore) -> None:
    """State, buffers, status files and the sync queue: an agent's own, and its next start."""
    explore(AgentState(), samples=2, recoveries=6, io_runs=60, jobs=2)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["workers", "callers"])
def test_several_processes_at_once(explore: Explore, parts: dict[str, str], name: str) -> None:
    """Two processes write one database: killed together, or one of them alone."""
    target = Workers(parts) if name == "workers" else Callers()
    explore(target, faults=("crash", "power", "io"), schedules=3, victim="each", samples=2, io_runs=60, jobs=2)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OWN)
def test_our_own_files_under_everything(explore: Explore, name: str) -> None:
    """No I/O error loses what was acknowledged; no loss of power leaves a rest that is believed."""
    explore(OWN[name](), faults=("io",), schedules=1, jobs=2)
    explore(OWN_IN_POWER[name](), faults=("power",), schedules=1, jobs=2)
