"""What questions share: a folder of its own with a store and a clock, and how a call is refused."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from unittest import mock

from durable_agents import JobClaim, JobQueue, Pipeline, Roots, Stage, StageEngine, StateStore, open_store
from durable_agents.errors import RecoveryError

from scenarios.judging import BEGINNING, ScriptClock
from scenarios.model.states import SECOND, Moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


Questions: TypeAlias = "dict[str, tuple[Callable[[World], Any], Any]]"
"""By room and name: the question, and its one answer."""

WAIT_S: Final = 0.1
YEAR_S: Final = 365 * 24 * 3600
TTL_S: Final = 10.0
GONE: Final = (2**22 + 1, "00000000-0000-0000-0000-000000000000:1")
"""A process that there never was: its number is larger than any."""


class World:
    """A folder of its own, a clock, and a store that is opened at the first use."""

    def __init__(self, folder: Path) -> None:
        """Begin in an empty folder."""
        self.folder, self.clock = folder, ScriptClock()
        self.clock.moment = Moment(BEGINNING, 0)
        self.open = contextlib.ExitStack()
        self._store: Any = None
        folder.mkdir()

    @property
    def store(self) -> Any:
        """The store."""
        if self._store is None:
            self._store = self.open.enter_context(open_store(self.folder / "recovery.db"))
        return self._store

    def later(self, duration_s: float, *, but_us: int = 0) -> None:
        """Let time pass."""
        step = round(duration_s * SECOND) - but_us
        self.clock.moment = Moment(self.clock.moment.now + step, self.clock.moment.monotonic + step)

    def engine(self, **stage: Any) -> StageEngine:
        """Return an engine with two human gates and a stage that builds."""
        stages = (
            Stage(name="plan", next="design", is_human_gated=True),
            Stage(name="design", next="build", is_human_gated=True),
            Stage(name="build", next="end", gate="open", leavers=("builder",), **stage),
            Stage(name="end"),
        )
        return StageEngine(self.store, pipeline=Pipeline(stages), gates={"open": lambda _: True}, clock=self.clock)

    @contextlib.contextmanager
    def counted(self) -> Iterator[list[int]]:
        """Count the transactions that are begun."""
        count, begin = [0], type(self.store).transaction

        def transaction(store: Any, *arguments: Any) -> Any:
            count[0] += 1
            return begin(store, *arguments)

        with mock.patch.object(type(self.store), "transaction", transaction):
            yield count


def rooted(world: World) -> tuple[Roots, StateStore]:
    """Return the folders of an agent's own state, made, and its state store."""
    roots = Roots(str(world.folder))
    roots.make()
    return roots, world.open.enter_context(StateStore(db_path=roots.database))


def left_job(
    world: World,
    queue: JobQueue,
    *,
    task_id: str | None = None,
    executor: tuple[int | None, str | None] = (None, None),
    exit_code: int | None = None,
) -> int:
    """Leave a job that runs, whose monitor is gone; return its number."""
    queue.enqueue("builder", task_id=task_id)
    job = queue.claim()
    assert job is not None
    if exit_code is not None:
        queue.record_exit(JobClaim(job.job_id, job.claim), exit_code)
    with world.store.transaction() as transaction:
        transaction.execute(
            "UPDATE jobs SET pid = ?, process_start = ?, monitor_pid = NULL, monitor_start = NULL WHERE job_id = ?",
            (*executor, job.job_id),
        )
    return job.job_id


@contextlib.contextmanager
def during(point: str, do: Callable[[], object]) -> Iterator[None]:
    """Do something at a named point, the first time that it is passed."""
    is_on = True

    def hook(event: str, _: tuple[object, ...]) -> None:
        nonlocal is_on
        if is_on and event == point:
            is_on = False
            do()

    sys.addaudithook(hook)
    try:
        yield
    finally:
        is_on = False


def open_in(folder: Path) -> int:
    """Return how many descriptors of this process are open on files of a folder."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the look itself
            found += descriptor.readlink().is_relative_to(folder.resolve())
    return found


def refused(call: Callable[[], object]) -> str:
    """Return the name of the error that a call raises, or nothing."""
    try:
        call()
    except RecoveryError as error:
        return type(error).__name__
    return ""


def settings(kind: Callable[..., object], name: str, *values: float) -> list[str]:
    """Return how each value of a setting is answered."""
    return [refused(lambda value=value: kind(**{name: value})) for value in values]  # type: ignore[misc]


def unlocked(lock: Any, **calls: Callable[[], object]) -> list[str]:
    """Return which calls come to their end while another thread is where only one may be.

    Calls that wait, wait a tenth of a second, all of them at once.
    """
    with lock:
        threads = {name: threading.Thread(target=refused, args=[call], name=name) for name, call in calls.items()}
        for thread in threads.values():
            thread.start()
        deadline = time.monotonic() + WAIT_S
        for thread in threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        ended = [name for name, thread in threads.items() if not thread.is_alive()]
    for thread in threads.values():
        thread.join()
    return ended
