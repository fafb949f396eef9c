"""The programs of scenarios 11 and 12: the receiver, the reconciler, and the workers that do jobs.

All of them work on the database of one folder, and tell the time by that folder's world
(``scenarios.webhooks.world``). Gates ask the world, and nothing else: continuous integration over
HTTP, the others for what an executor has left.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import uvicorn
from durable_agents import DEFAULT_PIPELINE, JobQueue, Monitor, Pipeline, StageEngine, open_store
from durable_agents.pipeline.handlers import branch_of
from durable_agents.pipeline.reconciler import ReconcilerSettings
from durable_agents.pipeline.tracker import HttpTracker
from durable_agents.webhooks.signatures import SignatureScheme, StandardWebhooks, gitea, github

from scenarios.jobs.job_agents import wait_for_start
from scenarios.webhooks.tracker import KEY, SECRET, TOKEN, Client
from scenarios.webhooks.world import World
from scenarios.work.agents import class_named, import_now, made

if TYPE_CHECKING:
    from durable_agents import SqliteStore
    from durable_agents.jobs.gates import Gate
    from durable_agents.pipeline.handlers import Handlers
    from durable_agents.pipeline.reconciler import Reconciler, Unblocked
    from durable_agents.store.rows import Job, Task
    from durable_agents.webhooks.inbox import Inbox
    from pytest_chaos import Marks

import_now("httpx", "httpcore", "durable_agents.pipeline.reconciler", "durable_agents.webhooks.receiver")
import_now("uvicorn.lifespan.on", "uvicorn.protocols.http.httptools_impl", "uvicorn.protocols.websockets.auto")
EXECUTOR: Final = ("/bin/sh", str(Path(__file__).with_name("pipeline_executor.sh")))
PUSH: Final = (sys.executable, "-I", "-S", str(Path(__file__).with_name("pipeline_push.py")))
PROJECT: Final = "core"
REPO: Final = "core/app"
FOLDER: Final = "SITE_FOLDER"
TRACKER: Final = "SITE_TRACKER"
"""The variables of the environment in which a process that takes no arguments from here is told
where to look.
"""

LOOK_S: Final = 0.002
CAREFUL_PIPELINE: Final = Pipeline(
    tuple(
        msgspec.structs.replace(stage, is_human_gated=stage.is_human_gated or stage.name == "deploy")
        for stage in DEFAULT_PIPELINE.stages
    )
)
"""The default one with a second human gate: what is deployed is done when a person says so,
and the gate is green.
"""

DEFAULT: Final = "durable_agents:DEFAULT_PIPELINE"
CAREFUL: Final = "scenarios.webhooks.webhook_agents:CAREFUL_PIPELINE"
GATE_IS_GREEN: Final = "scenarios.gate.is_green"
"""The audit event of a gate that has answered green, before anything is done about it."""

SCHEMES: Final[dict[str, SignatureScheme]] = {
    "tracker": StandardWebhooks(SECRET),
    "github": github(KEY),
    "gitea": gitea(KEY),
}


@dataclass
class Core:
    """A store with the parts that work on it.

    ``tracker`` is the port of the tracker and the forge.
    """

    world: World
    tracker: int
    store: SqliteStore
    queue: JobQueue
    engine: StageEngine
    handlers: Handlers

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.world.folder

    def source(self, task_id: str) -> tuple[str, str]:
        """Return repository and branch of a task."""
        found = self.store.source(task_id)
        assert found is not None
        return found.repo, found.branch


def make_gates(folder: Path, tracker: int) -> dict[str, Gate]:
    """Return the gates of the pipeline: continuous integration over HTTP,
    the others by what an executor has left.
    """

    def ci_green(task: Task) -> bool:
        is_green = Client(tracker).status(REPO, branch_of(str(task.tracker_key))) == "success"
        if is_green:
            sys.audit(GATE_IS_GREEN, task.task_id)
        return is_green

    def work_is_there(task: Task) -> bool:
        return (folder / f"{task.task_id}-{task.stage}").exists()

    names = {stage.gate for stage in DEFAULT_PIPELINE.stages if stage.gate}
    return {name: ci_green if name == "ci_green" else work_is_there for name in names}


def open_core(folder: str, parts: dict[str, str], tracker: int) -> Core:
    """Open the folder's database with the parts of the core that the run uses."""
    world = World(folder)
    store = open_store(str(world.folder / "recovery.db"))

    gates = make_gates(world.folder, tracker)
    pipeline: Pipeline = class_named(parts["pipeline"])
    engine: StageEngine = made(parts["stages"], store, pipeline=pipeline, gates=gates, clock=world.clock)
    queue: JobQueue = made(parts["jobs"], store, clock=world.clock)
    handlers: Handlers = made(parts["handlers"], engine, clock=world.clock)
    return Core(world, tracker, store, queue, engine, handlers)


