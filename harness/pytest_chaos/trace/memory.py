"""Another process, read through ``/proc``: its memory, its descriptors, its mappings (proc(5)).

Every function takes a thread id, which ``/proc`` accepts as it accepts a pid. Two errors:
Unreadable (the kernel denies access) and Failing (no such descriptor, address or process).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final, NamedTuple

AT_FDCWD: Final = -100
"""Stands for the working folder where a call takes the descriptor of a folder."""
PATH_BYTES_MAX: Final = 4096
"""PATH_MAX: longer paths are refused."""
_PAGE_BYTES: Final = 4096
_OPEN_MAX: Final = 64
_VECTOR: Final = struct.Struct("<QQ")
"""struct iovec: address, length."""


class Unreadable(Exception):  # noqa: N818 - it says what the process is
    """A process that must not be read: it changed its user, or is not dumpable."""


class Failing(Exception):  # noqa: N818 - it says what the call is about to do
    """A call that is going to fail: descriptor not open, invalid pointer, or dead caller."""


class OpenFile(NamedTuple):
    """An open file: its position, and the flags it was opened with."""

    position: int
    flags: int


class Memory:
    """Reads the memory and the descriptors of processes.

    It keeps ``/proc/PID/mem`` and ``/proc/PID/fd`` open, because opening them costs more than
    reading.
    """

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._folders: dict[int, int] = {}

    def status(self, thread: int, descriptor: int) -> os.stat_result:
        """Return the status of an open file. Raises Failing or Unreadable."""
        folder = self._folders.get(thread)
        if folder is not None:
            try:
                return os.stat(str(descriptor), dir_fd=folder)
            except OSError:  # not open, or the folder was an earlier thread's with the same id
                os.close(self._folders.pop(thread))
        try:
            return os.stat(str(descriptor), dir_fd=self._opened(self._folders, thread, "fd"))
        except OSError as error:
            raise _refusal(error, f"descriptor {descriptor} of thread {thread}") from error

    def read(self, thread: int, address: int, count: int) -> bytes:
        """Return ``count`` bytes. Raises Failing for fewer, Unreadable where none may be read."""
        file = self._files.get(thread)
        if file is not None:
            data = _pread(file, count, address)
            if len(data) == count:
                return data
            os.close(self._files.pop(thread))  # it leads to the memory from before an exec
        # Opening needs the right to ptrace the process (proc(5), PTRACE_MODE_ATTACH). We have it of
        # our descendants, also under Yama (ptrace_scope 1), unless they changed their user.
        try:
            data = _pread(self._opened(self._files, thread, "mem"), count, address)
        except OSError as error:
            raise _refusal(error, f"the memory of thread {thread}") from error
        if len(data) != count:
            msg = f"there are no {count} bytes at {address:#x} of thread {thread}"
            raise Failing(msg)
        return data

    def text(self, thread: int, address: int) -> str:
        """Return the path at an address, up to its NUL. The page after it need not be mapped."""
        found = b""
        while len(found) < PATH_BYTES_MAX:
            count = _PAGE_BYTES - (address + len(found)) % _PAGE_BYTES
            part = self.read(thread, address + len(found), min(count, 256))
            end = part.find(b"\0")
            if end >= 0:
                return os.fsdecode(found + part[:end])
            found += part
        msg = f"the path at {address:#x} of thread {thread} has no end"
        raise Failing(msg)

    def vectors(self, thread: int, address: int, count: int) -> list[tuple[int, int]]:
        """Return the pieces (address, length) of an ``iovec`` array."""
        return list(_VECTOR.iter_unpack(self.read(thread, address, count * _VECTOR.size)))

    def number(self, thread: int, address: int) -> int:
        """Return a signed 64-bit number."""
        return int.from_bytes(self.read(thread, address, 8), "little", signed=True)

    def close(self) -> None:
        """Close the files that are kept open."""
        for files in (self._files, self._folders):
            for file in files.values():
                os.close(file)
            files.clear()

    def _opened(self, files: dict[int, int], thread: int, name: str) -> int:
        if len(files) >= _OPEN_MAX:
            self.close()
        files[thread] = file = os.open(f"/proc/{thread}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        return file


def _pread(file: int, count: int, address: int) -> bytes:
    # A read stops at a page that is not mapped, and may return less at any page; EIO means that not
    # even the first byte is mapped.
    try:
        data = os.pread(file, count, address)
        while 0 < len(data) < count:
            more = os.pread(file, count - len(data), address + len(data))
            if not more:
                break
            data += more
    except (OSError, OverflowError):
        return b""
    return data


def _refusal(error: OSError, what: str) -> Unreadable | Failing:
    """Translate an error of ``/proc``."""
    text = f"{what} cannot be looked at: {error.strerror}"
    return Unreadable(text) if error.errno in {errno.EACCES, errno.EPERM} else Failing(text)


def path_of(thread: int, descriptor: int) -> str:
    """Return the path of a descriptor or of AT_FDCWD. Raises Failing or Unreadable."""
    name = "cwd" if descriptor == AT_FDCWD else f"fd/{descriptor}"
    try:
        return os.readlink(f"/proc/{thread}/{name}")
    except OSError as error:
        raise _refusal(error, f"{name} of thread {thread}") from error


def open_file(thread: int, descriptor: int) -> OpenFile:
    """Return position and flags of an open descriptor. Raises Failing or Unreadable."""
    try:
        file = os.open(f"/proc/{thread}/fdinfo/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _refusal(error, f"descriptor {descriptor} of thread {thread}") from error
    try:
        lines = os.read(file, 256).split(b"\n", 2)  # "pos:\t123\nflags:\t0100002\n..."
    finally:
        os.close(file)
    return OpenFile(int(lines[0].split()[1]), int(lines[1].split()[1], 8))


def process_of(thread: int) -> int:
    """Return the process that a thread belongs to. Raises Failing or Unreadable."""
    return int(_status_line(thread, b"Tgid:"))


def title_of(process: int) -> tuple[str, ...]:
    """Return the name of a process, and its title if it has set another one (prctl(2)); or none."""
    own = f"/proc/{os.getpid()}"
    found = []
    for name in ("comm", "cmdline"):
        try:
            with open(f"/proc/{process}/{name}", "rb") as file, open(f"{own}/{name}", "rb") as ours:
                text, other = file.read(PATH_BYTES_MAX), ours.read(PATH_BYTES_MAX)
        except OSError:
            continue
        if text != other:  # it was forked from us, and has these of us at first
            found.append(text.partition(b"\0")[0].decode(errors="replace").strip())
    return tuple(dict.fromkeys(filter(None, found)))


def umask_of(thread: int) -> int:
    """Return the umask of a process. Raises Failing or Unreadable."""
    return int(_status_line(thread, b"Umask:"), 8)


def _status_line(thread: int, name: bytes) -> bytes:
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            return next((line.split()[1] for line in file if line.startswith(name)), b"0")
    except OSError as error:
        raise _refusal(error, f"the status of thread {thread}") from error


def mapped_in(thread: int, address: int, length: int) -> list[tuple[int, int]]:
    """Return device and inode of each file mapped in a range. Raises Failing or Unreadable."""
    found: dict[tuple[int, int], None] = {}
    try:
        with open(f"/proc/{thread}/maps", "rb") as file:
            for line in file:  # "FIRST-LAST PERMISSIONS OFFSET MAJOR:MINOR INODE PATH"
                span, _, _, device, inode, *_ = line.split(None, 5)
                first, last = (int(part, 16) for part in span.split(b"-"))
                if first < address + max(length, 1) and address < last and int(inode):
                    major, minor = (int(part, 16) for part in device.split(b":"))
                    found[os.makedev(major, minor), int(inode)] = None
    except OSError as error:
        raise _refusal(error, f"the mappings of thread {thread}") from error
    return list(found)
