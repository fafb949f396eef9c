"""The reaper: its three tiers, what it leaves alone, and what it does when things go wrong.

It is long because it has what the seed's tests have, with real processes where those were faked,
and what those could not see. Executors are real; time is a clock that the test moves.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import (
    JobClaim,
    JobCrashPoint,
    JobQueue,
    JobReaper,
    JobStatus,
    LeaseFile,
    ManualClock,
    Pipeline,
    ReaperSettings,
    Stage,
    StageEngine,
    TaskManager,
    Tick,
)
from durable_agents.errors import DatabaseLocked, InvalidSetting, JobLost
from durable_agents.jobs.reaper import Tier
from durable_agents.processes import Liveness, look, start_of
from durable_agents.store import open_store
from durable_agents.store.rows import OutboxKind

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from durable_agents import Alert, Job
    from durable_agents.store.rows import Task

PIPELINE = Pipeline(
    (
        Stage(name="plan", next="build", is_human_gated=True, leavers=("planner",)),
        Stage(name="build", next="check", gate="built", starts="builder", leavers=("builder",)),
        Stage(name="check", next="end", starts="checker", leavers=("checker",)),
        Stage(name="end"),
    )
)
_TIMEOUT_S = 30


class World:
    """A queue, an engine whose gate a test turns, and a clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()
        self.queue = JobQueue(db_path=path, clock=self.clock)
        self.store = self.queue.store
        self.is_green = True
        self.asked = 0
        self.meanwhile: Callable[[], object] = lambda: None
        self.told: list[Alert] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        TaskManager(self.store, clock=self.clock).create("t", stage="build")
        gates = {"built": self._gate}
        self.engine = StageEngine(self.store, pipeline=PIPELINE, gates=gates, clock=self.clock)

    def _gate(self, _: Task) -> bool:
        self.asked += 1
        self.meanwhile()
        return self.is_green

    def reaper(self, name: str = "reaper", **settings: Any) -> JobReaper:
        """Return a reaper, with the settings of the default but for these."""
        found = ReaperSettings(**settings)
        return JobReaper(self.queue, self.engine, settings=found, notifier=self.told.append, name=name)

    def process(self) -> subprocess.Popen[bytes]:
        """Return a process that lives."""
        self.processes.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        return self.processes[-1]

    def gone(self) -> tuple[int, str]:
        """Return number and start of a process that has ended."""
        process = self.process()
        start = start_of(process.pid)
        process.kill()
        process.wait()
        assert start is not None
        return process.pid, start

    def running(
        self,
        *,
        pid: int | None = None,
        start: str | None = None,
        exit_code: int | None = None,
        monitor: tuple[int, str | None] | None = None,
        agent: str = "builder",
        task_id: str | None = "t",
        attempts: int = 1,
        max_attempts: int = 2,
    ) -> int:
        """Make a job that runs, as the row of another process would be; return its id."""
        self.queue.enqueue(agent, "r", task_id=task_id, max_attempts=max_attempts)
        job = self.queue.claim()
        assert job is not None
        if exit_code is not None:
            self.queue.record_exit(JobClaim(job.job_id, job.claim), exit_code)
        self.execute(
            "UPDATE jobs SET pid = ?, process_start = ?, monitor_pid = ?, monitor_start = ?, attempts = ? "
            "WHERE job_id = ?",
            (pid, start, *(monitor or (None, None)), attempts, job.job_id),
        )
        return job.job_id

    def alive(self, **others: Any) -> int:
        """Make a job whose executor lives; return its id."""
        process = self.process()
        return self.running(pid=process.pid, start=start_of(process.pid), **others)

    def dead(self, **others: Any) -> int:
        """Make a job whose executor is gone; return its id."""
        pid, start = self.gone()
        return self.running(pid=pid, start=start, **others)

    def execute(self, statement: str, parameters: tuple[Any, ...] = ()) -> None:
        """Change the file from outside."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(statement, parameters)

    def dump(self) -> list[str]:
        """Return everything that the file holds."""
        with closing(sqlite3.connect(self.path)) as connection:
            return list(connection.iterdump())

    def status(self, job_id: int) -> JobStatus:
        """Return the status of a job."""
        return self.queue.get(job_id).status

    def stage(self, task_id: str = "t") -> str:
        """Return the stage of the task."""
        task = self.store.task(task_id)
        assert task is not None
        return task.stage

    def next_jobs(self) -> list[str]:
        """Return the agents of the queued jobs of the task."""
        return [job.agent for job in self.store.active_jobs("t") if job.status is JobStatus.QUEUED]

    def close(self) -> None:
        """End what was started."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.queue.close()


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "store.db")
    yield world
    world.close()


