"""The planted defects of an agent's own state are defects of their kind,
and the sound parts have none of them.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from durable_agents import Buffers, Roots, StateStore, SyncQueue, Workspaces
from durable_agents.errors import PushFailed
from durable_agents.processes import start_of

from tests.planted.state import (
    buffers as planted_buffers,
    sync_queue as planted_queues,
    workspaces as planted_workspaces,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from durable_agents import SyncEntry


@pytest.fixture(name="roots")
def _roots(tmp_path: Path) -> Roots:
    roots = Roots(str(tmp_path))
    roots.make()
    return roots


@pytest.fixture(name="state")
def _state(roots: Roots) -> Iterator[StateStore]:
    with StateStore(db_path=roots.database) as state:
        yield state


@pytest.mark.parametrize("kind", [Workspaces, planted_workspaces.FailsEveryone])
def test_a_live_executor_at_a_start(roots: Roots, state: StateStore, kind: type[Workspaces]) -> None:
    """D23: the variant fails it, the sound one lets it run."""
    file = roots.workspaces / "w" / "status.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"status": "running", "pid": os.getpid(), "pid_start": start_of(os.getpid())}))
    kind(roots, state).hydrate()
    assert json.loads(file.read_text())["status"] == ("running" if kind is Workspaces else "failed")


@pytest.mark.parametrize("kind", [Workspaces, planted_workspaces.TrustsTheNumber])
def test_a_number_that_went_round(roots: Roots, state: StateStore, kind: type[Workspaces]) -> None:
    """D18: the variant takes whoever has the number now for the executor."""
    file = roots.workspaces / "w" / "status.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"status": "running", "pid": os.getpid(), "pid_start": "another-boot:1"}))
    kind(roots, state).hydrate()
    assert json.loads(file.read_text())["status"] == ("failed" if kind is Workspaces else "running")


@pytest.mark.parametrize("kind", [Buffers, planted_buffers.DiscardsTheLiving])
def test_a_cycle_under_way_at_a_start(roots: Roots, state: StateStore, kind: type[Buffers]) -> None:
    """D24: the variant removes its buffer under its hands."""
    with Buffers(roots, state).begin("qa") as cycle:
        kind(roots, state).recover_orphans()
        assert cycle.path.exists() is (kind is Buffers)


@pytest.mark.parametrize("kind", [Buffers, planted_buffers.MarksByName])
def test_the_second_cycle_of_a_name(roots: Roots, state: StateStore, kind: type[Buffers]) -> None:
    """D25: the variant says that it committed, and the history does not have it."""
    buffers = kind(roots, state)
    for number in (1, 2):
        with buffers.begin("nightly") as cycle:
            cycle.put("finding", number)
            assert cycle.commit()
    assert len(list(buffers.history())) == (2 if kind is Buffers else 1)


@pytest.mark.parametrize("kind", [SyncQueue, planted_queues.DequeuesFirst, planted_queues.Overtakes])
def test_a_push_that_fails(roots: Roots, state: StateStore, kind: type[SyncQueue]) -> None:
    """One variant loses it, the other lets the next go first;
    the sound one keeps both, in order.
    """
    asked: list[str] = []

    def push(entry: SyncEntry) -> None:
        asked.append(entry.agent_id)
        if len(asked) == 1:
            message = "not now"
            raise PushFailed(message)

    queue = kind(roots, state, push)
    queue.enqueue("a", [])
    queue.enqueue("b", [])
    for _ in range(2):
        queue.run_once(0)
    waiting = [entry.agent_id for entry in queue.entries()]
    expected = {SyncQueue: ["a", "b"], planted_queues.DequeuesFirst: [], planted_queues.Overtakes: ["a"]}
    assert waiting == expected[kind]


@pytest.mark.parametrize("kind", [SyncQueue, planted_queues.FileOnly, planted_queues.StoreOnly])
def test_both_copies(roots: Roots, state: StateStore, kind: type[SyncQueue]) -> None:
    """Each variant leaves one of them out."""
    kind(roots, state, lambda _: None).enqueue("a", [])
    assert (roots.state / "sync_queue.json").exists() is (kind is not planted_queues.StoreOnly)
    assert state.count("sync_queue") == (kind is not planted_queues.FileOnly)
