"""One loop around everything that is done again and again: a sweep, a heartbeat, later a reaper and a reconciler.

What is done is a class with ``run_once``; when, how often, and what happens when it raises, is written here, once. An
error of ``run_once`` never ends the loop (D14): it is counted, kept, and makes the service unhealthy until a run
succeeds.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Final

import msgspec

from recovery.clock import Clock, Microseconds, SystemClock
from recovery.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S_MAX: Final = 24 * 3600.0


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
        """Whether it runs and its last run succeeded."""
        return self.is_running and not self.reason


class PeriodicService:
    """Calls ``run_once`` every ``interval_s`` seconds in a thread of its own, until it is stopped.

    ``run_once`` opens what it needs in that thread or uses what is safe to share. Raises InvalidSetting.
    """

    def __init__(
        self, run_once: Callable[[], object], *, interval_s: float, name: str = "service", clock: Clock | None = None
    ) -> None:
        """Prepare; nothing runs yet."""
        if not (math.isfinite(interval_s) and 0 < interval_s <= INTERVAL_S_MAX):
            message = f"Expected an interval of more than 0 and at most {INTERVAL_S_MAX:g} s but got {interval_s!r}."
            raise InvalidSetting(message)
        self._run_once = run_once
        self._interval_s = interval_s
        self._name = name
        self._clock: Clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
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
        running = self._thread is not None and self._thread.is_alive()
        with self._lock:
            reason = self._health.reason if running or self._health.reason else "it was stopped"
            return msgspec.structs.replace(self._health, is_running=running, reason=reason)

    def start(self) -> None:
        """Start the loop, unless it runs already."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop.clear()
        with self._lock:
            self._health = msgspec.structs.replace(self._health, reason="")
        self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
        self._thread.start()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop the loop after the run that is under way; return whether it ended within ``timeout_s`` seconds."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
            return not thread.is_alive()
        return True

    def tick(self) -> None:
        """Do one run now, in this thread; an error is kept in ``health`` and not raised."""
        try:
            self._run_once()
        except Exception as error:  # noqa: BLE001 - whatever goes wrong in a run must not end the loop
            self._note(f"its last run raised {type(error).__name__}: {error}")
        else:
            self._note("")

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.tick()
            self._stop.wait(self._interval_s)

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