# Tier 1: dead executors.


def test_a_dead_executor_is_reaped_in_the_second_tick(world: World) -> None:
    """TC-01: the first dead tick is counted, the second one requeues; the counters say so."""
    job_id = world.dead()
    reaper = world.reaper()
    assert reaper.run_once() == Tick(running=1, dead=1)
    assert world.status(job_id) is JobStatus.RUNNING
    assert reaper.run_once() == Tick(running=1, dead=1, queued=1)
    job = world.queue.get(job_id)
    assert (job.status, reaper.reaped_total) == (JobStatus.QUEUED, 1)
    assert f"(pid {job.pid}) was dead in 2 looks" in job.error
    reaped = reaper.last_reaped
    assert reaped is not None
    assert (reaped.job_id, reaped.tier, reaped.status) == (job_id, Tier.DEAD, JobStatus.QUEUED)
    assert reaper.run_once() == Tick()


def test_a_living_executor_is_never_reaped(world: World) -> None:
    """TC-02: however often it is looked at, also when it is stopped."""
    job_id = world.alive()
    reaper = world.reaper()
    for number in range(5):
        assert reaper.run_once() == Tick(running=1)
        if number == 2:
            world.processes[0].send_signal(signal.SIGSTOP)
    assert (world.status(job_id), reaper.reaped_total) == (JobStatus.RUNNING, 0)


def test_only_consecutive_dead_ticks_count(world: World) -> None:
    """TC-03: dead, dead, alive, dead, dead, dead: reaped in the sixth,
    by the rows of a real process each time.
    """
    living = world.process()
    pid, start = world.gone()
    job_id = world.running(pid=pid, start=start)
    reaper = world.reaper(reaper_dead_ticks=3)
    counts = []
    for number in range(6):
        who = (living.pid, start_of(living.pid)) if number == 2 else (pid, start)
        world.execute("UPDATE jobs SET pid = ?, process_start = ? WHERE job_id = ?", (*who, job_id))
        assert world.status(job_id) is JobStatus.RUNNING
        reaper.run_once()
        counts += [job.dead_ticks for job in world.store.running_jobs("reaper", limit=9)]
    assert counts == [1, 2, 0, 1, 2]
    assert world.status(job_id) is JobStatus.QUEUED


def test_a_restart_forgets_no_dead_tick(world: World) -> None:
    """D20: each tick is a new reaper, as after a restart;
    of another name, the count is another one.
    """
    job_id = world.dead()
    world.reaper().run_once()
    world.reaper("other").run_once()
    assert world.status(job_id) is JobStatus.RUNNING
    world.reaper().run_once()
    assert world.status(job_id) is JobStatus.QUEUED


def test_a_new_claim_begins_a_new_count(world: World) -> None:
    """What was counted of an attempt is not held against the next one."""
    world.dead()
    reaper = world.reaper(reaper_dead_ticks=3)
    reaper.run_once()
    reaper.run_once()
    assert world.queue.reap_running_job(1, JobStatus.QUEUED)
    assert world.queue.claim() is not None
    reaper.run_once()
    assert world.status(1) is JobStatus.RUNNING


