"""From notification to steps: what a trapped call will do to the watched folder, before it is done.

A call that is going to fail, or to change nothing, is not a step; so each is checked as the kernel
will check it, on the folder as it is now. An object that a call makes has no inode yet: its node is
reserved, and bound when the caller makes its next call, by when this one is over. So the steps of
one thread are exact; between threads and processes the order is that of the calls' beginnings.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Final

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.base import LOW_HALF, NOTHING, Decoded, denied, descriptor_in
from pytest_chaos.trace.calls.copies import CopyCalls
from pytest_chaos.trace.calls.metadata import AttributeCalls, OtherCalls, SyncCalls
from pytest_chaos.trace.calls.paths import CreateCalls, NameCalls
from pytest_chaos.trace.calls.table import NUMBER_MAX, TABLE
from pytest_chaos.trace.folder import lstat
from pytest_chaos.trace.kernel import AUDIT_ARCH, MACHINE
from pytest_chaos.trace.memory import Failing, Unreadable
from pytest_chaos.trace.step import Action, BlindSpot, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.trace.kernel import Notification

_OUR_MACHINE: Final = AUDIT_ARCH.get(MACHINE, 0)
_TURN_TIMEOUT_S: Final = 0.05
_MAKES: Final = frozenset({Action.CREATE, Action.MAKE_FOLDER, Action.MAKE_NODE, Action.SYMLINK, Action.LINK})
_TAKES_AWAY: Final = frozenset({Action.UNLINK, Action.REMOVE_FOLDER, Action.RENAME})


class Decoder(CopyCalls, CreateCalls, NameCalls, AttributeCalls, SyncCalls, OtherCalls):
    """Decodes the calls of one run, in the order in which they are trapped."""

    def decode(self, call: Notification, number: int) -> Decoded:
        """Return the meaning of a call; its first step gets this number."""
        if call.thread != self._turn:
            self._take_turns(call.thread)
        # A thread makes one call at a time: its last one is over, and what it made has an inode.
        if call.thread in self._unbound:
            self._bind(call.thread)
        self.descriptors.has_changed(call.thread)
        if call.machine != _OUR_MACHINE or call.number > NUMBER_MAX:
            return denied("unknown-call", f"call {call.number} of machine {call.machine:#x} is not known here")
        self._number = number
        self._call = call
        self.folder.begin()
        try:
            self._last = decoded = _DECODERS[call.number](self, call)
        except Failing:
            self._last = decoded = NOTHING
        except Unreadable as error:  # never silent: a trace without its steps would look complete
            self._last = decoded = Decoded(blind_spot=BlindSpot(what="unreadable-process", text=str(error)))
        if self.mapped.files:
            self.mapped.follow(call.thread, decoded.steps)
        return decoded

    def says_no_order(self, call: Notification) -> bool:
        """Whether a call changes nothing that a crash could leave, so that its order tells nothing.

        That is a close, and a write to a socket, a pipe, a terminal or the program's output.
        """
        if call.number in _NO_ORDER:
            return True
        if not self.is_write(call):
            return False
        try:
            status = os.stat(f"/proc/{call.thread}/fd/{call.arguments[0] & LOW_HALF}")
        except OSError:
            return False
        return not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) == self._output

    def stores(self, call: Notification | None, number: int) -> Decoded:
        """Return what was stored through memory before a call, or before the end of the run.

        Calls that say nothing about an order are left out: two equal runs need not make the same
        ones, and closes are not always trapped.
        """
        if call is not None and call.number in _NO_ORDER:
            return NOTHING
        self._call = call or self._call
        assert self._call is not None  # noqa: S101 - a call has mapped the file
        process, thread = self._ordinals.get(self._call.thread) or self._new_ordinals(self._call.thread)
        steps = [
            Step(
                number=number + place,
                action=Action.WRITE,
                call="mmap",
                path=self.folder.path(stored.node),
                node=stored.node,
                offset=stored.offset,
                length=len(stored.content),
                content=self.mapped.store(stored.content),
                process=process,
                thread=thread,
                look=self.mapped.looks,
            )
            for place, stored in enumerate(self.mapped.look(call.thread if call is not None else 0))
        ]
        dropped = next((node for node in list(self.mapped.files) if self.mapped.drop_excess(node)), 0)
        spot = BlindSpot(what="shared-mapping", text=self.folder.path(dropped)) if dropped else None
        return Decoded(steps=tuple(steps), blind_spot=spot)

    def take_back(self) -> None:
        """Undo what decoding the last call has noted: the call will not be done."""
        assert self._call is not None  # noqa: S101 - something was decoded
        self._last = NOTHING
        self.folder.take_back()
        self.mapped.take_back()
        self._unbound.pop(self._call.thread, None)

    def finish(self) -> None:
        """Bind what was made last; all callers are gone."""
        for thread in list(self._unbound):
            self._bind(thread)
        self.memory.close()
        self.mapped.close()

    def _take_turns(self, thread: int) -> None:
        """Wait, for a bounded time, until the last call, another thread's, has taken effect.

        An append's offset depends on it. SECCOMP_USER_NOTIF_FLAG_CONTINUE lets a call begin, and
        nothing tells when it is over; it may also fail, and then its effect never comes.
        """
        self._turn = thread
        if self._last.steps:
            # Our own processor time is the bound: a machine that is busy does not shorten the look.
            ends_s = time.thread_time() + _TURN_TIMEOUT_S
            while not self._is_done(self._last.steps[0]) and time.thread_time() < ends_s:
                os.sched_yield()
        for other in list(self._unbound):  # before another call moves or removes the new object
            self._bind(other)

    def _is_done(self, step: Step) -> bool:
        """Whether the last call, which made this step, has had the effect that others need."""
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
        if not self.is_write(call) or self.is_positioned(call):
            return True
        try:
            opened = memory.open_file(call.thread, descriptor_in(call.arguments[0]))
            if opened.flags & os.O_APPEND:
                status = os.stat(f"/proc/{call.thread}/fd/{descriptor_in(call.arguments[0])}")
                return status.st_size >= step.offset + step.length
        except (OSError, Failing, Unreadable):  # it has closed the file since, or ended
            return True
        return opened.position != step.offset


_DECODERS: Final[dict[int, Callable[[Decoder, Notification], Decoded]]] = {
    call.numbers[MACHINE]: call.decode for call in TABLE if MACHINE in call.numbers
}
_NO_ORDER: Final = frozenset(
    call.numbers[MACHINE]
    for call in TABLE
    if MACHINE in call.numbers and (call.is_close or call.name in {"mprotect", "pkey_mprotect"})
)
