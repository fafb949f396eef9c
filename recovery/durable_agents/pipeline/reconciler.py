"""The reconciler: polls the world, since nothing reports that a webhook was lost.

An event says that something has happened; whether it still holds can be looked up at any time. So a
pipeline that moves by webhooks gets a part that looks (level-triggered, as the controllers of
Kubernetes are), and a lost delivery costs time and nothing else. It has two parts, each with its
own switch:

- *Gates* (F-1). A task is moved by the function by which a webhook would have moved it, if it has
  been in its stage for longer than the stage's grace, has no active job, and its gate is green. A
  red gate is silence, however often it is looked at. Stages with a human gate, and stages without a
  gate, are left alone.
- *The tracker* (F-2). Issues that are In Progress, Approved or Rejected *now* are given to the
  handlers of the webhooks that would have said so. An approval counts once (``Approvals``). The
  approval of an issue that was never started is one warning or, with ``reconcile_start_approved``,
  a start. Its rejection has nothing to end.

The grace runs from the entry into the *stage* (D21): a row that is often written to would never be
old. Against a webhook in the same moment the store decides, by compare-and-set (D22). An error with
one task or one project is logged and stops no other. Each part has a loop of its own, so that a
slow tracker holds up no gate.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from durable_agents.clock import Clock, Microseconds, SystemClock, is_duration, microseconds
from durable_agents.errors import STORE_FAILURES, InvalidSetting, TrackerUnavailable, UnknownTask
from durable_agents.pipeline.handlers import Handled
from durable_agents.service import Health, PeriodicService
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import Audit
from durable_agents.webhooks import events
from durable_agents.webhooks.events import StartRequested, TrackerState, VerdictGiven

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from durable_agents.jobs.stages import StageEngine
    from durable_agents.pipeline.handlers import Handlers
    from durable_agents.pipeline.tracker import Issue, Tracker
    from durable_agents.store.rows import Task, WaitingTask
    from durable_agents.webhooks.events import Event

APPROVAL_OVER: Final = "approval_over"
"""The event of the audit row: the tracker no longer shows the approval of an earlier gate."""

_DURATION_S_MAX: Final = 365 * 24 * 3600.0
_TROUBLES_MAX: Final = 1000
_SHOWN_MAX: Final = 20
_LOGGER: Final = logging.getLogger(__name__)


class ReconcilerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The switches and times of a reconciler. Raises InvalidSetting, which names all problems.

    ``reconcile_enabled`` mutes everything, ``reconcile_plane_enabled`` the tracker's part alone: a
    part that is off does nothing, and that is no error. ``reconcile_start_approved`` also starts
    issues that are Approved and have no task, since start and verdict were both lost; their
    approval counts when the first stage's work is done. It is off by default, since a tracker may
    hold many issues that were approved before it had a pipeline. ``reconcile_grace_overrides_json``
    is a JSON object of stages and seconds; an invalid one is a warning (``grace_overrides``).
    """

    reconcile_enabled: bool = True
    reconcile_plane_enabled: bool = True
    reconcile_notify_unblock: bool = True
    reconcile_start_approved: bool = False
    reconcile_grace_default_s: float = 600.0
    reconcile_grace_overrides_json: str = ""
    reconcile_interval_s: float = 60.0

    def __post_init__(self) -> None:
        """Check all of them but the overrides."""
        bounds = {"reconcile_grace_default_s": 0.0, "reconcile_interval_s": 0.001}
        problems = [
            f"{name}={getattr(self, name)!r} is not between {low:g} and {_DURATION_S_MAX:g} s"
            for name, low in bounds.items()
            if not is_duration(getattr(self, name), low, _DURATION_S_MAX)
        ]
        if problems:
            message = f"The settings of a reconciler must be in their bounds; {'; '.join(problems)}. Correct these."
            raise InvalidSetting(message)


def grace_overrides(settings: ReconcilerSettings, stages: Collection[str]) -> dict[str, float]:
    """Return the valid overrides of the grace, by stage. All problems are one warning."""
    text = settings.reconcile_grace_overrides_json
    good: dict[str, float] = {}
    problems = []
    try:
        found = msgspec.json.decode(text) if text.strip() else {}
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        found, problems = {}, [f"it is not JSON ({error})"]
    if not isinstance(found, dict):
        found, problems = {}, [f"it is {found!r:.80}, which is no object"]
    for stage, value in found.items():
        if stage not in stages:
            problems.append(f"{stage!r:.80} is no stage")
        elif is_duration(value, 0, _DURATION_S_MAX):
            good[stage] = float(value)
        else:
            problems.append(f"the grace of {stage!r} is {value!r:.80}")
    if problems:
        _LOGGER.warning(
            "reconcile_grace_overrides_json must be a JSON object of stages and seconds, such as "
            '{"review": 7200}; %s. The default of %g s holds instead.',
            "; ".join(problems),
            settings.reconcile_grace_default_s,
        )
    return good


