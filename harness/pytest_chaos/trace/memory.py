"""Another process as the supervisor sees it: its memory, its descriptors, its folders, through ``/proc``.

Where the descriptors of a program's first thread lead, kept in mind where every call is heard of
that changes it.

To ask the kernel of each write where it goes costs as much as all the rest of a look at it. A
descriptor leads to one file until it is closed, or another is put in its place (dup2, dup3), or an
exec closes it; a filter that traps these makes the question unnecessary. It pays for a program that
writes more often than it closes.

Only the first thread's are kept: its number is not given away while the program runs, so no later
process can be taken for it. A close by any thread counts, whosever files it closes: at worst it is
asked once more.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final, NamedTuple

PATH_BYTES_MAX: Final = 4096
AT_FDCWD: Final = -100
_PAGE_BYTES: Final = 4096
_OPEN_MAX: Final = 64
_VECTOR: Final = struct.Struct("<QQ")


class Unreadable(Exception):  # noqa: N818 - it says what the process is
    """The process does not let itself be looked into: its calls may do what nobody sees."""


class Failing(Exception):  # noqa: N818 - it says what the call is about to do
    """The call is going to fail: its descriptor is not open, its pointer leads nowhere, its caller is gone."""


class OpenFile(NamedTuple):
    """What the kernel says of a descriptor: where it stands, and how it was opened."""

    position: int
    flags: int


class Memory:
    """Reads the memory of processes, and what their descriptors are.

    Keeps their ``mem`` files and their folders of descriptors open: to open them costs more than to
    read.
    """

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._folders: dict[int, int] = {}

    def status(self, thread: int, descriptor: int) -> os.stat_result:
        """Return what an open descriptor is. Raises Failing or Unreadable."""
        folder = self._folders.get(thread)
        if folder is not None:
            try:
                return os.stat(str(descriptor), dir_fd=folder)
            except OSError:  # it is not open, or the folder was of an earlier thread with this number
                os.close(self._folders.pop(thread))
        try:
            return os.stat(str(descriptor), dir_fd=self._folder(thread))
        except OSError as error:
            raise _refusal(error, f"descriptor {descriptor} of thread {thread}") from error

    def read(self, thread: int, address: int, count: int) -> bytes:
        """Return ``count`` bytes. Raises Failing where there are not as many, Unreadable where none may be read."""
        file = self._files.get(thread)
        if file is not None:
            data = _pread(file, count, address)
            if len(data) == count:
                return data
            os.close(self._files.pop(thread))  # the memory was another program's, from before an exec
        data = self._open_and_read(thread, address, count)
        if len(data) != count:
            msg = f"there are no {count} bytes at {address:#x} of thread {thread}"
            raise Failing(msg)
        return data

    def text(self, thread: int, address: int) -> str:
        """Return the path that a pointer leads to: up to its NUL, never across a page that need not be there."""
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
        data = self.read(thread, address, count * _VECTOR.size)
        return list(_VECTOR.iter_unpack(data))

    def number(self, thread: int, address: int) -> int:
        """Return a signed 64-bit number."""
        return int.from_bytes(self.read(thread, address, 8), "little", signed=True)

    def close(self) -> None:
        """Close what was kept open."""
        for files in (self._files, self._folders):
            for file in files.values():
                os.close(file)
            files.clear()

    def _folder(self, thread: int) -> int:
        if len(self._folders) >= _OPEN_MAX:
            self.close()
        folder = os.open(f"/proc/{thread}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders[thread] = folder
        return folder

    def _open_and_read(self, thread: int, address: int, count: int) -> bytes:
        if len(self._files) >= _OPEN_MAX:
            self.close()
        try:
            file = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(error, f"the memory of thread {thread}") from error
        self._files[thread] = file
        return _pread(file, count, address)


def _pread(file: int, count: int, address: int) -> bytes:
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
    """Return what an error of /proc means."""
    text = f"{what} cannot be looked at: {error.strerror}"
    return Unreadable(text) if error.errno in {errno.EACCES, errno.EPERM} else Failing(text)


def path_of(thread: int, descriptor: int) -> str:
    """Return the path that a descriptor leads to; AT_FDCWD is the working folder. Raises Failing or Unreadable."""
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
        lines = os.read(file, 256).split(b"\n", 2)
    finally:
        os.close(file)
    return OpenFile(int(lines[0].split()[1]), int(lines[1].split()[1], 8))


def process_of(thread: int) -> int:
    """Return the process that a thread belongs to. Raises Failing or Unreadable."""
    return int(_status_line(thread, b"Tgid:"))


def umask_of(thread: int) -> int:
    """Return which permissions the files that a process makes do not get. Raises Failing or Unreadable."""
    return int(_status_line(thread, b"Umask:"), 8)


def _status_line(thread: int, name: bytes) -> bytes:
    try:
        with open(f"/proc/{thread}/status", "rb") as file:
            return next((line.split()[1] for line in file if line.startswith(name)), b"0")
    except OSError as error:
        raise _refusal(error, f"the status of thread {thread}") from error


def mapped_at(thread: int, address: int) -> tuple[int, int] | None:
    """Return device and inode of the file that is mapped at an address, or None. Raises Failing or Unreadable."""
    try:
        with open(f"/proc/{thread}/maps", "rb") as file:
            for line in file:
                span, _, _, device, inode, *_ = line.split(None, 5)
                first, last = (int(part, 16) for part in span.split(b"-"))
                if first <= address < last:
                    major, minor = (int(part, 16) for part in device.split(b":"))
                    return (os.makedev(major, minor), int(inode)) if int(inode) else None
    except OSError as error:
        raise _refusal(error, f"the mappings of thread {thread}") from error
    return None


ALL: Final = -1
"""Stands for all descriptors."""


class Descriptors:
    """What the descriptors of one thread lead to, by a number that is not 0. ``is_on``: all closes are heard of."""

    def __init__(self, thread: int, *, is_on: bool) -> None:
        self._thread = thread
        self._is_on = is_on
        self._known: dict[int, int] = {}
        self._changing: dict[int, int] = {}
        self.closes = 0

    def leads_to(self, thread: int, descriptor: int) -> int:
        """Return where a descriptor leads, 0 where that is not known."""
        return self._known.get(descriptor, 0) if thread == self._thread else 0

    def learn(self, thread: int, descriptor: int, target: int) -> None:
        """Keep in mind where a descriptor leads, unless another thread is just closing it."""
        if self._is_on and thread == self._thread:
            changing = self._changing.values()
            if descriptor not in changing and ALL not in changing:
                self._known[descriptor] = target

    def change(self, thread: int, descriptor: int) -> None:
        """Forget a descriptor, or all: this thread is about to have it lead elsewhere."""
        self.closes += 1
        if descriptor == ALL:
            self._known.clear()
        else:
            self._known.pop(descriptor, None)
        self._changing[thread] = descriptor

    def has_changed(self, thread: int) -> None:
        """Note that what a thread was about to do is done: it is making its next call."""
        if self._changing:
            self._changing.pop(thread, None)
