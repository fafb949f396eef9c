"""Calls that write no bytes: attributes, flushes, descriptors, mappings, rings."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from pytest_chaos.trace.calls.base import LOW_HALF, NOTHING, Decoded, DecoderBase, denied, descriptor_in, one
from pytest_chaos.trace.calls.table import ALWAYS, NAMES, NEVER, any_bit, one_of, system_call
from pytest_chaos.trace.folder import lstat
from pytest_chaos.trace.memory import AT_FDCWD, Failing, Unreadable
from pytest_chaos.trace.step import Action, BlindSpot

if TYPE_CHECKING:
    from pytest_chaos.trace.kernel import Notification

PROT_WRITE: Final = 2
MAP_SHARED: Final = 1
"""Also a bit of MAP_SHARED_VALIDATE (mmap(2))."""
MS_SYNC: Final = 4
"""The only flag of msync(2) that waits for the disk."""
_LOCK: Final = "-lock"
F_SETFL: Final = 4
"""The command of fcntl that may make a file append."""
F_SETLK: Final = 6
F_SETLKW: Final = 7
"""The commands of fcntl that take or release a POSIX lock; the second one waits."""


class AttributeCalls(DecoderBase):
    """Calls that change permissions, or extended attributes, which states do not have."""

    @system_call("chmod", x86_64=90, takes=2, at=(0,))
    @system_call("fchmodat", x86_64=268, aarch64=53)
    @system_call("fchmodat2", x86_64=452, aarch64=452)
    def fchmodat(self, call: Notification) -> Decoded:
        """Change permissions by path."""
        folder, path, mode, *_ = call.arguments
        place, status = self._look(call, folder, path)
        if status is None or not place.is_inside:
            return NOTHING
        return self._changed_mode(self.folder.node(status), status, mode)

    @system_call("fchmod", x86_64=91, aarch64=52)
    def fchmod(self, call: Notification) -> Decoded:
        """Change permissions of an open file."""
        status = self.memory.status(call.thread, descriptor_in(call.arguments[0]))
        return self._changed_mode(self._node(call.thread, status), status, call.arguments[1])

    def _changed_mode(self, node: int, status: os.stat_result, mode: int) -> Decoded:
        if not node or stat.S_IMODE(status.st_mode) == mode & 0o7777:
            return NOTHING
        return one(self._step(Action.CHANGE_MODE, path=self.folder.path(node), node=node, mode=mode & 0o7777))

    @system_call("setxattr", x86_64=188, aarch64=5, at=(0,))
    @system_call("setxattrat", x86_64=463, aarch64=463)
    def setxattrat(self, call: Notification) -> Decoded:
        """Set an extended attribute by path."""
        return self._attributed(self._look(call, *call.arguments[:2])[1])

    @system_call("lsetxattr", x86_64=189, aarch64=6)
    def lsetxattr(self, call: Notification) -> Decoded:
        """Set an extended attribute of a symbolic link itself."""
        return self._attributed(lstat(self._place(call, AT_FDCWD, call.arguments[0]).absolute))

    @system_call("fsetxattr", x86_64=190, aarch64=7)
    def fsetxattr(self, call: Notification) -> Decoded:
        """Set an extended attribute of an open file."""
        return self._attributed(self.memory.status(call.thread, descriptor_in(call.arguments[0])))

    def _attributed(self, status: os.stat_result | None) -> Decoded:
        if status is None or not self.folder.node(status):
            return NOTHING
        # Programs must live with that: tmpfs had no user attributes before Linux 6.6 (xattr(7)).
        text = "an extended attribute was refused, as by a file system that has none"
        return denied("attributes", text, errno.EOPNOTSUPP)


class SyncCalls(DecoderBase):
    """The calls that flush."""

    @system_call("fsync", x86_64=74, aarch64=82)
    def fsync(self, call: Notification) -> Decoded:
        """Flush a file or a folder."""
        return self._synced(call, Action.SYNC)

    @system_call("fdatasync", x86_64=75, aarch64=83)
    def fdatasync(self, call: Notification) -> Decoded:
        """Flush a file's data, and the size it needs."""
        return self._synced(call, Action.SYNC_DATA)

    @system_call("sync_file_range", x86_64=277, aarch64=84)
    def sync_file_range(self, call: Notification) -> Decoded:
        """Start or await writing of a range, which promises nothing (sync_file_range(2))."""
        return self._synced(call, Action.SYNC_RANGE)

    def _synced(self, call: Notification, action: Action) -> Decoded:
        node, _ = self._target(call.thread, call.arguments[0] & LOW_HALF)
        return one(self._step(action, path=self.folder.path(node), node=node)) if node > 0 else NOTHING

    @system_call("sync", x86_64=162, aarch64=81)
    def sync(self, _call: Notification) -> Decoded:
        """Flush everything."""
        return one(self._step(Action.SYNC_ALL))

    @system_call("syncfs", x86_64=306, aarch64=267)
    def syncfs(self, call: Notification) -> Decoded:
        """Flush a file system, if it is the folder's."""
        status = self.memory.status(call.thread, descriptor_in(call.arguments[0]))
        return one(self._step(Action.SYNC_ALL)) if status.st_dev == self.folder.device else NOTHING

    @system_call("msync", x86_64=26, aarch64=227)
    def msync(self, call: Notification) -> Decoded:
        """Flush a mapping, with MS_SYNC; MS_ASYNC starts nothing since Linux 2.6.19 (msync(2))."""
        nodes = self._mapped_nodes(call)
        action = Action.SYNC_DATA if call.arguments[2] & MS_SYNC else Action.SYNC_RANGE
        return Decoded(steps=tuple(self._step(action, path=self.folder.path(node), node=node) for node in nodes))


