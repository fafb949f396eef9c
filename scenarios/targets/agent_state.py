"""An agent's own state, as any agent uses it: it tracks, runs a cycle, queues pushes;
a start-up is its recovery.
"""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING, Any
from unittest import mock

from durable_agents import (
    Buffers,
    ManualClock,
    Roots,
    RuntimeState,
    StateStore,
    SyncQueue,
    Workspaces,
    WorkspaceStatus,
    load_runtime,
    persist_runtime,
)
from durable_agents.state.buffers import QUARANTINE, BufferOwner
from durable_agents.state.startup import startup
from pytest_chaos import Finding

from scenarios.work.agents import class_named, made

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pytest_chaos import Mark, Marks

WORKSPACE = "org/repo/task"
STATUSES = ("queued", "running", "completed")
AFTER_START = {"queued": "queued", "running": "failed", "completed": "completed"}
"""What a start makes of a status whose executor, pid 0, is dead."""
PUSHES = ("first", "second")
FINDINGS = 3
OWNER = BufferOwner("qa", "0" * 16 + "-" + "a" * 12, 4_194_305, "00000000-0000-0000-0000-000000000000:1")
SOUND = {
    "workspaces": "durable_agents:Workspaces",
    "buffers": "durable_agents:Buffers",
    "sync_queue": "durable_agents:SyncQueue",
}


class AgentState:
    """One agent with one workspace, one cycle and two pushes.
    ``parts`` names what is planted in it.

    What an exploration does again must be the same again: names that are drawn elsewhere are
    numbered here, the clock stands still, and the cycle's owner is one that is dead in any case.
    """

    def __init__(self, **parts: str) -> None:
        self.name = next((name.rpartition(":")[2] for name in parts.values()), "AgentState")
        self._parts = SOUND | parts

    def setup(self, directory: Path) -> None:
        """Make the folders and the store, as an earlier start has."""
        roots = Roots(str(directory))
        roots.make()
        with StateStore(db_path=roots.database) as state:
            assert state.store is not None

    def run(self, directory: Path, marks: Marks) -> None:
        """Do each operation of an agent once."""
        roots, numbers, clock = Roots(str(directory)), itertools.count(), ManualClock()
        drawn = mock.patch.object(secrets, "token_hex", lambda size: f"{next(numbers):0{2 * size}x}")
        with drawn, StateStore(db_path=roots.database) as state:
            workspaces: Workspaces = made(self._parts["workspaces"], roots, state, clock=clock)
            queue: SyncQueue = made(self._parts["sync_queue"], roots, state, lambda _: None, clock=clock)
            for place, status in enumerate(STATUSES):
                marks.intent("track", place)
                workspaces.track(WORKSPACE, WorkspaceStatus(status=status, agent="codex", pid=0, started_at=1))
                marks.ack("track", place)
            for name in PUSHES:
                marks.intent("enqueue", name)
                queue.enqueue(name, [{"workspace": WORKSPACE}], key=name)
                marks.ack("enqueue", name)
            marks.intent("runtime")
            if persist_runtime(state, RuntimeState({"codex": 9}, {"codex": 2})):
                marks.ack("runtime")
            if state.store is None:
                marks.note("without-store")
            self._cycle(roots, state, marks)

    def _cycle(self, roots: Roots, state: StateStore, marks: Marks) -> None:
        kind: type[Buffers] = class_named(self._parts["buffers"])
        with kind.buffer(roots.buffers, OWNER, state, ManualClock()) as cycle:
            for number in range(FINDINGS):
                cycle.put("finding", number)
            marks.intent("cycle", cycle.cycle_id)
            if cycle.commit():
                marks.ack("cycle", cycle.cycle_id)

    def recover(self, directory: Path) -> None:
        """Start again."""
        roots = Roots(str(directory))
        with StateStore(db_path=roots.database) as state:
            workspaces: Workspaces = made(self._parts["workspaces"], roots, state)
            buffers: Buffers = made(self._parts["buffers"], roots, state)
            found = startup(workspaces, buffers, state)
            assert not found.problems, f"the start had problems: {found.problems}"

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[Finding]:
        """Compare the files and the store with the marks."""
        roots = Roots(str(directory))
        with StateStore(db_path=roots.database) as state:
            said = Said(marks)
            yield from self._check_workspace(roots, state, said)
            queue = SyncQueue(roots, state, lambda _: None)
            names = [entry.agent_id for entry in queue.entries()]
            if not (said.acknowledged("enqueue") <= set(names) <= said.intended("enqueue")):
                yield Finding(signature="sync:lost", text=f"in the queue are {names}")
            if names != sorted(names, key=PUSHES.index):
                yield Finding(signature="sync:out-of-order", text=f"in the queue are {names}")
            if said.acknowledged("runtime") and load_runtime(state) != RuntimeState({"codex": 9}, {"codex": 2}):
                yield Finding(signature="runtime:lost", text="the runtime state is not what was acknowledged")
            yield from self._check_cycle(roots, state, said)

    def _check_workspace(self, roots: Roots, state: StateStore, said: Said) -> Iterator[Finding]:
        again = Workspaces(roots, state)
        again.hydrate()
        known = again.get(WORKSPACE)
        at_least = max((int(str(key)) for key in said.acknowledged("track")), default=-1)
        at_most = max((int(str(key)) for key in said.intended("track")), default=-1)
        possible = {AFTER_START[status] for status in STATUSES[max(at_least, 0) : at_most + 1]}
        status = None if known is None else known.status
        if status not in possible and not (status is None and at_least < 0):
            text = f"the workspace is {status}, expected one of {sorted(possible)}"
            yield Finding(signature="workspaces:lost", text=text)
        stored = state.get("registry", WORKSPACE)
        if (stored or {}).get("status") != status:
            yield Finding(signature="workspaces:registry-differs", text=f"{stored} is stored, and it is {status}")
        rows = len(list(again.dispatches()))
        if rows > 1 or (not rows and at_least >= 1 and not said.was_without_store):
            yield Finding(signature="workspaces:dispatches", text=f"{rows} dispatches are in the history, one was")

    def _check_cycle(self, roots: Roots, state: StateStore, said: Said) -> Iterator[Finding]:
        buffers = Buffers(roots, state)
        found: dict[Any, int] = {
            cycle.cycle_id: len(list(buffers.entries(cycle.cycle_id))) for cycle in buffers.history()
        }
        if not (said.acknowledged("cycle") <= set(found) <= said.intended("cycle")):
            yield Finding(signature="cycles:lost", text=f"in the history are {found}")
        if set(found.values()) - {FINDINGS}:
            yield Finding(signature="cycles:half-there", text=f"in the history are {found}")
        # After a loss of power a buffer may be torn, which is for people to look at.
        if left := sorted(path.name for path in roots.buffers.iterdir() if path.name != QUARANTINE):
            yield Finding(signature="orphans:left", text=f"after the start there is {left}")


class Said:
    """The content of the marks."""

    def __init__(self, marks: Sequence[Mark]) -> None:
        self._marks = marks

    def acknowledged(self, operation: str) -> set[Any]:
        """Return the keys of its acks."""
        return {mark.key for mark in self._marks if mark.kind == "ack" and mark.operation == operation}

    @property
    def was_without_store(self) -> bool:
        """Whether the agent went on without a store, and said so:
        then files are all that it has.
        """
        return any(mark.operation == "without-store" for mark in self._marks)

    def intended(self, operation: str) -> set[Any]:
        """Return the keys of its intents."""
        return {mark.key for mark in self._marks if mark.kind == "intent" and mark.operation == operation}
