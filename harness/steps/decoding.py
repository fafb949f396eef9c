"""What a trapped call would do to the watched folder: a notification in, steps out, before the call has happened.

A call that is going to fail, or to change nothing, is not a step; so each is looked at as the kernel will look at it,
on the folder as it is now. What a call makes has no inode yet: its node is reserved, and bound when the caller is heard
of next, by when the call is over. One process with one thread is so seen exactly; between processes and threads the
order is that of their calls' beginnings.

This module is long because it has an entry for each of fifty calls; they are small.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from harness.steps import copying, memory
from harness.steps.descriptors import ALL, Descriptors
from harness.steps.filter import CLONE_COMMANDS, CLONE_RANGE, PROT_WRITE, TMPFILE_BIT
from harness.steps.folder import Place, WatchedFolder, lstat
from harness.steps.kernel import MACHINE
from harness.steps.memory import AT_FDCWD, Failing, Memory, Unreadable
from harness.steps.step import NO_CONTENT, NO_NODE, Action, BlindSpot, Step
from harness.steps.syscalls import AUDIT_ARCH, NUMBER_MAX, NUMBERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.steps.kernel import Notification

_AT_REMOVEDIR: Final = 0x200
_AT_SYMLINK_FOLLOW: Final = 0x400
_AT_EMPTY_PATH: Final = 0x1000
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_ALLOCATES: Final = {0, _KEEP_SIZE}
_RWF_DSYNC: Final = 0x02
_RWF_SYNC: Final = 0x04
_RWF_APPEND: Final = 0x10
_RWF_NOAPPEND: Final = 0x20
_SYNC_BITS: Final = os.O_SYNC & ~os.O_DSYNC
_WRITE_BYTES_MAX: Final = 0x7FFFF000
_CHUNK_BYTES: Final = 16 * 1024 * 1024
_MOVED_IN_BYTES_MAX: Final = 1 << 30
_NUMBER_OF_CREATE: Final = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
_OUR_MACHINE: Final = AUDIT_ARCH.get(MACHINE, 0)
_FOREVER: Final = 1 << 63
_MARKS: Final = -1
"""Stands for the mark file where a node is meant otherwise."""
_OWN_DESCRIPTOR: Final = re.compile(r"/proc/(?:self|thread-self)/fd/(\d{1,9})", re.ASCII)
_SOCKET_PATH_AT: Final = 2
_SOCKET_ADDRESS_BYTES_MAX: Final = 110
_LOW_HALF: Final = 0xFFFFFFFF
"""The half of a word that holds a descriptor; one that is negative is then none that can be open."""


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """What becomes of a call. With ``error`` it is denied; ``mark`` is no step and has no number of its own.

    ``stray`` is a path outside of the folder that it changes.
    """

    steps: tuple[Step, ...] = ()
    error: int = 0
    blind_spot: BlindSpot | None = None
    mark: Step | None = None
    stray: str = ""
    is_step: bool = False
    """Whether it is one step and nothing else, as nearly all are."""


_STANDARD: Final = {"/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"}
_OWN_PATHS: Final = ("/proc/self/", "/proc/thread-self/", "/dev/fd/", *_STANDARD)

_TURN_TIMEOUT_S: Final = 0.05
_MAKES: Final = frozenset({Action.CREATE, Action.MAKE_FOLDER, Action.MAKE_NODE, Action.SYMLINK, Action.LINK})
_TAKES_AWAY: Final = frozenset({Action.UNLINK, Action.REMOVE_FOLDER, Action.RENAME})

NOTHING: Final = Decoded()
"""The call is nobody's business: it reads, or writes to a pipe, or fails."""


class Extent(NamedTuple):
    """A write of one call: pieces of the caller's memory, and where in the file they go."""

    pieces: tuple[tuple[int, int], ...]
    length: int
    offset: int
    flags: int


class _Waiting(NamedTuple):
    """An object that is being made: its node and where it will be."""

    node: int
    absolute: str


class Run(NamedTuple):
    """What is known of a run that begins: its first process, that one's umask (to ask for it costs more than a call).

    ``marks`` and ``output`` are files outside of the watched folder, writes to which are no strays. ``sees_closes`` is
    whether all calls are trapped by which a descriptor comes to lead to another file.
    """

    leader: int
    umask: int
    sees_closes: bool
    marks: os.stat_result
    output: os.stat_result


