"""Checkpoints, leases and the sweep against a plain model:
any order of operations, crashes between and inside them.

The store is the real one, on a file. Time is a clock that the machine moves, sets back, and skews
between a sweep and the holders. A crash is an exception out of a named crash point: before a COMMIT
the transaction is rolled back, after it everything is there, and in either case the worker has
forgotten what it held. Processes that run at once take turns between transactions: an intruder does
something of its own just before another's second transaction begins.

After every step each row is compared with the model. Each planted defect makes the same machine
fail.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import pytest
from durable_agents import CheckpointManager, LeaseManager, ManualClock, RecoverySweep, TaskManager, WorkStatus
from durable_agents.errors import AlreadyFinished, InvalidDuration, LeaseExpired, LeaseLost, RecoveryError
from durable_agents.store import init_factory
from durable_agents.work.crash_points import (
    ACQUIRE_CRASH_POINTS,
    CHECKPOINT_CRASH_POINTS,
    END_CRASH_POINTS,
    RENEW_CRASH_POINTS,
    SWEEP_CRASH_POINTS,
    WorkPoint,
)
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from tests.planted.once import idempotency, ledger
from tests.planted.work.leases import (
    CountsWhatItFinds,
    EndsByName,
    NeverExpires,
    RenewsExpired,
    Revives,
    SweepsById,
    Unfenced,
)
from tests.planted.work.store import AcknowledgesInherited
from tests.recovery.crashes import CrashError, Crashes, Intruding, bounded, new_folder, rarely, require_failure
from tests.recovery.once.key_machine import WORKERS
from tests.recovery.work.holder_machine import HolderMachine

if TYPE_CHECKING:
    from collections.abc import Callable

    from durable_agents import Lease, SweepStatistics

Result = TypeVar("Result")

TASKS = ("t", "u")
ITEMS_MAX = 12
AFTER_COMMIT = {
    ACQUIRE_CRASH_POINTS[-1],
    RENEW_CRASH_POINTS[-1],
    END_CRASH_POINTS[-1],
    WorkPoint.SWEEP_AFTER_BATCH,
    *CHECKPOINT_CRASH_POINTS[-2:],
}


@dataclasses.dataclass
class Item:
    """What the model knows of a work item."""

    number: int
    task_id: str
    priority: int
    max_retries: int
    status: WorkStatus = WorkStatus.PENDING
    retries: int = 0
    token: int = 0
    holder: str | None = None
    expires_at: int | None = None

    def end(self, status: WorkStatus) -> None:
        """End its lease."""
        self.status, self.holder, self.expires_at = status, None, None

    def give_back(self) -> None:
        """End its lease after an attempt that failed."""
        remain = self.retries < self.max_retries
        self.retries += remain
        self.end(WorkStatus.PENDING if remain else WorkStatus.FAILED)

    def row(self) -> tuple[object, ...]:
        """Return what the table must have."""
        return (self.number, self.status.value, self.retries, self.token, self.holder, self.expires_at)


class IntrudingAndAcknowledging(AcknowledgesInherited, Intruding):
    """A store with that defect, for the machine."""


class CoreMachine(HolderMachine):
    """Two workers and a sweep on one store; what they do with keys (``key_machine``),
    and what befalls holders.
    """

    store: Intruding
    store_kind: ClassVar[type[Intruding]] = Intruding
    leases_kind: ClassVar[type[LeaseManager]] = LeaseManager
    checkpoints_kind: ClassVar[type[CheckpointManager]] = CheckpointManager
    sweep_kind: ClassVar[type[RecoverySweep]] = RecoverySweep

    def __init__(self) -> None:
        super().__init__()
        Crashes.install()
        self.folder = new_folder()
        self.store = self.store_kind(init_factory(Path(self.folder.name) / "store.db"))
        self.clock = ManualClock()
        self.leases = self.leases_kind(self.store, clock=self.clock)
        self.checkpoints = self.checkpoints_kind(self.store, clock=self.clock)
        self.items: dict[int, Item] = {}
        self.saved: dict[str, list[object]] = {task: [] for task in TASKS}
        self.believed: dict[str, list[Lease]] = {worker: [] for worker in WORKERS}
        self.newest_token = 0
        self.swept = 0
        self.prepare_keys()

    def teardown(self) -> None:
        """Close the store and remove its file."""
        Crashes.armed = None
        self.close_keys()
        self.store.close()
        self.folder.cleanup()

    @initialize()
    def create_tasks(self) -> None:
        """Begin with two tasks and two items of each."""
        for task in TASKS:
            TaskManager(self.store, clock=self.clock).create(task)
            for priority in (0, 1):
                self.enqueue(task, priority, 1)

    # What happens to the world.

    @rule(duration_s=st.sampled_from([0.5, 3.0, 9.5, 30.0]))
    def time_passes(self, duration_s: float) -> None:
        """Let time pass for everybody."""
        self.clock.advance(duration_s)

    @rule(by_s=st.sampled_from([2, 15]))
    def the_clock_is_set_back(self, by_s: int) -> None:
        """Set the wall clock back; the monotonic one goes on."""
        self.clock.jump(self.clock.now() - by_s * 1_000_000)

    @rule(worker=st.sampled_from(WORKERS))
    def a_worker_is_killed(self, worker: str) -> None:
        """Let a worker forget what it held."""
        self.believed[worker] = []
        self.restart_keys(worker)

    # What workers do.

    @rule(task=st.sampled_from(TASKS), priority=st.integers(0, 2), max_retries=st.integers(0, 2))
    def enqueue(self, task: str, priority: int, max_retries: int) -> None:
        """Add an item, up to a number of them."""
        if len(self.items) < ITEMS_MAX:
            number = self.leases.enqueue(task, "work", priority=priority, max_retries=max_retries).work_item_id
            self.items[number] = Item(number, task, priority, max_retries)

    @rule(
        worker=st.sampled_from(WORKERS),
        ttl_s=st.sampled_from([1.0, *[10.0] * 8, -1.0, 0.0, math.nan]),
        limit=st.integers(1, 3),
        task=st.sampled_from([None, *TASKS]),
        crash=rarely(ACQUIRE_CRASH_POINTS),
    )
    def acquire(self, worker: str, ttl_s: float, limit: int, task: str | None, crash: str | None) -> None:
        """Take the items that come first, or be refused a length that is none."""

        def call() -> list[Lease]:
            if limit > 1:
                return self.leases.acquire_many(worker, limit=limit, ttl_s=ttl_s, task_id=task)
            lease = self.leases.acquire(worker, ttl_s=ttl_s, task_id=task)
            return [] if lease is None else [lease]

        if not ttl_s > 0:
            self.must(InvalidDuration, call)
            return
        taken = self.attempt(worker, call, crash)
        if taken is None and crash not in AFTER_COMMIT:
            return
        pending = [item for item in self.items.values() if item.status is WorkStatus.PENDING]
        wanted = sorted((-item.priority, item.number) for item in pending if task in {None, item.task_id})[:limit]
        for _, number in wanted:
            self.newest_token += 1
            item = self.items[number]
            item.status, item.token, item.holder = WorkStatus.IN_PROGRESS, self.newest_token, worker
            item.expires_at = self.clock.now() + round(ttl_s * 1_000_000)
        if taken is not None:
            assert [lease.work_item_id for lease in taken] == [number for _, number in wanted]
            self.believed[worker] += taken

    @precondition(lambda self: any(self.believed.values()))
    @rule(which=st.integers(0, 9), crash=rarely(RENEW_CRASH_POINTS))
    def renew(self, which: int, crash: str | None) -> None:
        """Prolong a lease, or be told why not."""
        worker, lease = self.lease_of(which)
        if refusal := self.refusal(lease):
            self.must(refusal, lambda: self.leases.renew(lease))
            return
        renewed = self.attempt(worker, lambda: self.leases.renew(lease), crash)
        if renewed is not None or crash in AFTER_COMMIT:
            self.items[lease.work_item_id].expires_at = self.clock.now() + round(lease.ttl_s * 1_000_000)
        if renewed is not None:
            self.believed[worker][self.believed[worker].index(lease)] = renewed

    @precondition(lambda self: any(self.believed.values()))
    @rule(
        which=st.integers(0, 9),
        how=st.sampled_from(["complete", "complete", "fail", "release"]),
        crash=rarely(END_CRASH_POINTS),
    )
    def end(self, which: int, how: str, crash: str | None) -> None:
        """Complete, fail or release an item, or be told why not."""
        worker, lease = self.lease_of(which)
        calls: dict[str, Callable[[], object]] = {
            "complete": lambda: self.leases.complete(lease),
            "fail": lambda: self.leases.fail(lease, "it broke"),
            "release": lambda: self.leases.release(lease),
        }
        if refusal := self.refusal(lease):
            self.must(refusal, calls[how])
            return
        done = self.attempt(worker, lambda: [calls[how]()], crash)
        if done is not None or crash in AFTER_COMMIT:
            item = self.items[lease.work_item_id]
            if how == "fail":
                item.give_back()
            else:
                item.end(WorkStatus.COMPLETED if how == "complete" else WorkStatus.PENDING)

    @precondition(lambda self: any(self.believed.values()))
    @rule(which=st.integers(0, 9), crash=rarely(CHECKPOINT_CRASH_POINTS))
    def save(self, which: int, crash: str | None) -> None:
        """Save a checkpoint under a lease, or be told why not."""
        worker, lease = self.lease_of(which)
        snapshot = [worker, lease.token, len(self.saved[lease.task_id])]
        if refusal := self.refusal(lease):
            self.must(refusal, lambda: self.checkpoints.save(lease.task_id, snapshot, lease=lease))
            return
        done = self.attempt(worker, lambda: self.checkpoints.save(lease.task_id, snapshot, lease=lease), crash)
        if done is not None or crash in AFTER_COMMIT:
            self.saved[lease.task_id].append(snapshot)

    # What sweeps do.

    @rule(batch=st.integers(1, 3), skew_s=st.sampled_from([0, 0, 5]), crash=rarely(SWEEP_CRASH_POINTS))
    def sweep(self, batch: int, skew_s: int, crash: str | None) -> None:
        """Return what has expired, by a clock that may be ahead of the holders'."""
        now = self.clock.now() + skew_s * 1_000_000
        found = self.attempt(
            None, lambda: self.sweep_kind(self.store, clock=self.clock, batch=batch).run_once(now), crash
        )
        if found is not None:
            self.agree(found, self.sweep_model(now))
        elif crash == WorkPoint.SWEEP_AFTER_BATCH:
            self.sweep_model(now, batches=1, batch=batch)

    @rule(batch=st.integers(1, 3), skew_s=st.sampled_from([0, 5]), act=st.sampled_from(["sweep", "renew", "complete"]))
    def sweep_while_another_acts(self, batch: int, skew_s: int, act: str) -> None:
        """Sweep, and let another sweep or the holders act between its batches."""
        now = self.clock.now() + skew_s * 1_000_000
        before: list[list[WorkStatus]] = []

        def intrude() -> None:
            before.append(self.sweep_model(now, batches=1, batch=batch))
            if act == "sweep":
                found = RecoverySweep(self.store, clock=self.clock, batch=batch).run_once(now)
                self.agree(found, self.sweep_model(now))
                return
            for which in range(sum(len(leases) for leases in self.believed.values())):
                self.renew(which, None) if act == "renew" else self.end(which, act, None)

        self.store.passed, self.store.intruder = 1, intrude
        found = self.sweep_kind(self.store, clock=self.clock, batch=batch).run_once(now)
        self.store.intruder = None
        first = before[0] if before else []
        self.agree(found, first + self.sweep_model(now))

    # The model.

    def sweep_model(self, now: int, *, batches: int = ITEMS_MAX, batch: int = ITEMS_MAX) -> list[WorkStatus]:
        """Return expired leases, oldest first, up to so many; return what became of the items."""
        expired = [item for item in self.items.values() if item.expires_at is not None and item.expires_at <= now]
        expired.sort(key=lambda item: (item.expires_at, item.number))
        statuses = []
        for item in expired[: batches * batch]:
            self.saved[item.task_id].append({"lease_token": item.token, "work_item_id": item.number})
            item.give_back()
            statuses.append(item.status)
        self.swept += len(statuses)
        return statuses

    def agree(self, found: SweepStatistics, statuses: list[WorkStatus]) -> None:
        """Assert that a sweep reports what it did itself."""
        recovered = statuses.count(WorkStatus.PENDING)
        assert (found.expired_found, found.recovered, found.failed, found.errors) == (
            len(statuses),
            recovered,
            len(statuses) - recovered,
            (),
        )

    def lease_of(self, which: int) -> tuple[str, Lease]:
        """Return a worker and one of the leases that it believes to have, or once had."""
        leases = [(worker, lease) for worker, believed in self.believed.items() for lease in believed]
        return leases[which % len(leases)]

    def refusal(self, lease: Lease) -> type[RecoveryError] | None:
        """Return the error that a holder must be given, or None."""
        item = self.items[lease.work_item_id]
        if self.clock.monotonic() >= lease.trusted_until:
            return LeaseExpired
        if item.token != lease.token or item.expires_at is None:
            final = item.status in {WorkStatus.COMPLETED, WorkStatus.FAILED}
            return AlreadyFinished if final else LeaseLost
        return LeaseExpired if item.expires_at <= self.clock.now() else None

    def must(self, kind: type[RecoveryError], call: Callable[[], object]) -> None:
        """Assert that the call raises exactly this."""
        with pytest.raises(RecoveryError) as caught:
            call()
        assert caught.type is kind, caught.value

    def attempt(self, worker: str | None, call: Callable[[], Result], crash: str | None) -> Result | None:
        """Call, with a crash armed; after one, the worker has forgotten everything and None is
        returned.
        """
        Crashes.armed = crash
        try:
            return call()
        except CrashError:
            Crashes.is_dead = False
            if worker is not None:
                self.believed[worker] = []
                self.restart_keys(worker)
            return None
        finally:
            Crashes.armed = None

    # What must hold after every step.

    @invariant()
    def the_items_are_those_of_the_model(self) -> None:
        """Every row of work_items is what the model says."""
        columns = "work_item_id, status, retries, lease_token, lease_holder, lease_expires_at"
        rows = self.store._read(f"SELECT {columns} FROM work_items ORDER BY work_item_id", ())  # noqa: S608 - constants
        assert rows == [item.row() for item in self.items.values()]

    @invariant()
    def the_checkpoints_are_those_of_the_model(self) -> None:
        """Numbers are contiguous, and each checkpoint is there once, in order."""
        for task, saved in self.saved.items():
            rows = self.checkpoints.list(task) if self.store.task(task) else []
            assert [row.sequence_number for row in rows] == list(range(1, len(saved) + 1))
            for row, expected in zip(rows, saved, strict=True):
                if isinstance(expected, dict):
                    assert {name: row.snapshot[name] for name in expected} == expected
                else:
                    assert row.snapshot == expected

    @invariant()
    def each_recovery_has_one_audit_row(self) -> None:
        """Audit rows and recoveries are one to one."""
        audits = [audit for task in TASKS for audit in self.store.audits(task) if audit.event == "lease_expired"]
        assert len(audits) == self.swept


