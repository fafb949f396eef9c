"""The settings of a reaper: one value, checked once, with everything that is wrong in one error.

Ages of running jobs, which a clock that is set back cannot hold up: by the wall clock, or by what
was seen.

The reaper: ends jobs whose executor, or whose monitor, has died, and those that run for too long.

Each look (``run_once``) goes through the running jobs in three tiers.

1. *Dead*: the executor is dead in ``reaper_dead_ticks`` consecutive looks, and nobody has recorded how it ended. What
   is left of its group is ended; the job is tried again, or fails. The count is in the store, by the reaper's name, so
   a restart forgets nothing (D20). A monitor that is stopped is given time: it will record the end when it goes on.
2. *Exited*: the exit code was recorded ``reaper_finalize_grace_s`` ago, and the monitor has died since. A monitor that
   lives, or is stopped, is left to finalise until the job runs for longer than ``reaper_max_running_s``. What its
   finalizers had still to do (a push, a comment) is not done here: whether it matters, the gate of the stage says.
3. *Too long*: the job runs for longer than ``reaper_max_running_s`` without an exit code. First it is fenced off, then
   its process and the group are killed and seen dead, and then it is tried again (D17). One that cannot be killed stays
   fenced off, with an error, for the next look, which writes nothing more about it.

What becomes of a job is decided as a monitor decides it (``durable_agents.jobs.queue``). It is then
claimed by compare-and-set, with the intended advance in the same transaction, and the advance is
done after; who loses the claim does nothing (D16, D19). Any number of reapers, monitors and
start-ups may do this at once, and die anywhere.

**Time.** An age is by the wall clock or by how long this reaper itself has seen the job so,
whichever is longer: a clock that is set back holds up nothing for longer than a reaper runs. One
that is set forward makes everything old: tier 2 then asks whether the monitor lives, and tier 3
ends what should have been given longer.

**Errors.** What concerns one job (it cannot be stored, its process cannot be killed) is told in
``Tick.errors``, with one warning as long as it stays so, and stops no other. What would meet all
alike (a locked database) is raised; the loop of ``start`` goes on after it.
"""

from __future__ import annotations

import enum
import logging
import math
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.clock import Microseconds, microseconds
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
from durable_agents.jobs import lease_files
from durable_agents.jobs import queue as outcomes
from durable_agents.jobs.alerts import Alerts, Notifier, log
from durable_agents.jobs.crash_points import JobCrashPoint
from durable_agents.jobs.queue import JOB_VARIABLE, Outcome, settle
from durable_agents.processes import Liveness, ProcessTable, end_group
from durable_agents.service import PeriodicService
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import DeadTicks, JobStatus, RunningJob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from durable_agents.clock import Clock
    from durable_agents.jobs.queue import JobQueue
    from durable_agents.jobs.stages import StageEngine
    from durable_agents.service import Health

_DURATION_S_MAX: Final = 365 * 24 * 3600.0
_TICKS_MAX: Final = 1_000_000


class ReaperSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When a reaper does what. Durations are seconds. Raises InvalidSetting, which names all that cannot be meant.

    ``reaper_enabled`` and ``lease_reclaim_enabled`` are switches of their own; what is off does
    nothing, and is no error. ``lease_folder`` is where the lease files are that a start reclaims,
    if anywhere.
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
            problems.append(
                f"reaper_dead_ticks={self.reaper_dead_ticks!r} is no number of ticks from 1 to {_TICKS_MAX}"
            )
        for name, low in (("finalize_grace", 0.0), ("max_running", 0.001), ("interval", 0.001)):
            value = getattr(self, f"reaper_{name}_s")
            if not (math.isfinite(value) and low <= value <= _DURATION_S_MAX):
                problems.append(f"reaper_{name}_s={value!r} is not between {low:g} and {_DURATION_S_MAX:g} s")
        if problems:
            message = f"Expected settings of a reaper but {'; '.join(problems)}; correct these."
            raise InvalidSetting(message)


