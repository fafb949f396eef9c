"""Sizes of files: set, reserved, or with ranges zeroed.

What comes to be at a path: files that are opened, folders, pipes, sockets, links.

Names that go, or lead to something else: removed, moved, exchanged.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import TYPE_CHECKING, Final

from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.caller import NOTHING, Decoded, Looking, descriptor_in, signed_word
from pytest_chaos.trace.folder import Place, lstat
from pytest_chaos.trace.kernel import TMPFILE_BIT
from pytest_chaos.trace.memory import AT_FDCWD
from pytest_chaos.trace.step import NO_CONTENT, Action, BlindSpot

if TYPE_CHECKING:
    from pytest_chaos.trace.kernel import Notification

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


_AT_SYMLINK_FOLLOW: Final = 0x400
_AT_EMPTY_PATH: Final = 0x1000
_NUMBER_OF_CREATE: Final = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
_OWN_DESCRIPTOR: Final = re.compile(r"/proc/(?:self|thread-self)/fd/(\d{1,9})", re.ASCII)
_SOCKET_PATH_AT: Final = 2
_SOCKET_ADDRESS_BYTES_MAX: Final = 110


class Making(Sizes):
    """The calls that make something, or give it one more name; to open may also empty a file."""

    def open(self, call: Notification) -> Decoded:
        """Open by path, with flags that make, empty or specially open a file."""
        return self._opened(call, AT_FDCWD, *call.arguments[:3])

    def creat(self, call: Notification) -> Decoded:
        """Make a file, or empty it."""
        return self._opened(call, AT_FDCWD, call.arguments[0], _NUMBER_OF_CREATE, call.arguments[1])

    def openat(self, call: Notification) -> Decoded:
        """Open relative to a folder."""
        return self._opened(call, *call.arguments[:4])

    def openat2(self, call: Notification) -> Decoded:
        """Open relative to a folder, with flags and mode in memory."""
        folder, path, how, *_ = call.arguments
        flags, mode = (self.memory.number(call.thread, how + 8 * index) for index in range(2))
        return self._opened(call, folder, path, flags, mode)

    def open_by_handle_at(self, _call: Notification) -> Decoded:
        """Refuse to make, empty or specially open a file that has no path here, as who is not root is refused."""
        text = "open_by_handle_at with flags that change a file was refused: what has no path cannot be told"
        return Decoded(error=errno.EPERM, blind_spot=BlindSpot(what="open-by-handle", text=text, is_denied=True))

    def _opened(self, call: Notification, folder: int, path: int, flags: int, mode: int) -> Decoded:
        place, status = self._look(call, folder, path)
        if not place.is_inside:
            makes = status is None and bool(flags & os.O_CREAT)
            empties = status is not None and stat.S_ISREG(status.st_mode) and bool(flags & os.O_TRUNC)
            is_own = status is not None and (status.st_dev, status.st_ino) in self._own
            return Decoded(stray=place.absolute) if (makes or empties) and not is_own else NOTHING
        if flags & (os.O_DSYNC | os.O_APPEND):
            self._looks_at_flags = True
        mode &= ~self._umask(call.thread) & 0o7777
        if flags & TMPFILE_BIT:
            node = self.folder.reserve("")
            self._unnamed.append(node)
            self.folder.undo_with(lambda: self._unnamed.remove(node))
            return Decoded(steps=(self._step(Action.CREATE_UNNAMED, node=node, mode=mode),))
        if status is not None:
            if not flags & os.O_TRUNC or (flags & os.O_EXCL and flags & os.O_CREAT):
                return NOTHING
            return self._resized(call.thread, status, 0)
        return self._coming(call, Action.CREATE, place, mode=mode) if flags & os.O_CREAT else NOTHING

    def umask(self, _call: Notification) -> Decoded:
        """Change what new files may not be: from now on every process may have another one."""
        self._umask_at_first = None
        return NOTHING

    def _umask(self, thread: int) -> int:
        return memory.umask_of(thread) if self._umask_at_first is None else self._umask_at_first

    def _made(self, call: Notification, action: Action, place: Place, *, mode: int = 0, target: str = "") -> Decoded:
        """Return the step of something that comes to be at a path, unless it cannot."""
        if not place.is_inside:
            return Decoded(stray=place.absolute)
        return NOTHING if lstat(place.absolute) else self._coming(call, action, place, mode=mode, target=target)

    def _coming(self, call: Notification, action: Action, place: Place, *, mode: int, target: str = "") -> Decoded:
        """Return the step of something that comes to be where nothing is, if there is a folder for it."""
        if lstat(os.path.dirname(place.absolute)) is None:
            return NOTHING
        node = self.folder.reserve(place.path)
        self._await(call.thread, node, place.absolute)
        return Decoded(steps=(self._step(action, path=place.path, node=node, mode=mode, target=target),))

    def mkdir(self, call: Notification) -> Decoded:
        """Make a folder."""
        return self._folder(call, AT_FDCWD, *call.arguments[:2])

    def mkdirat(self, call: Notification) -> Decoded:
        """Make a folder relative to another."""
        return self._folder(call, *call.arguments[:3])

    def _folder(self, call: Notification, folder: int, path: int, mode: int) -> Decoded:
        mode &= ~self._umask(call.thread) & 0o7777
        return self._made(call, Action.MAKE_FOLDER, self._place(call, folder, path), mode=mode)

    def mknod(self, call: Notification) -> Decoded:
        """Make a pipe, a socket, a device or an empty file."""
        return self._special(call, AT_FDCWD, *call.arguments[:2])

    def mknodat(self, call: Notification) -> Decoded:
        """Make one relative to a folder."""
        return self._special(call, *call.arguments[:3])

    def _special(self, call: Notification, folder: int, path: int, mode: int) -> Decoded:
        is_file = stat.S_IFMT(mode) in {0, stat.S_IFREG}
        action = Action.CREATE if is_file else Action.MAKE_NODE
        bits = mode & ~self._umask(call.thread) & 0o7777
        return self._made(call, action, self._place(call, folder, path), mode=bits)

    def bind(self, call: Notification) -> Decoded:
        """Give a socket a name, which for one of the kind AF_UNIX may be a path."""
        _, address, length, *_ = call.arguments
        if not _SOCKET_PATH_AT < length <= _SOCKET_ADDRESS_BYTES_MAX:
            return NOTHING
        given = self.memory.read(call.thread, address, length)
        path = given[_SOCKET_PATH_AT:].partition(b"\0")[0]
        if int.from_bytes(given[:_SOCKET_PATH_AT], "little") != socket.AF_UNIX or not path:
            return NOTHING
        place = self.folder.place(self._absolute(call.thread, AT_FDCWD, os.fsdecode(path)))
        mode = 0o777 & ~self._umask(call.thread)
        return self._made(call, Action.MAKE_NODE, place, mode=mode) if place.is_inside else NOTHING

    def symlink(self, call: Notification) -> Decoded:
        """Make a symbolic link."""
        return self._linked_to(call, call.arguments[0], AT_FDCWD, call.arguments[1])

    def symlinkat(self, call: Notification) -> Decoded:
        """Make one relative to a folder."""
        return self._linked_to(call, *call.arguments[:3])

    def _linked_to(self, call: Notification, text: int, folder: int, path: int) -> Decoded:
        target = self.memory.text(call.thread, text)
        return self._made(call, Action.SYMLINK, self._place(call, folder, path), target=target)

    def link(self, call: Notification) -> Decoded:
        """Give a file another name."""
        return self._linked(call, AT_FDCWD, call.arguments[0], AT_FDCWD, call.arguments[1], 0)

    def linkat(self, call: Notification) -> Decoded:
        """Give a file, perhaps one without any, another name."""
        return self._linked(call, *call.arguments[:5])

    def _linked(self, call: Notification, folder: int, path: int, to_folder: int, to: int, flags: int) -> Decoded:
        place = self._place(call, to_folder, to)
        status = self._linked_object(call, folder, path, flags)
        if status is None or lstat(place.absolute) is not None:
            return NOTHING
        if not place.is_inside:
            return Decoded(stray=place.absolute)
        node = self._node(call.thread, status)
        if not node:
            text = f"a hard link to a file outside of the folder was refused: {place.path}"
            return Decoded(error=errno.EXDEV, blind_spot=BlindSpot(what="link-from-outside", text=text, is_denied=True))
        self.folder.gain_name(node)
        if not self.folder.path(node):
            self.folder.move(node, place.path)
        return Decoded(steps=(self._step(Action.LINK, path=place.path, node=node),))

    def _linked_object(self, call: Notification, folder: int, path: int, flags: int) -> os.stat_result | None:
        name = self.memory.text(call.thread, path)
        if flags & _AT_EMPTY_PATH and not name:
            return self.memory.status(call.thread, descriptor_in(folder))
        absolute = self._absolute(call.thread, folder, name)
        own = _OWN_DESCRIPTOR.fullmatch(name)
        if flags & _AT_SYMLINK_FOLLOW and own is not None:  # how a file without a name gets one
            return self.memory.status(call.thread, int(own[1]))
        try:
            return os.stat(absolute, follow_symlinks=bool(flags & _AT_SYMLINK_FOLLOW))
        except OSError:
            return None


_AT_REMOVEDIR: Final = 0x200
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_MOVED_IN_BYTES_MAX: Final = 1 << 30


class Moving(Looking):
    """The calls that remove a name, or move what has it."""

    def unlink(self, call: Notification) -> Decoded:
        """Remove a name."""
        return self._removed(self._place(call, AT_FDCWD, call.arguments[0]), is_folder=False)

    def rmdir(self, call: Notification) -> Decoded:
        """Remove a folder."""
        return self._removed(self._place(call, AT_FDCWD, call.arguments[0]), is_folder=True)

    def unlinkat(self, call: Notification) -> Decoded:
        """Remove a name or a folder, relative to a folder."""
        folder, path, flags, *_ = call.arguments
        return self._removed(self._place(call, folder, path), is_folder=bool(flags & _AT_REMOVEDIR))

    def _removed(self, place: Place, *, is_folder: bool) -> Decoded:
        status = lstat(place.absolute)
        if status is None or stat.S_ISDIR(status.st_mode) != is_folder:
            return NOTHING
        if not place.is_inside:
            return Decoded(stray=place.absolute)
        node = self.folder.node(status)
        if not is_folder:
            self.folder.lose_name(node, status)
            return Decoded(steps=(self._step(Action.UNLINK, path=place.path, node=node),))
        if not place.path or _has_entries(place.absolute):
            return NOTHING
        return Decoded(steps=(self._step(Action.REMOVE_FOLDER, path=place.path, node=node),))

    def rename(self, call: Notification) -> Decoded:
        """Move."""
        return self._renamed(call, AT_FDCWD, call.arguments[0], AT_FDCWD, call.arguments[1], 0)

    def renameat(self, call: Notification) -> Decoded:
        """Move, relative to folders."""
        folder, path, to_folder, to, *_ = call.arguments
        return self._renamed(call, folder, path, to_folder, to, 0)

    def renameat2(self, call: Notification) -> Decoded:
        """Move, relative to folders, with flags."""
        return self._renamed(call, *call.arguments[:5])

    def _renamed(self, call: Notification, folder: int, path: int, to_folder: int, to: int, flags: int) -> Decoded:
        source, target = self._place(call, folder, path), self._place(call, to_folder, to)
        moved, there = lstat(source.absolute), lstat(target.absolute)
        if moved is None or not (source.is_inside or target.is_inside):
            return Decoded(stray=target.absolute) if moved is not None else NOTHING
        if there is not None and (flags & _RENAME_NOREPLACE or os.path.samestat(moved, there)):
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
        return Decoded(steps=(step,), stray="" if to_path else target.absolute)

    def _exchanged(self, source: Place, target: Place, moved: os.stat_result, there: os.stat_result | None) -> Decoded:
        if there is None:
            return NOTHING
        if not (source.is_inside and target.is_inside):
            text = f"an exchange with {target.absolute}, outside of the folder, was refused"
            return Decoded(error=errno.EINVAL, blind_spot=BlindSpot(what="exchange", text=text, is_denied=True))
        first, second = self.folder.node(moved), self.folder.node(there)
        self.folder.move(first, target.path)
        self.folder.move(second, source.path)
        return Decoded(steps=(self._step(Action.EXCHANGE, path=source.path, target=target.path, node=first),))

    def _moved_in(self, source: Place, target: Place, moved: os.stat_result) -> Decoded:
        """Return the step of a file that comes from outside, with all it holds."""
        if not stat.S_ISREG(moved.st_mode) or moved.st_size > _MOVED_IN_BYTES_MAX:
            text = f"{source.absolute} was not let into the folder: only files up to a gigabyte are moved in"
            return Decoded(error=errno.EXDEV, blind_spot=BlindSpot(what="moved-in", text=text, is_denied=True))
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
    """Tell whether what is at a path is replaced by a rename: a file always, a folder by a folder if it is empty."""
    if not stat.S_ISDIR(there.st_mode):
        return not stat.S_ISDIR(moved.st_mode)
    return stat.S_ISDIR(moved.st_mode) and not _has_entries(path)


def _has_entries(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is not None
