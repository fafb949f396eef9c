"""The pending changes of metadata, with an index that builds a state without going through them.

A choice of changes is a number with a bit for each, from the oldest (bit 0). The index has such a
number for each name, each node and each kind of change. So what a choice leaves under a name is one
*and* and the highest bit of the result, however many changes are pending.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeVar

from pytest_chaos.explore.simulate.disk import Moding, Naming, Writing
from pytest_chaos.explore.simulate.state import without_numbers
from pytest_chaos.trace.step import NO_NODE

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, MutableMapping

    from pytest_chaos.explore.simulate.disk import Names
    from pytest_chaos.trace.step import Step

Metadata: TypeAlias = Naming | Moding | Writing
"""A change that happens whole or not at all. A writing is one of a file's size."""
Kind: TypeAlias = tuple[str, str]
"""A call, and a path in which numbers do not count."""
_Key = TypeVar("_Key", bound="Hashable")


def kind_of(step: Step) -> Kind:
    """Return the kind of a step."""
    return step.call, without_numbers(step.path or step.target)


class PendingMetadata:
    """The pending changes, from the oldest. ``names_files``: an fsync of a file commits its name.

    >>> pending = PendingMetadata(names_files=False)
    >>> pending.add(Naming(((1, "a", 2),)))
    >>> pending.add(Naming(((1, "a", 0), (1, "b", 2))))
    >>> pending.names_after({1: {}}, 0b01), pending.names_after({1: {}}, 0b11)
    ({1: {'a': 2}}, {1: {'b': 2}})
    """

    def __init__(self, *, names_files: bool) -> None:
        self._names_files = names_files
        self._begin([])

    def _begin(self, changes: list[Metadata]) -> None:
        self.changes: list[Metadata] = []
        self.kinds: dict[Kind, int] = {}
        """The changes of each kind."""
        self._names: dict[tuple[int, str], int] = {}
        self._modes: dict[int, int] = {}
        self._synced: dict[int, int] = {}
        """The changes that an fsync of each node makes certain."""
        for change in changes:
            self.add(change)

    @property
    def everything(self) -> int:
        """The choice of all changes."""
        return (1 << len(self.changes)) - 1

    def add(self, change: Metadata) -> None:
        """Add the newest change."""
        bit = 1 << len(self.changes)
        self.changes.append(change)
        if change.step is not None:
            _add(self.kinds, kind_of(change.step), bit)
        if not isinstance(change, Naming):
            _add(self._synced, change.node, bit)
            if isinstance(change, Moding):
                _add(self._modes, change.node, bit)
            return
        for folder, name, node in change.settings:
            _add(self._names, (folder, name), bit)
            _add(self._synced, folder, bit)
            if self._names_files and node != NO_NODE:
                _add(self._synced, node, bit)

    def synced_by(self, node: int) -> int:
        """Return the changes that an fsync of a file or folder concerns; all for node 0."""
        return self.everything if node == NO_NODE else self._synced.get(node, 0)

    def with_earlier_names(self, chosen: int) -> int:
        """Return a choice with every earlier change of names in the same folders: order is kept."""
        folders: set[int] = set()
        for place in reversed(range(chosen.bit_length())):
            change = self.changes[place]
            if isinstance(change, Naming):
                mine = {folder for folder, _, _ in change.settings}
                if chosen >> place & 1 or mine & folders:
                    chosen |= 1 << place
                    folders |= mine
        return chosen

    def take(self, chosen: int) -> list[Metadata]:
        """Remove chosen changes; return them, from the oldest."""
        if not chosen:
            return []
        count, changes = chosen.bit_length(), self.changes
        taken = [change for place, change in enumerate(changes[:count]) if chosen >> place & 1]
        if len(taken) == count:  # the oldest, which is nearly always so
            self.changes = changes[count:]
            self.kinds = _without_oldest(self.kinds, count)
            self._names = _without_oldest(self._names, count)
            self._modes = _without_oldest(self._modes, count)
            self._synced = _without_oldest(self._synced, count)
        else:
            self._begin([change for place, change in enumerate(changes) if not chosen >> place & 1])
        return taken

    def drop(self, change: Metadata) -> None:
        """Remove a change, if it is there."""
        place = next((place for place, each in enumerate(self.changes) if each is change), None)
        if place is not None:
            self.take(1 << place)

    def names_changed(self, names: Names, before: int, after: int) -> Iterator[tuple[int, str, int]]:
        """Yield each name that may be another one after one choice than after another.

        A name is a folder's node, the name in it, and its node ``after``, 0 for none.
        """
        known: set[tuple[int, str]] = set()
        for change in self._of(before ^ after):
            for folder, name, _ in change.settings if isinstance(change, Naming) else ():
                if (key := (folder, name)) not in known:
                    known.add(key)
                    landed = self._names[key] & after
                    node = self._named(landed.bit_length() - 1, folder, name) if landed else NO_NODE
                    yield folder, name, node if landed else names.get(folder, {}).get(name, NO_NODE)

    def nodes_changed(self, chosen: int) -> set[int]:
        """Return the nodes whose permissions or sizes these changes are of."""
        return {change.node for change in self._of(chosen) if not isinstance(change, Naming)}

    def _of(self, chosen: int) -> Iterator[Metadata]:
        while chosen:
            place = chosen.bit_length() - 1
            yield self.changes[place]
            chosen ^= 1 << place

    def mode_after(self, node: int, mode: int, chosen: int) -> int:
        """Return the permissions of a node after chosen changes, which had ``mode`` before."""
        if not (landed := self._modes.get(node, 0) & chosen):
            return mode
        change = self.changes[landed.bit_length() - 1]
        return change.mode if isinstance(change, Moding) else 0

    def writings(self) -> Iterator[tuple[int, Writing]]:
        """Yield the place of each change of a file's size, and the change."""
        for place, change in enumerate(self.changes):
            if isinstance(change, Writing):
                yield place, change

    def names_after(self, names: Names, chosen: int) -> Names:
        """Return the names after chosen changes; unchanged folders are shared."""
        after = dict(names)
        fresh: dict[int, dict[str, int]] = {}
        for (folder, name), changes in self._names.items():
            if not (landed := changes & chosen):
                continue
            inside = fresh.get(folder)
            if inside is None:
                inside = after[folder] = fresh[folder] = dict(after.get(folder, {}))
            node = self._named(landed.bit_length() - 1, folder, name)
            if node == NO_NODE:
                inside.pop(name, None)
            else:
                inside[name] = node
        return after

    def _named(self, place: int, folder: int, name: str) -> int:
        """Return the node that a change gives to a name."""
        change = self.changes[place]
        settings = change.settings if isinstance(change, Naming) else ()
        return next(node for where, what, node in reversed(settings) if what == name and where == folder)

    def modes_after(self, modes: Mapping[int, int], chosen: int) -> Mapping[int, int]:
        """Return the permissions after chosen changes."""
        changed: dict[int, int] = {}
        for node, changes in self._modes.items():
            if landed := changes & chosen:
                change = self.changes[landed.bit_length() - 1]
                changed[node] = change.mode if isinstance(change, Moding) else 0
        return {**modes, **changed} if changed else modes


def _add(index: MutableMapping[_Key, int], key: _Key, bit: int) -> None:
    index[key] = index.get(key, 0) | bit


def _without_oldest(index: Mapping[_Key, int], count: int) -> dict[_Key, int]:
    return {key: newer for key, changes in index.items() if (newer := changes >> count)}
