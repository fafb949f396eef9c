"""Scenario 04: each lease of a dead holder is returned once, by any number of sweeps.

Some of the sweeps are killed.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from durable_agents import SWEEP_CRASH_POINTS, LeaseManager, RecoverySweep, TaskManager, open_store
from pytest_chaos import at_every_point, at_point, kill, pause
from pytest_chaos.checkers import exactly_once

from scenarios.judging import check_tables, read_tables
from scenarios.limits import ask_limits
from scenarios.model.states import Holding, Moment, us
from scenarios.model.work import Work
from scenarios.webhooks.world import WorldClock
from scenarios.work.agents import made
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE, outlive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_chaos import Agent, Fault, Run

    from scenarios.model.states import Tables

pytestmark = pytest.mark.chaos(
    id="04-recovery-sweep",
    title="Every expired lease is recovered once, whoever sweeps",
    why="Sweeps run everywhere and die like everything else; what a worker held must neither stick nor be run twice.",
    steps=[
        "A hundred, or ten thousand, leases run out.",
        "Four sweepers sweep at once; some are killed in the middle of it, and followed by another.",
        "A holder goes on renewing its lease at the last moment all the while.",
        "Each lease is recovered once, with one boundary checkpoint and one audit row.",
        "The holder that renews is not touched.",
    ],
)

TASK = "sweep"
SWEEP = "scenarios.work.lease_agents:sweep"
BOUNDARY = "scenarios.work.lease_agents:renew_at_the_boundary"
EXPIRY_S = 0.001

TTL_S = 24 * 3600.0
"""The length of the lease that is renewed late: by a clock that is moved,
so that no machine is too slow for it.
"""

AWAKE_S = 10.0
ROUNDS = 5


def expired(database: Path, count: int) -> Path:
    """Make a database with ``count`` expired leases."""
    with LeaseManager(db_path=database) as leases:
        TaskManager(leases.store).create(TASK)
        with leases.store.transaction() as transaction:
            for number in range(count):
                transaction.insert_work_item(task_id=TASK, type="work", priority=0, max_retries=3, now=number)
        taken = 0
        while batch := leases.acquire_many("dead", limit=1000, ttl_s=EXPIRY_S):
            taken += len(batch)
        assert taken == count
    return database


def start_sweepers(chaos: Run, database: Path, parts: dict[str, str], names: list[str], *, batch: int) -> list[Agent]:
    """Start sweepers, all at once."""
    kwargs = {"database": str(database), "sweeper": parts["sweep"], "batch": batch}
    return [chaos.spawn(SWEEP, kwargs=kwargs, name=name) for name in names]


def judge(chaos: Run, database: Path, count: int, *, reported: bool = True) -> None:
    """Expect each lease recovered once, by rows, boundary checkpoints and marks."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        statuses = Counter(row[0] for row in connection.execute("SELECT status FROM work_items WHERE type = 'work'"))
        marks = [
            row[0]
            for row in connection.execute(
                "SELECT snapshot ->> 'work_item_id' FROM checkpoints WHERE type = 'error_boundary'"
            )
        ]
        audits = connection.execute("SELECT count(*) FROM task_audits WHERE event = 'lease_expired'").fetchone()[0]
    chaos.expect("items pending again", observed=dict(statuses), holds=statuses == {"pending": count})
    chaos.check(exactly_once.at_most(marks, 1), expect="no lease has two boundary checkpoints")
    chaos.expect("boundary checkpoints", observed=len(marks), holds=len(marks) == count)
    chaos.expect("audit rows", observed=audits, holds=audits == count)
    seen = read_tables(database, ["work_items", "expiries"])
    chaos.check(check_tables(seen, [after_one_sweep(count)]), expect="the rows that one sweep would have left")
    if reported:
        said = [mark.value for mark in chaos.history.acknowledged("sweep")]
        for name in ("expired_found", "recovered"):
            total = sum(value[name] for value in said)
            chaos.expect(f"{name}, all sweepers together", observed=total, holds=total == count)
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


def after_one_sweep(count: int) -> Tables:
    """Return the rows that the model has after one undisturbed sweep of so many leases."""
    model = Work()
    model.create(Moment(0, 0), TASK)
    for _ in range(count):
        model.enqueue(Moment(0, 0), TASK)
    model.acquire(Moment(0, 0), "dead", EXPIRY_S, count)
    model.sweep(Moment(us(EXPIRY_S), 0))
    tables = model.tables()
    for row in tables["work_items"].values():
        row["error"] = Holding("'dead'", " 1/3")
    return tables


