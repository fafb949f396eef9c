"""The questions about named points: what has happened before each of them, and what has not.

A sweep of points, and a person who reads an evidence pack, take the name of a point for where an
agent stood: after the commit, before the file. So at each point that a call passes, what another
process sees by then is compared with what the name says.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import sys
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from durable_agents import Artifacts, Buffers, JobQueue, JobReaper, ReaperSettings, SyncQueue, TaskManager
from durable_agents.state import buffers as buffer_files
from durable_agents.state.buffers import BufferOwner
from durable_agents.state.sync_queue import SYNC_QUEUE_FILE, SYNC_QUEUE_KEY
from durable_agents.store.rows import JobStatus, StoredDelivery
from durable_agents.webhooks.inbox import Inbox

from scenarios.judging import BEGINNING
from scenarios.questions.leases import Points
from scenarios.questions.world import GONE, Questions, World, left_job, refused, rooted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def at_points(
    subject: str, do: Callable[[], object], look: Callable[[], object], also: Sequence[str] = ()
) -> list[str]:
    """Return the points of a subject that a call passes, each with what is seen there.

    ``also`` names other audit events, such as ``os.rename``.
    """
    seen: list[str] = []
    is_on = True

    def hook(event: str, _: tuple[object, ...]) -> None:
        nonlocal is_on
        if is_on and (event.startswith(f"recovery.{subject}.") or event in also):
            is_on = False  # what is looked at has points of its own
            seen.append(f"{event.removeprefix(f'recovery.{subject}.')}: {look()}")
            is_on = True

    sys.addaudithook(hook)
    try:
        do()
    finally:
        is_on = False
    return seen


def values(database: Path, *queries: str) -> str:
    """Return the single values of queries, as another process reads them."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return " ".join(str(connection.execute(query).fetchone()[0]) for query in queries)


TICKS = "SELECT coalesce(max(ticks), 0) FROM job_dead_ticks"
STATUSES = "SELECT group_concat(status) FROM (SELECT status FROM jobs ORDER BY job_id)"
STAGE = "SELECT stage FROM tasks"
JOBS = "SELECT count(*) FROM jobs"
OUTBOX = "SELECT count(*) FROM outbox"


def points_of_a_look(world: World) -> list[str]:
    """Return what is seen at the points of a reaper: one is dead, one is too slow."""
    engine, queue = world.engine(), JobQueue(world.store, clock=world.clock)
    TaskManager(world.store, clock=world.clock).create("t", stage="build")
    left_job(world, queue, task_id="t", executor=GONE)
    world.later(10)
    left_job(world, queue, task_id="t", executor=GONE)
    settings = ReaperSettings(reaper_max_running_s=9.0)
    reaper = JobReaper(queue, engine, settings=settings)
    database = world.folder / "recovery.db"

    def look() -> str:
        fenced = values(database, "SELECT count(*) FROM jobs WHERE claim > 1")
        return f"{values(database, TICKS, STATUSES)} {fenced} {reaper.reaped_total} {len(reaper.errors)}"

    return at_points("reaper", reaper.run_once, look)


def points_of_an_advance(world: World) -> list[Any]:
    """Return what is seen at the points of an advance: by a webhook, and by the outbox."""
    engine, queue = world.engine(), JobQueue(world.store, clock=world.clock)
    tasks, database = TaskManager(world.store, clock=world.clock), world.folder / "recovery.db"
    tasks.create("t", stage="build")

    def look() -> str:
        return values(database, STAGE, OUTBOX)

    job = left_job(world, queue, task_id="t", executor=GONE, exit_code=0)
    with mock.patch.object(engine, "deliver", return_value=0):
        reaper = JobReaper(queue, engine, settings=ReaperSettings(reaper_finalize_grace_s=0.0))
        reaper.run_once()
    assert queue.get(job).status is JobStatus.DONE
    found = [at_points("stage", engine.deliver, look)]
    with world.store.transaction() as transaction:
        transaction.execute("UPDATE tasks SET stage = 'build'", ())
    return [*found, at_points("stage", lambda: engine.advance_stage("t", "build", finished_agent=None), look)]


