"""The loop of every periodic service: sweep, heartbeat, renewals, reaper, reconciler.

A service is a method ``run_once(now)``; its loop, interval and error handling are here. An error of
``run_once`` never ends the loop (D14): it is counted, kept, and makes the service unhealthy until a
run succeeds. A run that does not return makes the service unhealthy too, and ``stop`` gives up on
it after its time limit.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.clock import Clock, Microseconds, SystemClock, is_duration, microseconds
from durable_agents.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S_MAX: Final = 24 * 3600.0
STUCK_INTERVALS: Final = 10
"""A run that takes longer than this many intervals (and than a second) counts as stuck."""


class Health(msgspec.Struct, frozen=True):
    """The state of a service.

    ``reason`` is empty when it is healthy. Failed runs move ``last_run_at`` too.
    """

    is_running: bool
    runs: int
    failures: int
    consecutive_failures: int
    last_run_at: Microseconds | None
    reason: str

    @property
    def is_healthy(self) -> bool:
        """Whether the loop runs, its last run succeeded, and the current run is not stuck."""
        return self.is_running and not self.reason


class _ServiceThread:
    """The thread of one start of a service, with its stop event.

    A later start makes another one.
    """

    def __init__(self, run: Callable[[_ServiceThread], None], name: str) -> None:
        self.stop = threading.Event()
        self.woken = threading.Event()
        self.thread = threading.Thread(target=run, args=(self,), name=name, daemon=True)

    def end(self) -> None:
        """Tell the thread to end after its current run."""
        self.stop.set()
        self.woken.set()

    def is_running(self) -> bool:
        return self.thread.is_alive()


class PeriodicService:
    """Calls ``run_once(now)`` every ``interval_s`` seconds in a thread of its own.

    >>> service = PeriodicService(lambda now: None, interval_s=60)
    >>> service.tick()
    >>> service.health.runs, service.health.failures
    (1, 0)

    ``run_once`` runs in that thread: share with it only what is safe to share. Raises
    InvalidSetting.
    """

    def __init__(
        self,
        run_once: Callable[[Microseconds], object],
        *,
        interval_s: float,
        name: str = "service",
        clock: Clock | None = None,
    ) -> None:
        """Validate the interval; nothing runs yet."""
        if interval_s == 0 or not is_duration(interval_s, 0, INTERVAL_S_MAX):
            message = (
                f"interval_s must be above 0 and at most {INTERVAL_S_MAX:g} s; got {interval_s!r:.80}. Give seconds."
            )
            raise InvalidSetting(message)
        self._run_once = run_once
        self._interval_s = interval_s
        self._name = name
        self._clock: Clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._loop: _ServiceThread | None = None
        self._began: Microseconds | None = None
        self._health = Health(
            is_running=False,
            runs=0,
            failures=0,
            consecutive_failures=0,
            last_run_at=None,
            reason="it was never started",
        )

    @property
    def health(self) -> Health:
        """The state of the service now."""
        with self._lock:
            loop = self._loop
            running = loop is not None and loop.is_running()
            reason = self._health.reason
            if running:
                reason = reason or self._stuck()
            elif not reason:
                reason = "it was stopped" if loop is None or loop.stop.is_set() else "its thread has ended"
            return msgspec.structs.replace(self._health, is_running=running, reason=reason)

    def start(self) -> None:
        """Start the loop, unless it is running.

        A stopped loop that is still in its last run may finish it beside the new loop.
        """
        with self._lock:
            if self._loop is not None and self._loop.is_running() and not self._loop.stop.is_set():
                return
            self._health = msgspec.structs.replace(self._health, reason="")
            self._loop = _ServiceThread(self._run_until_stopped, self._name)
            self._loop.thread.start()

    def wake(self) -> None:
        """Begin the next run at once instead of after the interval. Without a loop, do nothing."""
        with self._lock:
            if self._loop is not None:
                self._loop.woken.set()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop the loop after its current run; return whether it has ended.

        Waits at most ``timeout_s`` seconds. Called from a run itself, return False without waiting:
        the loop ends with that run.
        """
        with self._lock:
            loop = self._loop
        if loop is None:
            return True
        loop.end()
        if loop.thread is threading.current_thread():
            return False
        loop.thread.join(timeout_s)
        return not loop.is_running()

    def tick(self) -> None:
        """Do one run now, in this thread. An error is kept in ``health`` and not raised."""
        self._began = self._clock.monotonic()
        try:
            self._run_once(self._clock.now())
        except Exception as error:  # noqa: BLE001 - no error of a run may end the loop (D14)
            self._note(f"its last run raised {type(error).__name__}: {error}")
        except BaseException as error:
            self._note(f"its last run ended the loop by {type(error).__name__}: {error}")
            raise
        else:
            self._note("")
        finally:
            self._began = None

    def _run_until_stopped(self, loop: _ServiceThread) -> None:
        """Do one run after another until the loop is told to end."""
        while True:
            loop.woken.clear()  # before stop is read, so that no end is missed
            if loop.stop.is_set():
                return
            self.tick()
            loop.woken.wait(self._interval_s)

    def _stuck(self) -> str:
        began = self._began
        if began is None:
            return ""
        elapsed = self._clock.monotonic() - began
        bound = microseconds(max(self._interval_s * STUCK_INTERVALS, 1.0))
        return f"its run is under way since {elapsed / 1_000_000:.1f} s" if elapsed > bound else ""

    def _note(self, reason: str) -> None:
        with self._lock:
            health = self._health
            self._health = msgspec.structs.replace(
                health,
                runs=health.runs + 1,
                failures=health.failures + bool(reason),
                consecutive_failures=health.consecutive_failures + 1 if reason else 0,
                last_run_at=self._clock.now(),
                reason=reason,
            )