class Decoder:
    """Knows the watched folder, and makes steps of calls. ``keep`` takes contents; it is None where none are wanted."""

    def __init__(self, folder: WatchedFolder, run: Run, keep: Callable[[bytes], int] | None = None) -> None:
        self.folder = folder
        self.memory = Memory()
        self._keep = keep
        self._marks = _identity(run.marks)
        self._own = {self._marks, _identity(run.output)}
        self._waiting: dict[int, list[_Waiting]] = {}
        self._unnamed: list[int] = []
        self._looks_at_flags = False
        self._has_mappings = False
        self._umask_at_first: int | None = run.umask
        self.descriptors = Descriptors(run.leader, is_on=run.sees_closes)
        self._number = 0
        self._turn = 0
        self._last = NOTHING
        self._call: Notification | None = None
        self._processes: dict[int, tuple[int, int]] = {run.leader: (1, 1)}

    def decode(self, call: Notification, number: int) -> Decoded:
        """Return what becomes of a call; its first step gets this number."""
        if call.thread != self._turn:
            self._take_turns(call.thread)
        if call.thread in self._waiting:
            self._settle(call.thread)
        self.descriptors.has_changed(call.thread)
        if call.machine != _OUR_MACHINE or call.number > NUMBER_MAX:
            return _denied("unknown-call", f"call {call.number} of machine {call.machine:#x} is not known here")
        self._number = number
        self._call = call
        self.folder.begin()
        try:
            self._last = decoded = _CALLS[call.number](self, call)
        except Failing:
            self._last = decoded = NOTHING
        except Unreadable as error:
            self._last = decoded = Decoded(blind_spot=BlindSpot(what="unreadable-process", text=str(error)))
        return decoded

    def take_back(self) -> None:
        """Forget what the call that was decoded last would have done: it is not made."""
        assert self._call is not None  # noqa: S101 - something was decoded
        self._last = NOTHING
        self.folder.take_back()
        self._waiting.pop(self._call.thread, None)

    def extent(self, call: Notification) -> Extent | None:
        """Return where a write goes, None for a call that is no write."""
        name = _NAMES.get(call.number, "")
        if name not in _WRITES:
            return None
        return self._extent(call)

    def is_positioned(self, call: Notification) -> bool:
        """Tell whether a write says itself where it goes, and moves no position."""
        name = _NAMES.get(call.number, "")
        return name in {"pwrite64", "pwritev"} or (name == "pwritev2" and _signed_word(call.arguments[3]) >= 0)

    def finish(self) -> None:
        """Bind what was made last; all callers are gone."""
        for thread in list(self._waiting):
            self._settle(thread)
        self.memory.close()

    # One after the other

    def _take_turns(self, thread: int) -> None:
        """Wait until the last call, another thread's, has been done: where this one appends depends on it.

        That it was let pass does not say that it is over, and the kernel tells nobody. So its effect is waited for,
        for a bounded time, since it may fail as well.
        """
        self._turn = thread
        if self._last.steps:
            ends_s = time.monotonic() + _TURN_TIMEOUT_S
            while not self._is_done(self._last.steps[0]) and time.monotonic() < ends_s:
                os.sched_yield()
        for other in list(self._waiting):  # what it has made is bound before anybody else moves or removes it
            self._settle(other)

    def _is_done(self, step: Step) -> bool:
        """Tell whether the last call, which makes this step, has had the effect that others depend on."""
        assert self._call is not None  # noqa: S101 - it has made a step
        if step.action is Action.WRITE:
            return self._is_written(self._call, step)
        there = lstat(os.path.join(self.folder.root, step.path)) if step.path else None
        if step.action is Action.TRUNCATE:
            return there is None or there.st_size == step.length
        if step.action in _MAKES:
            return there is not None
        if step.action not in _TAKES_AWAY or there is None:
            return True
        return self.folder.node_of((there.st_dev, there.st_ino)) != step.node

    def _is_written(self, call: Notification, step: Step) -> bool:
        if _NAMES[call.number] not in _WRITES or self.is_positioned(call):
            return True
        try:
            opened = memory.open_file(call.thread, _descriptor(call.arguments[0]))
            if opened.flags & os.O_APPEND:
                status = os.stat(f"/proc/{call.thread}/fd/{_descriptor(call.arguments[0])}")
                return status.st_size >= step.offset + step.length
        except (OSError, Failing, Unreadable):  # it has closed the file since, or ended
            return True
        return opened.position != step.offset

    # What was made by calls that are over

    def _settle(self, thread: int) -> None:
        """Bind the nodes of what this thread's last call made."""
        for waiting in self._waiting.pop(thread, ()):
            if (status := lstat(waiting.absolute)) is not None:
                self.folder.bind(waiting.node, status)

    def _await(self, thread: int, node: int, absolute: str) -> None:
        self._waiting.setdefault(thread, []).append(_Waiting(node, absolute))

    def _node(self, thread: int, status: os.stat_result) -> int:
        """Return the node of an open file; one that another thread is just making is bound first."""
        node = self.folder.node(status)
        if node or status.st_dev != self.folder.device or not self._is_regular_or_folder(status):
            return node
        for other in [other for other in self._waiting if other != thread]:
            for waiting in self._waiting[other]:
                if (found := lstat(waiting.absolute)) is not None and os.path.samestat(found, status):
                    self.folder.bind(waiting.node, status)
                    return waiting.node
        return self._unnamed_node(status)

    def _learnt(self, thread: int, descriptor: int, status: os.stat_result) -> int:
        """Return where a descriptor leads, and keep it in mind where every close will be heard of."""
        is_marks = status.st_ino == self._marks[1] and status.st_dev == self._marks[0]
        node = _MARKS if is_marks else self.folder.node(status) or self._node(thread, status)
        if node:
            self.descriptors.learn(thread, descriptor, node)
        return node

    def _unnamed_node(self, status: os.stat_result) -> int:
        if not self._unnamed or status.st_nlink:
            return 0
        node = self._unnamed.pop(0)
        self.folder.bind(node, status)
        return node

    @staticmethod
    def _is_regular_or_folder(status: os.stat_result) -> bool:
        return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)

    def _step(
        self,
        action: Action,
        *,
        path: str = "",
        target: str = "",
        node: int = NO_NODE,
        offset: int = 0,
        length: int = 0,
        mode: int = 0,
        content: int = NO_CONTENT,
    ) -> Step:
        """Return the next step of the call that is being looked at."""
        call = self._call
        assert call is not None  # noqa: S101 - a step is a call's
        process, thread = self._processes.get(call.thread) or self._ordinals(call.thread)
        number = self._number
        self._number += 1
        return Step(
            number=number,
            action=action,
            call=_NAMES[call.number],
            path=path,
            target=target,
            node=node,
            offset=offset,
            length=length,
            mode=mode,
            content=content,
            process=process,
            thread=thread,
        )

    def _ordinals(self, thread: int) -> tuple[int, int]:
        """Return which process and which thread of the run this is, both from 1."""
        try:
            process = memory.process_of(thread)
        except (Failing, Unreadable):
            process = thread
        leader = self._processes.get(process)
        ordinal = leader[0] if leader else 1 + max((each[0] for each in self._processes.values()), default=0)
        known = self._processes[thread] = (ordinal, len(self._processes) + 1)
        return known

    # Writes

    def pwrite64(self, call: Notification) -> Decoded:
        """Write at a place: by far the most frequent step, in databases, and so with a short way of its own."""
        thread, given = call.thread, call.arguments
        descriptor, length, offset = given[0] & _LOW_HALF, given[2], given[3]
        node = self.descriptors.leads_to(thread, descriptor)
        if not node:
            node = self._learnt(thread, descriptor, self.memory.status(thread, descriptor))
        if node <= 0 or self._looks_at_flags or not 0 < length <= _CHUNK_BYTES or offset >= _FOREVER:
            return self.write(call)
        process, ordinal = self._processes.get(thread) or self._ordinals(thread)
        step = Step(
            number=self._number,
            action=Action.WRITE,
            call="pwrite64",
            path=self.folder.path(node),
            node=node,
            offset=offset,
            length=length,
            content=NO_CONTENT if self._keep is None else self._keep(self.memory.read(thread, given[1], length)),
            process=process,
            thread=ordinal,
        )
        return Decoded(steps=(step,), is_step=True)

    def write(self, call: Notification) -> Decoded:
        """Write, by any of the calls that take memory of the caller's."""
        thread, descriptor = call.thread, call.arguments[0] & _LOW_HALF
        node = self.descriptors.leads_to(thread, descriptor)
        if not node:
            status = self.memory.status(thread, descriptor)
            node = self._learnt(thread, descriptor, status)
        if node == _MARKS:
            return self._marked(call)
        if not node:
            return self._stray(thread, descriptor, status)
        extent = self._extent(call)
        if not extent.length:
            return NOTHING
        content = NO_CONTENT if self._keep is None else self._kept(thread, extent, self._keep)
        return Decoded(steps=self._written(node, extent.offset, extent.length, content, extent.flags))

    def _marked(self, call: Notification) -> Decoded:
        """Return the mark that is written, as the call says it; its number is that of the step before it."""
        extent = self._extent(call, with_place=False)
        if not extent.length:
            return NOTHING
        content = NO_CONTENT if self._keep is None else self._keep(self._bytes(call.thread, extent))
        number = self._number - 1
        mark = Step(number=number, action=Action.MARK, call="write", length=extent.length, content=content)
        return Decoded(mark=mark)

    def _kept(self, thread: int, extent: Extent, keep: Callable[[bytes], int]) -> int:
        """Keep what is written, some megabytes at a time, and return where it begins."""
        if extent.length <= _CHUNK_BYTES:
            return keep(self._bytes(thread, extent))
        places = [
            keep(self.memory.read(thread, address + done, min(_CHUNK_BYTES, length - done)))
            for address, length in extent.pieces
            for done in range(0, length, _CHUNK_BYTES)
        ]
        return places[0]

    def _written(self, node: int, offset: int, length: int, content: int, flags: int) -> tuple[Step, ...]:
        path = self.folder.path(node)
        step = self._step(Action.WRITE, path=path, node=node, offset=offset, length=length, content=content)
        if not flags & os.O_DSYNC:  # O_SYNC contains it
            return (step,)
        kind = Action.SYNC if flags & _SYNC_BITS else Action.SYNC_DATA
        return (step, self._step(kind, path=path, node=node))

    def _extent(self, call: Notification, *, with_place: bool = True) -> Extent:
        """Return what a write call writes, and where."""
        name, thread, given = _NAMES[call.number], call.thread, call.arguments
        pieces: tuple[tuple[int, int], ...]
        if name in _PLAIN:
            length = min(given[2], _WRITE_BYTES_MAX)
            pieces = ((given[1], length),)
        else:
            pieces = tuple(self.memory.vectors(thread, given[1], min(given[2], 1024)))
            length = min(sum(length for _, length in pieces), _WRITE_BYTES_MAX)
        if not with_place:
            return Extent(pieces, length, 0, 0)
        descriptor = _descriptor(given[0])
        offset = -1 if name in {"write", "writev"} else _signed_word(given[3])
        if offset < 0 and name in {"pwrite64", "pwritev"}:
            msg = f"{name} at {offset}"
            raise Failing(msg)
        per_call = _flags_of_call(given[5]) if name == "pwritev2" else 0
        flags = per_call
        if offset < 0 or self._looks_at_flags or per_call:
            opened = memory.open_file(thread, descriptor)
            flags |= opened.flags & ~_not_wanted(name, given)
            offset = opened.position if offset < 0 else offset
        if flags & os.O_APPEND:
            offset = self.memory.status(thread, descriptor).st_size
        return Extent(pieces, length, offset, flags)

    def _bytes(self, thread: int, extent: Extent) -> bytes:
        parts = [self.memory.read(thread, address, length) for address, length in extent.pieces if length]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _stray(self, thread: int, descriptor: int, status: os.stat_result) -> Decoded:
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) in self._own or not status.st_nlink:
            return NOTHING
        path = memory.path_of(thread, descriptor)
        return NOTHING if path.startswith("/memfd:") else Decoded(stray=path)

    # Copies by the kernel

    def sendfile(self, call: Notification) -> Decoded:
        """Copy from one descriptor to another; the source's place is given, or is its own."""
        target, source, place, count, *_ = call.arguments
        return self._copied(call.thread, _descriptor(source), place, _descriptor(target), 0, count)

    def copy_file_range(self, call: Notification) -> Decoded:
        """Copy a range of one file into another."""
        source, source_place, target, target_place, count, _ = call.arguments
        places = (source_place, _descriptor(target), target_place)
        return self._copied(call.thread, _descriptor(source), *places, count)

    def splice(self, call: Notification) -> Decoded:
        """Move what lies in a pipe into a file; the other way about nothing durable happens."""
        source, _, target, place, count, _ = call.arguments
        thread, target = call.thread, _descriptor(target)
        status = self.memory.status(thread, target)
        node = self._node(thread, status)
        if not node:
            return self._stray(thread, target, status)
        content = copying.in_pipe(thread, _descriptor(source), min(count, _WRITE_BYTES_MAX))
        if content is None:
            text = "a copy from a pipe that was empty yet, whose bytes are not known beforehand, was refused"
            return Decoded(error=errno.EINVAL, blind_spot=BlindSpot(what="splice", text=text, is_denied=True))
        if not content or memory.open_file(thread, target).flags & os.O_APPEND:  # which the kernel refuses
            return NOTHING
        return self._put(thread, node, status, target, place, content)

    def _copied(
        self, thread: int, source: int, source_place: int, target: int, target_place: int, count: int
    ) -> Decoded:
        status = self.memory.status(thread, target)
        node = self._node(thread, status)
        if not node:
            return self._stray(thread, target, status)
        origin = self.memory.status(thread, source)
        if not stat.S_ISREG(origin.st_mode):
            text = "a copy from a pipe or socket into a file, whose bytes are not known beforehand, was refused"
            return Decoded(error=errno.EINVAL, blind_spot=BlindSpot(what="splice", text=text, is_denied=True))
        content = self._read_file(thread, source, source_place, min(count, _WRITE_BYTES_MAX))
        return self._put(thread, node, status, target, target_place, content) if content else NOTHING

    def _put(
        self, thread: int, node: int, status: os.stat_result, target: int, target_place: int, content: bytes
    ) -> Decoded:
        """Return the write that a copy is: at the place that is given by its address, or at the file's own."""
        opened = memory.open_file(thread, target)
        offset = self.memory.number(thread, target_place) if target_place else opened.position
        offset = status.st_size if opened.flags & os.O_APPEND else offset
        kept = NO_CONTENT if self._keep is None else self._keep(content)
        return Decoded(steps=self._written(node, offset, len(content), kept, opened.flags))

    def _read_file(self, thread: int, descriptor: int, place: int, count: int) -> bytes:
        offset = self.memory.number(thread, place) if place else memory.open_file(thread, descriptor).position
        return self._read_at(thread, descriptor, offset, count)

    @staticmethod
    def _read_at(thread: int, descriptor: int, offset: int, count: int) -> bytes:
        try:
            file = os.open(f"/proc/{thread}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            msg = f"descriptor {descriptor} of thread {thread} cannot be read: {error.strerror}"
            raise Failing(msg) from error
        try:
            return os.pread(file, min(count, max(0, os.fstat(file).st_size - offset)), offset)
        finally:
            os.close(file)

    def ioctl(self, call: Notification) -> Decoded:
        """Share blocks with another file, where the file system can: the kernel itself refuses it anywhere else."""
        thread, target, command = call.thread, _descriptor(call.arguments[0]), call.arguments[1] & 0xFFFFFFFF
        status = self.memory.status(thread, target)
        node = self._node(thread, status) if command in CLONE_COMMANDS else 0
        if not node:
            return NOTHING
        can = copying.shares_blocks(self.folder.root)
        if can is None:
            text = "a reflink (FICLONE) was refused, as by a file system that has none; programs then copy"
            return Decoded(error=errno.EOPNOTSUPP, blind_spot=BlindSpot(what="reflink", text=text, is_denied=True))
        return self._cloned(thread, node, status, target, call) if can else NOTHING

    def _cloned(self, thread: int, node: int, status: os.stat_result, target: int, call: Notification) -> Decoded:
        """Return the write that a reflink is to whoever reads."""
        argument = call.arguments[2]
        found = copying.Range(_descriptor(argument), 0, 0, 0)
        if call.arguments[1] & 0xFFFFFFFF == CLONE_RANGE:
            found = copying.Range.unpack(self.memory.read(thread, argument, copying.RANGE_BYTES))
        opened = memory.open_file(thread, target)
        if self.memory.status(thread, found.source).st_dev != status.st_dev or opened.flags & os.O_APPEND:
            return NOTHING  # which the kernel refuses
        content = self._read_at(thread, found.source, found.start, found.length or _WRITE_BYTES_MAX)
        if not content:
            return NOTHING
        kept = NO_CONTENT if self._keep is None else self._keep(content)
        return Decoded(steps=self._written(node, found.target_start, len(content), kept, opened.flags))

    # Sizes

    def truncate(self, call: Notification) -> Decoded:
        """Set the size of a file by its path."""
        place, status = self._look(call, AT_FDCWD, call.arguments[0])
        return self._resized(call.thread, status if place.is_inside else None, _signed_word(call.arguments[1]))

    def ftruncate(self, call: Notification) -> Decoded:
        """Set the size of an open file."""
        descriptor = _descriptor(call.arguments[0])
        status = self.memory.status(call.thread, descriptor)
        if not self._node(call.thread, status):
            return self._stray(call.thread, descriptor, status)
        return self._resized(call.thread, status, _signed_word(call.arguments[1]))

    def _resized(self, thread: int, status: os.stat_result | None, size: int) -> Decoded:
        if status is None or not stat.S_ISREG(status.st_mode) or size < 0 or status.st_size == size:
            return NOTHING
        node = self._node(thread, status)
        step = self._step(Action.TRUNCATE, path=self.folder.path(node), node=node, length=size)
        return Decoded(steps=(step,)) if node else NOTHING

    def fallocate(self, call: Notification) -> Decoded:
        """Reserve, zero or punch a range of an open file; shifting ranges is refused."""
        descriptor, mode, offset, length, *_ = call.arguments
        status = self.memory.status(call.thread, _descriptor(descriptor))
        node = self._node(call.thread, status)
        if not node or not length:
            return NOTHING
        path = self.folder.path(node)
        if mode in _ALLOCATES:
            grows = mode == 0 and offset + length > status.st_size
            step = self._step(Action.ALLOCATE, path=path, node=node, offset=offset, length=length)
            return Decoded(steps=(step,)) if grows else NOTHING
        if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE):
            text = f"fallocate with mode {mode:#x}, which shifts a file's ranges, was refused"
            return Decoded(error=errno.EOPNOTSUPP, blind_spot=BlindSpot(what="fallocate", text=text, is_denied=True))
        grows = not mode & _KEEP_SIZE and offset + length > status.st_size
        actions = (Action.ALLOCATE, Action.ZERO) if grows else (Action.ZERO,)
        return Decoded(
            steps=tuple(self._step(action, path=path, node=node, offset=offset, length=length) for action in actions)
        )

    # Names

    def open(self, call: Notification) -> Decoded:
        """Open by path, with flags that make, empty or specially open a file."""
        return self._opened(call, AT_FDCWD, *call.arguments[:3])

    def creat(self, call: Notification) -> Decoded:
        """Make a file, or empty it."""
        return self._opened(call, AT_FDCWD, call.arguments[0], _NUMBER_OF_CREATE, call.arguments[1])

    def openat(self, call: Notification) -> Decoded:
        """Open relative to a folder."""
        return self._opened(call, *call.arguments[:4])

    def openat2(self, call: Notification) -> Decoded:
        """Open relative to a folder, with flags and mode in memory."""
        folder, path, how, *_ = call.arguments
        flags, mode = (self.memory.number(call.thread, how + 8 * index) for index in range(2))
        return self._opened(call, folder, path, flags, mode)

    def open_by_handle_at(self, _call: Notification) -> Decoded:
        """Refuse to make, empty or specially open a file that has no path here, as who is not root is refused."""
        text = "open_by_handle_at with flags that change a file was refused: what has no path cannot be told"
        return Decoded(error=errno.EPERM, blind_spot=BlindSpot(what="open-by-handle", text=text, is_denied=True))

    def _opened(self, call: Notification, folder: int, path: int, flags: int, mode: int) -> Decoded:
        place, status = self._look(call, folder, path)
        if not place.is_inside:
            makes = status is None and bool(flags & os.O_CREAT)
            empties = status is not None and stat.S_ISREG(status.st_mode) and bool(flags & os.O_TRUNC)
            is_own = status is not None and (status.st_dev, status.st_ino) in self._own
            return Decoded(stray=place.absolute) if (makes or empties) and not is_own else NOTHING
        if flags & (os.O_DSYNC | os.O_APPEND):
            self._looks_at_flags = True
        mode &= ~self._umask(call.thread) & 0o7777
        if flags & TMPFILE_BIT:
            node = self.folder.reserve("")
            self._unnamed.append(node)
            self.folder.undo_with(lambda: self._unnamed.remove(node))
            return Decoded(steps=(self._step(Action.CREATE_UNNAMED, node=node, mode=mode),))
        if status is not None:
            if not flags & os.O_TRUNC or (flags & os.O_EXCL and flags & os.O_CREAT):
                return NOTHING
            return self._resized(call.thread, status, 0)
        return self._coming(call, Action.CREATE, place, mode=mode) if flags & os.O_CREAT else NOTHING

    def umask(self, _call: Notification) -> Decoded:
        """Change what new files may not be: from now on every process may have another one."""
        self._umask_at_first = None
        return NOTHING

    def _umask(self, thread: int) -> int:
        return memory.umask_of(thread) if self._umask_at_first is None else self._umask_at_first

    def _made(self, call: Notification, action: Action, place: Place, *, mode: int = 0, target: str = "") -> Decoded:
        """Return the step of something that comes to be at a path, unless it cannot."""
        if not place.is_inside:
            return Decoded(stray=place.absolute)
        return NOTHING if lstat(place.absolute) else self._coming(call, action, place, mode=mode, target=target)

    def _coming(self, call: Notification, action: Action, place: Place, *, mode: int, target: str = "") -> Decoded:
        """Return the step of something that comes to be where nothing is, if there is a folder for it."""
        if lstat(os.path.dirname(place.absolute)) is None:
            return NOTHING
        node = self.folder.reserve(place.path)
        self._await(call.thread, node, place.absolute)
        return Decoded(steps=(self._step(action, path=place.path, node=node, mode=mode, target=target),))

    def mkdir(self, call: Notification) -> Decoded:
        """Make a folder."""
        return self._folder(call, AT_FDCWD, *call.arguments[:2])

    def mkdirat(self, call: Notification) -> Decoded:
        """Make a folder relative to another."""
        return self._folder(call, *call.arguments[:3])

    def _folder(self, call: Notification, folder: int, path: int, mode: int) -> Decoded:
        mode &= ~self._umask(call.thread) & 0o7777
        return self._made(call, Action.MAKE_FOLDER, self._place(call, folder, path), mode=mode)

    def mknod(self, call: Notification) -> Decoded:
        """Make a pipe, a socket, a device or an empty file."""
        return self._special(call, AT_FDCWD, *call.arguments[:2])

    def mknodat(self, call: Notification) -> Decoded:
        """Make one relative to a folder."""
        return self._special(call, *call.arguments[:3])

    def _special(self, call: Notification, folder: int, path: int, mode: int) -> Decoded:
        is_file = stat.S_IFMT(mode) in {0, stat.S_IFREG}
        action = Action.CREATE if is_file else Action.MAKE_NODE
        bits = mode & ~self._umask(call.thread) & 0o7777
        return self._made(call, action, self._place(call, folder, path), mode=bits)

    def bind(self, call: Notification) -> Decoded:
        """Give a socket a name, which for one of the kind AF_UNIX may be a path."""
        _, address, length, *_ = call.arguments
        if not _SOCKET_PATH_AT < length <= _SOCKET_ADDRESS_BYTES_MAX:
            return NOTHING
        given = self.memory.read(call.thread, address, length)
        path = given[_SOCKET_PATH_AT:].partition(b"\0")[0]
        if int.from_bytes(given[:_SOCKET_PATH_AT], "little") != socket.AF_UNIX or not path:
            return NOTHING
        place = self.folder.place(self._absolute(call.thread, AT_FDCWD, os.fsdecode(path)))
        mode = 0o777 & ~self._umask(call.thread)
        return self._made(call, Action.MAKE_NODE, place, mode=mode) if place.is_inside else NOTHING

    def setxattr(self, call: Notification) -> Decoded:
        """Set an extended attribute by path."""
        return self._attributed(self._look(call, AT_FDCWD, call.arguments[0])[1])

    def lsetxattr(self, call: Notification) -> Decoded:
        """Set one of a symbolic link itself."""
        return self._attributed(lstat(self._place(call, AT_FDCWD, call.arguments[0]).absolute))

    def fsetxattr(self, call: Notification) -> Decoded:
        """Set one of an open file."""
        return self._attributed(self.memory.status(call.thread, _descriptor(call.arguments[0])))

    def setxattrat(self, call: Notification) -> Decoded:
        """Set one relative to a folder."""
        return self._attributed(self._look(call, *call.arguments[:2])[1])

    def _attributed(self, status: os.stat_result | None) -> Decoded:
        """Refuse, as a file system does that keeps no attributes: states are built without them."""
        if status is None or not self.folder.node(status):
            return NOTHING
        text = "an extended attribute was refused, as by a file system that has none"
        return Decoded(error=errno.EOPNOTSUPP, blind_spot=BlindSpot(what="attributes", text=text, is_denied=True))

    def symlink(self, call: Notification) -> Decoded:
        """Make a symbolic link."""
        return self._linked_to(call, call.arguments[0], AT_FDCWD, call.arguments[1])

    def symlinkat(self, call: Notification) -> Decoded:
        """Make one relative to a folder."""
        return self._linked_to(call, *call.arguments[:3])

    def _linked_to(self, call: Notification, text: int, folder: int, path: int) -> Decoded:
        target = self.memory.text(call.thread, text)
        return self._made(call, Action.SYMLINK, self._place(call, folder, path), target=target)

    def link(self, call: Notification) -> Decoded:
        """Give a file another name."""
        return self._linked(call, AT_FDCWD, call.arguments[0], AT_FDCWD, call.arguments[1], 0)

    def linkat(self, call: Notification) -> Decoded:
        """Give a file, perhaps one without any, another name."""
        return self._linked(call, *call.arguments[:5])

    def _linked(self, call: Notification, folder: int, path: int, to_folder: int, to: int, flags: int) -> Decoded:
        place = self._place(call, to_folder, to)
        status = self._linked_object(call, folder, path, flags)
        if status is None or lstat(place.absolute) is not None:
            return NOTHING
        if not place.is_inside:
            return Decoded(stray=place.absolute)
        node = self._node(call.thread, status)
        if not node:
            text = f"a hard link to a file outside of the folder was refused: {place.path}"
            return Decoded(error=errno.EXDEV, blind_spot=BlindSpot(what="link-from-outside", text=text, is_denied=True))
        self.folder.gain_name(node)
        if not self.folder.path(node):
            self.folder.move(node, place.path)
        return Decoded(steps=(self._step(Action.LINK, path=place.path, node=node),))

    def _linked_object(self, call: Notification, folder: int, path: int, flags: int) -> os.stat_result | None:
        name = self.memory.text(call.thread, path)
        if flags & _AT_EMPTY_PATH and not name:
            return self.memory.status(call.thread, _descriptor(folder))
        absolute = self._absolute(call.thread, folder, name)
        own = _OWN_DESCRIPTOR.fullmatch(name)
        if flags & _AT_SYMLINK_FOLLOW and own is not None:  # how a file without a name gets one
            return self.memory.status(call.thread, int(own[1]))
        try:
            return os.stat(absolute, follow_symlinks=bool(flags & _AT_SYMLINK_FOLLOW))
        except OSError:
            return None

    def unlink(self, call: Notification) -> Decoded:
        """Remove a name."""
        return self._removed(self._place(call, AT_FDCWD, call.arguments[0]), is_folder=False)

    def rmdir(self, call: Notification) -> Decoded:
        """Remove a folder."""
        return self._removed(self._place(call, AT_FDCWD, call.arguments[0]), is_folder=True)

    def unlinkat(self, call: Notification) -> Decoded:
        """Remove a name or a folder, relative to a folder."""
        folder, path, flags, *_ = call.arguments
        return self._removed(self._place(call, folder, path), is_folder=bool(flags & _AT_REMOVEDIR))

    def _removed(self, place: Place, *, is_folder: bool) -> Decoded:
        status = lstat(place.absolute)
        if status is None or stat.S_ISDIR(status.st_mode) != is_folder:
            return NOTHING
        if not place.is_inside:
            return Decoded(stray=place.absolute)
        node = self.folder.node(status)
        if not is_folder:
            self.folder.lose_name(node, status)
            return Decoded(steps=(self._step(Action.UNLINK, path=place.path, node=node),))
        if not place.path or _has_entries(place.absolute):
            return NOTHING
        return Decoded(steps=(self._step(Action.REMOVE_FOLDER, path=place.path, node=node),))

    def rename(self, call: Notification) -> Decoded:
        """Move."""
        return self._renamed(call, AT_FDCWD, call.arguments[0], AT_FDCWD, call.arguments[1], 0)

    def renameat(self, call: Notification) -> Decoded:
        """Move, relative to folders."""
        folder, path, to_folder, to, *_ = call.arguments
        return self._renamed(call, folder, path, to_folder, to, 0)

    def renameat2(self, call: Notification) -> Decoded:
        """Move, relative to folders, with flags."""
        return self._renamed(call, *call.arguments[:5])

    def _renamed(self, call: Notification, folder: int, path: int, to_folder: int, to: int, flags: int) -> Decoded:
        source, target = self._place(call, folder, path), self._place(call, to_folder, to)
        moved, there = lstat(source.absolute), lstat(target.absolute)
        if moved is None or not (source.is_inside or target.is_inside):
            return Decoded(stray=target.absolute) if moved is not None else NOTHING
        if there is not None and (flags & _RENAME_NOREPLACE or os.path.samestat(moved, there)):
            return NOTHING
        if flags & _RENAME_EXCHANGE:
            return self._exchanged(source, target, moved, there)
        if there is not None and not _makes_way(target.absolute, there, moved):
            return NOTHING
        if lstat(os.path.dirname(target.absolute)) is None:
            return NOTHING
        if not source.is_inside:
            return self._moved_in(source, target, moved)
        node = self.folder.node(moved)
        if there is not None:
            self.folder.lose_name(self.folder.node(there), there)
        to_path = target.path if target.is_inside else ""
        if to_path:
            self.folder.move(node, to_path)
        step = self._step(Action.RENAME, path=source.path, target=to_path, node=node)
        return Decoded(steps=(step,), stray="" if to_path else target.absolute)

    def _exchanged(self, source: Place, target: Place, moved: os.stat_result, there: os.stat_result | None) -> Decoded:
        if there is None:
            return NOTHING
        if not (source.is_inside and target.is_inside):
            text = f"an exchange with {target.absolute}, outside of the folder, was refused"
            return Decoded(error=errno.EINVAL, blind_spot=BlindSpot(what="exchange", text=text, is_denied=True))
        first, second = self.folder.node(moved), self.folder.node(there)
        self.folder.move(first, target.path)
        self.folder.move(second, source.path)
        return Decoded(steps=(self._step(Action.EXCHANGE, path=source.path, target=target.path, node=first),))

    def _moved_in(self, source: Place, target: Place, moved: os.stat_result) -> Decoded:
        """Return the step of a file that comes from outside, with all it holds."""
        if not stat.S_ISREG(moved.st_mode) or moved.st_size > _MOVED_IN_BYTES_MAX:
            text = f"{source.absolute} was not let into the folder: only files up to a gigabyte are moved in"
            return Decoded(error=errno.EXDEV, blind_spot=BlindSpot(what="moved-in", text=text, is_denied=True))
        content = NO_CONTENT
        if self._keep is not None:
            with open(source.absolute, "rb") as file:
                content = self._keep(file.read())
        node = self.folder.take_in(moved, target.path)
        mode = stat.S_IMODE(moved.st_mode)
        length = moved.st_size
        step = self._step(Action.RENAME, target=target.path, node=node, length=length, content=content, mode=mode)
        return Decoded(steps=(step,), stray=source.absolute)

    def chmod(self, call: Notification) -> Decoded:
        """Change permissions by path."""
        return self._chmod(*self._look(call, AT_FDCWD, call.arguments[0]), call.arguments[1])

    def fchmodat(self, call: Notification) -> Decoded:
        """Change permissions relative to a folder."""
        folder, path, mode, *_ = call.arguments
        return self._chmod(*self._look(call, folder, path), mode)

    def fchmod(self, call: Notification) -> Decoded:
        """Change permissions of an open file."""
        status = self.memory.status(call.thread, _descriptor(call.arguments[0]))
        return self._changed_mode(self._node(call.thread, status), status, call.arguments[1])

    def _chmod(self, place: Place, status: os.stat_result | None, mode: int) -> Decoded:
        if status is None or not place.is_inside:
            return NOTHING
        return self._changed_mode(self.folder.node(status), status, mode)

    def _changed_mode(self, node: int, status: os.stat_result, mode: int) -> Decoded:
        if not node or stat.S_IMODE(status.st_mode) == mode & 0o7777:
            return NOTHING
        step = self._step(Action.CHANGE_MODE, path=self.folder.path(node), node=node, mode=mode & 0o7777)
        return Decoded(steps=(step,))

    # Syncs

    def fsync(self, call: Notification) -> Decoded:
        """Flush a file or a folder."""
        return self._synced(call, Action.SYNC)

    def fdatasync(self, call: Notification) -> Decoded:
        """Flush a file's data."""
        return self._synced(call, Action.SYNC_DATA)

    def sync_file_range(self, call: Notification) -> Decoded:
        """Start or await writing of a range, which promises nothing."""
        return self._synced(call, Action.SYNC_RANGE)

    def _synced(self, call: Notification, action: Action) -> Decoded:
        thread, descriptor = call.thread, call.arguments[0] & _LOW_HALF
        node = self.descriptors.leads_to(thread, descriptor)
        if not node:
            node = self._learnt(thread, descriptor, self.memory.status(thread, descriptor))
        if node <= 0:
            return NOTHING
        return Decoded(steps=(self._step(action, path=self.folder.path(node), node=node),), is_step=True)

    def sync(self, _call: Notification) -> Decoded:
        """Flush everything."""
        return Decoded(steps=(self._step(Action.SYNC_ALL),))

    def syncfs(self, call: Notification) -> Decoded:
        """Flush a file system, if it is the folder's."""
        status = self.memory.status(call.thread, _descriptor(call.arguments[0]))
        return Decoded(steps=(self._step(Action.SYNC_ALL),)) if status.st_dev == self.folder.device else NOTHING

    def msync(self, call: Notification) -> Decoded:
        """Flush a mapping."""
        found = memory.mapped_at(call.thread, call.arguments[0])
        node = self.folder.node_of(found) if found is not None else 0
        step = self._step(Action.SYNC_DATA, path=self.folder.path(node), node=node)
        return Decoded(steps=(step,)) if node else NOTHING

    # Descriptors

    def close(self, call: Notification) -> Decoded:
        """Close a file."""
        self.descriptors.change(call.thread, call.arguments[0] & _LOW_HALF)
        return NOTHING

    def dup2(self, call: Notification) -> Decoded:
        """Have a descriptor lead where another one does."""
        self.descriptors.change(call.thread, call.arguments[1] & _LOW_HALF)
        return NOTHING

    dup3 = dup2

    def close_range(self, call: Notification) -> Decoded:
        """Close many, or have the next exec close them."""
        self.descriptors.change(call.thread, ALL)
        return NOTHING

    def execve(self, call: Notification) -> Decoded:
        """Become another program: its memory is another, and some of its files are closed."""
        self.memory.close()
        self.descriptors.change(call.thread, ALL)
        return NOTHING

    execveat = execve

    # What cannot be seen

    def mmap(self, call: Notification) -> Decoded:
        """Map a file, shared: what is written through it is not seen."""
        descriptor = _descriptor(call.arguments[4])
        if descriptor < 0:
            return NOTHING
        node = self._node(call.thread, self.memory.status(call.thread, descriptor))
        if not node:
            return NOTHING
        self._has_mappings = True
        return self._mapped(node) if call.arguments[2] & PROT_WRITE else NOTHING

    def mprotect(self, call: Notification) -> Decoded:
        """Make memory writable: of a file that is mapped and shared, what is written from now on is not seen."""
        found = memory.mapped_at(call.thread, call.arguments[0]) if self._has_mappings else None
        node = self.folder.node_of(found) if found is not None else 0
        return self._mapped(node) if node else NOTHING

    def _mapped(self, node: int) -> Decoded:
        return Decoded(blind_spot=BlindSpot(what="shared-mapping", text=self.folder.path(node)))

    def fcntl(self, _call: Notification) -> Decoded:
        """Change the flags of an open file: from now on they are looked at with every write."""
        self._looks_at_flags = True
        return NOTHING

    def io_uring_setup(self, _call: Notification) -> Decoded:
        """Refuse: what goes through a ring is no system call."""
        return _denied("io_uring", "io_uring was refused, whose writes cannot be seen; programs then use plain calls")

    def io_setup(self, _call: Notification) -> Decoded:
        """Refuse: what is submitted asynchronously cannot be seen either."""
        return _denied("aio", "asynchronous input and output (io_setup) was refused, whose writes cannot be seen")

    # Paths

    def _absolute(self, thread: int, folder: int, path: str) -> str:
        if path.startswith(_OWN_PATHS):  # these are the caller's, and not of the process that looks at it
            return _path_of_the_caller(path, thread)
        if path.startswith("/"):
            return path
        return os.path.join(memory.path_of(thread, _descriptor(folder)), path)

    def _place(self, call: Notification, folder: int, path: int) -> Place:
        """Return where a path leads, its last name as it is."""
        return self.folder.place(self._absolute(call.thread, folder, self.memory.text(call.thread, path)))

    def _look(self, call: Notification, folder: int, path: int) -> tuple[Place, os.stat_result | None]:
        """Return where a path leads, symbolic links at its end too, and what is there."""
        return self.folder.look(self._absolute(call.thread, folder, self.memory.text(call.thread, path)))


