"""Checkpoints, leases and the sweep against the model of the scenarios:
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

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import pytest
from durable_agents import CheckpointManager, LeaseManager, ManualClock, RecoverySweep, TaskManager, errors
from durable_agents.errors import InvalidDuration, RecoveryError
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

from scenarios.model.states import Moment
from scenarios.model.work import Held, Work
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
    from collections.abc import Callable, Mapping

    from durable_agents import Lease, SweepStatistics

Result = TypeVar("Result")

TASKS = ("t", "u")
ITEMS_MAX = 12
COLUMNS = ("work_item_id", "status", "retries", "lease_token", "lease_holder", "lease_expires_at", "error")
AFTER_COMMIT = {
    ACQUIRE_CRASH_POINTS[-1],
    RENEW_CRASH_POINTS[-1],
    END_CRASH_POINTS[-1],
    WorkPoint.SWEEP_AFTER_BATCH,
    *CHECKPOINT_CRASH_POINTS[-2:],
}


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
        self.model = Work()
        self.believed: dict[str, list[Lease]] = {worker: [] for worker in WORKERS}
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
            self.model.create(self.moment, task)
            for priority in (0, 1):
                self.enqueue(task, priority, 1)

    @property
    def moment(self) -> Moment:
        """The moment, by both clocks."""
        return Moment(self.clock.now(), self.clock.monotonic())

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
        if len(self.model.items) < ITEMS_MAX:
            number = self.leases.enqueue(task, "work", priority=priority, max_retries=max_retries).work_item_id
            expected = self.model.enqueue(self.moment, task, priority=priority, max_retries=max_retries)
            assert expected == {"work_item_id": number}

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
        expected = self.model.acquire(self.moment, worker, ttl_s, limit, task)
        if taken is not None:
            assert [lease.work_item_id for lease in taken] == expected["items"]
            assert [lease.token for lease in taken] == expected["tokens"]
            assert [lease.retries for lease in taken] == expected["retries"]
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
            expected = self.model.renew(self.moment, lease.token)
        if renewed is not None:
            assert {"expires_at": renewed.expires_at, "trusted_until": renewed.trusted_until} == expected
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
            more = {"error": "it broke"} if how == "fail" else {}
            self.model.do(how, self.moment, {"token": lease.token, **more})

    @precondition(lambda self: any(self.believed.values()))
    @rule(which=st.integers(0, 9), crash=rarely(CHECKPOINT_CRASH_POINTS))
    def save(self, which: int, crash: str | None) -> None:
        """Save a checkpoint under a lease, or be told why not."""
        worker, lease = self.lease_of(which)
        snapshot = [worker, lease.token, len(self.model.saved[lease.task_id])]
        if refusal := self.refusal(lease):
            self.must(refusal, lambda: self.checkpoints.save(lease.task_id, snapshot, lease=lease))
            return
        done = self.attempt(worker, lambda: self.checkpoints.save(lease.task_id, snapshot, lease=lease), crash)
        if done is not None or crash in AFTER_COMMIT:
            self.model.save(self.moment, lease.token, snapshot)

    # What sweeps do.

    @rule(batch=st.integers(1, 3), skew_s=st.sampled_from([0, 0, 5]), crash=rarely(SWEEP_CRASH_POINTS))
    def sweep(self, batch: int, skew_s: int, crash: str | None) -> None:
        """Return what has expired, by a clock that may be ahead of the holders'."""
        now = self.clock.now() + skew_s * 1_000_000
        found = self.attempt(
            None, lambda: self.sweep_kind(self.store, clock=self.clock, batch=batch).run_once(now), crash
        )
        if found is not None:
            self.agree(found, self.model.sweep(Moment(now, 0)))
        elif crash == WorkPoint.SWEEP_AFTER_BATCH:
            self.model.sweep(Moment(now, 0), batch, batches=1)

    @rule(batch=st.integers(1, 3), skew_s=st.sampled_from([0, 5]), act=st.sampled_from(["sweep", "renew", "complete"]))
    def sweep_while_another_acts(self, batch: int, skew_s: int, act: str) -> None:
        """Sweep, and let another sweep or the holders act between its batches."""
        now = self.clock.now() + skew_s * 1_000_000
        first = Counter[str]()

        def intrude() -> None:
            first.update(self.model.sweep(Moment(now, 0), batch, batches=1))
            if act == "sweep":
                found = RecoverySweep(self.store, clock=self.clock, batch=batch).run_once(now)
                self.agree(found, self.model.sweep(Moment(now, 0)))
                return
            for which in range(sum(len(leases) for leases in self.believed.values())):
                self.renew(which, None) if act == "renew" else self.end(which, act, None)

        self.store.passed, self.store.intruder = 1, intrude
        found = self.sweep_kind(self.store, clock=self.clock, batch=batch).run_once(now)
        self.store.intruder = None
        first.update(self.model.sweep(Moment(now, 0)))
        self.agree(found, first)

    def agree(self, found: SweepStatistics, expected: Mapping[str, int]) -> None:
        """Assert that a sweep reports what it did itself."""
        assert (found.expired_found, found.recovered, found.failed, found.errors) == (
            expected["expired_found"],
            expected["recovered"],
            expected["failed"],
            (),
        )

    def lease_of(self, which: int) -> tuple[str, Lease]:
        """Return a worker and one of the leases that it believes to have, or once had."""
        leases = [(worker, lease) for worker, believed in self.believed.items() for lease in believed]
        return leases[which % len(leases)]

    def refusal(self, lease: Lease) -> type[RecoveryError] | None:
        """Return the error that a holder must be given, or None; the model knows what it knows."""
        self.model.held[lease.token] = Held(lease.work_item_id, lease.token, lease.ttl_s, lease.trusted_until)
        name = self.model.refusal(self.moment, lease)
        return None if name is None else getattr(errors, name)

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
        rows = self.store._read(f"SELECT {', '.join(COLUMNS)} FROM work_items ORDER BY work_item_id", ())  # noqa: S608 - constants
        names = ("number", "status", "retries", "token", "holder", "expires_at", "error")
        expected = [tuple(getattr(item, name) for name in names) for item in self.model.items.values()]
        assert expected == rows

    @invariant()
    def the_checkpoints_are_those_of_the_model(self) -> None:
        """Numbers are contiguous, and each checkpoint is there once, in order."""
        for task, saved in self.model.saved.items():
            rows = self.checkpoints.list(task) if self.store.task(task) else []
            assert [row.sequence_number for row in rows] == list(range(1, len(saved) + 1))
            for row, expected in zip(rows, saved, strict=True):
                if isinstance(expected, dict):
                    assert {name: row.snapshot.get(name) for name in expected} == expected
                else:
                    assert row.snapshot == expected

    @invariant()
    def each_recovery_has_one_audit_row(self) -> None:
        """Audit rows and recoveries are one to one."""
        audits = [audit for task in TASKS for audit in self.store.audits(task) if audit.event == "lease_expired"]
        assert len(audits) == self.model.swept