def test_zombies_reused_numbers_and_no_numbers_are_dead(world: World) -> None:
    """D18: a zombie, a number that another process has, pid 0 and no pid,
    and none of ours is signalled.
    """
    zombie, other = world.process(), world.process()
    start = start_of(zombie.pid)
    zombie.kill()
    until(lambda: look(zombie.pid, start) is Liveness.DEAD)
    ghosts = [
        world.running(pid=zombie.pid, start=start),
        world.running(pid=other.pid, start="another:1"),
        world.running(pid=0),
        world.running(),
        world.running(pid=-1, start="x"),
    ]
    living = world.alive()
    reaper = world.reaper()
    reaper.run_once()
    assert reaper.run_once() == Tick(running=6, dead=5, queued=5)
    assert {world.status(ghost) for ghost in ghosts} == {JobStatus.QUEUED}
    assert world.status(living) is JobStatus.RUNNING
    assert look(other.pid, start_of(other.pid)) is Liveness.ALIVE


def test_an_executor_of_another_user_is_judged_like_any(world: World) -> None:
    """Pid 1 with its own start lives, and with another start it is a reused number."""
    mine, stale = world.running(pid=1, start=start_of(1)), world.running(pid=1, start="another:1")
    reaper = world.reaper()
    reaper.run_once()
    reaper.run_once()
    assert (world.status(mine), world.status(stale)) == (JobStatus.RUNNING, JobStatus.QUEUED)


def test_a_stopped_monitor_has_time_to_record_the_end(world: World) -> None:
    """Its executor has ended and it has not said so yet:
    it will when it goes on, and is reaped when it cannot.
    """
    monitor = world.process()
    pid, start = world.gone()
    job_id = world.running(pid=pid, start=start, monitor=(monitor.pid, start_of(monitor.pid)))
    monitor.send_signal(signal.SIGSTOP)
    until(lambda: look(monitor.pid, None) is Liveness.STOPPED)
    reaper = world.reaper()
    for _ in range(4):
        assert reaper.run_once() == Tick(running=1)
    monitor.kill()
    monitor.wait()
    reaper.run_once()
    reaper.run_once()
    assert world.status(job_id) is JobStatus.QUEUED


_FAMILY = "import os, subprocess; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); os._exit(0)"


def test_what_a_dead_executor_left_running_is_ended_first(world: World) -> None:
    """A child in the group of a dead executor would work beside the next attempt."""
    environment = {**os.environ, **JobClaim(1, 1).environment()}
    leader = subprocess.Popen(
        [sys.executable, "-c", _FAMILY], stdout=subprocess.PIPE, start_new_session=True, env=environment
    )
    start = start_of(leader.pid)
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    child_start = start_of(child)
    leader.wait()
    leader.stdout.close()
    job_id = world.running(pid=leader.pid, start=start)
    reaper = world.reaper(reaper_dead_ticks=1)
    reaper.run_once()
    assert look(child, child_start) is Liveness.DEAD
    assert world.status(job_id) is JobStatus.QUEUED


def test_without_attempts_left_a_job_fails_with_one_alert(world: World) -> None:
    """In tier 1 as in any: failed, and told once, however often it is looked at afterwards."""
    job_id = world.dead(attempts=2)
    reaper = world.reaper()
    reaper.run_once()
    assert reaper.run_once() == Tick(running=1, dead=1, failed=1, alerted=1)
    for _ in range(3):
        reaper.run_once()
    assert world.status(job_id) is JobStatus.FAILED
    assert [alert.job_id for alert in world.told] == [job_id]


# Tier 2: the exit code is there.


