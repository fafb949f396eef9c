"""Checkpoints: what was saved is what is read, numbered without gaps by any number of writers."""

from __future__ import annotations

import datetime as dt
import decimal
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from durable_agents import (
    CHECKPOINT_CRASH_POINTS,
    Checkpoint,
    CheckpointManager,
    CheckpointType,
    ManualClock,
    TaskManager,
    open_store,
)
from durable_agents.errors import (
    CorruptCheckpoint,
    InvalidCheckpointType,
    InvalidSetting,
    InvalidSnapshot,
    InvalidTask,
    SnapshotTooLarge,
    UnknownTask,
)
from durable_agents.snapshots import decoded, encoded
from durable_agents.work.checkpoints import NO_NUMBER
from hypothesis import given, settings, strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROOT: Final = Path(__file__).parents[3]
_TIMEOUT_S: Final = 120
_NOW: Final = 1_700_000_000_000_000
_STRANGE_IDS: Final = ("it's", 'a "quoted" id', "two\nlines", "задача-7", "漢字 🙂", "'; DROP TABLE tasks; --")


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture(name="manager")
def _manager(path: Path) -> Iterator[CheckpointManager]:
    with CheckpointManager(db_path=path, clock=ManualClock(_NOW)) as manager:
        TaskManager(manager.store).create("t")
        yield manager


def test_a_checkpoint_comes_back_as_it_was_saved(manager: CheckpointManager) -> None:
    """Number, type, snapshot, time and the hash of the stored bytes are those that
    save returned.
    """
    snapshot = {"iteration": 3, "done": ["a", None, True, 1.5], "ключ": {"🙂": 2**70}}
    saved = manager.save("t", snapshot, type="my own type")
    content = json.dumps(snapshot, ensure_ascii=False, separators=(",", ":")).encode()
    expected = Checkpoint("t", 1, "my own type", snapshot, hashlib.sha256(content).hexdigest(), _NOW)
    assert saved == expected
    assert manager.latest("t") == expected
    assert manager.list("t") == [expected]


def test_a_checkpoint_outlives_its_manager(manager: CheckpointManager, path: Path) -> None:
    """Another manager, opened while the first one is still open, reads what was acknowledged."""
    saved = manager.save("t", [1])
    with CheckpointManager(db_path=path) as other:
        assert other.latest("t") == saved


def test_the_default_type_is_the_end_of_an_iteration(manager: CheckpointManager) -> None:
    """A type of the core's own is stored by its value."""
    assert manager.save("t", 1).type == "iteration_end"
    assert manager.save("t", 1, type=CheckpointType.ERROR_BOUNDARY).type == "error_boundary"
    assert [checkpoint.type for checkpoint in manager.list("t")] == ["iteration_end", "error_boundary"]


def test_numbers_are_contiguous_for_each_task(manager: CheckpointManager) -> None:
    """Tasks with any text for an id count on their own from one."""
    tasks = TaskManager(manager.store)
    for task_id in _STRANGE_IDS:
        tasks.create(task_id)
        assert [manager.save(task_id, number).sequence_number for number in (1, 2, 3)] == [1, 2, 3]
    for task_id in _STRANGE_IDS:
        assert [(row.task_id, row.snapshot) for row in manager.list(task_id)] == [(task_id, n) for n in (1, 2, 3)]


def test_the_newest_is_the_largest_number_whatever_the_clock_says(manager: CheckpointManager, path: Path) -> None:
    """A clock that was set back does not make an older checkpoint the newest one."""
    manager.save("t", "first")
    with CheckpointManager(db_path=path, clock=ManualClock(1)) as early:
        assert early.save("t", "second").created_at == 1
    latest = manager.latest("t")
    assert latest is not None
    assert (latest.sequence_number, latest.snapshot) == (2, "second")


def test_older_checkpoints_are_reached_step_by_step(manager: CheckpointManager) -> None:
    """``before`` leads from the newest to the oldest and then to nothing;
    ``list`` pages the other way.
    """
    for number in (1, 2, 3):
        manager.save("t", number)
    second = manager.latest("t", before=3)
    assert second is not None
    assert second.snapshot == 2
    assert manager.latest("t", before=1) is None
    assert [checkpoint.snapshot for checkpoint in manager.list("t", after=1, limit=1)] == [2]


def test_a_task_without_checkpoints_has_none(manager: CheckpointManager) -> None:
    """Nothing saved yet is an answer and no error."""
    assert manager.latest("t") is None
    assert manager.list("t") == []