class Ages:
    """How long something has been so: by the wall clock, or by how long it was seen so, whichever is longer."""

    def __init__(self, clock: Clock) -> None:
        """Begin to see."""
        self._clock = clock
        self._seen: dict[tuple[int, Microseconds, bool], Microseconds] = {}

    def see(self, jobs: Sequence[RunningJob]) -> None:
        """Remember since when these are as they are, and forget all others."""
        now = self._clock.monotonic()
        keys = [_key(job, has_exited=job.exit_code is not None) for job in jobs]
        keys += [_key(job, has_exited=False) for job in jobs if job.exit_code is not None]
        self._seen = {key: self._seen.get(key, now) for key in keys}

    def running(self, job: RunningJob, now: Microseconds) -> Microseconds:
        """Return since when the job runs, in microseconds."""
        return self._age(_key(job, has_exited=False), now)

    def exited(self, job: RunningJob, now: Microseconds) -> Microseconds:
        """Return since when its exit code is there, in microseconds."""
        return self._age(_key(job, has_exited=True), now)

    def _age(self, key: tuple[int, Microseconds, bool], now: Microseconds) -> Microseconds:
        return max(now - key[1], self._clock.monotonic() - self._seen[key])


def _key(job: RunningJob, *, has_exited: bool) -> tuple[int, Microseconds, bool]:
    since = job.finished_at if has_exited else job.started_at
    return (job.job_id, job.started_at if since is None else since, has_exited)


__all__ = ["JobReaper", "Reaped", "ReaperSettings", "Tick", "Tier"]


BATCH: Final = 100
"""Jobs that are ended in one transaction: a few milliseconds of write lock."""

ERRORS_MAX: Final = 100
_FATAL: Final = (DatabaseFull, DatabaseLocked, DatabaseReadOnly, DatabaseUnavailable, StoreClosed)
_LOGGER: Final = logging.getLogger(__name__)


class Tier(enum.IntEnum):
    """Why a job was reaped; 0 is a start that found it so."""

    START = 0
    DEAD = 1
    EXITED = 2
    TOO_LONG = 3


class Reaped(msgspec.Struct, frozen=True):
    """One job that a reaper has ended, and what became of it."""

    job_id: int
    claim: int
    tier: Tier
    status: JobStatus
    at: Microseconds


class Tick(msgspec.Struct, frozen=True):
    """What one look did itself. A claim that was lost is in none of the counts; ``errors`` are sentences."""

    running: int = 0
    dead: int = 0
    queued: int = 0
    done: int = 0
    failed: int = 0
    advanced: int = 0
    alerted: int = 0
    errors: tuple[str, ...] = ()


class _Look(msgspec.Struct, frozen=True):
    """What is to be done about one job, and in how many consecutive ticks it was dead."""

    job: RunningJob
    tier: Tier | None
    ticks: int


