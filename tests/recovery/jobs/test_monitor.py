"""The monitor runs real executors: the order of its steps, its gate, and what becomes of jobs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import JobCrashPoint, JobQueue, JobStatus, Monitor, Pipeline, Stage, StageEngine, TaskManager
from durable_agents.errors import InvalidSetting
from durable_agents.jobs.alerts import Alert, Alerts
from durable_agents.processes import Liveness, look, start_of
from durable_agents.store.rows import OutboxKind

from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from durable_agents.store.rows import Job

PIPELINE = Pipeline(
    (
        Stage(name="build", next="check", gate="built", starts="builder", leavers=("builder",)),
        Stage(name="check", next="end", starts="checker", leavers=("checker",)),
        Stage(name="end"),
    )
)
_TIMEOUT_S = 30


@pytest.fixture(name="queue")
def _queue(tmp_path: Path) -> Iterator[JobQueue]:
    with JobQueue(db_path=tmp_path / "store.db") as queue:
        TaskManager(queue.store).create("t", stage="build")
        yield queue


class World:
    """An engine whose gate a test turns, and what finalizers and alerts did."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.is_green = True
        self.finalised: list[tuple[int, int]] = []
        self.told: list[Alert] = []
        self.engine = StageEngine(queue.store, pipeline=PIPELINE, gates={"built": lambda _: self.is_green})

    def monitor(self, *command: str, **keywords: Any) -> Monitor:
        """Return a monitor that runs this command for every job."""
        keywords.setdefault("finalizers", [lambda job, exit_code: self.finalised.append((job.job_id, exit_code))])
        alerts = Alerts(self.queue.store, self.told.append)
        return Monitor(self.queue, self.engine, lambda _: command, alerts=alerts, **keywords)

    def stage(self) -> str:
        """Return where the task is."""
        task = self.queue.store.task("t")
        assert task is not None
        return task.stage


@pytest.fixture(name="world")
def _world(queue: JobQueue) -> World:
    return World(queue)


def test_a_job_that_succeeds_moves_its_task(world: World) -> None:
    """Exit 0 and a green gate: done, the stage left, the next job written, which is run in turn."""
    world.queue.enqueue("builder", "r", task_id="t")
    ended = world.monitor("true").run_once()
    assert ended is not None
    assert (ended.is_lost, ended.exit_code, ended.status) == (False, 0, JobStatus.DONE)
    assert world.stage() == "check"
    assert [(job.agent, job.repo, job.status) for job in world.queue.store.active_jobs("t")] == [
        ("checker", "r", JobStatus.QUEUED)
    ]
    assert world.monitor("true", agents=["checker"]).run_once() is not None
    assert world.stage() == "end"
    assert world.monitor("true").run_once() is None
    assert world.finalised == [(1, 0), (2, 0)]


@pytest.mark.parametrize(
    ("command", "exit_code", "said"),
    [
        (("sh", "-c", "exit 3"), 3, "exit code 3"),
        (("sh", "-c", "kill -9 $$"), -9, "ended by signal 9"),
        (("no-such-program-anywhere",), 127, "exit code 127"),
    ],
)
def test_a_job_that_fails_is_tried_again_within_its_budget(
    world: World, command: tuple[str, ...], exit_code: int, said: str
) -> None:
    """Queued while attempts remain, then failed with one alert; the task stays where it is."""
    world.queue.enqueue("builder", task_id="t", max_attempts=2)
    statuses = []
    while ended := world.monitor(*command).run_once():
        assert ended.exit_code == exit_code
        statuses.append(ended.status)
    assert statuses == [JobStatus.QUEUED, JobStatus.FAILED]
    assert said in world.queue.get(1).error
    assert [run.exit_code for run in world.queue.runs(1)] == [exit_code] * 2
    (alert,) = world.told
    assert (alert.key, alert.job_id, alert.task_id) == ("job-1-claim-2", 1, "t")
    assert alert.text == f"Job 1 of builder for task t failed after 2 of 2 attempts: its executor had {said}."
    assert world.stage() == "build"


def test_a_red_gate_requeues_and_moves_nothing(world: World) -> None:
    """Exit 0 is not enough; without attempts left the job fails."""
    world.is_green = False
    world.queue.enqueue("builder", task_id="t")
    ended = world.monitor("true").run_once()
    assert ended is not None
    assert (ended.status, ended.error) == (JobStatus.QUEUED, "the gate of build is red")
    assert world.told == []
    assert world.monitor("true").run_once() is not None
    assert world.queue.get(1).status is JobStatus.FAILED
    assert (world.stage(), len(world.told)) == ("build", 1)


