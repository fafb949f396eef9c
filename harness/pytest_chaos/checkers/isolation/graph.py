"""The dependency graph of transactions, and its shortest cycles by class.

An edge says that one transaction must come before another (Adya's dependencies):

    ww        it wrote the version before the other's
    wr        the other read what it wrote
    rw        it read the version that the other overwrote
    process   the same client began the other after it
    realtime  it had ended when the other began

A cycle is a contradiction, and its edges say how bad: only ww (G0), with wr (G1c), with one rw
(G-single), with several of which none follow each other (G-nonadjacent), with others (G2-item).
Cycles are searched within strongly connected components (Tarjan, 1972), as in Elle.

Where each of many transactions comes before each of many others (all who read an empty register,
all who wrote it), *chains* of nodes stand for the others: there are as many edges as transactions,
not as pairs. No cycle that is told has such a node.
"""

from __future__ import annotations

from collections import deque
from itertools import product
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.checkers import TIME_IS_UP
from pytest_chaos.model.calls import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pytest_chaos.model.calls import Call

WW: Final = 0
WR: Final = 1
RW: Final = 2
PROCESS: Final = 3
REALTIME: Final = 4
KINDS: Final = ("ww", "wr", "rw", "process", "realtime")
_VIA: Final = 5
"""The kind of an edge that goes on within a chain, or from it to a transaction."""
_PAIRS_MAX: Final = 1024
"""How many pairs of transactions get an edge each, before a chain stands for them."""
_SHIFT: Final = 3
_MASK: Final = 7
_ORDERS: Final = (("", ()), ("-process", (PROCESS,)), ("-realtime", (PROCESS, REALTIME)))
_LOOKS_MAX: Final = 1_000_000
"""How many edges are looked at for a cycle of one class in one component: about a second."""


class Dependency(NamedTuple):
    """One transaction before another, by their numbers, and why."""

    before: int
    after: int
    kind: int


class DependencyCycle(NamedTuple):
    """A cycle of a class such as ``G-single-realtime``."""

    anomaly: str
    edges: tuple[Dependency, ...]


