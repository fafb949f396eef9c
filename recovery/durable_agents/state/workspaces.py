"""The mirror: what the state store keeps of workspaces, so that an agent knows after a restart what it had begun.

Four groups, each with the name of a workspace for key unless said otherwise:

``registry``: its status. ``queue``: what waits, and only that. ``concurrency``: how many run, by
type of agent (``codex:gpt-5.4`` and ``codex:gpt-5.4-mini`` are both ``codex``), stored as 0 where
none does any more. ``dispatch_history``: a row for each start of an executor; its key is the moment
and the name, so that the same dispatch, told twice because a crash came between, is one row.

All of a change is in one transaction, and counts are moved by what that transaction finds, so
several agents on one store do not overwrite each other's.

The registry of workspaces: which there are, how far each is, and what became of them while nobody
looked.

**Files win.** A workspace's own ``status.json`` is the truth; the store mirrors it
(``durable_agents.state.workspaces``) and stands in where the file is missing or half-written.
``track`` writes the file first, so that a crash between the two leaves the store behind and never
the file, and ``hydrate`` brings the store in line.

**Ghosts.** A workspace that says ``running`` and whose executor is dead becomes ``failed``, in the
registry and on disk. Dead means that no process with this number *and* this start is there, or only
a zombie of it (``durable_agents.processes``); a file without a start, which ``track`` never writes,
is believed by the number alone. One whose executor lives stays running (D23): restarting the agent
does not end its work.

**Left alone.** A status file that is a link, a folder, too large, unreadable, no status, or of
another version is reported and not touched; what the store knows stands in for it, in the registry
alone. A half-written one is replaced, and kept beside the new one, except while an executor lives,
who may be just writing it.

**Several agents on one folder** take turns at hydrating and tracking, by a lock that the kernel
takes back from the dead. A program that writes status files without it can lose a change to a
ghost's in the moment between look and rename, as between any two programs.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from durable_agents.clock import Clock, Microseconds, SystemClock
from durable_agents.errors import CorruptState, InvalidWorkspace, RecoveryError
from durable_agents.processes import Liveness, ProcessTable, start_of
from durable_agents.state.crash_points import StateCrashPoint
from durable_agents.state.groups import StateGroup, StateStore
from durable_agents.state.status_files import (
    Reading,
    StatusFiles,
    StatusProblem,
    WorkspaceState,
    WorkspaceStatus,
    check_workspace,
    is_status,
)
from durable_agents.store.protocol import PAGE_ROWS_MAX
from durable_agents.store.rows import StateEntry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from durable_agents.state.roots import Roots
    from durable_agents.store import Transaction


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


def update_derived_views(transaction: Transaction, name: str, status: WorkspaceStatus | None) -> None:
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


def running_counts(statuses: Iterable[WorkspaceStatus]) -> Counter[str]:
    """Return how many of the workspaces run, by type of agent."""
    return Counter(agent_type(status.agent) for status in statuses if status.status == WorkspaceState.RUNNING)


def counts_in_line(running: Mapping[str, int], stored: Iterable[StateEntry]) -> list[StateEntry]:
    """Return the rows of the concurrency group that have to be written, zeros for types that no longer run."""
    there = {entry.key: entry.value for entry in stored}
    wanted = [running_entry(kind, running.get(kind, 0)) for kind in sorted({*there, *running})]
    return [entry for entry in wanted if there.get(entry.key) != entry.value]


def _running_types(status: WorkspaceStatus | None) -> Counter[str]:
    return Counter() if status is None else running_counts([status])


def _count_of(entry: StateEntry | None) -> int:
    try:
        return 0 if entry is None else _decode_running(entry.value).running
    except (ValueError, msgspec.MsgspecError):
        return 0


_GONE: Final = "gone"
"""The start of a process that had ended when its workspace was tracked; whoever gets its number has another."""

_LOCK: Final = "workspaces"
_log: Final = logging.getLogger("durable_agents.state.workspaces")


class WorkspaceProblem(msgspec.Struct, frozen=True):
    """Something about a workspace that was not as it should be; it was left, or could not be put right."""

    workspace: str
    problem: str
    detail: str


class Hydration(msgspec.Struct, frozen=True):
    """What a hydration found: how many workspaces, the names of ghosts and of live ones, and what is wrong."""

    workspaces: int = 0
    ghosts: tuple[str, ...] = ()
    live: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    problems: tuple[WorkspaceProblem, ...] = ()


class _KnownWorkspace(msgspec.Struct, frozen=True):
    """One workspace as it was read: what its file says, and what the store says."""

    name: str
    reading: Reading
    stored: WorkspaceStatus | None

    @property
    def status(self) -> WorkspaceStatus | None:
        """What counts: the file, else the store."""
        return self.stored if self.reading.status is None else self.reading.status


class Workspaces:
    """The registry. Make one, ``hydrate`` it, then ``track`` each change. May be shared by threads."""

    def __init__(self, roots: Roots, state: StateStore, *, clock: Clock | None = None) -> None:
        """Prepare an empty registry."""
        self._roots = roots
        self._state = state
        self._clock: Clock = SystemClock() if clock is None else clock
        self._files = StatusFiles(roots.workspaces)
        self._registry: dict[str, WorkspaceStatus] = {}

    @property
    def roots(self) -> Roots:
        """The places it works in."""
        return self._roots

    def get(self, name: str) -> WorkspaceStatus | None:
        """Return what the registry knows of a workspace, or None."""
        return self._registry.get(name)

    def all(self) -> dict[str, WorkspaceStatus]:
        """Return a copy of the registry."""
        return dict(self._registry)

    def running(self, kind: str) -> int:
        """Return how many workspaces of a type of agent run, as far as this registry knows."""
        return running_counts(list(self._registry.values()))[kind]

    def queue(self) -> dict[str, QueueEntry]:
        """Return what waits, by the name of its workspace, as the store has it. Raises CorruptState, StoreErrors."""
        return {entry.key: queued_of(entry) for entry in self._state.entries(StateGroup.QUEUE)}

    def dispatches(self, *, after: str = "") -> Iterator[tuple[str, Dispatch]]:
        """Yield the history of dispatches, oldest first, each with its key, those behind the key ``after``."""
        for entry in self._state.entries(StateGroup.DISPATCH_HISTORY, after=after):
            yield entry.key, dispatch_of(entry)

    def forget_dispatches(self, *, before: Microseconds) -> int:
        """Delete the history of what was started before a moment, and return how many rows that were.

        It grows by a row for each dispatch and is never shortened by itself. In batches, so that
        nobody waits long.
        """
        forgotten = 0
        while (store := self._state.store) is not None:
            with store.transaction() as transaction:
                below = dispatch_key(before)
                deleted = transaction.delete_states(StateGroup.DISPATCH_HISTORY, below=below, limit=PAGE_ROWS_MAX)
            forgotten += deleted
            if deleted < PAGE_ROWS_MAX:
                break
        return forgotten

    def track(self, name: str, status: WorkspaceStatus) -> WorkspaceStatus:
        """Write down how far a workspace is: in its file, then in the store, then here; return what was written.

        ``updated_at`` is set, and so are ``started_at`` and ``pid_start`` where they are missing.
        Without a store the file and this registry have it. Raises InvalidWorkspace,
        WorkspaceNotWritten, ArtifactNotWritten with nothing changed; a StoreError after the file
        was written, which then counts.
        """
        check_workspace(name)
        written = self._completed(status)
        with self._roots.locked(_LOCK):
            sys.audit(StateCrashPoint.WORKSPACE_BEFORE_FILE, name)
            self._files.write(name, written)
            sys.audit(StateCrashPoint.WORKSPACE_AFTER_FILE, name)
            self._mirror(name, written)
            self._registry[name] = written
        return written

    def untrack(self, name: str) -> None:
        """Forget a workspace, here and in the store. Its files are its owner's: a restart finds it again by them.

        A workspace that is not known is no error. Raises InvalidWorkspace, or a StoreError with
        nothing changed.
        """
        check_workspace(name)
        with self._roots.locked(_LOCK):
            self._mirror(name, None)
            self._registry.pop(name, None)

    def hydrate(self) -> Hydration:
        """Read all files and the store, fail the ghosts, bring the store in line, and fill the registry.

        Doing it twice, or after it was killed anywhere, comes to the same. What cannot be read or
        written is in the result's ``problems`` and stops nothing else. Raises FolderLocked.
        """
        problems: list[WorkspaceProblem] = []
        with self._roots.locked(_LOCK):
            sys.audit(StateCrashPoint.HYDRATE_BEFORE_READ, "")
            stored = self._stored(problems)
            found = self._found(stored, problems)
            sys.audit(StateCrashPoint.HYDRATE_AFTER_READ, "")
            self._note_dispatches(stored, found, problems)
            sys.audit(StateCrashPoint.HYDRATE_AFTER_DISPATCHES, "")
            table = ProcessTable.read()  # after everything was listed: who started since is not in it
            before = {each.name: each.status for each in found if each.status is not None}
            live = tuple(name for name, status in before.items() if is_live(status, table))
            ghosts = self._ghosts(before, table)
            registry = before | {name: self._failed(before[name]) for name in ghosts}
            restored = self._rewrite(found, registry, ghosts, live, problems)
            self._bring_in_line(stored, registry, problems)
            self._registry = registry
        for problem in problems:
            _log.warning("workspace %s: %s: %s", problem.workspace, problem.problem, problem.detail)
        return Hydration(len(registry), ghosts, live, restored, tuple(problems))

    def _ghosts(self, statuses: dict[str, WorkspaceStatus], table: ProcessTable) -> tuple[str, ...]:
        """Return the workspaces that say that they run and whose executor is dead."""
        running = {name: status for name, status in statuses.items() if status.status == WorkspaceState.RUNNING}
        return tuple(name for name, status in running.items() if not is_live(status, table))

    def _completed(self, status: WorkspaceStatus) -> WorkspaceStatus:
        if not is_status(status):
            shown = ascii(status)
            message = f"Expected the status of a workspace but got {shown[:300]}; say at least its status, as text."
            raise InvalidWorkspace(message)
        now = self._clock.now()
        start = status.pid_start
        if start is None and status.pid is not None and status.status == WorkspaceState.RUNNING:
            start = start_of(status.pid) or _GONE
        return msgspec.structs.replace(status, updated_at=now, started_at=status.started_at or now, pid_start=start)

    def _failed(self, status: WorkspaceStatus) -> WorkspaceStatus:
        error = f"its executor, process {status.pid}, was gone when the agent started"
        return msgspec.structs.replace(
            status, status=WorkspaceState.FAILED.value, error=error, updated_at=self._clock.now()
        )

    def _mirror(self, name: str, status: WorkspaceStatus | None) -> None:
        if (store := self._state.store) is None:
            return
        with store.transaction() as transaction:
            update_derived_views(transaction, name, status)
            sys.audit(StateCrashPoint.WORKSPACE_BEFORE_COMMIT, name)
        sys.audit(StateCrashPoint.WORKSPACE_AFTER_COMMIT, name)

    def _stored(self, problems: list[WorkspaceProblem]) -> dict[str, StateEntry]:
        try:
            return {entry.key: entry for entry in self._state.entries(StateGroup.REGISTRY)}
        except RecoveryError as error:
            problems.append(WorkspaceProblem("", "no_store", str(error)))
            return {}

    def _readings(self, problems: list[WorkspaceProblem]) -> dict[str, Reading]:
        """Return what the files say, by name. A name that had to be made up hides no file of that name."""
        readings: dict[str, Reading] = {}
        for name, reading in self._files.walk():
            first = readings.get(name)
            readings[name] = reading if first is None or first.status is None else first
            if first is not None:
                other = first if readings[name] is reading else reading
                problems.append(WorkspaceProblem(name, str(other.problem), other.detail))
        return readings

    def _found(self, stored: dict[str, StateEntry], problems: list[WorkspaceProblem]) -> list[_KnownWorkspace]:
        """Join files and store by name. What either says wrongly is told."""
        readings = self._readings(problems)
        found = []
        for name in sorted({*stored, *readings}):
            reading = readings.get(name) or Reading(problem=StatusProblem.MISSING)
            entry = stored.get(name)
            status = status_of(entry)
            try:
                check_workspace(name)
            except InvalidWorkspace as error:
                problems.append(WorkspaceProblem(name, "invalid_name", str(error)))
                continue
            if entry is not None and status is None:
                problems.append(WorkspaceProblem(name, "corrupt_entry", "the store's entry is no status"))
            if reading.problem not in {None, StatusProblem.MISSING}:
                problems.append(WorkspaceProblem(name, str(reading.problem), reading.detail))
            found.append(_KnownWorkspace(name, reading, status))
        return found

    def _rewrite(
        self,
        found: list[_KnownWorkspace],
        registry: dict[str, WorkspaceStatus],
        ghosts: tuple[str, ...],
        live: tuple[str, ...],
        problems: list[WorkspaceProblem],
    ) -> tuple[str, ...]:
        """Write the files of ghosts, and the half-written ones that the store knows; return the names of the latter."""
        restored = []
        for each in found:
            try:
                is_torn = each.reading.problem is StatusProblem.HALF_WRITTEN
                is_wanted = each.name in registry and is_torn and each.name not in live
                if is_wanted or (each.name in ghosts and self._may_write(each)):
                    sys.audit(StateCrashPoint.HYDRATE_BEFORE_FILE, each.name)
                    self._files.write(each.name, registry[each.name])
                    sys.audit(StateCrashPoint.HYDRATE_AFTER_FILE, each.name)
                    restored += [each.name] * is_wanted
            except RecoveryError as error:
                problems.append(WorkspaceProblem(each.name, "not_written", str(error)))
        try:
            self._files.discard_leftovers()
        except RecoveryError as error:
            problems.append(WorkspaceProblem("", "leftovers", str(error)))
        return tuple(restored)

    def _may_write(self, found: _KnownWorkspace) -> bool:
        """Tell whether a ghost's file is a status, or missing from a folder that is there."""
        if found.reading.status is not None:
            return True
        return found.reading.problem is StatusProblem.MISSING and self._files.has_folder(found.name)

    def _note_dispatches(
        self, stored: dict[str, StateEntry], found: list[_KnownWorkspace], problems: list[WorkspaceProblem]
    ) -> None:
        """Add the dispatches that the store does not know of, before a ghost's file says no more that it ran."""
        try:
            running = {each.name: each.status for each in found if each.status is not None}
            new = [entry for entry in _registry_entries(running) if stored.get(entry.key) != entry]
            rows = [row for entry in new if (row := dispatch_entry(entry.key, running[entry.key])) is not None]
            if rows and (store := self._state.store) is not None:
                with store.transaction() as transaction:
                    transaction.put_states(rows)
        except RecoveryError as error:
            problems.append(WorkspaceProblem("", "store_not_written", str(error)))

    def _bring_in_line(
        self, stored: dict[str, StateEntry], registry: dict[str, WorkspaceStatus], problems: list[WorkspaceProblem]
    ) -> None:
        """Write what the store has otherwise, in one transaction; none where it is in line, as after a clean stop."""
        try:
            if (store := self._state.store) is None:
                return
            put = [entry for entry in _registry_entries(registry) if stored.get(entry.key) != entry]
            queue = {entry.key: entry for entry in self._state.entries(StateGroup.QUEUE)}
            wanted = {name: entry for name, status in registry.items() if (entry := queue_entry(name, status))}
            put += [entry for name, entry in wanted.items() if queue.get(name) != entry]
            stored_counts = self._state.entries(StateGroup.CONCURRENCY)
            put += counts_in_line(running_counts(registry.values()), stored_counts)
            gone = [name for name in queue if name not in wanted]
            sys.audit(StateCrashPoint.HYDRATE_BEFORE_COMMIT, "")
            if put or gone:
                with store.transaction() as transaction:
                    transaction.put_states(put)
                    for name in gone:
                        transaction.delete_state(StateGroup.QUEUE, name)
                    sys.audit(StateCrashPoint.HYDRATE_IN_COMMIT, "")
            sys.audit(StateCrashPoint.HYDRATE_AFTER_COMMIT, "")
        except RecoveryError as error:
            problems.append(WorkspaceProblem("", "store_not_written", str(error)))


def is_live(status: WorkspaceStatus, table: ProcessTable) -> bool:
    """Tell whether a workspace runs and its executor lives; a stopped one lives."""
    if status.status != WorkspaceState.RUNNING:
        return False
    return table.look(status.pid, status.pid_start) is not Liveness.DEAD


def _registry_entries(registry: dict[str, WorkspaceStatus]) -> Iterable[StateEntry]:
    return (registry_entry(name, status) for name, status in registry.items())
