"""The sweep: every expired lease is recovered once, whoever sweeps, and nobody who still holds one is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from recovery import (
    SWEEP_CRASH_POINTS,
    CheckpointManager,
    LeaseManager,
    ManualClock,
    RecoverySweep,
    SweepStatistics,
    TaskManager,
    WorkStatus,
)
from recovery.errors import InvalidSetting

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
    """D5, in the store itself: an item that was seen as expired and renewed since is not touched."""
    leases.enqueue("t", "work")
    lease = leases.acquire("alive", ttl_s=TTL_S)
    assert lease is not None
    stale = leases.get(lease.work_item_id)
    clock.advance(1)
    leases.renew(lease)
    with leases.store.transaction() as transaction:
        assert not transaction.expire_lease(stale, status=WorkStatus.PENDING, retries=1, error="", now=clock.now())
    assert leases.get(lease.work_item_id).lease_holder == "alive"


def test_a_sweep_that_dies_leaves_whole_items(leases: LeaseManager, sweep: RecoverySweep, clock: ManualClock) -> None:
    """An exception in the middle of a batch undoes that batch; the next sweep does all that is left, once."""
    take(leases, 10)
    clock.advance(TTL_S)
    original, calls = sweep._expire, 0

    def dies(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    sweep._expire = dies  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        sweep.run_once()
    boundaries = len(CheckpointManager(leases.store).list("t"))
    assert boundaries == 7
    sweep._expire = original  # type: ignore[method-assign]
    assert sweep.run_once() == SweepStatistics(3, 3, 0)
    assert len(CheckpointManager(leases.store).list("t")) == 10


_SWEEPER = """
import json, sys
from recovery import RecoverySweep, open_store
with open_store(sys.argv[1]) as store:
    sys.stdin.readline()
    found = RecoverySweep(store, batch=5).run_once()
print(json.dumps([found.expired_found, found.recovered, found.failed]))
"""


def test_four_sweeps_at_once_recover_each_lease_once(leases: LeaseManager, tmp_path: Path) -> None:
    """D6: four processes together report exactly what there was, and write as many boundary rows."""
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
    assert tuple(passed[:4]) == SWEEP_CRASH_POINTS
    assert set(passed[4:]) <= {SWEEP_CRASH_POINTS[0], SWEEP_CRASH_POINTS[2], SWEEP_CRASH_POINTS[3]}


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_a_batch_that_cannot_be_meant_is_refused(leases: LeaseManager, batch: int) -> None:
    """A sweep without bound would hold the write lock for as long as it likes."""
    with pytest.raises(InvalidSetting, match="batch"):
        RecoverySweep(leases.store, batch=batch)
