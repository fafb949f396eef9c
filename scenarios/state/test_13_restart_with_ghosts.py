"""Scenario 13: an agent restarts among workspaces with dead, living and missing executors."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import ARTIFACT_CRASH_POINTS, Roots, StateCrashPoint, StateStore, Workspaces, WorkspaceStatus
from durable_agents.processes import start_of
from durable_agents.state.buffers import BufferOwner
from durable_agents.state.status_files import WorkspaceState
from pytest_chaos import at_every_point, at_point, kill, pause
from pytest_chaos.model.plan import after_mark

from scenarios.limits import ask_limits
from scenarios.model.states import Moment
from scenarios.model.workspaces import TORN, Workspaces as WorkspaceModel
from scenarios.state.state_agents import HALF
from scenarios.state.state_checks import Expected, check_workspaces, read_group
from scenarios.targets.agent_state import SOUND, AgentState
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE, outlive, waits_or_has_ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos import Agent, Fault, Run
    from pytest_chaos.plugin.explore_fixture import Explore

pytestmark = pytest.mark.chaos(
    id="13-restart-with-ghosts",
    title="After a restart the dead have failed and the living go on",
    why="A restart of the agent does not end the work it started, and does not bring back what died meanwhile.",
    steps=[
        "Workspaces say that they run: their executors are dead, alive, stopped, zombies, or another process by now.",
        "Some status files are half-written, some say otherwise than the store, some lead elsewhere.",
        "The agent starts; it is killed at each named point of its start and starts again.",
        "Ghosts have failed in the registry and on disk, the living run, files win, nothing outside is touched.",
    ],
)

EXECUTE = "scenarios.state.state_agents:execute"
ZOMBIE = "scenarios.state.state_agents:execute_and_leave_a_zombie"
TEAR = "scenarios.state.state_agents:write_by_halves"
START = "scenarios.state.state_agents:start_up"
TRACK = "scenarios.state.state_agents:track"

POINTS = (
    *StateCrashPoint.of("startup"),
    *StateCrashPoint.of("hydrate"),
    *ARTIFACT_CRASH_POINTS,
    *StateCrashPoint.of("orphans"),
)
NOW = Moment(0, 0)


class Folder:
    """One agent's folder, and what a start must make of it, by the model."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.roots = Roots(str(root))
        self.roots.make()
        self.model = WorkspaceModel()

    def file(self, name: str) -> Path:
        """Return the status file of a workspace, in a folder that is there."""
        file = self.roots.workspaces / name / "status.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    @property
    def expected(self) -> dict[str, Expected]:
        """What each workspace must be after a start."""
        after = copy.deepcopy(self.model)
        after.start(NOW)
        return {
            name: Expected(
                each.stored,
                each.file,
                is_live=each.lives,
                file_wins=self.model.workspaces[name].stored not in {None, each.stored},
            )
            for name, each in after.workspaces.items()
        }

    def lay(self, name: str, *, lives: bool = False, **fields: Any) -> None:
        """Make a workspace whose file says that it runs; the store does not know of it."""
        number = 1 + len(self.model.workspaces)
        status = {"status": "running", "agent": "codex:gpt-5.4", "started_at": number, **fields}
        self.file(name).write_text(json.dumps(status))
        self.model.lay(NOW, name, file="running", lives=lives)

    def lay_others(self) -> None:
        """Make workspaces that wait, that only the store has, that differ, and invalid files."""
        outside = self.root.parent / f"outside-{self.root.name}.json"
        outside.write_text('{"status": "running", "pid": 0, "agent": "elsewhere"}')
        with StateStore(db_path=self.roots.database) as state:
            workspaces = Workspaces(self.roots, state)
            workspaces.track("org/waits", WorkspaceStatus(status=WorkspaceState.QUEUED, agent="claude", repo="r"))
            workspaces.track("org/changed", WorkspaceStatus(status=WorkspaceState.QUEUED, agent="claude"))
            workspaces.track("org/torn", WorkspaceStatus(status=WorkspaceState.RUNNING, agent="codex", pid=0))
            state.set("registry", "org/stored", {"status": "running", "agent": "codex", "pid": 0})
            state.set("registry", "org/linked", {"status": "running", "agent": "codex", "pid": 0})
            state.set("concurrency", "gone", {"running": 3})
        self.file("org/changed").write_text('{"status": "completed", "agent": "claude"}')
        self.file("org/torn").write_bytes(b'{"status": "run')
        self.file("org/linked").symlink_to(outside)
        self.model.lay(NOW, "org/waits", file="queued", stored="queued")
        self.model.lay(NOW, "org/changed", file="completed", stored="queued")
        self.model.lay(NOW, "org/torn", file=TORN, stored="running")
        self.model.lay(NOW, "org/stored", stored="running")
        self.model.lay(NOW, "org/linked", file="running", stored="running", is_ours=False)
        dead = BufferOwner("qa", "0" * 16 + "-" + "a" * 12, 4_194_305, "00000000-0000-0000-0000-000000000000:1")
        (self.roots.buffers / f"{dead.stem}.buffer").write_bytes(b"")
        (self.roots.buffers / "nobody's.buffer").write_bytes(b"")

    def outside(self) -> str:
        """Return the content of the file outside, to which a status file links."""
        return (self.root.parent / f"outside-{self.root.name}.json").read_text()


