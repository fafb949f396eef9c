"""Scenario 10: reapers and start-ups at once, some killed; each job is won by one.

The counters add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from durable_agents import JobClaim, JobCrashPoint, JobQueue, TaskManager
from pytest_chaos import at_every_point, at_point, hold_lock, kill, pause
from pytest_chaos.checkers import exactly_once

from scenarios.jobs.job_checks import alerts, check_ends, check_stages, rows
from scenarios.jobs.job_scripts import model, of_looks, of_stages
from scenarios.judging import Script, judge, play
from scenarios.limits import ask_limits
from scenarios.work.checks import check_no_exceptions
from scenarios.zombies import SAMPLE, outlive

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_chaos import Agent, Fault, Run

pytestmark = pytest.mark.chaos(
    id="10-rival-reapers",
    title="Of any number of reapers, one ends each job, and their counters add up",
    why="After a crash of a machine everything starts at once, and everything that starts wants to clean up.",
    steps=[
        "Jobs of every kind are left: executors that are gone, exit codes good and bad, and no attempts left.",
        "Five reapers and two start-ups go for them at once; some are killed in the middle, and followed by another.",
        "Each claim is ended once, each stage left once, each failure told once; the counters add up to the jobs.",
    ],
)

REAPER = "scenarios.jobs.job_agents:reaper"
PLAY = "scenarios.jobs.job_scripts:play_jobs"
START_UP = "scenarios.jobs.job_agents:start_up"
SETTINGS = {"reaper_finalize_grace_s": 0.0, "reaper_dead_ticks": 1}
POINTS = tuple(point for point in JobCrashPoint.of("reaper") if point.endswith(("tick", "look", "claim", "commit")))


def leave_jobs(database: Path, count: int) -> list[str]:
    """Leave ``count`` running jobs, as a crash of all monitors does.

    Return the tasks whose builders had succeeded.
    """
    succeeded = []
    with JobQueue(db_path=database) as queue:
        tasks = TaskManager(queue.store)
        for number in range(count):
            task = tasks.create(f"task-{number}", stage="build").task_id
            queue.enqueue("builder", task_id=task, max_attempts=1 + (number % 8 < 6))
            job = queue.claim()
            assert job is not None
            if number % 2:
                queue.record_exit(JobClaim(job.job_id, job.claim), 0 if number % 4 == 1 else 3)
                succeeded += [task] if number % 4 == 1 else []
        with queue.store.transaction() as transaction:  # their executors and monitors are gone
            transaction.execute("UPDATE jobs SET monitor_pid = NULL, monitor_start = NULL", ())  # type: ignore[attr-defined]
    return succeeded


class Rivals:
    """The moves of the scenario, by real processes."""

    def __init__(self, chaos: Run, database: Path, parts: dict[str, str], jobs: int) -> None:
        self.chaos = chaos
        self.database = database
        self.parts = parts
        self.jobs = jobs
        self.succeeded = leave_jobs(database, jobs)

    def run_at_once(self, names: list[str], *, ticks: int) -> None:
        """Start reapers and start-ups, let them begin together, and wait for their ends."""
        gate = self.database.parent / f"go-{names[0]}"
        agents = []
        for name in names:
            kwargs = {"database": str(self.database), "parts": self.parts, "name": name, "gate": str(gate)}
            if name.startswith("start"):
                agents.append(self.chaos.spawn(START_UP, kwargs=kwargs, name=name))
            else:
                more = {"settings": SETTINGS, "ticks": ticks}
                agents.append(self.chaos.spawn(REAPER, kwargs=kwargs | more, name=name))
        for agent in agents:
            agent.wait_for("ready", kind="note")
        gate.touch()
        for agent in agents:
            agent.wait_exit(timeout_s=60)

    def judge(self, *, killed: bool) -> None:
        """Expect one winner for each job, and counters that add up to the number of jobs."""
        self.chaos.check(check_ends(self.database, self.jobs), expect="each claim is ended once")
        self.chaos.check(check_stages(self.database, self.succeeded), expect="each success leaves its stage once")
        failed = rows(self.database, "SELECT job_id, claim FROM jobs WHERE status = 'failed'")
        told = alerts(self.database.parent)
        expected = sorted(f"job-{job}-claim-{claim}" for job, claim in failed)
        self.chaos.expect("failures told", observed=len(set(told)), holds=sorted(set(told)) == expected and bool(told))
        if not killed:
            self.chaos.check(exactly_once.at_most(told, 1), expect="each failure is told once")
        total = sum(mark.value["reaped_total"] for mark in self.chaos.history.acknowledged("reaped"))
        holds = total <= self.jobs if killed else total == self.jobs
        self.chaos.expect(f"reaped_total of all together, of {self.jobs}", observed=total, holds=holds)
        self.chaos.check(check_no_exceptions(self.chaos.history), expect="no exception in any agent")


NAMES = ["start-1", "start-2", *(f"reaper-{number}" for number in range(5))]


def test_five_reapers_and_two_start_ups(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """All at once, and nobody is killed: the counters are exact."""
    rivals = Rivals(chaos, fresh_db, parts, 40)
    rivals.run_at_once(NAMES, ticks=3)
    rivals.judge(killed=False)


def killed_at_random(chaos: Run, database: Path, parts: dict[str, str], *, jobs: int, kills: int) -> None:
    """Kill some of the reapers at points drawn from the seed, and let another one follow."""
    rivals = Rivals(chaos, database, parts, jobs)
    drawn = chaos.random("kills")
    # What comes before the first claim is passed by each; a claim is passed by whoever finds one in
    # his first look.
    points = [POINTS[int(drawn.random() * 2)] for _ in range(kills - 1)]
    points.append(POINTS[int(drawn.random() * len(POINTS))])
    victims = [f"reaper-{number}" for number in range(kills)]
    chaos.plan(*(kill(name, at_point(point)) for name, point in zip(victims, points, strict=True)))
    chaos.note("crash_points", points)
    rivals.run_at_once(victims[-1:], ticks=3)
    rivals.run_at_once([*victims[:-1], *(name for name in NAMES if name not in victims)], ticks=3)
    rivals.run_at_once(["reaper-last"], ticks=3)
    rivals.judge(killed=True)


def test_two_of_five_are_killed(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """The quick form of killed ones: the first of them alone with all the work,
    the other among the rest.
    """
    killed_at_random(chaos, fresh_db, parts, jobs=40, kills=2)


@pytest.mark.chaos_deep
def test_three_of_five_are_killed_over_many_jobs(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """More of both: several batches, several kills."""
    killed_at_random(chaos, fresh_db, parts, jobs=400, kills=3)


@pytest.mark.chaos_deep
@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.rpartition(".")[2])
def test_a_reaper_killed_with_all_the_work(chaos: Run, fresh_db: Path, parts: dict[str, str], point: str) -> None:
    """A reaper is killed at this point with every kind of job to end; the others finish."""
    rivals = Rivals(chaos, fresh_db, parts, 40)
    chaos.plan(kill("victim", at_point(point)))
    chaos.note("crash_points", [point])
    rivals.run_at_once(["victim"], ticks=3)
    rivals.run_at_once(NAMES, ticks=3)
    rivals.judge(killed=True)


@pytest.mark.chaos_deep
def test_five_reapers_over_many_jobs(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Several batches for each, and exact counters."""
    rivals = Rivals(chaos, fresh_db, parts, 400)
    rivals.run_at_once(NAMES, ticks=3)
    rivals.judge(killed=False)


