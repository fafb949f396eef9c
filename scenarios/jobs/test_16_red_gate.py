"""Scenario 16: a red gate is silence, for thousands of ticks; once green, the task moves."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from typing import TYPE_CHECKING

import pytest
from durable_agents import JobClaim, JobQueue, TaskManager
from durable_agents.jobs.gates import HUNG_MAX
from pytest_chaos import Finding, at_every_point, kill, pause

from scenarios.jobs.job_checks import alerts, check_stages
from scenarios.model.ways import check_ways
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE, outlive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos import Fault, Run

pytestmark = pytest.mark.chaos(
    id="16-red-gate",
    title="A red gate is silence: no advance, no notification, not a row",
    why="What looks every few seconds and says something each time fills logs, chats and disks, and is ignored.",
    steps=[
        "Tasks wait behind a red gate, one with a job that is being finalised; two processes look thousands of times.",
        "Nothing moves, nobody is told, and the file of the database is what it was, byte for byte.",
        "The gate turns green, and each task moves once.",
        "For one task it hangs: it is red for that one, and for no other.",
    ],
)

POLL = "scenarios.jobs.job_agents:poll"
TASKS = [f"task-{number}" for number in range(4)]
GATE_TIMEOUT_S = 0.2
"""How long a gate that hangs is waited for: what answers at all does so at once."""


def wait_behind_a_red_gate(database: Path) -> None:
    """Leave tasks in build behind a red gate.

    The last one has a job with an exit code, and a monitor that is within its grace.
    """
    (database.parent / "red").touch()
    with JobQueue(db_path=database) as queue:
        for task in TASKS:
            TaskManager(queue.store).create(task, stage="build")
        queue.enqueue("builder", task_id=TASKS[-1])
        job = queue.claim()
        assert job is not None
        queue.record_exit(JobClaim(job.job_id, job.claim), 0)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def content(database: Path) -> str:
    """Return a digest of the database's file and its log: any write would change it."""
    digest = hashlib.sha256(database.read_bytes())
    log = database.with_name(f"{database.name}-wal")
    digest.update(log.read_bytes() if log.exists() else b"")
    return digest.hexdigest()


def check_silence(before: str, after: str, told: list[str], moved: int) -> Iterator[Finding]:
    """Find changes that were made behind a red gate."""
    for signature, is_wrong, text in (
        ("silence:rows-written", before != after, "the files of the database have changed"),
        ("silence:notified", bool(told), f"somebody was told: {told[:10]}"),
        ("silence:advanced", bool(moved), f"{moved} advances through a red gate"),
    ):
        if is_wrong:
            yield Finding(signature=signature, text=text, checker="check_silence")


def look_many_times(chaos: Run, database: Path, parts: dict[str, str], looks: int) -> None:
    """Let two processes tick, and judge before and after the gate turns green."""
    wait_behind_a_red_gate(database)
    before = content(database)
    kwargs = {"database": str(database), "parts": parts, "task_ids": TASKS, "looks": looks}
    agents = [chaos.spawn(POLL, kwargs=kwargs, name=f"poller-{number}") for number in range(2)]
    said = [agent.wait_for("polled", timeout_s=100)[0].value for agent in agents]
    moved = sum(value["moved"] for value in said)
    seen = sum(value["looks"] for value in said) * len(TASKS)
    chaos.expect("looks at a red gate", observed=seen, holds=seen == 2 * looks * len(TASKS))
    told = alerts(database.parent)
    chaos.check(check_silence(before, content(database), told, moved), expect="silence while the gate is red")
    (database.parent / "red").unlink()
    chaos.spawn(POLL, kwargs={**kwargs, "looks": 1}, name="green").wait_exit()
    chaos.check(check_stages(database, TASKS), expect="each task moves once when the gate is green")
    chaos.check(check_ways(database), expect="each row is on a way that the model allows")
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


def test_hundreds_of_looks(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The quick form."""
    look_many_times(chaos, fresh_db, parts, 150)


def test_a_gate_hangs_for_one_task(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A gate that hangs for one task still answers for the others.

    When it no longer hangs, it answers for all.
    """
    with JobQueue(db_path=fresh_db) as queue:
        for task in TASKS:
            TaskManager(queue.store).create(task, stage="build")
    hanging, *others = TASKS
    hang = fresh_db.with_name(f"hang-{hanging}")
    hang.touch()
    asked = [hanging] * (2 * HUNG_MAX) + others
    kwargs = {"database": str(fresh_db), "parts": parts, "task_ids": asked, "looks": 3}
    poller = chaos.spawn(POLL, kwargs={**kwargs, "gate_timeout_s": GATE_TIMEOUT_S}, name="poller")
    said = poller.wait_for("polled", timeout_s=100)[0].value
    poller.wait_exit()
    chaos.check(check_stages(fresh_db, others), expect="a gate that hangs for one task is green for the others")
    chaos.check(check_stages(fresh_db, [hanging], moved=False), expect="what does not answer moves nothing")
    chaos.expect("nobody is told", observed=said["told"], holds=not said["told"])
    hang.unlink()
    chaos.spawn(POLL, kwargs={**kwargs, "looks": 1}, name="green").wait_exit()
    chaos.check(check_stages(fresh_db, TASKS), expect="each task moves once when the gate has come back")
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


@pytest.mark.chaos_deep
def test_thousands_of_looks(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Two processes, four tasks, eight thousand evaluations and two thousand
    looks of a reaper.
    """
    look_many_times(chaos, fresh_db, parts, 1000)


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_poller_stops_at_every_point(
    chaos: Run, fresh_db: Path, parts: dict[str, str], fault: Callable[..., Fault]
) -> None:
    """Wherever a poller stands still or dies at a green gate, another one moves each task, once."""
    chaos.plan(at_every_point("zombie", fault, points="recovery.*", sample=SAMPLE))
    with JobQueue(db_path=fresh_db) as queue:
        for task in TASKS:
            TaskManager(queue.store).create(task, stage="build")
    kwargs = {"database": str(fresh_db), "parts": parts, "task_ids": TASKS, "looks": 2}
    zombie = chaos.spawn(POLL, kwargs=kwargs, name="zombie")
    outlive(chaos, zombie, lambda: [chaos.spawn(POLL, kwargs=kwargs, name="other")], database=fresh_db)
    chaos.check(check_stages(fresh_db, TASKS), expect="each task moves once")
    chaos.check(check_ways(fresh_db), expect="each row is on a way that the model allows")
    moved = sum(mark.value["moved"] for mark in chaos.history.acknowledged("polled"))
    chaos.expect("moves, both pollers together", observed=moved, holds=moved <= len(TASKS))
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")
