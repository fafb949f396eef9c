"""Stages: data that is checked, gates that are bounded, and one advance however many ask for it."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from durable_agents import (
    DEFAULT_PIPELINE,
    Advanced,
    GateResult,
    JobCrashPoint,
    ManualClock,
    Pipeline,
    Stage,
    StageEngine,
    TaskManager,
    TaskStatus,
    open_store,
)
from durable_agents.errors import InvalidPipeline, InvalidSetting, UnknownAgent, UnknownStage, UnknownTask
from durable_agents.jobs.gates import HUNG_MAX
from durable_agents.store.rows import OutboxEntry, OutboxKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import SqliteStore
    from durable_agents.jobs.gates import Gate
    from durable_agents.store.rows import Task

SHORT = Pipeline(
    (
        Stage(name="idea", next="build", is_human_gated=True, starts="writer", leavers=("writer",)),
        Stage(name="build", next="check", gate="built", starts="builder", leavers=("builder",)),
        Stage(name="check", next="end", starts="checker", leavers=("checker", "builder")),
        Stage(name="end"),
    )
)


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Iterator[SqliteStore]:
    with open_store(tmp_path / "store.db") as store:
        yield store


class Switch:
    """A gate that a test turns; it counts how often it was asked."""

    def __init__(self) -> None:
        self.answer: object = True
        self.asked = 0

    def __call__(self, task: Task) -> bool:
        """Answer, or raise what the answer is."""
        assert task.stage
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[return-value]


@pytest.fixture(name="gate")
def _gate() -> Switch:
    return Switch()


@pytest.fixture(name="engine")
def _engine(store: SqliteStore, gate: Switch) -> StageEngine:
    return StageEngine(store, pipeline=SHORT, gates={"built": gate}, clock=ManualClock())


def create(store: SqliteStore, stage: str, task_id: str = "t") -> Task:
    """Create a task in a stage."""
    return TaskManager(store, clock=ManualClock(1)).create(task_id, stage=stage)


def dump(store: SqliteStore) -> list[str]:
    """Return everything that the file holds."""
    with closing(sqlite3.connect(store.path)) as connection:
        return list(connection.iterdump())


def test_an_advance_moves_the_task_and_writes_the_next_job(store: SqliteStore, engine: StageEngine) -> None:
    """The stage, the moment it was entered, an audit row and one queued job come together."""
    create(store, "build")
    advance = engine.advance_stage("t", "build", finished_agent="builder", repo="r")
    assert (advance.result, advance.stage, advance.is_moved) == (Advanced.MOVED, "check", True)
    task = store.task("t")
    assert task is not None
    assert (task.stage, task.stage_entered_at) == ("check", ManualClock().now())
    (job,) = store.active_jobs("t")
    assert (job.job_id, job.agent, job.repo, job.max_attempts) == (advance.job_id, "checker", "r", 2)
    audit = store.audits("t")[-1]
    assert (audit.event, audit.before, audit.after, audit.detail) == (
        "stage_changed", "build", "check", "builder has ended"
    )  # fmt: skip
    last = engine.advance_stage("t", "check", finished_agent=None)
    assert (last.result, last.stage, last.job_id) == (Advanced.MOVED, "end", None)


@pytest.mark.parametrize(
    ("stage", "asked_for", "agent", "result"),
    [
        ("check", "build", None, Advanced.STALE),
        ("idea", "idea", None, Advanced.HUMAN_GATED),
        ("idea", "idea", "writer", Advanced.HUMAN_GATED),
        ("end", "end", None, Advanced.FINAL),
        ("build", "build", "checker", Advanced.NOT_THEIRS),
    ],
)
def test_what_may_not_move_changes_nothing(
    store: SqliteStore, engine: StageEngine, stage: str, asked_for: str, agent: str | None, result: Advanced
) -> None:
    """Another stage, a human's decision, the end, and an agent that may not leave:
    told, and not a row is written.
    """
    create(store, stage)
    before = dump(store)
    advance = engine.advance_stage("t", asked_for, finished_agent=agent)
    assert (advance.result, advance.stage, advance.job_id) == (result, stage, None)
    assert dump(store) == before


def test_a_task_that_has_ended_stays(store: SqliteStore, engine: StageEngine) -> None:
    """A cancelled task starts no more jobs."""
    create(store, "build")
    TaskManager(store).set_status("t", TaskStatus.CANCELLED, expected=TaskStatus.CREATED)
    assert engine.advance_stage("t", "build", finished_agent=None).result is Advanced.TASK_ENDED
    assert store.active_jobs("t") == []


def test_a_red_gate_is_silence(store: SqliteStore, engine: StageEngine, gate: Switch) -> None:
    """A thousand looks at a red gate write nothing, not even a page that is the same."""
    create(store, "build")
    gate.answer = GateResult(is_green=False, reason="3 tests failed")
    before = dump(store)
    with closing(sqlite3.connect(store.path)) as watcher:
        version = watcher.execute("PRAGMA data_version").fetchone()
        for _ in range(1000):
            advance = engine.advance_stage("t", "build", finished_agent=None)
        assert watcher.execute("PRAGMA data_version").fetchone() == version
    assert (advance.result, advance.reason) == (Advanced.GATE_RED, "3 tests failed")
    assert gate.asked == 1000
    assert dump(store) == before


def test_anybody_may_evaluate_a_gate(store: SqliteStore, engine: StageEngine, gate: Switch) -> None:
    """The answer of the task's stage, read only; a stage without a gate is green."""
    create(store, "build")
    create(store, "check", "u")
    before = dump(store)
    gate.answer = False
    assert engine.evaluate("t") == GateResult(is_green=False)
    gate.answer = True
    assert engine.evaluate("t") == engine.evaluate("u") == GateResult(is_green=True)
    assert dump(store) == before


