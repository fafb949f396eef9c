"""The checks that need no script: ways to a state, and calls that do not wait for a lock."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest
from durable_agents import JobQueue, TaskManager, TaskStatus

from scenarios.model.ways import check_ways
from scenarios.questions.world import unlocked

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Return a database with a task that was started, and its job that runs."""
    with JobQueue(db_path=tmp_path / "recovery.db") as queue:
        tasks = TaskManager(queue.store)
        tasks.create("t", stage="build")
        tasks.set_status("t", TaskStatus.RUNNING, expected=TaskStatus.CREATED)
        queue.enqueue("builder", task_id="t")
        queue.claim()
    return tmp_path / "recovery.db"


@pytest.mark.parametrize(
    ("statement", "signatures"),
    [
        ("SELECT 1", set()),
        ("UPDATE tasks SET status = 'succeeded'", {"model:trail-ends-elsewhere"}),
        ("UPDATE task_audits SET before = 'failed' WHERE before = 'created'", {
            "model:trail-has-a-gap", "model:status-may-not-follow"
        }),
        ("UPDATE jobs SET attempts = 0", {"model:attempts-are-not-the-runs"}),
        ("UPDATE jobs SET status = 'queued', attempts = 0, run_id = NULL", {"model:attempts-are-not-the-runs"}),
    ],
)  # fmt: skip
def test_rows_to_which_no_way_leads_are_found(database: Path, statement: str, signatures: set[str]) -> None:
    """A row that was changed without its trail, or a step that may not follow, is found."""
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)
    assert {finding.signature for finding in check_ways(database)} == signatures


def test_calls_that_do_not_wait_are_told() -> None:
    """A call that takes the lock waits for it; one that does not comes to its end."""
    lock = threading.Lock()

    def waits() -> None:
        with lock:
            pass

    assert unlocked(lock, waits=waits, hurries=lambda: None) == ["hurries"]
