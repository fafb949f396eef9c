"""The programs of the scenarios about jobs: monitors, reapers, webhooks and ghosts.

Each writes its results as marks.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from durable_agents import JobQueue, JobReaper, Monitor, Pipeline, ReaperSettings, Stage, StageEngine, open_store
from durable_agents.jobs.gates import TIMEOUT_S
from durable_agents.processes import start_of

from scenarios.work.agents import class_named, import_now, made

if TYPE_CHECKING:
    from durable_agents import Alert, SqliteStore
    from durable_agents.store.rows import Task
    from pytest_chaos import Marks

import_now()
PIPELINE: Final = Pipeline(
    (
        Stage(name="build", next="check", gate="built", starts="builder", leavers=("builder",)),
        Stage(name="check", next="end", gate="checked", starts="checker", leavers=("checker",)),
        Stage(name="end"),
    )
)
EXECUTOR: Final = str(Path(__file__).with_name("executor.py"))
LOOK_S: Final = 0.002


@dataclass
class Core:
    """A store with its queue, its engine and its alerts.

    The gate ``built`` is red while there is a file ``red``. It hangs for a task while there is a
    file ``hang-`` and the task's id.
    """

    store: SqliteStore
    queue: JobQueue
    engine: StageEngine
    folder: Path
    told: list[str]

    def tell(self, alert: Alert) -> None:
        """Record an alert."""
        self.told.append(alert.key)
        with (self.folder / "alerts").open("a", encoding="utf-8") as file:
            file.write(f"{alert.key}\n")

    def reaper(self, kind: str, name: str, settings: dict[str, Any]) -> JobReaper:
        """Return a reaper with these settings."""
        found = ReaperSettings(**settings)
        reaper: JobReaper = class_named(kind)(self.queue, self.engine, settings=found, notifier=self.tell, name=name)
        return reaper


def open_core(database: str, parts: dict[str, str], *, gate_timeout_s: float = TIMEOUT_S) -> Core:
    """Open the database with the parts of the core that the run uses."""
    store = open_store(database)
    folder = Path(database).parent

    def built(task: Task) -> bool:
        assert task.stage == "build"
        while (folder / f"hang-{task.task_id}").exists():
            time.sleep(LOOK_S)  # sleeps because to hang is the fault; whoever asks the gate bounds it
        return not (folder / "red").exists()

    gates = {"built": built, "checked": lambda _: True}
    queue: JobQueue = made(parts["jobs"], store)
    bounds = {"max_attempts": 2, "gate_timeout_s": gate_timeout_s}
    engine: StageEngine = made(parts["stages"], store, pipeline=PIPELINE, gates=gates, **bounds)
    return Core(store, queue, engine, folder, [])


def wait_for_start(marks: Marks, gate: str) -> None:
    """Wait until the file ``gate`` exists, so that all agents begin at once."""
    marks.note("ready")
    while gate and not Path(gate).exists():
        time.sleep(0.0005)  # sleeps because it waits for the gate; the run bounds it


def monitor(marks: Marks, database: str, parts: dict[str, str], conducts: list[str], jobs: int) -> None:
    """Run builders' jobs until the first ``jobs`` ids have ended; mark the end of each claim."""
    core = open_core(database, parts)

    def finalise(job: Any, exit_code: int) -> None:
        marks.note("finalised", job.job_id, value=exit_code)

    command = [sys.executable, "-I", "-S", EXECUTOR, str(core.folder), *conducts]
    found: Monitor = made(
        parts["monitor"], core.queue, core.engine, lambda _: command, finalizers=[finalise], agents=["builder"]
    )
    while not have_ended(core, jobs):
        marks.intent("job")
        ended = found.run_once()
        if ended is None:
            time.sleep(LOOK_S)  # sleeps because a monitor without work does; the run bounds it
        else:
            marks.ack("job", ended.job_id, value={"is_lost": ended.is_lost, "exit_code": ended.exit_code})
    marks.ack("monitored")


def reaper(
    marks: Marks, database: str, parts: dict[str, str], name: str, settings: dict[str, Any], ticks: int, gate: str = ""
) -> None:
    """Tick ``ticks`` times, or until all jobs have ended; mark the result of each tick."""
    core = open_core(database, parts)
    found = core.reaper(parts["reaper"], name, settings)
    wait_for_start(marks, gate)
    number = 0
    while number < ticks if ticks else not is_quiet(core):
        tick = found.run_once()
        number += 1
        if tick.queued or tick.done or tick.failed or tick.errors or tick.advanced:
            marks.note("tick", number, value=msgspec.structs.asdict(tick))
        if not ticks:
            time.sleep(LOOK_S)  # sleeps because a reaper does, between two looks; the run bounds it
    marks.ack("reaped", name, value={"reaped_total": found.reaped_total, "ticks": number, "told": core.told})


def start_up(marks: Marks, database: str, parts: dict[str, str], name: str, gate: str = "") -> None:
    """Requeue the jobs that an earlier process left, once; mark their number."""
    core = open_core(database, parts)
    found = core.reaper(parts["reaper"], name, {})
    wait_for_start(marks, gate)
    marks.intent("requeue", name)
    marks.ack("reaped", name, value={"reaped_total": found.requeue_running_jobs(), "ticks": 0, "told": []})


def webhook(marks: Marks, database: str, parts: dict[str, str], task_id: str) -> None:
    """Advance the task from build once, as a webhook does; mark whether this call moved it."""
    core = open_core(database, parts)
    marks.intent("advance", task_id)
    advance = core.engine.advance_stage(task_id, "build", finished_agent=None)
    marks.ack("advance", task_id, value=advance.result)


def poll(
    marks: Marks,
    database: str,
    parts: dict[str, str],
    task_ids: list[str],
    looks: int,
    gate_timeout_s: float = TIMEOUT_S,
) -> None:
    """Ask for an advance of each task, and tick as a reaper; mark how often a task moved."""
    core = open_core(database, parts, gate_timeout_s=gate_timeout_s)
    found = core.reaper(parts["reaper"], "reaper", {"reaper_finalize_grace_s": 3600.0})
    marks.note("ready")
    moved = 0
    for _ in range(looks):
        for task_id in task_ids:
            moved += core.engine.advance_stage(task_id, "build", finished_agent=None).is_moved
        found.run_once()
    marks.ack("polled", value={"moved": moved, "told": core.told, "looks": looks})


def haunt(marks: Marks, folder: str) -> None:
    """Have a zombie as a child, mark both pids, and stay until the file ``go`` is there."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    me = os.getpid()
    marks.ack("haunting", value={"zombie": child, "zombie_start": start_of(child), "me": me, "my_start": start_of(me)})
    while not Path(folder, "go").exists():
        time.sleep(LOOK_S)  # sleeps because it waits to be let go; the run bounds it
    os.waitpid(child, 0)


def have_ended(core: Core, jobs: int) -> bool:
    """Tell whether the jobs with the first ids have all ended for good."""
    return all(core.queue.get(number).status in {"done", "failed"} for number in range(1, jobs + 1))


def is_quiet(core: Core) -> bool:
    """Tell whether no job runs or waits for a builder, and the outbox is empty."""
    statement = (
        "SELECT (SELECT count(*) FROM jobs WHERE status = 'running' OR (status = 'queued' AND agent = 'builder')) "
        "+ (SELECT count(*) FROM outbox)"
    )
    with core.store.transaction() as transaction:
        (count,) = transaction.execute(statement, ()).fetchone()
    return bool(count == 0)
