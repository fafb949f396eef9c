"""Scenario 02: many processes write checkpoints at once, to many databases or to one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import CHECKPOINT_CRASH_POINTS, TaskManager
from pytest_chaos import at_every_point, at_point, hold_lock, kill, pause

from scenarios.limits import ask_limits
from scenarios.model.numbering import check_numbers
from scenarios.work.agents import SHARE
from scenarios.work.checks import check_checkpoints, check_no_exceptions, check_pragmas, only, read_rows
from scenarios.zombies import SAMPLE, outlive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_chaos import Agent, Fault, Run

pytestmark = pytest.mark.chaos(
    id="02-concurrent-checkpoints",
    title="Concurrent writers lose no checkpoint and share no number",
    why="Ten workers of one task, or ten tasks of one machine, save at the same moment; some die, some wait.",
    steps=[
        "Ten processes write ten checkpoints each: to ten databases, then all of them to one task of one database.",
        "Some are killed at named points drawn from the seed and started again.",
        "One is stopped between taking a number and using it; somebody else holds the write lock for a while.",
        "All checkpoints are there once and whole, the numbers have no hole, and nobody got a lock error.",
    ],
)

TASK = "shared"
AFTER_NUMBER = "recovery.checkpoint.after_number"
WRITERS = 10
EACH = 10
EACH_SHARED = 40
KILLED = 3
LOCK_HELD_S = 0.3
TARGET = "scenarios.work.agents:write_share"


def run_writers(
    chaos: Run, databases: dict[str, Path], manager: str, *, each: int, lock_is_held_first: bool = False
) -> None:
    """Start a writer per database, all at once, and wait until all are done.

    A writer that a fault ended is started again.
    """
    gate = chaos.directory / "begin"
    shares = {"task_id": TASK, "count": each, "manager": manager, "gate": str(gate)}
    for place, (name, database) in enumerate(databases.items()):
        chaos.spawn(TARGET, kwargs={**shares, "database": str(database), "place": place}, name=name)
    for name in databases:
        chaos.agent(name).wait_for("ready", kind="note")
    if lock_is_held_first:
        held = lambda: any(receipt.kind == "hold-lock" for receipt in chaos.receipts)  # noqa: E731 - named in the error
        chaos.wait_until(held, what="the write lock to be held by somebody else")
    gate.touch()
    for name in databases:
        agent = chaos.agent(name)
        if agent.wait_exit(timeout_s=60).signal is not None:
            agent.restart().wait_exit(timeout_s=60)


def expect_all(chaos: Run, databases: dict[str, Path], *, each: int) -> None:
    """Expect every writer's checkpoints, once and whole, in its database,
    and no exception anywhere.
    """
    states = [chaos.agent(name).state for name in databases]
    chaos.expect("writers that end by themselves", observed=len(states), holds=set(states) == {"exit code 0"})
    total = 0
    findings = []
    for database in dict.fromkeys(databases.values()):
        names = [name for name, used in databases.items() if used == database]
        history, (_, rows) = only(chaos.history, *names), read_rows(database, TASK)
        findings += list(check_checkpoints(history, database, TASK))
        found = {row.sequence_number: row.iteration for row in rows if row.iteration is not None}
        findings += list(check_numbers(history, found))
        total += len(rows)
    chaos.check(findings, expect="all acknowledged checkpoints, once and whole, without a hole")
    chaos.expect("checkpoints in all", observed=total, holds=total == len(databases) * each)
    chaos.check(check_no_exceptions(chaos.history), expect="no lock error, no other exception")
    chaos.check(check_pragmas(chaos.history), expect="every writer has synchronous=FULL and WAL")
    waits = [mark.value["save_s"] for mark in chaos.history.select("note", "saved")]
    chaos.note("longest_save_s", max(waits))


def drawn_kills(chaos: Run, names: list[str], count: int, *, each: int) -> list[Fault]:
    """Draw the writers that die, each with its named point and its checkpoint."""
    stream = chaos.random("kills")
    victims = sorted(names, key=lambda _: stream.random())[:count]
    return [
        kill(
            name,
            at_point(
                CHECKPOINT_CRASH_POINTS[int(stream.random() * len(CHECKPOINT_CRASH_POINTS))],
                occurrence=1 + int(stream.random() * (each - 1)),
            ),
        )
        for name in victims
    ]


def make_database(path: Path, manager: str) -> Path:
    """Make a database that knows the task."""
    from scenarios.work.agents import make_manager

    make_manager(manager, str(path)).close()
    with TaskManager(db_path=path) as tasks:
        tasks.create(TASK)
    return path


@pytest.mark.chaos_deep
def test_ten_databases(chaos: Run, manager: str) -> None:
    """Ten writers with a database each; three of them are killed and go on."""
    names = [f"writer-{number}" for number in range(WRITERS)]
    chaos.plan(*drawn_kills(chaos, names, KILLED, each=EACH))
    databases = {name: make_database(chaos.directory / f"{name}.db", manager) for name in names}
    run_writers(chaos, databases, manager, each=EACH)
    expect_all(chaos, databases, each=EACH)
    files = len(list(chaos.directory.glob("*.db")))
    chaos.expect("database files", observed=files, holds=files == WRITERS)


@pytest.mark.chaos_deep
def test_one_database(chaos: Run, manager: str) -> None:
    """Ten writers on one task of one database; three are killed and go on;
    the write lock is held for a while.
    """
    shared(chaos, manager, writers=WRITERS, each=EACH_SHARED, killed=KILLED, lock_held_s=LOCK_HELD_S)


def test_one_database_quick(chaos: Run, manager: str) -> None:
    """The quick form: four writers on one database, one killed, the lock held for a moment."""
    shared(chaos, manager, writers=4, each=10, killed=1, lock_held_s=0.05)


def shared(chaos: Run, manager: str, *, writers: int, each: int, killed: int, lock_held_s: float) -> None:
    """Let writers share one task of one database, kill some, stop one, and hold the lock."""
    path = chaos.directory / "shared.db"
    names = [f"writer-{number}" for number in range(writers)]
    hog = hold_lock(names[0], database=path.name, duration_s=lock_held_s)
    stopped = pause(names[1], at_point(AFTER_NUMBER, occurrence=each // 3), duration_s=lock_held_s)
    chaos.plan(hog, stopped, *drawn_kills(chaos, names[2:], killed, each=each))
    databases = dict.fromkeys(names, make_database(path, manager))
    run_writers(chaos, databases, manager, each=each, lock_is_held_first=True)
    expect_all(chaos, databases, each=each)
    owners = {row.iteration // SHARE for row in read_rows(path, TASK)[1] if row.iteration is not None}
    chaos.expect("writers that were served", observed=len(owners), holds=len(owners) == writers)


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_writer_stops_at_every_point(chaos: Run, manager: str, fault: Callable[..., Fault]) -> None:
    """Wherever a writer stands still or dies, another one writes the same task to its end."""
    path = make_database(chaos.directory / "shared.db", manager)
    chaos.plan(at_every_point("first", fault, points="recovery.*", sample=SAMPLE))
    (chaos.directory / "begin").touch()

    def writer(place: int, name: str) -> Agent:
        shares = {"task_id": TASK, "count": 3, "manager": manager, "gate": str(chaos.directory / "begin")}
        return chaos.spawn(TARGET, kwargs={**shares, "database": str(path), "place": place}, name=name)

    outlive(chaos, writer(0, "first"), lambda: [writer(1, "second")], database=path)
    first = chaos.agent("first")
    if first.exit_status is not None and first.exit_status.signal is not None:
        first.restart().wait_exit()
    expect_all(chaos, {"first": path, "second": path}, each=3)


def test_the_lock_is_held_at_every_point(chaos: Run, manager: str) -> None:
    """Wherever somebody else takes the write lock, writers wait for it, and none is told of it."""
    path = make_database(chaos.directory / "shared.db", manager)
    points = "recovery.checkpoint.before_[!c]*"  # within a transaction nobody else can take it
    held = at_every_point("first", hold_lock, points=points, sample=SAMPLE, database=path.name, duration_s=0.1)
    chaos.plan(held)
    run_writers(chaos, dict.fromkeys(("first", "second"), path), manager, each=3)
    expect_all(chaos, {"first": path, "second": path}, each=3)


def test_what_is_promised_at_a_bound(chaos: Run) -> None:
    """Bounds count at their value; locks are waited for; looks are neither rare nor busy."""
    ask_limits(chaos, "store")
