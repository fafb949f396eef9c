"""The settings of a reconciler, and for how long each stage is left to its webhooks.

The reconciler: looks again and again at what is, since a webhook that is lost is lost without a
word.

An event says that something has happened; whether it still is so, anybody can look up. So a
pipeline that moves by webhooks gets one that looks (level-triggered, as the controllers of
Kubernetes are; the idea is older: a control loop), and a lost delivery costs time and nothing else.
It has two parts, each with its own switch:

- *Gates* (F-1). A task that has been in its stage for longer than the stage's grace, in which
  nobody is at work, and whose gate is green, is moved by the function by which a webhook would have
  moved it. A red gate is silence, however often it is looked at. A stage with a human gate is a
  person's, and one without a gate has nothing that could say.
- *The tracker* (F-2). Issues that are In Progress, Approved or Rejected *now* are given to the
  handlers of the webhooks that would have said so. An approval counts once
  (``durable_agents.pipeline.approvals``); one of what was never started is one warning, or, with
  ``reconcile_start_approved``, a start. A rejection of such has nothing to end.

The age that counts is that of the *stage* (D21): a row that is written to again and again would
never be old. Against a webhook in the same moment the store decides, by compare-and-set (D22). What
goes wrong with one task, or with one project, is logged and meets no other; and each part has a
loop of its own, so that a tracker which takes its time holds up no gate.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from durable_agents.clock import Clock, Microseconds, SystemClock, microseconds
from durable_agents.errors import (
    DatabaseFull,
    DatabaseLocked,
    DatabaseReadOnly,
    DatabaseUnavailable,
    InvalidSetting,
    StoreClosed,
    TrackerUnavailable,
    UnknownTask,
)
from durable_agents.pipeline.approvals import Approvals
from durable_agents.pipeline.handlers import Handled
from durable_agents.service import Health, PeriodicService
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.webhooks import events
from durable_agents.webhooks.events import StartRequested, TrackerState, VerdictGiven

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from durable_agents.jobs.stages import StageEngine
    from durable_agents.pipeline.handlers import Handlers
    from durable_agents.pipeline.tracker import Issue, Tracker
    from durable_agents.store.rows import Task, WaitingTask
    from durable_agents.webhooks.events import Event

_DURATION_S_MAX: Final = 365 * 24 * 3600.0
_SETTINGS_LOGGER: Final = logging.getLogger("durable_agents.pipeline.reconciler")


class ReconcilerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a reconciler does, and how patient it is. Durations are seconds. Raises InvalidSetting, which names all.

    ``reconcile_enabled`` mutes everything, ``reconcile_plane_enabled`` the tracker's part alone;
    what is off does nothing, and is no error. ``reconcile_start_approved`` also starts what is
    Approved and has no task, since start and verdict were both lost, and lets the approval count
    when the first stage's work is done; it is off since a tracker may hold many issues that were
    approved before it had a pipeline. ``reconcile_grace_overrides_json`` is a JSON object of stages
    and their grace; one that cannot be read is no reason not to start: the default holds
    (``Graces``).
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
        problems = []
        for name, low in (("grace_default", 0.0), ("interval", 0.001)):
            value = getattr(self, f"reconcile_{name}_s")
            if not _is_duration(value) or value < low:
                problems.append(f"reconcile_{name}_s={value!r} is not between {low:g} and {_DURATION_S_MAX:g} s")
        if problems:
            message = f"Expected settings of a reconciler but {'; '.join(problems)}; correct these."
            raise InvalidSetting(message)


class Graces:
    """How many seconds a task may wait in a stage before the reconciler looks at it.

    What is wrong with the overrides is one warning, in which everything is; the default holds in
    its place.
    """

    def __init__(self, settings: ReconcilerSettings, stages: Collection[str]) -> None:
        """Read the overrides."""
        self._default_s = settings.reconcile_grace_default_s
        self._overrides_s, problems = _overrides(settings.reconcile_grace_overrides_json, stages)
        if problems:
            _SETTINGS_LOGGER.warning(
                "reconcile_grace_overrides_json is not as expected, and %g s hold instead: %s; give a JSON object of "
                'stages and seconds, such as {"review": 7200}',
                self._default_s,
                "; ".join(problems),
            )

    def grace_for_stage(self, stage: str) -> float:
        """Return the seconds."""
        return self._overrides_s.get(stage, self._default_s)


def _overrides(text: str, stages: Collection[str]) -> tuple[dict[str, float], list[str]]:
    """Return what can be read of the overrides, and what is wrong with them."""
    if not text.strip():
        return {}, []
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        return {}, [f"it is not JSON ({error})"]
    if not isinstance(found, dict):
        return {}, [f"it is {found!r:.80}, which is no object"]
    good = {stage: float(value) for stage, value in found.items() if stage in stages and _is_duration(value)}
    problems = [f"{stage!r:.80} is no stage" for stage in found if stage not in stages]
    problems += [
        f"the grace of {stage!r} is {value!r:.80}"
        for stage, value in found.items()
        if stage in stages and stage not in good
    ]
    return good, problems


def _is_duration(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= _DURATION_S_MAX  # type: ignore[arg-type,operator]


__all__ = ["Reconciler", "ReconcilerSettings", "Round", "Unblocked"]

_TROUBLES_MAX: Final = 1000
_SHOWN_MAX: Final = 20
_ISSUES: Final = "issues"
_TROUBLES: Final = "troubles"
_FATAL: Final = (DatabaseFull, DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable, StoreClosed)
_LOGGER: Final = logging.getLogger(__name__)


class Unblocked(msgspec.Struct, frozen=True):
    """A task that the reconciler has moved on: a webhook about it was lost. ``stage`` is the one that it has left."""

    task_id: str
    tracker_key: str
    stage: str
    text: str


class UnblockNotifier(Protocol):
    """Whoever tells people. It should bound its own waiting: nobody else does."""

    def __call__(self, unblocked: Unblocked, /) -> object:
        """Send it, once; an error is logged, and it is not tried again: the task has moved all the same."""
        ...


class Round(msgspec.Struct, frozen=True):
    """What one round did. ``looked`` tasks were overdue; ``troubles`` is what was left for the next round."""

    looked: int = 0
    unblocked: int = 0
    issues: int = 0
    created: int = 0
    cancelled: int = 0
    troubles: int = 0


class _Trouble(msgspec.Struct, frozen=True):
    """What went wrong: of which kind, which decides whether it is news, and the newest sentence about it."""

    kind: str
    text: str


class Reconciler:
    """Makes up for lost webhooks, every ``reconcile_interval_s``. Raises InvalidSetting.

    ``tracker`` is asked for the issues of each of the ``projects``; without it there are only
    gates. It is started after whatever executes jobs, and stopped before it. May be shared by
    threads.
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
            message = f"Expected the projects of the tracker as a list of names but got {projects!r}; name one or more."
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
        self._graces = Graces(self._settings, [stage.name for stage in stages])
        self._stages = [stage.name for stage in stages if stage.gate and not stage.is_human_gated]
        self._approvals = Approvals(self._engine)
        self._troubles: dict[str, _Trouble] = {}
        self._lock = threading.Lock()
        self._totals = Counter[Handled]()
        self._last_unblocked: str | None = None
        self._gates = self._service(self.reconcile_gates_once, "reconciler")
        self._issues = self._service(lambda _: self.reconcile_tracker_once(), "reconciler of the tracker")
        self._services = (self._gates,) if tracker is None else (self._gates, self._issues)

    @property
    def unblocked_total(self) -> int:
        """How many tasks this reconciler has moved on."""
        return self._totals[Handled.MOVED]

    @property
    def last_unblocked(self) -> str | None:
        """The tracker key of the task that this reconciler moved on last; its id where it has no key."""
        return self._last_unblocked

    @property
    def health(self) -> Health:
        """How its loops are: that of the gates, unless only the other one has something to complain of."""
        found = [service.health for service in self._services]
        return next((health for health in found if not health.is_healthy), found[0])

    def grace_for_stage(self, stage: str) -> float:
        """Return for how many seconds a task in this stage is left to its webhooks."""
        return self._graces.grace_for_stage(stage)

    def start(self) -> None:
        """Look every ``reconcile_interval_s`` from now on. Starting twice is one loop of each."""
        for service in self._services:
            service.start()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop after the rounds that are under way; return whether each loop ended within ``timeout_s`` seconds."""
        have_ended = [service.stop(timeout_s=timeout_s) for service in self._services]
        return all(have_ended)

    def tick(self) -> None:
        """Do one round now, in this thread; an error is kept in ``health`` and not raised."""
        for service in self._services:
            service.tick()

    def run_once(self, now: Microseconds | None = None) -> Round:
        """Do one round as of ``now`` (the clock's time unless given), and return what it did.

        Raises the StoreErrors that would meet every task (locked, full, read-only, unavailable,
        closed); what it has done before stays done.
        """
        parts = (self.reconcile_gates_once(now), self.reconcile_tracker_once())
        return Round(*(sum(values) for values in zip(*(msgspec.structs.astuple(part) for part in parts), strict=True)))

    def reconcile_gates_once(self, now: Microseconds | None = None) -> Round:
        """Move on the tasks that wait for nothing but a webhook. Raises as ``run_once``."""
        if not self._settings.reconcile_enabled:
            return Round()
        moment = self._clock.now() if now is None else now
        self._engine.deliver()  # what a job's end has decided was lost by nobody, and is not to wait for it
        looked = unblocked = troubles = 0
        for stage in self._stages:
            for waiting in self._overdue(stage, moment):
                looked += 1
                moved = self._isolated(_key(waiting.task), lambda: self._leave(waiting))  # noqa: B023 - called at once
                unblocked += moved is True
                troubles += moved is None
        return Round(looked=looked, unblocked=unblocked, troubles=troubles)

    def reconcile_tracker_once(self) -> Round:
        """Do what the tracker's issues ask for, as their webhooks would have. Raises as ``run_once``."""
        if self._tracker is None or not (self._settings.reconcile_enabled and self._settings.reconcile_plane_enabled):
            return Round()
        found = Counter[str]()
        troubles = 0
        for project in self._projects:
            is_done = self._isolated(f"project {project}", lambda: self._replay(project, found))  # noqa: B023 - at once
            troubles += is_done is None
        return Round(
            issues=found[_ISSUES],
            unblocked=found[Handled.MOVED],
            created=found[Handled.CREATED],
            cancelled=found[Handled.CANCELLED],
            troubles=troubles + found[_TROUBLES],
        )

    def describe(self) -> dict[str, Any]:
        """Return what a status page shows of it, ready for JSON. The counts are those of this process."""
        health = self.health
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
            "troubles": self._newest_troubles(),
        }

    # Gates.

    def _overdue(self, stage: str, now: Microseconds) -> Iterator[WaitingTask]:
        """Yield the tasks of a stage whose grace is over, page by page, oldest first."""
        until = now - microseconds(self.grace_for_stage(stage))
        after: tuple[Microseconds, str] = (0, "")
        while page := self._store.waiting_tasks(stage, entered_until=until, after=after, limit=PAGE_ROWS_MAX):
            yield from page
            after = (page[-1].task.stage_entered_at, page[-1].task.task_id)

    def _leave(self, waiting: WaitingTask) -> bool:
        """Move a task on if its gate is green; a gate that is red, and a task that is gone, are silence."""
        task = waiting.task
        advance = self._engine.advance_stage(task.task_id, task.stage, finished_agent=None, repo=waiting.repo)
        if advance.is_moved:
            self._note_unblocked(task)
        return advance.is_moved

    # The tracker.

    def _replay(self, project: str, found: Counter[str]) -> bool:
        """Give the issues of a project to the handlers, state by state, as they come page by page."""
        assert self._tracker is not None  # noqa: S101 - it was asked for before
        for state in TrackerState:
            asked_at = self._clock.now()
            for issue in self._tracker.issues(project, state.value):
                found[_ISSUES] += 1
                is_handled = self._isolated(issue.key, lambda: self._handle(issue, asked_at, found))  # noqa: B023 - called at once
                found[_TROUBLES] += is_handled is None
        return True

    def _handle(self, issue: Issue, asked_at: Microseconds, found: Counter[str]) -> bool:
        event = events.of_issue(issue.key, issue.state, issue.repo)
        lost = None if event is None else self._lost(event, issue, asked_at)
        if lost is None:
            return True
        answer = self._handlers.handle(lost)
        found[answer.handled] += 1
        if answer.handled is Handled.MOVED and answer.task is not None:
            self._note_unblocked(answer.task)
        elif answer.handled in {Handled.CREATED, Handled.CANCELLED}:
            with self._lock:
                self._totals[answer.handled] += 1
            _LOGGER.info("reconciler: %s is %s now, no webhook has said so", issue.key, answer.handled)
        return True

    def _lost(self, event: Event, issue: Issue, asked_at: Microseconds) -> Event | None:
        """Return the event to make up for, where this one is what the tracker shows. Raises UnknownTask."""
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
                f"Expected {issue.key}, which is {issue.state}, to have a task but it was never started; start it, or "
                "set reconcile_start_approved to have all of these started."
            )
            raise UnknownTask(message)
        return StartRequested(issue.key, issue.repo)

    def _is_unfinished(self, task: Task) -> bool:
        """Tell whether somebody is at work on what an approval may be older than."""
        return self._settings.reconcile_start_approved and bool(self._store.active_jobs(task.task_id))

    # Both.

    def _service(self, run_once: Callable[[Microseconds], object], name: str) -> PeriodicService:
        return PeriodicService(run_once, interval_s=self._settings.reconcile_interval_s, name=name, clock=self._clock)

    def _note_unblocked(self, task: Task) -> None:
        """Say that a task moved on though its webhook was lost: count it, log it, tell it."""
        key = _key(task)
        with self._lock:
            self._totals[Handled.MOVED] += 1
            self._last_unblocked = key
        # The first line is a contract with whoever searches logs for it (F-4), in the words that it
        # was given in.
        _LOGGER.info("reconciler: %s %s разблокирована (потерян webhook)", key, task.stage)
        text = f"reconciler: {key} has left {task.stage}, a webhook about it was lost"
        _LOGGER.info("%s", text)
        if self._notifier is None or not self._settings.reconcile_notify_unblock:
            return
        try:
            self._notifier(Unblocked(task.task_id, key, task.stage, text))
        except Exception as error:  # noqa: BLE001 - a notifier is the user's, and the task has moved
            _LOGGER.warning("nobody was told that %s: %s: %s", text, type(error).__name__, error)

    def _isolated(self, what: str, do: Callable[[], Any]) -> Any:
        """Return what ``do`` returns, or None where it raised: warned of once, until it goes well again."""
        try:
            result = do()
        except _FATAL:
            raise
        except Exception as error:  # noqa: BLE001 - one task, one project: the others are not to wait for it
            trouble = _trouble(error)
            if self._is_new(what, trouble):
                _LOGGER.warning("reconciler: %s is left for the next round: %s", what, trouble.text)
            return None
        with self._lock:
            self._troubles.pop(what, None)
        return result

    def _newest_troubles(self) -> dict[str, str]:
        with self._lock:
            return {what: trouble.text for what, trouble in list(self._troubles.items())[-_SHOWN_MAX:]}

    def _is_new(self, what: str, trouble: _Trouble) -> bool:
        with self._lock:
            before = self._troubles.get(what)
            is_new = before is None or before.kind != trouble.kind
            if len(self._troubles) >= _TROUBLES_MAX:
                self._troubles.clear()  # rather a second warning than a table without bound
            self._troubles[what] = trouble
            return is_new


def _trouble(error: Exception) -> _Trouble:
    """Return what to remember of an error. How long a tracker is to be let alone changes with every look: no news."""
    name = type(error).__name__
    text = f"{name}: {error}"
    return _Trouble(name if isinstance(error, TrackerUnavailable) else text, text)


def _key(task: Task) -> str:
    return task.tracker_key or task.task_id