def test_any_order_of_operations_and_crashes_is_that_of_the_model() -> None:
    """Several thousand operations, each followed by a comparison of every row."""
    run_state_machine_as_test(CoreMachine, settings=bounded(30, 300))


@pytest.mark.parametrize(
    ("part", "variant"),
    [
        pytest.param("leases_kind", RenewsExpired, marks=pytest.mark.nightly),
        pytest.param("leases_kind", EndsByName, marks=pytest.mark.nightly),
        ("leases_kind", NeverExpires),
        ("checkpoints_kind", Unfenced),
        ("sweep_kind", SweepsById),
        ("sweep_kind", CountsWhatItFinds),
        ("store_kind", IntrudingAndAcknowledging),
        pytest.param("heartbeat_kind", Revives, marks=pytest.mark.nightly),
        ("keys_kind", idempotency.ChecksThenInserts),
        ("keys_kind", idempotency.NeverRefreshes),
        ("keys_kind", idempotency.KeepsTheDead),
        ("keys_kind", idempotency.CachesFailures),
        ("keys_kind", idempotency.KeepsTheInterrupted),
        ("ledger_kind", ledger.IntentAfterEffect),
        pytest.param("ledger_kind", ledger.IgnoresProbe, marks=pytest.mark.nightly),
        ("ledger_kind", ledger.ForgetsDoubt),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_planted_defect_makes_it_fail(part: str, variant: type) -> None:
    """With one part replaced by a variant, the same machine finds a difference."""
    require_failure(CoreMachine, part, variant, bounded(30, 600), RecoveryError)