_WRITES: Final = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2"})
_PLAIN: Final = frozenset({"write", "pwrite64"})
_SAME: Final = {"writev": "write", "pwritev": "write", "pwritev2": "write", "fchmodat2": "fchmodat"}


_NAMES: Final = {number: name for name, number in NUMBERS.get(MACHINE, {}).items()}
_CALLS: Final[dict[int, Callable[[Decoder, Notification], Decoded]]] = {
    number: getattr(Decoder, _SAME.get(name, name)) for number, name in _NAMES.items()
}


def _denied(what: str, text: str) -> Decoded:
    return Decoded(error=errno.ENOSYS, blind_spot=BlindSpot(what=what, text=text, is_denied=True))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _descriptor(word: int) -> int:
    """Return a descriptor, which is a signed 32-bit number in a 64-bit word."""
    low = word & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low


def _signed_word(word: int) -> int:
    return word - (1 << 64) if word >= _FOREVER else word


def _flags_of_call(flags: int) -> int:
    """Return the flags of open that flags of one write mean."""
    found = os.O_APPEND if flags & _RWF_APPEND else 0
    found |= os.O_DSYNC if flags & _RWF_DSYNC else 0
    return found | (os.O_SYNC if flags & _RWF_SYNC else 0)


def _path_of_the_caller(path: str, thread: int) -> str:
    """Return a path that means another thing to each process, as this thread means it."""
    if path in _STANDARD:
        return f"/proc/{thread}/{_STANDARD[path]}"
    rest = path.removeprefix("/proc/self/").removeprefix("/proc/thread-self/")
    return (
        f"/proc/{thread}/fd/{path.removeprefix('/dev/fd/')}" if path.startswith("/dev/") else f"/proc/{thread}/{rest}"
    )


def _not_wanted(name: str, given: list[int]) -> int:
    """Return the flags that a file was opened with and that do not hold for this one write."""
    return os.O_APPEND if name == "pwritev2" and given[5] & _RWF_NOAPPEND else 0


def _makes_way(path: str, there: os.stat_result, moved: os.stat_result) -> bool:
    """Tell whether what is at a path is replaced by a rename: a file always, a folder by a folder if it is empty."""
    if not stat.S_ISDIR(there.st_mode):
        return not stat.S_ISDIR(moved.st_mode)
    return stat.S_ISDIR(moved.st_mode) and not _has_entries(path)


def _has_entries(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is not None
