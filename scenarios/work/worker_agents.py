"""The program of scenario 07: a worker that sweeps, claims, works, and resumes."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from durable_agents import (
    Artifacts,
    CheckpointManager,
    LeaseClaims,
    LeaseManager,
    RecoverySweep,
    TaskManager,
    TaskStatus,
    WorkEnding,
    Worker,
    WorkStatus,
    open_store,
)
from durable_agents.errors import StatusConflict

from scenarios.work.agents import made

if TYPE_CHECKING:
    from durable_agents import Iteration
    from pytest_chaos import Marks

EFFECT = "effect.txt"


def work_to_the_end(
    marks: Marks, database: str, folder: str, task_id: str, iterations: int, ttl_s: float, parts: dict[str, str]
) -> None:
    """Do all iterations of the task's one item, until the item has ended.

    Any number of such processes may run at once.
    """
    with open_store(database) as store:
        artifacts = Artifacts(folder)
        saver: CheckpointManager = made(parts["checkpoints"], store, artifacts=artifacts)
        tasks, leases, sweep = TaskManager(store), LeaseManager(store), RecoverySweep(store)
        with contextlib.suppress(StatusConflict):  # another one was first
            tasks.set_status(task_id, TaskStatus.RUNNING, expected=TaskStatus.CREATED)

        def work(iteration: Iteration) -> dict[str, int]:
            marks.intent("iteration", iteration.number)
            iteration.write(EFFECT, content_of(iteration.number))
            marks.ack("iteration", iteration.number)
            return {"sum": (iteration.state or {"sum": 0})["sum"] + iteration.number}

        claims = LeaseClaims(leases, saver, "worker", ttl_s=ttl_s, task_id=task_id)
        worker: Worker = made(parts["worker"], claims, saver, artifacts, work, iterations=iterations)
        while leases.get(1).status is not WorkStatus.COMPLETED:
            outcome = worker.run_once()
            if outcome is None:
                sweep.run_once()
                time.sleep(0.005)  # sleeps because a worker without work does; its lease runs out by itself
            elif outcome.ending is WorkEnding.COMPLETED:
                marks.note("outcome", value={"resumed_from": outcome.resumed_from, "done": outcome.done})
            elif outcome.ending is WorkEnding.LOST:
                marks.note("lost", value={"done": outcome.done})
        with contextlib.suppress(StatusConflict):
            tasks.set_status(task_id, TaskStatus.SUCCEEDED, expected=TaskStatus.RUNNING)
        marks.ack("task", task_id)


def content_of(number: int) -> bytes:
    """Return the effect of an iteration."""
    return f"effect of iteration {number}\n".encode() * 40
