"""Touches of files: opens, closes, locks and copies, which change nothing that a crash would leave.

What corrupts a SQLite database is often no durable step: a descriptor that is closed, a lock that
is gone. An ``EventLog`` notes such calls together with the steps, in their one order, each with its
process and the program's line. Only a run that is given one has the wider filter
(``filter_code(touches=True)``), so all other runs cost what they did.

A call is noted before it is done. So the descriptor of an open is the lowest free one (open(2)),
and who holds a file that loses its name is still to be seen.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import stat
import struct
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.base import LOW_HALF, descriptor_in
from pytest_chaos.trace.calls.copies import CLONE
from pytest_chaos.trace.calls.metadata import F_SETLK, F_SETLKW
from pytest_chaos.trace.calls.table import NAMES
from pytest_chaos.trace.folder import lstat
from pytest_chaos.trace.kernel import borrow_descriptor
from pytest_chaos.trace.memory import AT_FDCWD, Failing, Unreadable
from pytest_chaos.trace.step import NO_CONTENT, NO_NODE, Action, Event, LockType, Touch, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos.trace.calls.base import Decoded
    from pytest_chaos.trace.calls.decoder import Decoder
    from pytest_chaos.trace.kernel import Notification
    from pytest_chaos.trace.step import Step

HEAD_BYTES: Final = 100
"""So much of each write is kept: the header of a SQLite database."""
EVENTS_MAX: Final = 500_000
"""A run with more events is not judged to its end, and says so."""
_MARK_BYTES: Final = 4096
_FLOCK: Final = struct.Struct("<hh4xqq")
"""struct flock: type, whence, start, length."""
_LOCK_TYPES: Final = {0: LockType.READ, 1: LockType.WRITE, 2: LockType.NONE}
_BESIDE: Final = ("-wal", "-shm", "-journal")
_PAGE_BYTES: Final = 4096
_WAL_INDEX: Final = struct.Struct("=16xI76xI")
"""The header of a ``-shm``: frames in the log, and how many of them the database has."""
_BY_DESCRIPTOR: Final = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate"})
_LOSES_A_NAME: Final = frozenset({Action.UNLINK, Action.RENAME, Action.EXCHANGE})
_WAL_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_WHOLE_FILE: Final = 1 << 62
"""The length of a lock without an end."""
_RANGE_MAX: Final = 1 << 20
_WITHOUT_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""What a file system says that keeps no locks; all else is about the one lock."""


