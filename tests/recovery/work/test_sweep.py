"""The sweep: every expired lease is recovered once, whoever sweeps,
and nobody who still holds one is touched.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from durable_agents import (
    SWEEP_CRASH_POINTS,
    CheckpointManager,
    LeaseManager,
    ManualClock,
    RecoverySweep,
    SweepStatistics,
    TaskManager,
    WorkStatus,
    open_store,
)
from durable_agents.errors import DatabaseLocked, InvalidSetting
from durable_agents.store.rows import Expiry
from durable_agents.store.sqlite.work import EXPIRED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TTL_S = 10.0


@pytest.fixture(name="clock")
def _clock() -> ManualClock:
    return ManualClock(1_000_000_000)


@pytest.fixture(name="leases")
def _leases(tmp_path: Path, clock: ManualClock) -> Iterator[LeaseManager]:
    with LeaseManager(db_path=tmp_path / "store.db", clock=clock) as leases:
        TaskManager(leases.store, clock=clock).create("t")
        yield leases


@pytest.fixture(name="sweep")
def _sweep(leases: LeaseManager, clock: ManualClock) -> RecoverySweep:
    return RecoverySweep(leases.store, clock=clock, batch=7)


def take(leases: LeaseManager, count: int, *, max_retries: int = 1) -> list[int]:
    """Enqueue and lease so many items; return their ids."""
    for _ in range(count):
        leases.enqueue("t", "work", max_retries=max_retries)
    return [lease.work_item_id for lease in leases.acquire_many("dead", limit=count, ttl_s=TTL_S)]


def test_expired_leases_go_back_to_pending(leases: LeaseManager, sweep: RecoverySweep, clock: ManualClock) -> None:
    """A hundred of a hundred, in batches, each with a boundary checkpoint and an audit row."""
    ids = take(leases, 100)
    assert sweep.run_once() == SweepStatistics()
    clock.advance(TTL_S)
    assert sweep.run_once() == SweepStatistics(expired_found=100, recovered=100)
    assert sweep.run_once() == SweepStatistics()
    assert {leases.get(number).status for number in ids} == {WorkStatus.PENDING}
    boundaries = CheckpointManager(leases.store).list("t")
    assert [found.snapshot["work_item_id"] for found in boundaries] == ids
    assert {found.type for found in boundaries} == {"error_boundary"}
    audits = TaskManager(leases.store).audits("t")
    assert sum(audit.event == "lease_expired" for audit in audits) == 100


def test_without_retries_left_an_item_fails(leases: LeaseManager, sweep: RecoverySweep, clock: ManualClock) -> None:
    """The error says who held it, until when, and the n-th of how many retries it was."""
    (number,) = take(leases, 1, max_retries=1)
    for expected in (SweepStatistics(1, 1, 0), SweepStatistics(1, 0, 1)):
        clock.advance(TTL_S)
        assert sweep.run_once() == expected
        leases.acquire("dead", ttl_s=TTL_S)
    item = leases.get(number)
    assert item.status is WorkStatus.FAILED
    assert "'dead'" in item.error
    assert "1/1" in item.error


def test_a_holder_that_renewed_or_completed_is_left_alone(
    leases: LeaseManager, sweep: RecoverySweep, clock: ManualClock
) -> None:
    """D5: what was expired when it was looked for, and is not any more, is not touched."""
    take(leases, 1)
    leases.enqueue("t", "other")
    renewed = leases.acquire("alive", ttl_s=TTL_S)
    assert renewed is not None
    clock.advance(TTL_S * 0.8)
    renewed = leases.renew(renewed)
    clock.advance(TTL_S * 0.2)
    assert sweep.run_once() == SweepStatistics(1, 1, 0)
    assert leases.get(renewed.work_item_id).lease_holder == "alive"
    leases.complete(renewed)
    clock.advance(TTL_S * 5)
    assert sweep.run_once() == SweepStatistics()
    assert leases.get(renewed.work_item_id).status is WorkStatus.COMPLETED


def test_a_stale_look_changes_nothing(leases: LeaseManager, clock: ManualClock) -> None:
    """D5, in the store itself: an item that was seen as expired and renewed since is
    not touched.
    """
    leases.enqueue("t", "work")
    lease = leases.acquire("alive", ttl_s=TTL_S)
    assert lease is not None
    stale = leases.get(lease.work_item_id)
    clock.advance(1)
    leases.renew(lease)
    with leases.store.transaction() as transaction:
        assert stale.lease_expires_at is not None
        look = Expiry(stale.work_item_id, stale.lease_token, stale.lease_expires_at, WorkStatus.PENDING, 1, "")
        assert transaction.expire_leases([look], now=clock.now()) == 0
    assert leases.get(lease.work_item_id).lease_holder == "alive"


_KILLED = """
import os, signal, sys
from durable_agents import ManualClock, RecoverySweep, open_store
path, point, now = sys.argv[1:]
passed = 0
def hook(event, arguments):
    global passed
    passed += event == point
    if event == point and passed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