class DependencyGraph:
    """Transactions by number, with their edges. An edge to itself is left out."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.out: list[list[int]] = [[] for _ in range(size)]
        """The edges of each transaction, then those of the nodes of chains."""
        self.is_cut = False
        """Whether a search ended before it had tried all edges, and had found nothing."""

    def add(self, before: int, after: int, kind: int) -> None:
        """Add an edge. One that is there already is there twice, which does no harm."""
        if before != after:
            self.out[before].append(after << _SHIFT | kind)

    def add_all(self, befores: Collection[int], afters: Collection[int], kind: int) -> None:
        """Add an edge from each of the first to each of the others, but none to itself."""
        if len(befores) * len(afters) <= _PAIRS_MAX:
            for before, after in product(befores, afters):
                self.add(before, after, kind)
            return
        others = list(dict.fromkeys(afters))
        place_of = {after: place for place, after in enumerate(others)}
        from_here, to_here = self._chain(others), self._chain(others[::-1])[::-1]
        for before in befores:
            place = place_of.get(before)
            if place is None:
                self.out[before].append(from_here[0] << _SHIFT | kind)
                continue
            if place:
                self.out[before].append(to_here[place - 1] << _SHIFT | kind)
            if place + 1 < len(others):
                self.out[before].append(from_here[place + 1] << _SHIFT | kind)

    def _chain(self, others: list[int]) -> list[int]:
        """Return for each place a node that stands for the others from this place on."""
        first = len(self.out)
        self.out += (
            [other << _SHIFT | _VIA, (first + place + 1) << _SHIFT | _VIA] for place, other in enumerate(others)
        )
        self.out[-1].pop()
        return list(range(first, len(self.out)))

    def add_sessions(self, calls: Sequence[Call]) -> None:
        """Add the order of each process: one of its transactions before the next."""
        last: dict[object, int] = {}
        for number, call in enumerate(calls):
            if call.outcome is not Outcome.FAIL:
                if (before := last.get(call.process)) is not None:
                    self.add(before, number, PROCESS)
                last[call.process] = number

    def add_realtime(self, calls: Sequence[Call]) -> None:
        """Add real time: each ended transaction before those that began after it.

        Edges that others imply are left out, so there are about as many as processes each.
        """
        events = [(call.start, 0, number) for number, call in enumerate(calls) if call.outcome is not Outcome.FAIL]
        events += [
            (call.end, 1, number)
            for number, call in enumerate(calls)
            if call.end is not None and call.outcome is Outcome.OK
        ]
        frontier: set[int] = set()
        begun_after: dict[int, tuple[int, ...]] = {}
        for _, is_end, number in sorted(events):
            if is_end:
                frontier.difference_update(begun_after.pop(number))
                frontier.add(number)
            else:
                begun_after[number] = tuple(frontier)
                for before in frontier:
                    self.out[before].append(number << _SHIFT | REALTIME)

    def components(self) -> list[list[int]]:  # noqa: C901 - Tarjan's algorithm without recursion, in one piece for speed
        """Return the strongly connected components of two or more transactions."""
        out = self.out
        size = len(out)
        index = [0] * size  # 0: not seen; a number from 1 once seen
        low = [0] * size
        on_stack = bytearray(size)
        stack: list[int] = []
        found: list[list[int]] = []
        count = 0
        for root in range(size):
            if index[root]:
                continue
            count += 1
            index[root] = low[root] = count
            stack.append(root)
            on_stack[root] = 1
            work = [(root, iter(out[root]))]
            while work:
                node, edges = work[-1]
                for edge in edges:
                    other = edge >> _SHIFT
                    if not index[other]:
                        count += 1
                        index[other] = low[other] = count
                        stack.append(other)
                        on_stack[other] = 1
                        work.append((other, iter(out[other])))
                        break
                    if on_stack[other] and index[other] < low[node]:
                        low[node] = index[other]
                else:
                    work.pop()
                    if work and low[node] < low[work[-1][0]]:
                        low[work[-1][0]] = low[node]
                    if low[node] == index[node]:
                        component = []
                        while True:
                            other = stack.pop()
                            on_stack[other] = 0
                            component.append(other)
                            if other == node:
                                break
                        if len(component) > 1:
                            found.append(sorted(component))
        return found

    def cycles(self, component: Collection[int]) -> Iterator[DependencyCycle]:
        """Yield for each class one of the shortest cycles within a component that was found."""
        edges = _edges_within(self.out, component)
        has = {kind for targets in edges.values() for _, kind in targets}
        seen: set[str] = set()
        for suffix, orders in _ORDERS:
            if suffix and not has & set(orders[-1:]):
                continue
            for name, first, rest, is_apart in _CLASSES:
                if name in seen:
                    continue
                kinds = frozenset((*rest, *orders))
                search = _CycleSearch(edges, kinds, is_apart=is_apart, needs_rw=name == "G2-item" or is_apart)
                cycle = _without_chains(search.run(first))
                self.is_cut = self.is_cut or (search.is_cut and not cycle)
                if cycle and not (name == "G2-item" and _is_apart(cycle)):
                    seen.add(name)
                    begin = cycle.index(min(cycle))
                    yield DependencyCycle(name + suffix, (*cycle[begin:], *cycle[:begin]))


_CLASSES: Final = (
    ("G0", WW, (WW,), False),
    ("G1c", WR, (WW, WR), False),
    ("G-single", RW, (WW, WR), False),
    ("G-nonadjacent", RW, (WW, WR, RW), True),
    ("G2-item", RW, (WW, WR, RW), False),
)
"""Anomaly, the kind of its first edge, of the others, and whether no rw may follow an rw."""


def _without_chains(cycle: Sequence[Dependency]) -> tuple[Dependency, ...]:
    """Return the edges between transactions: one into a chain ends where the chain is left."""
    edges: list[Dependency] = []
    for edge in cycle:
        if edge.kind == _VIA:
            edges[-1] = edges[-1]._replace(after=edge.after)
        else:
            edges.append(edge)
    return tuple(edges)


def _is_apart(cycle: Sequence[Dependency]) -> bool:
    """Whether no rw follows an rw, all around: then the cycle is of an earlier class."""
    return not any(cycle[nth - 1].kind == RW == edge.kind for nth, edge in enumerate(cycle))


def _edges_within(out: list[list[int]], component: Collection[int]) -> dict[int, list[tuple[int, int]]]:
    inside = frozenset(component)
    return {
        node: sorted({(edge >> _SHIFT, edge & _MASK) for edge in out[node] if edge >> _SHIFT in inside})
        for node in component
    }


class _CycleSearch:
    """The search for a cycle that begins with an edge of one kind."""

    def __init__(
        self, edges: dict[int, list[tuple[int, int]]], kinds: frozenset[int], *, is_apart: bool, needs_rw: bool
    ) -> None:
        self.edges = edges
        self.kinds = kinds | {_VIA}
        self.is_apart = is_apart
        self.needs_rw = needs_rw
        self.is_cut = False
        self.looks = 0

    def run(self, first: int) -> tuple[Dependency, ...]:
        """Return the shortest cycle found from the first edges of this kind, or nothing."""
        best: tuple[Dependency, ...] = ()
        is_over = TIME_IS_UP.get()
        for node, targets in self.edges.items():
            for other, kind in targets:
                if kind != first:
                    continue
                if self.looks > (_LOOKS_MAX // 10 if best else _LOOKS_MAX) or is_over():
                    self.is_cut = True
                    return best
                way = self._way(other, node)
                if way and (not best or len(way) + 1 < len(best)):
                    best = (Dependency(node, other, first), *way)
                    if len(best) == 2:
                        return best
        return best

    def _way(self, start: int, goal: int) -> tuple[Dependency, ...]:
        """Return the shortest way by kinds of the class; with ``is_apart`` no rw after an rw."""
        begin = (start, self.is_apart, not self.needs_rw)
        came: dict[tuple[int, bool, bool], tuple[tuple[int, bool, bool], int] | None] = {begin: None}
        queue = deque([begin])
        while queue:
            here = queue.popleft()
            node, after_rw, has_rw = here
            self.looks += len(self.edges[node])
            for other, kind in self.edges[node]:
                if kind not in self.kinds or (after_rw and kind == RW):
                    continue
                ends_rw = after_rw if kind == _VIA else self.is_apart and kind == RW
                there = (other, ends_rw, has_rw or kind == RW)
                if there in came:
                    continue
                if other == goal and there[2]:
                    if there[1]:
                        continue  # the cycle would close with two rw in a row
                    came[there] = (here, kind)
                    way = self._back(came, there)
                    if len({start, *(edge.after for edge in way)}) == len(way) + 1:
                        return way
                    continue
                came[there] = (here, kind)
                queue.append(there)
        return ()

    @staticmethod
    def _back(
        came: dict[tuple[int, bool, bool], tuple[tuple[int, bool, bool], int] | None], end: tuple[int, bool, bool]
    ) -> tuple[Dependency, ...]:
        way: list[Dependency] = []
        place = end
        while (step := came[place]) is not None:
            before, kind = step
            way.append(Dependency(before[0], place[0], kind))
            place = before
        return tuple(reversed(way))
