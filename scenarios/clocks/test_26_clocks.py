"""Scenario 26: the wall clocks of real programs jump, run and stand; what the core promises holds.

No clock of ours is passed in: the machine's clock is moved under the program.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import LeaseManager, TaskManager, open_store
from durable_agents.processes import start_of
from pytest_chaos import Fault, Finding, after_mark, at_every_point, at_point, clock_drift, clock_freeze, clock_jump

from scenarios.clocks.clock_agents import READY
from scenarios.jobs.job_checks import rows
from scenarios.work.checks import check_no_exceptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos import History, Run
    from pytest_chaos.model.values import When

    Move = Callable[[str, When], Fault]

pytestmark = pytest.mark.chaos(
    id="26-clocks",
    title="A clock that is set keeps no lease, ends none, and moves no task twice",
    why="Clocks are set by NTP, by people and by a machine that was restored; leases, sweeps and ages all read them.",
    steps=[
        "The wall clock of a running program is set a day back, a year on, runs at twice the speed, or stands.",
        "A dead holder's lease comes back when its length has passed since it was granted, and not later.",
        "A living holder's lease is left alone until then, and its holder is not refused.",
        "A dead executor is noticed in the second look, and a living one is not.",
        "A task whose grace seems to be over is advanced once.",
    ],
)

AGENTS = "scenarios.clocks.clock_agents"
DAY_S = 86_400
YEAR_S = 365 * DAY_S
TTL_S = 0.3
NEVER_US = 2**60


def back(agent: str, when: When) -> Fault:
    """A day back."""
    return clock_jump(agent, when, by_s=-DAY_S)


def on(agent: str, when: When) -> Fault:
    """A year on."""
    return clock_jump(agent, when, by_s=YEAR_S)


def fast(agent: str, when: When) -> Fault:
    """Twice as fast."""
    return clock_drift(agent, when, rate=2.0)


def frozen(agent: str, when: When) -> Fault:
    """Stands still."""
    return clock_freeze(agent, when)


def with_an_item(database: Path) -> None:
    """Add a task with one item."""
    with LeaseManager(db_path=database) as leases:
        TaskManager(leases.store).create("clocks")
        leases.enqueue("clocks", "work")


def check_lease(history: History) -> Iterator[Finding]:
    """Find a lease that came back too early or too late, by the time since boot."""
    (grant,) = [mark.value for mark in history.acknowledged("lease")]
    early, late = grant["began"] + grant["ttl_us"], grant["ended"] + grant["ttl_us"]
    for mark in history.select("note", "swept"):
        swept = mark.value
        if swept["recovered"] and swept["ended"] < early:
            text = f"a lease of {grant['ttl_us']:,} us was swept {early - swept['ended']:,} us before it had passed"
            yield Finding(signature="lease:ended-by-a-clock", text=text, checker="check_lease")
        if not swept["recovered"] and swept["began"] >= late:
            text = f"a dead holder's lease was not swept {swept['began'] - late:,} us after it had passed"
            yield Finding(signature="lease:kept-by-a-clock", text=text, kind="liveness", checker="check_lease")


def die(chaos: Run, database: Path, parts: dict[str, str], ttl_s: float) -> dict[str, Any]:
    """Have a holder take a lease and end; return when."""
    kwargs = {"database": str(database), "leases": parts["leases"], "ttl_s": ttl_s}
    chaos.spawn(f"{AGENTS}:die_with_a_lease", kwargs=kwargs, name="holder").wait_exit()
    (mark,) = chaos.history.acknowledged("lease")
    found: dict[str, Any] = mark.value
    return found


def sweep(chaos: Run, database: Path, parts: dict[str, str], *, due_us: int, sweeps: int) -> None:
    """Sweep in another process."""
    kwargs = {"database": str(database), "sweeper": parts["sweep"], "due_us": due_us, "sweeps": sweeps}
    chaos.spawn(f"{AGENTS}:sweep", kwargs=kwargs, name="sweeper").wait_exit(timeout_s=60)
    chaos.wait_for_faults()


@pytest.mark.parametrize(
    ("whose", "move"),
    [
        pytest.param("sweeper", back, id="sweeper-a-day-back"),
        pytest.param("sweeper", frozen, id="sweeper-stands"),
        pytest.param("holder", on, id="holder-a-year-on"),
        pytest.param("holder", fast, id="holder-fast", marks=pytest.mark.chaos_deep),
    ],
)
def test_a_dead_holders_lease_comes_back(
    chaos: Run, fresh_db: Path, parts: dict[str, str], whose: str, move: Move
) -> None:
    """The first sweep that begins after the lease's length returns it, whatever clocks show."""
    chaos.plan(move(whose, at_point(READY)))
    with_an_item(fresh_db)
    grant = die(chaos, fresh_db, parts, TTL_S)
    sweep(chaos, fresh_db, parts, due_us=grant["ended"] + grant["ttl_us"], sweeps=NEVER_US)
    chaos.check(check_lease(chaos.history), expect="the lease comes back when its length has passed")
    items = rows(fresh_db, "SELECT status, retries FROM work_items")
    chaos.expect("the item waits for its first retry", observed=items, holds=items == [("pending", 1)])
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