class JobReaper:
    """Looks after the running jobs of a queue. ``name`` is what its count of dead ticks is kept under.

    Reapers of one name share a count, so give each of several its own, and keep it over restarts.
    ``notifier`` is told of failures. Raises InvalidSetting.
    """

    def __init__(
        self,
        queue: JobQueue,
        engine: StageEngine,
        *,
        settings: ReaperSettings | None = None,
        notifier: Notifier = log,
        name: str = "reaper",
    ) -> None:
        """Prepare; nothing is reaped yet."""
        if engine.store is not queue.store or not name:
            message = f"Expected queue and engine of one store, and a name, but got {engine!r} and {name!r}."
            raise InvalidSetting(message)
        self._queue = queue
        self._store = queue.store
        self._engine = engine
        self._settings = ReaperSettings() if settings is None else settings
        self._alerts = Alerts(queue.store, notifier)
        self._name = name
        self._ages = Ages(queue.clock)
        self._reaped_total = 0
        self._last_reaped: Reaped | None = None
        self._last_run_ts: Microseconds | None = None
        self._errors: tuple[str, ...] = ()
        self._service = PeriodicService(
            self.run_once, interval_s=self._settings.reaper_interval_s, name=name, clock=queue.clock
        )

    @property
    def reaped_total(self) -> int:
        """How many jobs this reaper has ended, claims that it lost not among them."""
        return self._reaped_total

    @property
    def last_reaped(self) -> Reaped | None:
        """The job that this reaper ended last."""
        return self._last_reaped

    @property
    def last_run_ts(self) -> Microseconds | None:
        """When the newest look was, a failed one too."""
        return self._last_run_ts

    @property
    def errors(self) -> tuple[str, ...]:
        """What the newest look could not do, in sentences; each was logged when it was new."""
        return self._errors

    @property
    def health(self) -> Health:
        """How its loop is."""
        return self._service.health

    def start(self) -> None:
        """Put right what an earlier process has left, then look every ``reaper_interval_s``. Starting twice is fine.

        What goes wrong in the first part is logged: the loop comes to it again.
        """
        if self._settings.lease_reclaim_enabled:
            self._isolated("the reclaim of lease files", self.reclaim_all_stale_leases)
        if self._settings.reaper_enabled:
            self._isolated("the requeue of running jobs", self.requeue_running_jobs)
            self._service.start()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop after the look that is under way; return whether it ended within ``timeout_s`` seconds."""
        return self._service.stop(timeout_s=timeout_s)

    def tick(self) -> None:
        """Look now, in this thread; an error is kept in ``health`` and not raised."""
        self._service.tick()

    def run_once(self, now: Microseconds | None = None) -> Tick:
        """Look once, as of ``now`` (the clock's time unless given), and return what this look did.

        Raises the StoreErrors that would meet every job (locked, full, read-only, unavailable,
        closed); what it has done before stays done.
        """
        moment = self._queue.clock.now() if now is None else now
        try:
            return self._look(moment) if self._settings.reaper_enabled else Tick()
        finally:
            self._last_run_ts = moment

    def requeue_running_jobs(self) -> int:
        """Give back, at a start, the jobs whose executor and monitor are both gone; return how many were ended here.

        One look suffices for these, since nobody is left who could still say how they ended. A job
        with an exit code is left to tier 2. Without attempts left a job fails, as in any tier.
        """
        jobs = list(self._running())
        table = self._processes()
        errors: list[str] = []
        dead = [job for job in jobs if job.exit_code is None and _executor(job, table) is Liveness.DEAD]
        orphaned = [job for job in dead if _monitor(job, table) is Liveness.DEAD]
        error = "its executor and its monitor were gone at a start"
        found = [outcomes.of_failure(job, error) for job in orphaned if self._end_rest(job, errors)]
        won = self._settle(found, Tier.START, self._queue.clock.now(), errors)
        for text in errors:
            _LOGGER.warning("%s", text)
        return won

    def reclaim_all_stale_leases(self) -> int:
        """Remove the lease files whose holders are gone, and return how many; 0 without any, and without a folder."""
        folder = self._settings.lease_folder
        return 0 if folder is None else lease_files.reclaim_all_stale_leases(folder)

    def _look(self, now: Microseconds) -> Tick:
        sys.audit(JobCrashPoint.REAPER_BEFORE_TICK, now)
        advanced = self._engine.deliver()
        jobs = list(self._running())
        looks = self._judged(jobs, now)
        sys.audit(JobCrashPoint.REAPER_AFTER_LOOK, now)
        self._count(looks)
        errors: list[str] = []
        ended = Counter[JobStatus]()
        # Gates may be slow: whatever needs none comes first.
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
            errors=self._errors,
        )

    # What is to be done.

    def _processes(self) -> ProcessTable:
        return ProcessTable.read()

    def _running(self) -> Iterator[RunningJob]:
        after = 0
        while page := self._store.running_jobs(self._name, after=after, limit=PAGE_ROWS_MAX):
            yield from page
            after = page[-1].job_id

    def _judged(self, jobs: Sequence[RunningJob], now: Microseconds) -> list[_Look]:
        """Judge the jobs against one reading of the process table, which comes after they were listed."""
        table = self._processes()
        self._ages.see(jobs)
        return [self._judge(job, table, now) for job in jobs]

    def _judge(self, job: RunningJob, table: ProcessTable, now: Microseconds) -> _Look:
        is_too_long = self._ages.running(job, now) > microseconds(self._settings.reaper_max_running_s)
        if job.exit_code is not None:
            grace = microseconds(self._settings.reaper_finalize_grace_s)
            is_over = self._ages.exited(job, now) >= grace
            is_left = is_over and (is_too_long or _monitor(job, table) is Liveness.DEAD)
            return _Look(job, Tier.EXITED if is_left else None, 0)
        if is_too_long:
            return _Look(job, Tier.TOO_LONG, job.dead_ticks)
        is_dead = _executor(job, table) is Liveness.DEAD and _monitor(job, table) is not Liveness.STOPPED
        ticks = job.dead_ticks + 1 if is_dead else 0
        return _Look(job, Tier.DEAD if ticks >= self._settings.reaper_dead_ticks else None, ticks)

    def _count(self, looks: Sequence[_Look]) -> None:
        """Store what has changed of the dead ticks, but for jobs that are ended now."""
        changed = [look for look in looks if look.tier is None and look.ticks != look.job.dead_ticks]
        if changed:
            with self._store.transaction() as transaction:
                rows = [DeadTicks(look.job.job_id, look.job.claim, look.ticks) for look in changed]
                transaction.set_dead_ticks(self._name, rows)
            sys.audit(JobCrashPoint.REAPER_AFTER_COUNT, len(changed))

    # What becomes of them, in batches.

    def _of_dead(self, looks: Sequence[_Look], errors: list[str]) -> Iterator[list[Outcome]]:
        found = [look for look in looks if look.tier is Tier.DEAD]
        for start in range(0, len(found), BATCH):
            batch = [look for look in found[start : start + BATCH] if self._end_rest(look.job, errors)]
            yield [
                outcomes.of_failure(look.job, f"its executor (pid {look.job.pid}) was dead in {look.ticks} looks")
                for look in batch
            ]

    def _of_failed(self, looks: Sequence[_Look]) -> Iterator[list[Outcome]]:
        found = [look.job for look in looks if look.tier is Tier.EXITED and look.job.exit_code != 0]
        for start in range(0, len(found), BATCH):
            yield [outcomes.of_exit(job, job.exit_code or 1, self._engine) for job in found[start : start + BATCH]]

    def _of_succeeded(self, looks: Sequence[_Look], errors: list[str]) -> Iterator[list[Outcome]]:
        for look in looks:
            if look.tier is Tier.EXITED and look.job.exit_code == 0:
                try:
                    yield [outcomes.of_exit(look.job, 0, self._engine)]
                except _FATAL:
                    raise
                except RecoveryError as error:
                    errors.append(f"Job {look.job.job_id} was left: {error}")

    def _of_too_long(self, looks: Sequence[_Look], now: Microseconds, errors: list[str]) -> Iterator[list[Outcome]]:
        for look in looks:
            if look.tier is Tier.TOO_LONG:
                claim = self._fence_and_end(look.job, now, errors)
                if claim is not None:
                    error = f"it ran for more than {self._settings.reaper_max_running_s:g} s and was ended"
                    yield [outcomes.of_failure(look.job, error, claim=claim)]

    def _fence_and_end(self, job: RunningJob, now: Microseconds, errors: list[str]) -> int | None:
        """Refuse the executor from now on (once), kill it, see it dead; return the claim that is this reaper's then."""
        key = (job.job_id, job.claim)
        try:
            with self._store.transaction() as transaction:
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
        """Kill what is left of the executor and its group; return whether it is gone.

        Without a start nobody can say whose the number is, so it is not signalled.
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
        found: Sequence[Outcome],
        tier: Tier,
        now: Microseconds,
        errors: list[str],
        ended: Counter[JobStatus] | None = None,
    ) -> int:
        """End these claims in one transaction, or each in its own where one of them cannot be; return how many were."""
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

    def _note(self, won: Sequence[Outcome], tier: Tier, now: Microseconds) -> None:
        self._reaped_total += len(won)
        if won:
            newest = won[-1]
            self._last_reaped = Reaped(newest.job_id, newest.claim, tier, newest.status, now)

    def _tell(self, errors: Sequence[str]) -> None:
        """Keep what could not be done, and log what the look before did not say."""
        before, self._errors = self._errors, tuple(errors[:ERRORS_MAX])
        for text in self._errors:
            if text not in before:
                _LOGGER.warning("%s", text)

    @staticmethod
    def _isolated(what: str, do: Callable[[], int]) -> None:
        try:
            do()
        except (RecoveryError, OSError) as error:
            _LOGGER.warning("%s at the start failed: %s", what, error)


def _executor(job: RunningJob, table: ProcessTable) -> Liveness:
    return table.look(job.pid, job.process_start)


def _monitor(job: RunningJob, table: ProcessTable) -> Liveness:
    return table.look(job.monitor_pid, job.monitor_start)
