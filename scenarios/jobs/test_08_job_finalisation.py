"""Scenario 08: executor, monitor or reaper die at any point; the job ends once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import JobCrashPoint, JobQueue, TaskManager
from pytest_chaos import Finding, after_mark, at_every_point, at_point, kill, pause

from scenarios.jobs.job_checks import check_executors, check_jobs, check_stages, ledger, rows
from scenarios.model.ways import check_ways
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE, outlive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos import Agent, Fault, Run

pytestmark = pytest.mark.chaos(
    id="08-job-finalisation",
    title="A job ends once, its stage is left once, and the next job is there once",
    why="Between the exit code of an agent and the next stage lie a push, a comment and two writes; and processes die.",
    steps=[
        "A monitor runs the executor of a job; executor, monitor or reaper are killed at a named point.",
        "A reaper and another monitor race for what they left, and a webhook for the stage.",
        "The job is done once, the task has left its stage once, and the next job exists once.",
    ],
)

TASK = "finalise"
MONITOR = "scenarios.jobs.job_agents:monitor"
REAPER = "scenarios.jobs.job_agents:reaper"
WEBHOOK = "scenarios.jobs.job_agents:webhook"
POINTS = (*JobCrashPoint.of("job"), *JobCrashPoint.of("monitor"), *JobCrashPoint.of("stage"))
"""Where a monitor is killed: it passes each of these once for its job."""

REAPER_POINTS = tuple(
    point for point in JobCrashPoint.of("reaper") if not point.endswith(("after_fence", "after_kill", "after_count"))
)
"""Where a reaper is killed that finds an exit code; the others belong to the tiers of scenario 09.
"""

SETTINGS = {"reaper_finalize_grace_s": 0.05, "reaper_max_running_s": 60.0}
ATTEMPTS = 100
"""The reaper looks every 2 ms, and takes an executor that two looks find unrecorded for dead: on a
busy machine that used up five attempts, and the job failed with nothing wrong.
"""


class Pipeline:
    """The moves of the scenario, by real processes."""

    def __init__(self, chaos: Run, database: Path, parts: dict[str, str]) -> None:
        self.chaos = chaos
        self.database = database
        self.common = {"database": str(database), "parts": parts}

    def monitor(self, name: str, *conducts: str) -> Agent:
        """Start a monitor whose executors show these conducts."""
        kwargs = {**self.common, "conducts": list(conducts), "jobs": 1}
        return self.chaos.spawn(MONITOR, kwargs=kwargs, name=name)

    def reaper(self, name: str = "reaper", *, ticks: int = 0) -> Agent:
        """Start a reaper that ticks ``ticks`` times, or until all jobs have ended."""
        kwargs = {**self.common, "name": name, "settings": SETTINGS, "ticks": ticks}
        return self.chaos.spawn(REAPER, kwargs=kwargs, name=name)

    def webhook(self, name: str = "webhook") -> Agent:
        """Start a webhook that advances the task."""
        return self.chaos.spawn(WEBHOOK, kwargs={**self.common, "task_id": TASK}, name=name)

    def race_to_the_end(self) -> None:
        """Let a reaper and a new monitor finish the work, at once."""
        for agent in (self.reaper("reaper-last"), self.monitor("monitor-last")):
            agent.wait_exit(timeout_s=60)
        self.judge()

    def judge(self) -> None:
        """Expect one end, one advance, one next job, and never two executors."""
        self.chaos.check(check_jobs(self.database, 1), expect="the job is done, once")
        self.chaos.check(check_ways(self.database), expect="each row is on a way that the model allows")
        self.chaos.check(
            check_stages(self.database, [TASK]), expect="the stage is left once, the next job is there once"
        )
        self.chaos.check(check_executors(self.database.parent), expect="one executor at a time, one for each claim")
        self.chaos.check(check_no_exceptions(self.chaos.history), expect="no exception in any agent")


@pytest.fixture
def pipeline(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> Pipeline:
    """Return the moves, on a database with one task and its builder's job."""
    with JobQueue(db_path=fresh_db) as queue:
        TaskManager(queue.store).create(TASK, stage="build")
        queue.enqueue("builder", "repo", task_id=TASK, max_attempts=ATTEMPTS)
    return Pipeline(chaos, fresh_db, parts)


def killed_monitor(pipeline: Pipeline, point: str) -> None:
    """Kill a monitor at the point, and let other processes finish its work."""
    pipeline.chaos.plan(kill("monitor", at_point(point)))
    pipeline.chaos.note("crash_points", [point])
    pipeline.monitor("monitor").wait_exit()
    pipeline.race_to_the_end()


def test_a_monitor_killed_at_a_point_drawn_from_the_seed(pipeline: Pipeline) -> None:
    """The quick form: anywhere from the claim to the advance."""
    drawn = pipeline.chaos.random("kills")
    killed_monitor(pipeline, POINTS[int(drawn.random() * len(POINTS))])


@pytest.mark.chaos_deep
@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.partition(".")[2])
def test_a_monitor_killed_at_a_named_point(pipeline: Pipeline, point: str) -> None:
    """Every named point between start and advance."""
    killed_monitor(pipeline, point)


def test_an_executor_that_nobody_knows_of_does_not_begin(pipeline: Pipeline) -> None:
    """An executor whose pid was never recorded does not begin.

    The monitor dies between the start of the executor and the record of its pid.
    """
    pipeline.chaos.plan(kill("monitor", at_point("recovery.monitor.after_spawn")))
    pipeline.monitor("monitor", "1=linger").wait_exit()
    pipeline.race_to_the_end()
    pipeline.chaos.check(check_unseen(pipeline.database.parent), expect="no executor begins before its pid is stored")


