"""The bench: a process beside a worker of a cluster, in which batches of one parcel are judged.

A worker of Dask has many threads, and judging forks: so each bench is a program of its own, started
by exec, with one thread. It has a guardian. When the worker ends, however it ends, the guardian
ends all that the bench and its checks have started, and removes their folder.

It is called ``python -m pytest_chaos.explore.cluster.bench FD PARENT``; FD is a socket. The first
message is a parcel, each further one a batch, and each batch has one answer.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from pytest_chaos.errors import ChaosError
from pytest_chaos.explore.cluster.items import archive, unpacked_items
from pytest_chaos.explore.cluster.parcel import Unpacked, own_versions
from pytest_chaos.explore.cluster.rebuild import Builder
from pytest_chaos.explore.cluster.wire import Batch, BatchAnswer, BatchTask, JudgedTask
from pytest_chaos.explore.judge import Judgement, Pool, StateTask
from pytest_chaos.explore.launch import default_base, guard
from pytest_chaos.explore.report import harness_finding
from pytest_chaos.explore.simulate.content import PageStore
from pytest_chaos.runtime import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_chaos.model.values import Finding

DIFFERS: Final = "harness:cluster-state-differs"
"""The signature of a state that a worker builds from the same recording, and that is another one.
"""
IDLE_S: Final = 300.0
"""A bench that gets no batch for so long ends, and gives its folder back."""
PATIENCE_S: Final = 10.0
"""After so long the rest of a batch is left out: what was found so far may end it all."""
_EXIT_ORPHANED: Final = 75


class Bench:
    """Judges batches with the recording, the target and one pool."""

    def __init__(self, parcel: bytes, folder: Path) -> None:
        self._folder = folder
        unpacked = Unpacked(parcel, folder)
        self._recorded = unpacked.recorded
        self._builder = Builder(self._recorded)
        self._pool = Pool(self._recorded.known, folder, timeout_s=unpacked.check_timeout_s)

    def judge(self, batch: Batch) -> BatchAnswer:
        """Judge the tasks of a batch, each once."""
        begun_s = time.monotonic()
        self._pool.until_s = begun_s + batch.left_s
        store = PageStore(self._folder)
        judged: list[JudgedTask] = []
        try:
            wrong: list[JudgedTask] = []
            for task, judgement in self._pool.answers(*self._tasks(batch, store, wrong)):
                judged.append(self._told(task.code, judgement))
            judged += wrong
        finally:
            store.close()
        return BatchAnswer(tuple(judged), time.monotonic() - begun_s, worker=f"{os.uname().nodename}:{os.getpid()}")

    def close(self) -> None:
        """End the workers of the pool."""
        self._pool.close()
        self._recorded.close()

    def _tasks(
        self, batch: Batch, store: PageStore, wrong: list[JudgedTask]
    ) -> tuple[Iterator[BatchTask], Callable[[BatchTask], StateTask]]:
        """Return the tasks that can be judged, and how to get their states; note the others."""
        made: dict[str, StateTask] = {}
        ends_s = time.monotonic() + PATIENCE_S

        def things() -> Iterator[BatchTask]:
            for task in batch.tasks:
                if time.monotonic() > ends_s:
                    return
                state = self._made(task, store)
                if state is None:
                    wrong.append(JudgedTask(task.code, Judgement(findings=(_differs(task.code),))))
                    continue
                made[task.code] = state
                yield task

        return things(), lambda task: made.pop(task.code)

    def _made(self, task: BatchTask, store: PageStore) -> StateTask | None:
        """Return the task with the items of its state; None if it comes to another state here."""
        if task.directive is not None:
            return StateTask(
                self._recorded.before,
                task.marks,
                task.directive,
                task.run_timeout_s,
                task.is_compared,
                task.is_expected,
                task.family,
            )
        if task.items:
            return StateTask(unpacked_items(task.items, store), task.marks, family=task.family)
        state = self._builder.build(task.code)
        if state is None or state.digest != task.digest:
            return None
        return StateTask(state.items, task.marks, family=task.family)

    @staticmethod
    def _told(code: str, judgement: Judgement) -> JudgedTask:
        if not judgement.kept:
            return JudgedTask(code, judgement)
        kept = Path(judgement.kept)
        content = archive(kept)
        shutil.rmtree(kept, ignore_errors=True)
        return JudgedTask(code, msgspec.structs.replace(judgement, kept=""), content)


def _differs(code: str) -> Finding:
    text = (
        f"a worker of the cluster built another state of {code} from the same recording, and did not judge it: its "
        "Python, its pytest-chaos or its memory is not ours"
    )
    return harness_finding(DIFFERS, text)


def serve(channel: Connection, folder: Path) -> None:
    """Judge batches until the channel is closed, or nothing comes for long."""
    bench: Bench | None = None
    refused = ""
    try:
        bench = Bench(channel.recv_bytes(), folder)
    except ChaosError as error:
        refused = str(error)
    try:
        while channel.poll(IDLE_S):
            batch = msgspec.msgpack.decode(channel.recv_bytes(), type=Batch)
            if batch.versions != own_versions():
                answer = BatchAnswer(refused=f"a worker has {own_versions()}, and the exploration {batch.versions}")
            elif bench is None:
                answer = BatchAnswer(refused=refused)
            else:
                answer = bench.judge(batch)
            channel.send_bytes(msgspec.msgpack.encode(answer))
    except (EOFError, OSError):
        return
    finally:
        if bench is not None:
            bench.close()


def main() -> NoReturn:
    """Serve the worker that started this process; never returns."""
    descriptor, parent = map(int, sys.argv[1:3])
    os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes no keywords
    asking = os.pidfd_open(parent) if os.getppid() == parent else -1
    if asking < 0:
        os._exit(_EXIT_ORPHANED)
    base = default_base()
    scratch.sweep(base)
    folder = scratch.create(base)
    channel = Connection(descriptor)

    def work(_: object) -> None:
        try:
            serve(channel, folder)
        except BaseException:
            traceback.print_exc()
            raise

    _, theirs = Pipe()
    guard(work, theirs, asking, [folder], beside=[channel])


if __name__ == "__main__":
    main()