RecoverySweep(open_store(path), clock=ManualClock(int(now)), batch=4).run_once()
"""


@pytest.mark.parametrize("point", SWEEP_CRASH_POINTS)
def test_a_sweep_that_is_killed_leaves_whole_batches(
    leases: LeaseManager, sweep: RecoverySweep, clock: ManualClock, tmp_path: Path, point: str
) -> None:
    """Killed in its second batch, it has done the first, or both;
    the next sweep does all that is left, once.
    """
    take(leases, 10)
    clock.advance(TTL_S)
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "store.db"), point, str(clock.now())]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    done = 8 if point == SWEEP_CRASH_POINTS[-1] else 4
    for expected in (done, 10):
        audits = [audit for audit in TaskManager(leases.store).audits("t") if audit.event == "lease_expired"]
        statuses = [leases.get(number).status for number in range(1, 11)]
        assert len(CheckpointManager(leases.store).list("t")) == len(audits) == expected
        assert statuses.count(WorkStatus.PENDING) == expected
        assert sweep.run_once().recovered == 10 - expected


def test_one_bad_item_stops_nobody_else(leases: LeaseManager, sweep: RecoverySweep, clock: ManualClock) -> None:
    """An item whose boundary cannot be written stays as it is and is named;
    all others are recovered.
    """
    TaskManager(leases.store).create("bad")
    ids = take(leases, 4)
    bad = leases.enqueue("bad", "work").work_item_id
    leases.acquire("dead", ttl_s=TTL_S)
    ids += take(leases, 4)
    with closing(sqlite3.connect(leases.store.path)) as connection:  # type: ignore[attr-defined]
        connection.execute("CREATE TRIGGER t BEFORE INSERT ON checkpoints WHEN new.task_id = 'bad' BEGIN "
                           "SELECT raise(ABORT, 'this task takes no checkpoints'); END")  # fmt: skip
    clock.advance(TTL_S)
    found = sweep.run_once()
    assert (found.expired_found, found.recovered, found.failed) == (9, 8, 0)
    (error,) = found.errors
    assert f"Work item {bad}" in error
    assert "takes no checkpoints" in error
    assert {leases.get(number).status for number in ids} == {WorkStatus.PENDING}
    assert leases.get(bad).status is WorkStatus.IN_PROGRESS


def test_a_locked_database_stops_a_sweep_with_what_it_did(tmp_path: Path, clock: ManualClock) -> None:
    """What would meet every item alike is raised, after the bound of the store,
    and nothing is changed.
    """
    with open_store(tmp_path / "store.db", busy_timeout_s=0.05) as store, open_store(tmp_path / "store.db") as hog:
        leases = LeaseManager(store, clock=clock)
        TaskManager(store).create("t")
        take(leases, 3)
        clock.advance(TTL_S)
        with hog.transaction(), pytest.raises(DatabaseLocked):
            RecoverySweep(store, clock=clock).run_once()
        assert RecoverySweep(store, clock=clock).run_once() == SweepStatistics(3, 3, 0)


def test_numbers_of_boundaries_are_contiguous_in_each_task(
    leases: LeaseManager, sweep: RecoverySweep, clock: ManualClock
) -> None:
    """Items of several tasks in one batch get the next numbers of their own task,
    and readable snapshots.
    """
    TaskManager(leases.store).create("u")
    checkpoints = CheckpointManager(leases.store)
    checkpoints.save("u", "mine")
    for number in range(12):
        leases.enqueue("tu"[number % 2], "work")
    leases.acquire_many("dead", limit=12, ttl_s=TTL_S)
    clock.advance(TTL_S)
    assert sweep.run_once().recovered == 12
    assert [found.sequence_number for found in checkpoints.list("t")] == list(range(1, 7))
    assert [found.sequence_number for found in checkpoints.list("u")] == list(range(1, 8))
    newest = checkpoints.latest("u")
    assert newest is not None
    assert newest.snapshot == {
        "work_item_id": 12,
        "lease_holder": "dead",
        "lease_token": 12,
        "lease_expires_at": clock.now(),
        "retries": 0,
        "status": "pending",
    }


def test_the_search_for_expired_leases_reads_no_others(leases: LeaseManager) -> None:
    """The plan is a search of the index of held items, in order:
    nothing grows with what has ended.
    """
    with closing(sqlite3.connect(leases.store.path)) as reader:  # type: ignore[attr-defined]
        plan = " ".join(row[3] for row in reader.execute("EXPLAIN QUERY PLAN " + EXPIRED, (1, 1, 1, 1)))
    assert plan == "SEARCH work_items USING INDEX work_items_leased (lease_expires_at>? AND lease_expires_at<?)"


_SWEEPER = """
import json, sys
from durable_agents import RecoverySweep, open_store
with open_store(sys.argv[1]) as store:
    sys.stdin.readline()
    found = RecoverySweep(store, batch=5).run_once()
