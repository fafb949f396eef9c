"""Our workers of scenario 23: one leases an item, one calls a tool through the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from durable_agents import Artifacts, LeaseClaims, open_store
from durable_agents.errors import ExecutionLost

from scenarios.once.tool_agents import command_of, policy_of
from scenarios.webhooks.world import WorldClock
from scenarios.work.agents import made

if TYPE_CHECKING:
    from durable_agents import Iteration, LeaseManager
    from pytest_chaos import Marks

TTL_S = 60.0
"""The length of a lease and of a claim. The world's clock is moved beyond it."""


def work_leased(marks: Marks, database: str, name: str, task_id: str, iterations: int, parts: dict[str, str]) -> None:
    """Return what has expired, take the item, do its iterations, and mark how that ended.

    Each iteration has one effect: a checkpoint, with a file as its evidence. The file is another
    one with each worker, as an answer of a language model is.
    """
    clock = WorldClock(Path(database).parent)
    with open_store(database) as store:
        artifacts = Artifacts(Path(database).parent)
        leases: LeaseManager = made(parts["leases"], store, clock=clock)
        saver = made(parts["checkpoints"], store, artifacts=artifacts, clock=clock)
        made(parts["sweep"], store, clock=clock).run_once()

        def work(iteration: Iteration) -> int:
            marks.intent("iteration", iteration.number)
            iteration.write("effect.txt", name.encode())
            marks.ack("iteration", iteration.number)
            return iteration.number

        claims = LeaseClaims(leases, saver, name, ttl_s=TTL_S, task_id=task_id)
        outcome = made(parts["worker"], claims, saver, artifacts, work, iterations=iterations).run_once()
        marks.note("outcome", value="nothing to do" if outcome is None else str(outcome.ending))


def call_tool(marks: Marks, database: str, world: str, ledger: str) -> None:
    """Run a command under a key, once, and mark its end: done, or lost to another.

    In doubt it asks the world whether the effect is there.
    """
    clock = WorldClock(Path(database).parent)
    with made(ledger, db_path=database, clock=clock, claim_s=TTL_S) as part:
        try:
            marks.intent("tool", 0)
            part.run_command(command_of(world, 0), key="tool-0", in_doubt=policy_of("probe", world, 0))
        except ExecutionLost:
            marks.note("outcome", value="lost")
        else:
            marks.ack("tool", 0)
            marks.note("outcome", value="completed")
