"""What went wrong, or was left out, while a pack was made. It goes into the pack instead of ending it.

The one thing that does end it is a full disk: :func:`full` tells it from all the rest.
"""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about one part of the pack: it could not be read, or it was cut."""

    kind: Literal["problem", "cut"]
    part: str
    text: str


@dataclass(slots=True)
class Problems:
    """The problems so far, at most ``count_max`` of them; the last one then says that there were more."""

    count_max: int = 1_000
    found: list[Problem] = field(default_factory=list)

    def problem(self, part: str, text: object) -> None:
        """Note that a part could not be had as it should."""
        self._add(Problem("problem", part, str(text)))

    def cut(self, part: str, text: str) -> None:
        """Note that a limit left something out."""
        self._add(Problem("cut", part, text))

    @contextmanager
    def catching(self, part: str) -> Iterator[None]:
        """Turn any error but a full disk into a problem of this part; code after the ``with`` block goes on."""
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
    """Whether the error means that nothing more can be written: no space, a quota, a limit on file sizes."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in _FULL
