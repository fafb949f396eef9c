"""Engines of batches without Dask: threads of this process that have benches,
and what goes wrong.
"""

from __future__ import annotations

import itertools
import queue
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
from pytest_chaos.explore.cluster.engine import ClusterGone
from pytest_chaos.explore.cluster.wire import BatchAnswer, BatchDone, name_of
from pytest_chaos.explore.cluster.worker import Benches
from pytest_chaos.explore.report import CLUSTER_LOST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self


class ThreadEngine:
    """Threads, each with a bench of its own.

    ``twice`` has each batch judged and answered twice. Batches whose number, counted from 1, is in
    ``lost`` do not come back. After ``gone_after`` batches the cluster is gone.
    """

    address = "threads"

    def __init__(
        self, *, workers: int = 2, twice: bool = False, lost: Sequence[int] = (), gone_after: int | None = None
    ) -> None:
        self.workers = workers
        self._executor = ThreadPoolExecutor(self.workers)
        self._benches = Benches()
        self._parcel = b""
        self._done: queue.SimpleQueue[BatchDone] = queue.SimpleQueue()
        self._twice = twice
        self._lost = set(lost)
        self._gone_after = gone_after
        self._handed = itertools.count(1)
        self.parcels: list[str] = []
        self.batches = 0

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(self, *_: object) -> None:
        """End threads and benches."""
        self._executor.shutdown()
        self._benches.close()

    def open(self, timeout_s: float = 0.0) -> None:
        """Be there at once."""
        del timeout_s

    def note(self, *, fixed_port: int) -> str:
        """Say nothing of it."""
        return f"threads {fixed_port}"

    def ship(self, content: bytes) -> str:
        """Keep a parcel."""
        self._parcel = content
        self.parcels.append(name_of(content))
        return self.parcels[-1]

    def hand(self, number: int, parcel: str, content: bytes) -> None:
        """Have a batch judged in a thread."""
        self.batches = place = next(self._handed)
        if self._gone_after is not None and place > self._gone_after:
            raise ClusterGone(CLUSTER_LOST, "the scheduler of cluster threads went away")
        if place in self._lost:
            self._done.put(BatchDone(number, None, "KilledWorker"))
            return
        self._executor.submit(self._judge, number, parcel, content)

    def _judge(self, number: int, parcel: str, content: bytes) -> None:
        for _ in range(2 if self._twice else 1):
            answer = self._benches.judge(self._parcel, parcel, content)
            self._done.put(BatchDone(number, msgspec.msgpack.decode(answer, type=BatchAnswer)))

    def done(self, wait_s: float) -> list[BatchDone]:
        """Return what came."""
        found: list[BatchDone] = []
        try:
            while True:
                found.append(self._done.get(block=not found and wait_s > 0, timeout=wait_s or None))
        except queue.Empty:
            return found

    def drop(self, numbers: Sequence[int]) -> None:
        """Judge them all the same."""


class RefusingEngine(ThreadEngine):
    """Its workers have other versions, or lack what the target imports."""

    def __init__(self, refused: Callable[[], str]) -> None:
        super().__init__()
        self._refused = refused

    def _judge(self, number: int, parcel: str, content: bytes) -> None:
        del parcel, content
        self._done.put(BatchDone(number, BatchAnswer(refused=self._refused())))
