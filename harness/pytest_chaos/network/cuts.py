"""Cuts: which agents no longer reach which, as text in a plan and as pairs. Pure.

``a | b`` means both ways, ``a > b`` that what ``a`` sends to ``b`` is lost, ``*`` all others. The
shapes, and their names, are Jepsen's (``jepsen/src/jepsen/nemesis.clj``: ``complete-grudge``,
``split-one``, ``bridge``, ``majorities-ring-perfect``). There a grudge is a map from a node to
those whose messages it does not get.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.model.plan import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

ALL: Final = "*"
RING_MIN: Final = 3
Cut = tuple[str, str]
"""What the first sends to the second is lost."""


def parsed(text: str) -> list[Cut]:
    """Return the cuts that a text means. Raises UsageError.

    >>> parsed("a | b, c > a")
    [('a', 'b'), ('b', 'a'), ('c', 'a')]
    """
    found: list[Cut] = []
    for part in text.split(","):
        sign = "|" if "|" in part else ">"
        first, _, second = (each.strip() for each in part.partition(sign))
        if not first or not second or first in {second, ALL}:
            rule = "pairs such as 'a | b' or 'a > b', parted by commas"
            msg = f"cuts must be {rule}; got {text!r:.200}. Use partition(...)"
            raise UsageError(msg)
        found += [(first, second), (second, first)] if sign == "|" else [(first, second)]
    return list(dict.fromkeys(found))


def text_of(cuts: Iterable[Cut]) -> str:
    """Return cuts as text.

    >>> text_of([("a", "b"), ("b", "a"), ("c", "a")])
    'a | b, c > a'
    """
    given = list(dict.fromkeys(cuts))
    parts = []
    for first, second in given:
        if (second, first) not in given:
            parts.append(f"{first} > {second}")
        elif first != ALL and (second == ALL or first < second):
            parts.append(f"{first} | {second}")
    return ", ".join(parts)


def between(groups: Sequence[Collection[str]], *, one_way: bool = False) -> list[Cut]:
    """Return the cuts that part each group from all others. Raises UsageError.

    >>> text_of(between([{"a"}, {"b", "c"}]))
    'a | b, a | c'
    """
    names = [name for group in groups for name in sorted(_checked(group))]
    if len(groups) < 2 or not all(groups):
        msg = f"a partition must have two groups or more, none of them empty; got {shown(groups)}. Give sets of names"
        raise UsageError(msg)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"the groups of a partition must not overlap; got {twice[0]!r} in two. For that, use bridge(...)"
        raise UsageError(msg)
    if one_way and len(groups) != 2:
        msg = f"a partition of one way must have two groups; got {len(groups)}. What the first sends is lost"
        raise UsageError(msg)
    found: list[Cut] = []
    for place, group in enumerate(groups):
        for other in groups[place + 1 :]:
            pairs = [(first, second) for first in sorted(group) for second in sorted(other)]
            found += pairs if one_way else [cut for pair in pairs for cut in (pair, pair[::-1])]
    return found


def bridged(names: Sequence[str]) -> list[Cut]:
    """Return the cuts that halve the agents, but for one in the middle that reaches all.

    >>> text_of(bridged(["a", "b", "c", "d", "e"]))
    'a | d, a | e, b | d, b | e'

    Raises UsageError.
    """
    nodes = _enough(names, "a bridge")
    half = len(nodes) // 2
    return between([nodes[:half], nodes[half + 1 :]])


def ringed(names: Sequence[str]) -> list[Cut]:
    """Return the cuts after which each agent gets from a majority, and no two from the same one.

    >>> text_of(ringed(["a", "b", "c", "d", "e"]))
    'a | c, a | d, b | d, b | e, c | e'

    Raises UsageError.
    """
    nodes = _enough(names, "a ring of majorities")
    count = len(nodes)
    majority = count // 2 + 1
    found: list[Cut] = []
    for start in range(count):
        window = [nodes[(start + place) % count] for place in range(majority)]
        found += [(other, window[majority // 2]) for other in nodes if other not in window]
    return found


def _enough(names: Sequence[str], what: str) -> list[str]:
    nodes = list(_checked(names))
    if len(nodes) < RING_MIN or len(set(nodes)) != len(nodes):
        msg = f"{what} must have {RING_MIN} agents or more, each once; got {shown(names)}. Give their names in a list"
        raise UsageError(msg)
    return nodes


def _checked(names: Collection[str]) -> Collection[str]:
    if isinstance(names, str) or not all(isinstance(each, str) and each.strip() for each in names):
        msg = f"a group must be a set or list of names of agents; got {shown(names)}. Write {{'a', 'b'}}"
        raise UsageError(msg)
    return names
