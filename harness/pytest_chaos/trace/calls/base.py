"""The base of all decoders: the caller's memory and paths, the folder's nodes, the steps."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.table import NAMES
from pytest_chaos.trace.folder import ResolvedPath, WatchedFolder, lstat
from pytest_chaos.trace.mapped import MappedFiles
from pytest_chaos.trace.memory import Failing, Memory, Unreadable
from pytest_chaos.trace.step import NO_CONTENT, Action, BlindSpot, ProcessSeen, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.trace.kernel import Notification

SIGN_BIT: Final = 1 << 63
"""An unsigned word from here on is a negative signed one; no file reaches so far."""
LOW_HALF: Final = 0xFFFFFFFF
"""The half of a word with a descriptor. A negative one becomes a number that is never open."""
MARK_FILE: Final = -1
"""Stands for the mark file where a descriptor's node is asked for."""

_NAMED_WORDS: Final = 4
"""The words of a command line that may name a process: ``python -m app.worker``."""
_NAME_CHARACTERS_MAX: Final = 60
_STANDARD: Final = {"/dev/stdin": "/dev/fd/0", "/dev/stdout": "/dev/fd/1", "/dev/stderr": "/dev/fd/2"}
_OWN_PATHS: Final = ("/proc/self/", "/proc/thread-self/", "/dev/fd/", *_STANDARD)


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """The meaning of a call. With ``error`` it is denied. A ``mark`` is no step and has no number.

    ``stray`` is a path outside the watched folder that the call changes. ``printed_bytes`` is what
    the run has printed, this call included. ``is_step`` says that it is one step and nothing else,
    as nearly all are.
    """

    steps: tuple[Step, ...] = ()
    error: int = 0
    blind_spot: BlindSpot | None = None
    mark: Step | None = None
    stray: str = ""
    printed_bytes: int = 0
    is_step: bool = False


NOTHING: Final = Decoded()
"""The call changes nothing that is watched: it reads, or writes to a pipe, or is going to fail."""


def one(step: Step) -> Decoded:
    """Return the meaning of a call that is this step and nothing else."""
    return Decoded(steps=(step,), is_step=True)


def denied(what: str, text: str, error: int = errno.ENOSYS) -> Decoded:
    """Return the meaning of a call that is refused with an error, and reported as a blind spot."""
    return Decoded(error=error, blind_spot=BlindSpot(what=what, text=text, is_denied=True))


def descriptor_in(word: int) -> int:
    """Return a descriptor, which is a signed 32-bit number in a 64-bit word."""
    low = word & LOW_HALF
    return low - (1 << 32) if low >= 1 << 31 else low


def signed_word(word: int) -> int:
    """Return a word as a signed number of 64 bits."""
    return word - (1 << 64) if word >= SIGN_BIT else word


class Descriptors:
    """A cache of what the descriptors of the program's first thread lead to (a number, not 0).

    Asking the kernel for the target of each write costs as much as decoding the rest of it. A
    descriptor leads to one file until it is closed, replaced (dup2, dup3), or closed by an exec;
    with a filter that traps these (``is_on``) the answer can be kept.

    Only the first thread is cached: its id cannot be reused while the program runs. A close by any
    thread of any process counts; at worst a target is asked for once more.
    """

    ALL: Final = -1

    def __init__(self, thread: int, *, is_on: bool) -> None:
        self._thread = thread
        self._is_on = is_on
        self._known: dict[int, int] = {}
        self._changing: dict[int, int] = {}
        self.closes = 0

    def leads_to(self, thread: int, descriptor: int) -> int:
        """Return what a descriptor leads to, 0 where that is not known."""
        return self._known.get(descriptor, 0) if thread == self._thread else 0

    def learn(self, thread: int, descriptor: int, target: int) -> None:
        """Keep what a descriptor leads to."""
        # A close that was let pass may not have happened yet: until its thread makes another call,
        # an answer could be the old file's.
        if self._is_on and thread == self._thread:
            changing = self._changing.values()
            if descriptor not in changing and self.ALL not in changing:
                self._known[descriptor] = target

    def change(self, thread: int, descriptor: int) -> None:
        """Forget a descriptor, or ALL: this thread is about to make it lead elsewhere."""
        self.closes += 1
        if descriptor == self.ALL:
            self._known.clear()
        else:
            self._known.pop(descriptor, None)
        self._changing[thread] = descriptor

    def has_changed(self, thread: int) -> None:
        """Note that a thread makes its next call, so its last one is over."""
        if self._changing:
            self._changing.pop(thread, None)


