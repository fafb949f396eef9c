"""Large outputs: stored once, by their SHA-256, beside the database, and durable before anything refers to them.

The database keeps a reference, of the hash and the size, in the place of the bytes. Whoever reads
an output compares it with its hash. Two writers of one output write the same file, each by a rename
of its own, so neither sees half of the other's. One that finds the file there flushes it all the
same: the process that wrote it may have died before doing so.
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
"""What the name of the folder has more than that of the database, unless another folder is given."""

_PREFIX_CHARACTERS: Final = 2
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class OutputReference(msgspec.Struct, frozen=True, array_like=True):
    """Where an output is: its SHA-256 in hexadecimal, and its size in bytes."""

    sha256: str
    size_bytes: int


class Outputs:
    """The outputs in one folder, which is made when the first one is stored. May be shared by threads and processes."""

    __slots__ = ("_artifacts", "_folder")

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Use the folder; nothing is made yet. Raises InvalidSetting for what is no path."""
        self._folder = checked_folder(folder).absolute()
        self._artifacts: Artifacts | None = None

    @property
    def folder(self) -> Path:
        """Where the outputs are."""
        return self._folder

    def put(self, content: bytes) -> OutputReference:
        """Store an output, unless it is there, and return what refers to it. Durable when this returns.

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
            message = f"Expected an output of {reference.size_bytes} bytes at {path} but {error.strerror}; restore it."
            raise OutputLost(message) from error
        if hashlib.sha256(content).hexdigest() != reference.sha256:
            message = (
                f"Expected {reference.size_bytes} bytes with the hash in their name at {path} but the {len(content)} "
                "there have another; restore the file."
            )
            raise OutputLost(message)
        return content

    def discard(self, referred: Container[str], *, before_s: float) -> int:
        """Remove outputs that nothing refers to and that were last stored before ``before_s`` (seconds since 1970).

        Return how many. An output that is stored again is young again, so one that is about to be
        referred to stays.
        """
        discarded = 0
        for file in self._folder.glob("??/" + "?" * 64):
            if file.name not in referred and file.stat().st_mtime < before_s:
                file.unlink()
                discarded += 1
        return discarded

    def _made(self) -> Artifacts:
        """Make the folder, and make it durable; return what writes into it."""
        if self._artifacts is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for folder in (self._folder.parent, self._folder.parent.parent):
                    _sync(folder)
            except OSError as error:
                message = f"Expected to make the folder {self._folder} but {error.strerror}; check what is in the way."
                raise ArtifactNotWritten(message) from error
            self._artifacts = Artifacts(self._folder)
        return self._artifacts

    def _flush(self, path: str) -> None:
        """Make durable what another process stored, and may have been about to."""
        file = self._folder / path
        try:
            os.utime(file)
            for place in (file, file.parent, self._folder):
                _sync(place)
        except OSError as error:
            message = f"Expected to flush {file} but the file system says '{error.strerror}'; what is there is whole."
            raise ArtifactNotWritten(message) from error


def checked_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder for outputs. Raises InvalidSetting for what is none: empty, or no text."""
    text = os.fspath(folder) if isinstance(folder, str | os.PathLike) else ""
    if isinstance(text, str) and text and "\0" not in text:
        return Path(text)
    message = f"Expected the path of a folder for large outputs but got {folder!r:.200}; give outputs=."
    raise InvalidSetting(message)


def _path_of(digest: str) -> str:
    return f"{digest[:_PREFIX_CHARACTERS]}/{digest}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
