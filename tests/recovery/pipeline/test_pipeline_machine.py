"""A pipeline that lives by webhooks against a plain model:
deliveries lost, doubled and reordered, crashes, and ticks.

The store is the real one, on a file; tracker, forge and people are a world that the machine keeps,
and what they send lies on a wire, from where it arrives in any order, any number of times, or
never. A crash is an exception out of a named crash point, after which everything but the store is
new; a rival acts between a decision and its transaction.

The reference model (``scenarios.model.jobs``) says which tasks wait when nobody disturbs a look,
and in the end each audit trail is a way that it allows (``scenarios.model.ways``).

After every step: one task for each issue, each stage left once, by the human or the gate whose it
is, with one job for each stage entered; what was acknowledged is in the inbox once; people are told
of what has moved, once. In the end nothing on the wire arrives any more, and within a grace and an
interval every issue is where the tracker says.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from durable_agents import JobClaim, JobCrashPoint, JobQueue, ManualClock, Pipeline, Stage, StageEngine
from durable_agents.errors import TrackerUnavailable
from durable_agents.jobs import queue as outcomes
from durable_agents.pipeline.handlers import HandlerPoint, Handlers, branch_of
from durable_agents.pipeline.reconciler import Reconciler, ReconcilerSettings, Unblocked
from durable_agents.pipeline.tracker import Issue
from durable_agents.store import init_factory
from durable_agents.store.rows import StoredDelivery
from durable_agents.webhooks.inbox import Inbox, InboxPoint
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scenarios.model.jobs import Job, Jobs, Place, Way
from scenarios.model.states import Moment
from scenarios.model.ways import check_ways
from tests.planted.jobs import stages as planted_stages
from tests.planted.webhooks import reconciler as planted_reconcilers, webhooks as planted_webhooks
from tests.recovery.crashes import CrashError, Crashes, Intruding, bounded, new_folder, rarely, require_failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from durable_agents.store.rows import Task

PIPELINE = Pipeline(
    (
        Stage(name="analysis", next="development", starts="analyst", is_human_gated=True),
        Stage(name="development", next="review", gate="ci_green", starts="developer"),
        Stage(name="review", next="done", gate="reviewed", starts="reviewer", leavers=("reviewer",)),
        Stage(name="done"),
    )
)
WAYS = {
    stage.name: Way(stage.next, stage.starts, stage.leavers, bool(stage.gate), stage.is_human_gated)
    for stage in PIPELINE.stages
}
STAGES = [stage.name for stage in PIPELINE.stages]
KEYS = ("A-1", "A-2")
REPO = "shop"
GRACE_S = 600.0
TASKS_POINTS = (*HandlerPoint, *JobCrashPoint.of("stage"))


@dataclasses.dataclass
class Facts:
    """What is true of an issue, whoever has heard of it."""

    state: str = ""
    was_approved: bool = False
    was_rejected: bool = False
    commits: int = 0
    is_green: bool = False
    is_reviewed: bool = False


class Board:
    """The tracker: issues by state, and one that nobody can read before them."""

    def __init__(self, facts: dict[str, Facts]) -> None:
        self.facts = facts
        self.is_down = False

    def issues(self, project: str, state: str) -> Iterator[Issue]:
        """Yield the issues that are in this state now."""
        assert project == "core"
        if self.is_down:
            message = "it is being rebuilt"
            raise TrackerUnavailable(message)
        yield Issue("K" * 500, state, REPO)
        for key, facts in self.facts.items():
            if facts.state == state:
                yield Issue(key, state, REPO)


class PipelineMachine(RuleBasedStateMachine):
    """People, a tracker, a forge, workers, an inbox and a reconciler on one store."""

    engine_kind: ClassVar[type[StageEngine]] = StageEngine
    handlers_kind: ClassVar[type[Handlers]] = Handlers
    inbox_kind: ClassVar[type[Inbox]] = Inbox
    reconciler_kind: ClassVar[type[Reconciler]] = Reconciler

    def __init__(self) -> None:
        super().__init__()
        Crashes.install()
        self.folder = new_folder()
        self.store = Intruding(init_factory(Path(self.folder.name) / "store.db"))
        self.clock = ManualClock()
        self.facts = {key: Facts() for key in KEYS}
        self.board = Board(self.facts)
        self.wire: list[StoredDelivery] = []
        self.sent = 0
        self.acknowledged: set[str] = set()
        self.told: list[tuple[str, str]] = []
        self.too_early: list[Unblocked] = []
        self.seen = dict.fromkeys(KEYS, "")
        self.restart()

    def restart(self) -> None:
        """Make everything anew but the store, as after a crash."""
        gates = {"ci_green": self.is_green, "reviewed": self.is_reviewed}
        self.queue = JobQueue(self.store, clock=self.clock)
        self.engine = self.engine_kind(self.store, pipeline=PIPELINE, gates=gates, clock=self.clock)
        handlers = self.handlers_kind(self.engine, clock=self.clock)
        self.inbox = self.inbox_kind(self.store, handlers.decide_delivery, clock=self.clock)
        found = ReconcilerSettings(reconcile_grace_default_s=GRACE_S, reconcile_start_approved=True)
        self.reconciler = self.reconciler_kind(
            handlers, tracker=self.board, projects=["core"], settings=found, notifier=self.tell, clock=self.clock
        )

    def is_green(self, task: Task) -> bool:
        """Answer for continuous integration, about the newest commit."""
        return self.facts[str(task.tracker_key).strip()].is_green

    def is_reviewed(self, task: Task) -> bool:
        """Answer for the reviewer."""
        return self.facts[str(task.tracker_key).strip()].is_reviewed

    def tell(self, unblocked: Unblocked) -> None:
        """Hear of what was unblocked, and see how old its stage was."""
        self.told.append((unblocked.tracker_key, unblocked.stage))
        if unblocked.stage != "analysis":
            (entered,) = (
                audit.created_at for audit in self.store.audits(unblocked.task_id) if audit.after == unblocked.stage
            )
            self.too_early += [unblocked] if self.clock.now() - entered < GRACE_S * 1e6 else []

    def call(self, do: Callable[[], object], crash: str | None, rival: Callable[[], object] | None = None) -> bool:
        """Do something, with a crash or a rival in it; return whether it came to its end."""
        Crashes.armed, self.store.intruder = crash, rival
        try:
            do()
        except CrashError:
            return False
        finally:
            is_dead, Crashes.is_dead, Crashes.armed, self.store.intruder = Crashes.is_dead, False, None, None
            if is_dead:
                self.restart()
        return True

    def send(self, source: str, event: str, content: object) -> None:
        """Put a delivery on the wire."""
        self.sent += 1
        name = f"{source}-{self.sent}"
        now = self.clock.now()
        self.wire.append(StoredDelivery(0, source, f"id:{name}", name, event, json.dumps(content), now))

    @initialize(how_far=st.tuples(*[st.sampled_from(["", "analysis", "development", "development"]) for _ in KEYS]))
    def begin(self, how_far: tuple[str, ...]) -> None:
        """Begin with issues that have come so far, undisturbed."""
        for key, stage in zip(KEYS, how_far, strict=True):
            for state in {"": (), "analysis": ("In Progress",)}.get(stage, ("In Progress", "Approved")):
                self.people_move_an_issue(key, state)
                self.a_delivery_arrives(len(self.wire) - 1, stays=False, crash=None)
                self.inbox.run_once()
                self.a_job_is_done()

    # What happens in the world.

    @rule(key=st.sampled_from(KEYS), state=st.sampled_from(["In Progress", "In Progress", "Approved", "Rejected"]))
    def people_move_an_issue(self, key: str, state: str) -> None:
        """Move it, if that is a change."""
        facts = self.facts[key]
        if state != facts.state:
            facts.state = state
            facts.was_approved |= state == "Approved"
            facts.was_rejected |= state == "Rejected"
            self.send(
                "tracker", "", {"type": "issue.state_changed", "data": {"key": key, "state": state, "repo": REPO}}
            )

    @rule(key=st.sampled_from(KEYS), first=st.sampled_from(["the inbox", "the reconciler"]))
    def both_hear_of_it(self, key: str, first: str) -> None:
        """An issue is new, or a commit is green, and the webhook arrives:
        one has decided when the other acts.
        """
        facts = self.facts[key]
        if not facts.state:
            self.people_move_an_issue(key, "In Progress")
        elif facts.commits:
            self.ci_judges(key, "success", names=True)
            self.clock.advance(GRACE_S)
        else:
            return
        self.a_delivery_arrives(len(self.wire) - 1, stays=False, crash=None)
        both = (self.inbox.run_once, self.reconciler.run_once)
        does, meets = both if first == "the inbox" else reversed(both)
        self.call(does, None, meets)

    @rule(key=st.sampled_from(KEYS))
    def people_push(self, key: str) -> None:
        """Push a commit of which nobody knows yet whether it is good."""
        facts = self.facts[key]
        facts.commits += 1
        facts.is_green = False
        push = {"ref": f"refs/heads/{branch_of(key)}", "after": f"{key}-{facts.commits}"}
        self.send("github", "push", {**push, "repository": {"full_name": REPO}})

    @rule(key=st.sampled_from(KEYS), state=st.sampled_from(["success", "success", "failure"]), names=st.booleans())
    def ci_judges(self, key: str, state: str, names: bool) -> None:  # noqa: FBT001 - drawn by its name
        """Judge the newest commit; the forge names its branch, or does not."""
        facts = self.facts[key]
        if facts.commits:
            facts.is_green = state == "success"
            status = {"sha": f"{key}-{facts.commits}", "state": state, "repository": {"full_name": REPO}}
            self.send("github", "status", status | ({"branches": [{"name": branch_of(key)}]} if names else {}))

    @rule(duration_s=st.sampled_from([1.0, 60.0, GRACE_S]))
    def time_passes(self, duration_s: float) -> None:
        """Let time pass."""
        self.clock.advance(duration_s)

    @rule()
    def somebody_writes_to_each_task(self) -> None:
        """Write to the rows, as a busy system does."""
        with self.store.transaction() as transaction:
            transaction.execute("UPDATE tasks SET updated_at = ?", (self.clock.now(),))

    # What happens to deliveries.

    @precondition(lambda self: self.wire)
    @rule(which=st.integers(0, 9), stays=st.booleans(), crash=rarely(tuple(InboxPoint)[:3]))
    def a_delivery_arrives(self, which: int, stays: bool, crash: str | None) -> None:  # noqa: FBT001 - drawn by its name
        """Let any of them arrive; it may stay on the wire, to come again."""
        delivery = self.wire[which % len(self.wire)]
        if not stays:
            self.wire.remove(delivery)
        if self.call(lambda: self.inbox.accept([delivery]), crash):
            self.acknowledged.add(delivery.delivery_id)

    @precondition(lambda self: self.wire)
    @rule(which=st.integers(0, 9))
    def a_delivery_is_lost(self, which: int) -> None:
        """Let one never arrive."""
        del self.wire[which % len(self.wire)]

    # What the core does.

    @rule(crash=rarely((*list(InboxPoint)[3:], *TASKS_POINTS)), meets=st.booleans())
    def the_inbox_is_handled(self, crash: str | None, meets: bool) -> None:  # noqa: FBT001 - drawn by its name
        """Handle what came; the reconciler may look between a decision and what follows from it."""
        self.call(self.inbox.run_once, crash, self.reconciler.run_once if meets else None)

    @rule(crash=rarely(TASKS_POINTS), meets=st.booleans(), is_down=st.sampled_from([False, False, True]))
    def the_reconciler_looks(self, crash: str | None, meets: bool, is_down: bool) -> None:  # noqa: FBT001 - drawn by its name
        """Look once; a webhook may be handled between a decision and what follows from it."""
        self.board.is_down = is_down
        if crash is None and not meets:
            now = self.clock.now()
            due = [key for key, place in self.model().places.items() if self.model().waits(key, place, Moment(now, 0))]
            assert self.reconciler.reconcile_gates_once(now).looked == len(due), f"by the model these wait: {due}"
        self.call(self.reconciler.run_once, crash, self.inbox.run_once if meets else None)
        self.board.is_down = False

    def model(self) -> Jobs:
        """Return the model, in the state that the rows tell."""
        model = Jobs(WAYS, grace_s=0, ceiling_s=0, stage_grace_s=GRACE_S, max_attempts=2)
        for task, stage, entered_at, status in self.rows("SELECT task_id, stage, stage_entered_at, status FROM tasks"):
            model.places[task] = Place(stage, entered_at, status)
        for number, agent, task, status in self.rows("SELECT job_id, agent, task_id, status FROM jobs"):
            model.jobs[number] = Job(number, agent, task, 2, status)
        return model

    @rule()
    def a_job_is_done(self) -> None:
        """Do the oldest job: a developer pushes, a reviewer has reviewed."""
        job = self.queue.claim()
        if job is None:
            return
        task = self.store.task(str(job.task_id))
        assert task is not None
        key = str(task.tracker_key).strip()
        if job.agent == "developer":
            self.people_push(key)
        self.facts[key].is_reviewed |= job.agent == "reviewer"
        self.queue.record_exit(JobClaim(job.job_id, job.claim), 0)
        self.queue.settle(outcomes.of_exit(job, 0, self.engine, claim=job.claim))
        self.engine.deliver()

    # The end.

    def teardown(self) -> None:
        """Heal everything, see it come to an end, and remove the file."""
        try:
            self.heal()
        finally:
            self.store.close()
            self.folder.cleanup()

    def heal(self) -> None:
        """Liveness: the wire is cut, all commits are good, and time passes,
        while somebody writes to each task.
        """
        self.wire.clear()
        for _ in range(3):
            self.inbox.run_once()
            self.reconciler.run_once()
            while self.rows("SELECT 1 FROM jobs WHERE status = 'queued'"):
                self.a_job_is_done()
            for facts in self.facts.values():
                facts.is_green = facts.commits > 0
            self.clock.advance(GRACE_S)
            self.somebody_writes_to_each_task()
        self.what_must_hold()
        assert not list(check_ways(Path(self.folder.name) / "store.db"))
        for key, facts in self.facts.items():
            task = self.store.task_with_tracker_key(key)
            if task is None:
                assert facts.state not in {"In Progress", "Approved"}, f"{key} is {facts.state}, and was never started"
            elif task.stage == "analysis" and task.status != "cancelled":
                assert facts.state == "In Progress", f"{key} is {facts.state}, and its task does not know"
            else:
                assert task.stage == "done" or task.status == "cancelled", f"{key} is stuck in {task.stage}"

    # What must hold after every step.

    @invariant()
    def what_must_hold(self) -> None:
        """Compare every row of tasks, stages, jobs and deliveries with what may be."""
        tasks = self.rows("SELECT task_id, tracker_key, stage, status FROM tasks")
        keys = [key.strip() for _, key, _, _ in tasks]
        assert len(set(keys)) == len(keys), f"two tasks of an issue: {keys}"
        moves = {(key.strip(), stage) for task, key, _, _ in tasks for stage in self.stages_left(task)}
        assert set(Counter(self.told).values()) <= {1}
        assert set(self.told) <= moves
        assert not self.too_early
        for task_id, key, stage, status in tasks:
            self.is_where_it_may_be(task_id, key.strip(), stage, status)
        bodies = Counter(delivery for (delivery,) in self.rows("SELECT delivery_id FROM webhook_inbox"))
        assert set(bodies.values()) <= {1}
        assert self.acknowledged <= bodies.keys()

    def is_where_it_may_be(self, task_id: str, key: str, stage: str, status: str) -> None:
        """Check one task: what it has left, who let it, and the jobs that were written for it."""
        facts = self.facts[key]
        left = self.stages_left(task_id)
        assert left == STAGES[: STAGES.index(stage)]
        assert "analysis" not in left or facts.was_approved
        assert status != "cancelled" or facts.was_rejected
        if "development" in left and self.seen[key] in {"", "analysis", "development"}:
            assert facts.is_green
        assert "review" not in left or facts.is_reviewed
        self.seen[key] = stage
        jobs = [agent for (agent,) in self.rows("SELECT agent FROM jobs WHERE task_id = ? ORDER BY 1", task_id)]
        starts = (PIPELINE.stage(name).starts for name in STAGES[: STAGES.index(stage) + 1])
        assert jobs == sorted(agent for agent in starts if agent)

    def stages_left(self, task_id: str) -> list[str]:
        """Return the stages that a task has left, in order."""
        audits = self.store.audits(task_id)
        return [str(audit.before) for audit in audits if audit.event == "stage_changed"]

    def rows(self, statement: str, *parameters: str) -> list[tuple[Any, ...]]:
        """Return what a statement finds."""
        return self.store._read(statement, parameters)


def test_any_order_of_deliveries_crashes_and_ticks_is_that_of_the_model() -> None:
    """Several thousand steps, each followed by a comparison of every row,
    and each run healed and led to its end.
    """
    run_state_machine_as_test(PipelineMachine, settings=bounded(40, 300))


@pytest.mark.parametrize(
    ("part", "variant"),
    [
        ("reconciler_kind", planted_reconcilers.AgesTheRow),
        ("reconciler_kind", planted_reconcilers.OpensTheHumanGate),
        ("reconciler_kind", planted_reconcilers.SpeaksOnRed),
        ("reconciler_kind", planted_reconcilers.StopsAtTheFirst),
        pytest.param("reconciler_kind", planted_reconcilers.HasNoGrace, marks=pytest.mark.nightly),
        ("reconciler_kind", planted_reconcilers.TrustsMemory),
        ("inbox_kind", planted_webhooks.AcknowledgesFirst),
        ("inbox_kind", planted_webhooks.KnowsNobody),
        ("handlers_kind", planted_webhooks.ChecksThenInserts),
        pytest.param("handlers_kind", planted_webhooks.BelievesTheStatus, marks=pytest.mark.nightly),
        ("engine_kind", planted_stages.AdvancesBlindly),
        ("engine_kind", planted_stages.IgnoresTheGate),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_planted_defect_makes_it_fail(part: str, variant: type) -> None:
    """With one part replaced by a variant, the same machine finds a difference."""
    require_failure(PipelineMachine, part, variant, bounded(40, 1000))
