"""Read-write registers: transactions write unique values to registers and read them.

A read shows one version and not what came before, so the order of versions is known in part only.
It comes from rules of which each can be switched on where the target keeps it (Elle's names):

    always             the empty register came before every value
    wfr_keys           a transaction that reads a key and then writes it wrote the later version
    sequential_keys    of two transactions of one process on a key, the first has no later version
    linearizable_keys  of two transactions on a key, one ended before the other began: its version
                       is no later

A value that no transaction wrote may be older than the history, and is not judged.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from pytest_chaos.checkers.isolation.graph import RW, WR, WW, DependencyGraph
from pytest_chaos.checkers.isolation.versions import VersionInference
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from pytest_chaos.checkers.isolation.graph import Dependency
    from pytest_chaos.model.calls import Call


class RwRegister(VersionInference):
    """The inference from registers."""

    writes = "w"

    def __init__(
        self,
        calls: Iterable[Call],
        *,
        wfr_keys: bool = False,
        sequential_keys: bool = False,
        linearizable_keys: bool = False,
    ) -> None:
        super().__init__(calls)
        self.wfr_keys = wfr_keys
        self.sequential_keys = sequential_keys
        self.linearizable_keys = linearizable_keys
        self.writers: defaultdict[Any, dict[Any, int]] = defaultdict(dict)
        self.passing: dict[tuple[Any, Any], int] = {}
        """Values that their own transaction has overwritten, by key and value."""
        self.reads: defaultdict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.follows: defaultdict[Any, dict[tuple[Any, Any], None]] = defaultdict(dict)
        """For each key: pairs of versions of which the first came before the second."""
        self.earlier: defaultdict[Any, defaultdict[Any, list[Any]]] = defaultdict(lambda: defaultdict(list))
        """For each key and version: the versions that are known to come before it."""

    def infer(self) -> None:
        """Read all transactions, then take each key's edges from what is known of its versions."""
        for number, call in enumerate(self.calls):
            self._note_writes(number, call)
        for number, call in enumerate(self.calls):
            if call.outcome is Outcome.OK:
                self._note_reads(number, call.output)
        if self.sequential_keys:
            self._order_by_process()
        if self.linearizable_keys:
            self._order_by_time()
        for key in self.writers.keys() | self.reads.keys():
            self._connect(key)
        self.find_lost_updates()

    def _note_writes(self, number: int, call: Call) -> None:
        mine: dict[Any, Any] = {}
        for function, key, value in call.input:
            if function != "w":
                continue
            if (other := self.writers[key].get(value)) is not None or value is None:
                taken = f"at place {self.calls[other].start + 1} too" if other is not None else "which an empty one has"
                msg = (
                    f"a written value must be unique within its key; got {value!r} for {key!r} at place "
                    f"{call.start + 1} of the history, {taken}. Write a running number"
                )
                raise UsageError(msg)
            self.writers[key][value] = number
            if key in mine:
                self.passing[key, mine[key]] = number
                self.follows[key][mine[key], value] = None
            mine[key] = value

    def _note_reads(self, number: int, steps: Iterable[tuple[str, Any, Any]]) -> None:
        known: dict[Any, Any] = {}
        written: set[Any] = set()
        for function, key, value in steps:
            if function == "w":
                if self.wfr_keys and key in known and key not in written:
                    self.follows[key][known[key], value] = None
                known[key] = value
                written.add(key)
            elif key in known:
                if known[key] != value:
                    text = (
                        f"T{number} read {value!r} of {key!r}, and must have read {known[key]!r} by its own operations"
                    )
                    self.found("internal", text, number)
                    if key not in written:
                        known[key] = value
                        self._note_read(number, key, value)
            else:
                known[key] = value
                self._note_read(number, key, value)

    def _note_read(self, number: int, key: Any, value: Any) -> None:
        self.reads[key][value].append(number)
        author = self.writers[key].get(value) if value is not None else None
        if author is None:
            return
        if author == number:
            self.found("future-read", f"T{number} read {value!r} of {key!r}, which it had yet to write", number)
            return
        if self.calls[author].outcome is Outcome.FAIL:
            text = f"T{number} read {value!r} of {key!r}, which T{author} wrote, and T{author} failed"
            self.found("G1a", text, number, author)
        elif (key, value) in self.passing:
            text = f"T{number} read {value!r} of {key!r}, which T{author} overwrote in the same transaction"
            self.found("G1b", text, number, author)

    def _versions(self) -> Iterator[tuple[Call, Any, Any, Any]]:
        """Yield each committed transaction, and of each key the version that it met and left."""
        for call in self.calls:
            if call.outcome is not Outcome.OK:
                continue
            first: dict[Any, Any] = {}
            last: dict[Any, Any] = {}
            for _, key, value in call.output:
                first.setdefault(key, value)
                last[key] = value
            for key, value in first.items():
                yield call, key, value, last[key]

    def _order_by_process(self) -> None:
        """Note for each key in which order one process met its versions."""
        left: dict[tuple[Any, Any], Any] = {}
        for call, key, met, last in self._versions():
            if (whose := (call.process, key)) in left and left[whose] != met:
                self.follows[key][left[whose], met] = None
            left[whose] = last

    def _order_by_time(self) -> None:
        """Note for each key what real time says of the versions that transactions left and met."""
        touched: defaultdict[Any, list[tuple[int, int, Any, Any]]] = defaultdict(list)
        for call, key, met, last in self._versions():
            if call.end is not None:
                touched[key].append((call.start, call.end, met, last))
        for key, spans in touched.items():
            events = [(start, 0, nth) for nth, (start, _, _, _) in enumerate(spans)]
            events += [(end, 1, nth) for nth, (_, end, _, _) in enumerate(spans)]
            frontier: set[int] = set()
            before: dict[int, tuple[int, ...]] = {}
            for _, is_end, nth in sorted(events):
                if is_end:
                    frontier.difference_update(before.pop(nth))
                    frontier.add(nth)
                    continue
                before[nth] = tuple(frontier)
                for other in frontier:
                    if spans[other][3] != spans[nth][2]:
                        self.follows[key][spans[other][3], spans[nth][2]] = None

    def _connect(self, key: Any) -> None:
        writers, reads = self.writers[key], self.reads[key]
        follows = self.follows[key]
        is_known = [
            value for value, number in writers.items() if self.calls[number].outcome is Outcome.OK or value in reads
        ]
        if self._has_cycle(follows):
            shown = ", ".join(f"{one!r} before {other!r}" for one, other in list(follows)[:4])
            self.found("cyclic-versions", f"the versions of {key!r} have no order: {shown}")
            follows = {}
        has_before = {later for earlier, later in follows if earlier is not None}
        follows = follows | {(None, value): None for value in is_known if value not in has_before}
        for value, readers in reads.items():
            if (author := writers.get(value)) is not None:
                for reader in readers:
                    self.graph.add(author, reader, WR)
        first: list[int] = []
        for earlier, later in follows:
            if (author := writers.get(later)) is None:
                continue
            self.earlier[key][later].append(earlier)
            if earlier is None:
                first.append(author)
                continue
            if (before := writers.get(earlier)) is not None:
                self.graph.add(before, author, WW)
            self.graph.add_all(reads.get(earlier, ()), (author,), RW)
        self.graph.add_all(reads.get(None, ()), first, RW)

    @staticmethod
    def _has_cycle(follows: Collection[tuple[Any, Any]]) -> bool:
        numbers = {
            version: number for number, version in enumerate(dict.fromkeys(each for pair in follows for each in pair))
        }
        graph = DependencyGraph(len(numbers))
        for earlier, later in follows:
            graph.add(numbers[earlier], numbers[later], WW)
        return bool(graph.components())

    def reason(self, edge: Dependency) -> str:
        """Return the key and values that an edge follows from."""
        return next(self._reasons(edge), "of their keys")

    def _reasons(self, edge: Dependency) -> Iterator[str]:
        before, after, kind = edge
        if kind == WR:
            for function, key, value in self.calls[after].output:
                if function == "r" and self.writers[key].get(value) == before:
                    yield f"T{after} saw T{before}'s write of {value!r} to {key!r}"
            return
        for function, key, value in self.calls[after].input:
            for earlier in self.earlier[key][value] if function == "w" else ():
                if kind == WW and self.writers[key].get(earlier) == before:
                    yield f"T{after} wrote {value!r} to {key!r} after T{before} had written {earlier!r}"
                elif kind == RW and before in self.reads[key][earlier]:
                    yield f"T{before} read {earlier!r} of {key!r}, and did not see T{after}'s write of {value!r}"
