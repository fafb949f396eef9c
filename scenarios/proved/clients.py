"""Clients of the core whose marks are judged by checkers that prove."""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from durable_agents import Pipeline, RecoverySweep, Stage, TaskManager, open_store
from durable_agents.errors import LeaseExpired, LeaseLost
from pytest_chaos.model.seed import stream
from pytest_chaos.workloads.clients import append_lists, do, lock_and_unlock, put_and_take
from pytest_chaos.workloads.generators import ZipfKeys

from scenarios.work.agents import class_named, made

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents import (
        CheckpointManager,
        IdempotencyStore,
        JobQueue,
        Lease,
        LeaseManager,
        StageEngine,
        StateStore,
    )
    from pytest_chaos import Marks

    from scenarios.proved.transactions import Transactions

GROUP = "registry"
SOON_S = 0.2
LOCK_TTL_S = 600.0
"""No lease runs out in a run, so a lease is a lock."""
SHORT_TTL_S = 0.2
PACE_S = 0.005
TASK = "task"
STAGES = 60
PIPELINE = Pipeline(
    tuple(Stage(name=f"stage-{nth}", next=f"stage-{nth + 1}" if nth + 1 < STAGES else None) for nth in range(STAGES))
)


def transact(marks: Marks, database: str, part: str, seed: str, client: int, count: int) -> None:
    """Read lists and append to them, in transactions."""
    append_lists(marks, class_named(part).do, made(part, database), seed=seed, client=client, count=count, keys=4)


def meet(marks: Marks, database: str, part: str, client: int, transactions: list[list[list[Any]]]) -> None:
    """Do transactions that are given; one that does not get the write lock soon has failed."""
    connection: Transactions = made(part, database, timeout_s=SOON_S)
    for number, operations in enumerate(transactions):
        done = partial(connection.do, operations)
        do(marks, "txn", f"{client}.{number}", operations, done, refusals=(sqlite3.OperationalError,))


def lock(marks: Marks, database: str, part: str, seed: str, client: int, count: int) -> None:
    """Take the only lease and give it back."""
    del seed
    manager: LeaseManager = made(part, db_path=database)
    held: dict[int, Lease] = {}

    def acquire() -> int | None:
        lease = manager.acquire(f"client-{client}", ttl_s=LOCK_TTL_S)
        if lease is None:
            return None
        held[lease.token] = lease
        return lease.token

    def release(token: int) -> bool:
        try:
            manager.release(held[token])
        except (LeaseLost, LeaseExpired):
            return False
        return True

    lock_and_unlock(marks, acquire, release, count=count)


def lease(marks: Marks, database: str, part: str, seed: str, client: int, count: int) -> None:
    """Take the only lease again and again, renew it and give it back; it soon runs out."""
    del seed
    manager: LeaseManager = made(part, db_path=database)
    sweep = RecoverySweep(manager.store)
    granted = 0
    while granted < count:
        sweep.run_once()
        marks.intent("acquire", TASK)
        held = manager.acquire(f"client-{client}", ttl_s=SHORT_TTL_S)
        marks.ack("acquire", TASK, None if held is None else held.token)
        if held is None:
            time.sleep(PACE_S)  # sleeps because it waits for the holder, or for the end of its lease
            continue
        granted += 1
        marks.note("held", TASK, held.token)
        do(marks, "renew", TASK, held.token, partial(_accepted, manager.renew, held))
        do(marks, "release", TASK, held.token, partial(_accepted, manager.release, held))


def _accepted(done: Callable[[Lease], object], held: Lease) -> bool:
    """Return whether what a holder does is accepted."""
    try:
        done(held)
    except (LeaseLost, LeaseExpired):
        return False
    return True


def save(marks: Marks, database: str, part: str, seed: str, client: int, count: int) -> None:
    """Save checkpoints of tasks that all clients have, and read them all."""
    drawn = stream(seed, "checkpoints", client)
    with made(part, db_path=database) as opened:
        checkpoints: CheckpointManager = opened
        for number in range(count):
            task = f"task-{int(drawn.random() * 2)}"
            if drawn.random() < 0.65:
                step = ["append", task, f"{client}.{number}"]
                do(marks, "append", number, [step], partial(_saved, checkpoints, step))
            else:
                do(marks, "look", number, [["r", task, None]], partial(_seen, checkpoints, task))


def _saved(checkpoints: CheckpointManager, step: list[Any]) -> list[list[Any]]:
    checkpoints.save(step[1], step[2])
    return [step]


def _seen(checkpoints: CheckpointManager, task: str) -> list[list[Any]]:
    return [["r", task, [checkpoint.snapshot for checkpoint in checkpoints.list(task)]]]


def advance(marks: Marks, database: str, part: str, seed: str, client: int, count: int) -> None:
    """Look at the stage of the only task, and advance it from there."""
    del seed, client
    store = open_store(database)
    tasks = TaskManager(store)
    engine: StageEngine = made(part, store, pipeline=PIPELINE, gates={})
    for _ in range(count):
        stage = do(marks, "read", TASK, None, lambda: tasks.get(TASK).stage)
        if (following := PIPELINE.stage(stage).next) is None:
            return
        step = partial(engine.advance_stage, TASK, stage, finished_agent=None)
        do(marks, "cas", TASK, [stage, following], lambda: step().is_moved)  # noqa: B023 - called at once


def work(marks: Marks, database: str, part: str, seed: str, client: int, count: int) -> None:
    """Put jobs into the queue, and claim as many."""
    del seed
    queue: JobQueue = made(part, db_path=database)

    def take() -> str | None:
        job = queue.claim()
        return None if job is None else job.agent

    put_and_take(marks, queue.enqueue, take, client=client, count=count)


def execute(marks: Marks, database: str, part: str, seed: str, client: int, count: int) -> None:
    """Execute requests under keys that all clients use."""
    del seed
    store: IdempotencyStore = made(part, db_path=database)
    for number in range(count):
        key = f"key-{number}"
        do(marks, "execute", key, None, lambda: store.execute(key, lambda: client).result)  # noqa: B023 - called at once


def keep(marks: Marks, database: str, part: str, seed: str, client: int, count: int) -> None:
    """Set, get and delete entries of a state group."""
    state: StateStore = made(part, db_path=database)
    drawn = stream(seed, "state", client)
    keys = ZipfKeys(3, drawn)
    for number in range(count):
        key, choice = f"k{keys.draw()}", drawn.random()
        value = f"{client}.{number}"
        if choice < 0.5:
            do(marks, "get", key, None, lambda: state.get(GROUP, key))  # noqa: B023 - called at once
        elif choice < 0.9:
            do(marks, "put", key, value, lambda: _none(state.set(GROUP, key, value)))  # noqa: B023 - called at once
        else:
            do(marks, "delete", key, None, lambda: _none(state.delete(GROUP, key)))  # noqa: B023 - called at once


def _none(_: Any) -> None:
    """Return nothing: the answer of a put or a delete is not judged."""
