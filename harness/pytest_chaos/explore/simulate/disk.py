"""A simulated folder tree: each step becomes an effect in one form, which is applied to it.

The tree maps folder and name to a node; the contents of nodes are kept apart from it. So a node has
one content under all its names, and a name can be lost without the content, and the other way
round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from pytest_chaos.errors import ChaosError
from pytest_chaos.explore.simulate.content import Content, PageStore
from pytest_chaos.trace.step import NO_NODE, ROOT_NODE, SYNCS, Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_chaos.trace.recording import Recording
    from pytest_chaos.trace.step import Entry, Step

FILE: Final = "file"
FOLDER: Final = "folder"
SYMLINK: Final = "symlink"
OTHER: Final = "other"

_KINDS: Final = {
    Action.CREATE: FILE,
    Action.CREATE_UNNAMED: FILE,
    Action.MAKE_FOLDER: FOLDER,
    Action.MAKE_NODE: OTHER,
    Action.SYMLINK: SYMLINK,
}
_CHUNK_BYTES: Final = 1 << 20
_DEFAULT_MODES: Final = {FILE: 0o644, FOLDER: 0o755, SYMLINK: 0o777, OTHER: 0o644}


class RecordingError(ChaosError):
    """An inconsistent recording: a step refers to a name or a node that does not exist."""


class Node(msgspec.Struct, frozen=True):
    """The constant part of an object: its kind, and the text of a symbolic link."""

    kind: str
    target: str = ""


class Naming(NamedTuple):
    """A change of names that happen together.

    A setting is the node of a folder, a name in it, and the new node of that name, 0 for none.
    """

    settings: tuple[tuple[int, str, int], ...]
    step: Step | None = None


class Writing(NamedTuple):
    """A change of a file's content.

    ``offset`` and ``length`` are those of a write, which may land in part. ``is_write`` is false
    for a change that happens whole or not at all: a truncation, an allocation, a hole.
    """

    node: int
    is_write: bool
    offset: int
    length: int
    step: Step


class Moding(NamedTuple):
    """A change of a node's permissions."""

    node: int
    mode: int
    step: Step | None = None


class Syncing(NamedTuple):
    """A flush of all earlier changes of one node, or (node 0) of all nodes."""

    node: int


Effect: TypeAlias = Naming | Writing | Moding | Syncing
Names: TypeAlias = "dict[int, Mapping[str, int]]"
"""For each folder, by its node, its names. An inner mapping is replaced, never changed."""


