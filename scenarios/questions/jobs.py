"""The questions about jobs: pipelines, stages, advances, and executors that begin meanwhile."""

from __future__ import annotations

import functools
import os
from typing import Any, Final
from unittest import mock

import msgspec
from durable_agents import (
    JobClaim,
    JobQueue,
    JobReaper,
    JobStatus,
    Pipeline,
    ReaperSettings,
    Stage,
    StageEngine,
    TaskManager,
    TaskStatus,
)
from durable_agents.jobs import queue as outcomes
from durable_agents.jobs.stages import Move
from durable_agents.store.rows import OutboxKind, Task

from scenarios.questions.world import Questions, World, during, left_job, refused


def delivered(world: World) -> list[Any]:
    """Return how many transactions an advance of the outbox takes."""
    engine, queue = world.engine(), JobQueue(world.store, clock=world.clock)
    TaskManager(world.store, clock=world.clock).create("t", stage="build")
    queue.enqueue("builder", task_id="t")
    job = queue.claim()
    assert job is not None
    queue.record_exit(JobClaim(job.job_id, job.claim), 0)
    with world.counted() as settling:
        queue.settle(outcomes.of_exit(queue.get(job.job_id), 0, engine, claim=job.claim))
    with world.counted() as count:
        moved = engine.deliver()
    return [settling[0], moved, count[0]]


def started_meanwhile(world: World) -> list[str]:
    """Return what becomes of jobs whose executor is recorded after a look has found none.

    A look finds it dead, or too slow; a start finds that its monitor is gone, too.
    """
    found = []
    for point, bounds, look in (
        ("recovery.reaper.before_claim", ReaperSettings(reaper_dead_ticks=1), JobReaper.run_once),
        ("recovery.reaper.after_look", ReaperSettings(reaper_max_running_s=1.0), JobReaper.run_once),
        ("recovery.reaper.before_claim", ReaperSettings(), JobReaper.requeue_running_jobs),
    ):
        queue = JobQueue(world.store, clock=world.clock)
        job = left_job(world, queue)
        world.later(2)
        with during(point, functools.partial(queue.started, JobClaim(job, 1), os.getpid())):
            look(JobReaper(queue, world.engine(), settings=bounds))
        found.append(queue.get(job).status.value)
        queue.reap_running_job(job, JobStatus.DONE)
    return found


def engine_with(world: World, max_attempts: int) -> StageEngine:
    """Return an engine with this bound."""
    return StageEngine(world.store, pipeline=Pipeline((Stage(name="a"),)), gates={}, max_attempts=max_attempts)


def wrong_ways(_: World) -> list[str]:
    """Return how pipelines are answered that lead nowhere, in a circle, or beyond an end."""
    first, last = Stage(name="a", next="b", gate="g", leavers=("x",), is_human_gated=True), Stage(name="b")
    found: list[tuple[Stage, ...]] = [
        (first, last),
        (first, Stage(name="b", next="c")),
        (first, Stage(name="b", next="a")),
    ]
    found += [(first, Stage(name="b", gate="g")), (first, Stage(name="b", leavers=("x",)))]
    found += [(first, Stage(name="b", is_human_gated=True)), (first, Stage(name="b", starts="x"))]
    pipeline = Pipeline((first, last))
    answers = [refused(lambda stages=stages: Pipeline(stages)) for stages in found]  # type: ignore[misc]
    return [*answers, refused(lambda: pipeline.stage("c")), refused(lambda: pipeline.leaves("y"))]


def refused_moves(world: World) -> list[Any]:
    """Return how moves are answered that must not be, with a gate that notes each question."""
    asked: list[str] = []
    stages = (
        Stage(name="plan", next="build", gate="open", is_human_gated=True),
        Stage(name="build", next="end", gate="open", leavers=("builder",)),
        Stage(name="end"),
    )

    def is_open(task: Task) -> bool:
        asked.append(task.task_id)
        return False

    engine = StageEngine(world.store, pipeline=Pipeline(stages), gates={"open": is_open}, clock=world.clock)
    tasks = TaskManager(world.store, clock=world.clock)
    for name, stage in (("p", "plan"), ("b", "build"), ("c", "build"), ("odd", "odd")):
        tasks.create(name, stage=stage)
    tasks.set_status("c", TaskStatus.CANCELLED, expected=TaskStatus.CREATED)
    found: list[Any] = [
        refused(lambda: engine.approve("p", "plan", by="")),
        refused(lambda: engine.approve("b", "build", by="a human")),
        refused(lambda: engine.approve("none", "plan", by="a human")),
        refused(lambda: engine.advance_stage("none", "build", finished_agent=None)),
        refused(lambda: engine.evaluate("none")),
        *(engine.advance_stage(name, "build", finished_agent=None).result.value for name in "pc"),
        engine.advance_stage("p", "plan", finished_agent=None).result.value,
        "".join(asked),
        *(
            engine.advance_stage("b", "build", finished_agent=None).result.value,
            engine.approve("p", "plan", by="x").result.value,
        ),
    ]
    with mock.patch("durable_agents.jobs.stages._LOGGER") as logger:
        found += [engine.may_leave(tasks.get(name), agent) for name, agent in (("odd", "builder"), ("b", "nobody"))]
        found += [engine.may_leave(tasks.get("b"), "builder"), logger.warning.call_count]
    return [*found, world.store.active_jobs("b"), tasks.get("b").stage]


