"""Scenario 07: a task of ten iterations is killed and restarted repeatedly, and succeeds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from durable_agents import (
    ARTIFACT_CRASH_POINTS,
    CHECKPOINT_CRASH_POINTS,
    WORKER_CRASH_POINTS,
    Artifacts,
    CheckpointManager,
    LeaseManager,
    TaskManager,
)
from pytest_chaos import Finding, at_every_point, at_point, kill, pause

from scenarios.model.ways import check_ways
from scenarios.work.checks import check_no_exceptions
from scenarios.work.worker_agents import EFFECT, content_of
from scenarios.zombies import SAMPLE, outlive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos import Agent, History, Run

pytestmark = pytest.mark.chaos(
    id="07-end-to-end",
    title="A task that is killed again and again ends in success, each effect once",
    why="This is what a user of agents sees: work that takes long, on machines that die, and a result in the end.",
    steps=[
        "A worker claims a task of ten iterations; each writes a file and a checkpoint with the file as its evidence.",
        "It is killed at points drawn from the seed, in worker, checkpoint and artifact, and restarted each time.",
        "The task succeeds; each effect is there once and whole; no iteration that was checkpointed is done again.",
    ],
)

TASK = "end-to-end"
ITERATIONS = 10
TTL_S = 0.2
"""Short, since it is waited for after each kill;
a machine that stands still for longer than it costs a retry.
"""

STALLS_MAX = 50
WORK = "scenarios.work.worker_agents:work_to_the_end"
ONCE = WORKER_CRASH_POINTS[:3]
POINTS = (*WORKER_CRASH_POINTS[:-2], *CHECKPOINT_CRASH_POINTS, *ARTIFACT_CRASH_POINTS)
"""Where it is killed; the last points of a worker are passed once in all,
so a kill there is a run of its own.
"""


def run_to_success(chaos: Run, database: Path, parts: dict[str, str], kills: int) -> None:
    """Start the worker, restart it after each kill, and judge the files in the end."""
    worker = start(chaos, database, parts, kills)
    while worker.wait_exit(timeout_s=30).signal is not None:
        worker = worker.restart()
    judge(chaos, database, worker, kills)


def start(chaos: Run, database: Path, parts: dict[str, str], kills: int) -> Agent:
    """Make the task with its one item, and start the worker."""
    (chaos.directory / "artifacts").mkdir()
    with LeaseManager(db_path=database) as leases:
        TaskManager(leases.store).create(TASK)
        leases.enqueue(TASK, "work", max_retries=kills + STALLS_MAX)
    return start_one(chaos, database, parts, "worker")


def start_one(chaos: Run, database: Path, parts: dict[str, str], name: str) -> Agent:
    """Start a worker on the task that is there."""
    folder = chaos.directory / "artifacts"
    kwargs = {"database": str(database), "folder": str(folder), "task_id": TASK, "iterations": ITERATIONS}
    return chaos.spawn(WORK, kwargs={**kwargs, "ttl_s": TTL_S, "parts": parts}, name=name)


def judge(chaos: Run, database: Path, worker: Agent, kills: int) -> None:
    """Expect success, each effect once, few attempts, and evidence that holds.

    No iteration with a checkpoint was repeated.
    """
    folder = chaos.directory / "artifacts"
    chaos.expect("the last worker ends by itself", observed=worker.state, holds=worker.state == "exit code 0")
    with CheckpointManager(db_path=database, artifacts=Artifacts(folder)) as checkpoints:
        status = TaskManager(checkpoints.store).get(TASK).status
        recovery = checkpoints.latest_verified(TASK, type="iteration_end")
    chaos.expect("status of the task", observed=status, holds=status == "succeeded")
    chaos.check(check_ways(database), expect="each row is on a way that the model allows")
    newest = recovery.checkpoint.snapshot["iteration"] if recovery.checkpoint else None
    chaos.expect("newest checkpoint whose artifact verifies", observed=newest, holds=newest == ITERATIONS)
    total = recovery.checkpoint.snapshot["state"]["sum"] if recovery.checkpoint else None
    chaos.expect("state carried through all iterations", observed=total, holds=total == sum(range(1, ITERATIONS + 1)))
    chaos.check(check_effects(folder), expect=f"each of {ITERATIONS} effects once and whole")
    lost = len(chaos.history.select("note", "lost"))
    chaos.note("leases_lost_to_stalls", lost)
    chaos.check(
        check_attempts(chaos.history, kills + lost), expect="attempts within bounds, nothing checkpointed repeated"
    )
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")
    attempts = len(chaos.history.select("intent", "iteration"))
    chaos.note("attempts", attempts)
    killed = sum(receipt.fired and receipt.kind == "kill" for receipt in chaos.receipts)
    chaos.expect("kills survived", observed=killed, holds=killed == kills)


def check_effects(folder: Path) -> Iterator[Finding]:
    """Find effects that are missing, torn, or under another name."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for number in range(1, ITERATIONS + 1):
        content = found.pop(f"task-{TASK}/{number:06d}/{EFFECT}", None)
        if content != content_of(number):
            text = f"the effect of iteration {number} is {'missing' if content is None else 'not whole'}"
            yield Finding(signature="effects:missing-or-torn", text=text, checker="check_effects")
    for name in found:
        if not Path(name).name.startswith("."):  # what a kill leaves of a file that was never renamed
            yield Finding(
                signature="effects:invented", text=f"nobody should have written {name}", checker="check_effects"
            )


