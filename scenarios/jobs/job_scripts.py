"""What the core promises of jobs, stages, reaper and reconciler, as a script.

The agent that plays it is the monitor of each job; the executors are real processes that it starts
and ends. The clock stands at the moment of the step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
from typing import TYPE_CHECKING, Any, Final

import msgspec
from durable_agents import (
    JobClaim,
    JobQueue,
    JobReaper,
    Pipeline,
    ReaperSettings,
    Stage,
    StageEngine,
    TaskManager,
    TaskStatus,
    open_store,
)
from durable_agents.jobs import queue as outcomes
from durable_agents.jobs.queue import JOB_VARIABLE
from durable_agents.pipeline.handlers import Handlers
from durable_agents.pipeline.reconciler import ReconcilerSettings
from durable_agents.store.rows import JobStatus

from scenarios.judging import Script, ScriptClock, Steps, perform
from scenarios.model.jobs import Jobs, Way
from scenarios.work.agents import class_named, made

if TYPE_CHECKING:
    from durable_agents.pipeline.reconciler import Reconciler
    from pytest_chaos import Marks

GRACE_S: Final = 300.0
CEILING_S: Final = 3600.0
STAGE_GRACE_S: Final = 600.0
MAX_ATTEMPTS: Final = 3
WAYS: Final = {
    "plan": Way("build", "planner", has_gate=False, is_human_gated=True),
    "build": Way("check", "builder", ("builder",)),
    "check": Way("ship", "checker", ("checker",)),
    "ship": Way("end", None, has_gate=False),
    "end": Way(has_gate=False),
}


def model() -> Jobs:
    """Return the model with the settings that the agent gives the core."""
    return Jobs(WAYS, grace_s=GRACE_S, ceiling_s=CEILING_S, stage_grace_s=STAGE_GRACE_S, max_attempts=MAX_ATTEMPTS)


def pipeline() -> Pipeline:
    """Return the pipeline of the model, as the core takes it."""
    return Pipeline(
        tuple(
            Stage(
                name=name,
                next=way.next,
                gate="open" if way.has_gate else "",
                starts=way.starts,
                leavers=way.leavers,
                is_human_gated=way.is_human_gated,
            )
            for name, way in WAYS.items()
        )
    )


def play_jobs(
    marks: Marks, database: str, parts: dict[str, str], steps: list[Any], known: list[dict[str, Any]]
) -> None:
    """Do steps with jobs."""
    assert not known
    clock = ScriptClock()
    with open_store(database) as store:
        told = JobSteps(store, clock, parts, database)
        try:
            perform(marks, clock, steps, told.do)
        finally:
            for job in list(told.executors):
                told.executor_ends(job)


class JobSteps(Steps):
    """The steps of a script, by the parts of the core."""

    def __init__(self, store: Any, clock: ScriptClock, parts: dict[str, str], database: str) -> None:
        """Make the parts."""
        self.database, self.parts = database, parts
        self.tasks = TaskManager(store, clock=clock)
        self.queue: JobQueue = made(parts["jobs"], store, clock=clock)
        self.is_green = True
        gates = {"open": lambda _: self.is_green}
        self.engine: StageEngine = made(
            parts["stages"], store, pipeline=pipeline(), gates=gates, clock=clock, max_attempts=MAX_ATTEMPTS
        )
        settings = ReconcilerSettings(reconcile_grace_default_s=STAGE_GRACE_S)
        self.reconciler: Reconciler = class_named(parts["reconciler"])(
            Handlers(self.engine, ci_gate="open", clock=clock), settings=settings, clock=clock
        )
        self.executors: dict[int, subprocess.Popen[bytes]] = {}
        self.restart()

    def restart(self) -> None:
        """Make a reaper that remembers nothing."""
        settings = ReaperSettings(reaper_finalize_grace_s=GRACE_S, reaper_max_running_s=CEILING_S)
        self.told: list[str] = []
        self.reaper: JobReaper = class_named(self.parts["reaper"])(
            self.queue, self.engine, settings=settings, notifier=lambda alert: self.told.append(alert.key)
        )

    def create(self, task_id: str, stage: str) -> None:
        """Create a task in a stage."""
        self.tasks.create(task_id, stage=stage)

    def cancel(self, task_id: str) -> None:
        """Cancel a task."""
        self.tasks.set_status(task_id, TaskStatus.CANCELLED, expected=TaskStatus.CREATED)

    def turn(self, is_green: bool) -> None:  # noqa: FBT001 - an argument of a step
        """Turn the gate."""
        self.is_green = is_green

    def enqueue(self, agent: Any, **job: Any) -> dict[str, Any]:
        """Add a job."""
        return {"job": self.queue.enqueue(agent, **job).job_id}

    def claim(self, agents: list[Any] | None = None) -> dict[str, Any]:
        """Claim a job."""
        job = self.queue.claim(agents=agents)
        return {"job": None} if job is None else {"job": job.job_id, "claim": job.claim, "attempts": job.attempts}

    def start(self, job: int, claim: int) -> None:
        """Start an executor, and say so; end it if nobody may know of it."""
        process = subprocess.Popen(["sleep", "600"], start_new_session=True, env={**os.environ, JOB_VARIABLE: str(job)})
        try:
            self.queue.started(JobClaim(job, claim), process.pid)
        except BaseException:
            process.kill()
            process.wait()
            raise
        self.executors[job] = process

    def executor_ends(self, job: int) -> None:
        """End the executor, and reap it."""
        process = self.executors.pop(job)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def monitor_dies(self, job: int) -> None:
        """Make the monitor one that is gone, as another program would."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as connection, connection:
            connection.execute("UPDATE jobs SET monitor_pid = NULL, monitor_start = NULL WHERE job_id = ?", (job,))

    def record_exit(self, job: int, claim: int, exit_code: Any) -> None:
        """Record an exit code."""
        self.queue.record_exit(JobClaim(job, claim), exit_code)

    def held(self, job: int, claim: int) -> None:
        """Check a claim."""
        self.queue.check(JobClaim(job, claim))

    def started_as(self, pid: Any) -> None:
        """Say that the first job's executor has this pid."""
        self.queue.started(JobClaim(1, 1), pid)

    def counts(self) -> dict[str, Any]:
        """Count active jobs."""
        return dict(self.queue.counts())

    def runs(self, job: Any) -> dict[str, Any]:
        """Return the runs of a job."""
        return {"runs": [[run.claim, run.exit_code] for run in self.queue.runs(job)]}

    def settle(self, job: int, claim: int) -> dict[str, Any]:
        """End a claim by the exit code that is recorded."""
        code = self.queue.runs(job)[-1].exit_code
        outcome = outcomes.of_exit(self.queue.get(job), 1 if code is None else code, self.engine, claim=claim)
        self.queue.settle(outcome)
        return {"status": outcome.status.value, "moved": self.engine.deliver()}

    def reap(self, job: int, status: str) -> dict[str, Any]:
        """End a job by hand."""
        return {"is_reaped": self.queue.reap_running_job(job, JobStatus(status))}

    def look(self) -> dict[str, Any]:
        """Look once, as a reaper does."""
        tick = self.reaper.run_once()
        assert not tick.errors, tick.errors
        return {name: value for name, value in msgspec.structs.asdict(tick).items() if name != "errors"}

    def advance(self, task_id: str, stage: str, agent: str | None = None) -> dict[str, Any]:
        """Advance a task."""
        advance = self.engine.advance_stage(task_id, stage, finished_agent=agent)
        return {"result": advance.result.value, "stage": advance.stage}

    def approve(self, task_id: str, stage: str) -> dict[str, Any]:
        """Leave a human gate."""
        advance = self.engine.approve(task_id, stage, by="a human")
        return {"result": advance.result.value, "stage": advance.stage}

    def reconcile(self) -> dict[str, Any]:
        """Look once, as a reconciler does."""
        found = self.reconciler.reconcile_gates_once()
        assert not found.troubles
        return {"looked": found.looked, "unblocked": found.unblocked}