def invalid_engines(world: World) -> list[str]:
    """Return how engines are answered without a gate, with one too many, and with odd attempts."""
    given: tuple[dict[str, Any], ...] = ({}, {"open": bool}, {"open": bool, "more": bool})
    attempts: tuple[Any, ...] = (True, 1.5, -1)
    found = [refused(functools.partial(engine_of, world, gates)) for gates in given]
    return found + [refused(functools.partial(engine_with, world, each)) for each in attempts]


def engine_of(world: World, gates: dict[str, Any]) -> StageEngine:
    """Return an engine with these gates, of which its pipeline names one."""
    stages = (Stage(name="a", next="b", gate="open"), Stage(name="b"))
    return StageEngine(world.store, pipeline=Pipeline(stages), gates=gates)


def late_advances(world: World) -> list[Any]:
    """Return what becomes of advances that were decided before the task, or the pipeline, changed.

    The task was cancelled, has moved, or is in a stage that is gone, final, or a human's by now.
    """
    engine, tasks = world.engine(), TaskManager(world.store, clock=world.clock)
    queue, found = JobQueue(world.store, clock=world.clock), list[Any]()
    late = {
        "gone": Pipeline((Stage(name="other"),)),
        "final": Pipeline((Stage(name="build", starts="builder"),)),
        "a human's": Pipeline((Stage(name="build", next="end", is_human_gated=True), Stage(name="end"))),
    }
    for name in ("as it was", "cancelled", "moved", *late):
        tasks.create(name, stage="build")
        queue.enqueue("builder", task_id=name)
        job = queue.claim()
        assert job is not None
        queue.settle(outcomes.of_exit(job, 0, engine, claim=job.claim))
        if name == "cancelled":
            tasks.set_status(name, TaskStatus.CANCELLED, expected=TaskStatus.CREATED)
        if name == "moved":
            engine.advance_stage(name, "build", finished_agent=None)
        now = StageEngine(world.store, pipeline=late[name], gates={}) if name in late else engine
        moved = now.deliver()
        trail = [row.event for row in world.store.audits(name)]
        left = len(world.store.outbox(OutboxKind.ADVANCE))
        found.append([moved, tasks.get(name).stage, left, trail[-1], len(world.store.active_jobs(name))])
    return found


def overtaken_moves(world: World) -> list[Any]:
    """Return what a move does that another caller has overtaken: in another stage, and gone."""
    engine, tasks = world.engine(), TaskManager(world.store, clock=world.clock)
    tasks.create("t", stage="build")
    move = engine.decide("t", "build", finished_agent=None)
    assert isinstance(move, Move)
    engine.advance_stage("t", "build", finished_agent=None)
    with world.store.transaction() as transaction:
        advance = engine.apply(transaction, move)
    return [advance.result.value, advance.stage, len(world.store.audits("t"))]


def pipelines(_: World) -> list[str]:
    """Return how pipelines with wrong names are answered."""
    one, two = Stage(name="a", next="b"), Stage(name="b")
    found = ((one, two), (one, two, two), (), (Stage(name=""),), (Stage(name="a", leavers=("",)),))
    return [refused(lambda stages=stages: Pipeline(stages)) for stages in found]  # type: ignore[misc]


QUESTIONS: Final[Questions] = {
    "jobs: a reaper's defaults": (
        lambda _: msgspec.to_builtins(ReaperSettings()),
        {
            "reaper_enabled": True,
            "lease_reclaim_enabled": True,
            "reaper_dead_ticks": 2,
            "lease_folder": None,
            "reaper_finalize_grace_s": 300.0,
            "reaper_max_running_s": 7200.0,
            "reaper_interval_s": 30.0,
        },
    ),
    "jobs: an executor that starts after the look": (started_meanwhile, ["running"] * 3),
    "jobs: pipelines": (pipelines, ["", *["InvalidPipeline"] * 4]),
    "jobs: ways of pipelines": (
        wrong_ways,
        [
            "",
            "InvalidPipeline",
            "InvalidPipeline",
            "InvalidPipeline",
            "InvalidPipeline",
            "InvalidPipeline",
            "",
            "UnknownStage",
            "UnknownAgent",
        ],
    ),
    "jobs: moves that are refused": (
        refused_moves,
        [
            "InvalidSetting",
            "InvalidSetting",
            "UnknownTask",
            "UnknownTask",
            "UnknownTask",
            "stale",
            "task_ended",
            "human_gated",
            "",
            "gate_red",
            "gate_red",
            False,
            False,
            True,
            2,
            [],
            "build",
        ],
    ),
    "jobs: engines that are refused": (
        invalid_engines,
        ["InvalidPipeline", "", "", "InvalidSetting", "InvalidSetting", "InvalidSetting"],
    ),
    "jobs: advances that come late": (
        late_advances,
        [
            [1, "end", 0, "stage_changed", 0],
            [0, "build", 0, "status_changed", 0],
            [0, "end", 0, "stage_changed", 0],
            [0, "build", 0, "advance_dropped", 0],
            [0, "build", 0, "advance_dropped", 0],
            [0, "build", 0, "advance_dropped", 0],
        ],
    ),
    "jobs: a move that is overtaken": (overtaken_moves, ["stale", "end", 2]),
    "jobs: an advance is one transaction": (delivered, [1, 1, 1]),
    "jobs: attempts": (
        lambda w: [refused(functools.partial(engine_with, w, each)) for each in (0, 1)],
        ["InvalidSetting", ""],
    ),
}