def check_attempts(history: History, kills: int) -> Iterator[Finding]:
    """Find iterations that were attempted too often, or again after the next one had begun.

    ``kills`` counts what interrupted the work: kills, and stalls of the machine that outlasted a
    lease. One that lost its lease between its look at it and the iteration cannot know that others
    went on: that iteration is not counted as repeated.
    """
    intents = history.select("intent", "iteration")
    unknowing = {
        max((mark.order for mark in intents if mark.agent == lost.agent and mark.order < lost.order), default=None)
        for lost in history.select("note", "lost")
    }
    for number, count in Counter(mark.key for mark in intents).items():
        if count > 1 + kills:
            text = f"iteration {number} was attempted {count} times with {kills} kills"
            yield Finding(signature="attempts:too-many", text=text, checker="check_attempts")
    furthest = 0
    for mark in intents:
        number = int(mark.key or 0)
        if number < furthest and mark.order not in unknowing:
            text = f"iteration {number} was done again after iteration {furthest} had begun"
            yield Finding(signature="attempts:checkpointed-work-repeated", text=text, orders=(mark.order,))
        furthest = max(furthest, number)


def plan_kills(chaos: Run, count: int) -> None:
    """Draw so many kills, each of which ends one incarnation.

    What is passed in each iteration is met at its second passing, so that every incarnation gets
    further than the last.
    """
    drawn = chaos.random("kills")
    points = sorted(POINTS, key=lambda _: drawn.random())[:count]
    chaos.plan(*(kill("worker", at_point(point, occurrence=1 if point in ONCE else 2)) for point in points))
    chaos.note("crash_points", points)


def test_killed_twice(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The quick form: two kills at points drawn from the seed."""
    plan_kills(chaos, 2)
    run_to_success(chaos, fresh_db, parts, 2)


@pytest.mark.chaos_deep
def test_killed_six_times(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Six kills, anywhere in worker, checkpoint and artifact."""
    plan_kills(chaos, 6)
    run_to_success(chaos, fresh_db, parts, 6)


@pytest.mark.chaos_deep
@pytest.mark.parametrize("point", WORKER_CRASH_POINTS[-2:], ids=lambda point: point.rpartition(".")[2])
def test_killed_at_the_very_end(chaos: Run, fresh_db: Path, parts: dict[str, str], point: str) -> None:
    """The worker is killed after all work, before or after its end is recorded."""
    chaos.plan(kill("worker", at_point(point)))
    chaos.note("crash_points", [point])
    run_to_success(chaos, fresh_db, parts, 1)


def test_an_artifact_is_lost(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The artifact of the newest checkpoint is lost: the worker falls back one iteration."""
    chaos.plan(kill("worker", at_point("recovery.worker.after_checkpoint", occurrence=4)))
    worker = start(chaos, fresh_db, parts, 1)
    worker.wait_exit()
    lost = chaos.directory / "artifacts" / f"task-{TASK}" / "000004" / EFFECT
    chaos.expect("the artifact that is taken away was there", observed=lost.name, holds=lost.exists())
    lost.unlink(missing_ok=True)
    worker = worker.restart()
    worker.wait_exit(timeout_s=30)
    judge(chaos, fresh_db, worker, 1)


def test_killed_at_every_point(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Wherever the worker dies, its successor goes on from there."""
    plan = chaos.plan(at_every_point("worker", kill, points="recovery.*", sample=SAMPLE))
    run_to_success(chaos, fresh_db, parts, len(plan.faults))


def test_a_worker_stands_still_at_every_point(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Wherever a worker stands still past its lease, another one ends the task.

    The zombie changes nothing.
    """
    chaos.plan(at_every_point("worker", pause, points="recovery.*", sample=SAMPLE))
    worker = start(chaos, fresh_db, parts, 0)

    def others() -> Iterator[Agent]:
        yield start_one(chaos, fresh_db, parts, "other")

    outlive(chaos, worker, others, database=fresh_db)
    other = chaos.agent("other")
    other.wait_exit(timeout_s=30)
    judge(chaos, fresh_db, other, 0)
