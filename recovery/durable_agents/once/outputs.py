"""Large outputs: files named by their SHA-256, durable before a row refers to them.

The database keeps a reference (hash and size) in place of the bytes. A reader compares the output
with its hash. Two writers of one output write the same file, each by its own rename, so neither
sees half of it. A writer that finds the file flushes it all the same: the process that wrote it may
have died before its flush.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from durable_agents.errors import ArtifactNotWritten, InvalidSetting, OutputLost
from durable_agents.work.artifacts import Artifacts
from durable_agents.work.evidence import Reason

if TYPE_CHECKING:
    from collections.abc import Container

SUFFIX: Final = "-outputs"
"""Appended to the database's path, this names the default folder."""

_PREFIX_CHARACTERS: Final = 2


class OutputReference(msgspec.Struct, frozen=True, array_like=True):
    """The reference to an output: its SHA-256 in hexadecimal, and its size in bytes."""

    sha256: str
    size_bytes: int


class Outputs:
    """The outputs in one folder, which the first ``put`` makes.

    May be shared by threads and processes.
    """

    __slots__ = ("_artifacts", "_folder")

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Use the folder; nothing is made yet. Raises InvalidSetting unless it is a path."""
        self._folder = checked_folder(folder).absolute()
        self._artifacts: Artifacts | None = None

    @property
    def folder(self) -> Path:
        """The folder of the outputs."""
        return self._folder

    def put(self, content: bytes) -> OutputReference:
        """Store an output, unless it is there, and return its reference. Durable when this returns.

        Raises ArtifactNotWritten.
        """
        digest = hashlib.sha256(content).hexdigest()
        artifacts = self._made()
        path = _path_of(digest)
        look = artifacts.look(path, with_hash=True)
        if look.reason is Reason.VERIFIED and look.sha256 == digest:
            self._flush(path)
        else:
            artifacts.write(path, content)
        return OutputReference(digest, len(content))

    def get(self, reference: OutputReference) -> bytes:
        """Return an output. Raises OutputLost when it is missing or is not what was stored."""
        path = self._folder / _path_of(reference.sha256)
        try:
            content = path.read_bytes()
        except OSError as error:
            message = f"{path} must hold {reference.size_bytes} bytes of output; got '{error.strerror}'. Restore it."
            raise OutputLost(message) from error
        if hashlib.sha256(content).hexdigest() != reference.sha256:
            message = (
                f"{path} must hold {reference.size_bytes} bytes with the hash in its name; got {len(content)} bytes "
                "with another hash. Restore the file."
            )
            raise OutputLost(message)
        return content

    def discard(self, referred: Container[str], *, before_s: float) -> int:
        """Remove old unreferenced outputs; return how many.

        An output is old if it was last stored before ``before_s`` (seconds since 1970). Storing an
        output again renews its age, so one that is about to be referenced stays.
        """
        discarded = 0
        for file in self._folder.glob("??/" + "?" * 64):
            if file.name not in referred and file.stat().st_mtime < before_s:
                file.unlink()
                discarded += 1
        return discarded

    def _made(self) -> Artifacts:
        """Make the folder durably, and return the writer of its files."""
        if self._artifacts is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for folder in (self._folder.parent, self._folder.parent.parent):
                    _sync(folder)
            except OSError as error:
                message = f"{self._folder} must be a folder that can be made; got '{error.strerror}'. Clear the path."
                raise ArtifactNotWritten(message) from error
            self._artifacts = Artifacts(self._folder)
        return self._artifacts

    def _flush(self, path: str) -> None:
        """Flush a file that another process stored, and renew its age."""
        file = self._folder / path
        try:
            os.utime(file)
            for place in (file, file.parent, self._folder):
                _sync(place)
        except OSError as error:
            message = f"{file} must be flushed; got '{error.strerror}'. The file there is whole."
            raise ArtifactNotWritten(message) from error


def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder for outputs. Raises InvalidSetting if it is not usable text."""
    text = os.fspath(folder) if isinstance(folder, str | os.PathLike) else ""
    if isinstance(text, str) and text and "\0" not in text:
        return Path(text)
    message = f"outputs must be the path of a folder; got {folder!r:.200}. Give another one."
    raise InvalidSetting(message)


def _path_of(digest: str) -> str:
    return f"{digest[:_PREFIX_CHARACTERS]}/{digest}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
