"""Monitor: claims a job, runs its executor as a process of its own, and records how it ended.

The order is fixed. The job is claimed; the executor is started behind a gate, where it waits; its
process is recorded; the gate opens. So an executor does nothing before the store knows its process:
if the monitor dies earlier, or is refused because the job was reaped meanwhile, the gate closes and
the executor ends without having begun.

When the executor ends, its exit code is recorded first. Then comes what may be slow or fail: the
finalizers (a push, a comment), the end of the job with the intended advance, and the advance. A
reaper leaves a finalising monitor alone, and continues after a dead one from what was recorded
(``durable_agents.jobs.reaper``).

Before each finalizer the monitor asks whether the job is still its own. That is no fence, because
an effect on the world cannot be taken back: a finalizer should do nothing when it is run again.
"""

from __future__ import annotations

import contextlib
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
    from durable_agents.jobs.queue import JobOutcome, JobQueue
    from durable_agents.jobs.stages import StageEngine
    from durable_agents.store.rows import Job


_SHELL: Final = "/bin/sh"
_GATE: Final = 'read -r go || exit 125; exec "$@" </dev/null'
"""Waits for a line, then becomes the executor under the same pid. At end of file it exits."""

_ERROR_CHARACTERS_MAX: Final = 500


class ExecutorCommand(Protocol):
    """A function that says which program executes a job."""

    def __call__(self, job: Job, /) -> Sequence[str]:
        """Return the program and its arguments."""
        ...


class Finalizer(Protocol):
    """An action between the exit of the executor and the end of the job: a push, a comment."""

    def __call__(self, job: Job, exit_code: int, /) -> None:
        """Act. After a crash, another monitor may call it again. An exception fails the attempt."""
        ...


class JobEnd(msgspec.Struct, frozen=True):
    """The end of one job in a monitor. ``status`` is None if the job was lost to another process.

    ``exit_code`` is None if that happened before the executor ended, or if none was started.
    """

    job_id: int
    exit_code: int | None
    status: JobStatus | None
    error: str

    @property
    def is_lost(self) -> bool:
        """Whether a reaper or another monitor took the job."""
        return self.status is None


class _NotStartedError(Exception):
    """The executor could not be started."""


class Monitor:
    """Runner of a queue's jobs, one at a time, each as a process in a group of its own.

    The executor finds its claim in its environment (``JobClaim.from_environment``). ``agents``
    limits the monitor to the jobs of these agents. ``environment`` is added to this process's own.
    ``alerts`` are sent after each job; a reaper sends them, too. Raises InvalidSetting.
    """

    def __init__(
        self,
        queue: JobQueue,
        engine: StageEngine,
        command: ExecutorCommand,
        *,
        finalizers: Sequence[Finalizer] = (),
        agents: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        alerts: Alerts | None = None,
    ) -> None:
        if engine.store is not queue.store:
            message = "queue and engine must have one store; got two. Give both the same one."
            raise InvalidSetting(message)
        self._queue = queue
        self._engine = engine
        self._command = command
        self._finalizers = tuple(finalizers)
        self._agents = None if agents is None else tuple(agents)
        self._environment = {} if environment is None else dict(environment)
        self._alerts = alerts

    def run_once(self) -> JobEnd | None:
        """Claim a job and see it through to its end; None if no job is queued.

        After a StoreError the job is still marked as running, and a reaper takes it over.
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
            return JobEnd(job.job_id, exit_code, None, str(error))
        sys.audit(JobCrashPoint.MONITOR_BEFORE_ADVANCE, job.job_id)
        self._engine.deliver()
        if self._alerts is not None:
            self._alerts.deliver()
        sys.audit(JobCrashPoint.MONITOR_AFTER_ADVANCE, job.job_id)
        return JobEnd(job.job_id, exit_code, outcome.status, outcome.error)

    def _started(self, job: Job, claim: JobClaim) -> subprocess.Popen[bytes]:
        """Start the executor, which waits behind its gate. Raises _NotStartedError."""
        try:
            arguments = (_SHELL, "-c", _GATE, "executor", *self._command(job))
            environment = {**os.environ, **self._environment, **claim.environment()}
            return subprocess.Popen(arguments, stdin=subprocess.PIPE, env=environment, start_new_session=True)
        except Exception as error:
            message = _text(f"its executor was not started: {type(error).__name__}: {error}")
            raise _NotStartedError(message) from error

    def _execute(self, process: subprocess.Popen[bytes], job: Job, claim: JobClaim) -> int:
        """Let the executor run, return its exit code, and kill its group in any case."""
        with process:
            try:
                sys.audit(JobCrashPoint.MONITOR_AFTER_SPAWN, job.job_id)
                self._queue.started(claim, process.pid)
                sys.audit(JobCrashPoint.MONITOR_AFTER_START, job.job_id)
                self._open_gate(process)
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # before wait(): a zombie still owns its pid
        sys.audit(JobCrashPoint.MONITOR_AFTER_EXIT, job.job_id)
        return process.returncode

    @staticmethod
    def _open_gate(process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # noqa: S101 - started with stdin=PIPE
        with contextlib.suppress(BrokenPipeError):  # the executor was killed behind the gate
            process.stdin.write(b"go\n")
            process.stdin.close()

    def _finalise(self, job: Job, claim: JobClaim, exit_code: int) -> JobOutcome:
        """Run the finalizers, and decide how the job ends. Raises JobLost."""
        sys.audit(JobCrashPoint.MONITOR_BEFORE_FINALISE, job.job_id)
        for finalizer in self._finalizers:
            self._queue.check(claim)
            try:
                finalizer(job, exit_code)
            except Exception as error:  # noqa: BLE001 - any error of a finalizer fails the attempt
                return outcomes.of_failure(job, _text(f"its finalizer raised {type(error).__name__}: {error}"))
        sys.audit(JobCrashPoint.MONITOR_AFTER_FINALISE, job.job_id)
        return outcomes.of_exit(job, exit_code, self._engine)


def _text(text: str) -> str:
    """Return the text without what a column cannot hold: NUL, lone surrogates."""
    return text.encode(errors="replace").decode()[:_ERROR_CHARACTERS_MAX].replace("\0", "")