class Approvals:
    """The approvals in the tracker that were the answer to an earlier gate.

    A webhook says that a person has approved; a poll says that an issue *is* Approved, and says so
    until its state is changed. With several human gates the answer to the first would open the
    others, with no human near. So a polled approval counts once: after a task has left a human
    gate, the tracker has to show the issue as In Progress before another approval counts. That it
    did is a row of the audit trail, which survives a restart. The time of an issue's last change
    proves nothing: a comment changes it, too.
    """

    def __init__(self, engine: StageEngine) -> None:
        """Look up the human gates; with fewer than two there is nothing to tell apart."""
        self._store = engine.store
        gates = {stage.name for stage in engine.pipeline.stages if stage.is_human_gated}
        self._gates = gates if len(gates) > 1 else set()

    def is_spent(self, task: Task) -> bool:
        """Tell whether the approval that the tracker shows was the answer to an earlier gate."""
        return task.stage in self._gates and self._spent_at(task) is not None

    def note_in_progress(self, task: Task, *, asked_at: Microseconds, now: Microseconds) -> bool:
        """Record that the issue was In Progress at ``asked_at``; return whether that was new.

        What the tracker showed before the task left its gate does not count. Raises any StoreError.
        """
        spent_at = self._spent_at(task) if self._gates else None
        if spent_at is None or spent_at >= asked_at:
            return False
        with self._store.transaction() as transaction:
            found = transaction.task(task.task_id)
            if found is None or (found.stage, found.stage_entered_at) != (task.stage, task.stage_entered_at):
                return False
            transaction.insert_audit(Audit(task.task_id, APPROVAL_OVER, None, None, "the issue is In Progress", now))
        return True

    def _spent_at(self, task: Task) -> Microseconds | None:
        """Return when the task left a human gate, unless its approval was over since."""
        audits = self._store.audits(task.task_id)
        for audit in reversed(audits):
            if audit.event == APPROVAL_OVER:
                return None
            if audit.event == "stage_changed" and audit.before in self._gates:
                return audit.created_at
        is_whole = len(audits) < PAGE_ROWS_MAX
        return None if is_whole else audits[0].created_at  # older rows are unknown: a human can approve again


class Unblocked(msgspec.Struct, frozen=True):
    """A task that the reconciler has moved, since a webhook was lost. ``stage`` is the old one."""

    task_id: str
    tracker_key: str
    stage: str
    text: str


class UnblockNotifier(Protocol):
    """A callable that tells people of a task that was moved.

    It must bound its own waiting.
    """

    def __call__(self, unblocked: Unblocked, /) -> object:
        """Send the notification, once.

        An error is logged and not tried again: the task has moved.
        """
        ...


class Round(msgspec.Struct, frozen=True):
    """The counts of one round: ``looked`` overdue tasks, ``troubles`` left for the next round."""

    looked: int = 0
    unblocked: int = 0
    issues: int = 0
    created: int = 0
    cancelled: int = 0
    troubles: int = 0


