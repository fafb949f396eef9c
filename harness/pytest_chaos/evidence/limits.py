"""The limits of a pack, and its problems: what was cut, or could not be read.

A problem goes into the pack's table ``problems`` instead of ending it. A full disk ends it:
:func:`full` tells that error from all others.
"""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one pack, in bytes and seconds: a pack stays below about 1.2 GB."""

    searched_files_max: int = 20_000
    """Files under the work folder that are examined for being SQLite files."""
    databases_max: int = 16
    """Databases that are described; those that the test named come first."""
    database_bytes_max: int = 256 * 1024 * 1024
    """A larger database (with its side files) is described from its header alone."""
    copied_bytes_max: int = 1024 * 1024 * 1024
    """All copies together."""
    database_s_max: float = 20.0
    """Time for all questions to one database; the question that exceeds it is interrupted."""
    tables_max: int = 200
    rows_max: int = 50
    """The newest rows of each table."""
    answer_rows_max: int = 200
    value_length_max: int = 4096
    """Characters of one text, mark value or row value; a blob is cut to its first 64 bytes."""
    rows_bytes_max: int = 32 * 1024 * 1024
    """JSON of all rows and answers together."""
    attachments_bytes_max: int = 128 * 1024 * 1024
    """Files that the run attached, all together: recordings and failing states of explorations."""
    files_max: int = 1_000
    """Files of the run's folder that are listed, beside its databases."""
    files_bytes_max: int = 64 * 1024 * 1024
    """Copies of these files, all together."""
    file_bytes_max: int = 8 * 1024 * 1024
    """A larger file is listed and not copied."""
    excerpt_bytes_max: int = 64 * 1024
    """Text of each file that the index keeps, without secrets."""
    head_bytes_max: int = 512
    """Bytes of a file that is no text which the index keeps."""
    journal_file_bytes_max: int = 64 * 1024 * 1024
    """The newest part of each of the journal's own files."""
    marks_max: int = 50_000
    """The newest marks."""
    agents_max: int = 500
    log_bytes_max: int = 256 * 1024
    """Kept output of an agent: half from its start, half from its end."""
    log_lines_max: int = 2_000
    """The newest kept lines of each agent's output, in the table ``log_lines``."""
    failure_length_max: int = 256 * 1024
    problems_max: int = 1_000


DEFAULT: Final = Limits()


_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Problem:
    """A part of the pack that could not be read, or was cut."""

    kind: Literal["problem", "cut"]
    part: str
    text: str


@dataclass(slots=True)
class Problems:
    """The problems so far, at most ``count_max``, with a last one if there were more."""

    count_max: int = 1_000
    found: list[Problem] = field(default_factory=list)

    def problem(self, part: str, text: object) -> None:
        """Note that a part could not be read or written."""
        self._add(Problem("problem", part, str(text)))

    def cut(self, part: str, text: str) -> None:
        """Note that a limit left something out."""
        self._add(Problem("cut", part, text))

    @contextmanager
    def catching(self, part: str) -> Iterator[None]:
        """Turn any error but a full disk into a problem of this part."""
        try:
            yield
        except Exception as error:
            if full(error):
                raise
            self.problem(part, f"{type(error).__name__}: {error}")

    def _add(self, problem: Problem) -> None:
        if len(self.found) < self.count_max:
            self.found.append(problem)
        elif len(self.found) == self.count_max:
            self.found.append(Problem("cut", "problems", f"only the first {self.count_max} problems are listed"))


def full(error: BaseException) -> bool:
    """Whether the error means a full disk: no space, a quota, a limit on file sizes."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in _FULL
