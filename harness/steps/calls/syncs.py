"""Flushes: of a file, a folder, a range, a mapping, a file system, everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.steps import memory
from harness.steps.calls.decoded import LOW_HALF, NOTHING, Decoded, descriptor_in
from harness.steps.calls.looking import Looking
from harness.steps.step import Action

if TYPE_CHECKING:
    from harness.steps.kernel import Notification


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
