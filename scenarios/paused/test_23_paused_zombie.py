"""Scenario 23: a worker is stopped past its expiry, another takes over, the first wakes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from durable_agents import CheckpointManager, LeaseManager, TaskManager, WorkStatus
from durable_agents.once.crash_points import OncePoint
from pytest_chaos import after_mark, at_point, pause
from pytest_chaos.checkers import exactly_once

from scenarios.paused.libraries import JOB, LIBRARIES, NOTHING, jobs_of_procrastinate, outcomes_of_dbos
from scenarios.paused.postgres import READY
from scenarios.webhooks.world import WorldClock
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import LONG_S

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos import Agent, Run

pytestmark = pytest.mark.chaos(
    id="23-paused-zombie",
    title="Two workers, one stopped past its expiry and woken: the effects are counted",
    why="A suspended laptop, a swapped machine or a long collection stops a worker for longer than its lease.",
    steps=[
        "The first worker takes a job and is stopped, before its effect or after it.",
        "Its lease runs out, and a second worker takes the job over and does it.",
        "The first wakes and goes on.",
        "Ours has one effect. Other libraries are held to what each of them promises.",
    ],
)

TASK = "zombie"
ITERATIONS = 2
LEASED = "scenarios.paused.our_workers:work_leased"
CALLS = "scenarios.paused.our_workers:call_tool"
PUT = "scenarios.paused.foreign_workers:put"
WORK = "scenarios.paused.foreign_workers:work"
END_S = 120.0


def outcomes(chaos: Run) -> dict[str, str]:
    """Return how each worker says that it ended."""
    return {mark.agent: str(mark.value) for mark in chaos.history.select("note", "outcome")}


def let_a_zombie_wake(chaos: Run, first: Agent, second: Agent) -> None:
    """Let the second worker end while the first stands still, then wake the first."""
    second.wait_exit(timeout_s=END_S)
    first.resume()
    first.wait_exit(timeout_s=END_S)
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any worker")


@pytest.mark.parametrize("kind", ["intent", "ack"], ids=["before-its-effect", "before-its-record"])
def test_a_leased_item(chaos: Run, fresh_db: Path, parts: dict[str, str], kind: str) -> None:
    """A worker wakes when another has done its item: each iteration is recorded once."""
    with LeaseManager(db_path=fresh_db) as leases:
        TaskManager(leases.store).create(TASK)
        leases.enqueue(TASK, "work")
    given = {"database": str(fresh_db), "task_id": TASK, "iterations": ITERATIONS, "parts": parts}
    chaos.plan(pause("first", after_mark("iteration", kind=kind)))
    first = chaos.spawn(LEASED, kwargs={**given, "name": "first"}, name="first")
    first.wait_state("T")
    WorldClock(fresh_db.parent).advance(LONG_S)
    let_a_zombie_wake(chaos, first, chaos.spawn(LEASED, kwargs={**given, "name": "second"}, name="second"))

    with CheckpointManager(db_path=fresh_db) as saved, LeaseManager(saved.store) as leases:
        done = [each.snapshot["iteration"] for each in saved.list(TASK) if each.type == "iteration_end"]
        status = leases.get(1).status
    chaos.check(exactly_once.at_most(done, 1), expect="each iteration is recorded once")
    chaos.expect("iterations", observed=sorted(done), holds=set(done) == set(range(1, ITERATIONS + 1)))
    chaos.expect("the item", observed=status, holds=status is WorkStatus.COMPLETED)
    files = [path.read_text() for path in sorted(fresh_db.parent.glob("task-*/*/effect.txt"))]
    chaos.expect("who wrote the files", observed=files, holds=files == ["second"] * ITERATIONS)
    ended = outcomes(chaos)
    chaos.expect("how they ended", observed=ended, holds=ended == {"first": "lost", "second": "completed"})


def test_a_tool_call(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A caller wakes between its intent and its tool: another ran it, and the zombie does not."""
    world = chaos.directory / "world"
    world.mkdir()
    given = {"database": str(fresh_db), "world": str(world), "ledger": parts["ledger"]}
    chaos.plan(pause("first", at_point(OncePoint.BEFORE_EFFECT)))
    first = chaos.spawn(CALLS, kwargs=given, name="first")
    first.wait_state("T")
    WorldClock(fresh_db.parent).advance(LONG_S)
    let_a_zombie_wake(chaos, first, chaos.spawn(CALLS, kwargs=given, name="second"))

    effects = (world / "effects").read_text().split()
    chaos.check(exactly_once.at_most(effects, 1), expect="one effect")
    chaos.expect("effects", observed=effects, holds=set(effects) == {"0"})
    ended = outcomes(chaos)
    chaos.expect("how they ended", observed=ended, holds=ended == {"first": "lost", "second": "completed"})


@pytest.mark.nightly
@pytest.mark.parametrize("name", LIBRARIES)
def test_another_library(chaos: Run, name: str) -> None:
    """Each is held to what it documents: at least once is no violation where it is promised."""
    library = LIBRARIES[name]
    if missing := library.missing():
        pytest.skip(f"not installed: {missing}; pip install -e '.[targets]'")
    directory, effects = chaos.directory / "queue", chaos.directory / "effects"
    directory.mkdir()
    given = {"library": name, "directory": str(directory)}
    chaos.note("promise", {"library": name, "promise": library.promise, "source": library.source})
    chaos.plan(pause("first", after_mark("took")))
    server = chaos.spawn(command, name="server") if (command := library.server(directory)) else None
    if server is not None:
        server.wait_for_output(READY, timeout_s=END_S)
    chaos.spawn(PUT, kwargs=given, name="putter").wait_exit(timeout_s=END_S)

    def worker(name: str) -> Agent:
        return chaos.spawn(WORK, kwargs={**given, "effects": str(effects), "name": name}, name=name)

    first = worker("first")
    first.wait_state("T", timeout_s=END_S)
    let_a_zombie_wake(chaos, first, worker("second"))
    worker("third").wait_exit(timeout_s=END_S)

    done = effects.read_text().split()
    took = Counter(mark.agent for mark in chaos.history.acknowledged("took"))
    expected = {"first", "second"} if library.takes_over else {"first"}
    chaos.expect("who got the job", observed=sorted(took), holds=set(took) == expected)
    if library.effects_max is not None:
        chaos.check(exactly_once.at_most(done, library.effects_max), expect=library.promise)
    chaos.expect(
        f"effects, where it is promised: {library.promise}",
        observed=f"{len(done)} of {len(took)} deliveries",
        holds=set(done) == {JOB} and len(done) == len(took),
    )
    ended = outcomes(chaos)
    chaos.note("outcomes", ended)
    if name == "procrastinate":
        jobs = jobs_of_procrastinate(directory)
        chaos.expect("its job", observed=jobs, holds=jobs == ["succeeded, 2 attempts"])
    if server is not None:
        server.terminate()
        server.wait_exit(timeout_s=END_S)
    if name == "dbos":
        recorded = outcomes_of_dbos(directory)
        chaos.expect("recorded outcomes", observed=recorded, holds=recorded == ["SUCCESS"])
        told = {ended[agent].rpartition("outcome of ")[2] for agent in ("first", "second")}
        chaos.expect("one outcome is told to both", observed=ended, holds=len(told) == 2)
    else:
        chaos.expect("what a third finds", observed=ended["third"], holds=ended["third"] == NOTHING)
