"""Every operation on a database that cannot serve it:
a typed error within a bound, and everything as it was before.
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest
from durable_agents import (
    CheckpointManager,
    JobClaim,
    JobQueue,
    JobReaper,
    JobStatus,
    Lease,
    LeaseManager,
    ManualClock,
    Pipeline,
    RecoverySweep,
    SqliteStore,
    Stage,
    StageEngine,
    SweepStatistics,
    TaskManager,
    TaskStatus,
    open_store,
)
from durable_agents.errors import (
    CorruptDatabase,
    DatabaseFull,
    DatabaseLocked,
    InvalidDuration,
    LeaseLost,
    NewerSchema,
    UnknownWorkItem,
)
from durable_agents.store import ConnectionFactory, init_factory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIPELINE: Final = Pipeline((Stage(name="build", next="end"), Stage(name="end")))
TTL_S: Final = 10.0
_NOBODY: Final = 65534


class World:
    """A database with a task, an item that is held, one whose lease has run out, one that waits,
    and two jobs.
    """

    def __init__(self, store: SqliteStore) -> None:
        self.clock = ManualClock(1_000_000_000)
        self.store = store
        self.tasks = TaskManager(store, clock=self.clock)
        self.leases = LeaseManager(store, clock=self.clock)
        self.checkpoints = CheckpointManager(store, clock=self.clock)
        self.jobs = JobQueue(store, clock=self.clock)
        self.stages = StageEngine(store, pipeline=PIPELINE, gates={}, clock=self.clock)

    def fill(self) -> Lease:
        """Fill it, and return the lease that is held."""
        self.tasks.create("t", stage="build")
        for _ in range(3):
            self.leases.enqueue("t", "work")
        for _ in range(2):
            self.jobs.enqueue("builder", task_id="t")
        self.jobs.claim()
        self.checkpoints.save("t", "first")
        self.leases.acquire("dead", ttl_s=1.0)
        lease = self.leases.acquire("alive", ttl_s=TTL_S)
        assert lease is not None
        self.clock.advance(2)
        return lease


_OPERATIONS: Final[dict[str, Callable[[World, Lease], object]]] = {
    "create": lambda world, _: world.tasks.create("u"),
    "set_status": lambda world, _: world.tasks.set_status("t", TaskStatus.RUNNING, expected=TaskStatus.CREATED),
    "enqueue": lambda world, _: world.leases.enqueue("t", "work"),
    "acquire": lambda world, _: world.leases.acquire("other", ttl_s=TTL_S),
    "renew": lambda world, lease: world.leases.renew(lease),
    "complete": lambda world, lease: world.leases.complete(lease),
    "fail": lambda world, lease: world.leases.fail(lease, "it broke"),
    "release": lambda world, lease: world.leases.release(lease),
    "save": lambda world, lease: world.checkpoints.save("t", "second", lease=lease),
    "prune": lambda world, _: [world.checkpoints.prune("t", keep=1), world.tasks.create("v")],
    "sweep": lambda world, _: RecoverySweep(world.store, clock=world.clock).run_once(),
    "enqueue_job": lambda world, _: world.jobs.enqueue("builder"),
    "claim_job": lambda world, _: world.jobs.claim(),
    "started": lambda world, _: world.jobs.started(JobClaim(1, 1), os.getpid()),
    "record_exit": lambda world, _: world.jobs.record_exit(JobClaim(1, 1), 0),
    "reap_running_job": lambda world, _: world.jobs.reap_running_job(1, JobStatus.DONE),
    "advance_stage": lambda world, _: world.stages.advance_stage("t", "build", finished_agent=None),
    "look": lambda world, _: JobReaper(world.jobs, world.stages).run_once(),
}


def dump(path: Path) -> list[str]:
    """Return everything that a file has."""
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture(name="world", params=[False, True], ids=["plain", "queue"])
def _world(path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    with open_store(path, busy_timeout_s=0.05, queue_writers=request.param) as store:
        yield World(store)


@pytest.mark.parametrize("operation", _OPERATIONS)
def test_a_database_locked_for_long_is_waited_for_within_a_bound(world: World, path: Path, operation: str) -> None:
    """Another program writes and does not end: DatabaseLocked after the busy timeout;
    when it ends, all is well.
    """
    lease = world.fill()
    before = dump(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began_s = time.monotonic()
        with pytest.raises(DatabaseLocked, match=r"within 0\.05 s"):
            _OPERATIONS[operation](world, lease)
        assert time.monotonic() - began_s >= 0.05
        other.execute("ROLLBACK")
    assert dump(path) == before
    _OPERATIONS[operation](world, lease)
    assert dump(path) != before


class FullFactory(ConnectionFactory):
    """Makes connections for which the file may not grow."""

    __slots__ = ()

    def __call__(self) -> sqlite3.Connection:
        """Open a connection with a limit."""
        connection = ConnectionFactory.__call__(self)
        connection.execute("PRAGMA max_page_count = 1")  # which SQLite takes for as many as there are
        return connection


@pytest.mark.parametrize(
    "operation",
    [
        lambda world, lease: world.checkpoints.save("t", "x" * 100_000, lease=lease),
        lambda world, lease: world.leases.fail(lease, "x" * 100_000),
        lambda world, _: RecoverySweep(world.store, clock=world.clock).run_once(),
    ],
    ids=["save", "fail", "sweep"],
)
def test_a_full_disk_leaves_everything_as_it_was(path: Path, operation: Callable[[World, Lease], object]) -> None:
    """What needs room and finds none raises DatabaseFull;
    with room again, the same call succeeds.
    """
    with open_store(path) as store:
        world = World(store)
        lease = world.fill()
        for _ in range(200):
            world.leases.enqueue("t", "work")
        world.leases.acquire_many("x" * 200, limit=200, ttl_s=0.5)
        world.clock.advance(1)
    before = dump(path)
    with SqliteStore(FullFactory(**dataclasses.asdict(init_factory(path)))) as store:
        small = World(store)
        small.clock = world.clock
        small.leases = LeaseManager(store, clock=world.clock)
        small.checkpoints = CheckpointManager(store, clock=world.clock)
        with pytest.raises(DatabaseFull, match="Free some space"):
            operation(small, lease)
    assert dump(path) == before
    with open_store(path) as store:
        world.store, world.leases = store, LeaseManager(store, clock=world.clock)
        world.checkpoints = CheckpointManager(store, clock=world.clock)
        operation(world, lease)
    assert dump(path) != before


@pytest.mark.parametrize("operation", _OPERATIONS)
def test_a_corrupt_database_is_named_and_not_made_worse(path: Path, operation: str) -> None:
    """With the root of every table and index overwritten,
    an operation says so and writes nothing into the file.
    """
    with open_store(path) as store:
        world = World(store)
        lease = world.fill()
    damaged = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as connection:
        roots = connection.execute("SELECT rootpage FROM sqlite_schema WHERE rootpage > 1").fetchall()
    for (page,) in roots:
        damaged[(page - 1) * 4096 : page * 4096] = os.urandom(4096)
    path.write_bytes(damaged)
    with open_store(path) as store:
        broken = World(store)
        with pytest.raises(CorruptDatabase, match="Restore a copy"):
            _OPERATIONS[operation](broken, msgspec.structs.replace(lease, trusted_until=2**60))
    assert path.read_bytes() == damaged


def test_a_schema_that_became_newer_is_refused_by_whoever_opens_it(path: Path) -> None:
    """Managers that open the file by its path say so too, each of them, and leave it as it is."""
    with open_store(path) as store:
        World(store).fill()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    for kind in (TaskManager, LeaseManager, CheckpointManager):
        with pytest.raises(NewerSchema, match="Update this package"):
            kind(db_path=path)
    assert path.read_bytes() == before


_STRANGER: Final = """
import os, sys, urllib.parse  # as long as this user may read it
from durable_agents import CheckpointManager, LeaseManager, TaskManager
from durable_agents.errors import StoreError
if os.getuid() == 0:
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
for call in (
    lambda: LeaseManager(db_path=sys.argv[1]).acquire("h", ttl_s=1),
    lambda: CheckpointManager(db_path=sys.argv[1]).save("t", 1),
    lambda: TaskManager(db_path=sys.argv[1]).create("u"),
):
    try:
        call()
    except StoreError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("folder_mode", "error"), [(0o755, "DatabaseReadOnly"), (0o700, "DatabaseUnavailable")], ids=["read", "not even"]
)
def test_a_database_that_may_not_be_written_grants_nothing(folder_mode: int, error: str) -> None:
    """Whoever may only read it, or not even enter its folder, gets neither lease nor checkpoint,
    and a typed error.
    """
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders cannot be entered by another user
        folder, path = Path(name), Path(name, "store.db")
        with open_store(path) as store:
            World(store).fill()
        before = path.read_bytes()
        path.chmod(0o444)
        folder.chmod(folder_mode if os.getuid() == 0 else folder_mode & 0o077)
        command = [sys.executable, "-c", _STRANGER, str(path), str(_NOBODY)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        output = subprocess.check_output(command, timeout=60, text=True, env=environment)
        folder.chmod(0o755)
        assert output.split() == [error] * 3
        assert path.read_bytes() == before


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf"), -float("inf"), 1e300, 10**400, True, "10", None])
@pytest.mark.parametrize("call", ["acquire", "acquire_many", "renew"])
def test_no_length_that_is_none_reaches_the_database(world: World, path: Path, call: str, ttl_s: Any) -> None:
    """Wherever a length is given; a renewal's None alone means the length that the lease was
    granted with.
    """
    if call == "renew" and ttl_s is None:
        return
    lease = world.fill()
    before = dump(path)
    calls: dict[str, Callable[[], object]] = {
        "acquire": lambda: world.leases.acquire("h", ttl_s=ttl_s),
        "acquire_many": lambda: world.leases.acquire_many("h", limit=2, ttl_s=ttl_s),
        "renew": lambda: world.leases.renew(lease, ttl_s=ttl_s),
    }
    with pytest.raises(InvalidDuration, match="Give a length in seconds"):
        calls[call]()
    assert dump(path) == before


@pytest.mark.parametrize("call", ["renew", "complete", "release"])
def test_a_lease_on_an_item_that_does_not_exist_is_named(world: World, path: Path, call: str) -> None:
    """A lease that was kept while the database was replaced, say, is no lease here."""
    lease = msgspec.structs.replace(world.fill(), work_item_id=4711)
    before = dump(path)
    with pytest.raises(UnknownWorkItem, match="4711"):
        getattr(world.leases, call)(lease)
    assert dump(path) == before


def test_a_clock_that_jumps_back_neither_sweeps_early_nor_twice(world: World) -> None:
    """A sweep by a clock that was set back finds nothing to do, and by one that is right again,
    each lease once.
    """
    lease = world.fill()
    sweep = RecoverySweep(world.store, clock=world.clock)
    world.clock.jump(world.clock.now() - 3600 * 1_000_000)
    assert sweep.run_once() == SweepStatistics()
    world.clock.jump(world.clock.now() + 3600 * 1_000_000)
    assert sweep.run_once() == SweepStatistics(1, 1, 0)
    world.clock.jump(world.clock.now() - 3600 * 1_000_000)
    assert sweep.run_once() == SweepStatistics()
    world.leases.complete(lease)


def test_a_clock_that_jumps_forward_ends_leases_and_keeps_the_fence(world: World) -> None:
    """A holder whose lease was ended by a wall clock set ahead is told so,
    and the next holder alone can write.
    """
    lease = world.fill()
    world.clock.jump(world.clock.now() + 3600 * 1_000_000)
    assert RecoverySweep(world.store, clock=world.clock).run_once() == SweepStatistics(2, 2, 0)
    owner = next(
        found for found in world.leases.acquire_many("next", limit=3, ttl_s=TTL_S)
        if found.work_item_id == lease.work_item_id
    )  # fmt: skip
    world.clock.jump(world.clock.now() - 3600 * 1_000_000)
    for call in (world.leases.complete, world.leases.renew):
        with pytest.raises(LeaseLost, match="held by 'next'"):
            call(lease)
    world.leases.complete(owner)
