"""The questions about webhooks: the inbox, the reconciler, and its tracker."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NoReturn
from unittest import mock

import msgspec
from durable_agents import JobQueue, Pipeline, Stage, StageEngine, TaskManager
from durable_agents.errors import STORE_FAILURES, RecoveryError, TrackerUnavailable
from durable_agents.pipeline.handlers import Handlers
from durable_agents.pipeline.reconciler import Approvals, Reconciler, ReconcilerSettings
from durable_agents.pipeline.tracker import Issue
from durable_agents.store.rows import Audit, DeliveryStatus, StoredDelivery
from durable_agents.webhooks.inbox import Inbox

from scenarios.judging import BEGINNING
from scenarios.questions.world import YEAR_S, Questions, World, refused, settings, unlocked

if TYPE_CHECKING:
    from collections.abc import Iterator


class Board:
    """A tracker with an issue to start, one without a task, and a project that is down."""

    def issues(self, project: str, state: str) -> Iterator[Issue]:
        """Yield the issues."""
        if project == "down":
            message = "the tracker is down"
            raise TrackerUnavailable(message)
        found = {"In Progress": ("new",), "Approved": ("unknown", "planned"), "Rejected": ("unwanted",)}
        for key in found.get(state, ()):
            yield Issue(key, state, "repo")


def tracker_round(world: World) -> list[Any]:
    """Return the counts of one round with a tracker, and its status page."""
    engine = world.engine(starts="builder")
    tasks = TaskManager(world.store, clock=world.clock)
    for key in ("planned", "unwanted"):
        tasks.create(key, tracker_key=key, stage="design")
    told: list[str] = []
    reconciler = Reconciler(
        Handlers(engine, ci_gate="open", clock=world.clock),
        tracker=Board(), projects=["core", "down"], notifier=lambda each: told.append(each.task_id), clock=world.clock,
    )  # fmt: skip
    found = msgspec.to_builtins(reconciler.run_once())
    page = reconciler.describe()
    totals = [page[f"{name}_total"] for name in ("unblocked", "created", "cancelled")]
    return [found, totals, sorted(page["troubles"]), told]


def waits(world: World) -> list[int]:
    """Return what a reconciler with the default settings does a moment early, and in time."""
    reconciler = Reconciler(Handlers(world.engine(), ci_gate="open", clock=world.clock), clock=world.clock)
    TaskManager(world.store, clock=world.clock).create("t", stage="build")
    world.later(600, but_us=1)
    early = reconciler.run_once().unblocked
    world.later(0, but_us=-1)
    return [early, reconciler.run_once().unblocked]


def approvals(world: World) -> list[Any]:
    """Return whether an approval is spent, with an audit trail that is whole and one cut short."""
    engine = world.engine()
    tasks = TaskManager(world.store, clock=world.clock)
    spent = []
    for name, rows in (("one", 998), ("two", 999)):  # and the row of its creation
        tasks.create(name, stage="design")
        with world.store.transaction() as transaction:
            transaction.insert_audits([Audit(name, "said", None, None, "", BEGINNING)] * rows)
        spent.append(Approvals(engine).is_spent(tasks.get(name)))
    tasks.create("moved", stage="plan")
    engine.approve("moved", "plan", by="a human")
    world.later(1)
    with world.counted() as count:
        is_noted = Approvals(engine).note_in_progress(tasks.get("moved"), asked_at=world.clock.now(), now=BEGINNING)
    tasks.create("again", stage="plan")
    engine.approve("again", "plan", by="a human")
    at_once = Approvals(engine).note_in_progress(tasks.get("again"), asked_at=world.clock.now(), now=BEGINNING)
    return [spent, is_noted, count[0], at_once, one_gate(world, tasks)]


def one_gate(world: World, tasks: TaskManager) -> bool:
    """Return whether an approval is spent where one gate alone is left by humans."""
    stages = (Stage(name="only", next="again", is_human_gated=True), Stage(name="again", next="only"))
    with contextlib.suppress(RecoveryError):
        Pipeline(stages)
    plan = Pipeline((Stage(name="only", next="last", is_human_gated=True), Stage(name="last")))
    engine = StageEngine(world.store, pipeline=plan, gates={}, clock=world.clock)
    tasks.create("single", stage="only")
    with world.store.transaction() as transaction:
        transaction.insert_audit(Audit("single", "stage_changed", "only", "only", "", BEGINNING))
    return Approvals(engine).is_spent(tasks.get("single"))


def troubles(world: World) -> list[Any]:
    """Return what is counted of a gate that raises, and how many troubles are kept."""
    engine = world.engine()
    reconciler = Reconciler(Handlers(engine, ci_gate="open", clock=world.clock), clock=world.clock)
    TaskManager(world.store, clock=world.clock).create("t", stage="build")
    world.later(600)
    with mock.patch.object(engine, "advance_stage", side_effect=ZeroDivisionError):
        found = reconciler.run_once()
    counts = []
    with mock.patch("durable_agents.pipeline.reconciler._LOGGER"):
        for number in range(1, 1001):
            reconciler._note_trouble(str(number), ValueError())  # noqa: SLF001 - a thousand rounds take too long
            counts.append(len(reconciler._troubles))  # noqa: SLF001 - as above
    return [found.troubles, max(counts)]


def handled(world: World) -> list[int]:
    """Return how many transactions a delivery takes that is handled, and one that fails."""
    counts: list[int] = []

    def fail(_: StoredDelivery) -> NoReturn:
        raise ZeroDivisionError

    for handler in (None, fail):
        inbox = Inbox(world.store, handler, clock=world.clock)
        inbox.accept([StoredDelivery(0, "forge", str(len(counts)), "id", "push", "{}", received_at=BEGINNING)])
        with world.counted() as count:
            inbox.run_once()
        counts.append(count[0])
    return counts


def failing_handlers(world: World) -> list[Any]:
    """Return what an inbox does whose store fails for all, and whose delivery another one handles.

    The other one is faster than a handler that then returns a change, and one that then raises.
    """
    found: list[Any] = []
    for error in STORE_FAILURES:
        inbox = Inbox(world.store, raising(error("of all")), clock=world.clock)
        inbox.accept([delivery("1")])
        told = refused(inbox.run_once)
        found.append([told, world.store.pending_deliveries(after=0, limit=9)[0].attempts])
    changes: list[str] = []
    for name, answer in (("2", lambda _: changes.append("late")), ("3", ZeroDivisionError)):

        def overtaken(_: StoredDelivery, answer: Any = answer) -> Any:
            Inbox(world.store, lambda _: lambda _: changes.append("first"), clock=world.clock).run_once()
            if isinstance(answer, type):
                raise answer
            return answer

        inbox = Inbox(world.store, overtaken, clock=world.clock)
        inbox.accept([delivery(name)])
        found.append(msgspec.to_builtins(inbox.run_once()))
    return [found, changes, [world.store.deliveries(status) for status in DeliveryStatus]]


def raising(error: Exception) -> Any:
    """Return a handler that raises."""

    def handle(_: StoredDelivery) -> NoReturn:
        raise error

    return handle


def delivery(name: str) -> StoredDelivery:
    """Return a delivery."""
    return StoredDelivery(0, "forge", name, "id", "push", "{}", received_at=BEGINNING)


class Issues:
    """A tracker with these issues, by state."""

    def __init__(self, **issues: str) -> None:
        """Keep them: ``Approved="a b"``."""
        self.found = {state.replace("_", " "): keys.split() for state, keys in issues.items()}

    def issues(self, _: str, state: str) -> Iterator[Issue]:
        """Yield the issues of a state."""
        for key in self.found.get(state, ()):
            yield Issue(key, state, "repo")


def reconciler_of(world: World, engine: StageEngine, tracker: Any = None, **more: Any) -> Reconciler:
    """Return a reconciler; what is no other argument is a setting."""
    notifier, projects = more.pop("notifier", None), more.pop("projects", ["core"] if tracker else [])
    return Reconciler(
        Handlers(engine, ci_gate="open", clock=world.clock),
        tracker=tracker, projects=projects, notifier=notifier, clock=world.clock, settings=ReconcilerSettings(**more),
    )  # fmt: skip


def switches(world: World) -> list[Any]:
    """Return what a reconciler does by its switches: with a tracker, and without."""
    engine, tasks, found = world.engine(), TaskManager(world.store, clock=world.clock), list[Any]()
    for number, (is_on, is_plane_on, has_tracker) in enumerate(itertools.product((True, False), repeat=3)):
        tasks.create(f"t{number}", stage="build")
        world.later(600)
        tracker = Issues(In_Progress=f"new-{number}") if has_tracker else None  # with projects all the same
        reconciler = reconciler_of(
            world, engine, tracker, reconcile_enabled=is_on, reconcile_plane_enabled=is_plane_on, projects=["core"],
            reconcile_interval_s=1000.0,
        )  # fmt: skip
        round_, page = reconciler.run_once(), reconciler.describe()
        found.append([round_.unblocked, round_.created, round_.troubles, page["enabled"], page["tracker_enabled"]])
        if not is_on:
            engine.advance_stage(f"t{number}", "build", finished_agent=None)
    before = reconciler.health.last_run_at
    reconciler.tick()
    found += [before, reconciler.health.last_run_at == world.clock.now(), sorted(page["grace_s"])]
    humans = Pipeline(
        (
            Stage(name="plan", next="build", gate="open", is_human_gated=True),
            Stage(name="build", next="end", gate="open"),
            Stage(name="end"),
        )
    )
    gated = StageEngine(world.store, pipeline=humans, gates={"open": lambda _: True}, clock=world.clock)
    reconciler = reconciler_of(world, gated, Issues(), reconcile_interval_s=1000.0)
    found += [sorted(reconciler.describe()["grace_s"]), reconciler.health.is_running]
    reconciler.start()
    found.append([service.health.is_running for service in reconciler._services])  # noqa: SLF001 - the first tells for both
    return [*found, reconciler.stop(), reconciler.health.is_running]


def invalid_reconcilers(world: World) -> list[str]:
    """Return how reconcilers are answered with odd projects and settings."""
    engine = world.engine()
    found = [
        refused(lambda each=each: reconciler_of(world, engine, Issues(), projects=each))  # type: ignore[misc]
        for each in ("core", "", [], ["core"])
    ]
    found.append(refused(lambda: reconciler_of(world, engine, projects="core")))
    for name in ("grace_default", "interval"):
        found += settings(ReconcilerSettings, f"reconcile_{name}_s", float("nan"), True)  # noqa: FBT003 - no number
    return found


def verdicts(world: World) -> list[Any]:
    """Return what polled verdicts do: spent ones, while a job is active, and without a task."""
    found: list[Any] = []
    for name, may_start in itertools.product(("fresh", "spent", "active", "none"), (False, True)):
        for state in ("Approved", "Rejected"):
            key = f"{name}-{may_start}-{state}"
            engine, tasks = world.engine(), TaskManager(world.store, clock=world.clock)
            if name != "none":
                tasks.create(key, tracker_key=key, stage="plan")
            if name == "spent":
                engine.approve(key, "plan", by="a human")
            if name == "active":
                JobQueue(world.store, clock=world.clock).enqueue("builder", task_id=key)
            reconciler = reconciler_of(world, engine, Issues(**{state: key}), reconcile_start_approved=may_start)
            with mock.patch("durable_agents.pipeline.reconciler._LOGGER"):
                round_ = reconciler.run_once()
            told = {name: count for name, count in msgspec.to_builtins(round_).items() if count and name != "issues"}
            found.append([key, *(f"{name} {count}" for name, count in told.items())])
    return found


def whose_approval(world: World) -> list[Any]:
    """Return whether approvals are spent: in a stage of machines, behind one, again, and overtaken.

    A row of the trail that is no move spends nothing, whatever stage it names.
    """
    stages = (
        Stage(name="one", next="build", is_human_gated=True),
        Stage(name="build", next="two", gate="open"),
        Stage(name="two", next="three", is_human_gated=True),
        Stage(name="three", next="end", is_human_gated=True),
        Stage(name="end"),
    )
    engine = StageEngine(world.store, pipeline=Pipeline(stages), gates={"open": lambda _: True}, clock=world.clock)
    tasks, approvals, found = TaskManager(world.store, clock=world.clock), Approvals(engine), list[Any]()
    tasks.create("t", stage="build")
    with world.store.transaction() as transaction:
        transaction.insert_audit(Audit("t", "advance_dropped", "one", None, "", BEGINNING))
    engine.advance_stage("t", "build", finished_agent=None)
    found.append(approvals.is_spent(tasks.get("t")))  # it has left a stage of machines, and no other
    tasks.create("u", stage="one")
    fresh = approvals.note_in_progress(tasks.get("u"), asked_at=world.clock.now(), now=world.clock.now())
    engine.approve("u", "one", by="a human")
    found += [fresh, approvals.is_spent(tasks.get("u"))]
    engine.advance_stage("u", "build", finished_agent=None)
    found.append(approvals.is_spent(tasks.get("u")))
    before = tasks.get("u")
    world.later(1)
    found.append(approvals.note_in_progress(before, asked_at=world.clock.now(), now=world.clock.now()))
    found.append(approvals.is_spent(tasks.get("u")))
    engine.approve("u", "two", by="a human")
    world.later(1)
    found.append(approvals.note_in_progress(before, asked_at=world.clock.now(), now=world.clock.now()))
    return [*found, [row.event for row in world.store.audits("u")]]


def told_of(world: World) -> list[Any]:
    """Return who is told of a task that has moved, and how often of an error that stops a round."""
    engine, tasks, told = world.engine(), TaskManager(world.store, clock=world.clock), list[str]()
    found: list[Any] = []

    def failing(each: Any) -> None:
        told.append(each.task_id)
        raise ZeroDivisionError

    notifiers: list[Any] = [None, lambda each: told.append(each.task_id), failing]
    for number, (notifier, is_on) in enumerate(itertools.product(notifiers, (True, False))):
        tasks.create(f"t{number}", stage="build", tracker_key=f"K-{number}" if is_on else None)
        world.later(600)
        reconciler = reconciler_of(world, engine, notifier=notifier, reconcile_notify_unblock=is_on)
        with mock.patch("durable_agents.pipeline.reconciler._LOGGER") as logger:
            moved = reconciler.run_once().unblocked
        found.append([moved, reconciler.last_unblocked, logger.warning.call_count])
    tasks.create("t", stage="build")
    world.later(600)
    reconciler, warnings = reconciler_of(world, engine), list[Any]()
    errors: list[Exception] = [ValueError("a"), ValueError("a"), ValueError("b")]
    errors += [TrackerUnavailable("down for 3 s"), TrackerUnavailable("down for 2 s")]
    with mock.patch("durable_agents.pipeline.reconciler._LOGGER") as logger:
        for error in (*errors, *(each("of all") for each in STORE_FAILURES)):
            with mock.patch.object(engine, "advance_stage", side_effect=error):
                warnings.append(refused(reconciler.run_once) or logger.warning.call_count)
    return [found, told, warnings]


def locked_reconciler(world: World) -> list[str]:
    """Return which parts of a reconciler do not wait for its lock."""
    reconciler = Reconciler(Handlers(world.engine(), ci_gate="open", clock=world.clock), clock=world.clock)
    task = TaskManager(world.store, clock=world.clock).create("t", stage="build")
    issue = Issue("new", "In Progress", "repo")
    return unlocked(
        reconciler._lock,  # noqa: SLF001 - only so is another thread surely in there, as below
        describe=reconciler.describe,
        handle=lambda: reconciler._handle(issue, BEGINNING, Counter()),  # noqa: SLF001 - as above
        unblocked=lambda: reconciler._note_unblocked(task),  # noqa: SLF001 - as above
        isolated=lambda: reconciler._isolated("x", lambda: None),  # noqa: SLF001 - as above
        trouble=lambda: reconciler._note_trouble("x", ValueError()),  # noqa: SLF001 - as above
    )


QUESTIONS: Final[Questions] = {
    "webhooks: a reconciler's defaults": (
        lambda _: msgspec.to_builtins(ReconcilerSettings()),
        {
            "reconcile_enabled": True,
            "reconcile_plane_enabled": True,
            "reconcile_notify_unblock": True,
            "reconcile_start_approved": False,
            "reconcile_grace_default_s": 600.0,
            "reconcile_grace_overrides_json": "",
            "reconcile_interval_s": 60.0,
        },
    ),
    "webhooks: grace": (
        lambda _: settings(ReconcilerSettings, "reconcile_grace_default_s", -0.001, 0.0, YEAR_S, YEAR_S + 0.001),
        ["InvalidSetting", "", "", "InvalidSetting"],
    ),
    "webhooks: the default grace": (waits, [0, 1]),
    "webhooks: a round with a tracker": (
        tracker_round,
        [
            {"looked": 0, "unblocked": 1, "issues": 4, "created": 1, "cancelled": 1, "troubles": 2},
            [1, 1, 1],
            ["project down", "unknown"],
            ["planned"],
        ],
    ),
    "webhooks: approvals": (approvals, [[False, True], True, 1, False, False]),
    "webhooks: troubles": (troubles, [1, 1000]),
    "webhooks: a delivery is one transaction": (handled, [1, 1]),
    "webhooks: handlers that fail, or are overtaken": (
        failing_handlers,
        [
            [
                ["DatabaseFull", 0],
                ["DatabaseLocked", 0],
                ["DatabaseReadOnly", 0],
                ["DatabaseUnavailable", 0],
                ["StoreClosed", 0],
                {"handled": 0, "failed": 0, "postponed": 0},
                {"handled": 0, "failed": 0, "postponed": 0},
            ],
            ["first", "first", "first"],
            [0, 3, 0],
        ],
    ),
    "webhooks: switches": (
        switches,
        [
            [1, 1, 0, True, True],
            [1, 0, 0, True, False],
            [1, 0, 0, True, False],
            [1, 0, 0, True, False],
            [0, 0, 0, False, True],
            [0, 0, 0, False, False],
            [0, 0, 0, False, False],
            [0, 0, 0, False, False],
            None,
            True,
            ["build"],
            ["build"],
            False,
            [True, True],
            True,
            False,
        ],
    ),
    "webhooks: reconcilers that are refused": (
        invalid_reconcilers,
        [
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "",
            "",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
            "InvalidSetting",
        ],
    ),
    "webhooks: polled verdicts": (
        verdicts,
        [
            ["fresh-False-Approved", "unblocked 1"],
            ["fresh-False-Rejected", "cancelled 1"],
            ["fresh-True-Approved", "unblocked 1"],
            ["fresh-True-Rejected", "cancelled 1"],
            ["spent-False-Approved"],
            ["spent-False-Rejected", "cancelled 1"],
            ["spent-True-Approved"],
            ["spent-True-Rejected", "cancelled 1"],
            ["active-False-Approved", "unblocked 1"],
            ["active-False-Rejected", "cancelled 1"],
            ["active-True-Approved"],
            ["active-True-Rejected", "cancelled 1"],
            ["none-False-Approved", "troubles 1"],
            ["none-False-Rejected"],
            ["none-True-Approved", "created 1"],
            ["none-True-Rejected"],
        ],
    ),
    "webhooks: whose approval it was": (
        whose_approval,
        [
            False,
            False,
            False,
            True,
            True,
            False,
            False,
            ["created", "stage_changed", "stage_changed", "approval_over", "stage_changed"],
        ],
    ),
    "webhooks: who is told": (
        told_of,
        [
            [[1, "K-0", 0], [1, "t1", 0], [1, "K-2", 0], [1, "t3", 0], [1, "K-4", 1], [1, "t5", 0]],
            ["t2", "t4"],
            [1, 1, 2, 3, 3, "DatabaseFull", "DatabaseLocked", "DatabaseReadOnly", "DatabaseUnavailable", "StoreClosed"],
        ],
    ),
    "webhooks: locks": (locked_reconciler, []),
}
