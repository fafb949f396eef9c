"""States built from a near one: what differs is changed, and all other items are shared. Pure.

Most power-loss states of a moment lack one change of many, or have only one of many. Built from the
state that has all of them, or none, they cost hardly more for a program with a thousand files than
for one with ten. A state is built as a whole where a folder is made, removed or moved, and where a
file has several names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.simulate.disk import FOLDER
from pytest_chaos.explore.simulate.live import token
from pytest_chaos.trace.step import ROOT_NODE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from pytest_chaos.explore.simulate.disk import Names, Node
    from pytest_chaos.explore.simulate.state import Item

_TOKENS_MAX: Final = 1 << 16


class Built(NamedTuple):
    """The items of a state, and their identity as ``live.LiveItems`` has it."""

    items: dict[str, Item]
    identity: int


class Tokens:
    """The summands of the identity, which are computed once for each path and content."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], int] = {}

    def of(self, path: str, item: Item) -> int:
        """Return the summand of an item that has one name."""
        key = (path, item.kind, item.mode, item.target, item.content.digest if item.content is not None else None)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _TOKENS_MAX:
                self._known.clear()
            known = self._known[key] = token(path, item, ())
        return known

    def identity(self, items: Mapping[str, Item], paths: Mapping[int, Collection[str]]) -> int:
        """Return the identity of items; ``paths`` has all names of each node."""
        return sum(
            self.of(path, item) if len(paths[item.node]) == 1 else token(path, item, paths[item.node])
            for path, item in items.items()
        )


class Base:
    """A state that was built as a whole, from which others are built.

    ``names`` are those of all folders, also of files that are left out of the ``items``; ``nodes``
    has every object.
    """

    def __init__(self, names: Names, items: dict[str, Item], nodes: Mapping[int, Node], tokens: Tokens) -> None:
        self._names = names
        self._nodes = nodes
        self._tokens = tokens
        self._paths: dict[int, list[str]] = {}
        self._prefixes: dict[int, list[str]] = {ROOT_NODE: [""]}
        for path, item in items.items():
            self._paths.setdefault(item.node, []).append(path)
            if item.kind == FOLDER:
                self._prefixes.setdefault(item.node, []).append(f"{path}/")
        self.built = Built(items, tokens.identity(items, self._paths))

    def with_changes(
        self, names: Mapping[str, int], touched: Iterable[int], item_of: Callable[[int], Item]
    ) -> Built | None:
        """Return the state in which some paths lead to other nodes, and some nodes are others.

        Of ``names``, a path that leads to 0 is gone. ``item_of`` gives the item of a node. None if
        the state has to be built as a whole.
        """
        paths = self._paths
        others = [(path, node) for node in touched for path in paths.get(node, ()) if path not in names]
        named = {node for node in names.values() if node}
        count = sum(map(bool, names.values()))
        items = self.built.items.copy()
        gone = [(path, before) for path in names if (before := items.pop(path, None)) is not None]
        left = {before.node for _, before in gone}
        has_links = any(len(paths[node]) > 1 for node in left) or any(len(paths[node]) > 1 for _, node in others)
        if has_links or len(named) < count or any(node in paths and node not in left for node in named):
            return None
        token_of = self._tokens.of
        identity = self.built.identity - sum(token_of(path, before) for path, before in gone)
        for path, node in others:
            before = items[path]
            items[path] = item = item_of(node)
            identity += token_of(path, item) - token_of(path, before)
        for path, node in names.items():
            if node:
                items[path] = item = item_of(node)
                identity += token_of(path, item)
        return Built(items, identity)

    def paths_of(self, names: Iterable[tuple[int, str, int]]) -> dict[str, int] | None:
        """Return the paths that lead to other nodes if some names do, each with its node.

        A name is a folder's node, the name in it, and the node that it leads to, 0 for none. None
        if a folder is among them, or has several names.
        """
        paths: dict[str, int] = {}
        for folder, name, node in names:
            was = self._names.get(folder, {}).get(name, 0)
            if was != node:
                prefixes = self._prefixes.get(folder, ())
                if len(prefixes) > 1 or any(each and self._nodes[each].kind == FOLDER for each in (was, node)):
                    return None
                if prefixes:  # else the folder itself has no name
                    paths[prefixes[0] + name] = node
        return paths
