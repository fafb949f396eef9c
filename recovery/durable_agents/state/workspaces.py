"""Workspaces: which there are, how far each is, and which of them lost their executor.

**Files win.** The ``status.json`` of a workspace is the truth. The state store has derived views of
it, and stands in if the file is missing or half-written. ``track`` writes the file first, so a
crash leaves the store behind and never the file; ``hydrate`` brings the store in line.

**Derived views.** Four groups of the state store, keyed by the name of the workspace unless said
otherwise: ``registry`` has its status. ``queue`` has only the workspaces that wait.
``concurrency`` counts the running ones by type of agent (``codex:gpt-5.4`` and
``codex:gpt-5.4-mini`` are both ``codex``); a count of zero is stored as 0. ``dispatch_history`` has
a row for each start of an executor; its key is the moment and the name, so a dispatch that is noted
again after a crash is still one row. All of a change is one transaction, and counts are moved by
what that transaction reads, so several agents on one store do not overwrite each other's.

**Ghosts.** A workspace with status ``running`` and a dead executor becomes ``failed``, in the
registry and on disk. Dead means: no process has this pid *and* this start, or only a zombie
(``durable_agents.processes``). Without a start, which ``track`` always writes, the pid alone
counts. A workspace whose executor lives stays running: a restart of the agent does not end its work
(D23, docs/design.md).

**Files left alone.** A status file that is a link, a folder, too large, unreadable, no status, or
of another version is reported and not touched; the store stands in, in the registry only. A
half-written file is replaced, and kept beside the new one, except while its executor lives, which
may be writing it.

**Several agents on one folder** exclude each other in ``hydrate`` and ``track``, by a lock that the
kernel releases when its owner dies. A program that writes status files without this lock can lose a
change if it writes between our look and our rename.
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
from durable_agents.state.groups import StateGroup, StateStore, decoded
from durable_agents.state.json_files import FileProblem, Reading
from durable_agents.state.status_files import (
    StatusFiles,
    StatusReading,
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

_Value = TypeVar("_Value")
_encode: Final = msgspec.json.Encoder().encode


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
    """The number of running workspaces of one type of agent."""

    running: int


def agent_type(agent: str) -> str:
    """Return the type of an agent: its name without the model; ``?`` without a name.

    >>> agent_type("codex:gpt-5.4-mini")
    'codex'
    """
    return agent.partition(":")[0] or "?"


def registry_entry(name: str, status: WorkspaceStatus) -> StateEntry:
    """Return the row of the registry."""
    return StateEntry(StateGroup.REGISTRY, name, _encode(status))


def queue_entry(name: str, status: WorkspaceStatus) -> StateEntry | None:
    """Return the row of the queue, None unless the workspace waits."""
    if status.status != WorkspaceState.QUEUED:
        return None
    queued = QueueEntry(status.repo, status.branch, status.org, status.task, status.agent, status.started_at)
    return StateEntry(StateGroup.QUEUE, name, _encode(queued))


def dispatch_entry(name: str, status: WorkspaceStatus) -> StateEntry | None:
    """Return the row of the dispatch history, None unless the workspace runs."""
    if status.status != WorkspaceState.RUNNING:
        return None
    dispatch = Dispatch(name, status.agent, status.repo, status.branch, status.org, status.task, status.started_at)
    return StateEntry(StateGroup.DISPATCH_HISTORY, f"{dispatch_key(status.started_at)} {name}", _encode(dispatch))


def dispatch_key(moment: Microseconds) -> str:
    """Return the prefix of the keys of a moment's dispatches; they sort by time."""
    return f"{max(0, moment):020d}"


def running_entry(kind: str, count: int) -> StateEntry:
    """Return the row of the concurrency group for a type of agent."""
    return StateEntry(StateGroup.CONCURRENCY, kind, _encode(Running(count)))


def running_counts(statuses: Iterable[WorkspaceStatus | None]) -> Counter[str]:
    """Return the number of running workspaces by type of agent."""
    return Counter(
        agent_type(status.agent)
        for status in statuses
        if status is not None and status.status == WorkspaceState.RUNNING
    )


def update_derived_views(transaction: Transaction, name: str, status: WorkspaceStatus | None) -> None:
    """Bring all four groups in line with a workspace; None for one that is not tracked."""
    before = _stored(transaction.state(StateGroup.REGISTRY, name), WorkspaceStatus)
    if status is None:
        transaction.delete_state(StateGroup.REGISTRY, name)
    else:
        transaction.put_state(registry_entry(name, status))
        if (dispatch := dispatch_entry(name, status)) is not None:
            transaction.put_state(dispatch)
    if status is None or (queued := queue_entry(name, status)) is None:
        transaction.delete_state(StateGroup.QUEUE, name)
    else:
        transaction.put_state(queued)
    ended, begun = running_counts([before]), running_counts([status])
    for kind in ended | begun:
        running = _stored(transaction.state(StateGroup.CONCURRENCY, kind), Running)
        count = (0 if running is None else running.running) + begun[kind] - ended[kind]
        transaction.put_state(running_entry(kind, max(0, count)))