def sha_of(branch: str) -> str:
    """Return the commit that an executor pushes to this branch."""
    return hashlib.sha1(branch.encode(), usedforsecurity=False).hexdigest()


def receive(
    marks: Marks,
    folder: str,
    parts: dict[str, str],
    tracker: int,
    port: int = 0,
    *,
    handles: bool = True,
    read_timeout_s: float = 5.0,
) -> None:
    """Receive deliveries, and handle them as soon as they are durable, until killed."""
    core = open_core(folder, parts, tracker)
    inbox: Inbox = made(parts["inbox"], core.store, core.handlers.decide_delivery, clock=core.world.clock)
    has_come = threading.Event()
    has_come.set()  # an earlier process may have left some
    if handles:
        threading.Thread(target=_handle, args=(marks, inbox, has_come), daemon=True).start()
    receiver = class_named(parts["receiver"])(
        inbox, SCHEMES, clock=core.world.clock, on_accepted=has_come.set, read_timeout_s=read_timeout_s
    )
    with socket.create_server(("127.0.0.1", port)) as listener:
        marks.note("receiving", value=listener.getsockname()[1])
        server = uvicorn.Server(uvicorn.Config(receiver, log_config=None, access_log=False))
        asyncio.run(server.serve(sockets=[listener]))


def _handle(marks: Marks, inbox: Inbox, has_come: threading.Event) -> None:
    while True:
        has_come.wait()
        has_come.clear()
        found = inbox.run_once()
        if found.handled or found.failed:
            marks.note("handled", value={"handled": found.handled, "failed": found.failed})


def handle(marks: Marks, folder: str, parts: dict[str, str], tracker: int) -> None:
    """Handle the accepted deliveries, once."""
    core = open_core(folder, parts, tracker)
    inbox: Inbox = made(parts["inbox"], core.store, core.handlers.decide_delivery, clock=core.world.clock)
    marks.ack("handled", value=inbox.run_once().handled)


class Commits:
    """Whether anybody has written to a database since the last question, and at the first one.

    A worker that asks for a job takes the write lock each time. This reads shared memory.
    """

    def __init__(self, database: Path) -> None:
        """Open a connection of its own."""
        self._connection = sqlite3.connect(database, isolation_level=None)
        self._version = -1

    def have_come(self) -> bool:
        """Tell whether there has been a commit: one of the caller's store is one, too."""
        before = self._version
        ((self._version,),) = self._connection.execute("PRAGMA data_version")
        return self._version != before


def work(marks: Marks, folder: str, parts: dict[str, str], tracker: int) -> None:
    """Do jobs until killed."""
    core = open_core(folder, parts, tracker)

    def command(job: Job) -> list[str]:
        task = core.store.task(str(job.task_id))
        assert task is not None
        repo, branch = core.source(task.task_id)
        push = [*PUSH, str(tracker), repo, branch, sha_of(branch)] if task.stage == "development" else []
        return [*EXECUTOR, folder, task.task_id, task.stage, *push]

    monitor: Monitor = made(parts["monitor"], core.queue, core.engine, command)
    commits = Commits(core.folder / "recovery.db")
    marks.note("working")
    while True:
        ended = monitor.run_once() if commits.have_come() else None
        if ended is None:
            time.sleep(LOOK_S)  # sleeps because a worker without work does; the run bounds it
        else:
            marks.note("worked", ended.job_id, value={"is_lost": ended.is_lost, "exit_code": ended.exit_code})


def reconcile(
    marks: Marks, folder: str, parts: dict[str, str], tracker: int, settings: dict[str, Any], gate: str = ""
) -> None:
    """Do a round in each interval of the world's clock, until killed; mark each round."""
    core = open_core(folder, parts, tracker)
    found = ReconcilerSettings(**settings)
    asks = HttpTracker(f"http://127.0.0.1:{tracker}", token=TOKEN, timeout_s=15.0, clock=core.world.clock)
    told = core.folder / "told"

    def tell(unblocked: Unblocked) -> None:
        with told.open("a", encoding="utf-8") as file:
            file.write(f"{unblocked.tracker_key} {unblocked.stage}\n")

    reconciler: Reconciler = class_named(parts["reconciler"])(
        core.handlers, tracker=asks, projects=[PROJECT], settings=found, notifier=tell, clock=core.world.clock
    )
    wait_for_start(marks, gate)
    due = 0
    while True:
        now = core.world.clock.now()
        if now < due:
            time.sleep(LOOK_S)  # sleeps because a reconciler does, between two looks; the run bounds it
            continue
        due = now + round(found.reconcile_interval_s * 1_000_000)
        done = reconciler.run_once()
        shown = {"at": now, "unblocked_total": reconciler.unblocked_total}
        marks.note("tick", value=shown | {name: value for name, value in msgspec.structs.asdict(done).items() if value})
