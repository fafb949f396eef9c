"""Scenario 09: living executors are left alone, dead ones are noticed, and no job has two."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import JobQueue, SystemClock, TaskManager
from pytest_chaos import Finding, at_every_point, at_point, kill, pause

from scenarios.jobs.job_checks import check_executors, check_jobs, check_stages, ledger, rows
from scenarios.model.ways import check_ways
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE, outlive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos import Agent, Fault, Run

pytestmark = pytest.mark.chaos(
    id="09-executor-liveness",
    title="The living are left alone, the dead are noticed, and no job has two executors",
    why="A number of a process is not a process: there are zombies, used numbers, and processes that stand still.",
    steps=[
        "A monitor stands still while it finalises; an executor stands still; reapers look at both, again and again.",
        "An executor runs past the ceiling: it is ended, and only then is there another one.",
        "Jobs name a zombie, a used number, pid 0, and none: reapers that restart each time end them.",
    ],
)

TASK = "liveness"
MONITOR = "scenarios.jobs.job_agents:monitor"
REAPER = "scenarios.jobs.job_agents:reaper"
HAUNT = "scenarios.jobs.job_agents:haunt"
TICKS = 50


class Watch:
    """The moves of the scenario, by real processes."""

    def __init__(self, chaos: Run, database: Path, parts: dict[str, str]) -> None:
        self.chaos = chaos
        self.database = database
        self.common = {"database": str(database), "parts": parts}

    def monitor(self, name: str, *conducts: str) -> Agent:
        """Start a monitor whose executors show these conducts."""
        kwargs = {**self.common, "conducts": list(conducts), "jobs": 1}
        return self.chaos.spawn(MONITOR, kwargs=kwargs, name=name)

    def reaper(self, name: str = "reaper", *, ticks: int, **settings: Any) -> Agent:
        """Start a reaper that ticks ``ticks`` times."""
        kwargs = {**self.common, "name": "reaper", "settings": settings, "ticks": ticks}
        return self.chaos.spawn(REAPER, kwargs=kwargs, name=name)

    def expect_left_alone(self, **settings: Any) -> None:
        """Let a reaper tick many times, and expect that it does nothing."""
        self.reaper(ticks=TICKS, **settings).wait_exit()
        ((status, claim),) = rows(self.database, "SELECT status, claim FROM jobs WHERE job_id = 1")
        observed = f"{status} with claim {claim} after {TICKS} looks"
        self.chaos.check(self.reaped(status, claim), expect="a living one is left alone")
        self.chaos.note("left alone", observed)

    def reaped(self, status: str, claim: int) -> Iterator[Finding]:
        """Find that the first claim of the job was ended."""
        if (status, claim) != ("running", 1):
            text = f"the job is {status}, with claim {claim}, though its executor or monitor lives"
            yield Finding(signature="reaper:reaped-the-living", text=text, checker="reaped")

    def judge(self, *, statuses: tuple[str, ...] = ("done",)) -> None:
        """Expect one end, one advance, and never two executors."""
        self.chaos.check(check_executors(self.database.parent), expect="never two executors, as their lock has it")
        self.chaos.check(check_jobs(self.database, 1, statuses=statuses), expect="the job is done, once")
        self.chaos.check(check_stages(self.database, [TASK]), expect="the stage is left once")
        self.chaos.check(check_ways(self.database), expect="each row is on a way that the model allows")
        self.chaos.check(check_no_exceptions(self.chaos.history), expect="no exception in any agent")


@pytest.fixture
def watch(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> Watch:
    """Return the moves, on a database with one task and its builder's job."""
    with JobQueue(db_path=fresh_db) as queue:
        TaskManager(queue.store).create(TASK, stage="build")
        queue.enqueue("builder", task_id=TASK, max_attempts=5)
    return Watch(chaos, fresh_db, parts)


@pytest.mark.parametrize("point", ["recovery.job.after_exit_code", "recovery.monitor.after_finalise"])
def test_a_monitor_that_stands_still_while_it_finalises(watch: Watch, point: str) -> None:
    """A monitor that is stopped while it finalises is not reaped, and ends the job itself.

    The executor has ended, its exit code is recorded, and the grace is over.
    """
    watch.chaos.plan(pause("monitor", at_point(point)))
    monitor = watch.monitor("monitor")
    monitor.wait_state("T")
    watch.expect_left_alone(reaper_finalize_grace_s=0.0)
    monitor.resume()
    monitor.wait_exit()
    watch.judge()