def counts_in_line(running: Mapping[str, int], stored: Iterable[StateEntry]) -> list[StateEntry]:
    """Return the rows of the concurrency group that must be written, zeros included."""
    there = {entry.key: entry.value for entry in stored}
    wanted = [running_entry(kind, running.get(kind, 0)) for kind in sorted({*there, *running})]
    return [entry for entry in wanted if there.get(entry.key) != entry.value]


def _stored(entry: StateEntry | None, kind: type[_Value]) -> _Value | None:
    """Return the value of a row, None for no row or a corrupt one."""
    try:
        return None if entry is None else decoded(entry, kind)
    except CorruptState:
        return None


_GONE: Final = "gone"
"""The start of a process that was dead when it was tracked: equal to no other start."""

_LOCK: Final = "workspaces"
_log: Final = logging.getLogger("durable_agents.state.workspaces")


class WorkspaceProblem(msgspec.Struct, frozen=True):
    """A problem of a workspace that was left as it is, or could not be repaired."""

    workspace: str
    problem: str
    detail: str


class Hydration(msgspec.Struct, frozen=True):
    """The result of ``hydrate``; ``restored`` had a half-written file."""

    workspaces: int = 0
    ghosts: tuple[str, ...] = ()
    live: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    problems: tuple[WorkspaceProblem, ...] = ()


class _KnownWorkspace(msgspec.Struct, frozen=True):
    """One workspace as it was read, from its file and from the store."""

    name: str
    reading: StatusReading
    stored: WorkspaceStatus | None

    @property
    def status(self) -> WorkspaceStatus | None:
        """The status in the file, else the one in the store."""
        return self.stored if self.reading.value is None else self.reading.value