def test_a_human_gate_is_left_by_a_human(store: SqliteStore, engine: StageEngine) -> None:
    """An approval moves the task and says who; a second one, and one of another stage, do not."""
    create(store, "idea")
    assert engine.approve("t", "idea", by="anna").result is Advanced.MOVED
    assert store.audits("t")[-1].detail == "approved by anna"
    assert engine.approve("t", "idea", by="anna").result is Advanced.STALE
    with pytest.raises(InvalidSetting):
        engine.approve("t", "build", by="anna")
    with pytest.raises(InvalidSetting):
        engine.approve("t", "idea", by="")
    assert [job.agent for job in store.active_jobs("t")] == ["builder"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [(RuntimeError("no network"), "it raised RuntimeError: no network"), ("yes", "it answered 'yes'"), (None, "None")],
)
def test_a_gate_that_does_not_answer_is_red_with_one_warning(
    store: SqliteStore, engine: StageEngine, gate: Switch, caplog: pytest.LogCaptureFixture, answer: object, said: str
) -> None:
    """Whatever a gate does, nothing is advanced; one warning until it has answered properly in
    between.
    """
    create(store, "build")
    gate.answer = answer
    for _ in range(5):
        advance = engine.advance_stage("t", "build", finished_agent=None)
        assert advance.result is Advanced.GATE_RED
    assert said in advance.reason
    assert len(caplog.records) == 1
    assert said in caplog.text
    gate.answer = False
    engine.evaluate("t")
    gate.answer = answer
    engine.evaluate("t")
    assert len(caplog.records) == 2


def test_a_gate_that_hangs_is_red_and_bounded(store: SqliteStore, caplog: pytest.LogCaptureFixture) -> None:
    """It is waited for within the bound, with one warning a task,
    and not started again without end.
    """
    asked: list[str] = []
    release = threading.Event()

    def hang(task: Task) -> bool:
        asked.append(task.task_id)
        return release.wait(60)

    engine = StageEngine(store, pipeline=SHORT, gates={"built": hang}, gate_timeout_s=0.01)
    tasks = ["t", *(f"t-{number}" for number in range(HUNG_MAX + 2))]
    for task_id in tasks:
        create(store, "build", task_id)
    for task_id in tasks * 2:
        assert engine.advance_stage(task_id, "build", finished_agent=None).result is Advanced.GATE_RED
    assert asked == tasks[:HUNG_MAX]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == len(tasks)
    release.set()
    for thread in [found for found in threading.enumerate() if found.name == "gate built"]:
        thread.join(10)
    assert engine.advance_stage("t", "build", finished_agent=None).is_moved


