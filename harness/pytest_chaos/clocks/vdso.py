"""The vDSO of a process: where it is, its functions, and room for two pages near it.

Sources: vdso(7), ``Documentation/ABI/stable/vdso`` of Linux, proc_pid_maps(5), the ELF-64 format.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.clocks.cell import PAGE_BYTES
from pytest_chaos.clocks.stubs import CODE_AT, MACHINES, SIGNATURE, SIGNATURE_AT, jump_target
from pytest_chaos.errors import ClockNotMoved
from pytest_chaos.trace.kernel import MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_chaos.clocks.stubs import Machine

_DYNAMIC_SYMBOLS: Final = 11
_PAGES: Final = 2
_STACK_BYTES: Final = 1 << 28
"""What is kept free below a stack, which grows, and above a heap."""
_LOWEST: Final = 1 << 16
_NAME_AT: Final = 5


class MemorySpan(NamedTuple):
    """A mapping of a process."""

    low: int
    high: int
    name: str


class Vdso(NamedTuple):
    """The vDSO of a process: its address, its content, its functions by name."""

    low: int
    image: bytes
    symbols: Mapping[str, int]

    def patched_at(self, machine: Machine, read: Callable[[int, int], bytes]) -> int:
        """Return where the page of code is, or 0 for a vDSO that is not patched."""
        for name, target in machine.entries.items():
            if name in self.symbols:
                at = self.symbols[name]
                leads_to = jump_target(machine, self.low + at, self.image[at : at + 8])
                if leads_to is not None:
                    code_at = leads_to - target
                    is_ours = read(code_at + SIGNATURE_AT, len(SIGNATURE)) == SIGNATURE
                    return code_at if is_ours and code_at % PAGE_BYTES == 0 else 0
        return 0


def machine() -> Machine:
    """Return this machine. Raises ClockNotMoved for one whose code is not known."""
    if MACHINE not in MACHINES:
        msg = f"the machine must be {' or '.join(MACHINES)} to move a clock; got {MACHINE}. Pass a clock to your code"
        raise ClockNotMoved(msg)
    return MACHINES[MACHINE]


def spans(pid: int | str) -> list[MemorySpan]:
    """Return the mappings of a process. Raises ProcessLookupError for one that has ended."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            rows = [line.split(None, 5) for line in file]
    except FileNotFoundError:
        rows = []
    if not rows:  # a zombie has none
        raise ProcessLookupError(errno.ESRCH, f"process {pid} has ended")
    found = []
    for row in rows:
        low, high = (int(part, 16) for part in row[0].split("-"))
        found.append(MemorySpan(low, high, row[5].strip() if len(row) > _NAME_AT else ""))
    return found


def vdso_of(mapped: Sequence[MemorySpan], read: Callable[[int, int], bytes], whose: str) -> Vdso:
    """Return the vDSO among mappings. Raises ClockNotMoved for a process without one."""
    span = next((span for span in mapped if span.name == "[vdso]"), None)
    if span is None:
        msg = f"{whose} must have a vDSO, in which clocks are read; got none. Its clock cannot be moved"
        raise ClockNotMoved(msg)
    image = read(span.low, span.high - span.low)
    if image[:5] != b"\x7fELF\x02":
        msg = f"{whose} must be a program of 64 bits; got another one. Its clock cannot be moved"
        raise ClockNotMoved(msg)
    return Vdso(span.low, image, symbols_of(image))


def symbols_of(image: bytes) -> dict[str, int]:
    """Return the dynamic symbols of an ELF image, relative to its start; none without a table."""
    (at,) = struct.unpack_from("<Q", image, 0x28)
    size, count = struct.unpack_from("<HH", image, 0x3A)
    if at + size * count > len(image):
        return {}
    sections = [struct.unpack_from("<IIQQQQIIQQ", image, at + number * size) for number in range(count)]
    dynamic = next((section for section in sections if section[1] == _DYNAMIC_SYMBOLS), None)
    if dynamic is None:
        return {}
    names = sections[dynamic[6]][4]
    found = {}
    for number in range(dynamic[5] // 24):
        name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", image, dynamic[4] + number * 24)
        found[image[names + name : image.index(b"\0", names + name)].decode()] = value
    return found


def room_near(mapped: Sequence[MemorySpan], vdso: Vdso, reach_bytes: int) -> int:
    """Return where two pages are free within reach. Raises ClockNotMoved if there is no room."""
    needed = _PAGES * PAGE_BYTES
    found: list[int] = []
    ordered = sorted(mapped)
    for before, after in zip(
        [MemorySpan(0, _LOWEST, ""), *ordered], [*ordered, MemorySpan(1 << 46, 1 << 47, "")], strict=True
    ):
        low = before.high + (_STACK_BYTES if before.name == "[heap]" else PAGE_BYTES)
        high = after.low - (_STACK_BYTES if after.name == "[stack]" else PAGE_BYTES) - needed
        if low <= high:
            found += [low, high & -PAGE_BYTES]
    nearest = min(found, key=lambda at: abs(at - vdso.low), default=None)
    if nearest is None or abs(nearest - vdso.low) > reach_bytes - (1 << 20):
        msg = "two pages must be free near the vDSO of a process; got none. Its clock cannot be moved"
        raise ClockNotMoved(msg)
    return nearest


def code_reads_at(code_at: int) -> int:
    """Return the address of our ``clock_gettime`` in a page of code."""
    return code_at + CODE_AT
