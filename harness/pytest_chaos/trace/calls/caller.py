"""What becomes of a trapped call, and what its words of 64 bits mean.

What every call is looked at with: the caller's memory and paths, the folder's nodes, and the steps
made of it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pytest_chaos.trace import memory
from pytest_chaos.trace.folder import Place, WatchedFolder, lstat
from pytest_chaos.trace.kernel import MACHINE, NUMBERS
from pytest_chaos.trace.memory import Descriptors, Failing, Memory, Unreadable
from pytest_chaos.trace.step import NO_CONTENT, NO_NODE, Action, BlindSpot, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.trace.kernel import Notification

FOREVER: Final = 1 << 63
"""The first place that no file reaches; as a signed word it is negative."""
LOW_HALF: Final = 0xFFFFFFFF
"""The half of a word that holds a descriptor; one that is negative is then none that can be open."""


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """What becomes of a call. With ``error`` it is denied; ``mark`` is no step and has no number of its own.

    ``stray`` is a path outside of the folder that it changes; ``printed_bytes`` is what the run
    will then have printed.
    """

    steps: tuple[Step, ...] = ()
    error: int = 0
    blind_spot: BlindSpot | None = None
    mark: Step | None = None
    stray: str = ""
    printed_bytes: int = 0
    is_step: bool = False
    """Whether it is one step and nothing else, as nearly all are."""


NOTHING: Final = Decoded()
"""The call is nobody's business: it reads, or writes to a pipe, or fails."""


def denied(what: str, text: str) -> Decoded:
    """Return the answer to a call that is refused, as by a kernel that has none such."""
    return Decoded(error=errno.ENOSYS, blind_spot=BlindSpot(what=what, text=text, is_denied=True))


def descriptor_in(word: int) -> int:
    """Return a descriptor, which is a signed 32-bit number in a 64-bit word."""
    low = word & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low


def signed_word(word: int) -> int:
    """Return a word as a signed number of 64 bits."""
    return word - (1 << 64) if word >= FOREVER else word


MARKS: Final = -1
"""Stands for the mark file where a node is meant otherwise."""
_STANDARD: Final = {"/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"}
_OWN_PATHS: Final = ("/proc/self/", "/proc/thread-self/", "/dev/fd/", *_STANDARD)

NAMES: Final = {number: name for name, number in NUMBERS.get(MACHINE, {}).items()}
"""The calls of this machine by their numbers."""


class _Waiting(NamedTuple):
    """An object that is being made: its node and where it will be."""

    node: int
    absolute: str


class Run(NamedTuple):
    """What is known of a run that begins: its first process, that one's umask (to ask for it costs more than a call).

    ``marks`` and ``output`` are files outside of the watched folder, writes to which are no strays.
    ``sees_closes`` is whether all calls are trapped by which a descriptor comes to lead to another
    file.
    """

    leader: int
    umask: int
    sees_closes: bool
    marks: os.stat_result
    output: os.stat_result


class Looking:
    """Knows the watched folder and the callers; what becomes of each call is said by those that derive from it."""

    def __init__(self, folder: WatchedFolder, run: Run, keep: Callable[[bytes], int] | None = None) -> None:
        self.folder = folder
        self.memory = Memory()
        self._keep = keep
        self._marks = _identity(run.marks)
        self._output = _identity(run.output)
        self._own = {self._marks, self._output}
        self._printed_bytes = 0
        self._waiting: dict[int, list[_Waiting]] = {}
        self._unnamed: list[int] = []
        self._looks_at_flags = False
        self._has_mappings = False
        self._umask_at_first: int | None = run.umask
        self.descriptors = Descriptors(run.leader, is_on=run.sees_closes)
        self._number = 0
        self._call: Notification | None = None
        self._processes: dict[int, tuple[int, int]] = {run.leader: (1, 1)}

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
        node = MARKS if is_marks else self.folder.node(status) or self._node(thread, status)
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
            call=NAMES[call.number],
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

    def _is_output(self, status: os.stat_result) -> bool:
        return status.st_ino == self._output[1] and status.st_dev == self._output[0]

    def _stray(self, thread: int, descriptor: int, status: os.stat_result) -> Decoded:
        if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) in self._own or not status.st_nlink:
            return NOTHING
        path = memory.path_of(thread, descriptor)
        return NOTHING if path.startswith("/memfd:") else Decoded(stray=path)

    def _absolute(self, thread: int, folder: int, path: str) -> str:
        if path.startswith(_OWN_PATHS):  # these are the caller's, and not of the process that looks at it
            return _path_of_the_caller(path, thread)
        if path.startswith("/"):
            return path
        return os.path.join(memory.path_of(thread, descriptor_in(folder)), path)

    def _place(self, call: Notification, folder: int, path: int) -> Place:
        """Return where a path leads, its last name as it is."""
        return self.folder.place(self._absolute(call.thread, folder, self.memory.text(call.thread, path)))

    def _look(self, call: Notification, folder: int, path: int) -> tuple[Place, os.stat_result | None]:
        """Return where a path leads, symbolic links at its end too, and what is there."""
        return self.folder.look(self._absolute(call.thread, folder, self.memory.text(call.thread, path)))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _path_of_the_caller(path: str, thread: int) -> str:
    """Return a path that means another thing to each process, as this thread means it."""
    if path in _STANDARD:
        return f"/proc/{thread}/{_STANDARD[path]}"
    rest = path.removeprefix("/proc/self/").removeprefix("/proc/thread-self/")
    return (
        f"/proc/{thread}/fd/{path.removeprefix('/dev/fd/')}" if path.startswith("/dev/") else f"/proc/{thread}/{rest}"
    )
