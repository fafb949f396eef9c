"""Tasks: created once, moved by compare-and-set, with an audit row for each change."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents import ManualClock, Task, TaskManager, TaskStatus
from durable_agents.errors import InvalidTask, InvalidTransition, StatusConflict, TaskConflict, UnknownTask
from durable_agents.work.tasks import TRANSITIONS, Audit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="clock")
def _clock() -> ManualClock:
    return ManualClock(1_000_000)


@pytest.fixture(name="tasks")
def _tasks(tmp_path: Path, clock: ManualClock) -> Iterator[TaskManager]:
    with TaskManager(db_path=tmp_path / "store.db", clock=clock) as tasks:
        yield tasks


def test_a_task_comes_back_as_it_was_created(tasks: TaskManager) -> None:
    """All fields are those that create returned, and the creation is in the audit trail."""
    created = tasks.create("t", tracker_key="ORCH-1", stage="plan")
    assert created == Task("t", "ORCH-1", TaskStatus.CREATED, "plan", 1_000_000, 1_000_000, 1_000_000)
    assert tasks.get("t") == created
    assert tasks.audits("t") == [Audit("t", "created", None, "created", "", 1_000_000)]


def test_ids_that_are_made_up_differ_and_sort_by_age(tasks: TaskManager, clock: ManualClock) -> None:
    """A caller who gives no id gets one; later tasks have larger ones."""
    ids = []
    for _ in range(5):
        ids.append(tasks.create().task_id)
        clock.advance(0.001)
    assert len(set(ids)) == 5
    assert [task.task_id for task in tasks.list()] == ids == sorted(ids)


def test_creating_again_changes_nothing(tasks: TaskManager, clock: ManualClock) -> None:
    """The same id, or the same tracker key, gives the task that is there,
    and no second audit row.
    """
    created = tasks.create("t", tracker_key="ORCH-1")
    clock.advance(5)
    assert tasks.create("t", tracker_key="ORCH-1", stage="later") == created
    assert tasks.create(tracker_key="ORCH-1") == created
    assert tasks.list() == [created]
    assert len(tasks.audits("t")) == 1


@pytest.mark.parametrize(
    ("task_id", "tracker_key"), [("t", "ORCH-2"), ("t", None), ("u", "ORCH-1"), ("t", "ORCH-9"), ("v", "ORCH-1")]
)
def test_an_id_and_a_key_of_different_tasks_are_a_conflict(
    tasks: TaskManager, task_id: str, tracker_key: str | None
) -> None:
    """What is taken under other terms is refused, and both tasks stay as they are."""
    before = [tasks.create("t", tracker_key="ORCH-1"), tasks.create("u", tracker_key="ORCH-2")]
    with pytest.raises(TaskConflict, match="Use that one, or another id and key"):
        tasks.create(task_id, tracker_key=tracker_key)
    assert tasks.list() == before


def test_many_creators_of_one_tracker_key_make_one_task(tasks: TaskManager) -> None:
    """Eight threads, one key: one task, one audit row, and all are given it."""
    start = threading.Barrier(8)

    def create(_: int) -> Task:
        start.wait()
        return tasks.create(tracker_key="ORCH-1")

    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(create, range(8)))
    assert tasks.list() == [created[0]]
    assert created == [created[0]] * 8
    assert len(tasks.audits(created[0].task_id)) == 1


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800", 7])
def test_ids_and_keys_that_cannot_be_stored_are_refused(tasks: TaskManager, text: Any) -> None:
    """Empty text, NUL, lone surrogates and numbers are refused for an id and for a key."""
    with pytest.raises(InvalidTask, match="task_id must be"):
        tasks.create(text)
    with pytest.raises(InvalidTask, match="tracker_key must be"):
        tasks.create(tracker_key=text)
    assert tasks.list() == []


def test_a_status_moves_with_its_audit_row(tasks: TaskManager, clock: ManualClock) -> None:
    """The returned task, the stored one and the trail agree;
    the stage's age is not touched (D21).
    """
    tasks.create("t", stage="plan")
    clock.advance(1)
    moved = tasks.set_status("t", TaskStatus.RUNNING, expected=TaskStatus.CREATED, detail="taken by 'w1'")
    assert moved == Task("t", None, TaskStatus.RUNNING, "plan", 1_000_000, 1_000_000, 2_000_000)
    assert tasks.get("t") == moved
    assert tasks.audits("t")[1:] == [Audit("t", "status_changed", "created", "running", "taken by 'w1'", 2_000_000)]


def test_a_wrong_expectation_loses(tasks: TaskManager) -> None:
    """Of two callers who expect the same status the second is told what it is now,
    and nothing changes.
    """
    tasks.create("t")
    running = tasks.set_status("t", TaskStatus.RUNNING, expected=TaskStatus.CREATED)
    with pytest.raises(StatusConflict, match="Task 't' must be created; got running"):
        tasks.set_status("t", TaskStatus.CANCELLED, expected=TaskStatus.CREATED)
    assert tasks.get("t") == running
    assert len(tasks.audits("t")) == 2


@pytest.mark.parametrize(("expected", "status"), list(itertools.product(TaskStatus, TaskStatus)))
def test_only_the_declared_transitions_exist(tasks: TaskManager, expected: TaskStatus, status: TaskStatus) -> None:
    """Every pair of statuses is either declared and works,
    or is refused before the store is asked.
    """
    tasks.create("t")
    for step in _way_to(expected):
        tasks.set_status("t", step[1], expected=step[0])
    if status in TRANSITIONS[expected]:
        assert tasks.set_status("t", status, expected=expected).status == status
    else:
        with pytest.raises(InvalidTransition, match=f"may follow {expected}; got {status}"):
            tasks.set_status("t", status, expected=expected)
        assert tasks.get("t").status == expected


def test_unknown_tasks_are_named(tasks: TaskManager) -> None:
    """Reading, moving and asking for the trail of a task that does not exist raise UnknownTask."""
    for call in (
        lambda: tasks.get("t"),
        lambda: tasks.audits("t"),
        lambda: tasks.set_status("t", TaskStatus.RUNNING, expected=TaskStatus.CREATED),
    ):
        with pytest.raises(UnknownTask, match="task_id must be that of a task; got 't'"):
            call()


def test_tasks_are_listed_by_status(tasks: TaskManager) -> None:
    """A status selects, ``after`` and ``limit`` page."""
    for task_id in ("a", "b", "c"):
        tasks.create(task_id)
    tasks.set_status("b", TaskStatus.RUNNING, expected=TaskStatus.CREATED)
    assert [task.task_id for task in tasks.list(status=TaskStatus.CREATED)] == ["a", "c"]
    assert [task.task_id for task in tasks.list(after="a", limit=1)] == ["b"]


def _way_to(status: TaskStatus) -> list[tuple[TaskStatus, TaskStatus]]:
    if status is TaskStatus.CREATED:
        return []
    way = [(TaskStatus.CREATED, TaskStatus.RUNNING)]
    return way if status is TaskStatus.RUNNING else [*way, (TaskStatus.RUNNING, status)]
