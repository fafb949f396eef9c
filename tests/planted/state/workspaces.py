"""Registries of workspaces with one known bug each.

| variant | bug | seen by |
|---|---|---|
| FailsEveryone | its look at the executor always says dead, as the original's did (D23) | a live executor |
| TrustsTheNumber | signal 0 to the pid: zombies and reused numbers live (D18) | a zombie, a number that went round |
| ForgetsTheDisk | ghosts fail in the registry alone | whoever reads the file |
| StoreWins | what the store says counts, whatever the file says | a file that was changed meanwhile |
| WritesInPlace | the status file is opened and overwritten | a kill between two halves |
| ForgetsThatItRan | a dispatch is noted after the ghost's file has been rewritten, or never | a kill in between |
| StartsBeside | takes no lock | two starts at once |
| CountsFromMemory | the stored counts are never put right | counts of before the crash |
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import msgspec
from durable_agents import Roots, Workspaces, WorkspaceStatus
from durable_agents.state.status_files import StatusFiles, content_of
from durable_agents.work.crash_points import WorkPoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durable_agents.processes import ProcessTable
    from durable_agents.state.workspaces import WorkspaceProblem, _KnownWorkspace
    from durable_agents.store.rows import StateEntry


class FailsEveryone(Workspaces):
    """Believes that whoever ran before this start is dead."""

    def _ghosts(self, statuses: dict[str, WorkspaceStatus], table: ProcessTable) -> tuple[str, ...]:
        assert table is not None
        return tuple(name for name, status in statuses.items() if status.status == "running")


class TrustsTheNumber(Workspaces):
    """Asks whether there is a process of this number, and no more."""

    def _ghosts(self, statuses: dict[str, WorkspaceStatus], table: ProcessTable) -> tuple[str, ...]:
        assert table is not None
        running = {name: status for name, status in statuses.items() if status.status == "running"}
        return tuple(name for name, status in running.items() if not _answers(status.pid))


def _answers(pid: int | None) -> bool:
    try:
        os.kill(pid or 0, 0)
    except OSError:
        return False
    return bool(pid)


class ForgetsTheDisk(Workspaces):
    """Changes what it remembers and leaves the file."""

    def _rewrite(self, *_: Any) -> tuple[str, ...]:
        return ()


class StoreWins(Workspaces):
    """Takes the file for a copy."""

    def _found(self, stored: dict[str, StateEntry], problems: list[WorkspaceProblem]) -> list[_KnownWorkspace]:
        found = super()._found(stored, problems)
        return [
            each
            if each.stored is None or each.reading.value is None
            else msgspec.structs.replace(each, reading=msgspec.structs.replace(each.reading, value=each.stored))
            for each in found
        ]


class WritesInPlace(Workspaces):
    """Opens the status file for writing, past the same crash points."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._files = _InPlace(self.roots.workspaces)


class _InPlace(StatusFiles):
    def write(self, name: str, status: WorkspaceStatus) -> None:
        content = content_of(status, self.read(name))
        file = self.folder / name / "status.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        sys.audit(WorkPoint.ARTIFACT_BEFORE_CREATE, name)
        with file.open("wb", buffering=0) as opened:
            sys.audit(WorkPoint.ARTIFACT_AFTER_CREATE, name)
            opened.write(content[: len(content) // 2])
            sys.audit(WorkPoint.ARTIFACT_AFTER_WRITE, name)
            opened.write(content[len(content) // 2 :])
            for point in (
                WorkPoint.ARTIFACT_AFTER_FILE_SYNC,
                WorkPoint.ARTIFACT_AFTER_RENAME,
                WorkPoint.ARTIFACT_AFTER_FOLDER_SYNC,
            ):
                sys.audit(point, name)


class ForgetsThatItRan(Workspaces):
    """Notes no dispatch before it rewrites files; what it forgot is not made up for."""

    def _note_dispatches(self, *_: Any) -> None:
        return


class StartsBeside(Workspaces):
    """Believes that it is alone; it reads first, and waits for nobody."""

    def __init__(self, roots: Any, *arguments: Any, **keywords: Any) -> None:
        super().__init__(_Unlocked(roots.folder), *arguments, **keywords)


class _Unlocked(Roots, frozen=True):
    @contextlib.contextmanager
    def locked(self, name: str, *, timeout_s: float = 0.0) -> Iterator[None]:
        assert name
        assert timeout_s >= 0
        self.make()
        yield


class CountsFromMemory(Workspaces):
    """Leaves the queue and the counts of the store as the crash left them."""

    def _bring_in_line(
        self, stored: dict[str, StateEntry], registry: dict[str, WorkspaceStatus], problems: list[WorkspaceProblem]
    ) -> None:
        from durable_agents.state import workspaces as mirror

        assert problems is not None
        put = [mirror.registry_entry(name, status) for name, status in registry.items()]
        store = self._state.store
        with contextlib.nullcontext() if store is None else store.transaction() as transaction:
            if transaction is not None:
                transaction.put_states([entry for entry in put if stored.get(entry.key) != entry])