class Disk:
    """The folder while the recorded program runs: apply the steps one after the other.

    ``names``, ``contents`` and ``modes`` are the current ones; ``nodes`` has every object that ever
    existed. ``before``, ``steps`` and ``files`` are those of the recording.
    """

    def __init__(self, recording: Recording, store: PageStore) -> None:
        self._recording = recording
        self._store = store
        self.before, self.steps, self.files = recording.before, recording.steps, recording.files
        self.empty = Content(store)
        self.keep = store.keep
        self.nodes: dict[int, Node] = {ROOT_NODE: Node(FOLDER)}
        self.names: Names = {ROOT_NODE: {}}
        self.contents: dict[int, Content] = {}
        self.modes: dict[int, int] = {ROOT_NODE: 0o755}
        for entry in sorted(recording.before, key=lambda entry: entry.path):
            self._place(entry)

    def apply(self, step: Step) -> Effect | None:
        """Apply a step and return its effect; None for a mark, and for sync_file_range.

        Raises RecordingError when the step does not fit the tree.
        """
        effect = self.effect_of(step)
        self.perform(effect)
        return effect

    def perform(self, effect: Effect | None) -> None:
        """Apply an effect that ``effect_of`` returned for the next step."""
        if isinstance(effect, Naming):
            self.names = renamed(self.names, effect)
        elif isinstance(effect, Writing):
            before = self.contents.get(effect.node)
            if before is None:
                raise _misfit(effect.step, f"node {effect.node} is no file")
            self.contents[effect.node] = self.written(before, effect, keep=self.keep)
        elif isinstance(effect, Moding):
            self.modes[effect.node] = effect.mode

    def written(
        self,
        before: Content,
        change: Writing,
        *,
        upto: int | None = None,
        keep: Callable[[bytes], bytes | int] | None = None,
    ) -> Content:
        """Return the content after a change; of a write the first ``upto`` bytes only."""
        step = change.step
        if step.action is Action.WRITE:
            data = self.data(change)[:upto]
            return before.write(step.offset, data) if keep is None else before.write(step.offset, data, keep=keep)
        if step.action is Action.TRUNCATE:
            return before.resize(step.length)
        if step.action is Action.ALLOCATE:
            return before.resize(max(before.size, step.offset + step.length))
        return before.zero(step.offset, step.length)

    def data(self, change: Writing) -> bytes:
        """Return the bytes of a write."""
        return self.bytes_of(change.step)

    def bytes_of(self, step: Step) -> bytes:
        """Return the bytes of a step that writes."""
        return self._recording.content(step)

    def effect_of(self, step: Step) -> Effect | None:
        """Return the effect of a step, with its paths resolved on the current tree."""
        action = step.action
        if action is Action.MARK or action is Action.SYNC_RANGE:
            return None
        if action in SYNCS:
            return Syncing(NO_NODE if action is Action.SYNC_ALL else step.node)
        if action in {Action.WRITE, Action.TRUNCATE, Action.ALLOCATE, Action.ZERO}:
            return Writing(step.node, action is Action.WRITE, step.offset, step.length, step)
        if action is Action.CHANGE_MODE:
            return Moding(step.node, step.mode, step)
        if action in _KINDS:
            return self._made(step)
        return self._named(step)

    def _made(self, step: Step) -> Naming | None:
        kind = _KINDS[step.action]
        self.add(step.node, Node(kind, step.target), step.mode or _DEFAULT_MODES[kind])
        if step.action is Action.CREATE_UNNAMED:
            return None
        return Naming(((*self._split(step, step.path), step.node),), step)

    def _named(self, step: Step) -> Naming:
        if step.action is Action.LINK:
            return Naming(((*self._split(step, step.path), step.node),), step)
        if step.action in {Action.UNLINK, Action.REMOVE_FOLDER}:
            return Naming(((*self._split(step, step.path), NO_NODE),), step)
        if step.action is Action.EXCHANGE:
            first, second = self._split(step, step.path), self._split(step, step.target)
            there, here = self._named_by(step, second), self._named_by(step, first)
            return Naming(((*first, there), (*second, here)), step)
        if step.action is Action.RENAME:
            return self._moved(step)
        raise _misfit(step, "it is of an unknown kind")

    def _moved(self, step: Step) -> Naming:
        settings: list[tuple[int, str, int]] = []
        if step.path:
            settings.append((*self._split(step, step.path), NO_NODE))
        elif step.node not in self.nodes:  # it comes from outside
            self.add(step.node, Node(FILE), step.mode or _DEFAULT_MODES[FILE])
            self.contents[step.node] = self._loaded(step)
        if step.target:
            settings.append((*self._split(step, step.target), step.node))
        return Naming(tuple(settings), step)

    def _named_by(self, step: Step, where: tuple[int, str]) -> int:
        folder, name = where
        if name not in self.names[folder]:
            raise _misfit(step, f"there is no {name!r}")
        return self.names[folder][name]

    def add(self, number: int, node: Node, mode: int) -> None:
        """Add a new, empty object without a name."""
        self.nodes[number] = node
        self.modes[number] = mode
        if node.kind == FOLDER:
            self.names = {**self.names, number: {}}
        elif node.kind == FILE:
            self.contents[number] = self.empty

    def _place(self, entry: Entry) -> None:
        if not entry.path:
            self.modes[ROOT_NODE] = entry.mode or self.modes[ROOT_NODE]
            return
        if entry.node not in self.nodes:
            self.add(entry.node, Node(entry.kind, entry.target), entry.mode)
            if entry.kind == FILE:
                self.contents[entry.node] = self._loaded(entry)
        folder, name = self._split(entry, entry.path)
        self.names = renamed(self.names, Naming(((folder, name, entry.node),)))

    def _loaded(self, entry: Entry | Step) -> Content:
        content = self.empty
        for start in range(0, entry.length, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, entry.length - start)
            part = msgspec.structs.replace(entry, content=entry.content + start, length=length)
            content = content.write(start, self._recording.content(part), keep=self.keep)
        return content.resize(entry.length)

    def _split(self, item: Step | Entry, path: str) -> tuple[int, str]:
        """Return the node of the folder that a path lies in, and the last name of the path."""
        *folders, name = path.split("/")
        node = ROOT_NODE
        for folder in folders:
            found = self.names.get(node, {}).get(folder, NO_NODE)
            if self.nodes.get(found, Node("")).kind != FOLDER:
                raise _misfit(item, f"there is no folder {folder!r} on the way to {path!r}")
            node = found
        if not name:
            raise _misfit(item, "it has no path")
        return node, name


def renamed(names: Names, *changes: Naming) -> Names:
    """Return the names after changes of names; unchanged folders are shared."""
    after = dict(names)
    fresh: dict[int, dict[str, int]] = {}
    """The folders that change, each copied once however many changes there are."""
    for change in changes:
        for folder, name, node in change.settings:
            inside = fresh.get(folder)
            if inside is None:
                inside = after[folder] = fresh[folder] = dict(after.get(folder, {}))
            inside.pop(name, None)
            if node != NO_NODE:
                inside[name] = node
    return after


def walk(names: Names) -> Iterable[tuple[str, int]]:
    """Yield path and node of each object in the watched folder, a folder before its content."""
    waiting = [("", ROOT_NODE)]
    seen = {ROOT_NODE}  # lost renames can put two folders into each other
    while waiting:
        prefix, folder = waiting.pop()
        for name, node in names.get(folder, {}).items():
            yield prefix + name, node
            if node in names and node not in seen:
                seen.add(node)
                waiting.append((f"{prefix}{name}/", node))


def _misfit(item: Step | Entry, reason: str) -> RecordingError:
    return RecordingError(f"the recording does not fit together at {item}: {reason}; record the program again")