def test_an_unknown_task_is_an_error(manager: CheckpointManager) -> None:
    """A mistyped id neither gets a checkpoint nor looks like a task that has none."""
    for call in (lambda: manager.save("T", 1), lambda: manager.latest("T"), lambda: manager.list("T")):
        with pytest.raises(UnknownTask, match=r"got 'T'\. Create the task first"):
            call()


@pytest.mark.parametrize("task_id", [7, None, b"t"])
def test_an_id_that_is_no_string_is_refused(manager: CheckpointManager, task_id: Any) -> None:
    """SQLite would turn 7 into '7', which is another caller's task."""
    TaskManager(manager.store).create("7")
    with pytest.raises(InvalidTask, match="The id of a task must be a string"):
        manager.save(task_id, 1)
    assert manager.list("7") == []


@pytest.mark.parametrize("type_", ["", None, 5])
def test_a_type_that_is_no_name_is_refused(manager: CheckpointManager, type_: Any) -> None:
    """A type is a string that is not empty."""
    with pytest.raises(InvalidCheckpointType, match="must be a non-empty string"):
        manager.save("t", 1, type=type_)
    assert manager.list("t") == []


_cycle: list[object] = []
_cycle.append(_cycle)


@pytest.mark.parametrize(
    ("snapshot", "complaint"),
    [
        ({"a": [0, float("nan")]}, "snapshot['a'][1] is nan"),
        ([float("-inf")], "snapshot[0] is -inf"),
        ({"a": {"b": (1, 2)}}, "snapshot['a']['b'] is a tuple"),
        ({1: "a"}, "snapshot[1] is under a key of type int"),
        ({"when": dt.date(2026, 1, 1)}, "snapshot['when'] is a date"),
        ({"price": decimal.Decimal("1.5")}, "snapshot['price'] is a Decimal"),
        ([{1, 2}], "snapshot[0] is a set"),
        (b"bytes", "snapshot is a bytes"),
        (object(), "snapshot is a object"),
        (["\ud800"], "snapshot[0] is text with lone surrogates"),
        ({"\ud800": 1}, "snapshot['\\ud800'] is text with lone surrogates"),
        (_cycle, "it contains itself, or is nested too deeply"),
    ],
)
def test_a_snapshot_that_json_would_change_is_refused(
    manager: CheckpointManager, snapshot: object, complaint: str
) -> None:
    """The error names the place of the first value that would not come back,
    and nothing is saved.
    """
    manager.save("t", "before")
    with pytest.raises(InvalidSnapshot) as caught:
        manager.save("t", snapshot)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("A snapshot must ")
    assert [checkpoint.snapshot for checkpoint in manager.list("t")] == ["before"]


_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(_JSON)
def test_any_json_survives_the_way_to_bytes_and_back(snapshot: object) -> None:
    """Whatever JSON can hold is accepted and comes back equal, with the same types."""
    content, content_hash, copy = encoded(snapshot, None)
    again = decoded(content, content_hash, "t", 1)
    assert repr(again) == repr(copy) == repr(snapshot)
    assert json.loads(content) == snapshot


@settings(max_examples=50)
@given(_JSON, st.sampled_from([float("nan"), (1,), {2}, b"x", dt.datetime(2026, 1, 1), {None: 1}, object()]))  # noqa: DTZ001 - JSON has neither kind
def test_what_is_not_json_is_found_at_any_depth(snapshot: object, wrong: object) -> None:
    """One wrong value among right ones is refused wherever it is."""
    with pytest.raises(InvalidSnapshot):
        encoded({"right": snapshot, "deep": [[{"wrong": wrong}]]}, None)


def test_a_snapshot_is_copied_when_it_is_saved(manager: CheckpointManager) -> None:
    """What the caller does to its value afterwards changes no checkpoint."""
    snapshot = {"done": [1]}
    saved = manager.save("t", snapshot)
    snapshot["done"].append(2)
    assert saved.snapshot == {"done": [1]}


def test_a_snapshot_above_the_bound_is_refused(path: Path) -> None:
    """The bound is in bytes of JSON; at the bound is fine."""
    with CheckpointManager(db_path=path, snapshot_bytes_max=12) as manager:
        TaskManager(manager.store).create("t")
        manager.save("t", "x" * 10)
        with pytest.raises(SnapshotTooLarge, match="at most 12 bytes of JSON; got 13"):
            manager.save("t", "x" * 11)
        assert len(manager.list("t")) == 1


def test_a_large_snapshot_is_kept_whole(manager: CheckpointManager) -> None:
    """Eight megabytes come back with their hash checked."""
    snapshot = {"output": "ab" * 4_000_000}
    manager.save("t", snapshot)
    latest = manager.latest("t")
    assert latest is not None
    assert latest.snapshot == snapshot