def check_unseen(folder: Path) -> Iterator[Finding]:
    """Find that the first claim was executed."""
    if begun := [pid for _, claim, pid, what in ledger(folder) if (claim, what) == (1, "begin")]:
        text = f"executor {begun[0]} began, and nobody knew of it"
        yield Finding(signature="executors:began-unseen", text=text, checker="check_unseen")


@pytest.mark.parametrize("conduct", ["die", "die-late", "fail"])
def test_an_executor_that_dies(pipeline: Pipeline, conduct: str) -> None:
    """An executor that dies or fails is followed by an attempt that succeeds.

    It is killed as it begins, or just before it returns, or it exits with an error.
    """
    pipeline.monitor("monitor", f"1={conduct}").wait_exit()
    codes = [code for (code,) in rows(pipeline.database, "SELECT exit_code FROM agent_runs ORDER BY run_id")]
    pipeline.chaos.expect("exit codes", observed=codes, holds=codes == [3 if conduct == "fail" else -9, 0])
    pipeline.judge()


@pytest.mark.parametrize(
    "point", [pytest.param("recovery.reaper.after_claim", id="after_claim")]
    + [
        pytest.param(point, id=point.rpartition(".")[2], marks=pytest.mark.chaos_deep)
        for point in (*REAPER_POINTS, *JobCrashPoint.of("stage"))
        if not point.endswith("after_claim")
    ],
)  # fmt: skip
def test_a_reaper_killed_at_a_named_point(pipeline: Pipeline, point: str) -> None:
    """A reaper that took over from a dead monitor is killed at each named point.

    The monitor died after it had recorded the exit code.
    """
    pipeline.chaos.plan(kill("monitor", at_point("recovery.job.after_exit_code")), kill("reaper", at_point(point)))
    pipeline.chaos.note("crash_points", [point])
    pipeline.monitor("monitor").wait_exit()
    pipeline.reaper().wait_exit(timeout_s=60)
    pipeline.race_to_the_end()


def test_a_webhook_comes_while_the_reaper_holds_its_claim_back(pipeline: Pipeline) -> None:
    """A webhook moves the task while a reaper is stopped before its claim.

    The reaper has seen a green gate, and is resumed afterwards.
    """
    pipeline.chaos.plan(
        kill("monitor", at_point("recovery.job.after_exit_code")),
        pause("reaper", at_point("recovery.reaper.before_claim")),
    )
    pipeline.monitor("monitor").wait_exit()
    reaper = pipeline.reaper()
    reaper.wait_state("T")
    pipeline.webhook().wait_exit()
    reaper.resume()
    reaper.wait_exit()
    pipeline.judge()


def test_a_webhook_comes_between_the_claim_and_the_advance(pipeline: Pipeline) -> None:
    """Webhook and reaper act while the monitor is stopped before its advance.

    The monitor has ended the job.
    """
    pipeline.chaos.plan(
        pause("monitor", at_point("recovery.stage.before_advance")),
        pause("webhook", at_point("recovery.stage.before_advance")),
    )
    monitor = pipeline.monitor("monitor")
    monitor.wait_state("T")
    webhook = pipeline.webhook()
    webhook.wait_state("T")
    pipeline.reaper().wait_exit()
    for agent in (webhook, monitor):
        agent.resume()
        agent.wait_exit()
    pipeline.judge()


def test_the_reaper_ends_the_job_of_a_monitor_that_stands_still(pipeline: Pipeline) -> None:
    """A monitor that was killed while it finalised is followed once, by many reapers.

    Its finalizers ran once.
    """
    pipeline.chaos.plan(kill("monitor", after_mark("finalised", kind="note")))
    pipeline.monitor("monitor").wait_exit()
    reapers = [pipeline.reaper(f"reaper-{number}") for number in range(3)]
    for reaper in reapers:
        reaper.wait_exit()
    pipeline.judge()
    begun = [line for line in ledger(pipeline.database.parent) if line[3] == "begin"]
    pipeline.chaos.expect("executors", observed=len(begun), holds=len(begun) == 1)


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_monitor_stops_at_every_point(pipeline: Pipeline, fault: Callable[..., Fault]) -> None:
    """Wherever a monitor stands still or dies, a webhook, a reaper and another monitor act."""
    chaos = pipeline.chaos
    chaos.plan(at_every_point("monitor", fault, points="recovery.*", sample=SAMPLE))

    def others() -> Iterator[Agent]:
        yield pipeline.webhook()
        yield pipeline.reaper(ticks=3)

    outlive(chaos, pipeline.monitor("monitor"), others, database=pipeline.database)
    pipeline.race_to_the_end()


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_reaper_stops_at_every_point(pipeline: Pipeline, fault: Callable[..., Fault]) -> None:
    """Wherever a reaper stands still or dies that took over, another one and a webhook act."""
    chaos = pipeline.chaos
    swept = at_every_point("zombie", fault, points="recovery.*", sample=SAMPLE)
    chaos.plan(kill("monitor", at_point("recovery.job.after_exit_code")), swept)
    pipeline.monitor("monitor").wait_exit()

    def others() -> Iterator[Agent]:
        yield pipeline.webhook()
        yield pipeline.reaper(ticks=3)

    outlive(chaos, pipeline.reaper("zombie"), others, database=pipeline.database)
    pipeline.race_to_the_end()
