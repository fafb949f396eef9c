"""The supervisor: a worker process that ends before its work does is started again, a bounded number of times.

It starts one process at a time and waits for it. Exit status 0 is the end of the work. Anything
else, an end by a signal above all, costs one restart of the budget and a pause that grows with
each: a worker that dies at once would otherwise spend the machine on dying. The pause is a wait
that is passed in, so that tests need not.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.clock import is_duration
from durable_agents.errors import InvalidSetting, WorkerNotStarted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BACKOFF_S: Final = (0.1, 0.5, 2.0, 5.0, 15.0)
"""The pauses before the first, second, ... restart, in seconds; the last one repeats."""

_DURATION_S_MAX: Final = 24 * 3600.0
_RESTARTS_MAX: Final = 1_000_000
_LOOK_S: Final = 0.05
"""How long ``stop`` may go unnoticed."""


class Wait(Protocol):
    """A pause."""

    def __call__(self, duration_s: float, /) -> bool:
        """Pause for so many seconds; return early, with True, when the supervisor is to stop."""
        ...


class SupervisedRun(msgspec.Struct, frozen=True):
    """How the supervised work went: the exit status of each process in turn, -n for an end by signal n.

    ``is_stopped`` tells that somebody called ``stop``; otherwise a last status other than 0 means
    that the budget of restarts was spent.
    """

    exits: tuple[int, ...]
    is_stopped: bool

    @property
    def restarts(self) -> int:
        """How often a process was started again."""
        return max(0, len(self.exits) - 1)

    @property
    def is_success(self) -> bool:
        """Whether the last process did its work to the end."""
        return bool(self.exits) and self.exits[-1] == 0


class Supervisor:
    """Runs ``command`` until it exits with 0, with at most ``restarts_max`` restarts.

    The process leads a group of its own. ``stop`` gives it ``stop_timeout_s`` seconds from SIGTERM
    to SIGKILL. Raises InvalidSetting.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        restarts_max: int,
        backoff_s: Sequence[float] = BACKOFF_S,
        stop_timeout_s: float = 10.0,
        environment: Mapping[str, str] | None = None,
        wait: Wait | None = None,
    ) -> None:
        """Prepare; nothing is started yet."""
        _check_settings(command, restarts_max, backoff_s, stop_timeout_s)
        self._command = tuple(command)
        self._restarts_max = restarts_max
        self._backoff_s = tuple(backoff_s)
        self._stop_timeout_s = stop_timeout_s
        self._environment = None if environment is None else dict(environment)
        self._is_stopping = False
        self._wait: Wait = self._pause if wait is None else wait
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process that is running, or None between two of them."""
        process = self._process
        return None if process is None else process.pid

    def run(self) -> SupervisedRun:
        """Run to success, to the end of the budget, or until ``stop``. Raises WorkerNotStarted.

        However it is left, by an exception too, the process and its group are gone.
        """
        exits: list[int] = []
        while not self._is_stopping:
            status = self._run_process()
            exits.append(status)
            if status == 0 or len(exits) > self._restarts_max:
                break
            if self._wait(self._backoff_s[min(len(exits), len(self._backoff_s)) - 1]):
                break
        return SupervisedRun(tuple(exits), self._is_stopping)

    def stop(self) -> None:
        """End the process and start none any more. May be called from another thread, or by a signal handler.

        Returns at once; ``run`` returns within ``stop_timeout_s`` and the moment that a kill takes.
        """
        self._is_stopping = True  # a plain value: a lock that a signal handler needs may be held by what it interrupts

    def _run_process(self) -> int:
        """Start the process, wait for it and return its exit status."""
        try:
            process = subprocess.Popen(self._command, env=self._environment, start_new_session=True)
        except OSError as error:
            message = f"Expected to start {self._command[0]!r} but {error}; give a program that can be executed."
            raise WorkerNotStarted(message) from error
        self._process = process
        try:
            self._await(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # before it is waited for: until then the number is its own
            status = process.wait()
            self._process = None
        return status

    def _await(self, pid: int) -> None:
        """Wait until the process has ended, or has been told to and had its time."""
        descriptor = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            while not poll.poll(_LOOK_S * 1000):
                if self._is_stopping:
                    os.killpg(pid, signal.SIGTERM)
                    poll.poll(self._stop_timeout_s * 1000)
                    return
        finally:
            os.close(descriptor)

    def _pause(self, duration_s: float) -> bool:
        deadline = time.monotonic() + duration_s
        while not self._is_stopping and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_S))
        return self._is_stopping


def _check_settings(
    command: Sequence[str], restarts_max: int, backoff_s: Sequence[float], stop_timeout_s: float
) -> None:
    if isinstance(command, str) or not command:
        message = f"Expected a program and its arguments but got {command!r}; give a list of texts."
        raise InvalidSetting(message)
    if not 0 <= restarts_max <= _RESTARTS_MAX:
        message = f"Expected restarts_max between 0 and {_RESTARTS_MAX} but got {restarts_max!r}; give a budget."
        raise InvalidSetting(message)
    durations = (*backoff_s, stop_timeout_s)
    if not backoff_s or not all(is_duration(value, 0, _DURATION_S_MAX) for value in durations):
        message = (
            f"Expected at least one pause, and durations between 0 and {_DURATION_S_MAX:g} s, but got backoff_s="
            f"{tuple(backoff_s)!r} and stop_timeout_s={stop_timeout_s!r}; give seconds."
        )
        raise InvalidSetting(message)