def of_looks() -> Script:
    """Say what a reaper makes of executors that are dead, exited, or too slow."""
    script = Script()
    for task, attempts in (("a", 2), ("b", 1), ("c", 2), ("d", 2)):
        script.then("create", task_id=task, stage="build")
        script.then("enqueue", agent="builder", task_id=task, max_attempts=attempts)
    for agent in ("", "\0", "$surrogate", 7):
        script.then("bad", call="enqueue", error="InvalidJob", agent=agent)
    for bad in ({"max_attempts": 0}, {"max_attempts": True}, {"max_attempts": "2"}, {"max_attempts": 1_000_001}):
        script.then("bad", call="enqueue", error="InvalidJob", agent="builder", **bad)
    script.then("bad", call="enqueue", error="InvalidJob", agent="builder", repo="\0").then("counts")
    script.then("claim", agents=["checker"]).then("claim", agents=["checker", "builder"])  # a
    script.then("bad", call="claim", error="InvalidJob", agents=[""]).then("counts").then("held", job=1, claim=1)
    script.then("held", job=1, claim=2).then("held", job=2, claim=1).then("held", job=2, claim=0)
    for pid in (0, -1, 2**31, True, "1"):
        script.then("bad", call="started_as", error="InvalidJob", pid=pid)
    for code in (256, -65, True, "0"):
        script.then("bad", call="record_exit", error="InvalidJob", job=1, claim=1, exit_code=code)
    script.then("bad", call="reap", error="InvalidJob", job=1, status="running")
    script.then("look").then("start", job=1, claim=1).then("look")  # dead, and alive: the streak is over
    script.then("start", job=1, claim=2).then("executor_ends", job=1).then("look").then("restart").then("look")
    script.then("record_exit", job=1, claim=1, exit_code=0).then("settle", job=1, claim=1).then("start", job=1, claim=1)
    for _ in range(4):  # a with its last attempt, b to d
        script.then("claim")
    for job in (1, 2, 3, 4):
        script.then("start", job=job, claim=2 if job == 1 else 1)
    script.then("claim").wait(100)
    script.then("record_exit", job=2, claim=1, exit_code=3).then("record_exit", job=2, claim=1, exit_code=0)
    script.then("executor_ends", job=2).then("monitor_dies", job=2)
    script.then("record_exit", job=3, claim=1, exit_code=0).then("executor_ends", job=3)
    script.wait(GRACE_S - 100).then("look").wait(100, but_us=1).then("look").wait(0, but_us=-1).then("look")
    script.then("monitor_dies", job=3).then("turn", is_green=False).then("look")  # red: queued again
    script.then("claim").then("start", job=3, claim=2).then("record_exit", job=3, claim=2, exit_code=0)
    script.then("executor_ends", job=3).then("turn", is_green=True).then("monitor_dies", job=3)
    script.set_clock(-50).wait(GRACE_S, but_us=1).then("look").wait(0, but_us=-1).then("look").wait(50).then("look")
    script.wait(CEILING_S - 2 * GRACE_S - 100).then("look").wait(0, but_us=-1).then("look").then("look")
    script.then("claim").then("claim").then("claim").then("record_exit", job=4, claim=1, exit_code=0)
    script.then("settle", job=4, claim=2).then("reap", job=4, status="done").then("reap", job=4, status="failed")
    for job in (1, 2, 3, 4):
        script.then("runs", job=job)
    script.then("bad", call="runs", error="UnknownJob", job=99).then("bad", call="runs", error="UnknownJob", job="1")
    return script.then("reap", job=99, status="done").then("counts")