def test_a_monitor_that_stands_still_before_it_says_how_it_ended(watch: Watch) -> None:
    """A monitor that is stopped before it records the exit code still records it.

    The executor has ended, and the job is within the ceiling.
    """
    watch.chaos.plan(pause("monitor", at_point("recovery.job.before_exit_code")))
    monitor = watch.monitor("monitor")
    monitor.wait_state("T")
    watch.expect_left_alone()
    monitor.resume()
    monitor.wait_exit()
    watch.judge()


def test_an_executor_that_starts_between_the_look_and_the_end(watch: Watch) -> None:
    """A reaper that found no executor, past the ceiling, leaves alone one that has begun since."""
    watch.chaos.plan(
        pause("monitor", at_point("recovery.monitor.after_spawn")),
        pause("reaper", at_point("recovery.reaper.after_look")),
    )
    monitor = watch.monitor("monitor", "1=wait")
    monitor.wait_state("T")
    reaper = watch.reaper(ticks=1, reaper_max_running_s=0.001)
    reaper.wait_state("T")
    monitor.resume()
    wait_for_state(watch, "S")
    reaper.resume()
    reaper.wait_exit()
    ((status, claim),) = rows(watch.database, "SELECT status, claim FROM jobs WHERE job_id = 1")
    watch.chaos.check(watch.reaped(status, claim), expect="an executor that has just begun is left alone")
    (watch.database.parent / "go").touch()
    monitor.wait_exit(timeout_s=60)
    watch.judge()


