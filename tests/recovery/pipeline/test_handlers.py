"""Handlers: each event has its effect once, however often, however late,
and in whatever order it comes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import pytest
from durable_agents import (
    JobQueue,
    JobStatus,
    ManualClock,
    Pipeline,
    Stage,
    StageEngine,
    TaskManager,
    TaskStatus,
    open_store,
)
from durable_agents.errors import InvalidDelivery, InvalidSetting
from durable_agents.jobs import queue as outcomes
from durable_agents.pipeline.handlers import EventOutcome, Handled, HandlerPoint, Handlers, branch_of
from durable_agents.store.rows import StoredDelivery, TaskSource
from durable_agents.webhooks.events import CiState, CiStatus, Pushed, StartRequested, VerdictGiven
from durable_agents.webhooks.inbox import Inbox, InboxStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import SqliteStore
    from durable_agents.jobs.gates import Gate
    from durable_agents.store.rows import Task

PIPELINE = Pipeline(
    (
        Stage(name="idea", next="build", is_human_gated=True, gate="written", starts="writer"),
        Stage(name="build", next="check", gate="ci_green", starts="builder"),
        Stage(name="check", next="end", gate="checked", starts="checker", leavers=("checker",)),
        Stage(name="end"),
    )
)
START = StartRequested("A-1", "shop")
YES = VerdictGiven("A-1", is_approved=True)
NO = VerdictGiven("A-1", is_approved=False)


class World:
    """A store with handlers, gates that a test turns, and a clock that it moves."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.clock = ManualClock(1_000_000)
        self.green = {"written": True, "ci_green": True, "checked": True}
        self.asked: list[tuple[str, str]] = []
        gates = {name: self._gate(name) for name in self.green}
        self.engine = StageEngine(store, pipeline=PIPELINE, gates=gates, clock=self.clock)
        self.handlers = Handlers(self.engine, clock=self.clock)

    def _gate(self, name: str) -> Gate:
        def gate(task: Task) -> bool:
            self.asked.append((name, task.task_id))
            return self.green[name]

        return gate

    def create(self, key: str, stage: str, *, repo: str = "shop", branch: str | None = None, sha: str = "") -> Task:
        """Create a task that is in a stage."""
        task = TaskManager(self.store, clock=self.clock).create(key.lower(), tracker_key=key, stage=stage)
        with self.store.transaction() as transaction:
            transaction.insert_source(TaskSource(task.task_id, repo, branch_of(key) if branch is None else branch, sha))
        return task

    def task(self, key: str = "A-1") -> Task:
        """Return the task of an issue."""
        found = self.store.task_with_tracker_key(key)
        assert found is not None
        return found

    def agents(self, key: str = "A-1") -> list[str]:
        """Return whom the task has jobs for."""
        return [job.agent for job in self.store.active_jobs(self.task(key).task_id)]


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> Iterator[World]:
    with open_store(tmp_path / "store.db") as store:
        yield World(store)


def test_a_start_makes_the_task_once(world: World) -> None:
    """With its job, its branch and an audit row; the second start of the issue finds it."""
    assert world.handlers.handle(START).handled is Handled.CREATED
    task = world.task()
    assert (task.stage, task.status, world.agents()) == ("idea", TaskStatus.CREATED, ["writer"])
    assert world.store.source(task.task_id) == TaskSource(task.task_id, "shop", "feature/A-1")
    assert [audit.event for audit in world.store.audits(task.task_id)] == ["created"]
    assert world.handlers.handle(START) == EventOutcome(Handled.KNOWN, task)
    assert world.agents() == ["writer"]


def test_a_task_that_has_ended_is_not_started_again(world: World) -> None:
    """A late start of an issue that was rejected is late."""
    world.handlers.handle(START)
    world.handlers.handle(NO)
    assert world.handlers.handle(START).handled is Handled.KNOWN
    assert world.task().status is TaskStatus.CANCELLED


def test_of_many_starts_at_once_one_makes_the_task(world: World, tmp_path: Path) -> None:
    """Eight threads with stores of their own, as processes have:
    one task, one job, and nobody meets an error.
    """
    barrier = threading.Barrier(8)

    def start() -> Handled:
        with open_store(tmp_path / "store.db") as store:
            handlers = World(store).handlers
            barrier.wait()
            return handlers.handle(START).handled

    with ThreadPoolExecutor(8) as pool:
        found = sorted(future.result() for future in [pool.submit(start) for _ in range(8)])
    assert found == [Handled.CREATED] + [Handled.KNOWN] * 7
    assert len(world.store.tasks()) == 1
    assert world.agents() == ["writer"]


def test_an_issue_without_a_repository_has_a_task_all_the_same(world: World) -> None:
    """It is on no branch, so no CI status belongs to it."""
    assert world.handlers.handle(StartRequested("A-1", "")).handled is Handled.CREATED
    assert world.store.source(world.task().task_id) is None


