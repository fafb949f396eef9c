"""Names that go, or lead to something else: removed, moved, exchanged."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from harness.steps.calls.decoded import NOTHING, Decoded
from harness.steps.calls.looking import Looking
from harness.steps.folder import Place, lstat
from harness.steps.memory import AT_FDCWD
from harness.steps.step import NO_CONTENT, Action, BlindSpot

if TYPE_CHECKING:
    from harness.steps.kernel import Notification

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