class Reconciler:
    """Makes up for lost webhooks, every ``reconcile_interval_s``. May be shared by threads.

    ``tracker`` is asked for the issues of each of the ``projects``; without it there are only
    gates. It is started after the workers that execute jobs, and stopped before them. Raises
    InvalidSetting.
    """

    def __init__(
        self,
        handlers: Handlers,
        *,
        tracker: Tracker | None = None,
        projects: Sequence[str] = (),
        settings: ReconcilerSettings | None = None,
        notifier: UnblockNotifier | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare; nothing is looked at yet."""
        if tracker is not None and (isinstance(projects, str) or not projects):
            message = f"The projects of the tracker must be a list of names; got {projects!r}. Name one or more."
            raise InvalidSetting(message)
        self._handlers = handlers
        self._engine: StageEngine = handlers.engine
        self._store = self._engine.store
        self._tracker = tracker
        self._projects = tuple(projects)
        self._settings = ReconcilerSettings() if settings is None else settings
        self._notifier = notifier
        self._clock: Clock = SystemClock() if clock is None else clock
        stages = self._engine.pipeline.stages
        self._overrides_s = grace_overrides(self._settings, [stage.name for stage in stages])
        self._stages = [stage.name for stage in stages if stage.gate and not stage.is_human_gated]
        self._approvals = Approvals(self._engine)
        self._troubles: dict[str, tuple[str, str]] = {}  # what: (kind, newest text)
        self._lock = threading.Lock()
        self._totals = Counter[Handled]()
        self.last_unblocked: str | None = None
        """The tracker key of the task that this reconciler moved last; its id if it has no key."""
        self._gates = self._service(self.reconcile_gates_once, "reconciler")
        self._issues = self._service(lambda _: self.reconcile_tracker_once(), "reconciler of the tracker")
        self._services = (self._gates,) if tracker is None else (self._gates, self._issues)

    @property
    def unblocked_total(self) -> int:
        """How many tasks this reconciler has moved."""
        return self._totals[Handled.MOVED]

    @property
    def health(self) -> Health:
        """The health of the first loop that is not healthy; that of the gates if both are."""
        found = [service.health for service in self._services]
        return next((health for health in found if not health.is_healthy), found[0])

    def grace_for_stage(self, stage: str) -> float:
        """Return for how many seconds a task in this stage is left to its webhooks."""
        return self._overrides_s.get(stage, self._settings.reconcile_grace_default_s)

    def start(self) -> None:
        """Do a round every ``reconcile_interval_s``. Starting twice is one loop of each."""
        for service in self._services:
            service.start()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop after the rounds under way; return whether each loop ended within ``timeout_s``."""
        have_ended = [service.stop(timeout_s=timeout_s) for service in self._services]
        return all(have_ended)

    def tick(self) -> None:
        """Do one round now, in this thread; an error is kept in ``health`` and not raised."""
        for service in self._services:
            service.tick()

    def run_once(self, now: Microseconds | None = None) -> Round:
        """Do one round as of ``now`` (by default the clock's time), and return its counts.

        Raises the StoreErrors that would meet every task (locked, full, read-only, unavailable,
        closed); what was done before stays done.
        """
        parts = (self.reconcile_gates_once(now), self.reconcile_tracker_once())
        return Round(*(sum(values) for values in zip(*(msgspec.structs.astuple(part) for part in parts), strict=True)))

    def reconcile_gates_once(self, now: Microseconds | None = None) -> Round:
        """Move the tasks that wait for nothing but a webhook. Raises as ``run_once``."""
        if not self._settings.reconcile_enabled:
            return Round()
        moment = self._clock.now() if now is None else now
        self._engine.deliver()  # advances that the end of a job has decided: no webhook was lost there
        looked = unblocked = troubles = 0
        for stage in self._stages:
            for waiting in self._overdue(stage, moment):
                looked += 1
                moved = self._isolated(_key(waiting.task), functools.partial(self._leave, waiting))
                unblocked += moved is True
                troubles += moved is None
        return Round(looked=looked, unblocked=unblocked, troubles=troubles)

    def reconcile_tracker_once(self) -> Round:
        """Do what the tracker's issues ask for, as webhooks would have. Raises as ``run_once``."""
        if self._tracker is None or not (self._settings.reconcile_enabled and self._settings.reconcile_plane_enabled):
            return Round()
        found = Counter[str]()
        for project in self._projects:
            is_done = self._isolated(f"project {project}", functools.partial(self._replay, project, found))
            found["troubles"] += is_done is None
        return Round(
            issues=found["issues"],
            unblocked=found[Handled.MOVED],
            created=found[Handled.CREATED],
            cancelled=found[Handled.CANCELLED],
            troubles=found["troubles"],
        )

    def describe(self) -> dict[str, Any]:
        """Return its block of the status page, ready for JSON, with the counts of this process."""
        health = self.health
        with self._lock:
            troubles = {what: text for what, (_, text) in list(self._troubles.items())[-_SHOWN_MAX:]}
        return {
            "enabled": self._settings.reconcile_enabled,
            "tracker_enabled": self._settings.reconcile_plane_enabled and self._tracker is not None,
            "is_running": health.is_running,
            "reason": health.reason,
            "last_run_at": health.last_run_at,
            "interval_s": self._settings.reconcile_interval_s,
            "grace_s": {stage: self.grace_for_stage(stage) for stage in self._stages},
            "unblocked_total": self.unblocked_total,
            "last_unblocked": self.last_unblocked,
            "created_total": self._totals[Handled.CREATED],
            "cancelled_total": self._totals[Handled.CANCELLED],
            "troubles": troubles,
        }

    def _overdue(self, stage: str, now: Microseconds) -> Iterator[WaitingTask]:
        """Yield the tasks of a stage whose grace is over, page by page, oldest first."""
        until = now - microseconds(self.grace_for_stage(stage))
        after: tuple[Microseconds, str] = (0, "")
        while page := self._store.waiting_tasks(stage, entered_until=until, after=after, limit=PAGE_ROWS_MAX):
            yield from page
            after = (page[-1].task.stage_entered_at, page[-1].task.task_id)

    def _leave(self, waiting: WaitingTask) -> bool:
        """Move a task if its gate is green; a red gate or a task that has moved is silence."""
        task = waiting.task
        advance = self._engine.advance_stage(task.task_id, task.stage, finished_agent=None, repo=waiting.repo)
        if advance.is_moved:
            self._note_unblocked(task)
        return advance.is_moved

    def _replay(self, project: str, found: Counter[str]) -> bool:
        """Give the issues of a project to the handlers, state by state, page by page."""
        assert self._tracker is not None  # noqa: S101 - checked by the caller
        for state in TrackerState:
            asked_at = self._clock.now()
            for issue in self._tracker.issues(project, state.value):
                found["issues"] += 1
                is_handled = self._isolated(issue.key, functools.partial(self._handle, issue, asked_at, found))
                found["troubles"] += is_handled is None
        return True

    def _handle(self, issue: Issue, asked_at: Microseconds, found: Counter[str]) -> bool:
        event = events.of_issue(issue.key, issue.state, issue.repo)
        lost = None if event is None else self._lost(event, issue, asked_at)
        if lost is None:
            return True
        outcome = self._handlers.handle(lost)
        found[outcome.handled] += 1
        if outcome.handled is Handled.MOVED and outcome.task is not None:
            self._note_unblocked(outcome.task)
        elif outcome.handled in {Handled.CREATED, Handled.CANCELLED}:
            with self._lock:
                self._totals[outcome.handled] += 1
            _LOGGER.info("reconciler: %s is %s now, no webhook has said so", issue.key, outcome.handled)
        return True

    def _lost(self, event: Event, issue: Issue, asked_at: Microseconds) -> Event | None:
        """Return the event of the lost webhook, if one was lost. Raises UnknownTask."""
        task = self._store.task_with_tracker_key(issue.key)
        is_start = isinstance(event, StartRequested)
        is_approval = isinstance(event, VerdictGiven) and event.is_approved
        if task is None:
            return self._lost_start(issue) if is_start or is_approval else None
        if is_start:
            self._approvals.note_in_progress(task, asked_at=asked_at, now=self._clock.now())
            return None
        if is_approval and (self._approvals.is_spent(task) or self._is_unfinished(task)):
            return None
        return event

    def _lost_start(self, issue: Issue) -> Event:
        """Return the start of an issue that has no task. Raises UnknownTask."""
        if issue.state != TrackerState.IN_PROGRESS and not self._settings.reconcile_start_approved:
            message = (
                f"{issue.key} must have a task, since it is {issue.state}; got none. Start it, or set "
                "reconcile_start_approved to start all of these."
            )
            raise UnknownTask(message)
        return StartRequested(issue.key, issue.repo)

    def _is_unfinished(self, task: Task) -> bool:
        """Tell whether an active job may give a result that is newer than the approval."""
        return self._settings.reconcile_start_approved and bool(self._store.active_jobs(task.task_id))

    def _service(self, run_once: Callable[[Microseconds], object], name: str) -> PeriodicService:
        return PeriodicService(run_once, interval_s=self._settings.reconcile_interval_s, name=name, clock=self._clock)

    def _note_unblocked(self, task: Task) -> None:
        """Count, log and notify that a task moved although its webhook was lost."""
        key = _key(task)
        with self._lock:
            self._totals[Handled.MOVED] += 1
            self.last_unblocked = key
        # The first line is a contract with programs that search logs for it (F-4), in its own
        # words.
        _LOGGER.info("reconciler: %s %s разблокирована (потерян webhook)", key, task.stage)
        text = f"reconciler: {key} has left {task.stage}, a webhook about it was lost"
        _LOGGER.info("%s", text)
        if self._notifier is None or not self._settings.reconcile_notify_unblock:
            return
        try:
            self._notifier(Unblocked(task.task_id, key, task.stage, text))
        except Exception as error:  # noqa: BLE001 - the notifier is the user's code, and the task has moved
            _LOGGER.warning("nobody was told that %s: %s: %s", text, type(error).__name__, error)

    def _isolated(self, what: str, do: Callable[[], Any]) -> Any:
        """Return what ``do`` returns, or None if it raised, with one warning until it succeeds."""
        try:
            result = do()
        except STORE_FAILURES:
            raise
        except Exception as error:  # noqa: BLE001 - an error with one task or project must not stop the others
            self._note_trouble(what, error)
            return None
        with self._lock:
            self._troubles.pop(what, None)
        return result

    def _note_trouble(self, what: str, error: Exception) -> None:
        """Keep an error for the status page; log it unless the one before was of the same kind."""
        name = type(error).__name__
        text = f"{name}: {error}"
        # The text of an unavailable tracker changes with the seconds that are left: no new kind.
        kind = name if isinstance(error, TrackerUnavailable) else text
        with self._lock:
            before, _ = self._troubles.get(what, ("", ""))
            if len(self._troubles) >= _TROUBLES_MAX:
                self._troubles.clear()  # a second warning is better than a table without bound
            self._troubles[what] = (kind, text)
        if kind != before:
            _LOGGER.warning("reconciler: %s is left for the next round: %s", what, text)


def _key(task: Task) -> str:
    return task.tracker_key or task.task_id