def of_stages() -> Script:
    """Say who may leave a stage, whose job is active, and when a task has waited long enough."""
    script = Script()
    for task, stage in (("h", "plan"), ("q", "build"), ("r", "build"), ("w", "build"), ("x", "check"), ("z", "build")):
        script.then("create", task_id=task, stage=stage)
    script.then("enqueue", agent="builder", task_id="q").then("enqueue", agent="builder", task_id="r")
    script.then("enqueue", agent="builder", task_id="z").then("cancel", task_id="z")
    script.then("claim", agents=["builder"]).then("turn", is_green=False)  # q: running; r: queued; w: neither
    script.wait(STAGE_GRACE_S, but_us=1).then("reconcile").wait(0, but_us=-1).then("reconcile")
    script.then("turn", is_green=True).then("advance", task_id="w", stage="build", agent="checker")
    script.then("advance", task_id="w", stage="check").then("advance", task_id="h", stage="plan")
    script.then("advance", task_id="z", stage="build").then("reconcile").then("reconcile")
    script.then("approve", task_id="h", stage="plan").then("approve", task_id="h", stage="plan")
    script.then("approve", task_id="w", stage="check")
    script.then("record_exit", job=1, claim=1, exit_code=0).then("settle", job=1, claim=1)
    script.then("claim", agents=["checker", "builder"]).then(
        "claim", agents=["builder"]
    )  # r, and the one of h; that of z fails
    script.then("record_exit", job=2, claim=1, exit_code=1).then("settle", job=2, claim=1).then("claim")
    script.then("advance", task_id="r", stage="build").then("record_exit", job=2, claim=2, exit_code=0)
    script.then("settle", job=2, claim=2)  # done, and nothing moves: a webhook was faster
    for _ in range(4):
        script.then("claim")
    script.then("reap", job=4, status="done")  # nobody is at work on w any more
    script.wait(STAGE_GRACE_S, but_us=1).then("reconcile").wait(0, but_us=-1).then("reconcile")
    for task in ("w", "x", "r", "q"):
        script.then("advance", task_id=task, stage="check", agent="checker")
    script.then("advance", task_id="x", stage="ship").then("advance", task_id="x", stage="ship")
    return script.then("advance", task_id="x", stage="end").wait(STAGE_GRACE_S).then("reconcile").then("look")