class EventLog:
    """The events of one run, each given to ``take``.

    ``process_of`` names a process by its number in a decoder, for runs with several of them.
    """

    def __init__(self, take: Callable[[Event], None]) -> None:
        self._take = take
        self._left = EVENTS_MAX
        self._head = b""
        self._locked: set[int] = set()
        self._pids: dict[str, int] = {}
        self._living = _Living()
        self.is_cut = False
        """Whether there were more events than are kept."""

    def keeping(self, keep: Callable[[bytes], int] | None) -> Callable[[bytes], int]:
        """Return what keeps contents as before, and shows this log their first bytes."""

        def kept(content: bytes) -> int:
            self._head = bytes(content[:_MARK_BYTES])
            return NO_CONTENT if keep is None else keep(content)

        return kept

    def note(self, decoder: Decoder, call: Notification, decoded: Decoded, line: str) -> None:
        """Note a call that was decoded and is not done yet."""
        if decoded.error:
            return
        noting = _Noting(decoder, call, decoded)
        with contextlib.suppress(Failing, Unreadable, OSError):  # its caller was killed meanwhile
            if (touch := _TOUCHES.get(NAMES.get(call.number, ""))) is not None:
                for fields in touch(noting):
                    self._add(noting, line, **fields)
        for step in (*([decoded.mark] if decoded.mark is not None else []), *decoded.steps):
            with contextlib.suppress(Failing, Unreadable, OSError):
                self._add(noting, line, **self._of_step(noting, step))
        self._head = b""

    def ended(self, prefix: str) -> None:
        """Note that all processes have ended whose names begin so, however they did."""
        for process in [process for process in self._pids if process.startswith(prefix)]:
            self._gone(process)

    def _gone(self, process: str) -> None:
        del self._pids[process]
        self._living.forget(process)
        self._take(Event(touch=Touch.EXIT, process=process))

    def _add(self, noting: _Noting, line: str, **fields: Any) -> None:
        if self._left <= 0:
            self.is_cut = True
            return
        self._left -= 1
        process, pid = noting.decoder.caller(noting.call.thread)
        for killed in self._living.dead():  # a kill is no call that could be noted
            self._gone(killed)
        self._pids[process] = pid
        self._living.add(process, pid)
        if fields.get("touch") is Touch.LOCK and fields["node"] not in self._locked:
            self._locked.add(fields["node"])
            fields["system"] = file_system_of(noting.decoder.folder.device)
            fields["refused"] = lock_refusal(pid, fields["descriptor"])
        fields |= {field: readable(fields[field]) for field in ("path", "target") if field in fields}
        thread = noting.call.thread
        self._take(Event(process=process, thread=thread, line=line, **{"number": noting.decoder.last_number, **fields}))

    def _of_step(self, noting: _Noting, step: Step) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "action": step.action,
            "number": step.number,
            "path": step.path,
            "target": step.target,
        }
        fields |= {"node": step.node, "offset": step.offset, "length": step.length}
        if step.is_mark:
            return fields | {"head": self._head}
        if step.action is Action.WRITE and not step.look:
            fields["head"] = self._head[:HEAD_BYTES]
        if NAMES.get(noting.call.number) in _BY_DESCRIPTOR:
            fields["descriptor"] = descriptor_in(noting.call.arguments[0])
        if step.action in _LOSES_A_NAME:
            folder = noting.decoder.folder
            there = lstat(os.path.join(folder.root, step.target)) if step.target else None
            replaced = folder.node_of((there.st_dev, there.st_ino)) if there is not None else NO_NODE
            fields["replaced"] = replaced  # the call is not done yet
            if self._may_be_sqlite(step.path, step.node):
                fields["holders"] = self._holders(noting, step.node)
                fields["behind"] = frames_behind(os.path.join(folder.root, step.path.removesuffix("-wal")))
            if self._may_be_sqlite(step.target, replaced):
                fields["replaced_holders"] = self._holders(noting, replaced)
        return fields

    def _may_be_sqlite(self, path: str, node: int) -> bool:
        """Whether a file may be a database, or one beside it."""
        return node != NO_NODE and (node in self._locked or path.endswith(_BESIDE))

    def _holders(self, noting: _Noting, node: int) -> tuple[tuple[str, int], ...]:
        """Return the processes of the run, with descriptors, that have a file open."""
        found = []
        for process, pid in self._pids.items():
            with contextlib.suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        status = os.stat(f"/proc/{pid}/fd/{name}")
                        if noting.decoder.folder.node_of((status.st_dev, status.st_ino)) == node:
                            found.append((process, int(name)))
        return tuple(found)


