"""States of the watched folder: the items by path, the marks before it, and its origin.

A state is named by a *code* that says how to build it again from the same recording: ``crash:57``
is the death of the process right before step 57, ``power:strict:57:3f`` a loss of power there with
the choices ``3f``.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.explore.simulate.disk import FILE, walk
from pytest_chaos.model.history import MarkParser
from pytest_chaos.trace.step import KNOWN_FILES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_chaos.explore.simulate.content import Content
    from pytest_chaos.explore.simulate.disk import Disk, Names
    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.recording import Recording
    from pytest_chaos.trace.step import FileKinds


_NUMBER: Final = re.compile(r"\d+")


@lru_cache(maxsize=4096)
def without_numbers(path: str) -> str:
    """Return a path with ``#`` for each number in it."""
    return _NUMBER.sub("#", path)


class Item(NamedTuple):
    """The object at a path. Items with the same ``node`` are hard links to one file."""

    kind: str
    mode: int
    node: int
    content: Content | None = None
    target: str = ""


class StoredWords(NamedTuple):
    """The choice of changed words that are stored in a state, as bits; the memory line of each."""

    mask: int
    lines: tuple[int, ...]


class State:
    """One state of the watched folder.

    ``step`` is the first durable step that did not happen; ``marks`` counts the marks before it.
    ``lost`` counts the requested changes that the state lacks, to tell a smaller example from a
    larger one; ``text`` says them in words. ``kill`` is whether a real SIGKILL can leave exactly
    this state. ``stored`` is set if only some orders of stores through memory leave it. ``updates``
    are the updates that are missing, as (call, path, how); on demand. ``identity`` is that of the
    items (``live.LiveItems``), where all states of a family have one.
    """

    def __init__(
        self,
        code: Callable[[], str] | str,
        step: int,
        marks: int,
        items: Mapping[str, Item],
        *,
        lost: int = 0,
        text: Callable[[], str] | str = "",
        kill: bool = False,
        stored: StoredWords | None = None,
        updates: Callable[[], Iterable[tuple[str, str, str]]] = tuple,
        identity: int | None = None,
    ) -> None:
        self._code = code
        self.step = step
        self.marks = marks
        self.items = items
        self.lost = lost
        self.text = text
        self.kill = kill
        self.stored = stored
        self._updates = updates
        self.identity = identity

    @cached_property
    def code(self) -> str:
        """The state code, made on demand."""
        return self._code if isinstance(self._code, str) else self._code()

    @cached_property
    def kind(self) -> frozenset[tuple[str, str, str]]:
        """The kinds of updates that are missing; numbers in the names of files do not count."""
        return frozenset((call, without_numbers(path), how) for call, path, how in self._updates())

    @property
    def moment(self) -> str:
        """The moment of this state: its step and its number of marks."""
        return f"{self.step}m{self.marks}"

    @cached_property
    def digest(self) -> bytes:
        """A digest of marks, paths and contents: no check can tell two states with one apart."""
        known = repr((self.marks, _identity(self.items) if self.identity is None else self.identity))
        return blake2b(known.encode(errors="surrogatepass"), digest_size=16).digest()

    def __str__(self) -> str:
        """Return the state in words, as reports show it."""
        return (self.text if isinstance(self.text, str) else self.text()) or self.code


def durable_digest(items: Mapping[str, Item], files: FileKinds = KNOWN_FILES) -> bytes:
    """Return a digest of the items that a recording can reproduce.

    Permissions are left out, which depend on the umask, and the contents of volatile files.
    """
    found = [
        (path, item.kind, item.target, None if files.is_volatile(path) or item.content is None else item.content.digest)
        for path, item in sorted(items.items())
    ]
    return blake2b(repr(found).encode(errors="surrogatepass"), digest_size=16).digest()


def _identity(items: Mapping[str, Item]) -> list[tuple[object, ...]]:
    groups: dict[int, int] = {}
    return [
        (
            path,
            item.kind,
            item.mode,
            item.target,
            item.content.digest if item.content is not None else None,
            groups.setdefault(item.node, len(groups)),
        )
        for path, item in sorted(items.items())
    ]


def items_of(
    disk: Disk,
    names: Names,
    content_of: Callable[[int], Content],
    modes: Mapping[int, int],
    *,
    keep: Callable[[str], bool] = lambda _: True,
) -> dict[str, Item]:
    """Return the items of a tree of names, each folder before its content."""
    items: dict[str, Item] = {}
    for path, number in walk(names):
        if keep(path):
            node = disk.nodes[number]
            content = content_of(number) if node.kind == FILE else None
            items[path] = Item(node.kind, modes.get(number, 0), number, content, node.target)
    return items


def live_items(disk: Disk, content_of: Callable[[int], Content] | None = None) -> dict[str, Item]:
    """Return the items of the disk as it is now."""
    return items_of(disk, disk.names, content_of or disk.contents.__getitem__, disk.modes)


def marks_of(recording: Recording) -> tuple[Mark, ...]:
    """Return all marks of a recording, in order."""
    parser = MarkParser()
    marks = [mark for step in recording.steps if step.is_mark for mark in parser.feed(recording.content(step))]
    return (*marks, *parser.finish())
