"""The webhook-driven pipeline: all its parts on one store.

``python -m durable_agents serve`` runs it. It is an ASGI application for any server: the server's
start-up starts the parts, its shutdown stops them.

| started | stopped | part |
|---|---|---|
| 1 | 5 | the ``workers`` that execute jobs, if they are given |
| 2 | 4 | the reaper, which first recovers what an earlier process has left |
| 3 | 3 | the inbox, which goes on with deliveries that were accepted and not handled |
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
    from collections.abc import Mapping, Sequence

    from starlette.types import Message, Receive, Scope, Send

    from durable_agents.jobs.gates import Gate
    from durable_agents.jobs.reaper import ReaperSettings
    from durable_agents.jobs.stages import Pipeline
    from durable_agents.pipeline.reconciler import ReconcilerSettings, UnblockNotifier
    from durable_agents.pipeline.tracker import Tracker
    from durable_agents.store import Store
    from durable_agents.webhooks.signatures import SignatureScheme

INBOX_INTERVAL_S: Final = 1.0
"""The longest wait of a delivery that another process has accepted, or that failed before."""


class Startable(Protocol):
    """A part that is started and stopped with the application; a PeriodicService is one."""

    def start(self) -> object:
        """Begin, and return; starting twice is one start."""
        ...

    def stop(self) -> object:
        """End the work under way, and return when it has ended."""
        ...


class Application:
    """Receiver, inbox, handlers, engine, reaper and reconciler of one store.

    ``gates`` has a gate for each name that the pipeline gives, ``schemes`` a signature for each
    source of deliveries; ``tracker`` is asked for the issues of ``projects``. The store is the
    caller's to close. Raises InvalidSetting and InvalidPipeline.

    >>> import tempfile
    >>> from durable_agents import open_store
    >>> from durable_agents.webhooks.signatures import github
    >>> gates = {stage.gate: lambda task: True for stage in DEFAULT_PIPELINE.stages if stage.gate}
    >>> with tempfile.TemporaryDirectory() as folder, open_store(f"{folder}/core.db") as store:
    ...     schemes = {"github": github("a secret of 16 bytes or more")}
    ...     application = Application(store, gates=gates, schemes=schemes)
    ...     application.describe()["queue"]  # or serve(application, listen("127.0.0.1", 8000))
    {'queued': 0, 'running': 0}
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
        workers: Sequence[Startable] = (),
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
        self._parts: tuple[Startable, ...] = (*workers, self.reaper, self._handling, self.reconciler)

    def start(self) -> None:
        """Start all parts, in their order. Starting twice is one start."""
        for part in self._parts:
            part.start()

    def stop(self) -> None:
        """Stop all parts in the opposite order, and wait for each, for a bounded time."""
        for part in reversed(self._parts):
            part.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; start and stop with the server."""

        async def send_and_live(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await asyncio.to_thread(self.start)
            elif message["type"] == "lifespan.shutdown.complete":
                await asyncio.to_thread(self.stop)
            await send(message)

        await self.receiver(scope, receive, send_and_live if scope["type"] == "lifespan" else send)

    def describe(self) -> dict[str, Any]:
        """Return the status page, ready for JSON, a block for each part.

        Raises any StoreError.
        """
        reaper = self.reaper.health
        last = self.reaper.last_reaped
        inbox = self._handling.health
        return {
            "now": self._clock.now(),
            "store": {"warnings": self.store.warnings()},
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