@pytest.mark.parametrize(
    ("exit_code", "attempts", "status", "alerts"),
    [
        (0, 1, JobStatus.DONE, 0),
        (1, 1, JobStatus.QUEUED, 0),
        (-9, 1, JobStatus.QUEUED, 0),
        (1, 2, JobStatus.FAILED, 1),
    ],
)
def test_an_exit_code_decides_after_the_grace(
    world: World, exit_code: int, attempts: int, status: JobStatus, alerts: int
) -> None:
    """TC-05: within the grace nothing, after it: done and advanced, queued, or failed and told."""
    job_id = world.dead(exit_code=exit_code, attempts=attempts)
    reaper = world.reaper()
    world.clock.advance(299)
    for _ in range(3):
        assert reaper.run_once() == Tick(running=1)
    assert (world.stage(), world.asked) == ("build", 0)
    world.clock.advance(1)
    reaper.run_once()
    assert (world.status(job_id), len(world.told)) == (status, alerts)
    assert world.stage() == ("check" if status is JobStatus.DONE else "build")
    assert world.next_jobs() == {JobStatus.DONE: ["checker"], JobStatus.QUEUED: ["builder"]}.get(status, [])
    assert reaper.last_reaped is not None
    assert reaper.last_reaped.tier is Tier.EXITED


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_red_gate_has_no_side_effects(world: World, attempts: int) -> None:
    """TC-05: exit 0 and red: queued while attempts remain, else failed;
    no advance, and no next job.
    """
    job_id = world.dead(exit_code=0, attempts=attempts)
    world.is_green = False
    world.clock.advance(300)
    world.reaper().run_once()
    assert world.status(job_id) is (JobStatus.QUEUED if attempts == 1 else JobStatus.FAILED)
    assert world.stage() == "build"
    assert world.store.outbox(OutboxKind.ADVANCE, limit=9) == []
    assert "checker" not in world.next_jobs()


@pytest.mark.parametrize(
    ("agent", "stage"), [("builder", "check"), ("builder", "nowhere"), ("stranger", "build"), ("planner", "plan")]
)
def test_what_leaves_no_stage_is_done_without_an_advance(world: World, agent: str, stage: str) -> None:
    """TC-05: past it already, a stage or an agent that nobody knows, and a human's decision:
    done, no gate is asked.
    """
    world.execute("UPDATE tasks SET stage = ?", (stage,))
    job_id = world.dead(exit_code=0, agent=agent)
    world.clock.advance(300)
    assert world.reaper().run_once() == Tick(running=1, done=1)
    assert (world.status(job_id), world.stage(), world.asked) == (JobStatus.DONE, stage, 0)
    assert world.next_jobs() == []


def test_a_live_finalising_monitor_is_never_reaped(world: World) -> None:
    """Long after the grace, stopped too; when it has died, or the ceiling is reached, it is."""
    monitor = world.process()
    others = {"exit_code": 0, "monitor": (monitor.pid, start_of(monitor.pid))}
    job_id = world.dead(**others)
    reaper = world.reaper(reaper_max_running_s=3600)
    world.clock.advance(1200)
    assert reaper.run_once() == Tick(running=1)
    monitor.send_signal(signal.SIGSTOP)
    until(lambda: look(monitor.pid, None) is Liveness.STOPPED)
    world.clock.advance(1200)
    assert reaper.run_once() == Tick(running=1)
    world.clock.advance(1201)
    assert reaper.run_once() == Tick(running=1, done=1, advanced=1)
    with pytest.raises(JobLost):
        world.queue.check(JobClaim(job_id, 1))


def test_the_grace_holds_past_the_ceiling(world: World) -> None:
    """An exit code that came at the last moment gives its monitor the whole grace."""
    job_id = world.dead()
    world.clock.advance(7100)
    world.queue.record_exit(JobClaim(job_id, 1), 0)
    reaper = world.reaper()
    world.clock.advance(200)
    assert reaper.run_once() == Tick(running=1)
    world.clock.advance(100)
    assert reaper.run_once().done == 1


def late_monitor(world: World, job_id: int) -> None:
    """End the job as its monitor would."""
    assert world.queue.reap_running_job(job_id, JobStatus.DONE)


def start_up(world: World, job_id: int) -> None:
    """Requeue it, as somebody else would."""
    assert world.queue.reap_running_job(job_id, JobStatus.QUEUED)


@pytest.mark.parametrize("winner", [late_monitor, start_up])
def test_a_lost_claim_does_nothing(world: World, winner: Callable[[World, int], None]) -> None:
    """TC-05: between the gate and the claim somebody else ends the job:
    no advance, and nothing is counted.
    """
    job_id = world.dead(exit_code=0)
    world.clock.advance(300)
    world.meanwhile = lambda: winner(world, job_id)
    reaper = world.reaper()
    assert reaper.run_once() == Tick(running=1)
    assert (world.stage(), reaper.reaped_total, reaper.last_reaped) == ("build", 0, None)
    assert world.store.outbox(OutboxKind.ADVANCE, limit=9) == []


