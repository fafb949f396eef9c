"""The function of a compiled program that makes a step, as ``save+0x4c in worker``.

A trapped call waits in the kernel, mostly within the C library. The stack of its thread has the
addresses to which the functions return. The first one that lies in the program's own code, right
behind a call, and is not one of the library (which a static program contains) is shown. No frame
has to be unwound for this. It can be misled by an old address that was not overwritten, so it is
shown and decides nothing.

Names come from the symbol table of the file (ELF). A stripped file has none; then the place is an
offset in the file. An interpreter's own functions say nothing about a script, and are left out.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from bisect import bisect_right
from pathlib import Path
from typing import Final, NamedTuple

from pytest_chaos.trace import memory
from pytest_chaos.trace.kernel import MACHINE

_STACK_BYTES: Final = 16 * 1024
_LIBRARIES: Final = ("/lib", "/usr/lib", "/usr/local/lib")
_INTERPRETERS: Final = re.compile(
    r"(python|pypy|ruby|perl|php|lua)[\d.]*|node|nodejs|deno|bun|java|dotnet|busybox|(ba|da|k|z|fi)?sh"
)
_OF_LIBRARY: Final = re.compile(
    r"_|syscall\.|runtime[./]|internal/|os\.|io\.|bufio\.|std::|core::|alloc::|__|f?(write|puts|putc|flush|close)\b|v?f?printf"
    r"|p?writev?(64)?\b|open(at)?(64)?\b|creat\b|rename(at2?)?\b|unlink(at)?\b|f(data)?sync\b|mkdir(at)?\b|remove\b"
    r"|sync\b|truncate\b|ftruncate(64)?\b|close\b|new_do_write|file_"
)
"""How the functions begin that a static program has of its libraries: of C, Go and Rust."""
_FUNCTION: Final = 2
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_SYMBOL_TABLES: Final = (2, 11)
"""SHT_SYMTAB, and SHT_DYNSYM, which a stripped file keeps."""
_LOADED: Final = 1
_FILE_BYTES_MAX: Final = 256 << 20
"""A larger file is not read for its names."""


class Mapping(NamedTuple):
    """A part of a file that a process has mapped to be executed."""

    start: int
    end: int
    offset: int
    path: str


class Symbols:
    """The functions of an ELF file of 64 bits, by address. One that cannot be read has none."""

    def __init__(self, path: str) -> None:
        self._addresses: list[int] = []
        self._names: list[tuple[int, str]] = []
        self._loaded: list[tuple[int, int, int]] = []
        with contextlib.suppress(OSError, struct.error, IndexError):
            if Path(path).stat().st_size <= _FILE_BYTES_MAX:
                self._read(Path(path).read_bytes())

    def _read(self, content: bytes) -> None:
        if content[:6] != b"\x7fELF\x02\x01":
            return
        segments_at, sections_at = struct.unpack_from("<QQ", content, 32)
        segment_bytes, segment_count, section_bytes, section_count = struct.unpack_from("<HHHH", content, 54)
        for number in range(segment_count):
            kind, _, offset, address, _, size, *_ = _SEGMENT.unpack_from(content, segments_at + number * segment_bytes)
            if kind == _LOADED:
                self._loaded.append((offset, size, address))
        sections = [_SECTION.unpack_from(content, sections_at + at * section_bytes) for at in range(section_count)]
        table = next((each for kind in _SYMBOL_TABLES for each in sections if each[1] == kind), None)
        if table is None:
            return
        names = sections[table[6]][4]
        found = []
        for name, info, _, section, address, size in _SYMBOL.iter_unpack(content[table[4] : table[4] + table[5]]):
            if info & 15 == _FUNCTION and section:
                found.append((address, size, content[names + name : content.index(b"\0", names + name)]))
        for address, size, text in sorted(found):
            self._addresses.append(address)
            self._names.append((size, demangled(text.decode(errors="replace"))))

    def of(self, offset: int) -> str:
        """Return the function at an offset of the file, as ``save+0x4c``; empty without a name."""
        address = next((at + offset - begin for begin, size, at in self._loaded if begin <= offset < begin + size), -1)
        if (place := bisect_right(self._addresses, address) - 1) < 0:
            return ""
        (size, name), within = self._names[place], address - self._addresses[place]
        return f"{name}+{within:#x}" if within <= size else ""  # a stripped file names few of its functions


class CalledFrom:
    """The places in compiled programs from which calls are made. Like ``SharedLines``, to ask."""

    def __init__(self) -> None:
        self._memory = memory.Memory()
        self._symbols: dict[str, Symbols] = {}
        self._mappings: dict[int, list[Mapping]] = {}

    def of(self, thread: int, leader: int = 0) -> str:
        """Return the place that a thread, which waits in a call, has called from; or nothing."""
        del leader
        try:
            program = os.readlink(f"/proc/{thread}/exe")
            if _INTERPRETERS.fullmatch(_name_of(program)):
                return ""
            stack, current = (int(word, 16) for word in Path(f"/proc/{thread}/syscall").read_text("ascii").split()[-2:])
            own = _own_code(thread, program)
        except (OSError, ValueError):
            return ""
        if not own:
            return ""
        found = ""
        for mapping, offset in self._returns(thread, stack, current, own):
            if mapping.path not in self._symbols:
                self._symbols[mapping.path] = Symbols(mapping.path)
            name = self._symbols[mapping.path].of(offset)
            place = f"{name or hex(offset)} in {_name_of(mapping.path)}"
            if name and not _OF_LIBRARY.match(name):
                return place
            found = found or ("" if name else place)
        return found

    def _returns(self, thread: int, stack: int, current: int, own: list[Mapping]) -> list[tuple[Mapping, int]]:
        """Return the places in own code to which the thread returns, the innermost first."""
        content = self._stack(thread, stack)
        words = [current, *(word for (word,) in struct.iter_unpack("<Q", content))]
        found = []
        for place, word in enumerate(words):
            mapping = next((each for each in own if each.start <= word < each.end), None)
            if mapping is not None and (place == 0 or self._follows_a_call(thread, word)):
                found.append((mapping, word - mapping.start + mapping.offset))
        return found

    def _stack(self, thread: int, stack: int) -> bytes:
        size = _STACK_BYTES
        while size >= 64:  # near its end the stack is shorter
            with contextlib.suppress(memory.Failing, memory.Unreadable):
                return self._memory.read(thread, stack, size)
            size //= 2
        return b""

    def _follows_a_call(self, thread: int, address: int) -> bool:
        try:
            before = self._memory.read(thread, address - 8, 8)
        except (memory.Failing, memory.Unreadable):
            return False
        if MACHINE == "aarch64":
            code = int.from_bytes(before[4:], "little")
            return code & 0xFC000000 == 0x94000000 or code & 0xFFFFFC1F == 0xD63F0000  # BL, BLR
        # call rel32; call of a register or of memory, with or without a displacement
        return before[3] == 0xE8 or any(
            before[8 - size] == 0xFF and before[9 - size] & 0x38 == 0x10 for size in (2, 3, 6, 7)
        )


def _own_code(thread: int, program: str) -> list[Mapping]:
    """Return the mapped code of a process that is not of the system's libraries."""
    found = []
    for line in Path(f"/proc/{thread}/maps").read_text("utf-8", errors="replace").splitlines():
        fields = line.split(maxsplit=5)
        path = fields[5] if len(fields) > 5 else ""
        if "x" in fields[1] and path.startswith("/") and (path == program or not path.startswith(_LIBRARIES)):
            start, end = (int(word, 16) for word in fields[0].split("-"))
            found.append(Mapping(start, end, int(fields[2], 16), path))
    return found


def _name_of(path: str) -> str:
    return path.rpartition("/")[2]


def demangled(name: str) -> str:
    """Return a name of C++ or Rust as it was written, without its types; any other name as it is.

    >>> demangled("_ZN6worker4save17h0123456789abcdefE"), demangled("_ZN5Store4saveEi")
    ('worker::save', 'Store::save')
    >>> demangled("_Z4savei"), demangled("main.save"), demangled("save")
    ('save', 'main.save', 'save')
    """
    if not (found := re.match(r"_Z(N[rVK]*)?(?=\d)", name)):
        return name
    parts, at = [], found.end()
    while number := re.match(r"\d+", name[at:]):
        at += number.end()
        parts.append(name[at : at + int(number[0])])
        at += int(number[0])
        if not found[1]:
            break
    return "::".join(part for part in parts if not re.fullmatch(r"h[0-9a-f]{16}", part))
