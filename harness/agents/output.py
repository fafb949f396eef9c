"""What an agent prints: read from a pipe, written to its log, and never more than a bound of it.

The first bytes go to the file as they come, so that whoever waits for a line sees it at once; of what goes beyond the
bound the last part is kept in memory and written when the output ends, with a line that says how much is missing
between the two.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES: Final = 64 * 1024
"""How much of the end is kept of an output that went beyond its bound."""


class Output:
    """One agent's output. ``limit`` is in bytes and bounds what is kept from the beginning."""

    def __init__(self, number: int, path: Path, limit: int) -> None:
        self.number = number
        self.path = path
        self.limit = limit
        self.total = 0
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._kept = 0
        self._tail = bytearray()

    def drop_write_end(self) -> None:
        """Close our copy of the writing end, once the agent has its own: only then is there an end of file."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def drain(self) -> bool:
        """Take all there is at the moment; return whether there may be more."""
        while True:
            try:
                content = os.read(self.read_end, 1 << 16)
            except BlockingIOError:
                return True
            if not content:
                return False
            self._keep(content)

    def close(self) -> None:
        """Write the kept end, if the output went beyond its bound, and close everything."""
        self.drop_write_end()
        with contextlib.suppress(OSError):  # a full disk costs the end of a log, not the run
            if self._tail:
                missing = self.total - self._kept - len(self._tail)
                os.write(self._file, f"\n[... {missing} bytes left out ...]\n".encode() + bytes(self._tail))
        os.close(self._file)
        os.close(self.read_end)

    def _keep(self, content: bytes) -> None:
        self.total += len(content)
        head = content[: max(0, self.limit - self._kept)]
        if head:
            with contextlib.suppress(OSError):
                os.write(self._file, head)
            self._kept += len(head)
        self._tail += content[len(head) :]
        if len(self._tail) > TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
