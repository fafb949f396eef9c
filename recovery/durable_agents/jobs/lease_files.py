"""Lease files: exclusive rights as files, for a repository, a device or a port without a database.

A file ``NAME.lease`` names its holder by pid and start. It is written under another name, flushed,
and linked into place, which succeeds for one process; so it is there whole or not at all. Its
holder removes it.

A lease file of a dead holder is stale, and is reclaimed. That happens under a lock on the file, and
after a check that the path still leads to it: of several processes that reclaim at once, none
removes the lease of the next holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.claim import Owner
from durable_agents.errors import InvalidSetting

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

SUFFIX: Final = ".lease"
_BYTES_MAX: Final = 4096
_LOGGER: Final = logging.getLogger(__name__)


class LeaseFile:
    """A lease in a folder, for a ``with`` block; ``held`` tells whether this process has it.

    Raises InvalidSetting for a name that is not a file name, and OSError.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with LeaseFile(folder, "merge") as first, LeaseFile(folder, "merge") as second:
    ...         print(first.held, second.held)
    True False
    """

    def __init__(self, folder: str | os.PathLike[str], name: str) -> None:
        if not name or "/" in name or "\0" in name or name.startswith("."):
            message = f"the name of a lease must be a file name without a leading dot; got {name!r}. Change it."
            raise InvalidSetting(message)
        self.path: Final = Path(folder) / f"{name}{SUFFIX}"
        self.held = False

    def acquire(self) -> bool:
        """Take the lease if it is free or stale; return whether this process has it."""
        if not self.held and (self._link() or (reclaim(self.path) and self._link())):
            self.held = True
        return self.held

    def release(self) -> None:
        """Remove the lease file, if it is held."""
        if self.held:
            self.held = False
            self.path.unlink(missing_ok=True)

    def _link(self) -> bool:
        made = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}")
        try:
            with made.open("xb") as file:
                file.write(msgspec.json.encode(Owner.this_process()))
                file.flush()
                os.fsync(file.fileno())
            os.link(made, self.path)
        except FileExistsError:
            return False
        finally:
            made.unlink(missing_ok=True)
        return True

    def __enter__(self) -> Self:
        """Take the lease if it is free or stale."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lease."""
        self.release()


def reclaim_all_stale_leases(folder: str | os.PathLike[str]) -> int:
    """Remove the stale lease files of a folder, and return how many; 0 without a folder.

    A file that cannot be read or removed is left, with a warning, and stops no other.
    """
    try:
        paths = sorted(Path(folder).glob(f"*{SUFFIX}"))
    except OSError:
        return 0
    reclaimed = 0
    for path in paths:
        try:
            reclaimed += reclaim(path)
        except OSError as error:
            _LOGGER.warning("lease file %s was left: %s", path, error)
    return reclaimed


def reclaim(path: Path) -> bool:
    """Remove this lease file if its holder is dead; return whether it was. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _is_still(path, descriptor) or not _is_stale(path, os.read(descriptor, _BYTES_MAX)):
            return False
        path.unlink()
        return True
    finally:
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _is_stale(path: Path, content: bytes) -> bool:
    try:
        owner = msgspec.json.decode(content, type=Owner)
    except msgspec.DecodeError:
        _LOGGER.warning("lease file %s is none of ours, or damaged, and was left: look at it and remove it", path)
        return False
    return owner.is_dead()
