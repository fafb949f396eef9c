"""Sizes of files: set, reserved, or with ranges zeroed."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from harness.steps.calls.decoded import NOTHING, Decoded, descriptor_in, signed_word
from harness.steps.calls.looking import Looking
from harness.steps.memory import AT_FDCWD
from harness.steps.step import Action, BlindSpot

if TYPE_CHECKING:
    import os

    from harness.steps.kernel import Notification

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_ALLOCATES: Final = {0, _KEEP_SIZE}


class Sizes(Looking):
    """The calls that set how long a file is."""

    def truncate(self, call: Notification) -> Decoded:
        """Set the size of a file by its path."""
        place, status = self._look(call, AT_FDCWD, call.arguments[0])
        return self._resized(call.thread, status if place.is_inside else None, signed_word(call.arguments[1]))

    def ftruncate(self, call: Notification) -> Decoded:
        """Set the size of an open file."""
        descriptor = descriptor_in(call.arguments[0])
        status = self.memory.status(call.thread, descriptor)
        if not self._node(call.thread, status):
            return self._stray(call.thread, descriptor, status)
        return self._resized(call.thread, status, signed_word(call.arguments[1]))

    def _resized(self, thread: int, status: os.stat_result | None, size: int) -> Decoded:
        if status is None or not stat.S_ISREG(status.st_mode) or size < 0 or status.st_size == size:
            return NOTHING
        node = self._node(thread, status)
        step = self._step(Action.TRUNCATE, path=self.folder.path(node), node=node, length=size)
        return Decoded(steps=(step,)) if node else NOTHING

    def fallocate(self, call: Notification) -> Decoded:
        """Reserve, zero or punch a range of an open file; shifting ranges is refused."""
        descriptor, mode, offset, length, *_ = call.arguments
        status = self.memory.status(call.thread, descriptor_in(descriptor))
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
