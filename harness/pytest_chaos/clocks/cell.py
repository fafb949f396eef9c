"""The cell: how far, and how fast, the wall clock of an agent is moved from the machine's.

A cell is a page of a file that all processes of an agent map, read only; the controller alone
writes it. So one store moves the clocks of a whole process tree at once, also of children that are
forked meanwhile. Its layout, which the code of ``stubs`` reads (little endian, offsets in bytes):

    0     number of the motion that counts, 64 bits
    64    64 motions of 32 bytes, the n-th at 64 + 32 * (n % 64):
          base, shown (nanoseconds), rate (32.32 fixed point), TAI (nanoseconds)

A moved clock shows ``shown + (machine's - base) * rate``. A motion is written whole before its
number counts, and a reader that saw the number change looks again, so no clock is read half moved.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import ClockNotMoved

if TYPE_CHECKING:
    from pathlib import Path

PAGE_BYTES: Final = 4096
MOTIONS: Final = 64
MOTIONS_AT: Final = 64
_MOTION: Final = struct.Struct("<4q")
ONE: Final = 1 << 32
"""The rate of a clock that runs as fast as the machine's."""
RATE_MAX: Final = 1000.0
_SECOND_NS: Final = 1_000_000_000
JUMP_S_MAX: Final = 2**63 // _SECOND_NS
"""The longest jump, in seconds: 292 years. Nanoseconds since 1970 have 64 bits with a sign."""
_LATEST_NS: Final = 2**63 - 1 - 86_400 * 366 * _SECOND_NS
"""A year before the last moment that can be shown: a moved clock goes on."""


class Motion(msgspec.Struct, frozen=True):
    """How a clock is moved. ``rate`` is in 1/2**32; the other values are nanoseconds.

    >>> hour = Motion().jumped(3600.0, now_ns=10**18)
    >>> hour.at(10**18 + 5) - 10**18
    3600000000005
    >>> frozen = hour.running(0.0, now_ns=10**18)
    >>> frozen.at(10**18) == frozen.at(10**18 + 7)
    True
    """

    base_ns: int = 0
    shown_ns: int = 0
    rate: int = ONE
    tai_ns: int = 0

    def at(self, machine_ns: int) -> int:
        """Return what the moved clock shows when the machine's shows ``machine_ns``."""
        return self.shown_ns + ((machine_ns - self.base_ns) * self.rate >> 32)

    def jumped(self, by_s: float, *, now_ns: int) -> Motion:
        """Return the motion after a jump. Raises ClockNotMoved beyond the years 1970 to 2261."""
        shown_ns = self.at(now_ns) + round(by_s * _SECOND_NS)
        if not 0 <= shown_ns <= _LATEST_NS:
            years = 1970 + shown_ns / (365.2425 * 86_400 * _SECOND_NS)
            msg = f"a moved clock must show a time from 1970 to 2261; got the year {years:.0f}. Jump less far"
            raise ClockNotMoved(msg)
        return msgspec.structs.replace(self, base_ns=now_ns, shown_ns=shown_ns)

    def running(self, rate: float, *, now_ns: int) -> Motion:
        """Return the motion that goes on from here, ``rate`` times as fast as the machine's."""
        return msgspec.structs.replace(self, base_ns=now_ns, shown_ns=self.at(now_ns), rate=round(rate * ONE))

    def healed(self) -> Motion:
        """Return the motion of the machine's clock."""
        return Motion(tai_ns=self.tai_ns)

    @property
    def is_moved(self) -> bool:
        """Whether the clock may differ from the machine's."""
        return (self.shown_ns, self.rate) != (self.base_ns, ONE)


class ClockCell:
    """The cell in the file at ``path``, made if it is not there. The controller's end."""

    def __init__(self, path: Path, motion: Motion | None = None) -> None:
        self.path = path
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            is_new = os.fstat(file).st_size == 0
            os.ftruncate(file, PAGE_BYTES)
            self._page = mmap.mmap(file, PAGE_BYTES)
        finally:
            os.close(file)
        self._number = ctypes.c_uint64.from_buffer(self._page)
        if is_new:
            self.move(motion or Motion(tai_ns=_tai_ns()))

    @property
    def motion(self) -> Motion:
        """The motion that counts."""
        return motion_in(self._page)

    def move(self, motion: Motion) -> None:
        """Make another motion count, for all processes at once."""
        number = self._number.value + 1
        values = (motion.base_ns, motion.shown_ns, motion.rate, motion.tai_ns)
        _MOTION.pack_into(self._page, MOTIONS_AT + number % MOTIONS * _MOTION.size, *values)
        self._number.value = number  # one store of 64 bits, after the motion is there


def motion_in(page: bytes | bytearray | mmap.mmap) -> Motion:
    """Return the motion that counts in a page."""
    number = int.from_bytes(page[:8], "little")
    return Motion(*_MOTION.unpack_from(page, MOTIONS_AT + number % MOTIONS * _MOTION.size))


def _tai_ns() -> int:
    """Return how far TAI is ahead of UTC on this machine: whole seconds, mostly 0 or 37."""
    if not hasattr(time, "CLOCK_TAI"):
        return 0
    ahead_ns = time.clock_gettime_ns(time.CLOCK_TAI) - time.time_ns()
    return round(ahead_ns / _SECOND_NS) * _SECOND_NS
