"""What a trapped call would do to the watched folder: a notification in, steps out, before the call has happened.

A call that is going to fail, or to change nothing, is not a step; so each is looked at as the
kernel will look at it, on the folder as it is now. What a call makes has no inode yet: its node is
reserved, and bound when the caller is heard of next, by when the call is over. One process with one
thread is so seen exactly; between processes and threads the order is that of their calls'
beginnings.

Here is which call comes to whom, and how one call is told from the next; what becomes of each is in
``calls``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.caller import NAMES, NOTHING, Decoded, Run, denied, descriptor_in
from pytest_chaos.trace.calls.content import WRITES, Copies
from pytest_chaos.trace.calls.metadata import Attributes, Syncs, Unseen
from pytest_chaos.trace.calls.paths import Making, Moving
from pytest_chaos.trace.folder import WatchedFolder, lstat
from pytest_chaos.trace.kernel import AUDIT_ARCH, MACHINE, NUMBER_MAX
from pytest_chaos.trace.memory import Failing, Unreadable
from pytest_chaos.trace.step import Action, BlindSpot, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.trace.kernel import Notification

_OUR_MACHINE: Final = AUDIT_ARCH.get(MACHINE, 0)
_TURN_TIMEOUT_S: Final = 0.05
_MAKES: Final = frozenset({Action.CREATE, Action.MAKE_FOLDER, Action.MAKE_NODE, Action.SYMLINK, Action.LINK})
_TAKES_AWAY: Final = frozenset({Action.UNLINK, Action.REMOVE_FOLDER, Action.RENAME})


class Decoder(Copies, Making, Moving, Attributes, Syncs, Unseen):
    """Makes steps of calls, one after the other."""

    def __init__(self, folder: WatchedFolder, run: Run, keep: Callable[[bytes], int] | None = None) -> None:
        """Begin a run in a folder. ``keep`` takes contents; it is None where none are wanted."""
        super().__init__(folder, run, keep)
        self._turn = 0
        self._last = NOTHING

    def decode(self, call: Notification, number: int) -> Decoded:
        """Return what becomes of a call; its first step gets this number."""
        if call.thread != self._turn:
            self._take_turns(call.thread)
        if call.thread in self._waiting:
            self._settle(call.thread)
        self.descriptors.has_changed(call.thread)
        if call.machine != _OUR_MACHINE or call.number > NUMBER_MAX:
            return denied("unknown-call", f"call {call.number} of machine {call.machine:#x} is not known here")
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

    def finish(self) -> None:
        """Bind what was made last; all callers are gone."""
        for thread in list(self._waiting):
            self._settle(thread)
        self.memory.close()

    def _take_turns(self, thread: int) -> None:
        """Wait until the last call, another thread's, has been done: where this one appends depends on it.

        That it was let pass does not say that it is over, and the kernel tells nobody. So its
        effect is waited for, for a bounded time, since it may fail as well: of our own looking,
        which a machine that stands still does not shorten.
        """
        self._turn = thread
        if self._last.steps:
            ends_s = time.thread_time() + _TURN_TIMEOUT_S
            while not self._is_done(self._last.steps[0]) and time.thread_time() < ends_s:
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
        if NAMES[call.number] not in WRITES or self.is_positioned(call):
            return True
        try:
            opened = memory.open_file(call.thread, descriptor_in(call.arguments[0]))
            if opened.flags & os.O_APPEND:
                status = os.stat(f"/proc/{call.thread}/fd/{descriptor_in(call.arguments[0])}")
                return status.st_size >= step.offset + step.length
        except (OSError, Failing, Unreadable):  # it has closed the file since, or ended
            return True
        return opened.position != step.offset


_SAME: Final = {"writev": "write", "pwritev": "write", "pwritev2": "write", "fchmodat2": "fchmodat"}
_CALLS: Final[dict[int, Callable[[Decoder, Notification], Decoded]]] = {
    number: getattr(Decoder, _SAME.get(name, name)) for number, name in NAMES.items()
}
