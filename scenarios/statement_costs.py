"""What a statement costs: no more when there are many rows that do not concern it.

A store that has run for a year has millions of ended items, jobs and deliveries. Recovery must not
walk them. The steps of SQLite's machine are counted, which no load of the computer changes.
"""

# ruff: noqa: S608 - statements are put together from the constants of this module alone

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from durable_agents.store.rows import DeliveryStatus, OutboxKind

from scenarios.statement_rows import EXPIRY, NOW

if TYPE_CHECKING:
    from collections.abc import Callable

MANY: Final = 200
_NUMBERS = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY})"


def _items(status: str, type_: str = "work", priority: str = "9", task: str = "b") -> str:
    return (
        f"{_NUMBERS} INSERT INTO work_items (task_id, type, priority, status, retries, max_retries, lease_token, "
        f"error, created_at, updated_at) SELECT '{task}', '{type_}', {priority}, '{status}', 0, 0, 0, '', 0, 0 FROM n"
    )


def _jobs(status: str, number: str = "NULL", agent: str = "builder") -> str:
    return (
        f"{_NUMBERS} INSERT INTO jobs (job_id, agent, repo, task_id, status, attempts, max_attempts, claim, error, "
        f"created_at, updated_at) SELECT {number}, '{agent}', '', 'a', '{status}', 1, 1, 1, '', 0, 0 FROM n"
    )


def _deliveries(status: str, received_at: int = 0) -> str:
    return (
        f"{_NUMBERS} INSERT INTO webhook_inbox (source, identity, delivery_id, event, received_at, status, attempts, "
        f"error, body) SELECT 'forge', 'm' || '{status}' || i, '', '', {received_at}, '{status}', 1, '', '' FROM n"
    )


def _keys(status: str, *, is_used: bool) -> str:
    has_ended = status in {"done", "failed"}
    return (
        f"{_NUMBERS} INSERT INTO idempotency_keys (key, scope, request_hash, status, token, owner, claim_expires_at, "
        f"expires_at, used_at, created_at, result) SELECT '{status}' || i, 'e', hex(zeroblob(32)), '{status}', 1, 'o', "
        f"{1 if status == 'executing' else 'NULL'}, {1 if has_ended else 'NULL'}, {'i' if is_used else 'NULL'}, "
        f"0, {'zeroblob(9)' if has_ended else 'NULL'} FROM n"
    )


ENDED_ITEMS: Final = (_items("completed"), _items("failed"))
ENDED_JOBS: Final = (_jobs("done"), _jobs("failed", "-i"))
ENDED_TASKS: Final = (
    f"{_NUMBERS} INSERT INTO tasks SELECT 'ended' || i, NULL, 'succeeded', 'idle', 1, 1, 1 FROM n",
    f"{_NUMBERS} INSERT INTO tasks SELECT 'a' || i, NULL, 'failed', 'idle', 1, 1, 1 FROM n",
)
ALERTS: Final = (
    f"{_NUMBERS} INSERT INTO outbox SELECT 100 + i, 'alert', 1, 100 + i, '', '', 'f', '', 0, '', 0, NULL, 0 FROM n",
)
ADVANCES: Final = (
    f"{_NUMBERS} INSERT INTO outbox SELECT 900 + i, 'advance', 1, 100 + i, '', '', 'c', '', 0, '', 0, NULL, 0 FROM n",
)
SOURCES: Final = (
    *ENDED_TASKS,
    f"{_NUMBERS} INSERT INTO task_sources SELECT 'ended' || i, 'r', 'z' || i, '' FROM n",
)


class Cost:
    """A statement, and rows that must not make it slower."""

    def __init__(self, statement: Callable[[Any], object], *others: str) -> None:
        """Keep them."""
        self.statement, self.others = statement, others

    def add_rows(self, transaction: Any) -> None:
        """Add the rows that do not concern it."""
        for each in self.others:
            transaction.execute(each, ())

    def steps(self, transaction: Any) -> int:
        """Count the steps of SQLite's machine, and undo what the statement did."""
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection = transaction.connection
        connection.execute("SAVEPOINT cost")
        connection.set_progress_handler(count, 1)
        try:
            self.statement(transaction)
        finally:
            connection.set_progress_handler(None, 0)
            connection.execute("ROLLBACK TO cost")
        return steps