def test_a_hundred_leases(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The seed's scenario: a hundred expired, found and recovered by one sweep,
    within its bound.
    """
    expired(fresh_db, 100)
    (sweeper,) = start_sweepers(chaos, fresh_db, parts, ["sweeper"], batch=50)
    sweeper.wait_for("sweep", timeout_s=5)
    sweeper.wait_exit()
    judge(chaos, fresh_db, 100)


def test_sweepers_that_die(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Two sweepers at once are killed at points of the seed; three more finish their work."""
    expired(fresh_db, 1000)
    drawn = chaos.random("kills")
    victims = ["victim-1", "victim-2"]
    points = [SWEEP_CRASH_POINTS[int(drawn.random() * len(SWEEP_CRASH_POINTS))] for _ in range(2)]
    chaos.plan(*(kill(name, at_point(point)) for name, point in zip(victims, points, strict=True)))
    for names in (victims, ["sweeper-1", "sweeper-2", "sweeper-3"]):
        for sweeper in start_sweepers(chaos, fresh_db, parts, names, batch=10):
            sweeper.wait_exit()
    judge(chaos, fresh_db, 1000, reported=False)


@pytest.mark.chaos_deep
@pytest.mark.parametrize("point", SWEEP_CRASH_POINTS, ids=lambda point: point.rpartition(".")[2])
def test_a_sweeper_killed_at_a_named_point(chaos: Run, fresh_db: Path, parts: dict[str, str], point: str) -> None:
    """A sweep that is killed at this point of its third batch or item leaves whole ones.

    The next sweep does the rest.
    """
    expired(fresh_db, 50)
    chaos.plan(kill("sweeper", at_point(point, occurrence=3)))
    chaos.note("crash_points", [point])
    for name in ("sweeper", "last"):
        start_sweepers(chaos, fresh_db, parts, [name], batch=10)[0].wait_exit()
    judge(chaos, fresh_db, 50, reported=False)


@pytest.mark.chaos_deep
def test_ten_thousand_leases_and_four_sweepers(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Four sweepers recover ten thousand leases, and report exactly that many."""
    expired(fresh_db, 10_000)
    sweepers = start_sweepers(chaos, fresh_db, parts, [f"sweeper-{number}" for number in range(4)], batch=50)
    for sweeper in sweepers:
        sweeper.wait_exit(timeout_s=60)
    judge(chaos, fresh_db, 10_000)


@pytest.mark.chaos_deep
def test_a_holder_at_the_boundary_is_left_alone(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """A lease that is renewed at the last moment survives sweeps that run without a pause.

    The clock is moved by the test.
    """
    expired(fresh_db, 20)
    with LeaseManager(db_path=fresh_db) as leases:
        leases.enqueue(TASK, "boundary")
    clock = WorldClock(fresh_db.parent)
    kwargs = {"database": str(fresh_db), "ttl_s": TTL_S, "leases": parts["leases"], "rounds": ROUNDS}
    holder = chaos.spawn(BOUNDARY, kwargs=kwargs, name="holder")
    with open_store(fresh_db) as store:
        sweep: RecoverySweep = made(parts["sweep"], store, clock=clock)
        recovered = [0]

        def sweep_until_renewed() -> bool:
            recovered[0] += sweep.run_once().recovered
            return not holder.running or len(chaos.history.acknowledged("renew")) > number

        for number in range(ROUNDS):
            due = holder.wait_for("lease", count=number + 1)[number].value["due"]
            clock.advance((due - clock.monotonic()) / 1_000_000 - AWAKE_S)
            recovered[0] += sum(sweep.run_once().recovered for _ in range(10))  # the holder does nothing yet
            clock.advance(AWAKE_S)
            chaos.wait_until(sweep_until_renewed, what="a renewal, sweeping all the while")
            if not holder.running:
                break
    holder.wait_exit()
    renewals = len(chaos.history.acknowledged("renew"))
    chaos.expect("leases recovered meanwhile", observed=recovered[0], holds=recovered[0] == 20)
    chaos.expect("the holder ends by itself", observed=holder.state, holds=holder.state == "exit code 0")
    chaos.expect("renewals at the boundary", observed=renewals, holds=renewals == ROUNDS)


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_sweeper_stops_at_every_point(
    chaos: Run, fresh_db: Path, parts: dict[str, str], fault: Callable[..., Fault]
) -> None:
    """Wherever a sweeper stands still or dies, another one returns the rest, and none twice."""
    expired(fresh_db, 20)
    chaos.plan(at_every_point("zombie", fault, points="recovery.sweep.*", sample=SAMPLE))
    (zombie,) = start_sweepers(chaos, fresh_db, parts, ["zombie"], batch=8)
    outlive(chaos, zombie, lambda: start_sweepers(chaos, fresh_db, parts, ["other"], batch=8), database=fresh_db)
    judge(chaos, fresh_db, 20, reported=fault is pause)


def test_what_is_promised_at_a_bound(chaos: Run) -> None:
    """Bounds count at their value; defaults are as promised; one decision is one transaction."""
    ask_limits(chaos, "work")