class _Living:
    """The processes of a run that live, each with a descriptor that tells its end (pidfd_open(2)).

    It does so once the kernel has closed the files of the process, and dropped its locks.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._descriptors: dict[str, int] = {}
        self._poll = select.poll()
        weakref.finalize(self, _close_all, self._names)

    def add(self, process: str, pid: int) -> None:
        """Watch a process, if it is not yet."""
        if process in self._descriptors:
            return
        with contextlib.suppress(OSError):  # it has ended
            descriptor = os.pidfd_open(pid)
            self._names[descriptor], self._descriptors[process] = process, descriptor
            self._poll.register(descriptor, select.POLLIN)

    def dead(self) -> list[str]:
        """Return those that have ended, however they did."""
        if len(self._names) <= 1:  # the one that calls
            return []
        return [self._names[descriptor] for descriptor, _ in self._poll.poll(0)]

    def forget(self, process: str) -> None:
        """Watch a process no more."""
        if (descriptor := self._descriptors.pop(process, None)) is not None:
            self._poll.unregister(descriptor)
            del self._names[descriptor]
            os.close(descriptor)


def _close_all(descriptors: dict[int, str]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Noting(NamedTuple):
    """One call that is noted. Each method returns the fields of the events that the call is."""

    decoder: Decoder
    call: Notification
    decoded: Decoded

    def opened(self) -> Iterator[dict[str, Any]]:
        """An open of a regular file: of one that is there, or of one that it makes."""
        thread, decoder = self.call.thread, self.decoder
        made = next((step for step in self.decoded.steps if step.action is Action.CREATE), None)
        if made is not None:
            path, node = made.path, made.node
        else:
            name = NAMES[self.call.number]
            words = self.call.arguments if name.startswith("openat") else [AT_FDCWD, *self.call.arguments]
            place, status = decoder.looked_at(self.call, words[0], words[1])
            if not place.is_inside or status is None or not stat.S_ISREG(status.st_mode):
                return
            path, node = place.path, decoder.node_of(thread, status)
        used = set(map(int, os.listdir(f"/proc/{thread}/fd")))
        free = next(number for number in range(len(used) + 1) if number not in used)
        yield {"touch": Touch.OPEN, "path": path, "node": node, "descriptor": free}

    def closed(self) -> Iterator[dict[str, Any]]:
        """A close, or another call that makes descriptors lead elsewhere."""
        name, given = NAMES[self.call.number], self.call.arguments
        if name == "close_range":
            last = min(given[1] & LOW_HALF, _RANGE_MAX)
            if not given[2]:  # with a flag it marks them for the next exec, or unshares them
                numbers = map(int, os.listdir(f"/proc/{self.call.thread}/fd"))
                for number in sorted(number for number in numbers if given[0] & LOW_HALF <= number <= last):
                    yield from self._closed(number)
        elif name == "close" or given[0] & LOW_HALF != given[1] & LOW_HALF:
            yield from self._closed(given[0 if name == "close" else 1] & LOW_HALF)

    def _closed(self, descriptor: int) -> Iterator[dict[str, Any]]:
        found = self._file(descriptor)
        if found is not None:
            node, status = found
            path = self.decoder.folder.path(node)
            position = memory.open_file(self.call.thread, descriptor).position
            fields = {"touch": Touch.CLOSE, "path": path, "node": node, "descriptor": descriptor}
            behind = frames_behind(os.path.join(self.decoder.folder.root, path))
            yield fields | {"offset": position, "length": status.st_size, "behind": behind}

    def locked(self) -> Iterator[dict[str, Any]]:
        """A POSIX lock that is asked for, or released."""
        descriptor, command, address, *_ = self.call.arguments
        if command & LOW_HALF not in {F_SETLK, F_SETLKW} or (found := self._file(descriptor & LOW_HALF)) is None:
            return
        kind, whence, start, length = _FLOCK.unpack(self.decoder.memory.read(self.call.thread, address, _FLOCK.size))
        if whence == os.SEEK_SET and length >= 0 and kind in _LOCK_TYPES:
            fields = {"touch": Touch.LOCK, "path": self.decoder.folder.path(found[0]), "node": found[0]}
            fields |= {"descriptor": descriptor & LOW_HALF, "lock": _LOCK_TYPES[kind]}
            yield fields | {"offset": start, "length": length or _WHOLE_FILE}

    def copied(self) -> Iterator[dict[str, Any]]:
        """A copy by the kernel out of a file."""
        name, given = NAMES[self.call.number], self.call.arguments
        if name == "ioctl" and given[1] & LOW_HALF != CLONE:
            return
        descriptor = given[{"sendfile": 1, "ioctl": 2}.get(name, 0)] & LOW_HALF
        if (found := self._file(descriptor)) is not None:
            path = self.decoder.folder.path(found[0])
            behind = frames_behind(os.path.join(self.decoder.folder.root, path))
            fields = {"touch": Touch.COPY, "path": path, "node": found[0], "descriptor": descriptor}
            yield fields | {"length": found[1].st_size, "behind": behind}

    def read_on(self) -> Iterator[dict[str, Any]]:
        """A read that finds the end of a file: a program that wants all of it makes one."""
        descriptor = self.call.arguments[0] & LOW_HALF
        if (found := self._file(descriptor)) is None or not found[1].st_size:
            return
        if memory.open_file(self.call.thread, descriptor).position >= found[1].st_size:
            path = self.decoder.folder.path(found[0])
            yield {"touch": Touch.READ, "path": path, "node": found[0], "descriptor": descriptor}

    def ended(self) -> Iterator[dict[str, Any]]:
        """The end of a process, or of its program."""
        yield {"touch": Touch.EXIT}

    def _file(self, descriptor: int) -> tuple[int, os.stat_result] | None:
        """Return node and status of an open regular file of the folder, None for another."""
        try:
            status = self.decoder.memory.status(self.call.thread, descriptor)
        except Failing:  # it is not open
            return None
        node = self.decoder.node_of(self.call.thread, status) if stat.S_ISREG(status.st_mode) else NO_NODE
        return (node, status) if node else None


_TOUCHES: Final[dict[str, Callable[[_Noting], Iterator[dict[str, Any]]]]] = {
    **dict.fromkeys(("open", "openat", "openat2", "creat"), _Noting.opened),
    **dict.fromkeys(("close", "dup2", "dup3", "close_range"), _Noting.closed),
    **dict.fromkeys(("sendfile", "copy_file_range", "splice", "ioctl"), _Noting.copied),
    **dict.fromkeys(("exit_group", "execve", "execveat"), _Noting.ended),
    "fcntl": _Noting.locked,
    "read": _Noting.read_on,
}


def frames_behind(path: str) -> int:
    """Return how many frames of a database's write-ahead log the database itself lacks.

    The header of the ``-shm`` has both counts (sqlite.org/walformat.html); without one, it is all
    frames of the log.
    """
    try:
        size = os.stat(f"{path}-wal").st_size
    except OSError:
        return 0
    if size <= _WAL_HEADER_BYTES:
        return 0
    with contextlib.suppress(OSError, struct.error), open(f"{path}-shm", "rb") as index:
        frames, copied = _WAL_INDEX.unpack(index.read(_WAL_INDEX.size))
        return max(0, int(frames) - int(copied))
    with contextlib.suppress(OSError), open(f"{path}-wal", "rb") as log:
        page_bytes = int.from_bytes(log.read(12)[8:], "big") or _PAGE_BYTES
        return (size - _WAL_HEADER_BYTES) // (page_bytes + _FRAME_HEADER_BYTES)
    return 0


@functools.cache
def file_system_of(device: int) -> str:
    """Return the type of the file system of a device, as ``ext4``; empty if it is not known."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo") as mounts:
        for line in mounts:  # "36 35 98:0 / /mnt rw - ext3 /dev/root rw"
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                return after.split()[0]
    return ""


def lock_refusal(process: int, descriptor: int) -> str:
    """Return the errno with which a file system answers a lock of a process's file, or nothing.

    The call that is noted is not done yet, so the same question is asked without taking a lock:
    F_GETLK on the process's own open file, which goes to the file system as F_SETLK does (fcntl(2);
    ``lock`` of ``struct file_operations``). A lock of another process is an answer, and no errno.
    """
    try:
        borrowed = borrow_descriptor(process, descriptor)
    except OSError:  # it has ended, or may not be looked at
        return ""
    try:
        fcntl.fcntl(borrowed, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1) + bytes(8))
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno in _WITHOUT_LOCKS else ""
    finally:
        os.close(borrowed)
    return ""


def read_events(path: Path) -> list[Event]:
    """Return the events that were appended to a file; a last one that was cut short is left out."""
    found: list[Event] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(msgspec.DecodeError):
            found.append(msgspec.json.decode(line, type=Event))
    return found
