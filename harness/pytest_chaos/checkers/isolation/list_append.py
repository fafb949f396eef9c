"""List-append: transactions append unique values to lists and read whole lists.

Reading a list shows its whole history, so the longest read of a key is the order of its versions,
and every other read must be the beginning of it (Kingsbury and Alvaro, "Elle: inferring isolation
anomalies from experimental observations", VLDB 2020). From it follow ww, wr and rw edges. An append
that is committed and in no read comes after all that was read.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from pytest_chaos.checkers.isolation.graph import RW, WR, WW, Dependency
from pytest_chaos.checkers.isolation.versions import VersionInference
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_chaos.model.calls import Call


class ListAppend(VersionInference):
    """The inference from lists."""

    writes = "append"

    def __init__(self, calls: Iterable[Call]) -> None:
        super().__init__(calls)
        self.writers: defaultdict[Any, dict[Any, int]] = defaultdict(dict)
        self.several: defaultdict[Any, dict[int, list[Any]]] = defaultdict(dict)
        """For each key: the values of transactions that appended more than one to it."""
        self.reads: defaultdict[Any, list[tuple[int, int, list[Any]]]] = defaultdict(list)
        """For each key: who read, how many values that it had not appended itself, and all."""
        self.longest: dict[Any, list[Any]] = {}

    def infer(self) -> None:
        """Read all transactions, then take each key's edges from its longest read."""
        for number, call in enumerate(self.calls):
            self._note_writes(number, call)
        for number, call in enumerate(self.calls):
            if call.outcome is Outcome.OK:
                self._note_reads(number, call.output)
        for key in self.writers.keys() | self.reads.keys():
            self._connect(key)
        self.find_lost_updates()

    def version(self, value: Any) -> object:
        """Return the length of a list: it names its version where all reads agree."""
        return len(value or ())

    def _note_writes(self, number: int, call: Call) -> None:
        mine: dict[Any, list[Any]] = {}
        for function, key, value in call.input:
            if function != "append":
                continue
            writers = self.writers[key]
            if (other := writers.get(value)) is not None:
                msg = (
                    f"an appended value must be unique within its key; got {value!r} for {key!r} at places "
                    f"{self.calls[other].start + 1} and {call.start + 1} of the history. Append a running number"
                )
                raise UsageError(msg)
            writers[value] = number
            mine.setdefault(key, []).append(value)
            if len(mine[key]) == 2:
                self.several[key][number] = mine[key]

    def _note_reads(self, number: int, steps: Iterable[tuple[str, Any, Any]]) -> None:
        known: dict[Any, list[Any]] = {}
        appended: dict[Any, list[Any]] = {}
        for function, key, value in steps:
            if function == "append":
                if key in known:
                    known[key] = [*known[key], value]
                appended.setdefault(key, []).append(value)
                continue
            seen = list(value or ())
            if key in known:
                if seen != known[key]:
                    text = (
                        f"T{number} read {seen!r:.80} of {key!r}, but by its own operations {known[key]!r:.80} is there"
                    )
                    self.found("internal", text, number)
                    if key not in appended:  # another version, which says as much about others as a first read
                        self._note_read(number, key, seen, len(seen))
                        known[key] = seen
                continue
            own = appended.get(key, ())
            if own and seen[-len(own) :] != own:
                text = f"T{number} appended {own!r:.80} to {key!r}, and then read {seen!r:.80}"
                self.found("internal", text, number)
                known[key] = seen
                continue
            known[key] = seen
            self._note_read(number, key, seen, len(seen) - len(own))

    def _note_read(self, number: int, key: Any, seen: list[Any], length: int) -> None:
        self.reads[key].append((number, length, seen))
        if len(seen) > len(self.longest.get(key, ())):
            self.longest[key] = seen

    def _connect(self, key: Any) -> None:
        order, writers = self.longest.get(key, []), self.writers[key]
        reads = self.reads.get(key, [])
        authors = [writers.get(value, -1) for value in order]
        if len(set(order)) != len(order):
            twice = sorted({repr(value) for value in order if order.count(value) > 1})
            self.found(
                "duplicate-elements", f"a read of {key!r} has {', '.join(twice[:3])} more than once: {order!r:.200}"
            )
            return
        self._judge_values(key, order, authors, reads)
        unseen = self._unseen(key, order)
        before = -1
        for place, author in enumerate((*authors, *unseen)):
            if author >= 0 and before >= 0:
                self.graph.add(before, author, WW)
            if author >= 0 and place < len(authors):
                before = author
        first = {author: place for place, author in reversed(list(enumerate(authors)))}
        latest: list[int] = []
        for number, length, seen in reads:
            if first.get(number, length) < length:
                text = f"T{number} read {seen!r:.80} of {key!r}, with a value that it had yet to append"
                self.found("future-read", text, number)
            if seen == order[: len(seen)]:
                if self._connect_read(number, length, authors):
                    latest.append(number)
                continue
            who = next((reader for reader, _, other in reads if other is order), number)
            text = (
                f"T{number} read {seen!r:.120} of {key!r}, T{who} read {order!r:.120}: they do not agree on the order"
            )
            self.found("incompatible-order", text, number, who)
        self.graph.add_all(latest, unseen, RW)

    def _connect_read(self, number: int, length: int, authors: list[int]) -> bool:
        """Add the edges of one read of so many values: from who wrote its last, to who wrote on.

        Return whether no other transaction is known to have written on.
        """
        add = self.graph.add
        if length and authors[length - 1] >= 0:
            add(authors[length - 1], number, WR)
        for place in range(length, len(authors)):
            if (author := authors[place]) >= 0:
                add(number, author, RW)
                if author != number:
                    return False
        return True

    def _unseen(self, key: Any, order: list[Any]) -> list[int]:
        """Return who has committed an append to the key that no read shows."""
        writers = self.writers[key]
        if len(writers) == len(order):
            return []
        seen = set(order)
        return [
            number
            for value, number in writers.items()
            if value not in seen and self.calls[number].outcome is Outcome.OK
        ]

    def _judge_values(
        self, key: Any, order: list[Any], authors: list[int], reads: list[tuple[int, int, list[Any]]]
    ) -> None:
        """Find values of failed, unfinished and unknown origin."""
        calls, writers_of = self.calls, self.writers[key]
        for place, author in enumerate(authors):
            if author < 0:
                readers = self._readers(reads, place)
                self.found(
                    "invented",
                    f"T{readers[0]} read {order[place]!r} of {key!r}, which no transaction appended",
                    *readers,
                )
            elif calls[author].outcome is Outcome.FAIL:
                readers = self._readers(reads, place)
                text = f"T{readers[0]} read {order[place]!r} of {key!r}, which T{author} appended, and T{author} failed"
                self.found("G1a", text, readers[0], author)
                self._judge_update(key, order, authors, place)
        if not (several := self.several.get(key)):
            return
        for author, values in several.items():
            there = [value for value in order if writers_of.get(value) == author]
            if there != [value for value in values if value in there]:
                text = f"T{author} appended {values!r:.80} to {key!r}, and they are there as {there!r:.80}"
                self.found("internal", text, author)
        for number, length, seen in reads:
            if not length or length > len(authors):
                continue
            author = authors[length - 1]
            if author >= 0 and author != number and author in several and several[author][-1] != seen[length - 1]:
                value = seen[length - 1]
                text = f"T{number} read {value!r} of {key!r}, and T{author} appended more to it in the same transaction"
                self.found("G1b", text, number, author)

    def _judge_update(self, key: Any, order: list[Any], authors: list[int], failed: int) -> None:
        """Find that the next known author after a failed one built on it, and has committed."""
        calls = self.calls
        for place in range(failed + 1, len(authors)):
            outcome = calls[authors[place]].outcome if authors[place] >= 0 else Outcome.UNKNOWN
            if outcome is Outcome.OK:
                text = (
                    f"T{authors[place]} appended {order[place]!r} to {key!r} after {order[failed]!r}, which "
                    f"T{authors[failed]} appended, and T{authors[failed]} failed"
                )
                self.found("dirty-update", text, authors[place], authors[failed])
            if outcome is not Outcome.UNKNOWN:
                return

    @staticmethod
    def _readers(reads: list[tuple[int, int, list[Any]]], place: int) -> list[int]:
        return [number for number, _, seen in reads if len(seen) > place][:1]

    def reason(self, edge: Dependency) -> str:
        """Return the key and value that an edge follows from."""
        return next(self._reasons(edge), "of their keys")

    def _reasons(self, edge: Dependency) -> Iterator[str]:
        before, after, kind = edge
        for function, key, value in self.calls[after].input:
            order, writers = self.longest.get(key, []), self.writers[key]
            if kind == WR and function == "r":
                for number, length, seen in self.reads[key]:
                    if number == after and length and writers.get(seen[length - 1]) == before:
                        yield f"T{after} saw T{before}'s append of {seen[length - 1]!r} to {key!r}"
            elif function == "append" and kind == WW:
                place = order.index(value) if value in order else len(order)
                if place and writers.get(order[place - 1]) == before:
                    yield f"T{after} appended {value!r} to {key!r} after T{before} had appended {order[place - 1]!r}"
            elif function == "append" and kind == RW:
                for number, length, seen in self.reads[key]:
                    if number == before and value not in seen[:length]:
                        yield f"T{before} did not see T{after}'s append of {value!r} to {key!r}"
