"""The reconciler: what a lost webhook would have done is done later, by the same functions;
red gates are silence.

It is long because gates and tracker share one world: a store, gates that a test turns, a board and
a clock.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from durable_agents import JobQueue, ManualClock, Pipeline, Stage, StageEngine, TaskManager, TaskStatus, open_store
from durable_agents.errors import DatabaseReadOnly, InvalidSetting, TrackerUnavailable
from durable_agents.jobs import queue as outcomes
from durable_agents.pipeline.handlers import Handlers, branch_of
from durable_agents.pipeline.reconciler import Reconciler, ReconcilerSettings, Round, Unblocked, grace_overrides
from durable_agents.pipeline.tracker import Issue
from durable_agents.store.rows import TaskSource
from durable_agents.store.sqlite.webhooks import WAITING
from durable_agents.webhooks.events import StartRequested, VerdictGiven

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import SqliteStore
    from durable_agents.jobs.gates import Gate
    from durable_agents.store.rows import Task

PIPELINE = Pipeline(
    (
        Stage(name="analysis", next="development", is_human_gated=True, gate="written", starts="analyst"),
        Stage(name="development", next="review", gate="ci_green", starts="developer"),
        Stage(name="review", next="talk", gate="reviewed", starts="reviewer", leavers=("reviewer",)),
        Stage(name="talk", next="done", leavers=("reviewer",)),
        Stage(name="done"),
    )
)
LINE = "reconciler: {} {} разблокирована (потерян webhook)"
BOUND_S = 30.0


class Board:
    """A tracker in memory: issues by project and state, and projects that are down.
    HTTP has tests of its own.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[Issue]] = {}
        self.down: set[str] = set()
        self.asked: list[tuple[str, str]] = []

    def put(self, key: str, state: str, project: str = "core") -> None:
        """Have an issue in this state alone."""
        for issues in self.found.values():
            issues[:] = [issue for issue in issues if issue.key != key]
        self.found.setdefault((project, state), []).append(Issue(key, state, "shop"))

    def issues(self, project: str, state: str) -> Iterator[Issue]:
        """Yield what is there; a project that is down fails after its first issue."""
        self.asked.append((project, state))
        for issue in self.found.get((project, state), []):
            yield issue
            if project in self.down:
                break
        if project in self.down:
            message = "Expected a page but the tracker answered 502; it is asked again."
            raise TrackerUnavailable(message)


class World:
    """A store, gates that a test turns, a clock that it moves, and a board."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.clock = ManualClock(1_000_000_000)
        self.answers: dict[str, bool | Exception] = {"written": True, "ci_green": True, "reviewed": True}
        self.asked: list[str] = []
        gates = {name: self._gate(name) for name in self.answers}
        self.engine = StageEngine(store, pipeline=PIPELINE, gates=gates, clock=self.clock)
        self.handlers = Handlers(self.engine, clock=self.clock)
        self.board = Board()
        self.told: list[Unblocked] = []

    def _gate(self, name: str) -> Gate:
        def gate(task: Task) -> bool:
            self.asked.append(task.task_id)
            answer = self.answers[name]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return gate

    def reconciler(self, *, projects: tuple[str, ...] = ("core",), **settings: object) -> Reconciler:
        """Return a reconciler with these settings."""
        found = ReconcilerSettings(**settings)  # type: ignore[arg-type]
        return Reconciler(
            self.handlers,
            tracker=self.board,
            projects=projects,
            settings=found,
            notifier=self.told.append,
            clock=self.clock,
        )

    def create(self, key: str, stage: str) -> Task:
        """Create a task that enters a stage now."""
        task = TaskManager(self.store, clock=self.clock).create(key.lower(), tracker_key=key, stage=stage)
        with self.store.transaction() as transaction:
            transaction.insert_source(TaskSource(task.task_id, "shop", branch_of(key)))
        return task

    def stage(self, key: str) -> str:
        """Return the stage of an issue's task."""
        task = self.store.task_with_tracker_key(key)
        assert task is not None
        return task.stage

    def jobs(self, key: str) -> list[tuple[str, str]]:
        """Return agent and repository of the task's active jobs."""
        task = self.store.task_with_tracker_key(key)
        assert task is not None
        return [(job.agent, job.repo) for job in self.store.active_jobs(task.task_id)]


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> Iterator[World]:
    with open_store(tmp_path / "store.db") as store:
        yield World(store)