def test_a_webhook_between_gate_and_claim_advances_once(world: World) -> None:
    """D19: the job is done, and the stage was left by the webhook: one advance, one next job."""
    job_id = world.dead(exit_code=0)
    world.clock.advance(300)

    def webhook() -> None:
        world.meanwhile = lambda: None
        assert world.engine.advance_stage("t", "build", finished_agent=None).is_moved

    world.meanwhile = webhook
    assert world.reaper().run_once() == Tick(running=1, done=1)
    assert (world.status(job_id), world.stage(), world.next_jobs()) == (JobStatus.DONE, "check", ["checker"])


# Tier 3: too long.


def test_past_the_ceiling_the_process_is_ended_and_then_requeued(world: World) -> None:
    """TC-04, D17: when the job is queued again, its process is dead already,
    and its claim is refused.
    """
    job_id = world.alive()
    process = world.processes[0]
    start = start_of(process.pid)
    reaper = world.reaper(reaper_max_running_s=100)
    world.clock.advance(100)
    assert reaper.run_once() == Tick(running=1)
    world.clock.advance(1)
    assert reaper.run_once() == Tick(running=1, queued=1)
    assert look(process.pid, start) is Liveness.DEAD
    assert process.wait(_TIMEOUT_S) == -signal.SIGKILL
    assert world.status(job_id) is JobStatus.QUEUED
    with pytest.raises(JobLost):
        world.queue.record_exit(JobClaim(job_id, 1), 0)
    assert reaper.last_reaped is not None
    assert reaper.last_reaped.tier is Tier.TOO_LONG


@pytest.mark.parametrize("others", [{}, {"pid": 0}, {"pid": -5}], ids=["none", "zero", "negative"])
def test_past_the_ceiling_without_a_pid_it_is_fenced_and_requeued(world: World, others: dict[str, Any]) -> None:
    """TC-04: nobody is signalled, our own group least of all."""
    job_id = world.running(**others)
    world.clock.advance(7201)
    assert world.reaper().run_once().queued == 1
    assert (world.status(job_id), world.queue.get(job_id).claim) == (JobStatus.QUEUED, 2)


def test_past_the_ceiling_a_number_without_a_start_is_not_signalled(world: World) -> None:
    """Whose it is nobody can say; the job is fenced off and tried again."""
    process = world.process()
    job_id = world.running(pid=process.pid)
    world.clock.advance(7201)
    assert world.reaper().run_once().queued == 1
    assert look(process.pid, None) is Liveness.ALIVE
    assert world.status(job_id) is JobStatus.QUEUED


