"""The questions about a reaper: what it leaves alone, what stops it, and what it tells."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import msgspec
from durable_agents import JobClaim, JobQueue, JobReaper, JobStatus, ReaperSettings, TaskManager, open_store
from durable_agents.errors import DatabaseLocked, ExecutorNotEnded, TaskConflict
from durable_agents.jobs import lease_files, queue as outcomes, reaper as reapers
from durable_agents.jobs.queue import JOB_VARIABLE
from durable_agents.processes import start_of

from scenarios.questions.world import GONE, YEAR_S, Questions, World, during, left_job, refused, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def reaper_of(world: World, **bounds: Any) -> JobReaper:
    """Return a reaper of the world's jobs."""
    queue = JobQueue(world.store, clock=world.clock)
    return JobReaper(queue, world.engine(), settings=ReaperSettings(**bounds), notifier=lambda _: None)


def statuses(world: World) -> list[str]:
    """Return the statuses of all jobs, and how often each was claimed."""
    queue = JobQueue(world.store)
    numbers = range(1, 1 + sum(world.store.active_job_counts().values()))
    return [f"{queue.get(number).status} {queue.get(number).claim}" for number in numbers]


def executor(job: int, *, leader_ends: bool = False) -> tuple[int, int]:
    """Start an executor of a job; return the pids of the leader and of a member that lives."""
    script = "sleep 600 & echo $!" if leader_ends else "sleep 600 & echo $!; exec >&-; wait"
    environment = {**os.environ, JOB_VARIABLE: str(job)}
    leader = subprocess.Popen(
        ["/bin/sh", "-c", script.replace("600 &", "600 >&- &")],
        start_new_session=True, env=environment, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert leader.stdout is not None
    with leader.stdout:
        member = int(leader.stdout.readline())
    if leader_ends:
        leader.wait()
    return leader.pid, member


@contextlib.contextmanager
def living() -> Iterator[tuple[int, str | None]]:
    """Have a process that lives: its pid and its start."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        yield process.pid, start_of(process.pid)
    finally:
        process.kill()
        process.wait()


def is_living(pid: int) -> bool:
    """Tell whether a process lives; one that was killed has a moment to end."""
    deadline_s = time.monotonic() + 5.0
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            return False
        if state in "ZX":
            return False
        if state == "S":
            return True
    return True


def invalid_reapers(world: World) -> list[str]:
    """Return how reapers are answered with two stores, without a name, and with odd settings."""
    queue = JobQueue(world.store)
    with open_store(world.folder / "other.db") as other:
        found = [
            refused(lambda: JobReaper(JobQueue(other), world.engine())),
            refused(lambda: JobReaper(queue, world.engine(), name="")),
        ]
    found += settings(ReaperSettings, "reaper_dead_ticks", True)  # noqa: FBT003 - no number
    for name in ("finalize_grace", "max_running", "interval"):
        found += settings(ReaperSettings, f"reaper_{name}_s", float("nan"), float("inf"), True)  # noqa: FBT003 - no number
    return found


def a_start(world: World) -> list[Any]:
    """Return what a start makes of jobs: an orphan, one that has exited, one that is executed."""
    queue = JobQueue(world.store, clock=world.clock)
    left_job(world, queue, executor=GONE)
    left_job(world, queue, executor=GONE, exit_code=0)
    left_job(world, queue, executor=world.open.enter_context(living()))
    reaper = reaper_of(world, reaper_interval_s=1000.0, reaper_dead_ticks=9)
    before = reaper.health.is_running
    with mock.patch.object(lease_files, "reclaim_all_stale_leases", side_effect=OSError("no folder")):
        reaper.start()
    try:
        found = [before, reaper.health.is_running, statuses(world), reaper.reaped_total]
    finally:
        reaper.stop()
    newest = reaper.last_reaped
    return [*found, newest and [newest.job_id, newest.tier]]


def without_switches(world: World) -> list[Any]:
    """Return what a start and a look do with the switches off, and what a tick notes."""
    queue = JobQueue(world.store, clock=world.clock)
    left_job(world, queue)
    off = reaper_of(world, reaper_enabled=False, lease_reclaim_enabled=False, lease_folder="nothing")
    off.start()
    found = [off.health.is_running, msgspec.to_builtins(off.run_once()) == msgspec.to_builtins(reapers.Tick())]
    on = reaper_of(world)
    on.tick()
    return [*found, statuses(world), on.last_run_ts == world.clock.now()]


def quiet_looks(world: World) -> list[int]:
    """Return how many transactions looks take: at nothing new, at a dead one, at its end."""
    queue, engine = JobQueue(world.store, clock=world.clock), world.engine()
    left_job(world, queue, executor=world.open.enter_context(living()))
    reaper = JobReaper(queue, engine, settings=ReaperSettings(), notifier=lambda _: None)
    counts = []
    for pid in (None, GONE, None):
        if pid is not None:
            with world.store.transaction() as transaction:
                transaction.execute("UPDATE jobs SET pid = ?, process_start = ?", pid)
        with world.counted() as count:
            reaper.run_once()
        counts.append(count[0])
    return counts


def monitors(world: World) -> list[Any]:
    """Return what becomes of jobs whose monitors live, or stand still: dead, exited, and too slow.

    A stopped monitor records the exit code when it goes on; a living one has until the ceiling.
    """
    queue, found = JobQueue(world.store, clock=world.clock), list[Any]()
    (stopped, _), (alive, _) = both = [world.open.enter_context(living()) for _ in range(2)]
    os.kill(stopped, signal.SIGSTOP)
    os.waitid(os.P_PID, stopped, os.WSTOPPED | os.WNOWAIT)
    for (pid, start), exit_code in itertools.product(both, (None, 0)):
        job = left_job(world, queue, executor=GONE, exit_code=exit_code)
        with world.store.transaction() as transaction:
            transaction.execute(
                "UPDATE jobs SET monitor_pid = ?, monitor_start = ? WHERE job_id = ?", (pid, start, job)
            )
        reaper = reaper_of(world, reaper_dead_ticks=1, reaper_finalize_grace_s=0.0, reaper_max_running_s=9.0)
        reaper.run_once()
        statuses = [queue.get(job).status.value]
        world.later(10)
        reaper.run_once()
        found.append(["alive" if pid == alive else "stopped", exit_code, *statuses, queue.get(job).status.value])
        while (left := queue.claim()) is not None:
            queue.reap_running_job(left.job_id, JobStatus.DONE)
    return found


def exits(world: World) -> list[str]:
    """Return why jobs are queued again whose executors had these exit codes."""
    queue = JobQueue(world.store, clock=world.clock)
    jobs = [left_job(world, queue, executor=GONE, exit_code=code) for code in (3, -9)]
    reaper_of(world, reaper_finalize_grace_s=0.0).run_once()
    return [queue.get(job).error for job in jobs]


def fenced_meanwhile(world: World) -> list[Any]:
    """Return what happens past the ceiling to an executor whose job another one has just ended.

    Its process belongs to nobody that the reaper may end.
    """
    queue = JobQueue(world.store, clock=world.clock)
    job = left_job(world, queue)
    leader, member = executor(job)
    try:
        queue.started(JobClaim(job, 1), leader)
        world.later(2)
        reaper = reaper_of(world, reaper_max_running_s=1.0)
        with during("recovery.reaper.after_look", lambda: queue.reap_running_job(job, JobStatus.DONE)):
            tick = reaper.run_once()
        return [is_living(member), queue.get(job).status.value, tick.queued, list(tick.errors), reaper.reaped_total]
    finally:
        os.killpg(leader, signal.SIGKILL)


def note_errors(reaper: JobReaper, seen: list[int]) -> None:
    """Note how many errors a reaper has."""
    seen.append(len(reaper.errors))


def unkillable(world: World) -> list[Any]:
    """Return what becomes of jobs whose executors cannot be ended: slow, dead, and at a start."""
    queue, found, seen = JobQueue(world.store, clock=world.clock), list[Any](), list[int]()
    slow = (os.getpid(), start_of(os.getpid()))
    for pid, bounds in ((slow, {"reaper_max_running_s": 1.0}), (GONE, {"reaper_dead_ticks": 1}), (GONE, {})):
        job = left_job(world, queue, executor=pid)
        world.later(2)
        reaper = reaper_of(world, **bounds)
        with (
            mock.patch.object(reapers, "end_group", side_effect=ExecutorNotEnded("it waits for a disk")),
            mock.patch.object(reapers, "_LOGGER") as logger,
            during("recovery.reaper.after_tick", functools.partial(note_errors, reaper, seen)),
            world.counted() as count,
        ):
            if bounds:
                reaper.run_once()
                reaper.run_once()
            else:
                reaper.requeue_running_jobs()
        row = queue.get(job)
        found.append(
            [row.status.value, row.claim, reaper.reaped_total, len(reaper.errors), logger.warning.call_count, count[0]]
        )
        queue.reap_running_job(job, JobStatus.DONE)
    return [*found, seen]


def nameless_executors(world: World) -> list[Any]:
    """Return whether members of a group live on, without the start of their leader, and with it."""
    queue, found = JobQueue(world.store, clock=world.clock), list[Any]()
    for start in (None, GONE[1]):
        job = left_job(world, queue)
        leader, member = executor(job, leader_ends=True)
        try:
            with world.store.transaction() as transaction:
                transaction.execute("UPDATE jobs SET pid = ?, process_start = ? WHERE job_id = ?", (leader, start, job))
            reaper_of(world, reaper_dead_ticks=1).run_once()
            found.append([is_living(member), queue.get(job).status.value])
        finally:
            if is_living(member):
                os.kill(member, signal.SIGKILL)
        queue.claim()
        queue.reap_running_job(job, JobStatus.DONE)
    return found


def errors_of_one(world: World) -> list[Any]:
    """Return what an error about one of three jobs, and one that meets all, make of a look."""
    queue, found = JobQueue(world.store, clock=world.clock), list[Any]()
    TaskManager(world.store, clock=world.clock).create("t", stage="build")
    settle, of_exit = outcomes.settle, outcomes.of_exit

    def failing(call: Callable[..., Any], error: Exception) -> Callable[..., Any]:
        def do(first: Any, second: Any, *rest: Any, **more: Any) -> Any:
            outcome = second if hasattr(second, "job_id") else first
            if outcome.job_id == jobs[1]:
                raise error
            return call(first, second, *rest, **more)

        return do

    for error in (TaskConflict("of one"), DatabaseLocked("of all")):
        for place, call, code in ((reapers, settle, 1), (outcomes, of_exit, 0)):
            jobs = [left_job(world, queue, executor=GONE, exit_code=code, task_id="t") for _ in range(3)]
            reaper = reaper_of(world, reaper_finalize_grace_s=0.0)
            with mock.patch.object(place, call.__name__, failing(call, error)):
                told = refused(reaper.run_once)
            ended = [queue.get(job).status != "running" for job in jobs]
            found.append([told, ended, [text.partition(":")[0] for text in reaper.errors], reaper.reaped_total])
            for number in range(1, jobs[-1] + 1):
                queue.reap_running_job(number, JobStatus.DONE)
            while (job := queue.claim()) is not None:
                queue.reap_running_job(job.job_id, JobStatus.DONE)
    return found


def errors_of_a_fence(world: World) -> list[Any]:
    """Return what an error makes of a look that fences off, and whether the executor lives."""
    queue, found = JobQueue(world.store, clock=world.clock), list[Any]()
    for error in (TaskConflict("of one"), DatabaseLocked("of all")):
        job = left_job(world, queue)
        leader, member = executor(job)
        try:
            queue.started(JobClaim(job, 1), leader)
            world.later(2)
            reaper = reaper_of(world, reaper_max_running_s=1.0)
            with mock.patch.object(outcomes, "is_executed_by", side_effect=error):
                told = refused(reaper.run_once)
            found.append([told, is_living(member), queue.get(job).status.value, len(reaper.errors)])
        finally:
            os.killpg(leader, signal.SIGKILL)
        queue.reap_running_job(job, JobStatus.DONE)
    return found


QUESTIONS: Final[Questions] = {
    "jobs: reapers that are refused": (
        invalid_reapers,
        [
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
        ],
    ),
    "jobs: a reaper's start": (a_start, [False, True, ["queued 1", "running 1", "running 1"], 1, [1, 0]]),
    "jobs: a reaper's switches": (without_switches, [False, True, ["running 1"], True]),
    "jobs: looks that change nothing": (quiet_looks, [0, 1, 1]),
    "jobs: monitors that live, or stand still": (
        monitors,
        [
            ["stopped", None, "running", "queued"],
            ["stopped", 0, "running", "done"],
            ["alive", None, "queued", "queued"],
            ["alive", 0, "running", "done"],
        ],
    ),
    "jobs: exit codes are told": (exits, ["its executor had exit code 3", "its executor had ended by signal 9"]),
    "jobs: a job that ends before it is fenced off": (fenced_meanwhile, [True, "done", 0, [], 0]),
    "jobs: an executor that cannot be ended": (
        unkillable,
        [["running", 2, 0, 1, 1, 2], ["running", 1, 0, 1, 1, 0], ["running", 1, 0, 0, 1, 0], [1, 1]],
    ),
    "jobs: an executor without a start": (nameless_executors, [[True, "queued"], [False, "queued"]]),
    "jobs: an error of one job": (
        errors_of_one,
        [
            ["", [True, False, True], ["Job 2 was left"], 2],
            ["", [True, False, True], ["Job 5 was left"], 2],
            ["DatabaseLocked", [False, False, False], [], 0],
            ["DatabaseLocked", [True, False, False], [], 1],
        ],
    ),
    "jobs: an error of a fence": (
        errors_of_a_fence,
        [["", True, "running", 1], ["DatabaseLocked", True, "running", 0]],
    ),
    "jobs: ticks": (
        lambda _: settings(ReaperSettings, "reaper_dead_ticks", 0, 1, 1_000_000, 1_000_001),
        ["InvalidSetting", "", "", "InvalidSetting"],
    ),
    "jobs: grace": (
        lambda _: settings(ReaperSettings, "reaper_finalize_grace_s", -0.001, 0.0, YEAR_S, YEAR_S + 0.001),
        ["InvalidSetting", "", "", "InvalidSetting"],
    ),
    "jobs: ceiling": (
        lambda _: settings(ReaperSettings, "reaper_max_running_s", 0.0009, 0.001, YEAR_S, YEAR_S + 0.001),
        ["InvalidSetting", "", "", "InvalidSetting"],
    ),
}
