"""Status files: each workspace says in its own ``status.json`` how far it is, and that file is the truth about it.

It is written whole (``durable_agents.work.artifacts``), but others may write it too, with any
program, or put something else in its place. So it is read with distrust: no link is followed,
nothing but a regular file of a bounded size is opened, and what is found is told as one of
``StatusProblem``. Of those only a half-written file is ever replaced, and what was in it is kept
beside it.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.clock import Microseconds
from durable_agents.errors import InvalidSetting, InvalidWorkspace, WorkspaceNotWritten
from durable_agents.work.artifacts import UNFINISHED_PREFIX, Artifacts, Look, open_folder, read_in
from durable_agents.work.evidence import Reason, parts_inside

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUS_FILE: Final = "status.json"
STATUS_VERSION: Final = 1
"""The version of the file's format. A file without one is of this version."""

STATUS_BYTES_MAX: Final = 1024 * 1024
NAME_BYTES_MAX: Final = 512
DEPTH_MAX: Final = 4
"""How many folders deep a workspace can be: ORGANISATION/REPOSITORY/TASK, and one to spare."""

DAMAGED_FILE: Final = STATUS_FILE + ".damaged"
"""Where the content of a half-written file is kept. There is one: the newest."""


class WorkspaceState(enum.StrEnum):
    """The states that mean something here; a workspace may be in any other, which is kept as it is."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


class WorkspaceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a workspace is. ``status`` is a WorkspaceState, or another text that its owner understands.

    ``pid`` is its executor's, and ``pid_start`` tells that process from a later one with its number
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


class StatusProblem(enum.StrEnum):
    """What can be in the place of a status."""

    MISSING = "missing"
    HALF_WRITTEN = "half_written"
    LINK = "link"
    NOT_A_FILE = "not_a_file"
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    NO_STATUS = "no_status"
    OTHER_VERSION = "other_version"


class Reading(msgspec.Struct, frozen=True):
    """What was read: a status, or a problem and a sentence about it."""

    status: WorkspaceStatus | None = None
    problem: StatusProblem | None = None
    detail: str = ""
    content: bytes = b""


class _Header(msgspec.Struct, frozen=True):
    version: int = STATUS_VERSION


_PROBLEMS: Final = {
    Reason.MISSING: StatusProblem.MISSING,
    Reason.OUTSIDE: StatusProblem.LINK,
    Reason.NOT_A_FILE: StatusProblem.NOT_A_FILE,
    Reason.TOO_LARGE: StatusProblem.TOO_LARGE,
}
_REPLACEABLE: Final = frozenset({None, StatusProblem.MISSING, StatusProblem.HALF_WRITTEN})
_version: Final = msgspec.json.Decoder(_Header).decode
_status: Final = msgspec.json.Decoder(WorkspaceStatus).decode
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode
# Under the name by which it can be told, another folder would be read and written.
_NAMELESS: Final = Reading(problem=StatusProblem.UNREADABLE, detail="the name of its folder is not UTF-8; rename it")


class StatusFiles:
    """The status files below one folder, which may be missing as long as nothing is written."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Use the folder, whose own path may contain links."""
        self._folder = Path(folder)
        self._opened: Artifacts | None = None
        self._littered: list[str] = []

    @property
    def folder(self) -> Path:
        """The folder that the names of workspaces are relative to."""
        return self._folder

    def walk(self) -> Iterator[tuple[str, Reading]]:
        """Yield each workspace with what its file says. A folder with a status file is one; within it none is sought.

        Links and hidden folders are not entered; a link to a folder, and a folder that cannot be
        listed, are told.
        """
        self._littered = []
        if self._folder.is_dir():
            root = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                yield from self._walk(root, "", 0)
            finally:
                os.close(root)

    def discard_leftovers(self) -> int:
        """Remove what the last ``walk`` saw of writers that were killed; return how many files there were."""
        littered, self._littered = self._littered, []
        return sum(self._artifacts().discard_leftovers_of(name) for name in littered)

    def _walk(self, folder: int, parent: str, depth: int) -> Iterator[tuple[str, Reading]]:
        """Walk on open folders, as artifacts do: there is no moment between looking and opening."""
        with os.scandir(folder) as found:
            entries = list(found)
        names = [entry.name for entry in entries]
        if parent and UNFINISHED_PREFIX in "/".join(names):
            self._littered.append(parent)
        if parent and STATUS_FILE in names:
            name = _printable(parent)
            reading = reading_of(read_in(folder, STATUS_FILE, bytes_max=STATUS_BYTES_MAX))
            yield name, reading if name == parent else _NAMELESS
        elif depth < DEPTH_MAX:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not entry.name.startswith(".") and entry.is_dir():
                    yield from self._enter(
                        folder, entry.name, f"{parent}/{entry.name}" if parent else entry.name, depth
                    )

    def _enter(self, folder: int, entry: str, name: str, depth: int) -> Iterator[tuple[str, Reading]]:
        try:
            inner = open_folder(entry, folder)
        except OSError as error:
            problem = StatusProblem.LINK if error.errno == errno.ELOOP else StatusProblem.UNREADABLE
            yield _printable(name), Reading(problem=problem, detail=f"its folder: {error.strerror or error}")
            return
        try:
            yield from self._walk(inner, name, depth + 1)
        finally:
            os.close(inner)

    def read(self, name: str) -> Reading:
        """Return what the status file of a workspace says; never raises for what is found there."""
        if self._opened is None and not self._folder.is_dir():
            return Reading(problem=StatusProblem.MISSING)
        return reading_of(self._artifacts().read(f"{name}/{STATUS_FILE}", bytes_max=STATUS_BYTES_MAX))

    def has_folder(self, name: str) -> bool:
        """Tell whether the workspace has a folder of its own, and no link on the way to it."""
        return self._folder.is_dir() and self._artifacts().look(name).reason is Reason.NOT_A_FILE

    def write(self, name: str, status: WorkspaceStatus) -> None:
        """Replace the file's own fields and keep what else is in it; whole and durable when this returns.

        A half-written file is kept as ``status.json.damaged``, and what writers left who were
        killed is removed. Raises WorkspaceNotWritten for what is not ours to replace, and
        ArtifactNotWritten for what the file system refuses.
        """
        before = self.read(name)
        if before.problem not in _REPLACEABLE:
            message = (
                f"Expected a status file of version {STATUS_VERSION} at {name}/{STATUS_FILE} but it is "
                f"{before.problem} ({before.detail}); move it away, it was left as it is."
            )
            raise WorkspaceNotWritten(message)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            artifacts = self._artifacts()
        except InvalidSetting as error:
            message = (
                f"Expected to make the folder {self._folder} for {name}/{STATUS_FILE} but could not; make it, or let "
                "this process write where it is to be."
            )
            raise WorkspaceNotWritten(message) from error
        if before.problem is StatusProblem.HALF_WRITTEN and before.content:
            artifacts.write(f"{name}/{DAMAGED_FILE}", before.content)
        artifacts.write(f"{name}/{STATUS_FILE}", content_of(status, before))
        artifacts.discard_leftovers_of(name)

    def _artifacts(self) -> Artifacts:
        if self._opened is None:
            self._opened = Artifacts(self._folder)
        return self._opened