def test_a_process_that_cannot_be_ended_keeps_its_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """D17: not seen dead, not requeued: it stays running with an error, the others are served,
    the next look tries.
    """
    stubborn, other = world.alive(), world.alive()
    spared = world.processes[0].pid
    kill = signal.pidfd_send_signal

    def refuse(descriptor: int, number: int) -> None:
        with open(f"/proc/self/fdinfo/{descriptor}") as file:  # noqa: PTH123 - where /proc is read
            if f"Pid:\t{spared}\n" in file.read():
                raise PermissionError
        kill(descriptor, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    world.clock.advance(7201)
    reaper = world.reaper()
    tick = reaper.run_once()
    assert (tick.queued, len(tick.errors)) == (1, 1)
    assert f"Job {stubborn} was left running" in tick.errors[0]
    assert "must belong to this user" in tick.errors[0]
    assert (world.status(stubborn), world.status(other)) == (JobStatus.RUNNING, JobStatus.QUEUED)
    before = world.dump()
    again = [reaper.run_once(), world.reaper("another").run_once(), reaper.run_once()]
    assert [(tick.queued, len(tick.errors)) for tick in again] == [(0, 1)] * 3
    assert world.dump() == before, "it is fenced off once, whoever looks, and not once a look"
    monkeypatch.undo()
    assert reaper.run_once().queued == 1
    assert (world.status(stubborn), world.queue.get(stubborn).claim) == (JobStatus.QUEUED, 2)


# Time, switches, errors.


def test_a_clock_that_is_set_back_holds_up_nothing(world: World) -> None:
    """Ages go on by what the reaper has seen: grace and ceiling pass though the wall clock is a
    year behind.
    """
    exited, long = world.dead(exit_code=0), world.alive()
    reaper = world.reaper()
    world.clock.jump(world.clock.now() - 365 * 24 * 3600 * 1_000_000)
    assert reaper.run_once() == Tick(running=2)
    world.clock.advance(300)
    assert reaper.run_once() == Tick(running=2, done=1, advanced=1)
    world.clock.advance(6901)
    assert reaper.run_once().queued == 1
    assert (world.status(exited), world.status(long)) == (JobStatus.DONE, JobStatus.QUEUED)


def test_a_switch_that_is_off_does_nothing(world: World, tmp_path: Path) -> None:
    """TC-07: not an error, and not a row; each switch is its own."""
    world.running()
    world.clock.advance(99_999)
    stale = tmp_path / "x.lease"
    stale.write_text('{"pid": 0, "process_start": ""}')
    off = world.reaper(reaper_enabled=False, lease_reclaim_enabled=False, lease_folder=str(tmp_path))
    before = world.dump()
    for _ in range(3):
        assert off.run_once() == Tick()
    off.start()
    assert (off.health.is_running, off.reaped_total, stale.exists()) == (False, 0, True)
    assert world.dump() == before
    assert off.last_run_ts == world.clock.now()
    leases_only = world.reaper(reaper_enabled=False, lease_folder=str(tmp_path))
    leases_only.start()
    assert (stale.exists(), world.status(1)) == (False, JobStatus.RUNNING)


@pytest.mark.parametrize("place", ["job_ended", "outbox"])
def test_one_bad_job_stops_no_other(world: World, place: str, caplog: pytest.LogCaptureFixture) -> None:
    """TC-08: a database error of one job's rows leaves that job, with one warning,
    and nothing of it half done.
    """
    TaskManager(world.store).create("bad", stage="build")
    ids = [world.dead(exit_code=1, attempts=2, task_id=task) for task in ("t", "bad", "t")]
    ids += [world.dead(exit_code=0, task_id=task) for task in ("bad", "t")]
    table = "task_audits" if place == "job_ended" else "outbox"
    world.execute(
        f"CREATE TRIGGER bad BEFORE INSERT ON {table} WHEN new.task_id = 'bad' BEGIN "
        "SELECT raise(ABORT, 'not for this task'); END"
    )
    world.clock.advance(300)
    reaper = world.reaper()
    tick = reaper.run_once()
    assert [world.status(number) for number in ids] == [
        JobStatus.FAILED, JobStatus.RUNNING, JobStatus.FAILED, JobStatus.RUNNING, JobStatus.DONE
    ]  # fmt: skip
    assert (tick.failed, tick.done, len(tick.errors)) == (2, 1, 2)
    assert all("not for this task" in error for error in tick.errors)
    assert reaper.run_once().errors == reaper.errors == tick.errors
    assert [text for text in caplog.messages if "not for this task" in text] == list(tick.errors)
    assert (world.stage("bad"), world.stage()) == ("build", "check")
    world.execute("DROP TRIGGER bad")
    assert (reaper.run_once().errors, reaper.errors) == ((), ())
    assert {world.status(number) for number in ids} == {JobStatus.FAILED, JobStatus.DONE}


def test_a_gate_that_hangs_stops_no_other(world: World) -> None:
    """It is waited for within its bound and counts as red;
    whatever needs no gate has been served before.
    """
    release = threading.Event()
    asked: list[JobStatus] = []

    def hang(_: Task) -> bool:
        asked.append(world.status(other))
        return release.wait(_TIMEOUT_S)

    world.engine = StageEngine(
        world.store, pipeline=PIPELINE, gates={"built": hang}, clock=world.clock, gate_timeout_s=0.02
    )
    stuck, other = world.dead(exit_code=0), world.dead(exit_code=1)
    world.clock.advance(300)
    assert world.reaper().run_once() == Tick(running=2, queued=2)
    release.set()
    assert asked == [JobStatus.QUEUED]
    assert (world.status(stuck), world.stage()) == (JobStatus.QUEUED, "build")


def test_a_gate_that_raises_stops_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It counts as red: the job is tried again, nothing is advanced, and one warning says why."""

    def burst() -> None:
        message = "no network"
        raise OSError(message)

    world.meanwhile = burst
    bad, other = world.dead(exit_code=0), world.dead(exit_code=0, agent="checker")
    world.clock.advance(300)
    assert world.reaper().run_once() == Tick(running=2, queued=1, done=1)
    assert (world.status(bad), world.status(other), world.stage()) == (JobStatus.QUEUED, JobStatus.DONE, "build")
    assert len([record for record in caplog.records if "no network" in record.message]) == 1


def test_a_locked_database_is_raised_and_counted_as_a_run(tmp_path: Path) -> None:
    """TC-08: what would meet every job is no job's error;
    a tick keeps it, and last_run_ts moves all the same.
    """
    world = World(tmp_path / "store.db")
    world.store.close()
    world.queue = JobQueue(open_store(world.path, busy_timeout_s=0.02), clock=world.clock)
    world.store = world.queue.store
    world.engine = StageEngine(world.store, pipeline=PIPELINE, gates={"built": lambda _: True}, clock=world.clock)
    job_id = world.dead()
    reaper = world.reaper(reaper_dead_ticks=1)
    with open_store(world.path) as hog, hog.transaction():
        with pytest.raises(DatabaseLocked):
            reaper.run_once()
        world.clock.advance(5)
        reaper.tick()
    assert "DatabaseLocked" in reaper.health.reason
    assert (reaper.last_run_ts, reaper.reaped_total) == (world.clock.now(), 0)
    reaper.run_once()
    assert world.status(job_id) is JobStatus.QUEUED
    world.store.close()
    world.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"reaper_dead_ticks": 0},
        {"reaper_dead_ticks": True},
        {"reaper_finalize_grace_s": -1},
        {"reaper_finalize_grace_s": float("nan")},
        {"reaper_max_running_s": 0},
        {"reaper_interval_s": float("inf")},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any]) -> None:
    """Each is named."""
    with pytest.raises(InvalidSetting, match=next(iter(settings))):
        ReaperSettings(**settings)


def test_all_wrong_settings_are_told_at_once() -> None:
    """One error for both."""
    with pytest.raises(InvalidSetting, match=r"reaper_dead_ticks.*reaper_interval_s"):
        ReaperSettings(reaper_dead_ticks=0, reaper_interval_s=0)


# Start and stop.


def test_a_start_requeues_what_an_earlier_process_left(world: World, tmp_path: Path) -> None:
    """TC-06, TC-21: jobs without executor and monitor go back at once;
    the others are left to the tiers.
    """
    me = (os.getpid(), start_of(os.getpid()))
    left = [world.dead(), world.running(pid=0), world.dead(monitor=world.gone())]
    kept = [world.alive(), world.dead(monitor=me), world.dead(exit_code=0), world.running(monitor=me)]
    spent = world.dead(attempts=2)
    LeaseFile(tmp_path, "mine").acquire()
    (tmp_path / "stale.lease").write_text('{"pid": 0, "process_start": ""}')
    reaper = world.reaper(lease_folder=str(tmp_path), reaper_interval_s=3600)
    reaper.start()
    reaper.start()
    assert {world.status(number) for number in left} == {JobStatus.QUEUED}
    assert {world.status(number) for number in kept} == {JobStatus.RUNNING}
    assert (world.status(spent), reaper.reaped_total) == (JobStatus.FAILED, 4)
    assert [path.name for path in sorted(tmp_path.glob("*.lease"))] == ["mine.lease"]
    assert reaper.requeue_running_jobs() == 0
    until(lambda: reaper.health.runs > 0)
    assert reaper.health.is_healthy
    assert reaper.stop()
    assert not reaper.health.is_running
    assert [alert.job_id for alert in world.told] == [spent]


def test_a_start_without_anything_does_nothing(world: World, tmp_path: Path) -> None:
    """TC-21: no jobs, no lease files, no folder: 0, and no error."""
    reaper = world.reaper(lease_folder=str(tmp_path / "missing"))
    assert (reaper.requeue_running_jobs(), reaper.reclaim_all_stale_leases()) == (0, 0)
    assert world.reaper().reclaim_all_stale_leases() == 0


def test_the_loser_of_a_race_with_a_start_does_nothing(world: World) -> None:
    """TC-06: what the start took is not reaped a second time."""
    job_id = world.dead()
    reaper, other = world.reaper(reaper_dead_ticks=1), world.reaper("other")
    assert other.requeue_running_jobs() == 1
    assert reaper.run_once() == Tick()
    assert (world.status(job_id), reaper.reaped_total) == (JobStatus.QUEUED, 0)


# Crashes.


def test_an_advance_that_was_not_done_is_done_by_the_next_look(world: World) -> None:
    """D16: a reaper dies between claim and advance; the next one finds the intention and does it,
    once.
    """
    world.dead(exit_code=0)
    world.clock.advance(300)
    deliver, world.engine.deliver = world.engine.deliver, lambda: 0  # type: ignore[method-assign]
    world.reaper().run_once()
    assert (world.stage(), len(world.store.outbox(OutboxKind.ADVANCE, limit=9))) == ("build", 1)
    world.engine.deliver = deliver  # type: ignore[method-assign]
    assert world.reaper().run_once() == Tick(advanced=1)
    assert world.reaper().run_once() == Tick()
    assert (world.stage(), world.next_jobs()) == ("check", ["checker"])


_KILLED = """
import os, signal, sys
from durable_agents import JobQueue, JobReaper, ManualClock, ReaperSettings, StageEngine
from durable_agents.jobs.stages import Pipeline, Stage
path, point, now = sys.argv[1:]
def hook(event, arguments):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
stages = (Stage(name="build", next="check", leavers=("builder",)), Stage(name="check", starts="checker"))
clock = ManualClock(int(now))
with JobQueue(db_path=path, clock=clock) as queue:
    engine = StageEngine(queue.store, pipeline=Pipeline(stages), gates={}, clock=clock)
    JobReaper(queue, engine).run_once()
"""


@pytest.mark.parametrize("point", JobCrashPoint.of("reaper"))
def test_a_reaper_that_is_killed_is_followed_by_another(world: World, tmp_path: Path, point: str) -> None:
    """Killed at any point of a look with work in each tier, it leaves what the next looks end,
    each job once.
    """
    process = world.process()
    long = world.running(pid=process.pid, start=start_of(process.pid), task_id=None)
    world.clock.advance(7201)
    dead, exited = world.dead(task_id=None), world.dead(exit_code=0)
    world.clock.advance(300)
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "store.db"), point, str(world.clock.now())]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    reaper = world.reaper()
    for _ in range(2):
        assert reaper.run_once().errors == ()
    assert [world.status(number) for number in (long, dead, exited)] == ["queued", "queued", "done"]
    assert (world.stage(), world.next_jobs()) == ("check", ["checker"])
    assert look(process.pid, None) is Liveness.DEAD
    assert sum(audit.event == "job_ended" for audit in world.store.audits("t")) == 1


def test_the_declared_crash_points_are_those_that_are_passed(world: World) -> None:
    """A look with work in each tier passes exactly the declared points,
    those of a claim once for each tier.
    """
    world.alive()
    world.clock.advance(7201)
    world.dead()
    passed: list[str] = []
    listening = [True]

    def hook(event: str, _: object) -> None:
        if listening and event.startswith("recovery.reaper."):
            passed.append(event)

    sys.addaudithook(hook)
    world.reaper().run_once()
    listening.clear()
    assert tuple(passed) == JobCrashPoint.of("reaper")


def test_last_reaped_has_the_job(world: World) -> None:
    """The contract's name, on the value itself."""
    world.dead()
    reaper = world.reaper(reaper_dead_ticks=1)
    reaper.run_once()
    job: Job = world.queue.get(1)
    assert reaper.last_reaped is not None
    assert reaper.last_reaped.job_id == job.job_id