def test_a_stuck_task_is_moved_on_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """F-1, F-4: the stage, one job in its repository, the line of the contract, the count,
    one notification.
    """
    world.create("ORCH-42", "development")
    world.clock.advance(3600)
    reconciler = world.reconciler()
    with caplog.at_level(logging.INFO, logger="durable_agents.pipeline.reconciler"):
        assert reconciler.run_once() == Round(looked=1, unblocked=1)
    assert (world.stage("ORCH-42"), world.jobs("ORCH-42")) == ("review", [("reviewer", "shop")])
    assert LINE.format("ORCH-42", "development") in caplog.messages
    assert "reconciler: ORCH-42 has left development, a webhook about it was lost" in caplog.messages
    assert (reconciler.unblocked_total, reconciler.last_unblocked) == (1, "ORCH-42")
    assert [(told.tracker_key, told.stage) for told in world.told] == [("ORCH-42", "development")]
    assert reconciler.run_once() == Round()


def test_the_age_of_the_stage_counts_and_not_that_of_the_row(world: World) -> None:
    """D21: a task whose row is written to all the time is as overdue as any;
    an old row in a fresh stage is not.
    """
    world.create("A-1", "development")
    world.clock.advance(600)
    with world.store.transaction() as transaction:
        transaction.execute("UPDATE tasks SET updated_at = ?", (world.clock.now(),))
    assert world.reconciler().run_once() == Round(looked=1, unblocked=1)
    with world.store.transaction() as transaction:
        transaction.execute("UPDATE tasks SET updated_at = 1, created_at = 1", ())
    assert world.reconciler().run_once() == Round()


def test_grace_is_over_at_its_last_microsecond(world: World) -> None:
    """One microsecond before, a task is its webhook's."""
    world.create("A-1", "development")
    world.clock.advance(599.999999)
    assert world.reconciler().run_once() == Round()
    world.clock.advance(0.000001)
    assert world.reconciler().run_once() == Round(looked=1, unblocked=1)


def test_each_stage_has_its_own_grace(world: World) -> None:
    """The overrides hold for their stages, the default for the others."""
    world.create("A-1", "development")
    world.create("A-2", "review")
    world.clock.advance(200)
    overrides = '{"review": 7200, "development": 0}'
    reconciler = world.reconciler(reconcile_grace_default_s=100.0, reconcile_grace_overrides_json=overrides)
    assert [reconciler.grace_for_stage(stage) for stage in ("development", "review", "analysis")] == [0, 7200, 100]
    assert reconciler.run_once() == Round(looked=1, unblocked=1)
    assert world.stage("A-2") == "review"


