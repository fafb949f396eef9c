"""Leases: who holds an item, until when, and that nobody else's write gets through."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from durable_agents import (
    LEASE_CRASH_POINTS,
    CheckpointManager,
    Lease,
    LeaseManager,
    ManualClock,
    TaskManager,
    WorkStatus,
)
from durable_agents.errors import (
    AlreadyFinished,
    InvalidDuration,
    InvalidTask,
    InvalidWorkItem,
    LeaseExpired,
    LeaseLost,
    UnknownTask,
    UnknownWorkItem,
)
from durable_agents.work.crash_points import ACQUIRE_CRASH_POINTS, END_CRASH_POINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TTL_S = 10.0


@pytest.fixture(name="clock")
def _clock() -> ManualClock:
    return ManualClock(1_000_000_000)


@pytest.fixture(name="leases")
def _leases(tmp_path: Path, clock: ManualClock) -> Iterator[LeaseManager]:
    with LeaseManager(db_path=tmp_path / "store.db", clock=clock) as leases:
        TaskManager(leases.store).create("t")
        yield leases


def held(leases: LeaseManager, holder: str = "first") -> Lease:
    """Return a lease on a new item."""
    leases.enqueue("t", "work")
    lease = leases.acquire(holder, ttl_s=TTL_S)
    assert lease is not None
    return lease


def test_an_item_goes_to_one_holder_until_it_is_completed(leases: LeaseManager) -> None:
    """While it is held nobody else gets it; completed it is final."""
    lease = held(leases)
    assert leases.acquire("second", ttl_s=TTL_S) is None
    assert leases.get(lease.work_item_id).lease_holder == "first"
    leases.complete(lease)
    item = leases.get(lease.work_item_id)
    assert (item.status, item.lease_holder, item.lease_expires_at) == (WorkStatus.COMPLETED, None, None)
    assert leases.acquire("second", ttl_s=TTL_S) is None


def test_priority_goes_before_age(leases: LeaseManager) -> None:
    """High first, then the oldest; a type or a task narrows the choice."""
    TaskManager(leases.store).create("other")
    items = [
        leases.enqueue("t", "a", priority=1),
        leases.enqueue("t", "b", priority=5),
        leases.enqueue("other", "a", priority=5),
        leases.enqueue("t", "a", priority=1),
    ]
    of_type = leases.acquire("h", ttl_s=TTL_S, type="b")
    of_task = leases.acquire("h", ttl_s=TTL_S, task_id="other")
    assert of_type is not None
    assert of_task is not None
    assert [of_type.work_item_id, of_task.work_item_id] == [items[1].work_item_id, items[2].work_item_id]
    rest = leases.acquire_many("h", limit=10, ttl_s=TTL_S)
    assert [lease.work_item_id for lease in rest] == [items[0].work_item_id, items[3].work_item_id]


def test_the_token_rises_with_every_grant(leases: LeaseManager) -> None:
    """Released and granted again, the item has a larger token each time."""
    lease = held(leases)
    tokens = [lease.token]
    for _ in range(3):
        leases.release(lease)
        again = leases.acquire("next", ttl_s=TTL_S)
        assert again is not None
        lease = again
        tokens.append(lease.token)
    assert tokens == sorted(set(tokens))


def test_a_renewal_moves_the_expiry(leases: LeaseManager, clock: ManualClock) -> None:
    """Renewed in time, a lease outlives its first length."""
    lease = held(leases)
    for _ in range(5):
        clock.advance(TTL_S * 0.8)
        lease = leases.heartbeat(lease)
    leases.complete(lease)


@pytest.mark.parametrize("call", ["renew", "complete", "fail", "release"])
def test_after_its_expiry_a_lease_changes_nothing(leases: LeaseManager, clock: ManualClock, call: str) -> None:
    """D3: an expired lease is neither renewed nor completed;
    the error says that it expired, the row is as it was.
    """
    lease = held(leases)
    before = leases.get(lease.work_item_id)
    clock.advance(TTL_S)
    calls: dict[str, Callable[[], object]] = {
        "renew": lambda: leases.renew(lease),
        "complete": lambda: leases.complete(lease),
        "fail": lambda: leases.fail(lease, "late"),
        "release": lambda: leases.release(lease),
    }
    with pytest.raises(LeaseExpired, match=r"expired|longer than it may trust"):
        calls[call]()
    assert leases.get(lease.work_item_id) == before


def test_a_zombie_cannot_end_the_new_owners_item(leases: LeaseManager, clock: ManualClock) -> None:
    """D3: an old incarnation of the same name has an old token,
    and the error says who holds the item now.
    """
    zombie = held(leases, "worker-1")
    leases.release(zombie)
    owner = leases.acquire("worker-1", ttl_s=TTL_S)
    assert owner is not None
    clock.advance(1)
    for call in (leases.complete, leases.release, leases.renew, lambda lease: leases.fail(lease, "x")):
        with pytest.raises(LeaseLost, match=rf"held by 'worker-1', with token {owner.token}"):
            call(zombie)
    leases.complete(owner)
    with pytest.raises(AlreadyFinished, match="completed"):
        leases.complete(owner)


def test_a_checkpoint_is_written_under_the_fence_or_not_at_all(leases: LeaseManager, clock: ManualClock) -> None:
    """The zombie's checkpoint is refused in its own transaction; the owner's is saved."""
    checkpoints = CheckpointManager(leases.store, clock=clock)
    zombie = held(leases)
    checkpoints.save("t", {"by": "first"}, lease=zombie)
    leases.release(zombie)
    owner = leases.acquire("second", ttl_s=TTL_S)
    assert owner is not None
    with pytest.raises(LeaseLost):
        checkpoints.save("t", {"by": "zombie"}, lease=zombie)
    checkpoints.save("t", {"by": "second"}, lease=owner)
    clock.advance(TTL_S)
    with pytest.raises(LeaseExpired):
        checkpoints.save("t", {"by": "late"}, lease=owner)
    assert [found.snapshot["by"] for found in checkpoints.list("t")] == ["first", "second"]


def test_the_holder_stops_before_the_database_would(leases: LeaseManager, clock: ManualClock) -> None:
    """The holder's own trust ends a margin before the expiry, counted from before the call."""
    lease = held(leases)
    clock.advance(TTL_S * 0.89)
    leases.check(lease)
    clock.advance(TTL_S * 0.02)
    with pytest.raises(LeaseExpired):
        leases.check(lease)
    assert clock.now() < lease.expires_at