print(json.dumps([found.expired_found, found.recovered, found.failed]))
"""


def test_four_sweeps_at_once_recover_each_lease_once(leases: LeaseManager, tmp_path: Path) -> None:
    """D6: four processes together report exactly what there was,
    and write as many boundary rows.
    """
    with LeaseManager(leases.store) as system:
        for _ in range(400):
            system.enqueue("t", "work")
        system.acquire_many("dead", limit=400, ttl_s=0.001)
    command = [sys.executable, "-c", _SWEEPER, str(tmp_path / "store.db")]
    sweepers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = [json.loads(sweeper.communicate("go\n", timeout=60)[0]) for sweeper in sweepers]
    assert [sum(column) for column in zip(*found, strict=True)] == [400, 400, 0]
    assert len(CheckpointManager(leases.store).list("t")) == 400


def test_the_declared_crash_points_are_those_that_are_passed(
    leases: LeaseManager, sweep: RecoverySweep, clock: ManualClock
) -> None:
    """A batch of one passes exactly the declared points, in order, and then an empty look."""
    take(leases, 1)
    clock.advance(TTL_S)
    passed: list[str] = []
    listening = True

    def hook(event: str, _: object) -> None:
        if listening and event.startswith("recovery.sweep."):
            passed.append(event)

    sys.addaudithook(hook)
    sweep.run_once()
    listening = False
    assert tuple(passed) == (*SWEEP_CRASH_POINTS, SWEEP_CRASH_POINTS[0])


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_a_batch_that_cannot_be_meant_is_refused(leases: LeaseManager, batch: int) -> None:
    """A sweep without bound would hold the write lock for as long as it likes."""
    with pytest.raises(InvalidSetting, match="batch"):
        RecoverySweep(leases.store, batch=batch)


@pytest.mark.parametrize("now", [float("nan"), float("inf"), 1.5, 2**70, True, "now"])
def test_what_is_no_moment_sweeps_nothing(leases: LeaseManager, sweep: RecoverySweep, now: int) -> None:
    """Infinity would be past every expiry, so a slip of the caller's must not take leases that are
    held.
    """
    (number,) = take(leases, 1)
    with pytest.raises(InvalidSetting, match="microseconds"):
        sweep.run_once(now)
    assert leases.get(number).status is WorkStatus.IN_PROGRESS
