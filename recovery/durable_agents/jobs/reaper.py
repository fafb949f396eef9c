"""Reaper: ends jobs whose executor or monitor has died, and those that run for too long.

Each tick (``run_once``) goes through the running jobs in three tiers.

1. *Dead*: the executor was dead in ``reaper_dead_ticks`` consecutive ticks, and no exit code is
   recorded. The rest of its group is killed; the job is queued again, or fails. The count of dead
   ticks is in the store, under the reaper's name, so it survives a restart (D20). It is a count of
   one claim: a job that was fenced off (tier 3) begins a new one. A stopped monitor does not count
   as dead: it records the exit code when it is continued.
2. *Exited*: the exit code was recorded ``reaper_finalize_grace_s`` ago, and the monitor has died
   since. A monitor that lives, or is stopped, is left to finalise until the job has run for
   ``reaper_max_running_s``. Finalizers that it did not run (a push, a comment) are not run here;
   the gate of the stage decides whether they matter.
3. *Too long*: the job has run for ``reaper_max_running_s`` without an exit code. First it is fenced
   off, then its process group is killed and seen dead, then it is queued again (D17). If the kill
   fails, the job stays fenced off, with an error, and the next tick tries again.

A job whose executor is recorded between the look and the end is left for the next tick: what was
judged is another one, or none, and two would be at work.

The outcome of a job is decided by the same table as in a monitor (``durable_agents.jobs.queue``).
The claim is ended by compare-and-set, with the intended advance in the same transaction. A reaper
that loses the compare-and-set does nothing (D16, D19, docs/design.md). Any number of reapers,
monitors and starts may do this at once, and die anywhere.

**Time.** A time in state is measured by the wall clock and by this reaper's own observation; the
longer counts. So a clock that is set back delays nothing for longer than a reaper runs. A clock
that is set forward makes every job old: tier 2 then still asks whether the monitor lives, and tier
3 ends jobs too early.

**Errors.** An error about one job (it cannot be stored, its process cannot be killed) goes into
``Tick.errors``, with one warning as long as it lasts, and stops no other job. An error that would
meet every job (a locked database) is raised; the loop of ``start`` continues after it.
"""

from __future__ import annotations

import enum
import itertools
import logging
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from durable_agents.clock import Microseconds, is_duration, microseconds
from durable_agents.errors import (
    DatabaseFull,
    DatabaseLocked,
    DatabaseReadOnly,
    DatabaseUnavailable,
    ExecutorNotEnded,
    InvalidSetting,
    RecoveryError,
    StoreClosed,
)
from durable_agents.jobs import lease_files, queue as outcomes
from durable_agents.jobs.alerts import Alerts, Notifier, log_alert
from durable_agents.jobs.crash_points import JobCrashPoint
from durable_agents.jobs.queue import JOB_VARIABLE, JobOutcome, settle
from durable_agents.processes import Liveness, ProcessTable, end_group
from durable_agents.service import PeriodicService
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import DeadTicks, JobStatus, RunningJob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from durable_agents.clock import Clock
    from durable_agents.jobs.queue import Executor, JobQueue
    from durable_agents.jobs.stages import StageEngine
    from durable_agents.service import Health

__all__ = ["JobReaper", "Reaped", "ReaperSettings", "Tick", "Tier"]

BATCH: Final = 100
"""Jobs that are ended in one transaction: a few milliseconds of write lock."""

ERRORS_MAX: Final = 100
_DURATION_S_MAX: Final = 365 * 24 * 3600
_TICKS_MAX: Final = 1_000_000
_FATAL: Final = (DatabaseFull, DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable, StoreClosed)
_LOGGER: Final = logging.getLogger(__name__)


class ReaperSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a reaper, with durations in seconds. Raises InvalidSetting with all problems.

    ``reaper_enabled`` and ``lease_reclaim_enabled`` are independent switches; a part that is off
    does nothing and raises nothing. ``lease_folder`` holds the lease files that a start reclaims.

    >>> ReaperSettings(reaper_max_running_s=600).reaper_dead_ticks
    2
    """

    reaper_enabled: bool = True
    lease_reclaim_enabled: bool = True
    reaper_dead_ticks: int = 2
    reaper_finalize_grace_s: float = 300.0
    reaper_max_running_s: float = 7200.0
    reaper_interval_s: float = 30.0
    lease_folder: str | None = None

    def __post_init__(self) -> None:
        """Check all of them."""
        problems = []
        if isinstance(self.reaper_dead_ticks, bool) or not 1 <= self.reaper_dead_ticks <= _TICKS_MAX:
            problems.append(f"reaper_dead_ticks must be from 1 to {_TICKS_MAX}; got {self.reaper_dead_ticks!r}")
        for name, low in (("finalize_grace", 0.0), ("max_running", 0.001), ("interval", 0.001)):
            value = getattr(self, f"reaper_{name}_s")
            if not is_duration(value, low, _DURATION_S_MAX):
                problems.append(f"reaper_{name}_s must be from {low:g} to {_DURATION_S_MAX} s; got {value!r}")
        if problems:
            message = f"{', and '.join(problems)}. Correct the settings."
            raise InvalidSetting(message)


_State: TypeAlias = tuple[int, bool, Microseconds]
"""A job's id, whether its executor has ended, and since when."""