@pytest.mark.parametrize(
    ("key", "branch"),
    [("A-1", "feature/A-1"), ("ключ 7", "feature/-7"), ("a/../b~1", "feature/a-b-1"), ("x.lock", "feature/x-lock")],
)
def test_a_branch_is_a_name_that_git_takes(key: str, branch: str) -> None:
    """Whatever the key is made of; git itself is asked."""
    assert branch_of(key) == branch
    subprocess.run(["git", "check-ref-format", "--branch", branch], check=True, capture_output=True)


def test_an_approval_leaves_the_gate_of_a_person(world: World) -> None:
    """Once: said again it finds the task further on,
    and a rejection that comes too late changes nothing.
    """
    world.handlers.handle(START)
    assert world.handlers.handle(YES).handled is Handled.MOVED
    assert (world.task().stage, world.agents()) == ("build", ["writer", "builder"])
    for late in (YES, NO):
        assert world.handlers.handle(late).handled is Handled.KNOWN
    assert (world.task().stage, world.task().status) == ("build", TaskStatus.CREATED)
    assert world.asked == [("written", world.task().task_id)]


def test_an_approval_does_not_open_the_gate_beside_it(world: World) -> None:
    """What a machine has to say of a stage, it has to say, too."""
    world.handlers.handle(START)
    world.green["written"] = False
    assert world.handlers.handle(YES).handled is Handled.RED
    assert world.task().stage == "idea"


def test_a_rejection_cancels(world: World) -> None:
    """With the reason in the audit trail; an approval afterwards finds that it has ended."""
    world.handlers.handle(START)
    assert world.handlers.handle(NO).handled is Handled.CANCELLED
    assert world.handlers.handle(NO).handled is Handled.KNOWN
    assert world.handlers.handle(YES).handled is Handled.KNOWN
    assert world.task().status is TaskStatus.CANCELLED
    assert world.store.audits(world.task().task_id)[-1].detail == "rejected by the tracker in idea"


def test_nothing_is_begun_for_what_was_rejected(world: World) -> None:
    """Neither its queued job nor another attempt of the one that runs;
    and no job of anybody else waits for that.
    """
    world.handlers.handle(START)
    queue = JobQueue(world.store)
    running = queue.claim()
    assert running is not None
    waiting = queue.enqueue("analyst", task_id=running.task_id)
    world.handlers.handle(NO)
    other = queue.enqueue("analyst")
    queue.settle(outcomes.of_exit(running, 1, world.engine))
    assert queue.get(running.job_id).status == "queued"
    claimed = queue.claim()
    assert claimed is not None
    assert claimed.job_id == other.job_id
    assert queue.claim() is None
    for job_id in (running.job_id, waiting.job_id):
        job = queue.get(job_id)
        assert (job.status, job.error) == ("failed", "its task was cancelled before it began")


@pytest.mark.parametrize("verdict", [YES, NO], ids=["yes", "no"])
def test_a_verdict_on_what_was_never_started_is_none(world: World, verdict: VerdictGiven) -> None:
    """Nobody has looked at anything yet, so nothing is approved, and nothing made."""
    assert world.handlers.handle(verdict).handled is Handled.UNRESOLVED
    assert world.store.tasks() == []


def test_a_decision_is_about_the_visit_that_was_looked_at(world: World) -> None:
    """Between the look and the change the task is approved:
    the rejection, and the second approval, find it gone.
    """
    world.handlers.handle(START)
    decisions = [world.handlers.decide(verdict) for verdict in (NO, YES)]
    world.handlers.handle(YES)
    for decision in decisions:
        assert not isinstance(decision, EventOutcome)
        with world.store.transaction() as transaction:
            assert decision(transaction).handled is Handled.KNOWN
    assert (world.task().stage, world.task().status) == ("build", TaskStatus.CREATED)
    assert world.agents() == ["writer", "builder"]


@pytest.mark.parametrize(
    "status",
    [CiStatus("shop", "c1", "feature/A-1", CiState.SUCCESS), CiStatus("shop", "c1", "", CiState.SUCCESS)],
    ids=["by-branch", "by-commit"],
)
def test_a_green_commit_moves_its_task(world: World, status: CiStatus) -> None:
    """Found by the branch that the status names, or by the commit that was pushed;
    another task stays.
    """
    for key in ("A-1", "A-2"):
        world.create(key, "build")
    assert world.handlers.handle(Pushed("shop", "feature/A-1", "c1")).handled is Handled.NOTED
    assert world.handlers.handle(Pushed("shop", "feature/A-1", "c1")).handled is Handled.KNOWN
    assert world.handlers.handle(status).handled is Handled.MOVED
    assert (world.task("A-1").stage, world.task("A-2").stage) == ("check", "build")
    assert world.handlers.handle(status).handled is Handled.UNRESOLVED
    assert world.agents() == ["checker"]


