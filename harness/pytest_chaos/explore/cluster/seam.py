"""The seam between an exploration and a cluster: a pool whose tasks other machines judge.

Tasks are gathered into batches, and answers are keyed by state codes. A batch that was lost with
its worker is handed in again. One that takes very long while workers are idle is handed in a second
time. So a task may be done twice; it is counted when it first comes.

What only one can do at a time (the clean run, the smaller losses, the second look at a finding) is
judged on this machine, as ever.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.evidence.redact import clean
from pytest_chaos.explore.cluster.engine import ClusterGone
from pytest_chaos.explore.cluster.items import extract, packed_items
from pytest_chaos.explore.cluster.parcel import own_versions, packed
from pytest_chaos.explore.cluster.rebuild import is_built
from pytest_chaos.explore.cluster.wire import Batch, BatchTask
from pytest_chaos.explore.judge import Judgement, Pool
from pytest_chaos.explore.report import ExplorationError

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.explore.cluster.engine import ClusterEngine, Engine
    from pytest_chaos.explore.cluster.wire import BatchDone, JudgedTask
    from pytest_chaos.explore.judge import StateTask
    from pytest_chaos.explore.record import Recorded

TRIES_MAX: Final = 4
"""A batch is handed in so often; then its states are not judged."""
BATCH_S: Final = 0.5
"""The time that a batch is to take: short enough for an even end, long enough to cost little."""
_FIRST: Final = 4
_BATCH_MAX: Final = 2_000
_GROWS: Final = 4
_AHEAD: Final = 2
"""The batches under way for each worker: one that it judges, and the next."""
HEDGE_S: Final = 20.0
"""A batch may take so long, and some times what it should, before it is handed in twice."""
_HEDGE_TIMES: Final = 8
_STUCK_S: Final = 60.0
"""A batch that was handed in for the last time may take so long, and some timeouts, at least."""
_GRACE_S: Final = 5.0
"""The time for which answers are waited for once all time is over: a worker ends its own tasks."""
_LEFT_MAX_S: Final = 1e9
NOT_JUDGED: Final = "harness:cluster-not-judged"
REFUSED: Final = "harness:cluster-refused"


class _UnderWay:
    """A batch under way: its tasks that have no answer yet, by their codes."""

    def __init__(self, tasks: list[tuple[BatchTask, Any]]) -> None:
        self.pending: dict[str, deque[tuple[BatchTask, Any]]] = {}
        for task, about in tasks:
            self.pending.setdefault(task.code, deque()).append((task, about))
        self.tries = 0
        self.handed_s = 0.0
        self.numbers: set[int] = set()
        """The numbers under which it is with the cluster."""
        self.is_run = tasks[0][0].directive is not None
        self.run_timeout_s = max(task.run_timeout_s for task, _ in tasks)

    @property
    def tasks(self) -> list[BatchTask]:
        """The tasks that have no answer yet."""
        return [task for tasks in self.pending.values() for task, _ in tasks]


class BatchPool(Pool):
    """A pool that hands tasks to an engine, in batches; one worker of this machine is beside it."""

    save_every_s = 30.0  # to wait for all batches leaves workers idle

    def __init__(self, recorded: Recorded, folder: Path, engine: Engine, *, timeout_s: float) -> None:
        parcel = packed(recorded, check_timeout_s=timeout_s)  # before a process is forked: it may not be possible
        super().__init__(recorded.known, folder, timeout_s=timeout_s)
        self._engine = engine
        self._folder = folder
        self._parcel = self._asked(engine.ship, parcel) or ""
        self._numbers = itertools.count(1)
        self._kept = itertools.count(1)
        self._gathered: list[tuple[BatchTask, Any]] = []
        self._batches: dict[int, _UnderWay] = {}
        """The batches that are with the cluster, by each of their numbers."""
        self._task_s: dict[bool, float] = {}
        """The time that a task takes, of built states and of runs."""
        self._sizes = {False: _FIRST, True: 1}
        self._came: list[tuple[Any, Judgement]] = []

    # The interface of a pool

    def submit(self, task: StateTask, about: object = None) -> list[tuple[Any, Judgement]]:
        """Hand a task in, and return the judgements that have arrived, each with its ``about``."""
        is_run = task.directive is not None
        if self._gathered and (self._gathered[0][0].directive is not None) != is_run:
            self._send_gathered()
        self._gathered.append((_task_of(task), about))
        if len(self._gathered) >= self._sizes[is_run]:
            self._send_gathered()
        return self._take()

    def drain(self) -> list[tuple[Any, Judgement]]:
        """Wait until everything is judged, and return the judgements."""
        self._send_gathered()
        while self._batches and not self.gone:
            self._wait()
        self._give_up_all()
        return self._take()

    def judge(self, task: StateTask) -> Judgement:
        """Have one task judged on this machine, and wait for it."""
        ((_, judgement),) = [*Pool.submit(self, task), *Pool.drain(self)]
        return judgement

    def close(self) -> None:
        """End the worker of this machine, and want no answer any more."""
        self._engine.drop(tuple(self._batches))
        self._batches.clear()
        super().close()

    # Batches out

    def _send_gathered(self) -> None:
        tasks, self._gathered = self._gathered, []
        if not tasks:
            return
        batch = _UnderWay(tasks)
        while not self.gone and len(self._under_way()) >= max(1, self._engine.workers) * _AHEAD:
            self._wait()
        self._hand(batch)
        self._receive_answers(0.0)

    def _hand(self, batch: _UnderWay) -> None:
        """Hand a batch in, for the first time or again."""
        number = next(self._numbers)
        batch.tries += 1
        batch.handed_s = time.monotonic()
        batch.numbers.add(number)
        self._batches[number] = batch
        left_s = min(_LEFT_MAX_S, max(0.0, self.until_s - batch.handed_s))
        content = msgspec.msgpack.encode(Batch(self._parcel, tuple(batch.tasks), left_s, own_versions()))
        self._asked(self._engine.hand, number, self._parcel, content)

    def _asked(self, ask: Any, *arguments: Any) -> Any:
        """Ask the engine something; a cluster that is gone is noted."""
        if self.gone:
            return None
        try:
            return ask(*arguments)
        except ClusterGone as error:
            self._lose(error)
            return None

    def _lose(self, error: ClusterGone) -> None:
        self.gone = str(error)
        self.problems[error.signature] = self.gone

    def _under_way(self) -> list[_UnderWay]:
        return list({id(batch): batch for batch in self._batches.values()}.values())

    # Answers in

    def _wait(self) -> None:
        """Wait for an answer, for the end of the time, or until a batch is late."""
        now_s = time.monotonic()
        if now_s > self.until_s + _GRACE_S:
            self._give_up_all()
            return
        self._receive_answers(min(1.0, max(0.05, self.until_s + _GRACE_S - now_s)))
        self._hedge()

    def _receive_answers(self, wait_s: float) -> None:
        for done in self._asked(self._engine.done, wait_s) or ():
            self._receive_answer(done)

    def _receive_answer(self, done: BatchDone) -> None:
        """Take what came of a batch; one that is not under way any more came twice."""
        batch = self._batches.pop(done.number, None)
        if batch is None:
            return
        batch.numbers.discard(done.number)
        if done.answer is None:
            self._lost(batch, done.lost)
            return
        if done.answer.refused:
            self.problems.setdefault(REFUSED, done.answer.refused)
            self._give_up(batch)
            return
        self._learn(batch, done)
        for judged in done.answer.judged:
            self._count(batch, judged)
        self._forget(batch, is_any=bool(done.answer.judged))

    def _count(self, batch: _UnderWay, judged: JudgedTask) -> None:
        """Count a task that was judged, the first time that it comes."""
        waiting = batch.pending.get(judged.code)
        if not waiting:
            return
        _, about = waiting.popleft()
        if not waiting:
            del batch.pending[judged.code]
        judgement = judged.judgement
        if judged.kept:
            own = self._folder / f"kept-{next(self._kept)}"
            extract(judged.kept, own)
            judgement = msgspec.structs.replace(judgement, kept=str(own))
        if judgement.findings or judgement.failure or judgement.differences:
            judgement = clean(judgement)
        self._came.append((about, judgement))

    def _forget(self, batch: _UnderWay, *, is_any: bool) -> None:
        """Let go of a batch that is done; what a worker left out for later is handed in again."""
        if batch.pending and not batch.numbers:
            batch.tries -= is_any  # it has come further, so it is no failure
            self._lost(batch, "a worker left states of a batch out")
        elif not batch.pending and batch.numbers:  # the second answer is not wanted
            self._drop(batch)

    def _drop(self, batch: _UnderWay) -> None:
        self._engine.drop(tuple(batch.numbers))
        for number in batch.numbers:
            self._batches.pop(number, None)
        batch.numbers.clear()

    def _lost(self, batch: _UnderWay, why: str) -> None:
        """Hand a lost batch in again, up to a bound."""
        if batch.numbers or not batch.pending:
            return
        if batch.tries >= TRIES_MAX:
            self._lost_for_ever(batch, why)
        else:
            self._hand(batch)

    def _lost_for_ever(self, batch: _UnderWay, why: str) -> None:
        text = f"states were handed to the cluster {TRIES_MAX} times, and were not judged: {why}"
        self.problems.setdefault(NOT_JUDGED, text)
        self._give_up(batch)

    def _learn(self, batch: _UnderWay, done: BatchDone) -> None:
        """Adapt the size of batches to the time that a task takes."""
        if done.answer is None or not done.answer.judged:
            return
        kind, took_s = batch.is_run, done.answer.took_s / len(done.answer.judged)
        before_s = self._task_s.get(kind, took_s)
        self._task_s[kind] = known_s = (before_s + took_s) / 2
        fitting = math.ceil(BATCH_S / max(known_s, 1e-6))
        self._sizes[kind] = max(1, min(_BATCH_MAX, fitting, self._sizes[kind] * _GROWS))

    def _hedge(self) -> None:
        """Hand in once more what takes very long, if workers have nothing to do."""
        now_s = time.monotonic()
        under_way = self._under_way()
        late = [batch for batch in under_way if now_s - batch.handed_s > self._late_s(batch)]
        if not late or len(under_way) - len(late) >= max(1, self._engine.workers):
            return
        oldest = min(late, key=lambda batch: batch.handed_s)
        if oldest.tries < TRIES_MAX:
            self._hand(oldest)
        elif now_s - oldest.handed_s > max(_STUCK_S, 4 * (self._timeout_s + oldest.run_timeout_s)):
            self._lost_for_ever(oldest, "no answer came")

    def _late_s(self, batch: _UnderWay) -> float:
        return max(HEDGE_S, _HEDGE_TIMES * self._task_s.get(batch.is_run, 0.0) * len(batch.tasks))

    # What is not judged

    def _give_up(self, batch: _UnderWay) -> None:
        """Answer the tasks of a batch as those of which nothing is known."""
        for tasks in batch.pending.values():
            self._came += [(about, Judgement(is_out_of_time=True)) for _, about in tasks]
        batch.pending.clear()
        self._drop(batch)

    def _give_up_all(self) -> None:
        for batch in self._under_way():
            self._give_up(batch)

    def _take(self) -> list[tuple[Any, Judgement]]:
        if self.gone:
            self._give_up_all()
            self._came += [(about, Judgement(is_out_of_time=True)) for _, about in self._gathered]
            self._gathered = []
        came, self._came = self._came, []
        return came


def pool_of(recorded: Recorded, folder: Path, engine: ClusterEngine, *, timeout_s: float, open_s: float) -> BatchPool:
    """Return a pool on a cluster. Raises ExplorationError if it is not there within ``open_s``."""
    try:
        engine.open(open_s)
    except ClusterGone as error:
        msg = f"{error}; nothing was judged"
        raise ExplorationError(msg, signature=error.signature) from error
    return BatchPool(recorded, folder, engine, timeout_s=timeout_s)


def _task_of(task: StateTask) -> BatchTask:
    """Return a task as it travels: a state by its code if a worker can build it, else packed."""
    state = task.state
    if state is not None and is_built(state.code):
        return BatchTask(state.code, task.marks, digest=state.digest, family=task.family)
    return BatchTask(
        state.code if state is not None else task.code,
        task.marks,
        items=b"" if task.directive is not None else packed_items(task.items),
        directive=task.directive,
        run_timeout_s=task.run_timeout_s,
        is_compared=task.is_compared,
        is_expected=task.is_expected,
        family=task.family,
    )