def test_a_gate_that_hangs_for_one_task_answers_for_the_others(store: SqliteStore) -> None:
    """However often the one is asked for, it holds one thread,
    and no other task stays where it is for it.
    """
    release = threading.Event()
    asked: list[str] = []

    def hang_for_one(task: Task) -> bool:
        asked.append(task.task_id)
        return task.task_id != "poison" or release.wait(60)

    engine = StageEngine(store, pipeline=SHORT, gates={"built": hang_for_one}, gate_timeout_s=8)
    create(store, "build", "poison")
    for number in range(HUNG_MAX + 2):
        assert engine.advance_stage("poison", "build", finished_agent=None).result is Advanced.GATE_RED
        create(store, "build", f"sound-{number}")
        moved = engine.advance_stage(f"sound-{number}", "build", finished_agent=None)
        assert moved.is_moved
    assert asked.count("poison") == 1
    release.set()
    for thread in [found for found in threading.enumerate() if found.name == "gate built"]:
        thread.join(10)
    assert engine.advance_stage("poison", "build", finished_agent=None).is_moved


def test_unknown_names_are_errors(store: SqliteStore, engine: StageEngine) -> None:
    """A stage, an agent and a task that nobody knows are told apart, and nothing is advanced."""
    create(store, "build")
    create(store, "nowhere", "lost")
    before = dump(store)
    with pytest.raises(UnknownStage, match="'elsewhere'"):
        engine.advance_stage("t", "elsewhere", finished_agent=None)
    with pytest.raises(UnknownStage, match="'nowhere'"):
        engine.evaluate("lost")
    with pytest.raises(UnknownAgent, match="'stranger'"):
        engine.advance_stage("t", "build", finished_agent="stranger")
    with pytest.raises(UnknownTask):
        engine.advance_stage("nobody", "build", finished_agent=None)
    assert dump(store) == before


def test_a_task_that_came_round_is_not_moved_by_an_old_decision(store: SqliteStore, gate: Switch) -> None:
    """D22: between the look and the update a task leaves the stage and enters it again:
    that visit was not judged.
    """
    clock = ManualClock()
    engine = StageEngine(store, pipeline=SHORT, gates={"built": gate}, clock=clock)
    task = create(store, "build")

    def round_trip(_: Task) -> bool:
        with store.transaction() as transaction:
            entered = task.stage_entered_at
            assert transaction.change_stage("t", expected="build", entered_at=entered, stage="check", now=5)
            assert transaction.change_stage("t", expected="check", entered_at=5, stage="build", now=6)
        return True

    rival = StageEngine(store, pipeline=SHORT, gates={"built": round_trip}, clock=clock)
    assert rival.advance_stage("t", "build", finished_agent=None).result is Advanced.STALE
    assert store.active_jobs("t") == []
    assert engine.advance_stage("t", "build", finished_agent=None).is_moved


def test_who_delivers_late_removes_no_other_advance(store: SqliteStore, engine: StageEngine) -> None:
    """Two read one entry, one delivers it, and its number goes to the next entry:
    that one is still delivered.

    Found by scenario 10: a task whose job was done stayed where it was, in one of some hundred
    runs.
    """
    entries = []
    for number, task_id in enumerate(("t", "u"), start=1):
        task = create(store, "build", task_id)
        with store.transaction() as transaction:
            job = transaction.insert_job(agent="builder", repo="", task_id=task_id, max_attempts=1, now=number)
            transaction.insert_outbox(
                OutboxEntry(
                    0, OutboxKind.ADVANCE, job.job_id, 1, "builder", "", task_id, "build", task.stage_entered_at, "",
                    0, None, number,
                )
            )  # fmt: skip
        entries += store.outbox(OutboxKind.ADVANCE, limit=2)
        assert engine.deliver_one(entries[0]) is (number == 1)

    assert entries[0].outbox_id == entries[1].outbox_id
    assert engine.deliver() == 1
    assert [TaskManager(store).get(task_id).stage for task_id in ("t", "u")] == ["check", "check"]


def test_of_many_who_advance_at_once_one_does(store: SqliteStore, engine: StageEngine) -> None:
    """D22: webhooks and agents at once: one advance, one job."""
    create(store, "build")
    start = threading.Barrier(8)

    def advance(number: int) -> bool:
        start.wait()
        return engine.advance_stage("t", "build", finished_agent=("builder", None)[number % 2]).is_moved

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(advance, range(8))) == [False] * 7 + [True]
    assert [job.agent for job in store.active_jobs("t")] == ["checker"]
    assert sum(audit.event == "stage_changed" for audit in store.audits("t")) == 1


