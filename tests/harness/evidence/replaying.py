"""A recording applied to a folder in the plainest way:
what the steps say, one after the other, on a real disk.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from pytest_chaos.trace.step import Action

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.trace.recording import Recording
    from pytest_chaos.trace.step import Entry, Step


class Replay:
    """Builds the folder that a recording describes, up to any step.
    Every node is a file of ``store``, linked in.
    """

    def __init__(self, recording: Recording, folder: Path, store: Path) -> None:
        self._recording = recording
        self._folder = folder
        self._store = store
        folder.mkdir()
        store.mkdir()
        for entry in recording.before:
            self._put(entry)

    def apply_until(self, number: int) -> None:
        """Apply all steps up to this one."""
        for step in self._recording.durable():
            if step.number <= number:
                self._apply(step)

    def _put(self, entry: Entry) -> None:
        path = self._folder / entry.path
        if entry.kind == "folder":
            path.mkdir(mode=entry.mode)
        elif entry.kind == "symlink":
            path.symlink_to(entry.target)
        elif entry.kind == "file":
            node = self._node(entry.node)
            if not node.exists():
                node.write_bytes(self._recording.content(entry))
                node.chmod(entry.mode)
            os.link(node, path)

    def _node(self, number: int) -> Path:
        return self._store / str(number)

    def _apply(self, step: Step) -> None:  # noqa: C901 - one branch for each action, which is what it shows
        path, node = self._folder / step.path, self._node(step.node)
        match step.action:
            case Action.CREATE | Action.CREATE_UNNAMED:
                node.touch()
                node.chmod(step.mode)
                if step.action is Action.CREATE:
                    os.link(node, path)
            case Action.MAKE_FOLDER:
                path.mkdir()
                path.chmod(step.mode)
            case Action.MAKE_NODE:
                os.mkfifo(path)
                path.chmod(step.mode)
            case Action.SYMLINK:
                path.symlink_to(step.target)
            case Action.LINK:
                os.link(node, path)
            case Action.UNLINK:
                path.unlink()
            case Action.REMOVE_FOLDER:
                path.rmdir()
            case Action.RENAME:
                self._rename(step)
            case Action.EXCHANGE:
                aside = self._store / "aside"
                path.rename(aside)
                (self._folder / step.target).rename(path)
                aside.rename(self._folder / step.target)
            case Action.WRITE:
                self._write(node, step.offset, self._recording.content(step))
            case Action.TRUNCATE:
                os.truncate(node, step.length)
            case Action.ALLOCATE:
                os.truncate(node, max(node.stat().st_size, step.offset + step.length))
            case Action.ZERO:
                length = max(0, min(step.length, node.stat().st_size - step.offset))
                self._write(node, step.offset, bytes(length))
            case Action.CHANGE_MODE:
                (node if node.exists() else path).chmod(step.mode)

    def _rename(self, step: Step) -> None:
        if not step.path:
            node = self._node(step.node)
            node.write_bytes(self._recording.content(step))
            node.chmod(step.mode)
            target = self._folder / step.target
            target.unlink(missing_ok=True)
            os.link(node, target)
        elif not step.target:
            (self._folder / step.path).rename(self._store / f"left-{step.number}")
        else:
            (self._folder / step.path).rename(self._folder / step.target)

    @staticmethod
    def _write(node: Path, offset: int, content: bytes) -> None:
        descriptor = os.open(node, os.O_WRONLY)
        os.pwrite(descriptor, content, offset)
        os.close(descriptor)


def contents(folder: Path) -> dict[str, tuple[str, object, int]]:
    """Return what is in a folder: path to kind, content (or target), and permissions."""
    found: dict[str, tuple[str, object, int]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        name = str(path.relative_to(folder))
        if stat.S_ISLNK(status.st_mode):
            found[name] = ("symlink", os.readlink(path), 0)
        elif stat.S_ISDIR(status.st_mode):
            found[name] = ("folder", None, mode)
        elif stat.S_ISREG(status.st_mode):
            found[name] = ("file", path.read_bytes(), mode)
        else:
            found[name] = ("other", None, mode)
    return found