@pytest.mark.parametrize("script", [of_looks, of_stages], ids=lambda script: script.__name__)
def test_what_is_promised_at_its_very_moment(
    chaos: Run, fresh_db: Path, parts: dict[str, str], script: Callable[[], Script]
) -> None:
    """Claims, ends, looks and advances give what the model says, by a clock that stands still."""
    play(chaos, PLAY, script(), database=str(fresh_db), parts=parts)
    judge(chaos, model(), fresh_db)


@pytest.mark.parametrize("fault", [pause, kill])
def test_a_reaper_stops_at_every_point(
    chaos: Run, fresh_db: Path, parts: dict[str, str], fault: Callable[..., Fault]
) -> None:
    """Wherever a reaper stands still or dies, its rivals end all jobs, and none twice."""
    rivals = Rivals(chaos, fresh_db, parts, 8)
    chaos.plan(at_every_point("zombie", fault, points="recovery.*", sample=SAMPLE))

    def reaper(name: str) -> Agent:
        kwargs = {"database": str(fresh_db), "parts": parts, "name": name, "settings": SETTINGS, "ticks": 3}
        return chaos.spawn(REAPER, kwargs=kwargs, name=name)

    outlive(chaos, reaper("zombie"), lambda: map(reaper, ["reaper-1", "reaper-2"]), database=fresh_db)
    rivals.run_at_once(["reaper-last"], ticks=3)
    rivals.judge(killed=fault is kill)


def test_the_lock_is_held_at_every_point(chaos: Run, fresh_db: Path, parts: dict[str, str]) -> None:
    """Wherever somebody else takes the write lock, a reaper waits for it, and ends all jobs."""
    rivals = Rivals(chaos, fresh_db, parts, 8)
    points = "recovery.reaper.*_cl*"  # before and after a claim: within one nobody else can take it
    chaos.plan(
        at_every_point("reaper-0", hold_lock, points=points, sample=SAMPLE, database=fresh_db.name, duration_s=0.1)
    )
    rivals.run_at_once(["reaper-0"], ticks=3)  # alone, so that it surely claims
    rivals.run_at_once(["reaper-1"], ticks=3)
    rivals.judge(killed=False)


def test_what_is_promised_at_a_bound(chaos: Run) -> None:
    """Bounds count at their value; defaults are as promised; one decision is one transaction."""
    ask_limits(chaos, "jobs")