def points_of_the_inbox(world: World) -> list[Any]:
    """Return what is seen at the points of an inbox: of two deliveries, and of handling one."""
    inbox = Inbox(world.store, clock=world.clock)
    row = StoredDelivery(0, "forge", "1", "id", "push", "{}", received_at=BEGINNING)

    def look() -> str:
        query = "SELECT coalesce(group_concat(status), 'none') FROM webhook_inbox"
        return values(world.folder / "recovery.db", query)

    return [at_points("inbox", lambda: inbox.accept([row]), look), at_points("inbox", inbox.run_once, look)]


def points_of_a_cycle(world: World) -> list[Any]:
    """Return what is seen at the points of a cycle: entries in its file, and in the history."""
    roots, state = rooted(world)
    buffers = Buffers(roots, state, clock=world.clock)
    assert state.store is not None

    def look() -> str:
        files = sorted(roots.buffers.glob("*.buffer"))
        there = values(files[0], "SELECT count(*) FROM entries") if files else "no file"
        return ", ".join((there, values(roots.database, "SELECT count(*) FROM cycle_entries")))

    def do() -> None:
        buffer = buffers.begin("cycle")
        buffer.put("k", 1)
        buffer.commit()

    return at_points("cycle", do, look)


def points_of_orphans(world: World) -> list[Any]:
    """Return what is seen at the points of a recovery: one orphan, and one that is unreadable."""
    roots, state = rooted(world)
    buffers = Buffers(roots, state, clock=world.clock)
    for name, content in (("orphan", b""), ("damaged", b"nothing of SQLite's")):
        stem = BufferOwner(name, "0" * 16 + "-" + "a" * 12, *GONE).stem
        for suffix in ("", "-wal"):
            (roots.buffers / f"{stem}.buffer{suffix}").write_bytes(content)

    def look() -> str:
        here = [path.name[0] + path.suffix[7:] for path in sorted(roots.buffers.glob("*.buffer*"))]
        aside = sorted(path.name[0] + path.suffix[7:] for path in roots.buffers.glob("quarantine/*"))
        return f"{' '.join(here)} / {' '.join(aside)} / {logger.warning.call_count}"

    with mock.patch.object(buffer_files, "_log") as logger:
        return at_points("orphans", buffers.recover_orphans, look)


def points_of_a_push(world: World) -> list[Any]:
    """Return what is seen at the points of the sync queue: entries in its file, and in its row."""
    roots, state = rooted(world)
    pushed: list[str] = []
    queue = SyncQueue(roots, state, lambda entry: pushed.append(entry.key), clock=world.clock)
    file = roots.state / SYNC_QUEUE_FILE

    def look() -> str:
        in_file = json.loads(file.read_bytes())["entries"] if file.exists() else []
        entry = state.store.state("sync_queue", SYNC_QUEUE_KEY) if state.store else None
        in_row = [] if entry is None else json.loads(entry.value)["entries"]
        return f"{len(in_file)} {len(in_row)} {len(pushed)}"

    return [
        at_points("sync", lambda: queue.enqueue("agent", [{}], key="k"), look),
        at_points("sync", queue.run_once, look),
    ]


def points_of_a_write(world: World) -> list[str]:
    """Return what is seen at the points of a write: both files, and what is flushed."""
    artifacts, flushed, flush = Artifacts(world.folder), list[str](), os.fsync

    def fsync(file: int) -> None:
        flushed.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        flush(file)

    def look() -> str:
        sizes = [path.stat().st_size for path in world.folder.rglob(".unfinished-*")]
        target = world.folder / "a/b"
        return f"{sizes} {target.exists() and target.read_text()} {' '.join(flushed)}"

    artifacts.write("a/b", b"old")
    flushed.clear()
    with mock.patch("os.fsync", fsync):
        found = at_points("artifact", lambda: artifacts.write("a/b", b"newer"), look, also=["os.rename"])
    return [*found, *at_points("artifact", lambda: refused(lambda: artifacts.write("a", b"")), look)]