@pytest.mark.parametrize("call", ["renew", "complete", "fail", "release", "save"])
def test_a_wall_clock_that_is_set_back_revives_nothing(leases: LeaseManager, clock: ManualClock, call: str) -> None:
    """The holder measures by a clock that cannot be set, so an expired lease stays expired."""
    lease = held(leases)
    clock.advance(TTL_S * 2)
    clock.jump(lease.expires_at - 9_000_000)
    checkpoints = CheckpointManager(leases.store, clock=clock)
    calls: dict[str, Callable[[], object]] = {
        "renew": lambda: leases.renew(lease),
        "complete": lambda: leases.complete(lease),
        "fail": lambda: leases.fail(lease, "late"),
        "release": lambda: leases.release(lease),
        "save": lambda: checkpoints.save("t", 1, lease=lease),
    }
    with pytest.raises(LeaseExpired):
        calls[call]()
    assert checkpoints.list("t") == []


@pytest.mark.parametrize("call", ["renew", "complete", "fail", "release"])
def test_a_token_of_another_item_opens_nothing(leases: LeaseManager, call: str) -> None:
    """Tokens are of one grant of one item, even where one holder has both items from one call."""
    for _ in range(2):
        leases.enqueue("t", "work")
    first, second = leases.acquire_many("h", limit=2, ttl_s=TTL_S)
    assert first.token != second.token
    forged = msgspec.structs.replace(first, token=second.token)
    with pytest.raises(LeaseLost, match=f"with token {first.token}"):
        getattr(leases, call)(forged, *(["x"] if call == "fail" else []))
    assert {leases.get(lease.work_item_id).status for lease in (first, second)} == {WorkStatus.IN_PROGRESS}


def test_a_lease_is_no_fence_for_another_task(leases: LeaseManager, clock: ManualClock) -> None:
    """A checkpoint of one task under the lease of another is a mistake that is named,
    and not written.
    """
    TaskManager(leases.store).create("other")
    lease = held(leases)
    checkpoints = CheckpointManager(leases.store, clock=clock)
    with pytest.raises(InvalidWorkItem, match="'other'"):
        checkpoints.save("other", 1, lease=lease)
    assert checkpoints.list("other") == []


