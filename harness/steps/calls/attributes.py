"""Attributes of files: permissions, which states are built with, and extended ones, which they are not."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from harness.steps.calls.decoded import NOTHING, Decoded, descriptor_in
from harness.steps.calls.looking import Looking
from harness.steps.folder import Place, lstat
from harness.steps.memory import AT_FDCWD
from harness.steps.step import Action, BlindSpot

if TYPE_CHECKING:
    import os

    from harness.steps.kernel import Notification


class Attributes(Looking):
    """The calls that change what is kept beside a file's contents."""

    def chmod(self, call: Notification) -> Decoded:
        """Change permissions by path."""
        return self._chmod(*self._look(call, AT_FDCWD, call.arguments[0]), call.arguments[1])

    def fchmodat(self, call: Notification) -> Decoded:
        """Change permissions relative to a folder."""
        folder, path, mode, *_ = call.arguments
        return self._chmod(*self._look(call, folder, path), mode)

    def fchmod(self, call: Notification) -> Decoded:
        """Change permissions of an open file."""
        status = self.memory.status(call.thread, descriptor_in(call.arguments[0]))
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

    def setxattr(self, call: Notification) -> Decoded:
        """Set an extended attribute by path."""
        return self._attributed(self._look(call, AT_FDCWD, call.arguments[0])[1])

    def lsetxattr(self, call: Notification) -> Decoded:
        """Set one of a symbolic link itself."""
        return self._attributed(lstat(self._place(call, AT_FDCWD, call.arguments[0]).absolute))

    def fsetxattr(self, call: Notification) -> Decoded:
        """Set one of an open file."""
        return self._attributed(self.memory.status(call.thread, descriptor_in(call.arguments[0])))

    def setxattrat(self, call: Notification) -> Decoded:
        """Set one relative to a folder."""
        return self._attributed(self._look(call, *call.arguments[:2])[1])

    def _attributed(self, status: os.stat_result | None) -> Decoded:
        """Refuse, as a file system does that keeps no attributes: states are built without them."""
        if status is None or not self.folder.node(status):
            return NOTHING
        text = "an extended attribute was refused, as by a file system that has none"
        return Decoded(error=errno.EOPNOTSUPP, blind_spot=BlindSpot(what="attributes", text=text, is_denied=True))
