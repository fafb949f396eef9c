"""Interrupts at every moment at which Python would look for a signal, one moment per try."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


class Interrupt:
    """Raises KeyboardInterrupt at the n-th such moment while code of the given files runs,
    in the thread it began in.

    Those moments are the beginning of a function and the return of one in C, which is just what a
    profiler is told of.
    """

    def __init__(self, number: int, *files: str) -> None:
        """Prepare; ``number`` counts from 1, and ``files`` are ends of paths."""
        self._left = number
        self._files = files

    def __enter__(self) -> None:
        """Begin; there is one per thread at a time."""
        sys.setprofile(self._look)

    def __exit__(self, *_: object) -> None:
        """End."""
        sys.setprofile(None)

    def _look(self, frame: FrameType, event: str, _: object) -> None:
        if event in {"call", "c_return"} and frame.f_code.co_filename.endswith(self._files):
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