def test_an_unknown_commit_belongs_to_the_only_task_that_waits_for_ci(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """F-3: one candidate in the repository is it, which is logged;
    those in other stages and repositories are none.
    """
    world.create("A-1", "build")
    world.create("A-2", "check")
    world.create("B-1", "build", repo="other")
    with caplog.at_level("INFO"):
        assert world.handlers.handle(CiStatus("shop", "c9", "", CiState.SUCCESS)).handled is Handled.MOVED
    assert "commit c9 of shop is taken for that of A-1" in caplog.text
    assert world.task("B-1").stage == "build"


def test_an_unknown_commit_of_two_candidates_belongs_to_neither(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """F-3: an ambiguous one is not resolved, no gate is asked, and a log line says so."""
    for key in ("A-1", "A-2"):
        world.create(key, "build")
    with caplog.at_level("INFO"):
        assert world.handlers.handle(CiStatus("shop", "c9", "", CiState.SUCCESS)).handled is Handled.UNRESOLVED
    assert "commit c9 of shop belongs to no one task in build" in caplog.text
    assert world.asked == []


def test_a_branch_that_is_nobodys_moves_nobody(world: World) -> None:
    """A green main branch says nothing about the one task that waits."""
    world.create("A-1", "build")
    assert world.handlers.handle(CiStatus("shop", "c1", "main", CiState.SUCCESS)).handled is Handled.UNRESOLVED
    assert world.task().stage == "build"


@pytest.mark.parametrize("state", [CiState.FAILURE, CiState.ERROR, CiState.PENDING])
def test_a_commit_that_is_not_green_is_no_reason_to_ask(world: World, state: CiState) -> None:
    """Nothing is read from a gate and nothing written."""
    world.create("A-1", "build")
    assert world.handlers.handle(CiStatus("shop", "c1", "feature/A-1", state)).handled is Handled.KNOWN
    assert world.asked == []


def test_the_gate_has_the_last_word(world: World) -> None:
    """A status that says green while the gate says red (forged, stale, of another commit) moves
    nothing.
    """
    world.create("A-1", "build")
    world.green["ci_green"] = False
    assert world.handlers.handle(CiStatus("shop", "c1", "feature/A-1", CiState.SUCCESS)).handled is Handled.RED
    assert (world.task().stage, world.agents()) == ("build", [])


def test_a_push_to_a_branch_of_nobody_is_not_kept(world: World) -> None:
    """Most pushes are of that kind: no transaction is begun for them."""
    assert isinstance(world.handlers.decide(Pushed("shop", "main", "c1")), EventOutcome)


def delivery(number: int, state: str, key: str = "A-1") -> StoredDelivery:
    """Return a delivery of the tracker."""
    body = msgspec.json.encode({"type": "issue.state_changed", "data": {"key": key, "state": state, "repo": "shop"}})
    return StoredDelivery(0, "tracker", f"id:{number}", f"msg_{number}", "", body.decode(), number)


def test_the_inbox_hands_its_deliveries_to_them(world: World) -> None:
    """Doubled under other ids, and one that nobody needs: each state has its effect once."""
    inbox = Inbox(world.store, world.handlers.decide_delivery, clock=world.clock)
    states = ("In Progress", "In Progress", "Backlog", "Approved", "Approved")
    inbox.accept([delivery(number, state) for number, state in enumerate(states)])
    assert inbox.run_once() == InboxStatistics(handled=5)
    assert (world.task().stage, world.agents()) == ("build", ["writer", "builder"])


def test_a_delivery_that_cannot_be_read_is_put_aside(world: World) -> None:
    """It is an error of its own, and holds up no other."""
    inbox = Inbox(world.store, world.handlers.decide_delivery, clock=world.clock, attempts_max=1)
    inbox.accept([delivery(1, "In Progress", key="\n"), delivery(2, "In Progress")])
    assert inbox.run_once() == InboxStatistics(handled=1, failed=1)
    with pytest.raises(InvalidDelivery):
        world.handlers.decide_delivery(delivery(1, "In Progress", key=""))


def test_a_pipeline_without_a_ci_stage_is_refused(world: World) -> None:
    """With the name of the gate, which is data."""
    with pytest.raises(InvalidSetting, match="got 'tests_green'"):
        Handlers(world.engine, ci_gate="tests_green")
    handlers = Handlers(world.engine, ci_gate="checked", clock=world.clock)
    world.create("A-1", "check")
    assert handlers.handle(CiStatus("shop", "c1", "", CiState.SUCCESS)).handled is Handled.MOVED


@pytest.mark.parametrize("point", HandlerPoint)
def test_a_start_that_is_killed_is_whole_or_not_there(world: World, tmp_path: Path, point: str) -> None:
    """The process dies at each point of it; the second start leaves one task with its source and
    one job.
    """
    pid = os.fork()
    if pid == 0:
        sys.addaudithook(lambda event, _: os.kill(os.getpid(), signal.SIGKILL) if event == point else None)
        with open_store(tmp_path / "store.db") as store:
            World(store).handlers.handle(START)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL

    is_there = point == HandlerPoint.AFTER_CHANGE
    assert len(world.store.tasks()) == is_there
    assert world.handlers.handle(START).handled is (Handled.KNOWN if is_there else Handled.CREATED)
    (job,) = world.store.active_jobs(world.task().task_id)
    assert (job.agent, job.status) == ("writer", JobStatus.QUEUED)
    assert world.store.source(world.task().task_id) is not None
