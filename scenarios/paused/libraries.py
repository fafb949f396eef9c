"""Queues that nobody here wrote, for scenario 23: how a job is put, and how a worker does one.

``body`` is what a worker does for a job: it says that it has the job, and makes the effect. In
between it is stopped. ``source`` says where the promise stands. A library without a lease of its
own is used as its documents say: whoever starts, or looks after the queue, takes back what another
has held for too long; here at once, so nobody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import sqlite3
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

from scenarios.paused import postgres

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JOB = "job"
CLUSTER: Final = "cluster"
"""The folder of PostgreSQL, in the folder of the queue."""
DONE, NOTHING = "done", "nothing to do"
_ANSWER_S = 60.0


class Library(ABC):
    """A queue: ``effects_max`` effects of a job are promised at most, None if there is no bound.

    ``takes_over``: another worker gets the job of one that is stopped.
    """

    module: ClassVar[str]
    distribution: ClassVar[str]
    promise: ClassVar[str]
    source: ClassVar[str]
    effects_max: ClassVar[int | None] = None
    takes_over: ClassVar[bool] = True

    def missing(self) -> str:
        """Return what is not installed here, or nothing."""
        return "" if importlib.util.find_spec(self.module) else f"the Python package {self.distribution}"

    def server(self, directory: Path) -> list[str]:
        """Return the command of the server that must be there before the job is put, or nothing."""
        del directory
        return []

    @abstractmethod
    def put(self, directory: Path) -> None:
        """Put one job."""

    @abstractmethod
    def work(self, directory: Path, body: Callable[[], None]) -> str:
        """Take back what is overdue, and do a job, if there is one; return what came of it."""


class Litequeue(Library):
    """litequeue: a message is locked when it is popped, and `retry` frees it again."""

    module = distribution = "litequeue"
    promise = "A popped message is locked until done; one locked for too long may be freed by the application."
    source = "litequeue's documentation of list_locked and retry: the application is in charge"

    def put(self, directory: Path) -> None:
        """Put one message."""
        self._opened(directory).put(JOB)

    def work(self, directory: Path, body: Callable[[], None]) -> str:
        """Free what is locked for more than no time, pop, and say done."""
        queue = self._opened(directory)
        for each in list(queue.list_locked(0)):
            queue.retry(each.message_id)
        message = queue.pop()
        if message is None:
            return NOTHING
        body()
        queue.done(message.message_id)
        return DONE

    @staticmethod
    def _opened(directory: Path) -> Any:
        return importlib.import_module("litequeue").LiteQueue(str(directory / "queue.sqlite"))


class PersistQueue(Library):
    """persist-queue with acknowledgements: who opens the queue gets what was not acknowledged."""

    module, distribution = "persistqueue", "persist-queue"
    promise = "What was not acknowledged comes again when a queue is opened (auto_resume)."
    source = "persist-queue's README, Acknowledgment Queue; auto_resume is on by default"

    def put(self, directory: Path) -> None:
        """Put one item."""
        self._opened(directory).put(JOB)

    def work(self, directory: Path, body: Callable[[], None]) -> str:
        """Open the queue, which resumes, and acknowledge."""
        queue = self._opened(directory)
        try:
            found = queue.get(block=False, raw=True)
        except importlib.import_module("persistqueue").Empty:
            return NOTHING
        body()
        queue.ack(id=found["pqid"])
        return DONE

    @staticmethod
    def _opened(directory: Path) -> Any:
        return importlib.import_module("persistqueue").SQLiteAckQueue(str(directory), multithreading=True)


class HueyQueue(Library):
    """huey in SQLite: a task has left the queue when a worker has it, so no other one gets it."""

    module = distribution = "huey"
    promise = "A task is removed from the queue when a worker takes it: at most once."
    source = "the maintainer's answer in coleifer/huey, issue 733"
    effects_max = 1
    takes_over = False

    def put(self, directory: Path) -> None:
        """Enqueue one task."""
        queue, task = self._opened(directory, lambda: None)
        queue.enqueue(task.s())

    def work(self, directory: Path, body: Callable[[], None]) -> str:
        """Do as a worker of its consumer does: dequeue and execute."""
        queue, _ = self._opened(directory, body)
        task = queue.dequeue()
        if task is None:
            return NOTHING
        queue.execute(task)
        return DONE

    @staticmethod
    def _opened(directory: Path, body: Callable[[], None]) -> tuple[Any, Any]:
        queue = importlib.import_module("huey").SqliteHuey(filename=str(directory / "huey.sqlite"))

        def job() -> None:
            body()

        return queue, queue.task(name=JOB)(job)


class Dbos(Library):
    """DBOS in SQLite: who starts recovers the workflows of its executor that are pending."""

    module = distribution = "dbos"
    promise = "A step is done at least once; the outcome of a workflow is recorded exactly once."
    source = "docs.dbos.dev, Concurrent Executions"

    def put(self, directory: Path) -> None:
        """Leave it to the first worker: the executor that starts a workflow has it."""

    def work(self, directory: Path, body: Callable[[], None]) -> str:
        """Start the workflow, or wait for the one that is recovered."""
        dbos = importlib.import_module("dbos")
        os.environ["DBOS__APPVERSION"] = "1"  # else it is a digest of the code, and only its own is recovered
        at = f"sqlite:///{directory / 'dbos.sqlite'}"
        dbos.DBOS(config={"name": "paused", "system_database_url": at, "run_admin_server": False, "log_level": "ERROR"})

        @dbos.DBOS.step()  # type: ignore[untyped-decorator]
        def step() -> int:
            body()
            return os.getpid()

        @dbos.DBOS.workflow()  # type: ignore[untyped-decorator]
        def flow() -> int:
            return int(step())

        dbos.DBOS.launch()
        try:
            with dbos.SetWorkflowID(JOB):
                handle = dbos.DBOS.start_workflow(flow)
            return f"{DONE}: outcome of {'this' if handle.get_result() == os.getpid() else 'another'} process"
        finally:
            dbos.DBOS.destroy(workflow_completion_timeout_sec=0)


class Procrastinate(Library):
    """procrastinate in PostgreSQL: a task retries the jobs of workers without a heartbeat."""

    module = distribution = "procrastinate"
    promise = "A job of a worker whose heartbeat is too old may be retried; the job may then be done twice."
    source = "procrastinate.readthedocs.io, 'Retry stalled jobs'"

    def missing(self) -> str:
        """Look for the package, its driver and PostgreSQL."""
        missing = [super().missing(), "" if importlib.util.find_spec("psycopg") else "the Python package psycopg"]
        return ", ".join(filter(None, [*missing, "" if postgres.programs() else postgres.MISSING]))

    def server(self, directory: Path) -> list[str]:
        """Make a cluster, and return the command of its server."""
        return postgres.make_cluster(directory / CLUSTER)

    def put(self, directory: Path) -> None:
        """Make the tables, and defer one job."""

        async def defer(app: Any) -> None:
            await app.schema_manager.apply_schema_async()
            await app.configure_task(JOB).defer_async()

        self._in_app(directory, defer)

    def work(self, directory: Path, body: Callable[[], None]) -> str:
        """Retry what a worker without a heartbeat has, at once, and work until nothing is left."""
        done: list[str] = []

        async def turn(app: Any) -> None:
            @app.task(name=JOB)  # type: ignore[untyped-decorator]
            async def job() -> None:
                body()
                done.append(DONE)

            for each in await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=0):
                await app.job_manager.retry_job(each)
            await app.run_worker_async(wait=False, listen_notify=False, install_signal_handlers=False)

        self._in_app(directory, turn)
        return done[0] if done else NOTHING

    @staticmethod
    def _in_app(directory: Path, turn: Callable[[Any], Any]) -> None:
        procrastinate = importlib.import_module("procrastinate")

        async def run() -> None:
            with postgres.reached(directory / CLUSTER) as where:
                app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=where))
                async with app.open_async():
                    await turn(app)

        asyncio.run(run())


LIBRARIES: dict[str, Library] = {
    "litequeue": Litequeue(),
    "persist-queue": PersistQueue(),
    "huey": HueyQueue(),
    "dbos": Dbos(),
    "procrastinate": Procrastinate(),
}


def jobs_of_procrastinate(directory: Path) -> list[str]:
    """Return the states of its jobs, and how often each was begun."""
    psycopg = importlib.import_module("psycopg")
    with postgres.reached(directory / CLUSTER) as where, psycopg.connect(where) as connection:
        rows = connection.execute("SELECT status::text, attempts FROM procrastinate_jobs").fetchall()
        return [f"{status}, {attempts} attempts" for status, attempts in rows]


def outcomes_of_dbos(directory: Path) -> list[str]:
    """Return the recorded outcomes of the workflow."""
    with contextlib.closing(sqlite3.connect(directory / "dbos.sqlite")) as connection:
        rows = connection.execute("SELECT status FROM workflow_status WHERE workflow_uuid = ?", (JOB,))
        return [str(status) for (status,) in rows]
