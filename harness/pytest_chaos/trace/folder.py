"""The watched folder: which object is which node, and where a path of another process leads.

An object is identified by device and inode while it exists. An inode number is reused after its
file is gone, so a node is forgotten when its last name goes and no open file is left, or when the
number turns up as a new file.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from pytest_chaos.trace.step import KNOWN_FILES, ROOT_NODE, Entry, FileKinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_Identity = tuple[int, int]
_Name = tuple[int, str]
"""A folder's node, and a name in it. Below a folder without a node, it is the rest of the path."""


class ResolvedPath(NamedTuple):
    """A resolved path. ``path`` is relative to the watched folder if inside, else absolute.

    An ignored path counts as outside.
    """

    absolute: str
    path: str
    is_inside: bool


class WatchedFolder:
    """One folder and the nodes in it. ``files`` are its ignored and its volatile files."""

    def __init__(self, directory: Path, files: FileKinds = KNOWN_FILES) -> None:
        self.files = files
        self.root = os.path.realpath(directory)
        self._prefix = self.root + "/"
        self._nodes: dict[_Identity, int] = {}
        self._at: dict[int, _Name] = {}
        """Folder and name of each node, without the root and files that have no name."""
        self._named: dict[_Name, int] = {}
        self._nameless: set[int] = set()
        self._noted: list[Callable[[], object]] = []
        self._next = ROOT_NODE
        root = os.stat(self.root)
        self.device = root.st_dev
        self.add(root, "")

    def add(self, status: os.stat_result, path: str) -> int:
        """Give an object a new node, whether or not its inode number was another object's."""
        node = self.reserve(path)
        self.bind(node, status)
        return node

    def reserve(self, path: str) -> int:
        """Return a new node for an object that is about to be made."""
        node = self._next
        self._next += 1
        self._put(node, self._name_of(path, node))
        return node

    def bind(self, node: int, status: os.stat_result) -> None:
        """Note the object of a node, now that it exists."""
        self._nodes[status.st_dev, status.st_ino] = node

    def node(self, status: os.stat_result) -> int:
        """Return the node of an object, 0 for one that is not in this folder."""
        node = self._nodes.get((status.st_dev, status.st_ino), 0)
        if node and node in self._nameless and status.st_nlink:  # its inode number was reused
            del self._nodes[status.st_dev, status.st_ino]
            return 0
        return node

    def lose_name(self, node: int, status: os.stat_result) -> None:
        """Note that a name of a node goes; after its last one it lives while it is open."""
        if node and status.st_nlink <= 1 and node not in self._nameless:
            self._nameless.add(node)
            self.undo_with(lambda: self._nameless.discard(node))

    def gain_name(self, node: int) -> None:
        """Note that a node gets a name."""
        if node in self._nameless:
            self._nameless.discard(node)
            self.undo_with(lambda: self._nameless.add(node))

    def take_in(self, status: os.stat_result, path: str) -> int:
        """Give a node to an object that comes from outside."""
        node = self.add(status, path)
        self.undo_with(lambda: self._nodes.pop((status.st_dev, status.st_ino), 0))
        return node

    def begin(self) -> None:
        """Begin with a call: the calls before it were done, and cannot be taken back."""
        if self._noted:
            self._noted.clear()

    def undo_with(self, undo: Callable[[], object]) -> None:
        """Register an undo for ``take_back``."""
        self._noted.append(undo)

    def take_back(self) -> None:
        """Undo all notes since ``begin``: the call is not done."""
        while self._noted:
            self._noted.pop()()

    def node_of(self, identity: _Identity) -> int:
        """Return the node with this device and inode, 0 if there is none."""
        return self._nodes.get(identity, 0)

    def path(self, node: int) -> str:
        """Return a path of a node, or its last one."""
        names = []
        while (place := self._at.get(node)) is not None:
            node, name = place
            names.append(name)
        return "/".join(reversed(names))

    def move(self, node: int, path: str) -> None:
        """Note that a node, and with it all under it, is at another path now."""
        name = self._name_of(path, node)
        before, there = self._at.get(node), self._named.get(name) if name is not None else None

        def undo() -> None:
            self._put(node, before)
            if there is not None:
                self._put(there, name)

        self._put(node, name)
        self.undo_with(undo)

    def _name_of(self, path: str, node: int) -> _Name | None:
        """Return the name that a path is, for this node, which is no folder of its own path."""
        if not path:
            return None
        folder, rest = ROOT_NODE, path
        while "/" in rest:
            first, _, others = rest.partition("/")
            under = self._named.get((folder, first), node)
            if under == node:  # the folder is not known
                break
            folder, rest = under, others
        return folder, rest

    def _put(self, node: int, name: _Name | None) -> None:
        before = self._at.pop(node, None)
        if before is not None and self._named.get(before) == node:
            del self._named[before]
        if name is not None:
            self._at[node] = name
            self._named[name] = node

    def place(self, absolute: str) -> ResolvedPath:
        """Resolve an absolute path but for its last name."""
        parent, _, name = absolute.rpartition("/")
        if parent == self.root and name not in {"", ".", ".."}:  # the most frequent case needs no lstat
            if self.files.ignores(name):
                return ResolvedPath(absolute, absolute, is_inside=False)
            return ResolvedPath(absolute, name, is_inside=True)
        parent, name = os.path.split(absolute.rstrip("/") or "/")
        if name in {"", ".", ".."}:
            resolved = os.path.realpath(absolute)
        else:
            resolved = os.path.join(os.path.realpath(parent), name)
        return self._placed(resolved)

    def look(self, absolute: str) -> tuple[ResolvedPath, os.stat_result | None]:
        """Resolve an absolute path with a symbolic link at its end; return what is there, too."""
        place = self.place(absolute)
        status = lstat(place.absolute)
        if status is not None and stat.S_ISLNK(status.st_mode):
            place = self._placed(os.path.realpath(place.absolute))
            status = lstat(place.absolute)
        return place, status

    def _placed(self, resolved: str) -> ResolvedPath:
        if resolved == self.root:
            return ResolvedPath(resolved, "", is_inside=True)
        is_inside = resolved.startswith(self._prefix) and not self.files.ignores(resolved[len(self._prefix) :])
        return ResolvedPath(resolved, resolved[len(self._prefix) :] if is_inside else resolved, is_inside)

    def ignored(self, absolute: str) -> str:
        """Return the path of an ignored file relative to the folder; empty for any other path."""
        path = absolute[len(self._prefix) :] if absolute.startswith(self._prefix) else ""
        return path if self.files.ignores(path) else ""

    def scan(self, keep: Callable[[bytes], int] | None) -> Iterator[Entry]:
        """Walk over the folder's content, give each object its node, and keep its bytes."""
        for path, status in _walk(self.root, ""):
            # An ignored file stays as it is: no call may find its node.
            node = self.reserve(path) if self.files.ignores(path) else self.node(status) or self.add(status, path)
            yield _entry(os.path.join(self.root, path), path, node, status, keep)


def lstat(path: str) -> os.stat_result | None:
    """Return the status of the object at a path, None where it cannot be had."""
    try:
        return os.lstat(path)
    except (OSError, ValueError):
        return None


def _walk(root: str, under: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(os.path.join(root, under)) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = f"{under}/{entry.name}" if under else entry.name
        yield path, entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, path)


def _entry(absolute: str, path: str, node: int, status: os.stat_result, keep: Callable[[bytes], int] | None) -> Entry:
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISDIR(status.st_mode):
        return Entry(path=path, node=node, kind="folder", mode=mode)
    if stat.S_ISLNK(status.st_mode):
        return Entry(path=path, node=node, kind="symlink", target=os.readlink(absolute))
    if not stat.S_ISREG(status.st_mode):
        return Entry(path=path, node=node, kind="other", mode=mode)
    if keep is None:
        return Entry(path=path, node=node, kind="file", mode=mode, length=status.st_size)
    with open(absolute, "rb") as file:
        content = file.read()
    return Entry(path=path, node=node, kind="file", mode=mode, length=len(content), content=keep(content))
