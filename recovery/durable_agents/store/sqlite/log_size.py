"""Size of SQLite's write-ahead log, and who keeps it from being emptied.

SQLite empties the log when all of it is in the database and no reader needs it. One long read
transaction, in any process, lets it grow without bound and without an error. So a store looks at
the size now and then, and warns. A log that has been that large is cut back to ``LOG_BYTES_MAX``
when it begins anew (``PRAGMA journal_size_limit``, ``connections``).

A reader holds a shared lock on one of five bytes of the ``-shm`` file (sqlite.org/walformat.html),
which ``/proc/locks`` shows with its pid. The ``-shm`` file itself must not be opened here: to close
it would drop the locks that SQLite has on it in this process.
"""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Final

LOG_BYTES_MAX: Final = 64 * 1024 * 1024
"""The size above which the log is too large; an untroubled one has some 4 MB."""

LOOK_S: Final = 1.0
"""The time between two looks: each is one ``stat``,
and one read of ``/proc/locks`` if it is too large.
"""

_LOCKS_BYTES_MAX: Final = 1024 * 1024
_READ_MARKS: Final = range(123, 128)
_PIDS_MAX: Final = 5
_LOGGER: Final = logging.getLogger("durable_agents.store")


class LogWatch:
    """Warns when the log is too large in two consecutive looks, and when it has doubled since."""

    def __init__(self, path: str) -> None:
        """Prepare for the database at ``path``; nothing is looked at yet."""
        self._path = os.path.realpath(path)
        self._look_at_s = 0.0
        self._warned_at_bytes = 0
        self._readers: set[int] | None = None
        self.warning = ""

    def look(self) -> None:
        """Look at the size, at most once in ``LOOK_S`` seconds.

        Never raises an Exception.
        """
        now_s = time.monotonic()
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_S
        size = _size(f"{self._path}-wal")
        if size <= LOG_BYTES_MAX:
            if self.warning:
                _LOGGER.info("the log of %s is down to %s", self._path, _megabytes(size))
            self.warning, self._readers, self._warned_at_bytes = "", None, 0
            return
        readers, before = _readers(f"{self._path}-shm"), self._readers
        self._readers = readers
        if before is None:  # it may be one large transaction, and a reader of a moment
            return
        self.warning = self._text(size, readers & before)
        if size >= 2 * self._warned_at_bytes:
            self._warned_at_bytes = size
            _LOGGER.warning("%s", self.warning)

    def _text(self, size: int, readers: set[int]) -> str:
        pids = sorted(readers)
        if pids:
            shown = ", ".join(str(pid) for pid in pids[:_PIDS_MAX]) + (", ..." if len(pids) > _PIDS_MAX else "")
            cause = f"Processes that read it: pid {shown}. End their read transactions."
        else:
            cause = "No process is seen that reads it all the time. Look for long transactions."
        return (
            f"The write-ahead log of {self._path} must have at most {_megabytes(LOG_BYTES_MAX)}; got "
            f"{_megabytes(size)} beside {_megabytes(_size(self._path))} of database. {cause}"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - the plain way, beside a commit
    except OSError:
        return 0


def _readers(index: str) -> set[int]:
    """Return the pids that hold a read mark in the index of the log.

    Processes that the kernel does not show are missing.
    """
    try:
        inode = os.stat(index).st_ino  # noqa: PTH116 - as above
        with open("/proc/locks", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - as above
            lines = file.read(_LOCKS_BYTES_MAX).splitlines()
    except OSError:
        return set()
    found = set()
    for line in lines:  # 1: POSIX  ADVISORY  READ 3786 00:1b:491966 124 124, see proc_locks(5)
        match = re.search(rf" (\d+) [0-9a-f]+:[0-9a-f]+:{inode} (\d+) ", line)
        if match is not None and int(match[2]) in _READ_MARKS and int(match[1]):  # 0: of another pid namespace
            found.add(int(match[1]))
    return found
