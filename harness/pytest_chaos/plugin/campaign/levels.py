"""What the processes that stay have before each run, for drift: a leak shows from run to run.

They are pytest's process and all below it: the guardian, the templates that agents are forked from,
servers of a fixture. The kernel lists children; without that list nothing is measured.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from pytest_chaos.model.values import Level

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PROCESSES_MAX: Final = 500


def level() -> Level | None:
    """Return the level of this process and all below it; None where it cannot be known."""
    try:
        pids = _tree(os.getpid())
    except OSError:
        return None
    files = memory = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            files += len(os.listdir(f"/proc/{pid}/fd"))
            with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - called before each run
                memory += int(file.read().split()[1]) * _PAGE_BYTES
    return Level(pid=os.getpid(), processes=len(pids), open_files=files, memory_bytes=memory)


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        if len(found) > _PROCESSES_MAX:
            break
        found += _children(pid, must_be=pid == root)
    return found


def _children(pid: int, *, must_be: bool) -> Iterator[int]:
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123 - as above
                yield from map(int, file.read().split())
    except OSError:
        if must_be:
            raise
