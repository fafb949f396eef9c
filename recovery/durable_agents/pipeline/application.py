"""The webhook-driven pipeline that ``python -m durable_agents serve`` runs: all its parts on one store.

An ASGI application, for any server of such: its start-up starts the loops, its shutdown ends them.

| started | ended | what |
|---|---|---|
| 1 | 5 | whatever executes jobs, if it is given as ``workers`` |
| 2 | 4 | the reaper, which first puts right what an earlier process has left |
| 3 | 3 | the inbox, which goes on with what was accepted and not handled |
| 4 | 2 | the reconciler |
| 5 | 1 | the receiver |
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from durable_agents.clock import Clock, SystemClock
from durable_agents.jobs.queue import JobQueue
from durable_agents.jobs.reaper import JobReaper
from durable_agents.jobs.stages import DEFAULT_PIPELINE, StageEngine
from durable_agents.pipeline.handlers import CI_GATE, Handlers
from durable_agents.pipeline.reconciler import Reconciler
from durable_agents.service import PeriodicService
from durable_agents.store.rows import DeliveryStatus
from durable_agents.webhooks.inbox import Inbox
from durable_agents.webhooks.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence

    from durable_agents.jobs.gates import Gate
    from durable_agents.jobs.reaper import ReaperSettings
    from durable_agents.jobs.stages import Pipeline
    from durable_agents.pipeline.reconciler import ReconcilerSettings, UnblockNotifier
    from durable_agents.pipeline.tracker import Tracker
    from durable_agents.store import Store
    from durable_agents.webhooks.signatures import SignatureScheme

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

INBOX_INTERVAL_S: Final = 1.0
"""How long what another process has accepted, or what failed, waits at most for its turn."""


class Loop(Protocol):
    """What is started and stopped with the application. A PeriodicService will do."""

    def start(self) -> object:
        """Begin, and return; starting twice is one start."""
        ...

    def stop(self) -> object:
        """End what is under way, and return when it has ended."""
        ...


class Application:
    """Receiver, inbox, handlers, engine, reaper and reconciler of one store. Raises InvalidSetting, InvalidPipeline.

    ``gates`` has a gate for each name that the pipeline gives, ``schemes`` a signature for each
    source of deliveries; ``tracker`` is asked for the issues of ``projects``. The store is the
    caller's to close.
    """

    def __init__(
        self,
        store: Store,
        *,
        gates: Mapping[str, Gate],
        schemes: Mapping[str, SignatureScheme],
        pipeline: Pipeline = DEFAULT_PIPELINE,
        ci_gate: str = CI_GATE,
        tracker: Tracker | None = None,
        projects: Sequence[str] = (),
        reaper: ReaperSettings | None = None,
        reconciler: ReconcilerSettings | None = None,
        notifier: UnblockNotifier | None = None,
        workers: Sequence[Loop] = (),
        clock: Clock | None = None,
    ) -> None:
        """Put the parts together; nothing is started yet."""
        self._clock: Clock = SystemClock() if clock is None else clock
        self.store = store
        self.engine = StageEngine(store, pipeline=pipeline, gates=gates, clock=self._clock)
        self.queue = JobQueue(store, clock=self._clock)
        self.handlers = Handlers(self.engine, ci_gate=ci_gate, clock=self._clock)
        self.inbox = Inbox(store, self.handlers.decide_delivery, clock=self._clock)
        self.reaper = JobReaper(self.queue, self.engine, settings=reaper)
        self.reconciler = Reconciler(
            self.handlers,
            tracker=tracker,
            projects=projects,
            settings=reconciler,
            notifier=notifier,
            clock=self._clock,
        )
        self._handling = PeriodicService(
            self.inbox.run_once, interval_s=INBOX_INTERVAL_S, name="inbox", clock=self._clock
        )
        self.receiver = Receiver(
            self.inbox, schemes, clock=self._clock, status=self.describe, on_accepted=self._handling.wake
        )
        self._loops: tuple[Loop, ...] = (*workers, self.reaper, self._handling, self.reconciler)

    def start(self) -> None:
        """Start all loops, in their order. Starting twice is one start."""
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        """Stop all loops in the opposite order, and wait for each, for a bounded time."""
        for loop in reversed(self._loops):
            loop.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; start and stop with the server."""

        async def send_and_live(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "lifespan.startup.complete":
                await asyncio.to_thread(self.start)
            elif message["type"] == "lifespan.shutdown.complete":
                await asyncio.to_thread(self.stop)
            await send(message)

        await self.receiver(scope, receive, send_and_live if scope["type"] == "lifespan" else send)

    def describe(self) -> dict[str, Any]:
        """Return what ``GET /status`` shows, ready for JSON, each part in a block of its own. Raises StoreErrors."""
        reaper = self.reaper.health
        last = self.reaper.last_reaped
        inbox = self._handling.health
        return {
            "now": self._clock.now(),
            "queue": self.queue.counts(),
            "inbox": {
                "pending": self.store.deliveries(DeliveryStatus.PENDING),
                "failed": self.store.deliveries(DeliveryStatus.FAILED),
                "is_running": inbox.is_running,
                "reason": inbox.reason,
            },
            "reaper": {
                "is_running": reaper.is_running,
                "reason": reaper.reason,
                "reaped_total": self.reaper.reaped_total,
                "last_reaped": None if last is None else msgspec.to_builtins(last),
                "last_run_ts": self.reaper.last_run_ts,
                "errors": list(self.reaper.errors),
            },
            "reconciler": self.reconciler.describe(),
        }
