"""Attributes of files: permissions, which states are built with, and extended ones, which they are not.

Flushes: of a file, a folder, a range, a mapping, a file system, everything.

Calls that change nothing, and yet what can be seen: descriptors that lead elsewhere, mappings,
rings.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.caller import LOW_HALF, NOTHING, Decoded, Looking, denied, descriptor_in
from pytest_chaos.trace.folder import Place, lstat
from pytest_chaos.trace.kernel import PROT_WRITE
from pytest_chaos.trace.memory import ALL, AT_FDCWD
from pytest_chaos.trace.step import Action, BlindSpot

if TYPE_CHECKING:
    import os

    from pytest_chaos.trace.kernel import Notification


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


class Syncs(Looking):
    """The calls that flush."""

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
        thread, descriptor = call.thread, call.arguments[0] & LOW_HALF
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
        status = self.memory.status(call.thread, descriptor_in(call.arguments[0]))
        return Decoded(steps=(self._step(Action.SYNC_ALL),)) if status.st_dev == self.folder.device else NOTHING

    def msync(self, call: Notification) -> Decoded:
        """Flush a mapping."""
        found = memory.mapped_at(call.thread, call.arguments[0])
        node = self.folder.node_of(found) if found is not None else 0
        step = self._step(Action.SYNC_DATA, path=self.folder.path(node), node=node)
        return Decoded(steps=(step,)) if node else NOTHING


class Unseen(Looking):
    """The calls after which something else has to be looked at, and those after which nothing could be."""

    def close(self, call: Notification) -> Decoded:
        """Close a file."""
        self.descriptors.change(call.thread, call.arguments[0] & LOW_HALF)
        return NOTHING

    def dup2(self, call: Notification) -> Decoded:
        """Have a descriptor lead where another one does."""
        self.descriptors.change(call.thread, call.arguments[1] & LOW_HALF)
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

    def mmap(self, call: Notification) -> Decoded:
        """Map a file, shared: what is written through it is not seen."""
        descriptor = descriptor_in(call.arguments[4])
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
        return denied("io_uring", "io_uring was refused, whose writes cannot be seen; programs then use plain calls")

    def io_setup(self, _call: Notification) -> Decoded:
        """Refuse: what is submitted asynchronously cannot be seen either."""
        return denied("aio", "asynchronous input and output (io_setup) was refused, whose writes cannot be seen")