class _Unbound(NamedTuple):
    """A node whose object is being made: it has no inode before the call is over."""

    node: int
    absolute: str


class DecoderBase:
    """The state of decoding one run. Subclasses decode the calls, one method each."""

    def __init__(
        self,
        folder: WatchedFolder,
        keep: Callable[[bytes], int] | None,
        *,
        leader: int,
        umask: int,
        sees_closes: bool,
        marks: os.stat_result,
        output: os.stat_result,
    ) -> None:
        """Begin a run in a folder, by its first process and that one's umask.

        ``keep`` stores contents and returns their place; it is None where none are wanted.
        ``sees_closes`` is whether the filter traps closes. Writes to the files ``marks`` and
        ``output`` are no strays.
        """
        self.folder = folder
        self.memory = Memory()
        self.descriptors = Descriptors(leader, is_on=sees_closes)
        self.has_timer = False
        """Whether a timer was started that may send a signal."""
        self.mapped = MappedFiles(keep)
        self.prefix = ""
        """Begins the names of processes, where a run has several decoders."""
        self._keep = keep
        self._marks = _identity(marks)
        self._output = _identity(output)
        self._printed_bytes = 0
        self._unbound: dict[int, list[_Unbound]] = {}
        self._unnamed: list[int] = []
        self._looks_at_flags = False
        self._has_mappings = False
        self._umask_at_first: int | None = umask
        self._number = 0
        self._call: Notification | None = None
        self._turn = 0
        self._last = NOTHING
        self._ordinals: dict[int, tuple[int, int]] = {leader: (1, 1)}
        self._pids = {1: leader}
        self.processes = {1: ProcessSeen(1, 1, ("main",))}

    # Nodes

    def _reserve(self, thread: int, node: int, absolute: str) -> None:
        self._unbound.setdefault(thread, []).append(_Unbound(node, absolute))

    def _bind(self, thread: int) -> None:
        """Bind the nodes of the objects that this thread's last call made."""
        for unbound in self._unbound.pop(thread, ()):
            if (status := lstat(unbound.absolute)) is not None:
                self.folder.bind(unbound.node, status)

    def _node(self, thread: int, status: os.stat_result) -> int:
        """Return the node of an open file, 0 for one that is not in the folder."""
        node = self.folder.node(status)
        is_candidate = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        if node or status.st_dev != self.folder.device or not is_candidate:
            return node
        # Another thread may have made it in a call that is over, and not have made its next one.
        for other in [other for other in self._unbound if other != thread]:
            for unbound in self._unbound[other]:
                if (found := lstat(unbound.absolute)) is not None and os.path.samestat(found, status):
                    self.folder.bind(unbound.node, status)
                    return unbound.node
        if not self._unnamed or status.st_nlink:
            return 0
        # A file without a name (O_TMPFILE) is first seen again when it is used: no path leads to it
        # when its open is over. Several are told apart by their order alone.
        node = self._unnamed.pop(0)
        self.folder.bind(node, status)
        return node

    def _target(self, thread: int, descriptor: int) -> tuple[int, os.stat_result | None]:
        """Return a descriptor's node, MARK_FILE or 0, and its status where that was needed."""
        if known := self.descriptors.leads_to(thread, descriptor):
            return known, None
        status = self.memory.status(thread, descriptor)
        node = MARK_FILE if _identity(status) == self._marks else self._node(thread, status)
        if node:
            self.descriptors.learn(thread, descriptor, node)
        return node, status

    def _mapped_nodes(self, call: Notification) -> list[int]:
        """Return the files of the folder that are mapped where a call's first two arguments say."""
        found = memory.mapped_in(call.thread, call.arguments[0], call.arguments[1])
        return [node for node in map(self.folder.node_of, found) if node]

    # Steps

    def _step(self, action: Action, **fields: Any) -> Step:
        """Return the next step of the call that is decoded; ``fields`` are those of ``Step``."""
        call = self._call
        assert call is not None  # noqa: S101 - a step is a call's
        process, thread = self._ordinals.get(call.thread) or self._new_ordinals(call.thread)
        number = self._number
        self._number += 1
        name = NAMES[call.number]
        return Step(number=number, action=action, call=name, process=process, thread=thread, **fields)

    def _stored(self, content: bytes) -> int:
        return NO_CONTENT if self._keep is None else self._keep(content)

    def pid_of(self, process: int) -> int | None:
        """Return the pid of the process with this number; None if it is unknown or gone."""
        for thread, (number, _) in self._ordinals.items():
            if number == process:
                with contextlib.suppress(Failing, Unreadable):
                    return memory.process_of(thread)
        return None

    def _new_ordinals(self, thread: int) -> tuple[int, int]:
        """Number a thread and its process from 1, in the order in which the run shows them."""
        try:
            process = memory.process_of(thread)
        except (Failing, Unreadable):
            process = thread
        leader = self._ordinals.get(process)
        ordinal = leader[0] if leader else 1 + max((each[0] for each in self._ordinals.values()), default=0)
        known = self._ordinals[thread] = (ordinal, len(self._ordinals) + 1)
        self._pids[ordinal] = process
        if ordinal not in self.processes:
            self.processes[ordinal] = ProcessSeen(ordinal, self._number, ("child", *memory.title_of(process)))
        return known

    def caller(self, thread: int) -> tuple[str, int]:
        """Return the name of a thread's process, which is its number here, and its pid."""
        number, _ = self._ordinals.get(thread) or self._new_ordinals(thread)
        return f"{self.prefix}{number}", self._pids[number]

    @property
    def last_number(self) -> int:
        """The number of the last step that was decoded."""
        return self._number - 1

    def node_of(self, thread: int, status: os.stat_result) -> int:
        """Return the node of an open file or of a path, 0 for one that is not in the folder."""
        return self._node(thread, status)

    def looked_at(self, call: Notification, folder: int, path: int) -> tuple[ResolvedPath, os.stat_result | None]:
        """Resolve the path that a call names; return also what is there."""
        return self._look(call, folder, path)

    def _runs(self, thread: int, words: Sequence[str]) -> None:
        """Note that a process runs another program, by the words of its command line."""
        number, _ = self._ordinals.get(thread) or self._new_ordinals(thread)
        names = (os.path.basename(word) for word in words[:_NAMED_WORDS] if not word.startswith("-"))
        main = ("main",) if number == 1 else ()
        called = tuple(name for name in names if name and len(name) <= _NAME_CHARACTERS_MAX and name.isprintable())
        self.processes[number] = ProcessSeen(number, self.processes[number].since, (*main, *called))

    def _is_ours(self, status: os.stat_result) -> bool:
        return _identity(status) in {self._marks, self._output}

    def _stray(self, thread: int, descriptor: int, status: os.stat_result) -> Decoded:
        if not stat.S_ISREG(status.st_mode) or self._is_ours(status) or not status.st_nlink:
            return NOTHING
        # A deleted file, or one in memory (memfd_create(2)), leaves nothing behind.
        path = memory.path_of(thread, descriptor)
        return NOTHING if path.startswith("/memfd:") else Decoded(stray=path)

    # Paths

    def _absolute(self, thread: int, folder: int, path: str) -> str:
        if path.startswith(_OWN_PATHS):  # /proc/self would be ours
            return _path_of(thread, path)
        if path.startswith("/"):
            return path
        return os.path.join(memory.path_of(thread, descriptor_in(folder)), path)

    def _place(self, call: Notification, folder: int, path: int) -> ResolvedPath:
        """Resolve a path but for its last name, as calls do that make or remove a name."""
        return self.folder.place(self._absolute(call.thread, folder, self.memory.text(call.thread, path)))

    def _look(self, call: Notification, folder: int, path: int) -> tuple[ResolvedPath, os.stat_result | None]:
        """Resolve a path with a symbolic link at its end, and return what is there."""
        return self.folder.look(self._absolute(call.thread, folder, self.memory.text(call.thread, path)))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _path_of(thread: int, path: str) -> str:
    """Resolve a path that leads each process to something of its own, as this thread would."""
    path = _STANDARD.get(path, path)
    if path.startswith("/dev/fd/"):
        return f"/proc/{thread}/fd/{path.removeprefix('/dev/fd/')}"
    return f"/proc/{thread}/{path.split('/', 3)[3]}"  # without "/proc/self/" or "/proc/thread-self/"
