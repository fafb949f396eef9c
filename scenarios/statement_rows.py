"""The rows among which statements are asked: neighbours differ by one in each column."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from durable_agents import TaskManager, TaskStatus
from durable_agents.store.rows import (
    Cycle,
    CycleEntry,
    DeadTicks,
    DeliveryStatus,
    JobStatus,
    KeyStatus,
    OutboxEntry,
    OutboxKind,
    StateEntry,
    StoredCheckpoint,
    StoredDelivery,
    StoredEvidence,
    StoredKey,
    TaskSource,
    Usage,
)

from scenarios.judging import BEGINNING, ScriptClock
from scenarios.model.states import SECOND, Moment

if TYPE_CHECKING:
    from durable_agents import JobQueue, LeaseManager

NOW: Final = BEGINNING
EXPIRY: Final = NOW + 10 * SECOND
TEN: Final = b"ten bytes."


def key_of(place: int, status: KeyStatus = KeyStatus.EXECUTING, scope: str = "s") -> StoredKey:
    """Return a key; neighbours differ in each column by one."""
    has_ended = status is KeyStatus.DONE
    return StoredKey(
        key=f"{scope}/{place}",
        scope=scope,
        request_hash=hashlib.sha256(str(place).encode()).hexdigest(),
        status=status,
        token=5 + place,
        owner=f"owner {place}",
        claim_expires_at=EXPIRY + place if status is KeyStatus.EXECUTING else None,
        expires_at=EXPIRY + place if has_ended else None,
        used_at=NOW + place if has_ended else None,
        created_at=NOW,
        result=b"result" if has_ended else None,
    )


def entry_of(place: int, **other: Any) -> OutboxEntry:
    """Return an entry of the outbox."""
    fields: dict[str, Any] = {"outbox_id": place, "kind": OutboxKind.ADVANCE, "job_id": place, "claim": 1}
    fields |= {"agent": "builder", "repo": "", "task_id": "b", "stage": "build", "entered_at": NOW, "text": ""}
    return OutboxEntry(**{**fields, "tries": 0, "taken_by": None, "created_at": NOW, **other})


def expected_key(**other: Any) -> StoredKey:
    """Return the second key as a caller may have read it."""
    fields = {name: getattr(key_of(2), name) for name in StoredKey.__struct_fields__}
    return StoredKey(**{**fields, **other})


def delivery_of(place: int, source: str = "forge", identity: str = "") -> StoredDelivery:
    """Return a delivery."""
    return StoredDelivery(0, source, identity or str(place), f"id {place}", "push", "{}", received_at=NOW + place)


def checkpoint_of(task: str, number: int) -> StoredCheckpoint:
    """Return a checkpoint."""
    return StoredCheckpoint(task, number, "t", b"1", hashlib.sha256(b"1").hexdigest(), NOW)


def rows_in(transaction: Any) -> Counter[Any]:
    """Return all rows of all tables."""
    tables = transaction.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'", ()
    ).fetchall()
    return Counter(
        (name, row)
        for (name,) in tables
        for row in transaction.execute(f"SELECT * FROM {name}", ()).fetchall()  # noqa: S608 - the names are the schema's
    )


def fill(store: Any, leases: LeaseManager, queue: JobQueue, clock: ScriptClock) -> None:
    """Fill the store with rows whose neighbours differ by one in each column."""
    tasks = TaskManager(store, clock=clock)
    stages = {
        "a": "build",
        "b": "build",
        "c": "build",
        "d": "check",
        "e": "check",
        "f": "idle",
        "g": "idle",
        "h": "idle",
        "i": "idle",
        "j": "idle",
    }
    for place, (task, stage) in enumerate(stages.items(), start=1):
        clock.moment = Moment(NOW + place, place)
        tasks.create(task, stage=stage, tracker_key=f"K-{task}")
    clock.moment = Moment(NOW, 0)
    for task in ("c", "j"):
        tasks.set_status(task, TaskStatus.CANCELLED, expected=TaskStatus.CREATED)
    for _ in range(4):
        leases.enqueue("b", "work")
    leases.acquire_many("holder", limit=3, ttl_s=10)
    for task in ("a", "b", "b", "d"):
        queue.enqueue("builder", task_id=task)
    for place in range(2):
        queue.claim()
        if place:
            queue.reap_running_job(2, JobStatus.QUEUED)
    queue.claim()
    queue.claim()
    queue.enqueue("other", task_id="d")
    queue.claim(agents=["other"])
    queue.reap_running_job(5, JobStatus.DONE)
    for place in range(3):
        queue.enqueue(f"late {place}", task_id="c")
    queue.enqueue("idler", task_id="i")
    with store.transaction() as transaction:
        fill_jobs(transaction)
        fill_keys(transaction)
        fill_others(transaction)


def fill_jobs(transaction: Any) -> None:
    """Fill runs, dead ticks and the outbox."""
    transaction.record_exit(3, 1, exit_code=0, now=NOW)
    transaction.set_dead_ticks("r", [DeadTicks(1, 1, 1), DeadTicks(2, 2, 2), DeadTicks(3, 1, 3)])
    transaction.set_dead_ticks("s", [DeadTicks(1, 1, 4), DeadTicks(2, 2, 5)])
    transaction.execute("UPDATE job_dead_ticks SET claim = 0 WHERE job_id = 1 AND reaper = 's'", ())
    for place in (1, 2, 3):
        transaction.insert_outbox(entry_of(place))
    transaction.insert_outbox(entry_of(4, kind=OutboxKind.ALERT, text="alert"))
    transaction.insert_outbox(entry_of(5, kind=OutboxKind.ALERT, text="alert", task_id="f"))
    transaction.insert_outbox(entry_of(6, task_id="e"))
    transaction.insert_outbox(entry_of(7, task_id="i"))
    transaction.take_outbox(entry_of(2), expected=None, taken_by="sender")


def fill_others(transaction: Any) -> None:
    """Fill the inbox, sources, state, cycles and checkpoints."""
    for place in (1, 2, 3, 4, -2, -1):
        transaction.accept_delivery(delivery_of(place))
    transaction.end_delivery(1, status=DeliveryStatus.HANDLED, error="")
    transaction.end_delivery(4, status=DeliveryStatus.FAILED, error="it broke")
    transaction.end_delivery(6, status=DeliveryStatus.FAILED, error="it broke, too")
    sources = {"a": ("r", "x", "s1"), "b": ("r", "y", "s2"), "c": ("r", "cancelled", "s1"), "d": ("r2", "x", "s1")}
    for task, source in {**sources, "e": ("r", "v", "")}.items():
        transaction.insert_source(TaskSource(task, *source))
    for group, key in (("g", "a"), ("g", "b"), ("h", "0"), ("h", "a"), ("h", "c")):
        transaction.put_state(StateEntry(group, key, b"1"))
    for place in (1, 2, 3):
        transaction.insert_cycle(Cycle(str(place), "n", NOW))
        transaction.insert_cycle_entries([CycleEntry(str(place), number, "k", b"1") for number in (1, 2)])
    for task, number in (*itertools.product(("a", "b", "c"), (1, 2, 3)), ("c", 4)):
        transaction.insert_checkpoint(checkpoint_of(task, number))
        transaction.insert_evidence(StoredEvidence(task, number, required=1, verified=True, verdicts=b"[]"))


def fill_keys(transaction: Any) -> None:
    """Fill the keys: three that are executed, one that is done, one in doubt, and other scopes.

    Scope e has three results that may be evicted: e/12 and e/13 before e/11.
    """
    places = itertools.count(10)
    for place in range(1, 6):
        transaction.claim_key(key_of(place), expected=None)
    transaction.end_key("s/4", 9, "owner 4", status=KeyStatus.DONE, result=b"result", expires_at=EXPIRY + 4)
    transaction.end_key("s/5", 10, "owner 5", status=KeyStatus.IN_DOUBT, result=None, expires_at=None)
    for scope in ("r", "v"):
        transaction.claim_key(key_of(6, scope=scope), expected=None)
    transaction.claim_key(key_of(2, scope="w"), expected=None)  # all but its key is as that of s/2
    for scope, used in (("d", 1), ("e", 4), ("e", 2), ("e", 3), ("f", 1), ("t", 1), ("e", None)):
        place = next(places)
        transaction.claim_key(key_of(place, scope=scope), expected=None)
        status = KeyStatus.FAILED if used == 3 else KeyStatus.DONE
        transaction.end_key(f"{scope}/{place}", 5 + place, f"owner {place}", status=status, result=TEN, expires_at=99)
        used_at = None if used is None else NOW + used
        transaction.execute("UPDATE idempotency_keys SET used_at = ? WHERE key = ?", (used_at, f"{scope}/{place}"))
    transaction.claim_key(msgspec.structs.replace(key_of(90, scope="e"), used_at=NOW), expected=None)
    transaction.execute("UPDATE idempotency_keys SET used_at = ? WHERE key = 's/4'", (NOW + 4,))
    transaction.add_usage("s", Usage(hits=1))
    transaction.add_usage("t", Usage(hits=2))
