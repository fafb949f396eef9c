"""Versioned JSON files: replaced whole, and read with distrust.

An agent's own files are written by ``durable_agents.work.artifacts``, so a crash leaves the old
content or the new one. But other programs may write them, too, or put something else in their
place. So no link is followed, only a regular file of a bounded size is opened, and everything that
is not a proper file is one of ``FileProblem``.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from durable_agents.work.evidence import Reason

if TYPE_CHECKING:
    from durable_agents.work.artifacts import Artifacts, Look

_Value = TypeVar("_Value")


class FileProblem(enum.StrEnum):
    """The reasons why a file has no value."""

    MISSING = "missing"
    HALF_WRITTEN = "half_written"
    LINK = "link"
    NOT_A_FILE = "not_a_file"
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    NO_STATUS = "no_status"
    """JSON of another shape."""
    OTHER_VERSION = "other_version"


class Reading(msgspec.Struct, Generic[_Value], frozen=True):
    """The content of a file: its value, or a problem with a sentence about it."""

    value: _Value | None = None
    problem: FileProblem | None = None
    detail: str = ""
    content: bytes = b""


class _Header(msgspec.Struct, frozen=True):
    version: int | msgspec.UnsetType = msgspec.UNSET


_PROBLEMS: Final = {
    Reason.MISSING: FileProblem.MISSING,
    Reason.OUTSIDE: FileProblem.LINK,
    Reason.NOT_A_FILE: FileProblem.NOT_A_FILE,
    Reason.TOO_LARGE: FileProblem.TOO_LARGE,
}
_header: Final = msgspec.json.Decoder(_Header).decode
_encode: Final = msgspec.json.Encoder().encode


class JsonFormat(Generic[_Value]):
    """A file format: JSON of one type and version, of at most ``bytes_max`` bytes.

    A file without a version is of this version.

    >>> numbers = JsonFormat(dict[str, int], version=1, bytes_max=1000)
    >>> numbers.parse(b'{"version": 1, "a": 2}').value
    {'version': 1, 'a': 2}
    >>> print(numbers.parse(b'{"version": 2}').problem, numbers.parse(b'{"a"').problem)
    other_version half_written
    """

    def __init__(self, kind: type[_Value], *, version: int, bytes_max: int) -> None:
        self.version: Final = version
        self.bytes_max: Final = bytes_max
        self._decode = msgspec.json.Decoder(kind).decode

    def read(self, artifacts: Artifacts, path: str) -> Reading[_Value]:
        """Read a file. A problem is in the reading and not raised."""
        return self.reading_of(artifacts.read(path, bytes_max=self.bytes_max))

    def reading_of(self, look: Look) -> Reading[_Value]:
        """Return the reading of a file that was looked at, with its content."""
        if look.reason is not Reason.VERIFIED:
            return Reading(problem=_PROBLEMS.get(look.reason, FileProblem.UNREADABLE), detail=look.detail)
        return self.parse(look.content)

    def parse(self, content: bytes) -> Reading[_Value]:
        """Return the value of a content, or its problem."""
        try:
            version = _header(content).version
            if version not in {msgspec.UNSET, self.version}:
                detail = f"version {version}, known is {self.version}"
                return Reading(problem=FileProblem.OTHER_VERSION, detail=detail, content=content)
            content.decode()  # a decoder skips unknown fields, whatever their bytes
            return Reading(self._decode(content), content=content)
        except msgspec.ValidationError as error:
            return Reading(problem=FileProblem.NO_STATUS, detail=str(error), content=content)
        except (ValueError, RecursionError, msgspec.DecodeError) as error:
            detail = f"{len(content)} bytes: {error}"
            return Reading(problem=FileProblem.HALF_WRITTEN, detail=detail, content=content)


def formatted(value: object) -> bytes:
    """Return a value as indented JSON that ends with a line break."""
    return msgspec.json.format(_encode(value)) + b"\n"
