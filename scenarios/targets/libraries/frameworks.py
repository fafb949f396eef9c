"""Frameworks that keep jobs, checkpoints and workflows in SQLite."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from scenarios.targets.foreign.base import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FAR: Final = datetime.datetime(2126, 1, 1, tzinfo=datetime.UTC)


class ApScheduler(Store):
    """APScheduler 3 with its job store in SQLite, by SQLAlchemy."""

    name = "APScheduler, SQLAlchemyJobStore"
    promise = "Jobs in a database survive restarts; a job store is for one scheduler only."
    source = "apscheduler.readthedocs.io, user guide, 'Choosing the right ... job store(s)', and FAQ"
    modules = ("apscheduler", "sqlalchemy")

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Start a scheduler that runs no job."""
        from apscheduler.schedulers.background import BackgroundScheduler

        scheduler = BackgroundScheduler(timezone=datetime.UTC)
        scheduler.add_jobstore("sqlalchemy", url=f"sqlite:///{directory / 'jobs.db'}")
        scheduler.start(paused=True)
        try:
            yield scheduler
        finally:
            scheduler.shutdown()

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Add a job."""
        store.add_job(job, "date", run_date=FAR, id=str(key), args=[value])

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read all jobs. A job that cannot be read is removed by the library, and is lost."""
        return [(int(each.id), each.args[0]) for each in store.get_jobs()]


class LangGraphSaver(Store):
    """langgraph-checkpoint-sqlite's SqliteSaver."""

    name = "langgraph-checkpoint-sqlite, SqliteSaver"
    promise = "A checkpoint that was put is in SQLite (WAL, and SQLite's default: synchronous=FULL); for one thread."
    source = "reference.langchain.com, SqliteSaver, and its docstring"
    modules = ("langgraph.checkpoint.sqlite",)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Open the saver."""
        from langgraph.checkpoint.sqlite import SqliteSaver

        with SqliteSaver.from_conn_string(str(directory / "checkpoints.db")) as saver:
            saver.setup()
            yield saver

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Put the checkpoint of a thread."""
        checkpoint = {"v": 4, "id": f"{key:032d}", "ts": FAR.isoformat(), "channel_values": {"value": value}}
        checkpoint |= {"channel_versions": {"value": 1}, "versions_seen": {}}
        where = {"configurable": {"thread_id": str(key), "checkpoint_ns": ""}}
        store.put(where, checkpoint, {"source": "loop", "step": 1}, {"value": 1})

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Read all checkpoints."""
        return [
            (int(each.config["configurable"]["thread_id"]), each.checkpoint["channel_values"]["value"])
            for each in store.list(None)
        ]


class Dbos(Store):
    """DBOS with its system database in SQLite: a workflow, whose outcome is recorded."""

    name = "DBOS, SQLite"
    promise = "A workflow that has ended is recorded, and is not executed again; an interrupted one is recovered."
    source = "docs.dbos.dev, 'Workflows', reliability guarantees"
    modules = ("dbos",)
    keys = 2

    @contextmanager
    def opened(self, directory: Path) -> Iterator[Any]:
        """Launch it, which migrates the database and recovers what was interrupted."""
        dbos = importlib.import_module("dbos")
        os.environ["DBOS__APPVERSION"] = "1"  # else it is a digest of the code
        at = f"sqlite:///{directory / 'dbos.sqlite'}"
        config = {"name": "rows", "system_database_url": at, "run_admin_server": False, "log_level": "CRITICAL"}
        dbos.DBOS(config=config)

        @dbos.DBOS.workflow()  # type: ignore[untyped-decorator]
        def flow(value: bytes) -> bytes:
            return value

        dbos.DBOS.launch()
        try:
            yield flow
        finally:
            dbos.DBOS.destroy(workflow_completion_timeout_sec=0)

    def recover(self, directory: Path) -> None:
        """Leave the state as it is: a launch takes a second, and ``DbosLaunched`` does it."""

    def put(self, store: Any, key: int, value: bytes) -> None:
        """Run a workflow to its end."""
        with importlib.import_module("dbos").SetWorkflowID(str(key)):
            store(value)

    def items(self, store: Any) -> Iterable[tuple[int, bytes]]:
        """Ask nobody; see ``found``."""
        raise NotImplementedError

    def found(self, directory: Path) -> Iterable[int]:
        """Read the workflows that have ended, without a launch: that takes a second."""
        with contextlib.closing(sqlite3.connect(directory / "dbos.sqlite")) as database:
            (said,) = database.execute("PRAGMA integrity_check").fetchone()
            if said != "ok":
                raise ValueError(said)
            rows = database.execute("SELECT workflow_uuid FROM workflow_status WHERE status = 'SUCCESS'")
            return [int(key) for (key,) in rows]


class DbosLaunched(Dbos):
    """DBOS that is launched on each state, which recovers what was interrupted."""

    name = "DBOS, SQLite, launched again"

    def recover(self, directory: Path) -> None:
        """Launch it. What it cannot read is for the check to say."""
        Store.recover(self, directory)


def job(value: bytes) -> None:
    """Do nothing: no job is run here."""
    del value
