"""Seams between an exploration and a cluster with one known bug each: what scenario 25 has to find.

| variant | bug | seen by |
|---|---|---|
| CountsTwice | a batch that is answered twice counts twice | a worker that is held, and goes on |
| DropsLost | a batch whose worker was lost is forgotten | a worker that is killed |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_chaos.explore.cluster.seam import BatchPool

if TYPE_CHECKING:
    from pytest_chaos.explore.cluster.wire import BatchDone, JudgedTask


class CountsTwice(BatchPool):
    """Keeps every batch, and takes each answer for the first."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._all: dict[int, Any] = {}
        self._abouts: dict[str, Any] = {}

    def _receive_answer(self, done: BatchDone) -> None:
        self._all.setdefault(done.number, self._batches.get(done.number))
        if self._batches.get(done.number) is None and (batch := self._all[done.number]) is not None:
            for judged in done.answer.judged if done.answer is not None else ():
                self._count(batch, judged)
            return
        super()._receive_answer(done)

    def _count(self, batch: Any, judged: JudgedTask) -> None:
        if waiting := batch.pending.get(judged.code):
            self._abouts[judged.code] = waiting[0][1]
            super()._count(batch, judged)
        else:
            self._came.append((self._abouts[judged.code], judged.judgement))

    def _drop(self, batch: Any) -> None:
        """Want the second answer, too."""


class DropsLost(BatchPool):
    """Believes that a batch that was lost had nothing in it."""

    def _lost(self, batch: Any, why: str) -> None:
        del why
        batch.pending.clear()