def reading_of(look: Look) -> Reading:
    """Return what a look at a status file amounts to."""
    if look.reason is not Reason.VERIFIED:
        return Reading(problem=_PROBLEMS.get(look.reason, StatusProblem.UNREADABLE), detail=look.detail)
    return read_status(look.content)


def read_status(content: bytes) -> Reading:
    """Return the status that the content of a file is, or what is wrong with it."""
    try:
        content.decode()  # a decoder skips the fields that it does not know, whatever their bytes
        header = _version(content)
        if header.version != STATUS_VERSION:
            detail = f"version {header.version}, known is {STATUS_VERSION}"
            return Reading(problem=StatusProblem.OTHER_VERSION, detail=detail, content=content)
        return Reading(_status(content), content=content)
    except msgspec.ValidationError as error:
        return Reading(problem=StatusProblem.NO_STATUS, detail=str(error), content=content)
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        detail = f"{len(content)} bytes: {error}"
        return Reading(problem=StatusProblem.HALF_WRITTEN, detail=detail, content=content)


def content_of(status: WorkspaceStatus, before: Reading) -> bytes:
    """Return the content of a file that says this, and all that ``before`` says beside it."""
    fields = _fields(before.content) if before.status is not None else {}
    own = msgspec.to_builtins(status)
    return msgspec.json.format(_encode({**fields, "version": STATUS_VERSION, **own})) + b"\n"


def is_status(status: object) -> bool:
    """Tell whether this is a status that would be read as it was written: fields of their types, and a status."""
    try:
        return isinstance(status, WorkspaceStatus) and bool(status.status) and _status(_encode(status)) == status
    except (TypeError, ValueError, msgspec.MsgspecError):
        return False


def check_workspace(name: object) -> None:
    """Raise InvalidWorkspace unless this names a folder below that of the workspaces, in one way only."""
    parts = parts_inside(name)
    if not parts or "/".join(parts) != name or len(parts) > DEPTH_MAX or len(name.encode()) > NAME_BYTES_MAX:
        shown = repr(name)
        message = (
            f"Expected the name of a workspace, such as 'org/repo/task', of at most {DEPTH_MAX} parts and "
            f"{NAME_BYTES_MAX} bytes, but got {shown[:80]}; leave out a leading slash, '.', '..' and empty parts."
        )
        raise InvalidWorkspace(message)
    if any(part.startswith(".") for part in parts):
        message = f"Expected the name of a workspace without hidden folders but got {name!r}; leave out leading dots."
        raise InvalidWorkspace(message)


def _printable(name: str) -> str:
    """Return the name as text that can be written down, also where the file system has bytes that are no UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
