"""Roots: the places of an agent's state, all below one absolute folder that settings name.

The current folder is never used: a program that is started from elsewhere would find another
memory, and a test would leave files where it happens to run.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.errors import FolderLocked, InvalidSetting
from durable_agents.file_lock import FileLock, release, sign

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WORKSPACE_VARIABLE: Final = "CORE_WORKSPACE"
HOME_VARIABLE: Final = "CORE_HOME"
"""Environment variables with the folder. The first that is set counts."""

LOCK_SUFFIX: Final = "-lock"
LOCK_TIMEOUT_S: Final = 30.0


class Roots(msgspec.Struct, frozen=True):
    """The places of one agent's state, below an absolute folder. Raises InvalidSetting.

    >>> str(Roots.from_environment({"CORE_WORKSPACE": "/srv/agent"}).database)
    '/srv/agent/.core/db.sqlite'
    """

    folder: str

    def __post_init__(self) -> None:
        """Check the folder."""
        if not Path(self.folder).is_absolute():
            message = (
                f"the folder of the state must be absolute; got {self.folder!r}. Set {WORKSPACE_VARIABLE} or "
                f"{HOME_VARIABLE} to one."
            )
            raise InvalidSetting(message)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Roots:
        """Take the folder from CORE_WORKSPACE, else from CORE_HOME. Raises InvalidSetting."""
        settings = os.environ if environment is None else environment
        return cls(settings.get(WORKSPACE_VARIABLE) or settings.get(HOME_VARIABLE) or "")

    @property
    def workspaces(self) -> Path:
        """The folder of the workspaces, each in a folder named by its key."""
        return Path(self.folder) / "workspace"

    @property
    def state(self) -> Path:
        """The folder of the agent's own files."""
        return Path(self.folder) / ".core"

    @property
    def database(self) -> Path:
        """The database file of the state store."""
        return self.state / "db.sqlite"

    @property
    def buffers(self) -> Path:
        """The folder of the buffers."""
        return self.state / "state"

    def make(self) -> None:
        """Make the missing folders. Errors are left to the code that uses them."""
        for folder in (self.workspaces, self.buffers):
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self, name: str, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold a lock of this folder against all processes and threads, in a ``with`` block.

        The kernel releases the lock of a process that dies. If no lock file can be made, nothing
        else can be written there either, and the block runs without the lock. Raises FolderLocked,
        which names the holder.
        """
        self.make()
        lock = FileLock(f"{self.state / name}{LOCK_SUFFIX}")
        can_lock, descriptor = True, None
        try:
            descriptor = lock.acquire(timeout_s)
        except OSError:
            can_lock = False
        if can_lock and descriptor is None:
            message = (
                f"{lock.path} must be free within {timeout_s:g} s; got no turn, and {lock.holder()} was the last to "
                "get one. Look whether it is stopped, or try again."
            )
            raise FolderLocked(message)
        try:
            if descriptor is not None:
                sign(descriptor)
            yield
        finally:
            if descriptor is not None:
                release(descriptor)