def granting(**filters: Any) -> Callable[[Any], object]:
    """Return a grant of one item, or of some."""
    given = {"type": None, "task_id": None, "limit": 1, **filters}
    return lambda t: t.grant_leases(holder="h", expires_at=EXPIRY, now=NOW, **given)


COSTS: Final[dict[str, Cost]] = {
    "a grant": Cost(granting(), *ENDED_ITEMS, _items("pending", priority="-1")),
    "a grant, of a queue": Cost(granting(), _items("pending", priority="0")),
    "a grant, of a type": Cost(granting(type="work"), *ENDED_ITEMS, _items("pending", type_="other")),
    "a grant, of a type's queue": Cost(granting(type="work"), _items("pending", priority="0")),
    "a grant, of a task": Cost(granting(task_id="b"), *ENDED_ITEMS, _items("pending", task="a")),
    "a grant, of a task's queue": Cost(granting(task_id="b"), _items("pending", priority="0")),
    "expired leases": Cost(
        lambda t: t.expired_leases(now=EXPIRY, after=(0, 0), limit=9), *ENDED_ITEMS, _items("pending")
    ),
    "a claim": Cost(
        lambda t: t.claim_job(["builder"], monitor_pid=1, monitor_start="1", now=NOW), *ENDED_JOBS, *ENDED_TASKS
    ),
    "a claim by anybody": Cost(
        lambda t: t.claim_job(None, monitor_pid=1, monitor_start="1", now=NOW), *ENDED_JOBS, *ENDED_TASKS
    ),
    "a claim where no job waits": Cost(
        lambda t: t.claim_job(["checker"], monitor_pid=1, monitor_start="1", now=NOW),
        _jobs("done", agent="checker"),
        _jobs("queued"),
    ),
    "running jobs": Cost(lambda t: t.running_jobs("r"), *ENDED_JOBS),
    "active jobs": Cost(lambda t: t.active_jobs("a"), *ENDED_JOBS),
    "counts": Cost(lambda t: t.active_job_counts(), *ENDED_JOBS),
    "tasks that wait": Cost(
        lambda t: t.waiting_tasks("idle", entered_until=NOW + 9), *ENDED_TASKS, *ALERTS, *ADVANCES, *ENDED_JOBS
    ),
    "tasks of a commit": Cost(lambda t: t.tasks_of_commit("r", "s1"), *SOURCES),
    "tasks of a branch": Cost(lambda t: t.tasks_of_branch("r", "x"), *SOURCES),
    "pending deliveries": Cost(
        lambda t: t.pending_deliveries(after=0, limit=9), _deliveries("handled"), _deliveries("failed")
    ),
    "the oldest handled delivery": Cost(
        lambda t: t.oldest_handled_delivery(), _deliveries("pending"), _deliveries("failed")
    ),
    "handled deliveries that are old": Cost(
        lambda t: t.delete_deliveries(before=NOW + 9, limit=9),
        _deliveries("pending"),
        _deliveries("failed"),
        _deliveries("handled", NOW + 99),
    ),
    "a count of failed deliveries": Cost(
        lambda t: t.deliveries(DeliveryStatus.FAILED), _deliveries("pending"), _deliveries("handled")
    ),
    "a count of pending deliveries": Cost(
        lambda t: t.deliveries(DeliveryStatus.PENDING), _deliveries("failed"), _deliveries("handled")
    ),
    "advances": Cost(lambda t: t.outbox(OutboxKind.ADVANCE), *ALERTS),
    "an eviction": Cost(
        lambda t: t.evict_keys("e", bytes_max=20),
        _keys("executing", is_used=True),
        _keys("in_doubt", is_used=True),
        _keys("done", is_used=False),
    ),
}
"""The statements, by name."""
