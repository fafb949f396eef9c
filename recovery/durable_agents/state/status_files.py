"""Status files: the ``status.json`` of each workspace, which is the truth about how far it is.

Files are read as ``durable_agents.state.json_files`` says. Only a half-written one is ever replaced
by a status; its old content is kept beside it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from durable_agents.clock import Microseconds
from durable_agents.errors import InvalidSetting, InvalidWorkspace, WorkspaceNotWritten
from durable_agents.state.json_files import FileProblem, JsonFormat, Reading, formatted
from durable_agents.work.artifacts import UNFINISHED_PREFIX, Artifacts, open_folder, read_in
from durable_agents.work.evidence import Reason, parts_inside

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUS_FILE: Final = "status.json"
STATUS_VERSION: Final = 1
STATUS_BYTES_MAX: Final = 1024 * 1024
NAME_BYTES_MAX: Final = 512
DEPTH_MAX: Final = 4
"""Folder levels of a workspace's name: ORGANISATION/REPOSITORY/TASK, and one to spare."""

DAMAGED_FILE: Final = STATUS_FILE + ".damaged"
"""The copy of a half-written file. Only the newest is kept."""


class WorkspaceState(enum.StrEnum):
    """The states with a meaning here. Any other state of a workspace is kept as it is."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class WorkspaceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The status of a workspace. ``status`` is a WorkspaceState or another text.

    ``pid`` is its executor's; ``pid_start`` tells that process from a later one of the same pid
    (``durable_agents.processes.start_of``). Times are microseconds since 1970.
    """

    status: str
    agent: str = ""
    repo: str = ""
    org: str = ""
    task: str = ""
    branch: str = ""
    pid: int | None = None
    pid_start: str | None = None
    started_at: Microseconds = 0
    updated_at: Microseconds = 0
    error: str = ""


StatusReading: TypeAlias = Reading[WorkspaceStatus]

_FORMAT: Final = JsonFormat(WorkspaceStatus, version=STATUS_VERSION, bytes_max=STATUS_BYTES_MAX)
_REPLACEABLE: Final = frozenset({None, FileProblem.MISSING, FileProblem.HALF_WRITTEN})
_status: Final = msgspec.json.Decoder(WorkspaceStatus).decode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode
# The printable form of such a name is the name of another folder.
_NAMELESS: Final = StatusReading(
    problem=FileProblem.UNREADABLE, detail="the name of its folder is not UTF-8; rename it"
)


