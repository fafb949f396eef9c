"""The mirror: what the state store keeps of workspaces, so that an agent knows after a restart what it had begun.

Four groups, each with the name of a workspace for key unless said otherwise:

``registry``: its status. ``queue``: what waits, and only that. ``concurrency``: how many run, by type of agent
(``codex:gpt-5.4`` and ``codex:gpt-5.4-mini`` are both ``codex``), stored as 0 where none does any more.
``dispatch_history``: a row for each start of an executor; its key is the moment and the name, so that the same
dispatch, told twice because a crash came between, is one row.

All of a change is in one transaction, and counts are moved by what that transaction finds, so several agents on one
store do not overwrite each other's.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from recovery.clock import Microseconds
from recovery.errors import CorruptState
from recovery.state import StateGroup
from recovery.status_files import WorkspaceState, WorkspaceStatus
from recovery.store.rows import StateEntry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from recovery.store import Transaction


class QueueEntry(msgspec.Struct, frozen=True):
    """A workspace that waits to be dispatched."""

    repo: str
    branch: str
    org: str
    task: str
    agent: str
    started_at: Microseconds


class Dispatch(msgspec.Struct, frozen=True):
    """One start of an executor in a workspace."""

    workspace: str
    agent: str
    repo: str
    branch: str
    org: str
    task: str
    started_at: Microseconds


class Running(msgspec.Struct, frozen=True):
    """How many workspaces of one type of agent run."""

    running: int


_Row = TypeVar("_Row", QueueEntry, Dispatch)
_encode: Final = msgspec.json.Encoder().encode
_decode_status: Final = msgspec.json.Decoder(WorkspaceStatus).decode
_decode_running: Final = msgspec.json.Decoder(Running).decode


def agent_type(agent: str) -> str:
    """Return what concurrency is counted by: the agent's name without its model; ``?`` for none."""
    return agent.partition(":")[0] or "?"


def registry_entry(name: str, status: WorkspaceStatus) -> StateEntry:
    """Return the row of the registry."""
    return StateEntry(StateGroup.REGISTRY, name, _encode(status))


def queue_entry(name: str, status: WorkspaceStatus) -> StateEntry | None:
    """Return the row of the queue, None for a workspace that does not wait."""
    if status.status != WorkspaceState.QUEUED:
        return None
    queued = QueueEntry(status.repo, status.branch, status.org, status.task, status.agent, status.started_at)
    return StateEntry(StateGroup.QUEUE, name, _encode(queued))


def dispatch_entry(name: str, status: WorkspaceStatus) -> StateEntry | None:
    """Return the row of the dispatch history, None for a workspace that does not run."""
    if status.status != WorkspaceState.RUNNING:
        return None
    key = f"{dispatch_key(status.started_at)} {name}"
    dispatch = Dispatch(name, status.agent, status.repo, status.branch, status.org, status.task, status.started_at)
    return StateEntry(StateGroup.DISPATCH_HISTORY, key, _encode(dispatch))


def queued_of(entry: StateEntry) -> QueueEntry:
    """Return what a row of the queue holds. Raises CorruptState."""
    return _decoded(entry, QueueEntry)


def dispatch_of(entry: StateEntry) -> Dispatch:
    """Return what a row of the dispatch history holds. Raises CorruptState."""
    return _decoded(entry, Dispatch)


def _decoded(entry: StateEntry, kind: type[_Row]) -> _Row:
    try:
        return msgspec.json.decode(entry.value, type=kind)
    except (ValueError, msgspec.MsgspecError) as error:
        message = (
            f"Expected a {kind.__name__} under {entry.key!r} of {entry.group!r} but found {entry.value[:100]!r} "
            f"({error}); delete the key, the next start writes it again."
        )
        raise CorruptState(message) from error


def dispatch_key(moment: Microseconds) -> str:
    """Return how the keys of the dispatches of a moment begin; they sort by time."""
    return f"{max(0, moment):020d}"


def status_of(entry: StateEntry | None) -> WorkspaceStatus | None:
    """Return the status that a row of the registry holds, None for no row and for one that holds none."""
    try:
        return None if entry is None else _decode_status(entry.value)
    except (ValueError, msgspec.MsgspecError):
        return None


def mirror(transaction: Transaction, name: str, status: WorkspaceStatus | None) -> None:
    """Bring all four groups in line with what one workspace has become; None when it is no longer tracked."""
    before = status_of(transaction.state(StateGroup.REGISTRY, name))
    queued = None if status is None else queue_entry(name, status)
    if status is None:
        transaction.delete_state(StateGroup.REGISTRY, name)
    else:
        transaction.put_state(registry_entry(name, status))
        if (dispatch := dispatch_entry(name, status)) is not None:
            transaction.put_state(dispatch)
    if queued is None:
        transaction.delete_state(StateGroup.QUEUE, name)
    else:
        transaction.put_state(queued)
    _move_counts(transaction, _running_types(before), _running_types(status))


def _move_counts(transaction: Transaction, before: Counter[str], after: Counter[str]) -> None:
    for kind in before | after:
        entry = transaction.state(StateGroup.CONCURRENCY, kind)
        count = max(0, _count_of(entry) + after[kind] - before[kind])
        transaction.put_state(running_entry(kind, count))


def running_entry(kind: str, count: int) -> StateEntry:
    """Return the row of the concurrency group."""
    return StateEntry(StateGroup.CONCURRENCY, kind, _encode(Running(count)))


def counts(statuses: Iterable[WorkspaceStatus]) -> Counter[str]:
    """Return how many of the workspaces run, by type of agent."""
    return Counter(agent_type(status.agent) for status in statuses if status.status == WorkspaceState.RUNNING)


def counts_in_line(running: Mapping[str, int], stored: Iterable[StateEntry]) -> list[StateEntry]:
    """Return the rows of the concurrency group that have to be written, zeros for types that no longer run."""
    there = {entry.key: entry.value for entry in stored}
    wanted = [running_entry(kind, running.get(kind, 0)) for kind in sorted({*there, *running})]
    return [entry for entry in wanted if there.get(entry.key) != entry.value]


def _running_types(status: WorkspaceStatus | None) -> Counter[str]:
    return Counter() if status is None else counts([status])


def _count_of(entry: StateEntry | None) -> int:
    try:
        return 0 if entry is None else _decode_running(entry.value).running
    except (ValueError, msgspec.MsgspecError):
        return 0