class TimeInState:
    """How long jobs have been running, or ended: by the wall clock or as observed, the longer."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen_since: dict[_State, Microseconds] = {}

    def observe(self, jobs: Sequence[RunningJob]) -> None:
        """Note the states of these jobs, and forget all others."""
        now = self._clock.monotonic()
        self._seen_since = {state: self._seen_since.get(state, now) for job in jobs for state in _states(job)}

    def of(self, job: RunningJob, now: Microseconds) -> list[Microseconds]:
        """Return the time since the job started and, with an exit code, since it was recorded."""
        elapsed = self._clock.monotonic()
        return [max(now - state[2], elapsed - self._seen_since[state]) for state in _states(job)]


def _states(job: RunningJob) -> Iterator[_State]:
    yield (job.job_id, False, job.started_at)
    if job.exit_code is not None:
        yield (job.job_id, True, job.started_at if job.finished_at is None else job.finished_at)


class Tier(enum.IntEnum):
    """The reason why a job was reaped; 0 for ``requeue_running_jobs`` at a start."""

    START = 0
    DEAD = 1
    EXITED = 2
    TOO_LONG = 3


class Reaped(msgspec.Struct, frozen=True):
    """One job that a reaper has ended, with its new status."""

    job_id: int
    claim: int
    tier: Tier
    status: JobStatus
    at: Microseconds


class Tick(msgspec.Struct, frozen=True):
    """The result of one tick, without the claims that were lost; ``errors`` are sentences."""

    running: int = 0
    dead: int = 0
    queued: int = 0
    done: int = 0
    failed: int = 0
    advanced: int = 0
    alerted: int = 0
    errors: tuple[str, ...] = ()


class _Case(msgspec.Struct, frozen=True):
    """The tier in which a job is ended now, if any, and its consecutive dead ticks."""

    job: RunningJob
    tier: Tier | None
    ticks: int


class JobReaper:
    """Reaper of a queue's running jobs; ``notifier`` is told of those that failed.

    Raises InvalidSetting. The dead ticks are counted in the store under ``name``. Reapers of one
    name share a count: give each its own, and keep it over restarts.

    ``reaped_total`` counts the jobs that this reaper has ended, and ``last_reaped`` is the newest.
    ``last_run_ts`` is the moment of the newest tick, failed ones included. ``errors`` has the
    errors of the newest tick; each was logged when it was new.
    """

    def __init__(
        self,
        queue: JobQueue,
        engine: StageEngine,
        *,
        settings: ReaperSettings | None = None,
        notifier: Notifier = log_alert,
        name: str = "reaper",
    ) -> None:
        if engine.store is not queue.store or not name:
            message = (
                f"queue and engine of a reaper must have one store, and its name must not be empty; got {engine!r} "
                f"and {name!r}. Give both the same store, and a name."
            )
            raise InvalidSetting(message)
        self._queue = queue
        self._store = queue.store
        self._engine = engine
        self._settings = ReaperSettings() if settings is None else settings
        self._alerts = Alerts(queue.store, notifier)
        self._name = name
        self._time_in_state = TimeInState(queue.clock)
        self.reaped_total = 0
        self.last_reaped: Reaped | None = None
        self.last_run_ts: Microseconds | None = None
        self.errors: tuple[str, ...] = ()
        self._service = PeriodicService(
            self.run_once, interval_s=self._settings.reaper_interval_s, name=name, clock=queue.clock
        )

    @property
    def health(self) -> Health:
        """The health of its loop."""
        return self._service.health

    def start(self) -> None:
        """Repair what an earlier process left, then tick every ``reaper_interval_s``. Idempotent.

        Errors of the repair are logged: the loop meets the same jobs again.
        """
        if self._settings.lease_reclaim_enabled:
            self._isolated("the reclaim of lease files", self.reclaim_all_stale_leases)
        if self._settings.reaper_enabled:
            self._isolated("the requeue of running jobs", self.requeue_running_jobs)
            self._service.start()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop after the tick under way; return whether it ended within ``timeout_s`` seconds."""
        return self._service.stop(timeout_s=timeout_s)

    def tick(self) -> None:
        """Tick now, in this thread; an error is kept in ``health`` and not raised."""
        self._service.tick()

    def run_once(self, now: Microseconds | None = None) -> Tick:
        """Tick once, as of ``now`` (default: the clock's time), and return what this tick did.

        Raises the StoreErrors that would meet every job (locked, full, read-only, unavailable,
        closed). What was done before the error stays done.
        """
        moment = self._queue.clock.now() if now is None else now
        try:
            return self._look(moment) if self._settings.reaper_enabled else Tick()
        finally:
            self.last_run_ts = moment

    def requeue_running_jobs(self) -> int:
        """End the jobs whose executor and monitor are both dead, at a start; return how many.

        One look suffices, since no process is left that could record their exit codes. A job with
        an exit code is left to tier 2. A job without attempts left fails, as in any tier.
        """
        jobs = list(self._running())
        table = self._processes()
        errors: list[str] = []
        dead = [job for job in jobs if job.exit_code is None and _executor(job, table) is Liveness.DEAD]
        orphaned = [job for job in dead if _monitor(job, table) is Liveness.DEAD]
        error = "its executor and its monitor were gone at a start"
        found = [self._failed(job, error) for job in orphaned if self._end_rest(job, errors)]
        won = self._settle(found, Tier.START, self._queue.clock.now(), errors)
        for text in errors:
            _LOGGER.warning("%s", text)
        return won

    def reclaim_all_stale_leases(self) -> int:
        """Remove the lease files of dead holders, and return how many; 0 without a folder."""
        folder = self._settings.lease_folder
        return 0 if folder is None else lease_files.reclaim_all_stale_leases(folder)

    def _look(self, now: Microseconds) -> Tick:
        sys.audit(JobCrashPoint.REAPER_BEFORE_TICK, now)
        advanced = self._engine.deliver()
        jobs = list(self._running())
        table = self._processes()  # after the jobs were listed: a process started since is not in it
        self._time_in_state.observe(jobs)
        looks = [self._judge(job, table, now) for job in jobs]
        sys.audit(JobCrashPoint.REAPER_AFTER_LOOK, now)
        self._count(looks)
        errors: list[str] = []
        ended = Counter[JobStatus]()
        # Gates may be slow, so the tiers that need none come first.
        for tier, found in (
            (Tier.DEAD, self._of_dead(looks, errors)),
            (Tier.EXITED, self._of_failed(looks)),
            (Tier.TOO_LONG, self._of_too_long(looks, now, errors)),
            (Tier.EXITED, self._of_succeeded(looks, errors)),
        ):
            for batch in found:
                self._settle(batch, tier, now, errors, ended)
        advanced += self._engine.deliver()
        alerted = self._alerts.deliver()
        self._tell(errors)
        sys.audit(JobCrashPoint.REAPER_AFTER_TICK, now)
        return Tick(
            running=len(jobs),
            dead=sum(look.ticks > 0 for look in looks),
            queued=ended[JobStatus.QUEUED],
            done=ended[JobStatus.DONE],
            failed=ended[JobStatus.FAILED],
            advanced=advanced,
            alerted=alerted,
            errors=self.errors,
        )

    def _processes(self) -> ProcessTable:
        return ProcessTable.read()

    def _running(self) -> Iterator[RunningJob]:
        after = 0
        while page := self._store.running_jobs(self._name, after=after, limit=PAGE_ROWS_MAX):
            yield from page
            after = page[-1].job_id

    def _judge(self, job: RunningJob, table: ProcessTable, now: Microseconds) -> _Case:
        running, *exited = self._time_in_state.of(job, now)
        is_too_long = running > microseconds(self._settings.reaper_max_running_s)
        if exited:
            is_over = exited[0] >= microseconds(self._settings.reaper_finalize_grace_s)
            is_left = is_over and (is_too_long or _monitor(job, table) is Liveness.DEAD)
            return _Case(job, Tier.EXITED if is_left else None, 0)
        if is_too_long:
            return _Case(job, Tier.TOO_LONG, job.dead_ticks)
        is_dead = _executor(job, table) is Liveness.DEAD and _monitor(job, table) is not Liveness.STOPPED
        ticks = job.dead_ticks + 1 if is_dead else 0
        return _Case(job, Tier.DEAD if ticks >= self._settings.reaper_dead_ticks else None, ticks)

    def _count(self, looks: Sequence[_Case]) -> None:
        """Store the dead ticks that changed, except those of jobs that are ended in this tick."""
        changed = [look for look in looks if look.tier is None and look.ticks != look.job.dead_ticks]
        if changed:
            with self._store.transaction() as transaction:
                rows = [DeadTicks(look.job.job_id, look.job.claim, look.ticks) for look in changed]
                transaction.set_dead_ticks(self._name, rows)
            sys.audit(JobCrashPoint.REAPER_AFTER_COUNT, len(changed))

    def _of_dead(self, looks: Sequence[_Case], errors: list[str]) -> Iterator[list[JobOutcome]]:
        for batch in _batches(look for look in looks if look.tier is Tier.DEAD):
            yield [
                self._failed(look.job, f"its executor (pid {look.job.pid}) was dead in {look.ticks} looks")
                for look in batch
                if self._end_rest(look.job, errors)
            ]

    def _of_failed(self, looks: Sequence[_Case]) -> Iterator[list[JobOutcome]]:
        for batch in _batches(look for look in looks if look.tier is Tier.EXITED and look.job.exit_code != 0):
            yield [outcomes.of_exit(look.job, look.job.exit_code or 1, self._engine) for look in batch]

    def _of_succeeded(self, looks: Sequence[_Case], errors: list[str]) -> Iterator[list[JobOutcome]]:
        for look in looks:
            if look.tier is Tier.EXITED and look.job.exit_code == 0:
                try:
                    yield [outcomes.of_exit(look.job, 0, self._engine)]
                except _FATAL:
                    raise
                except RecoveryError as error:
                    errors.append(f"Job {look.job.job_id} was left: {error}")

    def _of_too_long(self, looks: Sequence[_Case], now: Microseconds, errors: list[str]) -> Iterator[list[JobOutcome]]:
        for look in looks:
            if look.tier is Tier.TOO_LONG:
                claim = self._fence_and_end(look.job, now, errors)
                if claim is not None:
                    error = f"it ran for more than {self._settings.reaper_max_running_s:g} s and was ended"
                    yield [self._failed(look.job, error, claim=claim)]

    def _failed(self, job: RunningJob, error: str, claim: int | None = None) -> JobOutcome:
        """Return the outcome of a failed attempt, void if its executor is another one by now."""
        return msgspec.structs.replace(outcomes.of_failure(job, error, claim=claim), executor=self._executor_of(job))

    def _executor_of(self, job: RunningJob) -> Executor | None:
        return job.pid, job.process_start

    def _fence_and_end(self, job: RunningJob, now: Microseconds, errors: list[str]) -> int | None:
        """Fence the executor off, kill it and see it dead; return the claim that is now ours."""
        key = (job.job_id, job.claim)
        try:
            with self._store.transaction() as transaction:
                if not outcomes.is_executed_by(transaction, job.job_id, self._executor_of(job)):
                    return None  # a monitor has recorded it since the look: the next tick ends it
                if not (transaction.holds_job(*key) if job.is_fenced else transaction.fence_job(*key, now=now)):
                    return None
        except _FATAL:
            raise
        except RecoveryError as error:
            errors.append(f"Job {job.job_id} was left: {error}")
            return None
        sys.audit(JobCrashPoint.REAPER_AFTER_FENCE, job.job_id)
        if not self._end_rest(job, errors):
            return None
        sys.audit(JobCrashPoint.REAPER_AFTER_KILL, job.job_id)
        return job.claim if job.is_fenced else job.claim + 1

    def _end_rest(self, job: RunningJob, errors: list[str]) -> bool:
        """Kill the rest of the executor and its group; return whether all are gone.

        A pid without its start time is not signalled: it may be another process's by now.
        """
        if job.pid is None or job.pid <= 0 or not job.process_start:
            return True
        try:
            end_group(job.pid, job.process_start, variable=(JOB_VARIABLE, str(job.job_id)))
        except ExecutorNotEnded as error:
            errors.append(f"Job {job.job_id} was left running: {error}")
            return False
        return True

    def _settle(
        self,
        found: Sequence[JobOutcome],
        tier: Tier,
        now: Microseconds,
        errors: list[str],
        ended: Counter[JobStatus] | None = None,
    ) -> int:
        """End these claims in one transaction, or in one each if that fails; return how many."""
        if not found:
            return 0
        sys.audit(JobCrashPoint.REAPER_BEFORE_CLAIM, len(found))
        try:
            with self._store.transaction() as transaction:
                won = [outcome for outcome in found if settle(transaction, outcome, now)]
                sys.audit(JobCrashPoint.REAPER_BEFORE_COMMIT, len(won))
        except _FATAL:
            raise
        except RecoveryError as error:
            if len(found) == 1:
                errors.append(f"Job {found[0].job_id} was left: {error}")
                return 0
            return sum(self._settle([outcome], tier, now, errors, ended) for outcome in found)
        self._note(won, tier, now)
        if ended is not None:
            ended.update(outcome.status for outcome in won)
        sys.audit(JobCrashPoint.REAPER_AFTER_CLAIM, len(won))
        return len(won)

    def _note(self, won: Sequence[JobOutcome], tier: Tier, now: Microseconds) -> None:
        self.reaped_total += len(won)
        if won:
            newest = won[-1]
            self.last_reaped = Reaped(newest.job_id, newest.claim, tier, newest.status, now)

    def _tell(self, errors: Sequence[str]) -> None:
        """Keep the errors, and log those that the tick before did not have."""
        before, self.errors = self.errors, tuple(errors[:ERRORS_MAX])
        for text in self.errors:
            if text not in before:
                _LOGGER.warning("%s", text)

    @staticmethod
    def _isolated(what: str, do: Callable[[], int]) -> None:
        try:
            do()
        except (RecoveryError, OSError) as error:
            _LOGGER.warning("%s at the start failed: %s", what, error)


def _batches(cases: Iterable[_Case]) -> Iterator[list[_Case]]:
    rest = iter(cases)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def _executor(job: RunningJob, table: ProcessTable) -> Liveness:
    return table.look(job.pid, job.process_start)


def _monitor(job: RunningJob, table: ProcessTable) -> Liveness:
    return table.look(job.monitor_pid, job.monitor_start)