class OtherCalls(DecoderBase):
    """Calls that change no file, but decide how later calls are decoded."""

    @system_call("close", x86_64=3, aarch64=57, is_close=True)
    def close(self, call: Notification) -> Decoded:
        """Close a descriptor. It is free also when close fails (close(2))."""
        self.descriptors.change(call.thread, call.arguments[0] & LOW_HALF)
        return NOTHING

    @system_call("dup2", x86_64=33, is_close=True)
    @system_call("dup3", x86_64=292, aarch64=24, is_close=True)
    def dup3(self, call: Notification) -> Decoded:
        """Make a descriptor lead where another one does."""
        self.descriptors.change(call.thread, call.arguments[1] & LOW_HALF)
        return NOTHING

    @system_call("close_range", x86_64=436, aarch64=436, is_close=True)
    def close_range(self, call: Notification) -> Decoded:
        """Close many descriptors, or mark them for the next exec."""
        self.descriptors.change(call.thread, self.descriptors.ALL)
        return NOTHING

    @system_call("execve", x86_64=59, aarch64=221)
    @system_call("execveat", x86_64=322, aarch64=281)
    def execve(self, call: Notification) -> Decoded:
        """Run another program: its memory is new, and descriptors with FD_CLOEXEC are closed."""
        with contextlib.suppress(Failing, Unreadable):
            self._runs(call.thread, self._words(call))
        self.memory.close()  # an open /proc/PID/mem leads to the memory from before the exec for ever
        self.descriptors.change(call.thread, self.descriptors.ALL)
        return NOTHING

    def _words(self, call: Notification) -> list[str]:
        """Return the path that a call executes, and the first words behind it."""
        path, argv = call.arguments[1:3] if NAMES[call.number] == "execveat" else call.arguments[:2]
        words = [self.memory.text(call.thread, path)]
        for place in range(1, 4):
            if not argv or not (word := self.memory.number(call.thread, argv + 8 * place)):
                break
            words.append(self.memory.text(call.thread, word))
        return words

    @system_call("mmap", x86_64=9, aarch64=222, when=any_bit(3, MAP_SHARED))
    def mmap(self, call: Notification) -> Decoded:
        """Map a file, shared: what is stored to the mapping is found by comparing."""
        descriptor = descriptor_in(call.arguments[4])
        node = self._node(call.thread, self.memory.status(call.thread, descriptor)) if descriptor >= 0 else 0
        if not node:
            return NOTHING
        self._has_mappings = True  # until then no mprotect needs a look at /proc/PID/maps
        is_written = call.arguments[2] & PROT_WRITE
        return self._mapped(node, f"/proc/{call.thread}/fd/{descriptor}") if is_written else NOTHING

    @system_call("mprotect", x86_64=10, aarch64=226, when=any_bit(2, PROT_WRITE))
    @system_call("pkey_mprotect", x86_64=329, aarch64=288, when=any_bit(2, PROT_WRITE))
    def mprotect(self, call: Notification) -> Decoded:
        """Make memory writable: that of a shared file mapping, too."""
        nodes = self._mapped_nodes(call) if self._has_mappings else []
        decoded = [self._mapped(node, os.path.join(self.folder.root, self.folder.path(node))) for node in nodes]
        return next((each for each in decoded if each.blind_spot is not None), NOTHING)

    def _mapped(self, node: int, path: str) -> Decoded:
        """Begin to compare a file, which ``path`` leads to, before anything is stored to it."""
        name = self.folder.path(node)
        if _is_lock_of_lmdb(self.folder.root, name):
            self.folder.files = self.folder.files.with_volatile(name)
        if self.folder.files.is_volatile(name) or not self.mapped.add(node, path):
            return Decoded(blind_spot=BlindSpot(what="shared-mapping", text=name))
        self._keep = self.mapped.keep
        return NOTHING

    @system_call("fcntl", x86_64=72, aarch64=25, when=one_of(1, F_SETFL), touches=one_of(1, F_SETFL, F_SETLK, F_SETLKW))
    def fcntl(self, call: Notification) -> Decoded:
        """Change the flags of an open file: from now on they are read with every write."""
        if call.arguments[1] & LOW_HALF == F_SETFL:
            self._looks_at_flags = True  # of all files: the flags belong to the open file, which others may share
        return NOTHING

    @system_call("exit_group", x86_64=231, aarch64=94, when=NEVER, touches=ALWAYS)
    def exit_group(self, _call: Notification) -> Decoded:
        """End the process, which closes its files."""
        return NOTHING

    @system_call("read", x86_64=0, aarch64=63, when=NEVER, touches=ALWAYS)
    def read(self, _call: Notification) -> Decoded:
        """Read from the position, which changes no file."""
        return NOTHING

    @system_call("alarm", x86_64=37)
    @system_call("setitimer", x86_64=38, aarch64=103)
    @system_call("timer_settime", x86_64=223, aarch64=110)
    def timer_settime(self, _call: Notification) -> Decoded:
        """Start a timer that sends a signal, which ends any wait."""
        self.has_timer = True
        return NOTHING

    @system_call("io_uring_setup", x86_64=425, aarch64=425)
    def io_uring_setup(self, _call: Notification) -> Decoded:
        """Refuse: requests in a ring are no system calls, so no filter sees them."""
        return denied("io_uring", "io_uring was refused, whose writes cannot be seen; programs then use plain calls")

    @system_call("io_setup", x86_64=206, aarch64=0)
    def io_setup(self, _call: Notification) -> Decoded:
        """Refuse: requests of io_submit(2) are done later, in an order that is not observable."""
        return denied("aio", "asynchronous input and output (io_setup) was refused, whose writes cannot be seen")


def _is_lock_of_lmdb(root: str, name: str) -> bool:
    """Whether a mapped file is the lock beside a database in one file (MDB_NOSUBDIR of LMDB)."""
    return name.endswith(_LOCK) and os.path.isfile(os.path.join(root, name.removesuffix(_LOCK)))
