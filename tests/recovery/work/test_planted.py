"""The planted defects really are defects of their kind,
and pass the crash points of the sound manager.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from durable_agents import CHECKPOINT_CRASH_POINTS, CheckpointManager, SqliteStore, TaskManager

from tests.planted.work.checkpoints import AckBeforeCommit, NumberOutsideTransaction, SynchronousOff, TwoTransactions

_ROOT: Final = Path(__file__).parents[3]
_TIMEOUT_S: Final = 60
_MANAGERS: Final = (CheckpointManager, NumberOutsideTransaction, AckBeforeCommit, TwoTransactions, SynchronousOff)

_KILLED: Final = """
import importlib, os, signal, sys
path, module, name, point = sys.argv[1:]
from durable_agents import TaskManager
manager = getattr(importlib.import_module(module), name)(db_path=path)
TaskManager(manager.store).create("t")
manager.save("t", {"step": 1})
def hook(event, arguments):
    if event == point:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
manager.save("t", {"step": 2})
"""


def _killed_at(manager: type[CheckpointManager], path: Path, point: str) -> list[tuple[int, str]]:
    """Kill a process at the point of its second save;
    return the numbers and snapshots it leaves.
    """
    command = [sys.executable, "-c", _KILLED, str(path), manager.__module__, manager.__name__, point]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    ended = subprocess.run(command, env=environment, timeout=_TIMEOUT_S, check=False)
    assert ended.returncode == -signal.SIGKILL
    with CheckpointManager(db_path=path) as sound:
        rows = sound.store.checkpoints("t")
        return [(row.sequence_number, row.snapshot.decode()) for row in rows]


_FIRST: Final = (1, '{"step":1}')
_SECOND: Final = (2, '{"step":2}')


@pytest.mark.parametrize("point", CHECKPOINT_CRASH_POINTS)
@pytest.mark.parametrize("manager", [CheckpointManager, SynchronousOff, NumberOutsideTransaction])
def test_a_kill_leaves_a_save_whole_or_not_at_all(manager: type[CheckpointManager], tmp_path: Path, point: str) -> None:
    """Up to the commit there is nothing of the second save, after it everything;
    the sound manager among them.
    """
    is_committed = CHECKPOINT_CRASH_POINTS.index(point) >= CHECKPOINT_CRASH_POINTS.index(
        "recovery.checkpoint.after_commit"
    )
    assert _killed_at(manager, tmp_path / "store.db", point) == [_FIRST, _SECOND][: 1 + is_committed]


def test_two_transactions_leave_half_a_checkpoint(tmp_path: Path) -> None:
    """A kill between the two leaves a number without its snapshot."""
    assert _killed_at(TwoTransactions, tmp_path / "store.db", "recovery.checkpoint.before_commit") == [_FIRST, (2, "")]


def test_an_ack_before_the_commit_is_lost(tmp_path: Path) -> None:
    """A kill after what claims to be the commit leaves nothing of it."""
    assert _killed_at(AckBeforeCommit, tmp_path / "store.db", "recovery.checkpoint.before_ack") == [_FIRST]


def test_a_number_taken_outside_is_taken_twice(tmp_path: Path) -> None:
    """A second writer between the two transactions gets the same number."""
    path = tmp_path / "store.db"
    with NumberOutsideTransaction(db_path=path) as first, NumberOutsideTransaction(db_path=path) as second:
        TaskManager(first.store).create("t")
        numbers: list[int] = []

        def interrupt(event: str, arguments: tuple[object, ...]) -> None:
            if event == "recovery.checkpoint.after_number" and arguments[0] == "t" and not numbers:
                numbers.append(0)  # only once, and never again after this test
                numbers.append(second.save("t", "second").sequence_number)

        sys.addaudithook(interrupt)
        numbers.append(first.save("t", "first").sequence_number)
        assert numbers == [0, 1, 1]
        assert [row.sequence_number for row in first.list("t")] == [1, 1]


def test_only_the_pragmas_tell_that_nothing_is_flushed(tmp_path: Path) -> None:
    """A connection without synchronisation says so, and each of the others says FULL."""
    levels = {}
    for kind in _MANAGERS:
        with kind(db_path=tmp_path / f"{kind.__name__}.db") as manager:
            assert isinstance(manager.store, SqliteStore)
            levels[kind] = manager.store.pragmas().synchronous
    assert levels == dict.fromkeys(_MANAGERS, "FULL") | {SynchronousOff: "OFF"}


@pytest.mark.parametrize("kind", _MANAGERS)
def test_without_a_fault_no_defect_shows(kind: type[CheckpointManager], tmp_path: Path) -> None:
    """Each variant, left alone, saves, reads and reopens like the sound manager,
    past the same crash points.
    """
    path = tmp_path / "store.db"
    passed: list[str] = []
    is_listening = True

    def listen(event: str, _: tuple[object, ...]) -> None:
        if is_listening and event.startswith("recovery.checkpoint."):
            passed.append(event)

    sys.addaudithook(listen)
    with kind(db_path=path) as manager:
        TaskManager(manager.store).create("t")
        saved = [manager.save("t", number) for number in range(3)]
        assert manager.latest("t") == saved[-1]
    is_listening = False
    assert passed == list(CHECKPOINT_CRASH_POINTS) * 3
    with kind(db_path=path) as manager:
        assert manager.list("t") == saved
