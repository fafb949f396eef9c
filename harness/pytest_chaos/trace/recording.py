"""Recordings: the steps of one observed run with all written bytes, in a folder of two files.

``contents.bin`` holds the bytes in the order in which they were seen, ``recording.msgpack`` the
rest. Contents are read from the file when they are wanted, so a recording of a gigabyte needs no
gigabyte of memory.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Self, TypeVar

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.trace.step import KNOWN_FILES, NO_CONTENT, Action, BlindSpot, Entry, FileKinds, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FORMAT: Final = 1
"""Version of the files; raised when a field changes its meaning."""

_CONTENTS: Final = "contents.bin"
_STEPS: Final = "recording.msgpack"


class _Saved(msgspec.Struct, frozen=True, array_like=True):
    format: int
    source: str
    before: tuple[Entry, ...]
    steps: tuple[Step, ...]
    blind_spots: tuple[BlindSpot, ...]
    files: FileKinds = KNOWN_FILES


class Recorder:
    """Records a run while it goes on. ``folder`` is made, and must not hold a recording yet."""

    def __init__(self, folder: Path, source: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.before: list[Entry] = []
        self.steps: list[Step] = []
        self.blind_spots: list[BlindSpot] = []
        self.files = KNOWN_FILES
        self._source = source
        # Contents come before the steps that refer to them; a crash leaves a folder without steps.
        self._contents = os.open(folder / _CONTENTS, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._contents_bytes = 0

    def keep(self, content: bytes | memoryview) -> int:
        """Append bytes to the contents; return their place."""
        place = self._contents_bytes
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self._contents, rest) :]
        self._contents_bytes += len(content)
        return place

    def close(self) -> None:
        """Write the steps and close the files; then the recording can be opened."""
        os.close(self._contents)
        saved = _Saved(
            FORMAT,
            self._source,
            tuple(map(encodable, self.before)),
            tuple(map(encodable, self.steps)),
            tuple(self.blind_spots),
            self.files,
        )
        (self.folder / _STEPS).write_bytes(msgspec.msgpack.encode(saved))


class Recording:
    """A finished recording. Marks are among ``steps``; ``count`` is the number of the last step.

    ``before`` is the content of the folder when the run began. Raises UsageError for a folder
    without a recording, or with one of another format.
    """

    def __init__(self, folder: Path) -> None:
        try:
            saved = msgspec.msgpack.decode((folder / _STEPS).read_bytes(), type=_Saved)
            self._contents = os.open(folder / _CONTENTS, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, msgspec.MsgspecError) as error:
            msg = f"{folder} must hold a readable recording of steps; got {error}. Record the program again"
            raise UsageError(msg) from error
        if saved.format != FORMAT:
            os.close(self._contents)
            msg = f"the recording in {folder} must have format {FORMAT}; got {saved.format}. Record the program again"
            raise UsageError(msg)
        self.folder = folder
        self.source = saved.source
        self.before: Sequence[Entry] = tuple(map(decoded, saved.before))
        self.steps: Sequence[Step] = tuple(map(decoded, saved.steps))
        self.blind_spots: Sequence[BlindSpot] = saved.blind_spots
        self.files = saved.files
        self.count = max((step.number for step in saved.steps), default=0)

    def __enter__(self) -> Self:
        """Return the recording."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the recording."""
        self.close()

    def content(self, item: Step | Entry) -> bytes:
        """Return the bytes of a write, a mark or a file; b"" for a step without content."""
        return b"" if item.content == NO_CONTENT else os.pread(self._contents, item.length, item.content)

    def durable(self) -> list[Step]:
        """Return the steps without the marks; step number k is at k - 1."""
        return [step for step in self.steps if step.action is not Action.MARK]

    def close(self) -> None:
        """Close the contents. Closing twice is fine."""
        if self._contents >= 0:
            os.close(self._contents)
            self._contents = -1


_Named = TypeVar("_Named", Entry, Step)
_BYTES: Final = "\0"
"""No path has a NUL. After it comes a path that is not UTF-8, a letter for each byte."""


def encodable(item: _Named) -> _Named:
    """Return an item whose paths can be encoded, whatever bytes they have."""
    return _with_paths(item, _letters) if not (item.path + item.target).isascii() else item


def decoded(item: _Named) -> _Named:
    """Undo ``encodable``."""
    return _with_paths(item, _path) if _BYTES in item.path + item.target else item


def _with_paths(item: _Named, change: Callable[[str], str]) -> _Named:
    return msgspec.structs.replace(item, path=change(item.path), target=change(item.target))


def _letters(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return _BYTES + os.fsencode(path).decode("latin-1")
    return path


def _path(letters: str) -> str:
    return os.fsdecode(letters[1:].encode("latin-1")) if letters.startswith(_BYTES) else letters