def wait_for_state(watch: Watch, state: str) -> int:
    """Wait until the executor has begun and is in this state; return its pid."""

    def pid_in_state() -> int:
        for _, claim, pid, what in ledger(watch.database.parent):
            if (claim, what) == (1, "begin"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123 - where /proc is read
                    return pid if file.read().rpartition(") ")[2][0] == state else 0
        return 0

    watch.chaos.wait_until(pid_in_state, what=f"the executor in state {state}")
    return pid_in_state()


@pytest.mark.parametrize(("conduct", "state"), [("stop", "T"), ("linger", "S")])
def test_an_executor_past_the_ceiling_is_ended_before_the_next_one(watch: Watch, conduct: str, state: str) -> None:
    """An executor past the ceiling is ended first, and then followed by another.

    It is stopped, or waits for ever. Within the ceiling it counts as alive.
    """
    monitor = watch.monitor("monitor", f"1={conduct}")
    pid = wait_for_state(watch, state)
    watch.chaos.expect("the executor", observed=f"in state {state}", holds=pid > 0)
    watch.expect_left_alone()
    second = watch.monitor("second")
    watch.reaper("ender", ticks=1, reaper_max_running_s=0.001).wait_exit()
    second.wait_exit(timeout_s=60)
    watch.chaos.check(
        check_executors(watch.database.parent), expect="the first executor was dead when the second began"
    )
    monitor.wait_exit(timeout_s=15)
    claims = sorted({claim for _, claim, _, what in ledger(watch.database.parent) if what == "begin"})
    watch.chaos.expect("claims that were executed", observed=claims, holds=len(claims) == 2)
    watch.judge()


@pytest.mark.parametrize("fault", [pause, kill])
def test_one_that_ends_an_executor_stops_at_every_point(watch: Watch, fault: Callable[..., Fault]) -> None:
    """Wherever a reaper stops that ends an executor past the ceiling, another one ends it.

    Only then is there a second executor.
    """
    watch.chaos.plan(at_every_point("ender", fault, points="recovery.*", sample=SAMPLE))
    monitor = watch.monitor("monitor", "1=linger")
    wait_for_state(watch, "S")

    def others() -> Iterator[Agent]:
        yield watch.reaper("other", ticks=1, reaper_max_running_s=0.001)

    outlive(watch.chaos, watch.reaper("ender", ticks=1, reaper_max_running_s=0.001), others, database=watch.database)
    watch.monitor("second").wait_exit(timeout_s=60)
    monitor.wait_exit(timeout_s=15)
    watch.judge()


def check_owner(watch: Watch) -> Iterator[Finding]:
    """Find that the third claim of the job, which is being executed, is gone."""
    ((status, claim),) = rows(watch.database, "SELECT status, claim FROM jobs WHERE job_id = 1")
    if (status, claim) != ("running", 3):
        text = f"the job is {status}, with claim {claim}, while the executor of claim 3 works on it"
        yield Finding(signature="jobs:taken-from-its-owner", text=text, checker="check_owner")


def test_a_monitor_that_wakes_when_its_job_is_another_ones(watch: Watch) -> None:
    """A monitor that wakes past the ceiling changes nothing: its job has another owner."""
    watch.chaos.plan(pause("monitor", at_point("recovery.monitor.after_exit")))
    monitor = watch.monitor("monitor", "1=fail")
    monitor.wait_state("T")
    watch.reaper("ender", ticks=1, reaper_max_running_s=0.001).wait_exit()
    second = watch.monitor("second", "3=wait")
    watch.chaos.wait_until(
        lambda: any(line[1::2] == (3, "begin") for line in ledger(watch.database.parent)),
        what="the third claim's begin",
    )
    monitor.resume()
    (told,) = monitor.wait_for("job")
    watch.chaos.check(check_owner(watch), expect="the owner's claim is left alone")
    watch.chaos.expect("the monitor is told", observed=told.value["is_lost"], holds=told.value["is_lost"])
    (watch.database.parent / "go").touch()
    for agent in (second, monitor):
        agent.wait_exit(timeout_s=60)
    watch.judge()


def plant_ghosts(watch: Watch, seen: dict[str, Any]) -> dict[str, int]:
    """Add running jobs whose executors are dead, each in its way, and one whose executor lives."""
    rows = {
        "zombie": (seen["zombie"], seen["zombie_start"]),
        "reused": (seen["me"], seen["zombie_start"].rpartition(":")[0] + ":1"),
        "zero": (0, None),
        "none": (None, None),
        "living": (seen["me"], seen["my_start"]),
    }
    with contextlib.closing(sqlite3.connect(watch.database)) as connection, connection:
        for pid, start in rows.values():
            connection.execute(
                "INSERT INTO jobs (agent, repo, status, attempts, max_attempts, claim, pid, process_start, started_at,"
                " error, created_at, updated_at) VALUES ('ghost', '', 'running', 1, 2, 1, ?, ?, ?, '', 0, 0)",
                (pid, start, SystemClock().now()),
            )
    return {name: number for number, name in enumerate(rows, start=2)}


def check_ghosts(watch: Watch, ghosts: dict[str, int], looks: int) -> Iterator[Finding]:
    """Find ghosts that still run after the ticks, and a living executor that does not."""
    statuses = dict(rows(watch.database, "SELECT job_id, status FROM jobs"))
    left = [name for name, number in ghosts.items() if name != "living" and statuses[number] != "queued"]
    if left:
        text = f"after {looks} looks these still count as alive: {', '.join(left)}"
        yield Finding(signature="ghosts:not-reaped", text=text, kind="liveness", checker="check_ghosts")
    if statuses[ghosts["living"]] != "running":
        text = "the job of a living executor was reaped"
        yield Finding(signature="reaper:reaped-the-living", text=text, checker="check_ghosts")


def test_ghosts_are_noticed_by_reapers_that_restart(watch: Watch) -> None:
    """Dead executors are noticed in the second tick, though each tick is a new process's.

    Dead are a zombie, a reused pid, pid 0 and no pid.
    """
    haunt = watch.chaos.spawn(HAUNT, kwargs={"folder": str(watch.database.parent)}, name="haunt")
    (mark,) = haunt.wait_for("haunting")
    watch.chaos.note("ghosts", json.loads(json.dumps(mark.value)))
    ghosts = plant_ghosts(watch, mark.value)
    for number in range(2):
        watch.reaper(f"reaper-{number}", ticks=1).wait_exit()
    watch.chaos.check(check_ghosts(watch, ghosts, 2), expect="ghosts are reaped in the second look, the living one not")
    watch.chaos.expect("the haunting process lives", observed=haunt.state, holds=haunt.running)
    (watch.database.parent / "go").touch()
    haunt.wait_exit()
    watch.chaos.check(check_no_exceptions(watch.chaos.history), expect="no exception in any agent")
