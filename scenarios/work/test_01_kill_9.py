"""Scenario 01: a writer of checkpoints is killed anywhere; acknowledged ones survive.

Another writer continues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import CHECKPOINT_CRASH_POINTS, TaskManager
from pytest_chaos import Finding, Run, after_mark, at_moment, at_point, kill, pause

from scenarios.work.checks import check_checkpoints, check_pragmas, only, read_rows

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.chaos(
    id="01-kill-9",
    title="A killed writer loses no acknowledged checkpoint",
    why="Out-of-memory kills, deployments and crashes end an agent between any two instructions.",
    steps=[
        "An agent writes checkpoints to one SQLite file and says before and after each that it does.",
        "It is killed: at each named point of a checkpoint, and at moments drawn from the seed.",
        "The file is opened: integrity, every acknowledged checkpoint once and whole, nothing half there, no hole.",
        "A new process goes on from the newest checkpoint to the end.",
    ],
)

TASK = "kill-9 'quoted'\nnaïve"
ITERATIONS = 8
MOMENTS = 20
MOMENTS_WITHIN_MIN = 15
MOMENT_WINDOW_S = 0.04
MOMENT_ITERATIONS = 1_000_000  # none is ever done: however late a moment comes, it comes in the middle
PAUSE_S = 0.2
WRITE = "scenarios.work.agents:write_checkpoints"
BESIDE = "scenarios.work.agents:write_beside"


def write(chaos: Run, database: Path, manager: str, *, until: int, name: str = "writer", task_id: str = TASK) -> None:
    """Start the writer and wait for its end, by itself or by a fault."""
    kwargs = {"database": str(database), "task_id": task_id, "until": until, "manager": manager}
    chaos.spawn(WRITE, kwargs=kwargs, name=name).wait_exit(timeout_s=30)


def survives_and_goes_on(
    chaos: Run, database: Path, manager: str, *, until: int = ITERATIONS, task_id: str = TASK
) -> None:
    """Check the files of the killed writer, let a new process continue, and check again."""
    chaos.check(
        check_checkpoints(chaos.history, database, task_id), expect="all acknowledged checkpoints after the kill"
    )
    newest = max((row.sequence_number for row in read_rows(database, task_id)[1]), default=0)
    write(chaos, database, manager, until=until, name="restarted", task_id=task_id)
    restarted = chaos.agent("restarted")
    chaos.expect("the restarted agent ends by itself", observed=restarted.state, holds=restarted.state == "exit code 0")
    resumed = [mark.key for mark in restarted.marks if mark.operation == "resumed"]
    chaos.expect("it goes on from the newest checkpoint", observed=f"{resumed} of {newest}", holds=resumed == [newest])
    rows = read_rows(database, task_id)[1]
    chaos.expect(
        "checkpoints in the end", observed=len(rows), holds=[row.iteration for row in rows] == [*range(1, until + 1)]
    )
    chaos.check(check_checkpoints(chaos.history, database, task_id), expect="all acknowledged checkpoints in the end")
    chaos.check(check_pragmas(chaos.history), expect="every writer has synchronous=FULL and WAL")


@pytest.fixture
def database(fresh_db: Path) -> Path:
    """Return a database that knows the task."""
    with TaskManager(db_path=fresh_db) as tasks:
        tasks.create(TASK)
    return fresh_db


def test_without_faults_every_crash_point_is_passed(chaos: Run, database: Path, manager: str) -> None:
    """Without faults nothing is lost, and every crash point is passed."""
    kwargs = {"database": str(database), "task_id": TASK, "until": ITERATIONS, "manager": manager}
    agent = chaos.spawn(WRITE, kwargs=kwargs, name="writer", trace_points="recovery.checkpoint.")
    agent.wait_exit()
    with chaos.clean_run():
        chaos.check(check_checkpoints(chaos.history, database, TASK), expect="all checkpoints without faults")
        chaos.check(check_pragmas(chaos.history), expect="every writer has synchronous=FULL and WAL")
    passed = dict.fromkeys(str(mark.key) for mark in chaos.history.select("note", "chaos.point"))
    chaos.note("crash_points", list(passed))
    chaos.expect("named crash points passed", observed=len(passed), holds=tuple(passed) == CHECKPOINT_CRASH_POINTS)


@pytest.mark.chaos_deep
@pytest.mark.parametrize("point", CHECKPOINT_CRASH_POINTS, ids=lambda point: point.rpartition(".")[2])
def test_killed_at_a_named_point(chaos: Run, database: Path, manager: str, point: str) -> None:
    """A writer that is killed at this point of its third checkpoint loses nothing acknowledged."""
    chaos.plan(kill("writer", at_point(point, occurrence=3)))
    chaos.note("crash_points", [point])
    write(chaos, database, manager, until=ITERATIONS)
    survives_and_goes_on(chaos, database, manager)


@pytest.mark.chaos_deep
def test_killed_at_moments_drawn_from_the_seed(chaos: Run, fresh_db: Path, manager: str) -> None:
    """A writer is killed at twenty moments; fifteen or more fall between intent and last ack."""
    names = [f"writer-{number}" for number in range(MOMENTS)]
    delays = chaos.random("moments")
    first = after_mark("checkpoint", kind="intent")
    chaos.plan(*(kill(name, at_moment(round(delays.random() * MOMENT_WINDOW_S, 6), after=first)) for name in names))
    findings: list[Finding | str] = []
    for name in names:
        with TaskManager(db_path=fresh_db) as tasks:
            tasks.create(name)
        write(chaos, fresh_db, manager, until=MOMENT_ITERATIONS, name=name, task_id=name)
        findings += check_checkpoints(only(chaos.history, name), fresh_db, name)
        newest = len(read_rows(fresh_db, name)[1])
        restarted = f"restarted-{name}"
        write(chaos, fresh_db, manager, until=newest + 2, name=restarted, task_id=name)
        resumed = [mark.key for mark in chaos.agent(restarted).marks if mark.operation == "resumed"]
        if resumed != [newest]:
            findings.append(f"the restarted agent did not go on from the newest checkpoint: {resumed}, not {newest}")
        findings += check_checkpoints(only(chaos.history, name, restarted), fresh_db, name)
    chaos.check(findings, expect=f"all acknowledged checkpoints after each of {MOMENTS} kills, and after going on")
    within = sum(chaos.agent(name).state == "signal 9" and acks(chaos, name) < MOMENT_ITERATIONS for name in names)
    chaos.note("kills between first intent and last ack", within)
    if within < MOMENTS_WITHIN_MIN:
        chaos.inconclusive(
            f"{within} of {MOMENTS} kills fell between first intent and last ack, not {MOMENTS_WITHIN_MIN}"
        )


def acks(chaos: Run, name: str) -> int:
    """Count the checkpoints that were acknowledged to an agent."""
    return len(chaos.history.acknowledged("checkpoint", name))


def test_killed_at_a_point_and_at_a_moment(chaos: Run, database: Path, manager: str) -> None:
    """The quick form: one kill at a point and one at a moment, both drawn from the seed,
    on one task.
    """
    drawn = chaos.random("quick")
    point = CHECKPOINT_CRASH_POINTS[int(drawn.random() * len(CHECKPOINT_CRASH_POINTS))]
    moment = at_moment(round(drawn.random() * MOMENT_WINDOW_S / 4, 6), after=after_mark("checkpoint", kind="intent"))
    chaos.plan(kill("writer", at_point(point, occurrence=1 + int(drawn.random() * 4))), kill("second", moment))
    chaos.note("crash_points", [point])
    write(chaos, database, manager, until=ITERATIONS)
    chaos.check(check_checkpoints(chaos.history, database, TASK), expect="all acknowledged checkpoints after the kill")
    write(chaos, database, manager, until=MOMENT_ITERATIONS, name="second")
    survives_and_goes_on(chaos, database, manager, until=len(read_rows(database, TASK)[1]) + 2)


def test_paused_between_number_and_insert(chaos: Run, database: Path, manager: str) -> None:
    """A writer is stopped after it took a number, while another writes to the same task.

    No number is given twice.
    """
    chaos.plan(pause("writer", at_point("recovery.checkpoint.after_number", occurrence=2), duration_s=PAUSE_S))
    kwargs = {"database": str(database), "task_id": TASK, "manager": manager}
    writer = chaos.spawn(WRITE, kwargs={**kwargs, "until": ITERATIONS}, name="writer")
    writer.wait_state("T")
    beside = chaos.spawn(BESIDE, kwargs={**kwargs, "count": 3}, name="beside")
    for agent in (beside, writer):
        agent.wait_exit()
        chaos.expect(f"{agent.name} ends by itself", observed=agent.state, holds=agent.state == "exit code 0")
    chaos.check(check_checkpoints(chaos.history, database, TASK), expect="each checkpoint once, though two wrote")