@pytest.mark.parametrize("ttl_s", [0, -1, -0.5, float("nan"), float("inf"), 1e12, 10**400, True, "10"])
def test_a_length_that_is_none_is_refused(leases: LeaseManager, ttl_s: float) -> None:
    """D4: no lease without an expiry, whatever was asked for; the item stays pending."""
    item = leases.enqueue("t", "work")
    with pytest.raises(InvalidDuration, match="seconds"):
        leases.acquire("h", ttl_s=ttl_s)
    assert leases.get(item.work_item_id).status is WorkStatus.PENDING


def test_the_database_refuses_a_lease_without_expiry(leases: LeaseManager, tmp_path: Path) -> None:
    """D4, once more in the schema: nobody can write one past this package either."""
    held(leases)
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute("UPDATE work_items SET lease_expires_at = NULL")


def test_leases_may_be_shorter_than_a_second(leases: LeaseManager, clock: ManualClock) -> None:
    """A lease of 20 ms expires after 20 ms."""
    leases.enqueue("t", "work")
    lease = leases.acquire("h", ttl_s=0.02)
    assert lease is not None
    clock.advance(0.017)
    lease = leases.renew(lease)
    clock.advance(0.021)
    with pytest.raises(LeaseExpired):
        leases.renew(lease)


def test_a_failed_attempt_counts_and_the_last_is_final(leases: LeaseManager) -> None:
    """max_retries counts the attempts after the first; a release counts nothing."""
    leases.enqueue("t", "work", max_retries=1)
    seen = []
    for _ in range(2):
        lease = leases.acquire("h", ttl_s=TTL_S)
        assert lease is not None
        leases.release(lease)
        lease = leases.acquire("h", ttl_s=TTL_S)
        assert lease is not None
        seen.append((lease.retries, leases.fail(lease, "it broke")))
    assert seen == [(0, WorkStatus.PENDING), (1, WorkStatus.FAILED)]
    assert lease is not None
    assert leases.get(lease.work_item_id).error == "it broke"


def test_what_does_not_exist_is_named(leases: LeaseManager) -> None:
    """Unknown tasks and items are errors that say so."""
    with pytest.raises(UnknownTask):
        leases.enqueue("nobody", "work")
    item = leases.enqueue("t", "work")
    for nobody in (4711, 2**70, -1, str(item.work_item_id), None, object()):
        with pytest.raises(UnknownWorkItem):
            leases.get(nobody)  # type: ignore[arg-type]  # the wrong type is the point
    TaskManager(leases.store).create("7")
    with pytest.raises(InvalidTask, match="Convert it"):
        leases.enqueue(7, "work")  # type: ignore[arg-type]  # likewise


def test_why_an_attempt_failed_is_kept_whatever_is_in_it(leases: LeaseManager) -> None:
    """The error of an attempt may name a file whose name is not UTF-8;
    what is no text changes nothing.
    """
    lease = held(leases)
    with pytest.raises(InvalidWorkItem, match="str"):
        leases.fail(lease, ValueError("no text"))  # type: ignore[arg-type]  # the wrong type is the point
    assert leases.get(lease.work_item_id).status is WorkStatus.IN_PROGRESS
    assert leases.fail(lease, "no file '\udcff'") is WorkStatus.PENDING
    assert leases.get(lease.work_item_id).error == "no file '\\udcff'"


@pytest.mark.parametrize(
    ("type_", "arguments"),
    [("", {}), ("w", {"priority": 1.5}), ("w", {"max_retries": -1}), ("w", {"max_retries": True}), (7, {})],
    ids=["no type", "priority", "negative retries", "retries", "type"],
)
def test_items_that_cannot_be_meant_are_refused(leases: LeaseManager, type_: str, arguments: dict[str, int]) -> None:
    """Nothing is stored of an item whose fields make no sense."""
    with pytest.raises(InvalidWorkItem):
        leases.enqueue("t", type_, **arguments)
    assert leases.acquire("h", ttl_s=TTL_S) is None


@pytest.mark.parametrize(("holder", "limit"), [("", 1), ("h", 0), ("h", 1001), ("h", True)])
def test_requests_that_cannot_be_meant_are_refused(leases: LeaseManager, holder: str, limit: int) -> None:
    """A nameless holder, and a batch of none or of thousands."""
    with pytest.raises(InvalidWorkItem):
        leases.acquire_many(holder, limit=limit, ttl_s=TTL_S)