@pytest.mark.parametrize(
    ("whose", "move"),
    [
        pytest.param("sweeper", on, id="sweeper-a-year-on"),
        pytest.param("holder", back, id="holder-a-day-back"),
        pytest.param("sweeper", fast, id="sweeper-fast", marks=pytest.mark.chaos_deep),
    ],
)
def test_a_lease_is_left_alone_until_then(
    chaos: Run, fresh_db: Path, parts: dict[str, str], whose: str, move: Move
) -> None:
    """No sweep ends a lease of an hour within that hour."""
    chaos.plan(move(whose, at_point(READY)))
    with_an_item(fresh_db)
    die(chaos, fresh_db, parts, 3600.0)
    sweep(chaos, fresh_db, parts, due_us=NEVER_US, sweeps=3)
    chaos.check(check_lease(chaos.history), expect="no sweep ends the lease early")
    items = rows(fresh_db, "SELECT status FROM work_items")
    chaos.expect("the item is in progress", observed=items, holds=items == [("in_progress",)])


def expect_completed(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Expect that a holder takes, renews and completes its item."""
    with_an_item(fresh_db)
    kwargs = {"database": str(fresh_db), "leases": parts["leases"]}
    chaos.spawn(f"{AGENTS}:hold", kwargs=kwargs, name="holder").wait_exit()
    refused = [mark.value for mark in chaos.history.select("note", "refused")]
    chaos.expect("refusals of the holder", observed=refused, holds=not refused)
    items = rows(fresh_db, "SELECT status FROM work_items")
    chaos.expect("the item is completed", observed=items, holds=items == [("completed",)])


@pytest.mark.parametrize("move", [back, on])
def test_a_clock_jumps_between_a_read_and_its_commit(
    chaos: Run, fresh_db: Path, parts: dict[str, str], move: Move
) -> None:
    """The renewal has read the clock and is not committed: the holder keeps its lease."""
    chaos.plan(move("holder", at_point("recovery.lease.after_renewal")))
    expect_completed(chaos, fresh_db, parts)


@pytest.mark.chaos_deep
@pytest.mark.parametrize("move", [back, on, fast, frozen])
def test_a_clock_moves_at_every_point_of_a_holder(
    chaos: Run, fresh_db: Path, parts: dict[str, str], move: Move
) -> None:
    """Wherever the holder is, it keeps its lease."""
    chaos.plan(at_every_point("holder", move, points="recovery.lease.*"))
    expect_completed(chaos, fresh_db, parts)


def with_two_jobs(database: Path, executor: int) -> None:
    """Add two running jobs: the executor of the first is dead, that of the second lives."""
    open_store(database).close()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for pid, start in ((None, None), (executor, start_of(executor))):
            connection.execute(
                "INSERT INTO jobs (agent, repo, status, attempts, max_attempts, claim, pid, process_start, started_at,"
                " error, created_at, updated_at) VALUES ('ghost', '', 'running', 1, 2, 1, ?, ?,"
                " CAST(strftime('%s', 'now') AS INTEGER) * 1000000, '', 0, 0)",
                (pid, start),
            )


@pytest.mark.parametrize("move", [back, frozen, pytest.param(fast, marks=pytest.mark.chaos_deep)])
def test_a_reaper_tells_the_dead_from_the_living(chaos: Run, fresh_db: Path, parts: dict[str, str], move: Move) -> None:
    """A dead executor is noticed in the second look; the job of a living one goes on."""
    chaos.plan(move("reaper", after_mark("ready", kind="note")))
    with_two_jobs(fresh_db, os.getpid())
    kwargs = {"database": str(fresh_db), "parts": parts, "name": "reaper", "settings": {}, "ticks": 3}
    chaos.spawn("scenarios.jobs.job_agents:reaper", kwargs=kwargs, name="reaper").wait_exit()
    statuses = rows(fresh_db, "SELECT status, attempts FROM jobs ORDER BY job_id")
    chaos.expect("the jobs", observed=statuses, holds=statuses == [("queued", 1), ("running", 1)])
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")


@pytest.mark.parametrize(
    ("move", "advances"), [pytest.param(on, 1, id="a-year-on"), pytest.param(back, 0, id="a-day-back")]
)
def test_a_reconciler_advances_once_at_most(
    chaos: Run, fresh_db: Path, parts: dict[str, str], move: Move, advances: int
) -> None:
    """A grace that a clock ends moves a task once; one that a clock prolongs moves nothing."""
    chaos.plan(move("reconciler", at_point(READY)))
    with open_store(fresh_db) as store:
        TaskManager(store).create("clocks", stage="build")
    kwargs = {"database": str(fresh_db), "parts": parts, "rounds": 3}
    chaos.spawn(f"{AGENTS}:reconcile", kwargs=kwargs, name="reconciler").wait_exit()
    jobs = rows(fresh_db, "SELECT agent FROM jobs")
    chaos.expect("jobs of the next stage", observed=jobs, holds=jobs == [("checker",)] * advances)
    chaos.check(check_no_exceptions(chaos.history), expect="no exception in any agent")
