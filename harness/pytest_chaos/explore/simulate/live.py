"""The items of the disk while the recorded program runs, kept up to date step by step. Pure.

A step changes a file or two. So do the items and their digest here: a program that makes a thousand
files is explored without going through a thousand files at each of its steps. The digest is a sum
over the items, as that of a content is one over its pages.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from pytest_chaos.explore.simulate.disk import FOLDER, Moding, Naming, Writing
from pytest_chaos.explore.simulate.state import Item, live_items
from pytest_chaos.trace.step import NO_NODE, ROOT_NODE

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pytest_chaos.explore.simulate.content import Content
    from pytest_chaos.explore.simulate.disk import Disk, Effect

_TOKEN_BYTES: Final = 16


class LiveItems:
    """The items of a disk. ``follow`` each effect once it is performed.

    ``identity`` is equal for equal items: kinds, permissions, contents, and which are one file.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._begin()

    def _begin(self) -> None:
        self._items: dict[str, Item] = live_items(self._disk)
        self._folders = {ROOT_NODE: ""}
        self._paths: dict[int, list[str]] = {}
        self._tokens: dict[str, int] = {}
        self.identity = 0
        for path, item in self._items.items():
            if item.kind == FOLDER:
                self._folders[item.node] = f"{path}/"
            self._paths.setdefault(item.node, []).append(path)
        self._count(self._paths)

    def follow(self, effect: Effect | None) -> None:
        """Take over an effect that the disk has performed."""
        if isinstance(effect, Naming):
            self._rename(effect)
        elif isinstance(effect, Writing | Moding) and effect.node in self._paths:
            for path in self._paths[effect.node]:
                self._items[path] = self._item(effect.node)
            self._count((effect.node,))

    def _rename(self, effect: Naming) -> None:
        touched: set[int] = set()
        for folder, name, _ in effect.settings:
            node = self._disk.names[folder].get(name, NO_NODE)
            path = f"{self._folders.get(folder, '')}{name}"
            before = self._items.get(path)
            kinds = {before.kind if before is not None else "", self._disk.nodes[node].kind if node else ""}
            if FOLDER in kinds or folder not in self._folders:  # all below it has another path
                self._begin()
                return
            if before is not None:
                del self._items[path]
                self._paths[before.node].remove(path)
                self.identity -= self._tokens.pop(path, 0)
                touched.add(before.node)
            if node:
                self._items[path] = self._item(node)
                self._paths.setdefault(node, []).append(path)
                touched.add(node)
        self._count(touched)

    def _item(self, number: int) -> Item:
        node = self._disk.nodes[number]
        return Item(node.kind, self._disk.modes[number], number, self._disk.contents.get(number), node.target)

    def _count(self, nodes: Collection[int]) -> None:
        """Bring the digest up to date for files that have changed."""
        for node in nodes:
            paths = self._paths[node]
            for path in paths:
                now = token(path, self._items[path], paths)
                self.identity += now - self._tokens.get(path, 0)
                self._tokens[path] = now

    def items(self) -> dict[str, Item]:
        """Return the items now."""
        return self._items.copy()

    def items_with(self, contents: Mapping[int, Content]) -> tuple[dict[str, Item], int]:
        """Return the items if some files had other contents, and their identity."""
        items, identity = self._items.copy(), self.identity
        for node, content in contents.items():
            paths = self._paths.get(node, [])
            for path in paths:
                items[path] = items[path]._replace(content=content)
                identity += token(path, items[path], paths) - self._tokens[path]
        return items, identity


def token(path: str, item: Item, paths: Collection[str]) -> int:
    """Return the summand of an item; ``paths`` are all that lead to the same file."""
    content = item.content.digest if item.content is not None else None
    links = sorted(paths) if len(paths) > 1 else ()
    known = repr((path, item.kind, item.mode, item.target, content, links)).encode(errors="surrogatepass")
    return int.from_bytes(blake2b(known, digest_size=_TOKEN_BYTES).digest(), "little")