_KILLED = """
import os, signal, sys
from durable_agents import StageEngine, open_store
from durable_agents.jobs.stages import Pipeline, Stage
path, point = sys.argv[1:]
def hook(event, arguments):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
stages = (Stage(name="build", next="check"), Stage(name="check", next="end", starts="checker"), Stage(name="end"))
StageEngine(open_store(path), pipeline=Pipeline(stages), gates={}).advance_stage("t", "build", finished_agent=None)
"""


@pytest.mark.parametrize("point", JobCrashPoint.of("stage"))
def test_an_advance_that_is_killed_is_whole_or_not_there(store: SqliteStore, tmp_path: Path, point: str) -> None:
    """Stage, audit row and job are all there, or none; a second advance makes it so."""
    create(store, "build")
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "store.db")]
    assert subprocess.run([*command, point], timeout=60, check=False).returncode == -signal.SIGKILL
    moved = point == JobCrashPoint.STAGE_AFTER_ADVANCE
    task = store.task("t")
    assert task is not None
    assert task.stage == ("check" if moved else "build")
    assert len(store.active_jobs("t")) == len(store.audits("t")) - 1 == int(moved)
    subprocess.run([*command, "none"], timeout=60, check=True)
    assert [job.agent for job in store.active_jobs("t")] == ["checker"]


def test_the_default_pipeline_is_that_of_the_seeds(store: SqliteStore) -> None:
    """Its stages in order, its human gate, and who may leave what."""
    names = [stage.name for stage in DEFAULT_PIPELINE.stages]
    assert names == [
        "analysis", "architecture", "development", "review", "testing", "deploy-staging", "deploy", "done"
    ]  # fmt: skip
    assert [stage.name for stage in DEFAULT_PIPELINE.stages if stage.is_human_gated] == ["analysis"]
    assert DEFAULT_PIPELINE.leaves("developer") == ("architecture",)
    gates: dict[str, Gate] = {stage.gate: lambda _: True for stage in DEFAULT_PIPELINE.stages if stage.gate}
    engine = StageEngine(store, gates=gates)
    create(store, "development")
    assert engine.advance_stage("t", "development", finished_agent=None).stage == "review"
    assert [job.agent for job in store.active_jobs("t")] == ["reviewer"]


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ((), "it has no stage"),
        ((Stage(name="a", next="b"),), "'a' leads to 'b', which is no stage"),
        ((Stage(name="a", next="b"), Stage(name="b", next="a")), "'a' leads in a circle; 'b' leads in a circle"),
        ((Stage(name="a"), Stage(name="a")), "'a' is there 2 times"),
        ((Stage(name=""),), "a name is empty"),
        ((Stage(name="a", gate="g"),), "'a' is final and has a gate, leavers or a human gate"),
        ((Stage(name="a", starts=""),), "a name is empty"),
    ],
)
def test_a_pipeline_that_cannot_be_meant_is_refused(stages: tuple[Stage, ...], problem: str) -> None:
    """Each mistake has its sentence, and all of them are told at once."""
    with pytest.raises(InvalidPipeline, match=problem):
        Pipeline(stages)


def test_a_pipeline_is_data(store: SqliteStore) -> None:
    """It survives JSON, and an engine refuses one whose gates nobody gave."""
    assert msgspec.json.decode(msgspec.json.encode(SHORT), type=Pipeline) == SHORT
    with pytest.raises(InvalidPipeline, match="got none for built"):
        StageEngine(store, pipeline=SHORT, gates={})
    with pytest.raises(InvalidSetting, match="max_attempts"):
        StageEngine(store, pipeline=SHORT, gates={"built": lambda _: True}, max_attempts=0)
    with pytest.raises(InvalidSetting, match="gate timeout"):
        StageEngine(store, pipeline=SHORT, gates={"built": lambda _: True}, gate_timeout_s=float("nan"))


def test_the_declared_crash_points_are_those_that_are_passed(store: SqliteStore, engine: StageEngine) -> None:
    """An advance passes exactly the declared points, in order."""
    create(store, "build")
    passed: list[str] = []
    listening = [True]

    def hook(event: str, _: object) -> None:
        if listening and event.startswith("recovery.stage."):
            passed.append(event)

    sys.addaudithook(hook)
    engine.advance_stage("t", "build", finished_agent=None)
    listening.clear()
    assert tuple(passed) == JobCrashPoint.of("stage")
