"""One loop around everything that is done again and again: a sweep, a heartbeat, later a reaper and a reconciler.

What is done is a method ``run_once(now)``; when, how often, and what happens when it raises, is
written here, once. An error of ``run_once`` never ends the loop (D14): it is counted, kept, and
makes the service unhealthy until a run succeeds. A run that does not come back makes it unhealthy
too, and bounds nothing but itself: ``stop`` gives up on it.
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
"""A run that is under way for more intervals than this (and for a second, at least) counts as stuck."""


class Health(msgspec.Struct, frozen=True):
    """How a service is. ``reason`` is empty when it is healthy; ``last_run_at`` moves on failed runs too."""

    is_running: bool
    runs: int
    failures: int
    consecutive_failures: int
    last_run_at: Microseconds | None
    reason: str

    @property
    def is_healthy(self) -> bool:
        """Whether it runs, its last run succeeded, and the run under way is not stuck."""
        return self.is_running and not self.reason


class _Loop:
    """One start of a service: a thread, and what tells it to end. A later start has another, so none is revived."""

    def __init__(self, run: Callable[[_Loop], None], name: str) -> None:
        self.stop = threading.Event()
        self.woken = threading.Event()
        self.thread = threading.Thread(target=run, args=(self,), name=name, daemon=True)

    def end(self) -> None:
        """Tell it to end after the run that is under way."""
        self.stop.set()
        self.woken.set()

    def is_running(self) -> bool:
        return self.thread.is_alive()


class PeriodicService:
    """Calls ``run_once(now)`` every ``interval_s`` seconds in a thread of its own, until it is stopped.

    ``run_once`` opens what it needs in that thread or uses what is safe to share. Raises
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
        """Prepare; nothing runs yet."""
        if interval_s == 0 or not is_duration(interval_s, 0, INTERVAL_S_MAX):
            message = (
                f"Expected an interval of more than 0 and at most {INTERVAL_S_MAX:g} s but got {interval_s!r:.80}; "
                "give seconds."
            )
            raise InvalidSetting(message)
        self._run_once = run_once
        self._interval_s = interval_s
        self._name = name
        self._clock: Clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._loop: _Loop | None = None
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
        """How the service is now."""
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
        """Start the loop, unless it runs already; one that was told to stop and has not yet is left to end."""
        with self._lock:
            if self._loop is not None and self._loop.is_running() and not self._loop.stop.is_set():
                return
            self._health = msgspec.structs.replace(self._health, reason="")
            self._loop = _Loop(self._go_on, self._name)
            self._loop.thread.start()

    def wake(self) -> None:
        """Let the next run begin at once instead of after the interval; without a loop there is nothing to wake."""
        with self._lock:
            if self._loop is not None:
                self._loop.woken.set()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop the loop after the run that is under way; return whether it ended within ``timeout_s`` seconds.

        Called from a run itself, it does not wait and returns False: the loop ends with that run.
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
        """Do one run now, in this thread; an error is kept in ``health`` and not raised."""
        self._began = self._clock.monotonic()
        try:
            self._run_once(self._clock.now())
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a run must not end the loop
            self._note(f"its last run raised {type(error).__name__}: {error}")
        except BaseException as error:
            self._note(f"its last run ended the loop by {type(error).__name__}: {error}")
            raise
        else:
            self._note("")
        finally:
            self._began = None

    def _go_on(self, loop: _Loop) -> None:
        """Do one run after another until the loop is told to end."""
        while True:
            loop.woken.clear()  # before the look at stop, so that no end is missed; the run sees what it was woken for
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
