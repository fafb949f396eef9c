"""The registry of workspaces: which there are, how far each is, and what became of them while nobody looked.

**Files win.** A workspace's own ``status.json`` is the truth; the store mirrors it (``recovery.mirror``) and stands in
where the file is missing or half-written. ``track`` writes the file first, so that a crash between the two leaves the
store behind and never the file, and ``hydrate`` brings the store in line.

**Ghosts.** A workspace that says ``running`` and whose executor is dead becomes ``failed``, in the registry and on
disk. Dead means that no process with this number *and* this start is there, or only a zombie of it
(``recovery.liveness``); a file without a start, which ``track`` never writes, is believed by the number alone. One
whose executor lives stays running (D23): restarting the agent does not end its work.

**Left alone.** A status file that is a link, a folder, too large, unreadable, no status, or of another version is
reported and not touched; what the store knows stands in for it, in the registry alone. A half-written one is replaced,
and kept beside the new one, except while an executor lives, who may be just writing it.

**Several agents on one folder** take turns at hydrating and tracking, by a lock that the kernel takes back from the
dead. A program that writes status files without it can lose a change to a ghost's in the moment between look and
rename, as between any two programs.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from recovery import mirror
from recovery.clock import Clock, Microseconds, SystemClock
from recovery.errors import InvalidWorkspace, RecoveryError
from recovery.liveness import Liveness, ProcessTable, start_of
from recovery.state import StateGroup, StateStore
from recovery.status_files import (
    Reading,
    StatusFiles,
    StatusProblem,
    WorkspaceState,
    WorkspaceStatus,
    check_workspace,
    is_status,
)
from recovery.store.protocol import PAGE_ROWS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from recovery.mirror import Dispatch, QueueEntry
    from recovery.roots import Roots
    from recovery.store.rows import StateEntry

WORKSPACE_CRASH_POINTS: Final = (
    "recovery.hydrate.before_read",
    "recovery.hydrate.after_read",
    "recovery.hydrate.after_dispatches",
    "recovery.hydrate.before_file",
    "recovery.hydrate.after_file",
    "recovery.hydrate.before_commit",
    "recovery.hydrate.in_commit",
    "recovery.hydrate.after_commit",
)
"""The audit events of ``hydrate``, in order; the two about a file once for each that is rewritten."""

BEFORE_READ, AFTER_READ, AFTER_DISPATCHES, BEFORE_FILE, AFTER_FILE, BEFORE_COMMIT, IN_COMMIT, AFTER_COMMIT = (
    WORKSPACE_CRASH_POINTS
)

TRACK_CRASH_POINTS: Final = (
    "recovery.workspace.before_file",
    "recovery.workspace.after_file",
    "recovery.workspace.before_commit",
    "recovery.workspace.after_commit",
)
"""The audit events of ``track``, in order."""

TRACK_BEFORE_FILE, TRACK_AFTER_FILE, TRACK_BEFORE_COMMIT, TRACK_AFTER_COMMIT = TRACK_CRASH_POINTS

_GONE: Final = "gone"
"""The start of a process that had ended when its workspace was tracked; whoever gets its number has another."""

_LOCK: Final = "workspaces"
_log: Final = logging.getLogger("recovery.workspaces")


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


class _Found(msgspec.Struct, frozen=True):
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
        return mirror.counts(list(self._registry.values()))[kind]

    def queue(self) -> dict[str, QueueEntry]:
        """Return what waits, by the name of its workspace, as the store has it. Raises CorruptState, StoreErrors."""
        return {entry.key: mirror.queued_of(entry) for entry in self._state.entries(StateGroup.QUEUE)}

    def dispatches(self, *, after: str = "") -> Iterator[tuple[str, Dispatch]]:
        """Yield the history of dispatches, oldest first, each with its key, those behind the key ``after``."""
        for entry in self._state.entries(StateGroup.DISPATCH_HISTORY, after=after):
            yield entry.key, mirror.dispatch_of(entry)

    def forget_dispatches(self, *, before: Microseconds) -> int:
        """Delete the history of what was started before a moment, and return how many rows that were.

        It grows by a row for each dispatch and is never shortened by itself. In batches, so that nobody waits long.
        """
        forgotten = 0
        while (store := self._state.store) is not None:
            with store.transaction() as transaction:
                below = mirror.dispatch_key(before)
                deleted = transaction.delete_states(StateGroup.DISPATCH_HISTORY, below=below, limit=PAGE_ROWS_MAX)
            forgotten += deleted
            if deleted < PAGE_ROWS_MAX:
                break
        return forgotten

    def track(self, name: str, status: WorkspaceStatus) -> WorkspaceStatus:
        """Write down how far a workspace is: in its file, then in the store, then here; return what was written.

        ``updated_at`` is set, and so are ``started_at`` and ``pid_start`` where they are missing. Without a store the
        file and this registry have it. Raises InvalidWorkspace, WorkspaceNotWritten, ArtifactNotWritten with nothing
        changed; a StoreError after the file was written, which then counts.
        """
        check_workspace(name)
        written = self._completed(status)
        with self._roots.locked(_LOCK):
            sys.audit(TRACK_BEFORE_FILE, name)
            self._files.write(name, written)
            sys.audit(TRACK_AFTER_FILE, name)
            self._mirror(name, written)
            self._registry[name] = written
        return written

    def untrack(self, name: str) -> None:
        """Forget a workspace, here and in the store. Its files are its owner's: a restart finds it again by them.

        A workspace that is not known is no error. Raises InvalidWorkspace, or a StoreError with nothing changed.
        """
        check_workspace(name)
        with self._roots.locked(_LOCK):
            self._mirror(name, None)
            self._registry.pop(name, None)

    def hydrate(self) -> Hydration:
        """Read all files and the store, fail the ghosts, bring the store in line, and fill the registry.

        Doing it twice, or after it was killed anywhere, comes to the same. What cannot be read or written is in the
        result's ``problems`` and stops nothing else. Raises FolderLocked.
        """
        problems: list[WorkspaceProblem] = []
        with self._roots.locked(_LOCK):
            sys.audit(BEFORE_READ, "")
            stored = self._stored(problems)
            found = self._found(stored, problems)
            sys.audit(AFTER_READ, "")
            self._note_dispatches(stored, found, problems)
            sys.audit(AFTER_DISPATCHES, "")
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
            mirror.mirror(transaction, name, status)
            sys.audit(TRACK_BEFORE_COMMIT, name)
        sys.audit(TRACK_AFTER_COMMIT, name)

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

    def _found(self, stored: dict[str, StateEntry], problems: list[WorkspaceProblem]) -> list[_Found]:
        """Join files and store by name. What either says wrongly is told."""
        readings = self._readings(problems)
        found = []
        for name in sorted({*stored, *readings}):
            reading = readings.get(name) or Reading(problem=StatusProblem.MISSING)
            entry = stored.get(name)
            status = mirror.status_of(entry)
            try:
                check_workspace(name)
            except InvalidWorkspace as error:
                problems.append(WorkspaceProblem(name, "invalid_name", str(error)))
                continue
            if entry is not None and status is None:
                problems.append(WorkspaceProblem(name, "corrupt_entry", "the store's entry is no status"))
            if reading.problem not in {None, StatusProblem.MISSING}:
                problems.append(WorkspaceProblem(name, str(reading.problem), reading.detail))
            found.append(_Found(name, reading, status))
        return found

    def _rewrite(
        self,
        found: list[_Found],
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
                    sys.audit(BEFORE_FILE, each.name)
                    self._files.write(each.name, registry[each.name])
                    sys.audit(AFTER_FILE, each.name)
                    restored += [each.name] * is_wanted
            except RecoveryError as error:
                problems.append(WorkspaceProblem(each.name, "not_written", str(error)))
        try:
            self._files.discard_leftovers()
        except RecoveryError as error:
            problems.append(WorkspaceProblem("", "leftovers", str(error)))
        return tuple(restored)

    def _may_write(self, found: _Found) -> bool:
        """Tell whether a ghost's file is a status, or missing from a folder that is there."""
        if found.reading.status is not None:
            return True
        return found.reading.problem is StatusProblem.MISSING and self._files.has_folder(found.name)

    def _note_dispatches(
        self, stored: dict[str, StateEntry], found: list[_Found], problems: list[WorkspaceProblem]
    ) -> None:
        """Add the dispatches that the store does not know of, before a ghost's file says no more that it ran."""
        try:
            running = {each.name: each.status for each in found if each.status is not None}
            new = [entry for entry in _registry_entries(running) if stored.get(entry.key) != entry]
            rows = [row for entry in new if (row := mirror.dispatch_entry(entry.key, running[entry.key])) is not None]
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
            wanted = {name: entry for name, status in registry.items() if (entry := mirror.queue_entry(name, status))}
            put += [entry for name, entry in wanted.items() if queue.get(name) != entry]
            stored_counts = self._state.entries(StateGroup.CONCURRENCY)
            put += mirror.counts_in_line(mirror.counts(registry.values()), stored_counts)
            gone = [name for name in queue if name not in wanted]
            sys.audit(BEFORE_COMMIT, "")
            if put or gone:
                with store.transaction() as transaction:
                    transaction.put_states(put)
                    for name in gone:
                        transaction.delete_state(StateGroup.QUEUE, name)
                    sys.audit(IN_COMMIT, "")
            sys.audit(AFTER_COMMIT, "")
        except RecoveryError as error:
            problems.append(WorkspaceProblem("", "store_not_written", str(error)))


def is_live(status: WorkspaceStatus, table: ProcessTable) -> bool:
    """Tell whether a workspace runs and its executor lives; a stopped one lives."""
    if status.status != WorkspaceState.RUNNING:
        return False
    return table.look(status.pid, status.pid_start) is not Liveness.DEAD


def _registry_entries(registry: dict[str, WorkspaceStatus]) -> Iterable[StateEntry]:
    return (mirror.registry_entry(name, status) for name, status in registry.items())
