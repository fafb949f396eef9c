"""The supervisor: restarts a worker process that ends before its work, a bounded number of times.

It starts one process at a time and waits for it. Exit status 0 is the end of the work. Any other
end costs one restart and a pause that grows with each restart: a worker that dies at once would
otherwise keep the machine busy. The pause is a function that is passed in, so tests need not wait.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.clock import is_duration
from durable_agents.errors import InvalidSetting, WorkerNotStarted
from durable_agents.processes import signal_group, wait_for_exit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BACKOFF_S: Final = (0.1, 0.5, 2.0, 5.0, 15.0)
"""The pauses before the first, second, ... restart, in seconds. The last one repeats."""

_DURATION_S_MAX: Final = 24 * 3600.0
_RESTARTS_MAX: Final = 1_000_000
_LOOK_S: Final = 0.05
"""How late a ``stop`` is noticed, in seconds."""


class Wait(Protocol):
    """A pause."""

    def __call__(self, duration_s: float, /) -> bool:
        """Pause for this many seconds; return True early when the supervisor is to stop."""
        ...


class SupervisedRun(msgspec.Struct, frozen=True):
    """The exit status of each supervised process in turn, -n for an end by signal n.

    Unless ``is_stopped`` (by ``stop``), a last status other than 0 means that the budget of
    restarts was spent.
    """

    exits: tuple[int, ...]
    is_stopped: bool

    @property
    def restarts(self) -> int:
        """The number of restarts."""
        return max(0, len(self.exits) - 1)


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
        """Validate the settings; nothing is started yet."""
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
        """The pid of the running process, or None between two processes."""
        process = self._process
        return None if process is None else process.pid

    def run(self) -> SupervisedRun:
        """Run to success, to the end of the budget, or until ``stop``. Raises WorkerNotStarted.

        However this returns or raises, the process and its group are dead.
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
        """End the process and start no other one; return at once.

        Other threads and signal handlers may call this. ``run`` returns within ``stop_timeout_s``
        seconds and the moment that a kill takes.
        """
        self._is_stopping = True  # no lock: the code that a signal handler interrupts may hold it

    def _run_process(self) -> int:
        """Start the process, wait for it and return its exit status."""
        try:
            process = subprocess.Popen(self._command, env=self._environment, start_new_session=True)
        except OSError as error:
            message = f"{self._command[0]!r} must be a program that can be started; got '{error}'. Give another one."
            raise WorkerNotStarted(message) from error
        self._process = process
        try:
            self._await(process.pid)
        finally:
            signal_group(process.pid, signal.SIGKILL)  # before the wait: until then the pid cannot be reused
            status = process.wait()
            self._process = None
        return status

    def _await(self, pid: int) -> None:
        """Wait until the process has ended, or its time after SIGTERM is over."""
        while not wait_for_exit(pid, _LOOK_S):
            if self._is_stopping:
                os.killpg(pid, signal.SIGTERM)
                wait_for_exit(pid, self._stop_timeout_s)
                return

    def _pause(self, duration_s: float) -> bool:
        deadline = time.monotonic() + duration_s
        while not self._is_stopping and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_S))
        return self._is_stopping


def _check_settings(
    command: Sequence[str], restarts_max: int, backoff_s: Sequence[float], stop_timeout_s: float
) -> None:
    if isinstance(command, str) or not command:
        message = f"command must be a list of a program and its arguments; got {command!r}. Give texts."
        raise InvalidSetting(message)
    if not 0 <= restarts_max <= _RESTARTS_MAX:
        message = f"restarts_max must be 0 to {_RESTARTS_MAX}; got {restarts_max!r}. Give a budget."
        raise InvalidSetting(message)
    durations = (*backoff_s, stop_timeout_s)
    if not backoff_s or not all(is_duration(value, 0, _DURATION_S_MAX) for value in durations):
        message = (
            f"backoff_s must hold a pause, and all durations must be 0 to {_DURATION_S_MAX:g} s; got "
            f"backoff_s={tuple(backoff_s)!r}, stop_timeout_s={stop_timeout_s!r}. Give seconds."
        )
        raise InvalidSetting(message)