@pytest.mark.parametrize(
    ("agent", "task_id"), [("checker", "t"), ("builder", None), ("stranger", "t")], ids=["past", "no task", "unknown"]
)
def test_what_leaves_no_stage_is_just_done(
    world: World, agent: str, task_id: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that may not leave the task's stage, a job of no task,
    and an agent that nobody knows: done, no move.
    """
    world.queue.enqueue(agent, task_id=task_id)
    ended = world.monitor("true").run_once()
    assert ended is not None
    assert ended.status is JobStatus.DONE
    assert world.stage() == "build"
    assert ("'stranger'" in caplog.text) == (agent == "stranger")


def test_the_exit_code_is_recorded_before_anything_is_made_of_it(world: World) -> None:
    """A finalizer finds the exit code in the store, and the job still running."""
    seen: list[tuple[int | None, JobStatus, str]] = []

    def look_around(job: Job, exit_code: int) -> None:
        assert exit_code == 0
        run = world.queue.runs(job.job_id)[-1]
        seen.append((run.exit_code, world.queue.get(job.job_id).status, world.stage()))

    world.queue.enqueue("builder", task_id="t")
    world.monitor("true", finalizers=[look_around]).run_once()
    assert seen == [(0, JobStatus.RUNNING, "build")]


def test_an_executor_knows_its_claim_and_does_not_begin_unknown(world: World, tmp_path: Path) -> None:
    """Its environment names the claim, and by the time it begins its own pid is in the store."""
    source = f"""
import os
from durable_agents import JobClaim, JobQueue
with JobQueue(db_path={str(tmp_path / "store.db")!r}) as queue:
    claim = JobClaim.from_environment()
    queue.check(claim)
    assert queue.get(claim.job_id).pid == os.getpid() == os.getpgid(0)
    assert os.environ["COLOUR"] == "red"
"""
    world.queue.enqueue("builder")
    ended = world.monitor(sys.executable, "-c", source, environment={"COLOUR": "red"}).run_once()
    assert ended is not None
    assert ended.exit_code == 0


def test_a_job_that_was_lost_meanwhile_never_begins(world: World, tmp_path: Path) -> None:
    """Reaped between claim and start: the executor behind its gate ends, and has done nothing."""
    world.queue.enqueue("builder")
    touched = tmp_path / "touched"

    def reap_first(job: Job) -> Sequence[str]:
        assert world.queue.reap_running_job(job.job_id, JobStatus.QUEUED)
        return ["touch", str(touched)]

    ended = Monitor(world.queue, world.engine, reap_first).run_once()
    assert ended is not None
    assert (ended.is_lost, ended.exit_code, ended.status) == (True, None, None)
    assert not touched.exists()
    assert world.queue.get(1).status is JobStatus.QUEUED


def test_a_job_that_was_lost_while_it_ran_is_not_finalised(world: World) -> None:
    """The exit code of a lost claim is refused, and nothing follows."""
    world.queue.enqueue("builder", task_id="t")
    done = []

    def start() -> None:
        done.append(world.monitor("sleep", "600").run_once())

    thread = threading.Thread(target=start)
    thread.start()
    until(lambda: world.queue.get(1).pid)
    job = world.queue.get(1)
    assert world.queue.reap_running_job(1, JobStatus.FAILED)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGTERM)
    thread.join(_TIMEOUT_S)
    (ended,) = done
    assert ended is not None
    assert (ended.is_lost, ended.exit_code) == (True, -signal.SIGTERM)
    assert (world.finalised, world.stage()) == ([], "build")
    assert look(job.pid, job.process_start) is Liveness.DEAD


@pytest.mark.parametrize("what", ["finalizer", "command"])
def test_what_raises_fails_the_attempt(world: World, what: str) -> None:
    """An error of the user's own parts is an error of the job, with its text,
    and of nothing else.
    """

    def burst(*_: object) -> Any:
        message = "no route to \ud800 host"
        raise RuntimeError(message)

    world.queue.enqueue("builder", task_id="t")
    if what == "finalizer":
        monitor = world.monitor("true", finalizers=[burst, lambda *_: world.finalised.append((0, 0))])
    else:
        monitor = Monitor(world.queue, world.engine, burst)
    ended = monitor.run_once()
    assert ended is not None
    assert ended.status is JobStatus.QUEUED
    assert "RuntimeError: no route to ? host" in ended.error
    assert (world.finalised, world.stage()) == ([], "build")


def test_what_an_executor_leaves_behind_is_ended(world: World, tmp_path: Path) -> None:
    """A background process of its group does not outlive it, so no second attempt meets it."""
    world.queue.enqueue("builder")
    note = tmp_path / "pid"
    world.monitor("sh", "-c", f"sleep 600 & echo $! > {note}").run_once()
    until(lambda: look(int(note.read_text()), None) is Liveness.DEAD)


def test_queue_and_engine_are_of_one_store(world: World, tmp_path: Path) -> None:
    """What is to be one transaction cannot be in two stores."""
    with JobQueue(db_path=tmp_path / "other.db") as other, pytest.raises(InvalidSetting, match="one store"):
        Monitor(other, world.engine, lambda _: ["true"])


_MONITOR = """
import os, signal, sys
from durable_agents import JobQueue, Monitor, StageEngine
from durable_agents.jobs.stages import Pipeline, Stage
path, touched, point = sys.argv[1:]
def hook(event, arguments):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
stages = (Stage(name="build", next="check", leavers=("builder",)), Stage(name="check"))
with JobQueue(db_path=path) as queue:
    engine = StageEngine(queue.store, pipeline=Pipeline(stages), gates={})
    command = ["sh", "-c", f"echo x >> {touched}"]
    Monitor(queue, engine, lambda job: command, finalizers=[lambda *_: None]).run_once()
"""


@pytest.mark.parametrize("point", JobCrashPoint.of("monitor"))
def test_a_monitor_that_is_killed_leaves_what_was_recorded(queue: JobQueue, tmp_path: Path, point: str) -> None:
    """Killed at each of its points, it leaves a job that can be told,
    and an advance in the outbox is not lost.
    """
    queue.enqueue("builder", task_id="t")
    touched = tmp_path / "touched"
    command = [sys.executable, "-c", _MONITOR, str(tmp_path / "store.db"), str(touched), point]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    job, (run,) = queue.get(1), queue.runs(1)
    place = JobCrashPoint.of("monitor").index(JobCrashPoint(point))
    assert (job.pid is None) == (place < 1)
    assert (run.exit_code is None) == (place < 3)
    assert job.status == ("done" if place >= 5 else "running")
    if place >= 2:
        assert touched.read_text() == "x\n"
    if place == 0:
        assert not touched.exists()
    engine = StageEngine(queue.store, pipeline=PIPELINE, gates={"built": lambda _: True})
    assert engine.deliver() == (place == 5)
    task = queue.store.task("t")
    assert task is not None
    assert task.stage == ("check" if place >= 5 else "build")


def test_the_declared_crash_points_are_those_that_are_passed(world: World) -> None:
    """A job passes exactly the declared points, in order."""
    passed: list[str] = []
    listening = [True]

    def hook(event: str, _: object) -> None:
        if listening and event.startswith("recovery.monitor."):
            passed.append(event)

    sys.addaudithook(hook)
    world.queue.enqueue("builder", task_id="t")
    world.monitor("true").run_once()
    listening.clear()
    assert tuple(passed) == JobCrashPoint.of("monitor")


def test_an_alert_that_cannot_be_sent_is_tried_again_and_given_up(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A notifier that raises stops no other alert; its own is tried a bounded number of times."""
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        world.queue.enqueue("builder", max_attempts=1)
        Monitor(world.queue, world.engine, lambda _: ["false"]).run_once()
    tried: list[int] = []

    def notify(alert: Alert) -> None:
        tried.append(alert.job_id)
        if alert.job_id == 1:
            message = "the chat is down"
            raise OSError(message)

    alerts = Alerts(world.queue.store, notify)
    assert alerts.deliver() == 1
    for _ in range(20):
        assert alerts.deliver() == 0
    assert tried.count(1) == 10
    assert tried.count(2) == 1
    assert "an alert was given up after 10 tries: Job 1" in caplog.text


def test_an_alert_whose_sender_died_is_sent_again_under_its_key(world: World) -> None:
    """One that a living process is sending is left to it; a dead one's is taken over."""
    world.queue.enqueue("builder", max_attempts=1)
    Monitor(world.queue, world.engine, lambda _: ["false"]).run_once()
    with subprocess.Popen(["sleep", "600"]) as process:
        start = start_of(process.pid)
        (entry,) = world.queue.store.outbox(OutboxKind.ALERT, limit=10)
        with world.queue.store.transaction() as transaction:
            assert transaction.take_outbox(entry, expected=None, taken_by=f"{process.pid}/{start}")
        alerts = Alerts(world.queue.store, world.told.append)
        assert alerts.deliver() == 0
        process.kill()
    assert alerts.deliver() == 1
    assert [alert.key for alert in world.told] == ["job-1-claim-1"]
    assert alerts.deliver() == 0
