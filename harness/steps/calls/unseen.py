"""Calls that change nothing, and yet what can be seen: descriptors that lead elsewhere, mappings, rings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.steps import memory
from harness.steps.calls.decoded import LOW_HALF, NOTHING, Decoded, denied, descriptor_in
from harness.steps.calls.looking import Looking
from harness.steps.descriptors import ALL
from harness.steps.filter import PROT_WRITE
from harness.steps.step import BlindSpot

if TYPE_CHECKING:
    from harness.steps.kernel import Notification


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
