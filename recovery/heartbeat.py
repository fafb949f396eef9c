"""The heartbeat: keeps a lease alive while its holder works, on a connection of its own (D12).

A loss is known to the holder at its next call of ``lease``, and to the heartbeat within one interval. A heartbeat whose
renewals fail for other reasons (a locked database) goes on trying as long as the holder may trust what it has.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, Self

from recovery.errors import LeaseExpired, LeaseLost, UnknownWorkItem
from recovery.leases import Lease, LeaseManager
from recovery.service import PeriodicService
from recovery.store import open_store

if TYPE_CHECKING:
    import os

    from recovery.clock import Clock, Microseconds
    from recovery.service import Health

INTERVAL_SHARE: Final = 0.1
"""The interval as a share of the lease's length."""

PATIENCE_SHARE: Final = 0.25
"""How long one renewal waits for other writers, as a share of the lease's length: several waits fit into it."""

PATIENCE_S_MIN: Final = 0.05


class Heartbeat:
    """Renews a lease every tenth of its length, or every ``interval_s``, until it is stopped or the lease is lost.

    It opens the database at ``db_path`` itself: a thread that shared the caller's connection would be in the middle of
    the caller's transactions. Raises InvalidSetting, and any StoreError when it opens the file.
    """

    def __init__(
        self,
        lease: Lease,
        *,
        db_path: str | os.PathLike[str],
        interval_s: float | None = None,
        clock: Clock | None = None,
        takes_turns: bool = True,
    ) -> None:
        """Prepare; nothing is renewed yet. ``takes_turns`` as in ``open_store``: as others do, a renewal has to."""
        self._store = open_store(
            db_path, busy_timeout_s=max(lease.ttl_s * PATIENCE_SHARE, PATIENCE_S_MIN), takes_turns=takes_turns
        )
        self._leases = LeaseManager(self._store, clock=clock)
        self._lock = threading.Lock()
        self._lease = lease
        self._loss: LeaseExpired | LeaseLost | UnknownWorkItem | None = None
        self._service = PeriodicService(
            self.run_once,
            interval_s=lease.ttl_s * INTERVAL_SHARE if interval_s is None else interval_s,
            name=f"heartbeat of work item {lease.work_item_id}",
        )

    @property
    def lease(self) -> Lease:
        """The lease as it was last renewed. Raises LeaseExpired or LeaseLost once it is not held any more.

        A loss that was told stays one: a renewal that was under way, and came in time for the database, is dropped.
        """
        with self._lock:
            if self._loss is None:
                try:
                    self._leases.check(self._lease)
                except LeaseExpired as loss:
                    self._loss = loss
            if self._loss is not None:
                raise self._loss
            return self._lease

    @property
    def is_lost(self) -> bool:
        """Whether the lease is not held any more, by the last renewal or by the holder's own clock."""
        try:
            _ = self.lease
        except (LeaseExpired, LeaseLost, UnknownWorkItem):
            return True
        return False

    @property
    def health(self) -> Health:
        """How the loop is."""
        return self._service.health

    def __enter__(self) -> Self:
        """Start beating."""
        self._service.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start beating, unless it does."""
        self._service.start()

    def stop(self, *, timeout_s: float = 10.0) -> bool:
        """Stop beating and close the connection; return whether the thread ended within ``timeout_s`` seconds."""
        ended = self._service.stop(timeout_s=timeout_s)
        if ended:
            self._store.close()
        return ended

    def run_once(self, now: Microseconds | None = None) -> None:  # noqa: ARG002 - the interface of what is periodic
        """Renew once. Raises any StoreError, which the loop survives; a loss is kept and ends the renewals."""
        if self._loss is not None:
            return
        try:
            renewed = self._leases.heartbeat(self._lease)
        except (LeaseExpired, LeaseLost, UnknownWorkItem) as loss:
            with self._lock:
                self._loss = loss
        else:
            with self._lock:
                if self._loss is None:
                    self._lease = renewed
