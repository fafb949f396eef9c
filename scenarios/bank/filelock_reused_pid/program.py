"""Processes that work under a soft lock of the library filelock."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from filelock import SoftFileLock, Timeout

if TYPE_CHECKING:
    from pytest_chaos import Marks

LOCK = "work.lock"
TIMEOUT_S = 3.0


def hold(marks: Marks) -> None:
    """Take the lock, and work until the process ends."""
    with SoftFileLock(LOCK):
        marks.note("locked")
        signal.pause()


def take(marks: Marks) -> None:
    """Take the lock, within the time that the program waits for it."""
    try:
        with SoftFileLock(LOCK, timeout=TIMEOUT_S):
            marks.ack("lock")
    except Timeout:
        marks.note("gave up", value=f"{TIMEOUT_S:g} s")


def live(marks: Marks) -> None:
    """Be another process, which has nothing to do with the lock."""
    marks.note("alive")
    signal.pause()