def test_a_red_gate_is_silence(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Over hundreds of rounds: no move, no row, no line, nobody is told;
    when it turns green, the task moves.
    """
    world.create("A-1", "development")
    world.clock.advance(3600)
    world.answers["ci_green"] = False
    reconciler = world.reconciler()
    before = world.store.task("a-1")
    with caplog.at_level(logging.INFO, logger="durable_agents"):
        for _ in range(300):
            assert reconciler.run_once() == Round(looked=1)
    assert (world.store.task("a-1"), len(world.store.audits("a-1")), world.told) == (before, 1, [])
    assert caplog.messages == []
    assert len(world.asked) == 300
    world.answers["ci_green"] = True
    assert reconciler.run_once() == Round(looked=1, unblocked=1)


@pytest.mark.parametrize("is_claimed", [False, True], ids=["queued", "running"])
def test_a_task_with_a_job_under_way_is_left_alone(world: World, *, is_claimed: bool) -> None:
    """Queued counts, too; its gate is not even asked."""
    world.create("A-1", "development")
    with world.store.transaction() as transaction:
        transaction.insert_job(agent="developer", repo="shop", task_id="a-1", max_attempts=1, now=1)
        if is_claimed:
            transaction.claim_job(None, monitor_pid=1, monitor_start=None, now=1)
    world.clock.advance(3600)
    assert world.reconciler().run_once() == Round()
    assert world.asked == []


@pytest.mark.parametrize("stage", ["analysis", "talk", "done", "of another pipeline"])
def test_stages_that_no_machine_may_leave_are_left_alone(world: World, stage: str) -> None:
    """A person's, one without a gate (nothing says that its work is done), the last one,
    and an unknown one.
    """
    world.create("A-1", stage)
    world.clock.advance(3600)
    assert world.reconciler().reconcile_gates_once() == Round()
    assert (world.stage("A-1"), world.asked) == (stage, [])


def test_a_task_that_has_ended_is_left_alone(world: World) -> None:
    """Cancelled in a stage, it stays there."""
    world.create("A-1", "development")
    TaskManager(world.store).set_status("a-1", TaskStatus.CANCELLED, expected=TaskStatus.CREATED)
    world.clock.advance(3600)
    assert world.reconciler().run_once() == Round()


def test_one_task_that_goes_wrong_holds_up_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A gate that raises is red, with one warning, and a notifier that raises is one;
    all tasks are looked at.
    """
    for number in range(3):
        world.create(f"A-{number}", "development")
    world.clock.advance(3600)

    def refuse(told: Unblocked) -> None:
        world.told.append(told)
        message = "no connection to the chat"
        raise ConnectionError(message)

    reconciler = Reconciler(world.handlers, notifier=refuse, clock=world.clock)
    world.answers["ci_green"] = RuntimeError("boom")
    for _ in range(3):
        assert reconciler.run_once() == Round(looked=3)
    assert sum("boom" in message for message in caplog.messages) == 3
    world.answers["ci_green"] = True
    assert reconciler.run_once() == Round(looked=3, unblocked=3)
    assert len(world.told) == 3
    assert sum("no connection to the chat" in message for message in caplog.messages) == 3


def test_a_task_that_cannot_be_moved_is_one_warning_until_it_can(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised for one task; what meets all of them is raised to the loop."""
    for number in range(2):
        world.create(f"A-{number}", "development")
    world.clock.advance(3600)
    reconciler = world.reconciler()
    sound = world.engine.advance_stage

    def raise_for_the_first(task_id: str, *arguments: object, **named: object) -> object:
        if task_id == "a-0":
            raise error
        return sound(task_id, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(world.engine, "advance_stage", raise_for_the_first)
    error: Exception = LookupError("nothing there")
    assert reconciler.run_once() == Round(looked=2, unblocked=1, troubles=1)
    assert reconciler.run_once() == Round(looked=1, troubles=1)
    assert sum("A-0 is left for the next round" in message for message in caplog.messages) == 1
    assert reconciler.describe()["troubles"] == {"A-0": "LookupError: nothing there"}
    error = DatabaseReadOnly("the disk is gone")
    with pytest.raises(DatabaseReadOnly):
        reconciler.run_once()
    monkeypatch.undo()
    assert reconciler.run_once() == Round(looked=1, unblocked=1)
    assert reconciler.describe()["troubles"] == {}


def test_issues_are_handled_as_their_webhooks_would_have_been(world: World) -> None:
    """F-2: In Progress makes the task, Approved opens the gate of a person, Rejected cancels;
    each once.
    """
    for key, state in (("A-1", "In Progress"), ("A-2", "In Progress"), ("A-3", "Backlog"), ("A-4", "Approved")):
        world.board.put(key, state)
    reconciler = world.reconciler()
    assert reconciler.run_once() == Round(issues=3, created=2, troubles=1)
    assert world.store.task_with_tracker_key("A-3") is None
    assert reconciler.run_once() == Round(issues=3, troubles=1)
    world.board.put("A-1", "Approved")
    world.board.put("A-2", "Rejected")
    world.board.put("A-4", "Done")
    assert reconciler.run_once() == Round(issues=2, unblocked=1, cancelled=1)
    assert (world.stage("A-1"), world.jobs("A-1")[-1]) == ("development", ("developer", "shop"))
    assert [(told.tracker_key, told.stage) for told in world.told] == [("A-1", "analysis")]
    assert reconciler.run_once() == Round(issues=2)
    shown = reconciler.describe()
    assert (shown["created_total"], shown["cancelled_total"], shown["unblocked_total"]) == (2, 1, 1)


def test_an_approval_of_what_was_never_started_is_one_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing follows from it, so somebody has to be told, once;
    when it is started, the verdict counts.
    """
    world.board.put("A-1", "Approved")
    reconciler = world.reconciler()
    for _ in range(3):
        assert reconciler.run_once() == Round(issues=1, troubles=1)
    assert sum("A-1 must have a task, since it is Approved" in message for message in caplog.messages) == 1
    world.handlers.handle(StartRequested("A-1", "shop"))
    assert reconciler.run_once() == Round(issues=1, unblocked=1)


def test_what_is_approved_is_started_where_that_is_wanted(world: World) -> None:
    """Start and verdict were both lost: the first stage's work is done first,
    then the approval counts; each once.
    """
    world.board.put("A-1", "Approved")
    reconciler = world.reconciler(reconcile_start_approved=True)
    assert reconciler.run_once() == Round(issues=1, created=1)
    assert reconciler.run_once() == Round(issues=1)
    assert (world.stage("A-1"), world.jobs("A-1")) == ("analysis", [("analyst", "shop")])
    queue = JobQueue(world.store, clock=world.clock)
    job = queue.claim()
    assert job is not None
    assert reconciler.run_once() == Round(issues=1)
    queue.settle(outcomes.of_exit(job, 0, world.engine))
    assert reconciler.run_once() == Round(issues=1, unblocked=1)
    assert (world.stage("A-1"), world.jobs("A-1")) == ("development", [("developer", "shop")])


def test_a_rejection_of_what_was_never_started_is_silence(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to cancel, and a tracker keeps its rejected issues for ever."""
    world.board.put("A-1", "Rejected")
    for _ in range(3):
        assert world.reconciler().run_once() == Round(issues=1)
    assert world.store.tasks() == []
    assert caplog.messages == []


def world_of_two_gates(world: World) -> Reconciler:
    """Declare a pipeline that a human has to let through twice, and return its reconciler."""
    pipeline = Pipeline(
        (
            Stage(name="analysis", next="development", is_human_gated=True),
            Stage(name="development", next="deploy", gate="ci_green"),
            Stage(name="deploy", next="done", is_human_gated=True),
            Stage(name="done"),
        )
    )
    world.engine = StageEngine(world.store, pipeline=pipeline, gates={"ci_green": lambda _: True}, clock=world.clock)
    world.handlers = Handlers(world.engine, clock=world.clock)
    return world.reconciler()


def test_one_approval_opens_one_human_gate(world: World) -> None:
    """The tracker goes on to say Approved; the next gate is opened by the next approval,
    also after a restart.
    """
    reconciler = world_of_two_gates(world)
    world.create("A-1", "analysis")
    world.board.put("A-1", "Approved")
    for _ in range(5):
        reconciler.run_once()
        world.clock.advance(3600)
    assert world.stage("A-1") == "deploy"
    world.board.put("A-1", "In Progress")
    reconciler.run_once()
    rows = world.store.audits(world.store.tasks()[0].task_id)
    world.reconciler().run_once()
    assert world.store.audits(world.store.tasks()[0].task_id) == rows
    assert world.stage("A-1") == "deploy"
    world.board.put("A-1", "Approved")
    assert world.reconciler().run_once() == Round(issues=1, unblocked=1)
    assert world.stage("A-1") == "done"


def test_what_the_tracker_said_before_an_approval_does_not_end_it(world: World) -> None:
    """A page from before the task left its gate shows In Progress;
    the approval that came since stays spent.
    """
    reconciler = world_of_two_gates(world)
    task = world.create("A-1", "analysis")

    class Late(Board):
        """Approves by webhook after it was asked, and before it answers."""

        def issues(self, project: str, state: str) -> Iterator[Issue]:
            if state == "In Progress":
                world.clock.advance(1)
                world.handlers.handle(VerdictGiven("A-1", is_approved=True))
                world.clock.advance(1)
            yield from super().issues(project, state)

    late = Late()
    late.put("A-1", "In Progress")
    world.board = late
    world_of_two_gates(world).run_once()
    world.board = Board()
    world.board.put("A-1", "Approved")
    for _ in range(3):
        world.clock.advance(3600)
        reconciler = world.reconciler()
        reconciler.run_once()
    assert world.stage("A-1") == "deploy"
    assert [audit.event for audit in world.store.audits(task.task_id)].count("approval_over") == 0


def test_a_pause_that_the_tracker_asked_for_is_one_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The sentence changes with each look, the trouble does not; its newest sentence is shown."""

    class Busy(Board):
        """Wants to be let alone, for less and less time."""

        def issues(self, project: str, state: str) -> Iterator[Issue]:
            self.asked.append((project, state))
            message = f"Expected to be let alone for {600 - len(self.asked)} s more but it was to be asked; wait."
            raise TrackerUnavailable(message)

    world.board = Busy()
    reconciler = world.reconciler()
    for _ in range(5):
        assert reconciler.run_once() == Round(troubles=1)
    assert len(caplog.messages) == 1
    assert "595 s more" in reconciler.describe()["troubles"]["project core"]


def test_an_advance_that_is_decided_is_no_lost_webhook(world: World) -> None:
    """A job was settled after the grace and its advance is in the outbox:
    it is delivered, and nobody is told.
    """
    world.create("A-1", "review")
    queue = JobQueue(world.store, clock=world.clock)
    queue.enqueue("reviewer", "shop", task_id="a-1")
    job = queue.claim()
    assert job is not None
    world.clock.advance(3600)
    queue.settle(outcomes.of_exit(job, 0, world.engine))
    assert world.store.waiting_tasks("review", entered_until=world.clock.now()) == []
    assert world.reconciler().run_once() == Round()
    assert (world.stage("A-1"), world.told) == ("talk", [])


def test_a_project_that_is_down_holds_up_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What it said before stands, the others are asked, one warning is logged,
    and it is asked again.
    """
    world.board.put("A-1", "In Progress", "down")
    world.board.put("B-1", "In Progress", "core")
    world.board.down = {"down"}
    reconciler = world.reconciler(projects=("down", "core"))
    assert reconciler.run_once() == Round(issues=2, created=2, troubles=1)
    assert reconciler.run_once() == Round(issues=2, troubles=1)
    assert sum("project down is left for the next round" in message for message in caplog.messages) == 1
    world.board.down.clear()
    assert reconciler.run_once() == Round(issues=2)


def test_an_issue_that_is_none_holds_up_no_other(world: World) -> None:
    """A key that cannot be printed is a trouble, and the next issue is handled."""
    world.board.put("A\x00", "In Progress")
    world.board.put("A-1", "In Progress")
    assert world.reconciler().run_once() == Round(issues=2, created=1, troubles=1)


def test_the_switches_mute_what_they_name(world: World) -> None:
    """Both, or the tracker's part alone: it is not even asked."""
    world.create("A-1", "development")
    world.clock.advance(3600)
    world.board.put("A-2", "In Progress")
    assert world.reconciler(reconcile_enabled=False).run_once() == Round()
    assert (world.asked, world.board.asked) == ([], [])
    assert world.reconciler(reconcile_plane_enabled=False).run_once() == Round(looked=1, unblocked=1)
    assert world.board.asked == []
    world.create("A-3", "development")
    world.clock.advance(3600)
    world.told.clear()
    assert world.reconciler(reconcile_notify_unblock=False).reconcile_gates_once().unblocked == 1
    assert world.told == []


def test_webhook_and_reconciler_at_once_move_a_task_once(world: World, tmp_path: Path) -> None:
    """D22: reconcilers and webhooks with stores of their own, all past the gate:
    one of all moves it, with one job.
    """
    world.create("A-1", "development")
    world.clock.advance(3600)
    now = world.clock.now()
    barrier = threading.Barrier(6)

    def meet(_: Task) -> bool:
        barrier.wait(BOUND_S)
        return True

    def work(number: int) -> bool:
        with open_store(tmp_path / "store.db") as store:
            engine = StageEngine(
                store, pipeline=PIPELINE, gates=dict.fromkeys(world.answers, meet), clock=ManualClock(now)
            )
            if number % 2:
                return engine.advance_stage("a-1", "development", finished_agent=None, repo="shop").is_moved
            return Reconciler(Handlers(engine), clock=ManualClock(now)).run_once().unblocked == 1

    with ThreadPoolExecutor(6) as pool:
        assert sum(future.result() for future in [pool.submit(work, number) for number in range(6)]) == 1
    assert world.jobs("A-1") == [("reviewer", "shop")]
    assert [audit.event for audit in world.store.audits("a-1")] == ["created", "stage_changed"]


def test_it_reads_what_is_due_and_not_everything(world: World) -> None:
    """The query walks the index of its stage from its oldest entry,
    and looks up jobs and sources by their keys.
    """
    with world.store.transaction() as transaction:
        rows = transaction.execute(f"EXPLAIN QUERY PLAN {WAITING}", ("s", 1, 0, "", 1)).fetchall()
    plan = " | ".join(str(row[3]) for row in rows)
    assert "tasks_waiting (stage=? AND stage_entered_at>? AND stage_entered_at<?)" in plan or (
        "tasks_waiting (stage=? AND (stage_entered_at,task_id)>(?,?)" in plan
    ), plan
    assert "SCAN" not in plan
    assert "TEMP B-TREE" not in plan


def test_thousands_of_overdue_tasks_come_page_by_page(world: World) -> None:
    """More than a page of them, some of them at the same moment: each is looked at once."""
    with world.store.transaction() as transaction:
        for number in range(2500):
            row = (f"t{number}", "created", "development", 1 + number // 1500, 1, 1)
            statement = "INSERT INTO tasks VALUES (?, NULL, ?, ?, ?, ?, ?)"
            transaction.execute(statement, row)
    world.answers["ci_green"] = False
    assert world.reconciler().run_once() == Round(looked=2500)
    assert len(set(world.asked)) == 2500


def test_it_starts_once_and_stops_and_starts_again(world: World) -> None:
    """Both loops; stop joins them, health says how they are, and restarting loses nothing."""
    reconciler = world.reconciler(reconcile_interval_s=3600.0)
    assert reconciler.health.reason == "it was never started"
    before = set(threading.enumerate())
    reconciler.start()
    loops = set(threading.enumerate()) - before
    reconciler.start()
    assert {loop.name for loop in loops} == {"reconciler", "reconciler of the tracker"}
    assert set(threading.enumerate()) - before == loops
    assert reconciler.health.is_healthy
    assert reconciler.stop(timeout_s=BOUND_S)
    assert not any(loop.is_alive() for loop in loops)
    reconciler.start()
    assert reconciler.health.is_running
    assert reconciler.stop(timeout_s=BOUND_S)


def test_a_tracker_that_hangs_holds_up_no_gate(world: World) -> None:
    """Each part has a loop of its own."""
    asked, release = threading.Event(), threading.Event()

    class Slow(Board):
        def issues(self, project: str, state: str) -> Iterator[Issue]:
            self.asked.append((project, state))
            asked.set()
            release.wait(BOUND_S)
            return iter(())

    world.board = Slow()
    world.create("A-1", "development")
    world.clock.advance(3600)
    moved = threading.Event()
    settings = ReconcilerSettings(reconcile_interval_s=0.01)
    reconciler = Reconciler(
        world.handlers,
        tracker=world.board,
        projects=["core"],
        settings=settings,
        notifier=lambda _: moved.set(),
        clock=world.clock,
    )
    reconciler.start()
    assert asked.wait(BOUND_S)
    assert moved.wait(BOUND_S)
    release.set()
    assert reconciler.stop(timeout_s=BOUND_S)


def test_an_error_that_meets_all_is_in_its_health(world: World) -> None:
    """The loop goes on, and says that it is not healthy until a round went well."""
    reconciler = world.reconciler()
    world.store.close()
    reconciler.tick()
    assert "StoreClosed" in reconciler.health.reason


@pytest.mark.parametrize("projects", [(), "core"])
def test_a_tracker_without_projects_is_refused(world: World, projects: tuple[str, ...]) -> None:
    """Nothing would ever be asked; a string is no list of names."""
    with pytest.raises(InvalidSetting, match="The projects of the tracker"):
        world.reconciler(projects=projects)


@pytest.mark.parametrize("text", ["{not json", "[1, 2]", "7", '"review"', "null", "\ud800", "[" * 100_000])
def test_overrides_that_cannot_be_read_are_one_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """The default holds, and nothing is raised."""
    assert grace_overrides(ReconcilerSettings(reconcile_grace_overrides_json=text), ["review"]) == {}
    (record,) = caplog.records
    assert "default of 600 s holds instead" in record.getMessage()


def test_single_overrides_that_cannot_be_meant_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Each is named, and the others hold: a misspelt stage would otherwise be found out in an
    incident.
    """
    text = '{"review": -1, "build": "1", "check": true, "talk": 5, "reviw": 9, "far": 1e300}'
    settings = ReconcilerSettings(reconcile_grace_overrides_json=text)
    assert grace_overrides(settings, ["review", "build", "check", "talk", "far"]) == {"talk": 5.0}
    (record,) = caplog.records
    for part in ("'review' is -1", "'build' is '1'", "'check' is True", "'far' is 1e+300", "'reviw' is no stage"):
        assert part in record.getMessage()


@pytest.mark.parametrize(
    "settings",
    [{"reconcile_grace_default_s": -1}, {"reconcile_interval_s": 0}, {"reconcile_interval_s": float("nan")}],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, float]) -> None:
    """With the name of the setting."""
    with pytest.raises(InvalidSetting, match=next(iter(settings))):
        ReconcilerSettings(**settings)  # type: ignore[arg-type]