def among_statements(world: World) -> list[Any]:
    """Return in which order an advance, and a commit of a cycle, come to points and statements."""
    engine, tasks = world.engine(starts="builder"), TaskManager(world.store, clock=world.clock)
    tasks.create("t", stage="design")
    found = [Points(world.store).of(lambda: engine.approve("t", "design", by="a human"))]
    roots, state = rooted(world)
    assert state.store is not None
    buffer = Buffers(roots, state, clock=world.clock).begin("cycle")
    buffer.put("k", 1)
    return [*found, Points(state.store).of(buffer.commit)]


QUESTIONS: Final[Questions] = {
    "jobs: points among statements": (
        among_statements,
        [
            [
                "SELECT",
                "before_advance",
                "BEGIN",
                "UPDATE",
                "INSERT",
                "after_move",
                "INSERT",
                "after_next_job",
                "COMMIT",
                "after_advance",
            ],
            ["before_commit", "BEGIN", "INSERT", "INSERT", "in_commit", "COMMIT", "after_commit", "after_remove"],
        ],
    ),
    "jobs: points of a look": (
        points_of_a_look,
        [
            "before_tick: 0 running,running 0 0 0",
            "after_look: 0 running,running 0 0 0",
            "after_count: 1 running,running 0 0 0",
            "after_fence: 1 running,running 1 0 0",
            "after_kill: 1 running,running 1 0 0",
            "before_claim: 1 running,running 1 0 0",
            "before_commit: 1 running,running 1 0 0",
            "after_claim: 1 queued,running 1 1 0",
            "after_tick: 1 queued,running 1 1 0",
        ],
    ),
    "jobs: points of an advance": (
        points_of_an_advance,
        [
            ["before_advance: build 1", "after_move: build 1", "after_next_job: build 1", "after_advance: end 0"],
            ["before_advance: build 0", "after_move: build 0", "after_next_job: build 0", "after_advance: end 0"],
        ],
    ),
    "webhooks: points of the inbox": (
        points_of_the_inbox,
        [
            ["before_accept: none", "after_insert: none", "after_accept: pending"],
            ["before_handle: pending", "after_decide: pending", "after_handle: pending", "after_commit: handled"],
        ],
    ),
    "state: points of a cycle": (
        points_of_a_cycle,
        [
            "before_begin: no file, 0",
            "after_begin: 0, 0",
            "before_put: 0, 0",
            "after_put: 1, 0",
            "before_commit: 1, 0",
            "in_commit: 1, 0",
            "after_commit: 1, 1",
            "after_remove: no file, 1",
        ],
    ),
    "state: points of orphans": (
        points_of_orphans,
        [
            "before_look: d d-wal o o-wal /  / 0",
            "before_quarantine: d d-wal o o-wal /  / 0",
            "after_quarantine_file: d-wal o o-wal / d / 0",
            "after_quarantine: o o-wal / d d-wal / 0",
            "before_discard: o o-wal / d d-wal / 1",
            "after_discard_file: o-wal / d d-wal / 1",
            "after_discard:  / d d-wal / 1",
        ],
    ),
    "state: points of a push": (
        points_of_a_push,
        [
            ["before_file: 0 0 0", "after_file: 1 0 0", "after_store: 1 1 0"],
            [
                "before_push: 1 1 0",
                "after_push: 1 1 1",
                "before_file: 1 1 1",
                "after_file: 0 1 1",
                "after_store: 0 0 1",
            ],
        ],
    ),
    "state: points of a write": (
        points_of_a_write,
        [
            "before_create: [] old ",
            "after_create: [0] old ",
            "after_write: [5] old ",
            "after_file_sync: [5] old file",
            "os.rename: [5] old file",
            "after_rename: [] newer file",
            "after_folder_sync: [] newer file folder",
        ],
    ),
}