class StatusFiles:
    """The status files below one folder, which the first write makes."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder: Final = Path(folder)
        self._opened: Artifacts | None = None
        self._littered: list[str] = []

    def walk(self) -> Iterator[tuple[str, StatusReading]]:
        """Yield each workspace, a folder with a status file, with its reading.

        Links and hidden folders are not entered. A link to a folder, and a folder that cannot be
        listed, are yielded as problems.
        """
        self._littered = []
        if self.folder.is_dir():
            root = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield from self._walk(root, "", 0)
            finally:
                os.close(root)

    def discard_leftovers(self) -> int:
        """Remove the temporary files that the last ``walk`` saw, of killed writers only."""
        littered, self._littered = self._littered, []
        return sum(self._artifacts().discard_leftovers_of(name) for name in littered)

    def _walk(self, folder: int, parent: str, depth: int) -> Iterator[tuple[str, StatusReading]]:
        # Walks on open folders: nothing can be exchanged between a look at a name and its opening.
        with os.scandir(folder) as found:
            entries = list(found)
        names = [entry.name for entry in entries]
        if parent and UNFINISHED_PREFIX in "/".join(names):
            self._littered.append(parent)
        if parent and STATUS_FILE in names:
            name = _printable(parent)
            reading = _FORMAT.reading_of(read_in(folder, STATUS_FILE, bytes_max=STATUS_BYTES_MAX))
            yield name, reading if name == parent else _NAMELESS
        elif depth < DEPTH_MAX:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.name.startswith(".") and entry.is_dir():
                    name = f"{parent}/{entry.name}" if parent else entry.name
                    yield from self._enter(folder, entry.name, name, depth)

    def _enter(self, folder: int, entry: str, name: str, depth: int) -> Iterator[tuple[str, StatusReading]]:
        try:
            inner = open_folder(entry, folder)
        except OSError as error:
            problem = FileProblem.LINK if error.errno == errno.ELOOP else FileProblem.UNREADABLE
            yield _printable(name), Reading(problem=problem, detail=f"its folder: {error.strerror or error}")
            return
        try:
            yield from self._walk(inner, name, depth + 1)
        finally:
            os.close(inner)

    def read(self, name: str) -> StatusReading:
        """Read the status file of a workspace. A problem is in the reading and not raised."""
        if self._opened is None and not self.folder.is_dir():
            return Reading(problem=FileProblem.MISSING)
        return _FORMAT.read(self._artifacts(), f"{name}/{STATUS_FILE}")

    def has_folder(self, name: str) -> bool:
        """Tell whether the workspace has a folder, with no link on the way to it."""
        return self.folder.is_dir() and self._artifacts().look(name).reason is Reason.NOT_A_FILE

    def write(self, name: str, status: WorkspaceStatus) -> None:
        """Write a status, and keep the file's other fields. Whole and durable when this returns.

        A half-written file is kept as ``status.json.damaged``. Temporary files of killed writers
        are removed. Raises WorkspaceNotWritten for a file that is not ours to replace, and
        ArtifactNotWritten for an error of the file system.
        """
        before = self.read(name)
        if before.problem not in _REPLACEABLE:
            message = (
                f"{name}/{STATUS_FILE} must be a status file of version {STATUS_VERSION}; got {before.problem} "
                f"({before.detail}). It was left as it is: move it away."
            )
            raise WorkspaceNotWritten(message)
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            artifacts = self._artifacts()
        except InvalidSetting as error:
            message = (
                f"the folder {self.folder} must exist for {name}/{STATUS_FILE}; got none, and it could not be made. "
                "Make it, or let this process write in its parent."
            )
            raise WorkspaceNotWritten(message) from error
        if before.problem is FileProblem.HALF_WRITTEN and before.content:
            artifacts.write(f"{name}/{DAMAGED_FILE}", before.content)
        artifacts.write(f"{name}/{STATUS_FILE}", content_of(status, before))
        artifacts.discard_leftovers_of(name)

    def _artifacts(self) -> Artifacts:
        if self._opened is None:
            self._opened = Artifacts(self.folder)
        return self._opened


def content_of(status: WorkspaceStatus, before: StatusReading) -> bytes:
    """Return the content of a file with this status and the other fields of the one before."""
    fields = _fields(before.content) if before.value is not None else {}
    return formatted({**fields, "version": STATUS_VERSION, **msgspec.to_builtins(status)})


def is_status(status: object) -> bool:
    """Tell whether this is a status whose fields have their types, with a status text."""
    try:
        return isinstance(status, WorkspaceStatus) and bool(status.status) and _status(_encode(status)) == status
    except (TypeError, ValueError, msgspec.MsgspecError):
        return False


def check_workspace(name: object) -> None:
    """Raise InvalidWorkspace unless this names a folder below the root, in its only spelling."""
    parts = parts_inside(name)
    if not parts or "/".join(parts) != name or len(parts) > DEPTH_MAX or len(name.encode()) > NAME_BYTES_MAX:
        shown = repr(name)
        message = (
            f"the name of a workspace, such as 'org/repo/task', must have at most {DEPTH_MAX} parts and "
            f"{NAME_BYTES_MAX} bytes; got {shown[:80]}. Leave out a leading slash, '.', '..' and empty parts."
        )
        raise InvalidWorkspace(message)
    if any(part.startswith(".") for part in parts):
        message = f"the name of a workspace must have no hidden folders; got {name!r}. Leave out leading dots."
        raise InvalidWorkspace(message)


def _printable(name: str) -> str:
    """Return a name as valid text, with escapes for bytes that are not UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