_TAKER = """
import sys
from durable_agents import LeaseManager
taken = []
with LeaseManager(db_path=sys.argv[1]) as leases:
    while (lease := leases.acquire(sys.argv[2], ttl_s=600)) is not None:
        taken.append(lease.work_item_id)
        leases.complete(lease)
print(*taken)
"""


def test_many_processes_take_each_item_once(tmp_path: Path) -> None:
    """Six processes that take and complete 300 items of one database: each item once, none left."""
    path = tmp_path / "store.db"
    with LeaseManager(db_path=path) as leases:
        TaskManager(leases.store).create("t")
        wanted = [leases.enqueue("t", "work").work_item_id for _ in range(300)]
    command = [sys.executable, "-c", _TAKER, str(path)]
    takers = [subprocess.Popen([*command, f"taker-{n}"], stdout=subprocess.PIPE, text=True) for n in range(6)]
    outputs = [taker.communicate(timeout=60)[0].split() for taker in takers]
    assert [taker.returncode for taker in takers] == [0] * 6
    assert sorted(int(number) for output in outputs for number in output) == wanted


def test_the_declared_crash_points_are_those_that_are_passed(leases: LeaseManager) -> None:
    """One item, taken, renewed and completed, passes exactly the declared points, in order."""
    passed: list[str] = []
    listening = True

    def hook(event: str, _: object) -> None:
        if listening and event.startswith("recovery.lease."):
            passed.append(event)

    sys.addaudithook(hook)
    leases.complete(leases.renew(held(leases)))
    assert tuple(passed) == LEASE_CRASH_POINTS
    for end in (leases.release, lambda lease: leases.fail(lease, "x")):
        passed.clear()
        end(held(leases))
        assert tuple(passed) == ACQUIRE_CRASH_POINTS + END_CRASH_POINTS
    listening = False


def test_what_is_done_under_a_lease_finds_its_row_by_the_key(leases: LeaseManager, tmp_path: Path) -> None:
    """Renewing, fencing, completing and a batch cost the same among a million items that have ended
    as among none.
    """
    statements: list[str] = []
    held(leases)
    leases.enqueue("t", "work")
    connection = leases.store.borrow()  # type: ignore[attr-defined]
    connection.set_trace_callback(statements.append)
    leases.store.give_back(connection)  # type: ignore[attr-defined]
    first, *_ = leases.acquire_many("h", limit=3, ttl_s=TTL_S)
    CheckpointManager(leases.store, clock=leases.clock).save("t", 1, lease=leases.renew(first))
    leases.complete(first)
    with closing(sqlite3.connect(tmp_path / "store.db")) as reader:
        plans = {
            statement: [row[3] for row in reader.execute("EXPLAIN QUERY PLAN " + statement)]
            for statement in statements
            if "work_items" in statement
        }
    assert len(plans) == 4
    steps = {step for plan in plans.values() for step in plan if "work_items" in step}
    assert steps == {
        "SEARCH work_items USING INTEGER PRIMARY KEY (rowid=?)",
        "SEARCH work_items USING COVERING INDEX work_items_by_token (lease_token>?)",
        "SCAN work_items USING INDEX work_items_pending",
    }


@pytest.mark.parametrize("arguments", [{}, {"type": "work"}, {"task_id": "t"}])
def test_what_has_ended_costs_nothing(leases: LeaseManager, tmp_path: Path, arguments: dict[str, str]) -> None:
    """The search for an item uses an index of pending items alone:
    no scan, no sorting, nothing of what has ended.
    """
    statements: list[str] = []
    leases.enqueue("t", "work")
    connection = leases.store.borrow()  # type: ignore[attr-defined]
    connection.set_trace_callback(statements.append)
    leases.store.give_back(connection)  # type: ignore[attr-defined]
    assert leases.acquire("h", ttl_s=TTL_S, **arguments) is not None
    (update,) = [statement for statement in statements if statement.startswith("UPDATE work_items")]
    with closing(sqlite3.connect(tmp_path / "store.db")) as reader:
        plan = " ".join(row[3] for row in reader.execute("EXPLAIN QUERY PLAN " + update))
    assert "work_items_pending" in plan
    assert plan.count("SCAN") == plan.count("SCAN work_items USING INDEX work_items_pending")  # in order, up to LIMIT
    assert "TEMP B-TREE" not in plan
