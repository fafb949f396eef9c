"""The monitor: claims a job, runs its executor as a process of its own, and says how it ended.

In this order: the job is claimed; the executor is started behind a gate and waits there; its
process is written down; the gate opens. So nothing is ever done by an executor that nobody knows
of: when the monitor dies before the process is written down, or is refused since the job was reaped
meanwhile, the gate closes and the executor ends without having begun. When it ends, the exit code
is recorded first, and only then comes what may take long or fail: the finalizers (a push, a
comment), then the end of the job with the intended advance, then the advance. A reaper leaves a
monitor alone while it finalises (``durable_agents.jobs.reaper``), and takes over from a dead one
behind whatever was recorded.

A monitor that was stopped and wakes asks before each finalizer whether the job is still its own.
That is no fence: what a finalizer does to the world cannot be taken back, so one should do nothing
when it is done a second time.
"""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.errors import InvalidSetting, JobLost
from durable_agents.jobs import queue as outcomes
from durable_agents.jobs.crash_points import JobCrashPoint
from durable_agents.jobs.queue import JobClaim
from durable_agents.store.rows import JobStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from durable_agents.jobs.alerts import Alerts
    from durable_agents.jobs.queue import JobQueue, Outcome
    from durable_agents.jobs.stages import StageEngine
    from durable_agents.store.rows import Job


_SHELL: Final = "/bin/sh"
_GATE: Final = 'read -r go || exit 125; exec "$@" </dev/null'
"""Waits for a line, and becomes the executor, under the same pid; without a line it ends."""

_ERROR_CHARACTERS_MAX: Final = 500


class Command(Protocol):
    """Which program executes a job. Any function of a job will do."""

    def __call__(self, job: Job, /) -> Sequence[str]:
        """Return the program and its arguments."""
        ...


class Finalizer(Protocol):
    """What is to be done when the exit code is known and the job has not ended yet: a push, a comment."""

    def __call__(self, job: Job, exit_code: int, /) -> None:
        """Do it. May be called again for the same job by another monitor, after a crash. An error fails the attempt."""
        ...


class Ending(enum.StrEnum):
    """How a monitor left a job: as decided, or to whoever took it from it."""

    SETTLED = "settled"
    LOST = "lost"


class Ended(msgspec.Struct, frozen=True):
    """What a monitor made of one job. ``status`` and ``exit_code`` are None where it lost the job before."""

    job_id: int
    ending: Ending
    exit_code: int | None
    status: JobStatus | None
    error: str


class _NotStartedError(Exception):
    """There is no executor, for this reason."""


class Monitor:
    """Runs jobs of a queue, one at a time: each a process in a group of its own, told of its claim by its environment.

    ``agents`` are those whose jobs it takes, all unless given. ``environment`` is added to this
    process's own. ``alerts`` are sent after a job if given; a reaper sends them, too. Raises
    InvalidSetting.
    """

    def __init__(
        self,
        queue: JobQueue,
        engine: StageEngine,
        command: Command,
        *,
        finalizers: Sequence[Finalizer] = (),
        agents: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        alerts: Alerts | None = None,
    ) -> None:
        """Prepare; nothing is claimed yet."""
        if engine.store is not queue.store:
            message = (
                "Expected queue and engine of one store but they have two; give both the same, as one transaction is."
            )
            raise InvalidSetting(message)
        self._queue = queue
        self._engine = engine
        self._command = command
        self._finalizers = tuple(finalizers)
        self._agents = None if agents is None else tuple(agents)
        self._environment = {} if environment is None else dict(environment)
        self._alerts = alerts

    def run_once(self) -> Ended | None:
        """Claim a job and see it through to its end; None where there is none to claim.

        Raises any StoreError, after which the job is still running, and there for a reaper.
        """
        job = self._queue.claim(agents=self._agents)
        if job is None:
            return None
        claim = JobClaim(job.job_id, job.claim)
        exit_code: int | None = None
        try:
            try:
                exit_code = self._execute(self._started(job, claim), job, claim)
            except _NotStartedError as error:
                outcome = outcomes.of_failure(job, str(error))
            else:
                self._queue.record_exit(claim, exit_code)
                outcome = self._finalise(job, claim, exit_code)
            self._queue.settle(outcome)
        except JobLost as error:
            return Ended(job.job_id, Ending.LOST, exit_code, None, str(error))
        sys.audit(JobCrashPoint.MONITOR_BEFORE_ADVANCE, job.job_id)
        self._engine.deliver()
        if self._alerts is not None:
            self._alerts.deliver()
        sys.audit(JobCrashPoint.MONITOR_AFTER_ADVANCE, job.job_id)
        return Ended(job.job_id, Ending.SETTLED, exit_code, outcome.status, outcome.error)

    def _started(self, job: Job, claim: JobClaim) -> subprocess.Popen[bytes]:
        """Return the executor, which waits behind its gate. Raises _NotStartedError."""
        try:
            arguments = (_SHELL, "-c", _GATE, "executor", *self._command(job))
            environment = {**os.environ, **self._environment, **claim.environment()}
            return subprocess.Popen(arguments, stdin=subprocess.PIPE, env=environment, start_new_session=True)
        except Exception as error:
            message = _text(f"its executor was not started: {type(error).__name__}: {error}")
            raise _NotStartedError(message) from error

    def _execute(self, process: subprocess.Popen[bytes], job: Job, claim: JobClaim) -> int:
        """Let the executor run to its end and return its exit code; however this is left, its group is gone."""
        with process:
            try:
                sys.audit(JobCrashPoint.MONITOR_AFTER_SPAWN, job.job_id)
                self._queue.started(claim, process.pid)
                sys.audit(JobCrashPoint.MONITOR_AFTER_START, job.job_id)
                self._open_gate(process)
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # before it is waited for: until then the number is its own
        sys.audit(JobCrashPoint.MONITOR_AFTER_EXIT, job.job_id)
        return process.returncode

    @staticmethod
    def _open_gate(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # noqa: S101 - it was asked for
        with contextlib.suppress(BrokenPipeError):  # it was ended before it began
            process.stdin.write(b"go\n")
            process.stdin.close()

    def _finalise(self, job: Job, claim: JobClaim, exit_code: int) -> Outcome:
        """Do what is to be done while the job is still running, and decide what becomes of it. Raises JobLost."""
        sys.audit(JobCrashPoint.MONITOR_BEFORE_FINALISE, job.job_id)
        for finalizer in self._finalizers:
            self._queue.check(claim)
            try:
                finalizer(job, exit_code)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong in it has failed the attempt
                return outcomes.of_failure(job, _text(f"its finalizer raised {type(error).__name__}: {error}"))
        sys.audit(JobCrashPoint.MONITOR_AFTER_FINALISE, job.job_id)
        return outcomes.of_exit(job, exit_code, self._engine)


def _text(text: str) -> str:
    """Return a text that a column can hold."""
    return text.encode(errors="replace").decode()[:_ERROR_CHARACTERS_MAX].replace("\0", "")