def test_a_changed_snapshot_is_not_believed(manager: CheckpointManager, path: Path) -> None:
    """A snapshot that does not match its hash raises when it is read; older ones can still be."""
    manager.save("t", {"step": 1})
    manager.save("t", {"step": 2})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE checkpoints SET snapshot = '{\"step\":9}' WHERE sequence_number = 2")
        connection.commit()
    for call in (lambda: manager.latest("t"), lambda: manager.list("t")):
        with pytest.raises(CorruptCheckpoint, match="Checkpoint 2 of task 't' must have the SHA-256"):
            call()
    older = manager.latest("t", before=2)
    assert older is not None
    assert older.snapshot == {"step": 1}


def test_a_manager_takes_a_store_or_a_path(path: Path) -> None:
    """Both and neither are refused, so that no connection can silently win over another (D13)."""
    with open_store(path) as store:
        with pytest.raises(InvalidSetting, match="either store or db_path must be given"):
            CheckpointManager(store, db_path=path)
        with pytest.raises(InvalidSetting, match="either store or db_path must be given"):
            TaskManager()
        with CheckpointManager(store) as manager:
            assert manager.store is store
        assert store.task("still open") is None


@pytest.mark.parametrize("bytes_max", [0, -1])
def test_a_bound_that_lets_nothing_through_is_refused(path: Path, bytes_max: int) -> None:
    """The bound of a snapshot is at least one byte."""
    with pytest.raises(InvalidSetting, match="snapshot_bytes_max must be 1 or more"):
        CheckpointManager(db_path=path, snapshot_bytes_max=bytes_max)


_heard: list[tuple[str, tuple[object, ...]]] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _heard is not None and event.startswith("recovery."):
        _heard.append((event, arguments))


@pytest.fixture(name="heard")
def _hear() -> Iterator[list[tuple[str, tuple[object, ...]]]]:
    """Return the audit events of the core during a test.
    A hook cannot be removed, so there is one, switched off.
    """
    global _heard  # noqa: PLW0603 - the one place that switches the hook
    if "_installed" not in globals():
        globals()["_installed"] = True
        sys.addaudithook(_listen)
    _heard = []
    yield _heard
    _heard = None


def test_a_save_passes_every_crash_point_once_and_in_order(
    manager: CheckpointManager, heard: list[tuple[str, tuple[object, ...]]]
) -> None:
    """The audit events of a save are exactly the declared ones,
    with the number as soon as there is one.
    """
    manager.save("t", 1)
    heard.clear()
    manager.save("t", 2)
    numbers = [NO_NUMBER, NO_NUMBER, 2, 2, 2, 2, 2]
    assert heard == [(point, ("t", number)) for point, number in zip(CHECKPOINT_CRASH_POINTS, numbers, strict=True)]


def test_a_snapshot_that_is_refused_takes_no_lock(
    manager: CheckpointManager, heard: list[tuple[str, tuple[object, ...]]]
) -> None:
    """What is wrong with the arguments is found before the transaction begins."""
    with pytest.raises(InvalidSnapshot):
        manager.save("t", {1: 2})
    assert heard == []


_WRITER: Final = """
import sys
from durable_agents import CheckpointManager
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with CheckpointManager(db_path=path) as manager:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(count):
        print(manager.save("t", [name, number]).sequence_number)
"""


def test_many_processes_on_one_task_get_every_number_once(manager: CheckpointManager, path: Path) -> None:
    """Ten processes, one file, one task: no double, no gap, no error,
    and each number has its writer's snapshot.
    """
    count = 20
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(name), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for name in range(10)
    ]
    assert [writer.stdout.readline() for writer in writers if writer.stdout] == ["ready\n"] * 10
    for writer in writers:  # all are let go before any is read from, so that they write at the same time
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    outputs = [writer.communicate(timeout=_TIMEOUT_S)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 10
    acknowledged = {
        int(line): [str(name), number]
        for name, output in enumerate(outputs)
        for number, line in enumerate(output.splitlines())
    }
    assert sorted(acknowledged) == list(range(1, 10 * count + 1))
    assert {row.sequence_number: row.snapshot for row in manager.list("t")} == acknowledged


def test_many_threads_on_one_manager_get_every_number_once(manager: CheckpointManager) -> None:
    """Ten threads that share a manager: no double, no gap."""
    with ThreadPoolExecutor(10) as pool:
        saved = list(pool.map(lambda number: manager.save("t", number), range(100)))
    assert sorted(checkpoint.sequence_number for checkpoint in saved) == list(range(1, 101))
    assert manager.list("t") == sorted(saved, key=lambda checkpoint: checkpoint.sequence_number)
