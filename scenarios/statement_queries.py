"""What each query of the store answers, among rows of which the neighbours differ in one column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from durable_agents import TaskStatus
from durable_agents.errors import UnknownTask
from durable_agents.store.rows import Audit, DeliveryStatus, KeyStatus, OutboxKind, Usage

from scenarios.statement_rows import EXPIRY, NOW, checkpoint_of

if TYPE_CHECKING:
    from collections.abc import Callable


def ids(rows: Any, name: str) -> list[Any]:
    """Return one column of rows."""
    return [getattr(row, name) for row in rows]


ADDED: Final = {"hits": 2, "misses": 2, "tokens_saved": 3, "time_saved_us": 4}

QUERIES: Final[dict[str, tuple[Callable[[Any], Any], Any]]] = {
    "task": (lambda s: ids([s.task("b")], "task_id"), ["b"]),
    "no task": (lambda s: s.task("bb"), None),
    "task of a key": (lambda s: ids([s.task_with_tracker_key("K-b")], "task_id"), ["b"]),
    "no task of a key": (lambda s: s.task_with_tracker_key("K-bb"), None),
    "tasks of a branch": (lambda s: ids(s.tasks_of_branch("r", "x"), "task_id"), ["a"]),
    "tasks of a commit": (lambda s: ids(s.tasks_of_commit("r", "s1"), "task_id"), ["a"]),
    "tasks of no commit": (lambda s: ids(s.tasks_of_commit("r", ""), "task_id"), []),
    "tasks of a repository": (lambda s: ids(s.tasks_of_repo("r", "build"), "task_id"), ["a", "b"]),
    "source": (lambda s: ids([s.source("b")], "branch"), ["y"]),
    "no source": (lambda s: s.source("bb"), None),
    "waiting": (lambda s: [w.task.task_id for w in s.waiting_tasks("idle", entered_until=NOW + 7)], ["f", "g"]),
    "waiting, older": (lambda s: [w.task.task_id for w in s.waiting_tasks("idle", entered_until=NOW + 6)], ["f"]),
    "waiting, behind": (
        lambda s: [w.task.task_id for w in s.waiting_tasks("idle", entered_until=NOW + 9, after=(NOW + 6, "f"))],
        ["g", "h"],
    ),
    "waiting, with work": (lambda s: s.waiting_tasks("build", entered_until=NOW + 99), []),
    "waiting, with an advance": (lambda s: s.waiting_tasks("check", entered_until=NOW + 99), []),
    "running": (lambda s: [[j.job_id, j.dead_ticks] for j in s.running_jobs("r")], [[1, 1], [2, 2], [3, 3]]),
    "running, another's ticks": (
        lambda s: [[j.job_id, j.dead_ticks] for j in s.running_jobs("s")],
        [[1, 0], [2, 5], [3, 0]],
    ),
    "running, behind": (lambda s: ids(s.running_jobs("r", after=2), "job_id"), [3]),
    "job": (lambda s: ids([s.job(2)], "claim"), [2]),
    "no job": (lambda s: [s.job(0), s.job(99)], [None, None]),
    "active": (lambda s: ids(s.active_jobs("b"), "job_id"), [2, 3]),
    "active, queued": (lambda s: ids(s.active_jobs("d"), "job_id"), [4]),
    "active, none": (lambda s: s.active_jobs("g"), []),
    "counts": (
        lambda s: {str(status): count for status, count in s.active_job_counts().items()},
        {"queued": 5, "running": 3},
    ),
    "runs": (lambda s: [[r.claim, r.exit_code] for r in s.runs(2)], [[1, None], [2, None]]),
    "outbox": (lambda s: ids(s.outbox(OutboxKind.ADVANCE), "outbox_id"), [1, 2, 3, 6, 7]),
    "outbox, tries": (lambda s: ids(s.outbox(OutboxKind.ADVANCE), "tries"), [0, 1, 0, 0, 0]),
    "outbox, behind": (lambda s: ids(s.outbox(OutboxKind.ADVANCE, after=2), "outbox_id"), [3, 6, 7]),
    "outbox, alerts": (lambda s: ids(s.outbox(OutboxKind.ALERT), "outbox_id"), [4, 5]),
    "pending deliveries": (lambda s: ids(s.pending_deliveries(after=0, limit=9), "delivery_number"), [2, 3, 5]),
    "pending deliveries, behind": (lambda s: ids(s.pending_deliveries(after=2, limit=9), "delivery_number"), [3, 5]),
    "oldest handled": (lambda s: s.oldest_handled_delivery(), NOW + 1),
    "deliveries": (lambda s: [s.deliveries(status) for status in DeliveryStatus], [3, 1, 2]),
    "key": (lambda s: ids([s.key("s/2")], "token"), [7]),
    "no key": (lambda s: s.key("s/22"), None),
    "keys": (lambda s: ids(s.keys("s", KeyStatus.EXECUTING), "key"), ["s/1", "s/2", "s/3"]),
    "keys, behind": (lambda s: ids(s.keys("s", KeyStatus.EXECUTING, after="s/2"), "key"), ["s/3"]),
    "keys in doubt": (lambda s: ids(s.keys("s", KeyStatus.IN_DOUBT), "key"), ["s/5"]),
    "a page of keys": (lambda s: list(s.delete_expired_keys("s", now=EXPIRY + 4, after=3, limit=1)), [1, 4]),
    "a page of other keys": (lambda s: list(s.delete_expired_keys("s", now=EXPIRY + 4, after=0, limit=1)), [0, 1]),
    "no page of keys": (lambda s: list(s.delete_expired_keys("s", now=EXPIRY + 4, after=99, limit=1)), [0, 0]),
    "evicted": (lambda s: evicted(s, bytes_max=20), [1, ["e/11", "e/13", "e/16"]]),
    "evicted, two": (lambda s: evicted(s, bytes_max=19), [2, ["e/11", "e/16"]]),
    "evicted, none": (lambda s: evicted(s, bytes_max=30), [0, ["e/11", "e/12", "e/13", "e/16"]]),
    "evicted, all": (lambda s: evicted(s, bytes_max=0), [3, ["e/16"]]),
    "usage": (lambda s: [s.usage(scope).hits for scope in ("a", "s", "t", "zz")], [0, 1, 2, 0]),
    "usage, added": (lambda s: [s.add_usage("s", Usage(1, 2, 3, 4)), msgspec.to_builtins(s.usage("s"))][1], ADDED),
    "state": (
        lambda s: [s.state(group, key) is not None for group, key in ("gb", ("g", "bb"), "hb", "fb")],
        [True, False, False, False],
    ),
    "states": (lambda s: ids(s.state_entries("g"), "key"), ["a", "b"]),
    "states, behind": (lambda s: ids(s.state_entries("g", after="a"), "key"), ["b"]),
    "state count": (lambda s: [s.state_count("g"), s.state_count("h"), s.state_count("z")], [2, 3, 0]),
    "cycle entries": (lambda s: ids(s.cycle_entries("2"), "place"), [1, 2]),
    "cycle entries, behind": (lambda s: ids(s.cycle_entries("2", after=1), "place"), [2]),
    "cycles": (lambda s: ids(s.cycles(after="1"), "cycle_id"), ["2", "3"]),
    "expired": (lambda s: ids(expired(s, EXPIRY), "work_item_id"), [1, 2, 3]),
    "expired, not yet": (lambda s: expired(s, EXPIRY - 1), []),
    "expired, behind": (lambda s: ids(expired(s, EXPIRY, (EXPIRY, 2)), "work_item_id"), [3]),
    "item": (lambda s: ids([s.work_item(2)], "lease_token"), [2]),
    "no item": (lambda s: [s.work_item(0), s.work_item(99)], [None, None]),
    "tasks": (lambda s: ids(s.tasks(after="h"), "task_id"), ["i", "j"]),
    "tasks of a status": (lambda s: ids(s.tasks(status=TaskStatus.CANCELLED), "task_id"), ["c", "j"]),
    "tasks of a status, behind": (
        lambda s: ids(s.tasks(status=TaskStatus.CANCELLED, after="c"), "task_id"),
        ["j"],
    ),
    "audits": (lambda s: ids(s.audits("c"), "event"), ["created", "status_changed"]),
    "audits, the newest": (lambda s: audits(s, "b"), ["second"]),
    "latest": (lambda s: [s.latest_checkpoint("b", 3).task_id, s.latest_checkpoint("b").sequence_number], ["b", 3]),
    "no latest": (lambda s: s.latest_checkpoint("b", 1), None),
    "next number": (lambda s: [s.next_checkpoint_number(task) for task in "bcd"], [4, 5, 1]),
    "an unknown task is named": (lambda s: unknown(s, "b", "bb", "c"), ["bb"]),
    "checkpoints": (lambda s: ids(s.checkpoints("b", after=1), "sequence_number"), [2, 3]),
    "evidence": (lambda s: ids(s.evidence("b", before=3), "sequence_number"), [2, 1]),
}
"""The queries: what is asked, and the answer."""


def expired(transaction: Any, now: int, after: tuple[int, int] = (0, 0)) -> Any:
    """Return expired leases."""
    return transaction.expired_leases(now=now, after=after, limit=9)


def evicted(transaction: Any, bytes_max: int) -> list[Any]:
    """Evict results of scope e; return how many, and the results that are left."""
    count = transaction.evict_keys("e", bytes_max=bytes_max)
    left = transaction.execute(
        "SELECT key FROM idempotency_keys WHERE scope = 'e' AND result IS NOT NULL ORDER BY key", ()
    )
    return [count, [key for (key,) in left.fetchall()]]


def audits(transaction: Any, task: str) -> list[str]:
    """Add two rows to a trail, and one to another; return what the newest says."""
    for name, text in ((task, "first"), (task, "second"), ("c", "third")):
        transaction.insert_audit(Audit(name, "said", None, None, text, NOW))
    return ids(transaction.audits(task, limit=1), "detail")


def unknown(transaction: Any, *tasks: str) -> list[str]:
    """Insert checkpoints of these tasks; return those that the error names."""
    try:
        transaction.insert_checkpoints([checkpoint_of(task, 9) for task in tasks])
    except UnknownTask as error:
        return [task for task in tasks if repr(task) in str(error)]
    return []
