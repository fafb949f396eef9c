"""Names and sizes: files, folders and links that are made, removed, moved or resized.

A call that is going to fail makes no step, so each decoder checks the kernel's own conditions
first: there is a parent folder, nothing (or something) at the path, a folder to be removed is
empty.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import TYPE_CHECKING, Final

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.base import NOTHING, Decoded, DecoderBase, denied, descriptor_in, one, signed_word
from pytest_chaos.trace.calls.table import ALWAYS, any_bit, system_call
from pytest_chaos.trace.folder import ResolvedPath, lstat
from pytest_chaos.trace.memory import AT_FDCWD
from pytest_chaos.trace.step import NO_CONTENT, Action

if TYPE_CHECKING:
    from pytest_chaos.trace.kernel import Notification

# Modes of fallocate(2).
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10

TMPFILE_BIT: Final = 0o20000000
"""The bit that tells O_TMPFILE from O_DIRECTORY, which it contains."""
OPEN_FLAGS: Final = os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_SYNC | os.O_DSYNC | TMPFILE_BIT
"""The flags of open that make or empty a file, or change later writes. No other open is trapped."""
_CREAT: Final = os.O_CREAT | os.O_WRONLY | os.O_TRUNC

_AT_REMOVEDIR: Final = 0x200
_AT_SYMLINK_FOLLOW: Final = 0x400
_AT_EMPTY_PATH: Final = 0x1000
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2

_OWN_DESCRIPTOR: Final = re.compile(r"/proc/(?:self|thread-self)/fd/(\d{1,9})", re.ASCII)
_SOCKET_PATH_AT: Final = 2
_SOCKET_ADDRESS_BYTES_MAX: Final = 110
"""The size of ``struct sockaddr_un`` (unix(7))."""
_MOVED_IN_BYTES_MAX: Final = 1 << 30


class SizeCalls(DecoderBase):
    """The calls that set the size of a file, reserve room in it, or make a part of it zero."""

    @system_call("truncate", x86_64=76, aarch64=45)
    def truncate(self, call: Notification) -> Decoded:
        """Set the size of a file by its path."""
        place, status = self._look(call, AT_FDCWD, call.arguments[0])
        return self._resized(call.thread, status if place.is_inside else None, signed_word(call.arguments[1]))

    @system_call("ftruncate", x86_64=77, aarch64=46)
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
        return (
            one(self._step(Action.TRUNCATE, path=self.folder.path(node), node=node, length=size)) if node else NOTHING
        )

    @system_call("fallocate", x86_64=285, aarch64=47)
    def fallocate(self, call: Notification) -> Decoded:
        """Reserve, zero or punch a range of an open file; shifting ranges is refused."""
        descriptor, mode, offset, length, *_ = call.arguments
        status = self.memory.status(call.thread, descriptor_in(descriptor))
        node = self._node(call.thread, status)
        if not node or not length:
            return NOTHING
        if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE):
            text = f"fallocate with mode {mode:#x}, which shifts a file's ranges, was refused"
            return denied("fallocate", text, errno.EOPNOTSUPP)
        grows = not mode & _KEEP_SIZE and offset + length > status.st_size
        actions = [Action.ALLOCATE] if grows else []
        if mode & (_PUNCH_HOLE | _ZERO_RANGE):
            actions.append(Action.ZERO)
        path = self.folder.path(node)
        steps = [self._step(action, path=path, node=node, offset=offset, length=length) for action in actions]
        return Decoded(steps=tuple(steps))


class CreateCalls(SizeCalls):
    """The calls that make something, or give it one more name. An open may also empty a file."""

    @system_call("open", x86_64=2, when=any_bit(1, OPEN_FLAGS), touches=ALWAYS, takes=3, at=(0,))
    @system_call("openat", x86_64=257, aarch64=56, when=any_bit(2, OPEN_FLAGS), touches=ALWAYS)
    def openat(self, call: Notification) -> Decoded:
        """Open with flags that make or empty a file, or change what writes do."""
        return self._opened(call, *call.arguments[:4])

    @system_call("creat", x86_64=85)
    def creat(self, call: Notification) -> Decoded:
        """Make a file, or empty it."""
        return self._opened(call, AT_FDCWD, call.arguments[0], _CREAT, call.arguments[1])

    @system_call("openat2", x86_64=437, aarch64=437)
    def openat2(self, call: Notification) -> Decoded:
        """Open with flags and mode in memory (``struct open_how``), where no filter sees them."""
        folder, path, how, *_ = call.arguments
        flags, mode = (self.memory.number(call.thread, how + 8 * index) for index in range(2))
        return self._opened(call, folder, path, flags, mode)

    @system_call("open_by_handle_at", x86_64=304, aarch64=265, when=any_bit(2, OPEN_FLAGS))
    def open_by_handle_at(self, _call: Notification) -> Decoded:
        """Fail with EPERM, as for non-root callers: a handle has no path that we could follow."""
        text = "open_by_handle_at with flags that change a file was refused: what has no path cannot be told"
        return denied("open-by-handle", text, errno.EPERM)

    def _opened(self, call: Notification, folder: int, path: int, flags: int, mode: int) -> Decoded:
        place, status = self._look(call, folder, path)
        if not place.is_inside:
            if status is None:
                return Decoded(stray=place.absolute) if flags & os.O_CREAT else NOTHING
            empties = stat.S_ISREG(status.st_mode) and bool(flags & os.O_TRUNC)
            return Decoded(stray=place.absolute) if empties and not self._is_ours(status) else NOTHING
        if flags & (os.O_DSYNC | os.O_APPEND):  # O_SYNC contains O_DSYNC
            self._looks_at_flags = True
        mode &= ~self._umask(call.thread) & 0o7777
        if flags & TMPFILE_BIT:
            # Its path is a folder, so nothing can be bound to it: see ``_node``.
            node = self.folder.reserve("")
            self._unnamed.append(node)
            self.folder.undo_with(lambda: self._unnamed.remove(node))
            return one(self._step(Action.CREATE_UNNAMED, node=node, mode=mode))
        if status is not None:
            if not flags & os.O_TRUNC or (flags & os.O_EXCL and flags & os.O_CREAT):
                return NOTHING
            return self._resized(call.thread, status, 0)
        return self._coming(call, Action.CREATE, place, mode=mode) if flags & os.O_CREAT else NOTHING

    @system_call("umask", x86_64=95, aarch64=166)
    def umask(self, _call: Notification) -> Decoded:
        """Change the umask: from now on every process may have another one."""
        self._umask_at_first = None
        return NOTHING

    def _umask(self, thread: int) -> int:
        # /proc/PID/status is dear to read, and few programs ever change their umask.
        return memory.umask_of(thread) if self._umask_at_first is None else self._umask_at_first

    def _made(
        self, call: Notification, action: Action, place: ResolvedPath, *, mode: int = 0, target: str = ""
    ) -> Decoded:
        """Decode a call that makes something at a path where nothing may be."""
        if lstat(place.absolute):
            return NOTHING
        if not place.is_inside:
            return Decoded(stray=place.absolute)
        return self._coming(call, action, place, mode=mode, target=target)

    def _coming(
        self, call: Notification, action: Action, place: ResolvedPath, *, mode: int, target: str = ""
    ) -> Decoded:
        """Decode a call that makes something where nothing is."""
        if lstat(os.path.dirname(place.absolute)) is None:
            return NOTHING
        node = self.folder.reserve(place.path)
        self._reserve(call.thread, node, place.absolute)
        return one(self._step(action, path=place.path, node=node, mode=mode, target=target))

    @system_call("mkdir", x86_64=83, takes=2, at=(0,))
    @system_call("mkdirat", x86_64=258, aarch64=34)
    def mkdirat(self, call: Notification) -> Decoded:
        """Make a folder."""
        folder, path, mode, *_ = call.arguments
        mode &= ~self._umask(call.thread) & 0o7777
        return self._made(call, Action.MAKE_FOLDER, self._place(call, folder, path), mode=mode)

    @system_call("mknod", x86_64=133, takes=3, at=(0,))
    @system_call("mknodat", x86_64=259, aarch64=33)
    def mknodat(self, call: Notification) -> Decoded:
        """Make a pipe, a socket, a device or an empty file."""
        folder, path, mode, *_ = call.arguments
        is_file = stat.S_IFMT(mode) in {0, stat.S_IFREG}
        action = Action.CREATE if is_file else Action.MAKE_NODE
        bits = mode & ~self._umask(call.thread) & 0o7777
        return self._made(call, action, self._place(call, folder, path), mode=bits)

    @system_call("bind", x86_64=49, aarch64=200)
    def bind(self, call: Notification) -> Decoded:
        """Name a socket. A pathname socket stays in its folder when its process dies (unix(7))."""
        _, address, length, *_ = call.arguments
        if not _SOCKET_PATH_AT < length <= _SOCKET_ADDRESS_BYTES_MAX:
            return NOTHING
        given = self.memory.read(call.thread, address, length)
        path = given[_SOCKET_PATH_AT:].partition(b"\0")[0]
        if int.from_bytes(given[:_SOCKET_PATH_AT], "little") != socket.AF_UNIX or not path:
            return NOTHING  # another family, or an abstract name, which begins with NUL
        place = self.folder.place(self._absolute(call.thread, AT_FDCWD, os.fsdecode(path)))
        mode = 0o777 & ~self._umask(call.thread)
        return self._made(call, Action.MAKE_NODE, place, mode=mode)

    @system_call("symlink", x86_64=88, takes=2, at=(1,))
    @system_call("symlinkat", x86_64=266, aarch64=36)
    def symlinkat(self, call: Notification) -> Decoded:
        """Make a symbolic link."""
        text, folder, path, *_ = call.arguments
        target = self.memory.text(call.thread, text)
        return self._made(call, Action.SYMLINK, self._place(call, folder, path), target=target)

    @system_call("link", x86_64=86, takes=2, at=(0, 2))
    @system_call("linkat", x86_64=265, aarch64=37)
    def linkat(self, call: Notification) -> Decoded:
        """Give a file, perhaps one without a name, another name."""
        folder, path, to_folder, to, flags, *_ = call.arguments
        place = self._place(call, to_folder, to)
        status = self._linked_object(call, folder, path, flags)
        if status is None or lstat(place.absolute) is not None:
            return NOTHING
        if not place.is_inside:
            return Decoded(stray=place.absolute)
        node = self._node(call.thread, status)
        if not node:
            text = f"a hard link to a file outside of the folder was refused: {place.path}"
            return denied("link-from-outside", text, errno.EXDEV)
        # A link counts as a name before it is done; ``take_back`` undoes it.
        self.folder.gain_name(node)
        if not self.folder.path(node):
            self.folder.move(node, place.path)
        return one(self._step(Action.LINK, path=place.path, node=node))

    def _linked_object(self, call: Notification, folder: int, path: int, flags: int) -> os.stat_result | None:
        name = self.memory.text(call.thread, path)
        # Two ways to name an O_TMPFILE file (open(2)): its descriptor with AT_EMPTY_PATH, or the
        # link /proc/self/fd/N with AT_SYMLINK_FOLLOW.
        if flags & _AT_EMPTY_PATH and not name:
            return self.memory.status(call.thread, descriptor_in(folder))
        absolute = self._absolute(call.thread, folder, name)
        own = _OWN_DESCRIPTOR.fullmatch(name)
        if flags & _AT_SYMLINK_FOLLOW and own is not None:
            return self.memory.status(call.thread, int(own[1]))
        try:
            return os.stat(absolute, follow_symlinks=bool(flags & _AT_SYMLINK_FOLLOW))
        except OSError:
            return None


class NameCalls(DecoderBase):
    """The calls that remove a name, or move the object that has it."""

    @system_call("rmdir", x86_64=84)
    def rmdir(self, call: Notification) -> Decoded:
        """Remove a folder."""
        return self._removed(self._place(call, AT_FDCWD, call.arguments[0]), is_folder=True)

    @system_call("unlink", x86_64=87, takes=1, at=(0,))
    @system_call("unlinkat", x86_64=263, aarch64=35)
    def unlinkat(self, call: Notification) -> Decoded:
        """Remove a name or a folder."""
        folder, path, flags, *_ = call.arguments
        return self._removed(self._place(call, folder, path), is_folder=bool(flags & _AT_REMOVEDIR))

    def _removed(self, place: ResolvedPath, *, is_folder: bool) -> Decoded:
        status = lstat(place.absolute)
        if status is None or stat.S_ISDIR(status.st_mode) != is_folder:
            return NOTHING
        if not place.is_inside:
            return Decoded(stray=place.absolute)
        node = self.folder.node(status)
        if not is_folder:
            self.folder.lose_name(node, status)
            return one(self._step(Action.UNLINK, path=place.path, node=node))
        if not place.path or _has_entries(place.absolute):
            return NOTHING
        return one(self._step(Action.REMOVE_FOLDER, path=place.path, node=node))

    @system_call("rename", x86_64=82, takes=2, at=(0, 2))
    @system_call("renameat", x86_64=264, aarch64=38, takes=4)
    @system_call("renameat2", x86_64=316, aarch64=276)
    def renameat2(self, call: Notification) -> Decoded:
        """Move a file or a folder, or exchange two."""
        folder, path, to_folder, to, flags, *_ = call.arguments
        source, target = self._place(call, folder, path), self._place(call, to_folder, to)
        moved, there = lstat(source.absolute), lstat(target.absolute)
        if moved is None or not (source.is_inside or target.is_inside):
            return Decoded(stray=target.absolute) if moved is not None else NOTHING
        # Two names of one file: rename(2) does nothing, and succeeds.
        if there is not None and (flags & _RENAME_NOREPLACE or os.path.samestat(moved, there)):
            return NOTHING
        if target.absolute.startswith(f"{source.absolute}/"):  # a folder into itself: EINVAL
            return NOTHING
        if flags & _RENAME_EXCHANGE:
            return self._exchanged(source, target, moved, there)
        if there is not None and not _makes_way(target.absolute, there, moved):
            return NOTHING
        if lstat(os.path.dirname(target.absolute)) is None:
            return NOTHING
        if not source.is_inside:
            return self._moved_in(source, target, moved)
        node = self.folder.node(moved)
        if there is not None:
            self.folder.lose_name(self.folder.node(there), there)
        to_path = target.path if target.is_inside else ""
        if to_path:
            self.folder.move(node, to_path)
        step = self._step(Action.RENAME, path=source.path, target=to_path, node=node)
        return one(step) if to_path else Decoded(steps=(step,), stray=target.absolute)

    def _exchanged(
        self, source: ResolvedPath, target: ResolvedPath, moved: os.stat_result, there: os.stat_result | None
    ) -> Decoded:
        if there is None or source.absolute.startswith(f"{target.absolute}/"):
            return NOTHING
        if not (source.is_inside and target.is_inside):
            text = f"an exchange with {target.absolute}, outside of the folder, was refused"
            return denied("exchange", text, errno.EINVAL)
        first, second = self.folder.node(moved), self.folder.node(there)
        self.folder.move(first, target.path)
        self.folder.move(second, source.path)
        return one(self._step(Action.EXCHANGE, path=source.path, target=target.path, node=first))

    def _moved_in(self, source: ResolvedPath, target: ResolvedPath, moved: os.stat_result) -> Decoded:
        """Decode the rename of a file from outside into the folder: a step with all its bytes."""
        if not stat.S_ISREG(moved.st_mode) or moved.st_size > _MOVED_IN_BYTES_MAX:
            text = f"{source.absolute} was not let into the folder: only files up to a gigabyte are moved in"
            return denied("moved-in", text, errno.EXDEV)  # a program then copies, as between file systems
        content = NO_CONTENT
        if self._keep is not None:
            with open(source.absolute, "rb") as file:
                content = self._keep(file.read())
        node = self.folder.take_in(moved, target.path)
        mode = stat.S_IMODE(moved.st_mode)
        length = moved.st_size
        step = self._step(Action.RENAME, target=target.path, node=node, length=length, content=content, mode=mode)
        return Decoded(steps=(step,), stray=source.absolute)


def _makes_way(path: str, there: os.stat_result, moved: os.stat_result) -> bool:
    """Whether a rename may replace the target: a file a file, a folder an empty folder."""
    if not stat.S_ISDIR(there.st_mode):
        return not stat.S_ISDIR(moved.st_mode)
    return stat.S_ISDIR(moved.st_mode) and not _has_entries(path)


def _has_entries(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is not None
