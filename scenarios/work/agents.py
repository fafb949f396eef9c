"""The programs that scenarios start: small workers on the recovery core that write marks."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from durable_agents import CheckpointManager, SqliteStore

if TYPE_CHECKING:
    from pytest_chaos import Marks

SHARE = 1000
"""How far apart the iterations of the writers of one task are:
writer n has those after n times this.
"""

PADDING = "the state of an iteration "


def write_checkpoints(marks: Marks, database: str, task_id: str, until: int, manager: str) -> None:
    """Write a checkpoint after each iteration up to ``until``, from the newest one on."""
    with make_manager(manager, database) as checkpoints:
        note_pragmas(marks, checkpoints)
        newest = checkpoints.latest(task_id)
        done = 0 if newest is None else newest.snapshot["iteration"]
        marks.note("resumed", 0 if newest is None else newest.sequence_number, value=done)
        for iteration in range(done + 1, until + 1):
            write_one(marks, checkpoints, task_id, iteration)


def write_beside(marks: Marks, database: str, task_id: str, count: int, manager: str) -> None:
    """Write checkpoints of a task that another agent writes, too.

    The iterations are this agent's own.
    """
    with make_manager(manager, database) as checkpoints:
        marks.note("ready")
        for iteration in range(1_000_001, 1_000_001 + count):
            write_one(marks, checkpoints, task_id, iteration)


def write_share(marks: Marks, database: str, task_id: str, place: int, count: int, manager: str, gate: str) -> None:
    """Write this writer's own iterations of a task that others write, too,
    as far as they are not there yet.

    It begins when the file ``gate`` is there, so that all writers begin at once.
    """
    mine = range(place * SHARE + 1, place * SHARE + 1 + count)
    with make_manager(manager, database) as checkpoints:
        note_pragmas(marks, checkpoints)
        marks.note("ready")
        while not Path(gate).exists():
            time.sleep(0.0005)  # sleeps because it waits for the gate; the run bounds it
        there = {saved.snapshot["iteration"] for saved in checkpoints.list(task_id)}
        for iteration in mine:
            if iteration not in there:
                began_s = time.perf_counter()
                write_one(marks, checkpoints, task_id, iteration)
                marks.note("saved", iteration, value={"save_s": round(time.perf_counter() - began_s, 6)})


def note_pragmas(marks: Marks, checkpoints: CheckpointManager) -> None:
    """Mark the settings of this agent's own connection, which no other process can see."""
    if isinstance(checkpoints.store, SqliteStore):
        marks.note("pragmas", value=msgspec.structs.asdict(checkpoints.store.pragmas()))


def write_one(marks: Marks, checkpoints: CheckpointManager, task_id: str, iteration: int) -> None:
    """Write the checkpoint of one iteration, between its intent and its ack."""
    marks.intent("checkpoint", iteration)
    saved = checkpoints.save(task_id, snapshot_of(iteration))
    marks.ack("checkpoint", iteration, value=saved.sequence_number)


def snapshot_of(iteration: int) -> dict[str, Any]:
    """Return the state after an iteration: some kB that differ from any other iteration's."""
    return {"iteration": iteration, "text": PADDING * 20 + str(iteration), "steps": list(range(iteration % 7))}


def make_manager(name: str, database: str) -> CheckpointManager:
    """Open the database with the manager of this name, ``module:Class``."""
    manager: CheckpointManager = made(name, db_path=database)
    return manager


def import_now(*modules: str) -> None:
    """Import what agents would import one by one, in the process that they are forked from."""
    for module in ("encodings.ascii", "encodings.idna", *modules):
        importlib.import_module(module)


def class_named(name: str) -> Any:
    """Return the class that ``module:Class`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def made(name: str, *arguments: Any, **keywords: Any) -> Any:
    """Make an object of the class ``module:Class``: a sound part of the core, or a planted one."""
    return class_named(name)(*arguments, **keywords)