def executor(chaos: Run, name: str, target: str = EXECUTE) -> dict[str, Any]:
    """Start an executor, and return the fields of a status file that name it."""
    (mark,) = chaos.spawn(target, name=name).wait_for("executor")
    value: dict[str, Any] = mark.value
    return value


def lay_executors(chaos: Run, folder: Folder) -> None:
    """Start executors of every kind, and make their workspaces.

    The plan kills ``dead`` and stops ``stopped``.
    """
    live = executor(chaos, "live")
    folder.lay("org/live", lives=True, **live)
    folder.lay("org/dead", **executor(chaos, "dead"))
    chaos.agent("dead").wait_exit()
    folder.lay("org/stopped", lives=True, **executor(chaos, "stopped"))
    chaos.agent("stopped").wait_state("T")
    zombie = executor(chaos, "parent", ZOMBIE)
    state = Path(f"/proc/{zombie['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    chaos.expect("the zombie is one", observed=state, holds=state == "Z")
    folder.lay("org/zombie", **zombie)
    folder.lay("org/reused", pid=live["pid"], pid_start="00000000-0000-0000-0000-000000000000:1")
    folder.lay("org/zero", pid=0)
    folder.lay("org/missing")


def start(chaos: Run, folder: Folder, parts: dict[str, str], name: str = "agent") -> Agent:
    """Start an agent on the folder."""
    return chaos.spawn(START, kwargs={"root": str(folder.root), "parts": parts}, name=name)


def judge(chaos: Run, folder: Folder, what: str = "the state after the start") -> None:
    """Expect the right files, registry, queue and counts, and no other change."""
    chaos.check(check_workspaces(folder.root, folder.expected), expect=what)
    if "org/linked" in folder.expected:
        text = folder.outside()
        chaos.expect(f"{what}: outside nothing is touched", observed=text, holds='"running"' in text)
    strays = sorted(path.name for path in folder.roots.workspaces.rglob(".unfinished-*"))
    chaos.expect(f"{what}: files that writers left", observed=strays, holds=strays == [])


def executors_plan(chaos: Run) -> None:
    """Plan the end of one executor and the pause of another."""
    chaos.plan(kill("dead", after_mark("executor")), pause("stopped", after_mark("executor")))


def test_executors_of_every_kind(chaos: Run, parts: dict[str, str]) -> None:
    """A start judges executors of every kind, in the registry and on disk.

    They are dead, alive, stopped, zombies, have a reused pid, pid 0, or no pid.
    """
    executors_plan(chaos)
    folder = Folder(chaos.directory / "root")
    lay_executors(chaos, folder)
    folder.lay_others()
    agent = start(chaos, folder, parts)
    (found,) = agent.wait_for("start-up")
    agent.wait_exit()
    ghosts = sorted(name for name, wanted in folder.expected.items() if wanted.registry == "failed")
    chaos.expect("ghosts", observed=found.value["ghosts"], holds=sorted(found.value["ghosts"]) == ghosts)
    live = sorted(found.value["live"])
    chaos.expect("the living", observed=live, holds=live == ["org/live", "org/stopped"])
    rows = read_group(folder.root, "dispatch_history")
    running = sum(name.startswith("org/") and wanted.registry is not None for name, wanted in folder.expected.items())
    chaos.expect("dispatches in the history", observed=len(rows), holds=0 < len(rows) < running)
    judge(chaos, folder)
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


def test_started_twice(chaos: Run, parts: dict[str, str]) -> None:
    """The second start finds nothing to fail and leaves every file byte for byte."""
    executors_plan(chaos)
    folder = Folder(chaos.directory / "root")
    lay_executors(chaos, folder)
    folder.lay_others()
    start(chaos, folder, parts, "first").wait_exit()
    before = {path: path.read_bytes() for path in folder.roots.workspaces.rglob("*.json*")}
    again = start(chaos, folder, parts, "second")
    (found,) = again.wait_for("start-up")
    again.wait_exit()
    after = {path: path.read_bytes() for path in folder.roots.workspaces.rglob("*.json*")}
    chaos.expect("ghosts of the second start", observed=found.value["ghosts"], holds=found.value["ghosts"] == [])
    chaos.expect("files that the second start changed", observed=len(before) - len(after), holds=before == after)
    judge(chaos, folder)


def test_two_starts_at_once(chaos: Run, parts: dict[str, str]) -> None:
    """Of two starts at once, the second waits for the first, and fails no ghost again.

    The first is stopped in the middle.
    """
    chaos.plan(pause("first", at_point("recovery.hydrate.after_read")))
    folder = Folder(chaos.directory / "root")
    folder.lay_others()
    folder.lay("org/zero", pid=0)
    first = start(chaos, folder, parts, "first")
    first.wait_state("T")
    second = start(chaos, folder, parts, "second")
    chaos.wait_until(lambda: waits_or_has_ended(second), what="the second to wait for the first, or not to")
    first.resume()
    for agent in (first, second):
        agent.wait_exit()
    found = {mark.agent: mark.value["ghosts"] for mark in chaos.history.acknowledged("start-up")}
    ghosts = sorted(name for name, wanted in folder.expected.items() if wanted.registry == "failed")
    chaos.expect("ghosts of the first", observed=found["first"], holds=sorted(found["first"]) == ghosts)
    chaos.expect("ghosts of the second", observed=found["second"], holds=found["second"] == [])
    judge(chaos, folder)
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


def test_a_status_file_is_half_written(chaos: Run, parts: dict[str, str]) -> None:
    """A start replaces a status file that a killed program left half-written."""
    chaos.plan(kill("writer", at_point(HALF)))
    folder = Folder(chaos.directory / "root")
    folder.lay_others()
    file = folder.file("org/waits")
    content = file.read_text()
    chaos.spawn(TEAR, kwargs={"file": str(file), "content": content}, name="writer").wait_exit()
    torn = file.read_bytes()
    chaos.expect("the file is half there", observed=len(torn), holds=0 < len(torn) < len(content))
    agent = start(chaos, folder, parts)
    agent.wait_exit()
    judge(chaos, folder)
    kept = file.with_name("status.json.damaged").read_bytes()
    chaos.expect("what was half there is kept", observed=len(kept), holds=kept == torn)


def lay_killed(chaos: Run, name: str, number: int) -> Folder:
    """Make a folder in which a start passes every named point."""
    folder = Folder(chaos.directory / f"root-{number}-{name}")
    folder.lay("org/dead", pid=0)
    me = chaos.agent("live").pid
    folder.lay("org/live", lives=True, pid=me, pid_start=start_of(me))
    folder.lay_others()
    return folder


def killed_and_repeated(chaos: Run, parts: dict[str, str], points: tuple[str, ...]) -> None:
    """Kill one start at each point, let another follow, and expect one final state."""
    victims = {f"killed-{number}": point for number, point in enumerate(points)}
    chaos.plan(*(kill(name, at_point(point)) for name, point in victims.items()))
    chaos.note("crash_points", list(points))
    executor(chaos, "live")
    folders = {name: lay_killed(chaos, name, number) for number, name in enumerate(victims)}
    for name, folder in folders.items():
        start(chaos, folder, parts, name).wait_exit()
        start(chaos, folder, parts, f"after-{name}").wait_exit()
        judge(chaos, folder, f"killed at {victims[name]}")
        left = sorted(path.name for path in folder.roots.buffers.rglob("*.buffer"))
        chaos.expect(f"{name}: buffers that are left", observed=left, holds=left == ["nobody's.buffer"])
        dispatches = len(read_group(folder.root, "dispatch_history"))
        chaos.expect("dispatches in the history", observed=dispatches, holds=dispatches == DISPATCHES)
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


DISPATCHES = 5
"""Of those that ``lay_killed`` lays: whatever runs, as its file says or the store,
has been dispatched once.
"""


def test_a_start_killed_at_points_drawn_from_the_seed(chaos: Run, parts: dict[str, str]) -> None:
    """The quick form: four of the named points."""
    drawn = chaos.random("points")
    killed_and_repeated(chaos, parts, tuple(sorted(POINTS, key=lambda _: drawn.random())[:4]))


@pytest.mark.chaos_deep
def test_a_start_killed_at_every_named_point(chaos: Run, parts: dict[str, str]) -> None:
    """All of them, each on a folder of its own."""
    killed_and_repeated(chaos, parts, POINTS)


@pytest.mark.parametrize(
    "point", [*StateCrashPoint.of("workspace"), *ARTIFACT_CRASH_POINTS], ids=lambda point: point.split(".", 1)[1]
)
def test_an_agent_killed_while_it_tracks(chaos: Run, parts: dict[str, str], point: str) -> None:
    """An agent that is killed while it tracks has changed all or nothing.

    After the next start, file, registry, queue and counts agree.
    """
    chaos.plan(kill("tracker", at_point(point, occurrence=2)))
    executor(chaos, "live")
    folder = Folder(chaos.directory / "root")
    running = {"status": "running", "agent": "codex:x", "pid": chaos.agent("live").pid, "started_at": 5}
    statuses = {"org/a": running, "org/b": running | {"started_at": 6}}
    kwargs = {"root": str(folder.root), "statuses": statuses, "parts": parts}
    chaos.spawn(TRACK, kwargs=kwargs, name="tracker").wait_exit()
    start(chaos, folder, parts).wait_exit()
    tracked = {str(mark.key) for mark in chaos.history.acknowledged("track")}
    there = read_group(folder.root, "registry")
    chaos.expect("tracked and there", observed=sorted(there), holds=tracked <= set(there) <= set(statuses))
    for name in there:
        folder.model.lay(NOW, name, file="running", lives=True)
    judge(chaos, folder, "after the start")
    rows = sorted(row["workspace"] for row in read_group(folder.root, "dispatch_history").values())
    chaos.expect("one dispatch of each in the history", observed=rows, holds=rows == sorted(there))


def explored(parts: dict[str, str]) -> AgentState:
    """Return an agent that does each of its operations once.

    A planted defect may stand in the place of a part.
    """
    return AgentState(**{name: parts[name] for name, sound in SOUND.items() if parts[name] != sound})


def test_a_crash_at_every_step_of_an_agent(explore: Explore, parts: dict[str, str]) -> None:
    """After a crash at any durable step and a start, everything acknowledged is there."""
    explore(explored(parts), faults=("crash",))


@pytest.mark.chaos_deep
def test_power_loss_io_errors_and_crashes_of_the_start(explore: Explore, parts: dict[str, str]) -> None:
    """Power is lost, calls fail, and the start after a crash dies at each step."""
    samples, recoveries, io_runs = (4, 6, 60) if os.environ.get("CHAOS_NIGHTLY") == "1" else (2, 3, 30)
    explore(
        explored(parts),
        faults=("recovery", "power", "io"),
        jobs=2,
        samples=samples,
        recoveries=recoveries,
        io_runs=io_runs,
    )


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_start_stops_at_every_point(chaos: Run, parts: dict[str, str], fault: Callable[..., Fault]) -> None:
    """Wherever a start stands still or dies, the next one waits for it, or does its work."""
    chaos.plan(at_every_point("first", fault, points="recovery.*", sample=SAMPLE))
    executor(chaos, "live")
    folder = lay_killed(chaos, "swept", 0)
    outlive(
        chaos,
        start(chaos, folder, parts, "first"),
        lambda: [start(chaos, folder, parts, "second")],
        database=folder.roots.database,
        waits=waits_or_has_ended,
    )
    chaos.agent("second").wait_exit()
    judge(chaos, folder)
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


def test_what_is_promised_at_a_bound(chaos: Run) -> None:
    """Bounds count at their value; defaults are as promised; one decision is one transaction."""
    ask_limits(chaos, "state")