def test_any_order_of_operations_and_crashes_is_that_of_the_model() -> None:
    """Several thousand operations, each followed by a comparison of every row."""
    run_state_machine_as_test(CoreMachine, settings=bounded(30, 300))


@pytest.mark.parametrize(
    ("part", "variant"),
    [
        ("leases_kind", RenewsExpired),
        ("leases_kind", EndsByName),
        ("leases_kind", NeverExpires),
        ("checkpoints_kind", Unfenced),
        ("sweep_kind", SweepsById),
        ("sweep_kind", CountsWhatItFinds),
        ("store_kind", IntrudingAndAcknowledging),
        ("heartbeat_kind", Revives),
        ("keys_kind", idempotency.ChecksThenInserts),
        ("keys_kind", idempotency.NeverRefreshes),
        ("keys_kind", idempotency.KeepsTheDead),
        ("keys_kind", idempotency.CachesFailures),
        ("keys_kind", idempotency.KeepsTheInterrupted),
        ("ledger_kind", ledger.IntentAfterEffect),
        ("ledger_kind", ledger.IgnoresProbe),
        ("ledger_kind", ledger.ForgetsDoubt),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_planted_defect_makes_it_fail(part: str, variant: type) -> None:
    """With one part replaced by a variant, the same machine finds a difference."""
    require_failure(CoreMachine, part, variant, bounded(30, 600), RecoveryError)
