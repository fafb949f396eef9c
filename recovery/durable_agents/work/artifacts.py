"""Artifacts: files that checkpoints refer to, durable before anything refers to them.

``write`` makes a temporary file in the target's folder, writes and flushes it, renames it over the
target and flushes the folder. At each moment the target holds the old content or the new one,
whole; when ``write`` has returned, the new one survives a loss of power. Without either flush an
empty file, or none, can be left (Pillai et al., "All File Systems Are Not Created Equal", OSDI
2014).

Paths are relative to one folder and cannot leave it. They are walked part by part on open folders,
with links refused, so nothing changes between the check and the use. A killed writer leaves its
temporary file, which it held locked; ``discard_leftovers`` removes those whose lock is gone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from durable_agents.errors import ArtifactNotWritten, InvalidArtifact, InvalidSetting
from durable_agents.work.crash_points import WorkPoint
from durable_agents.work.evidence import FileSha256, Reason, parts_inside

if TYPE_CHECKING:
    from collections.abc import Callable

ARTIFACT_BYTES_MAX: Final = 1024 * 1024 * 1024
"""The largest file that is hashed by default, which bounds the time of an examination."""

UNFINISHED_PREFIX: Final = ".unfinished-"
"""The prefix of temporary file names."""

_CHUNK_BYTES: Final = 1024 * 1024
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO without a writer would otherwise wait for ever.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE: Final = 0o666
_Examine: TypeAlias = "Callable[[int, str, os.stat_result], Look]"
_REASONS: Final = {
    errno.ENOENT: Reason.MISSING,
    errno.ENOTDIR: Reason.MISSING,
    errno.ENAMETOOLONG: Reason.MISSING,
    errno.ELOOP: Reason.OUTSIDE,
    errno.ENXIO: Reason.NOT_A_FILE,
}

_NO_FILE: Final = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})


class Look(msgspec.Struct, frozen=True):
    """The examination of a path: VERIFIED for a regular file, else the reason why not.

    ``sha256`` and ``content`` are filled on request.
    """

    reason: Reason
    detail: str = ""
    sha256: str = ""
    content: bytes = b""


class Artifacts:
    """The files below one folder, which must exist. Shared by threads and processes.

    ``bytes_max`` bounds the size of a file that is hashed; None is no bound. Raises InvalidSetting.
    """

    def __init__(self, folder: str | os.PathLike[str], *, bytes_max: int | None = ARTIFACT_BYTES_MAX) -> None:
        """Use the folder, whose own path may contain links."""
        self._folder = Path(folder).resolve()
        self._bytes_max = bytes_max
        self._durable_folders: set[tuple[str, ...]] = set()
        if bytes_max is not None and bytes_max < 0:
            message = f"bytes_max must be 0 or more; got {bytes_max!r}. None is no bound."
            raise InvalidSetting(message)
        if not self._folder.is_dir():
            message = f"The folder of the artifacts must exist; got {self._folder}. Make it first."
            raise InvalidSetting(message)

    @property
    def folder(self) -> Path:
        """The folder that all paths are relative to."""
        return self._folder

    def write(self, path: str, content: bytes) -> FileSha256:
        """Write or replace a file, and return the evidence for it. Durable when this returns.

        Missing folders are made, as durably. Raises InvalidArtifact for a path that leaves the
        folder or leads through a link, and ArtifactNotWritten for an error of the file system.
        """
        parts = parts_inside(path)
        if not parts or not isinstance(content, bytes):
            message = (
                f"An artifact must be a path below its folder and bytes; got {path!r} and a "
                f"{type(content).__name__}. Leave out a leading slash and '..', and encode text."
            )
            raise InvalidArtifact(message)
        try:
            folder = self._opened(parts[:-1], make=True)
            try:
                self._replace(folder, parts[-1], path, content)
            finally:
                os.close(folder)
        except OSError as error:
            raise _not_written(self._folder / path, error) from error
        return FileSha256(path, hashlib.sha256(content).hexdigest())

    def look(self, path: str, *, with_hash: bool = False) -> Look:
        """Examine a path without following links, waiting for a FIFO, or raising."""
        return self._look(path, self._hashed if with_hash else None)

    def read(self, path: str, *, bytes_max: int) -> Look:
        """Examine a path as ``look`` does, and read a regular file.

        The Look holds the content of a file of up to ``bytes_max`` bytes. A larger file is
        TOO_LARGE and is not read.
        """
        return self._look(path, _content_up_to(bytes_max))

    def _look(self, path: str, examine: _Examine | None) -> Look:
        parts = parts_inside(path)
        if not parts:
            return Look(Reason.OUTSIDE, f"{path!r} does not stay in the folder of the artifacts")
        try:
            folder = self._opened(parts[:-1])
            try:
                return _look_at(folder, parts[-1], path, examine)
            finally:
                os.close(folder)
        except OSError as error:
            return _refused(path, error)

    def discard_leftovers(self) -> int:
        """Remove the temporary files of dead writers; return how many.

        Raises ArtifactNotWritten.
        """
        try:
            return sum(_discard(leftover) for leftover in self._folder.rglob(f"{UNFINISHED_PREFIX}*"))
        except OSError as error:
            raise _not_written(self._folder, error) from error

    def discard_leftovers_of(self, path: str) -> int:
        """Remove them in one folder below, without its subfolders; return how many.

        Return 0 if the folder does not exist.
        """
        try:
            folder = self._opened(parts_inside(path))
            try:
                leftovers = [name for name in os.listdir(folder) if name.startswith(UNFINISHED_PREFIX)]
            finally:
                os.close(folder)
            return sum(_discard(self._folder / path / leftover) for leftover in leftovers)
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError as error:
            raise _not_written(self._folder / path, error) from error

    def _replace(self, folder: int, name: str, path: str, content: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        sys.audit(WorkPoint.ARTIFACT_BEFORE_CREATE, path)
        temporary, file = _created(folder)
        try:
            sys.audit(WorkPoint.ARTIFACT_AFTER_CREATE, path)
            _write_all(file, content)
            sys.audit(WorkPoint.ARTIFACT_AFTER_WRITE, path)
            os.fsync(file)
            sys.audit(WorkPoint.ARTIFACT_AFTER_FILE_SYNC, path)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
        finally:
            os.close(file)
        sys.audit(WorkPoint.ARTIFACT_AFTER_RENAME, path)
        os.fsync(folder)
        sys.audit(WorkPoint.ARTIFACT_AFTER_FOLDER_SYNC, path)

    def _opened(self, folders: list[str], *, make: bool = False) -> int:
        """Open the folders one in the other, and return the innermost.

        With ``make``, make missing ones.
        """
        current = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for depth, name in enumerate(folders, start=1):
                if make and (place := tuple(folders[:depth])) not in self._durable_folders:
                    _make_durable(name, current)
                    self._durable_folders.add(place)
                inner = open_folder(name, current)
                os.close(current)
                current = inner
        except BaseException:
            os.close(current)
            raise
        return current

    def _hashed(self, file: int, path: str, before: os.stat_result) -> Look:
        if self._bytes_max is not None and before.st_size > self._bytes_max:
            return Look(Reason.TOO_LARGE, f"{path}: has {before.st_size} bytes, more than {self._bytes_max}")
        digest = hashlib.sha256()
        left = before.st_size  # no more than at the start: a growing file might have no end
        while left > 0 and (chunk := os.read(file, min(left, _CHUNK_BYTES))):
            digest.update(chunk)
            left -= len(chunk)
        if left or _identity(os.fstat(file)) != _identity(before):
            return Look(Reason.CHANGED, f"{path}: was written to while it was read")
        return Look(Reason.VERIFIED, sha256=digest.hexdigest())


def read_in(folder: int, name: str, *, bytes_max: int) -> Look:
    """Examine and read a file in an open folder, as ``Artifacts.read`` does.

    For walks through many files.
    """
    try:
        return _look_at(folder, name, name, _content_up_to(bytes_max))
    except OSError as error:
        return _refused(name, error)


def _refused(path: str, error: OSError) -> Look:
    reason = _REASONS.get(error.errno or 0, Reason.UNREADABLE)
    detail = "is a link, or behind one" if reason is Reason.OUTSIDE else error.strerror or str(error)
    return Look(reason, f"{path}: {detail}")


def _content_up_to(bytes_max: int) -> _Examine:
    def content_of(file: int, path: str, opened: os.stat_result) -> Look:
        if opened.st_size > bytes_max:
            return Look(Reason.TOO_LARGE, f"{path}: has {opened.st_size} bytes, more than {bytes_max}")
        return Look(Reason.VERIFIED, content=_read_all(file, opened.st_size))

    return content_of


def _look_at(folder: int, name: str, path: str, examine: _Examine | None) -> Look:
    before = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISLNK(before.st_mode):
        return Look(Reason.OUTSIDE, f"{path}: is a link")
    if not stat.S_ISREG(before.st_mode):  # before the open: opening a device may act on it
        return Look(Reason.NOT_A_FILE, f"{path}: is not a regular file")
    file = os.open(name, _READ, dir_fd=folder)
    try:
        opened = os.fstat(file)
        if not stat.S_ISREG(opened.st_mode):
            return Look(Reason.CHANGED, f"{path}: was replaced while it was opened")
        return Look(Reason.VERIFIED) if examine is None else examine(file, path, opened)
    finally:
        os.close(file)


def _read_all(file: int, size_bytes: int) -> bytes:
    """Read ``size_bytes`` bytes at most: a growing file might have no end."""
    content = os.read(file, size_bytes)
    while len(content) < size_bytes and (chunk := os.read(file, size_bytes - len(content))):
        content += chunk
    return content


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink


def open_folder(name: str, parent: int) -> int:
    """Open a folder in an open folder. Raises OSError, with ELOOP for a link."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except NotADirectoryError:  # Linux returns ENOTDIR for a link, too, with O_DIRECTORY
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        raise


def _make_durable(name: str, parent: int) -> None:
    """Make the folder if it is missing, and flush its parent.

    An earlier maker may have died before flushing it.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=parent)
    os.fsync(parent)


def _created(folder: int) -> tuple[str, int]:
    """Make a temporary file and lock it: ``discard_leftovers`` leaves locked files alone."""
    while True:
        name = UNFINISHED_PREFIX + secrets.token_hex(8)
        file = os.open(name, _CREATE, _MODE, dir_fd=folder)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return name, file
        os.close(file)  # discarded before it was locked


def _discard(leftover: Path) -> bool:
    try:
        file = os.open(leftover, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in _NO_FILE:
            return False  # a link, a folder, a pipe: no writer has left it, and it stops no other
        raise
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        leftover.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(file)
    return True


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def _not_written(path: Path, error: OSError) -> ArtifactNotWritten | InvalidArtifact:
    if error.errno == errno.ELOOP:
        return InvalidArtifact(f"A path must lead through no link; got {path}. Write to the file's own place.")
    return ArtifactNotWritten(
        f"{path} must be written; got '{error.strerror or error}' from the file system. The old content is whole."
    )