class Workspaces:
    """The registry of workspaces below one root. May be shared by threads.

    Call ``hydrate`` once at the start, then ``track`` for each change.

    >>> import tempfile
    >>> from durable_agents import Roots, StateStore, WorkspaceStatus
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     roots = Roots(folder)
    ...     with StateStore(db_path=roots.database) as state:
    ...         workspaces = Workspaces(roots, state)
    ...         tracked = workspaces.track("org/repo/task", WorkspaceStatus(status="queued"))
    ...         print(list(workspaces.queue()))
    ['org/repo/task']
    """

    def __init__(self, roots: Roots, state: StateStore, *, clock: Clock | None = None) -> None:
        self.roots: Final = roots
        self._state = state
        self._clock: Clock = SystemClock() if clock is None else clock
        self._files = StatusFiles(roots.workspaces)
        self._registry: dict[str, WorkspaceStatus] = {}

    def get(self, name: str) -> WorkspaceStatus | None:
        """Return the status of a workspace, None if the registry does not have it."""
        return self._registry.get(name)

    def all(self) -> dict[str, WorkspaceStatus]:
        """Return a copy of the registry."""
        return dict(self._registry)

    def running(self, kind: str) -> int:
        """Return the number of running workspaces of a type of agent in this registry."""
        return running_counts(list(self._registry.values()))[kind]

    def queue(self) -> dict[str, QueueEntry]:
        """Return the stored queue by name of workspace.

        Raises CorruptState, or any StoreError.
        """
        return {entry.key: decoded(entry, QueueEntry) for entry in self._state.entries(StateGroup.QUEUE)}

    def dispatches(self, *, after: str = "") -> Iterator[tuple[str, Dispatch]]:
        """Yield the dispatches after the key ``after``, oldest first, each with its key."""
        for entry in self._state.entries(StateGroup.DISPATCH_HISTORY, after=after):
            yield entry.key, decoded(entry, Dispatch)

    def forget_dispatches(self, *, before: Microseconds) -> int:
        """Delete the dispatches before a moment, and return how many.

        Nothing else shortens the history. Rows are deleted in batches, each in a transaction of its
        own, so that writers wait briefly.
        """
        forgotten, deleted = 0, PAGE_ROWS_MAX
        while deleted == PAGE_ROWS_MAX and (store := self._state.store) is not None:
            with store.transaction() as transaction:
                below = dispatch_key(before)
                deleted = transaction.delete_states(StateGroup.DISPATCH_HISTORY, below=below, limit=PAGE_ROWS_MAX)
            forgotten += deleted
        return forgotten

    def track(self, name: str, status: WorkspaceStatus) -> WorkspaceStatus:
        """Write the status of a workspace to its file, then to the store, then here.

        Returns what was written: ``updated_at`` is set, ``started_at`` and ``pid_start`` if they
        are missing. Raises InvalidWorkspace, WorkspaceNotWritten or ArtifactNotWritten with nothing
        changed. If it raises a StoreError, the file is written and counts.
        """
        check_workspace(name)
        written = self._completed(status)
        with self.roots.locked(_LOCK):
            sys.audit(StateCrashPoint.WORKSPACE_BEFORE_FILE, name)
            self._files.write(name, written)
            sys.audit(StateCrashPoint.WORKSPACE_AFTER_FILE, name)
            self._update_views(name, written)
            self._registry[name] = written
        return written

    def untrack(self, name: str) -> None:
        """Forget a workspace, here and in the store; no error if it is unknown.

        Its files stay, so the next start finds it again. Raises InvalidWorkspace, or a StoreError
        with nothing changed.
        """
        check_workspace(name)
        with self.roots.locked(_LOCK):
            self._update_views(name, None)
            self._registry.pop(name, None)

    def hydrate(self) -> Hydration:
        """Read all files and the store, fail the ghosts, and bring registry and store in line.

        Idempotent, also after it was killed anywhere. What cannot be read or written is in the
        ``problems`` of the result and stops nothing else. Raises FolderLocked.
        """
        problems: list[WorkspaceProblem] = []
        with self.roots.locked(_LOCK):
            sys.audit(StateCrashPoint.HYDRATE_BEFORE_READ, "")
            stored = self._stored(problems)
            found = self._found(stored, problems)
            sys.audit(StateCrashPoint.HYDRATE_AFTER_READ, "")
            self._note_dispatches(stored, found, problems)
            sys.audit(StateCrashPoint.HYDRATE_AFTER_DISPATCHES, "")
            table = ProcessTable.read()  # after the files were read: it has every process that they name
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
        """Return the running workspaces whose executor is dead."""
        running = {name: status for name, status in statuses.items() if status.status == WorkspaceState.RUNNING}
        return tuple(name for name, status in running.items() if not is_live(status, table))

    def _completed(self, status: WorkspaceStatus) -> WorkspaceStatus:
        if not is_status(status):
            shown = ascii(status)
            message = f"a status must have a status text and fields of their types; got {shown[:300]}. Correct it."
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

    def _update_views(self, name: str, status: WorkspaceStatus | None) -> None:
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

    def _readings(self, problems: list[WorkspaceProblem]) -> dict[str, StatusReading]:
        """Return the readings by name; the printable form of a bad name hides no real one."""
        readings: dict[str, StatusReading] = {}
        for name, reading in self._files.walk():
            first = readings.get(name)
            readings[name] = reading if first is None or first.value is None else first
            if first is not None:
                other = first if readings[name] is reading else reading
                problems.append(WorkspaceProblem(name, str(other.problem), other.detail))
        return readings

    def _found(self, stored: dict[str, StateEntry], problems: list[WorkspaceProblem]) -> list[_KnownWorkspace]:
        """Join files and store by name, and report what is wrong in either."""
        readings = self._readings(problems)
        found = []
        for name in sorted({*stored, *readings}):
            reading = readings.get(name) or Reading(problem=FileProblem.MISSING)
            entry = stored.get(name)
            status = _stored(entry, WorkspaceStatus)
            try:
                check_workspace(name)
            except InvalidWorkspace as error:
                problems.append(WorkspaceProblem(name, "invalid_name", str(error)))
                continue
            if entry is not None and status is None:
                problems.append(WorkspaceProblem(name, "corrupt_entry", "the store's entry is no status"))
            if reading.problem not in {None, FileProblem.MISSING}:
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
        """Write the files of ghosts, and half-written ones from the store; return the latter."""
        restored = []
        for each in found:
            try:
                is_torn = each.reading.problem is FileProblem.HALF_WRITTEN
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
        is_missing = found.reading.problem is FileProblem.MISSING
        return found.reading.value is not None or (is_missing and self._files.has_folder(found.name))

    def _note_dispatches(
        self, stored: dict[str, StateEntry], found: list[_KnownWorkspace], problems: list[WorkspaceProblem]
    ) -> None:
        """Add missing dispatches, before a ghost's file is rewritten and shows them no longer."""
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
        """Write the rows that differ, in one transaction; none after a clean stop."""
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
    """Tell whether a workspace runs and its executor lives; a stopped process lives."""
    if status.status != WorkspaceState.RUNNING:
        return False
    return table.look(status.pid, status.pid_start) is not Liveness.DEAD


def _registry_entries(registry: dict[str, WorkspaceStatus]) -> Iterable[StateEntry]:
    return (registry_entry(name, status) for name, status in registry.items())
