"""Scenario 19: what clients saw has an order that the promise allows, or it is refuted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import CheckpointManager, JobCrashPoint, LeaseManager, TaskManager, open_store
from durable_agents.work.crash_points import WorkPoint
from pytest_chaos import after_mark, at_point, kill, pause
from pytest_chaos.checkers.isolation import list_append
from pytest_chaos.checkers.linearizability import linearizable
from pytest_chaos.checkers.linearizability.models import NOTHING, CasRegister, ObjectModel

from scenarios.proved.transactions import READ

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos import Run
    from pytest_chaos.checkers import Checker
    from pytest_chaos.model.calls import Call
    from pytest_chaos.model.values import When

pytestmark = pytest.mark.chaos(
    id="19-proved",
    title="What clients saw has an order: transactions, checkpoints, leases, stages, jobs, keys and state",
    why="A wrong answer that no single check looks for still has no place in any order of the operations.",
    steps=[
        "Three clients work on the same few objects as fast as they can.",
        "One of them is killed in the middle: what it had begun has happened or not.",
        "Another one stands still between its intent and the operation, until the third has got on.",
        "An order of all operations is searched: there is one, or a proof that there is none.",
    ],
)


class Once(ObjectModel):
    """A key under which one result is stored: the first, for all that ask."""

    functions = ("execute",)

    def step(self, state: Any, call: Call) -> Any:
        """Return the result that is stored after the call."""
        if state is NOTHING:
            return NOTHING if call.output is None else call.output
        return state if call.gave(state) else None


def judge(
    chaos: Run, client: str, database: Path, part: str, checker: Checker, *, count: int, killed: str, stopped: When
) -> None:
    """Let three clients work, and judge what they saw.

    The first is killed. The second stands still until the third, which comes then, has got on.
    """
    kwargs = {"database": str(database), "part": part, "seed": chaos.seed, "count": count}
    target = f"scenarios.proved.clients:{client}"
    chaos.plan(kill("client-0", after_mark(killed, count=count // 3)), pause("client-1", stopped))
    agents = [chaos.spawn(target, kwargs={**kwargs, "client": number}, name=f"client-{number}") for number in (0, 1)]
    still = agents[1]
    still.wait_state("T")
    third = chaos.spawn(target, kwargs={**kwargs, "client": 2}, name="client-2")
    agents.append(third)
    third.wait_for(killed, count=3)
    still.resume()
    for agent in agents:
        agent.wait_exit()
    acks = len(chaos.history.acknowledged(killed))
    chaos.expect("the clients worked", observed=acks, holds=acks > count)
    chaos.check_history(checker, expect="an order that explains what all clients saw")


def test_transactions(chaos: Run, parts: dict[str, str]) -> None:
    """Transactions on lists are strictly serializable."""
    stopped = after_mark("txn", kind="intent", count=75)
    database, part = chaos.directory / "lists.db", parts["transactions"]
    with closing(sqlite3.connect(database)) as first:  # of two that ask for a log at once, SQLite refuses one
        first.execute("PRAGMA journal_mode = WAL")
    judge(chaos, "transact", database, part, list_append(), count=150, killed="txn", stopped=stopped)


READ_X = ["r", "x", None]
MEETINGS: dict[str, tuple[When, Any, Any]] = {
    "write-skew": (at_point(READ), [[READ_X, ["append", "y", 1]]], [[["r", "y", None], ["append", "x", 1]]]),
    "lost-update": (at_point(READ), [[READ_X, ["append", "x", 1]]], [[READ_X, ["append", "x", 2]]]),
    "stale-read": (after_mark("txn"), [[READ_X], [READ_X]], [[["append", "x", 1]]]),
}


@pytest.mark.parametrize("meeting", MEETINGS)
def test_two_transactions_meet(chaos: Run, parts: dict[str, str], meeting: str) -> None:
    """A client stands still between its read and its commit, or between two reads, and another one
    does all of its transaction meanwhile.
    """
    when, first, second = MEETINGS[meeting]
    chaos.plan(pause("client-0", when))
    kwargs: dict[str, Any] = {"database": str(chaos.directory / "lists.db"), "part": parts["transactions"]}
    target = "scenarios.proved.clients:meet"
    still = chaos.spawn(target, kwargs={**kwargs, "client": 0, "transactions": first}, name="client-0")
    still.wait_state("T")
    chaos.spawn(target, kwargs={**kwargs, "client": 1, "transactions": second}, name="client-1").wait_exit()
    still.resume()
    still.wait_exit()
    chaos.check_history(list_append(), expect="an order that explains what both clients saw")


def test_locks(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A lease that does not run out is a lock, with tokens that rise."""
    with LeaseManager(db_path=fresh_db) as leases:
        TaskManager(leases.store).create("task")
        leases.enqueue("task", "work")
    stopped = at_point(WorkPoint.LEASE_BEFORE_ACQUIRE, occurrence=10)
    judge(chaos, "lock", fresh_db, parts["leases"], linearizable("lock"), count=60, killed="acquire", stopped=stopped)


def test_leases(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A lease that runs out is granted again, and its old token is refused from then on."""
    with LeaseManager(db_path=fresh_db) as leases:
        TaskManager(leases.store).create("task")
        leases.enqueue("task", "work", max_retries=1000)
    stopped = after_mark("held", kind="note", count=3)
    judge(chaos, "lease", fresh_db, parts["leases"], linearizable("lease"), count=9, killed="release", stopped=stopped)


def test_checkpoints(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The checkpoints of a task are a list that is appended to, and read whole."""
    with CheckpointManager(db_path=fresh_db) as checkpoints:
        for number in range(2):
            TaskManager(checkpoints.store).create(f"task-{number}")
    checker = list_append(functions=("append", "look"))
    stopped = at_point(WorkPoint.CHECKPOINT_BEFORE_BEGIN, occurrence=8)
    judge(chaos, "save", fresh_db, parts["checkpoints"], checker, count=40, killed="append", stopped=stopped)


def test_stages(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The stage of a task is a register: of all that advance it from one stage, one does."""
    with open_store(fresh_db) as store:
        TaskManager(store).create("task", stage="stage-0")
    stopped = at_point(JobCrashPoint.STAGE_BEFORE_ADVANCE, occurrence=6)
    checker = linearizable(CasRegister("stage-0"))
    judge(chaos, "advance", fresh_db, parts["stages"], checker, count=40, killed="cas", stopped=stopped)


def test_jobs(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The job queue gives the oldest job, to one client."""
    stopped = at_point(JobCrashPoint.JOB_BEFORE_CLAIM, occurrence=15)
    judge(chaos, "work", fresh_db, parts["jobs"], linearizable("queue"), count=40, killed="enqueue", stopped=stopped)


def test_keys(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """All that ask under an idempotency key get one result."""
    stopped = after_mark("execute", kind="intent", count=30)
    judge(chaos, "execute", fresh_db, parts["keys"], linearizable(Once()), count=60, killed="execute", stopped=stopped)


def test_state(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """An entry of a state group is a register, for all clients that set and delete it."""
    stopped = after_mark("put", kind="intent", count=20)
    judge(chaos, "keep", fresh_db, parts["state"], linearizable("map"), count=150, killed="get", stopped=stopped)
