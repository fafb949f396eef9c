"""Elements: what becomes of each value that was put into a set, a queue, a counter, or handed out.

These are Jepsen's ``set-full``, ``total-queue``, ``unique-ids`` and ``counter`` checkers. Each
costs one pass over the calls and says nothing about the order in which calls took effect: that is
what ``linearizability`` asks for, at a higher price.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_chaos.checkers import Bare, counts, findings_of
from pytest_chaos.model.calls import Call, Outcome, calls_of, frozen
from pytest_chaos.model.values import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from pytest_chaos.model.history import History
    from pytest_chaos.model.values import Receipt


class CallChecker:
    """A checker made of a function from calls to findings, and the functions that it reads."""

    def __init__(
        self, name: str, functions: Collection[str], judged: Callable[[Iterable[Call]], Iterable[Finding]]
    ) -> None:
        self.name = name
        self.functions = functions
        self._judged = judged

    def __call__(self, history: History) -> tuple[Finding, ...]:
        """Judge the operations of a history that the checker knows."""
        return self.judge(calls_of(history, self.functions), history.receipts)

    def judge(self, calls: Iterable[Call], receipts: Sequence[Receipt] = ()) -> tuple[Finding, ...]:
        """Judge calls. Without any that happened, nothing is proved."""
        del receipts
        return tuple(self._judged(calls))


class SetSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The elements of a set by what became of them, as lists; ``worst`` is a latency.

    ``stable`` are there in all later reads; ``stale`` were missing in a read after they were known
    to be there, and came back; ``worst`` says for how long: in seconds where calls have times, else
    in places of the history.
    """

    stable: tuple[Any, ...] = ()
    lost: tuple[Any, ...] = ()
    stale: tuple[Any, ...] = ()
    never_read: tuple[Any, ...] = ()
    duplicated: tuple[Any, ...] = ()
    invented: tuple[Any, ...] = ()
    worst: float = 0.0
    worst_element: Any = None
    is_timed: bool = False
    reads: int = 0


def set_full(*, linearizable: bool = False, add: str = "add", read: str = "read") -> CallChecker:
    """Return the checker of a set whose elements are added once, and read all together.

    ``set-full:lost`` for an element that was known to be there and is missing in the last reads;
    ``set-full:duplicated`` and ``set-full:invented`` for what no set has; with ``linearizable``,
    ``set-full:stale`` for one that was missing in between, with the worst latency.

    >>> added = Call("add", input=7, start=0, end=1)
    >>> (finding,) = set_full().judge([added, Call("read", output=[], start=2, end=3)])
    >>> finding.text
    '1 of 1 elements were known to be there, and are lost: 7'
    """

    def judged(calls: Iterable[Call]) -> Iterable[Finding]:
        found = set_summary(calls, add=add, read=read)
        if not found.reads:
            text = "no read of the set is known, so no element can be missed: read all after the faults have healed"
            return (Finding(signature="set-full:nothing-read", text=text, kind="harness"),)
        total = sum(map(len, (found.stable, found.lost, found.stale, found.never_read)))
        worst = f"{found.worst_element!r} for {found.worst:g} {'s' if found.is_timed else 'places of the history'}"
        texts = {
            "lost": f"{len(found.lost)} of {total} elements were known to be there, and are lost",
            "duplicated": f"{len(found.duplicated)} elements read twice at once",
            "invented": f"{len(found.invented)} elements read that were not added",
            "stale": f"{len(found.stale)} elements were missing for a time, at worst {worst}",
        }
        if not linearizable:
            del texts["stale"]
        return [
            finding
            for kind, text in texts.items()
            for finding in findings_of(f"set-full:{kind}", text, getattr(found, kind))
        ]

    return CallChecker("set-full", (add, read), judged)


def set_summary(calls: Iterable[Call], *, add: str = "add", read: str = "read") -> SetSummary:
    """Return what became of each element that was added.

    An element is known from the end of its add, or from the first read that shows it.

    >>> added = Call("add", input=7, start=0, end=1)
    >>> set_summary([added, Call("read", output=[7], start=2, end=3)]).stable
    (7,)
    """
    adds: dict[Any, Call] = {}
    reads: list[tuple[Call, frozenset[Any]]] = []
    duplicated: dict[Any, None] = {}
    for call in calls:
        if call.function == add and call.outcome is not Outcome.FAIL:
            adds[frozen(call.input)] = call
        elif call.function == read and call.outcome is Outcome.OK:
            elements = [frozen(each) for each in call.output or ()]
            present = frozenset(elements)
            reads.append((call, present))
            if len(present) != len(elements):
                duplicated |= dict.fromkeys(each for each, times in Counter(elements).items() if times > 1)
    reads.sort(key=lambda each: each[0].start)
    return _summed(adds, reads, tuple(duplicated))


def _summed(adds: dict[Any, Call], reads: list[tuple[Call, frozenset[Any]]], duplicated: tuple[Any, ...]) -> SetSummary:
    known = _known(adds, reads)
    last_there: dict[Any, Call] = {}
    last_absent: dict[Any, Call] = {}
    searched_there, searched_absent = set(adds), set(adds)
    for call, present in reversed(reads):
        for element in searched_there & present:
            last_there[element] = call
        searched_there -= present
        for element in searched_absent - present:
            if element in known and call.start > known[element][0]:
                last_absent[element] = call
        searched_absent -= last_absent.keys()
    invented = {element: None for _, present in reads for element in present if element not in adds}
    kinds: dict[str, list[Any]] = {"stable": [], "lost": [], "stale": [], "never_read": []}
    worst, worst_element, is_timed = 0.0, None, False
    for element in adds:
        there, absent = last_there.get(element), last_absent.get(element)
        if absent is not None and (there is None or there.start < absent.start):
            kinds["lost"].append(element)
        elif there is None:
            kinds["never_read"].append(element)
        elif absent is None:
            kinds["stable"].append(element)
        else:
            kinds["stale"].append(element)
            latency, timed = _latency(known[element], absent)
            if latency > worst:
                worst, worst_element, is_timed = latency, element, timed
    return SetSummary(
        **{kind: tuple(elements) for kind, elements in kinds.items()}, duplicated=duplicated, invented=tuple(invented),
        worst=worst, worst_element=worst_element, is_timed=is_timed, reads=len(reads),
    )  # fmt: skip


def _known(adds: dict[Any, Call], reads: list[tuple[Call, frozenset[Any]]]) -> dict[Any, tuple[int, float | None]]:
    """Return when each element was first known to be there: its place in the history, and time."""
    known: dict[Any, tuple[int, float | None]] = {
        element: (call.end, call.end_s) for element, call in adds.items() if call.end is not None
    }
    unseen = set(adds)
    for call, present in sorted(reads, key=lambda each: each[0].end or 0):
        end = call.end or 0
        for element in unseen & present:
            if element not in known or end < known[element][0]:
                known[element] = (end, call.end_s)
        unseen -= present
    return known


def _latency(known: tuple[int, float | None], absent: Call) -> tuple[float, bool]:
    place, time_s = known
    if time_s is not None and absent.start_s is not None:
        return absent.start_s - time_s, True
    return float(absent.start - place), False


def total_queue(enqueue: str = "enqueue", dequeue: str = "dequeue", drain: str = "drain") -> CallChecker:
    """Return the checker of a queue that was drained at the end: what goes in comes out, once.

    ``total-queue:lost`` for an acknowledged value that never came out, ``total-queue:duplicated``
    for one that came out more often than it went in, ``total-queue:unexpected`` for one that no
    call put in. An unknown enqueue whose value came out is recovered, and no finding.

    >>> put = Call("enqueue", input=7, start=0, end=1)
    >>> found = total_queue().judge([put, Call("dequeue", output=8, start=2, end=3)])
    >>> [finding.signature for finding in found]
    ['total-queue:lost', 'total-queue:unexpected']
    """

    def judged(calls: Iterable[Call]) -> Iterable[Finding]:
        passed = _Passed()
        passed.count(calls, enqueue, drain)
        if not passed.attempted:
            text = "no value was put into the queue, so none can be lost: write intents and acks of enqueue"
            return (Finding(signature="total-queue:nothing-to-judge", text=text, kind="harness"),)
        return passed.findings()

    return CallChecker("total-queue", (enqueue, dequeue, drain), judged)


class _Passed:
    """The values that went through a queue, and how often each."""

    def __init__(self) -> None:
        self.attempted: Counter[Any] = Counter()
        self.promised: Counter[Any] = Counter()
        self.out: Counter[Any] = Counter()
        self.in_doubt = 0
        """The number of calls that may have taken a value out."""

    def count(self, calls: Iterable[Call], enqueue: str, drain: str) -> None:
        """Count the values of all calls."""
        attempted, promised, out = self.attempted, self.promised, self.out
        ok, unknown = Outcome.OK, Outcome.UNKNOWN
        for call in calls:
            outcome, function = call.outcome, call.function
            if outcome is not ok and outcome is not unknown:
                continue
            if function == enqueue:
                value = frozen(call.input) if call.input.__hash__ is None else call.input
                attempted[value] += 1
                if outcome is ok:
                    promised[value] += 1
            elif outcome is unknown:
                self.in_doubt += 1
            else:
                for value in (call.output or ()) if function == drain else (call.output,):
                    if value is not None:
                        out[frozen(value) if value.__hash__ is None else value] += 1

    def findings(self) -> tuple[Finding, ...]:
        """Return what was lost, duplicated and unexpected."""
        lost = self.promised - self.out
        unexpected = [value for value in self.out if value not in self.attempted]
        repeated = {value: times for value, times in (self.out - self.attempted).items() if value in self.attempted}
        lost_text = f"{lost.total()} acknowledged values did not come out"
        may_be_taken = lost.total() <= self.in_doubt
        if may_be_taken:
            lost_text += f" ({self.in_doubt} calls that take values out are unknown, and may have taken them)"
        repeated_text = f"{len(repeated)} values came out too often (value: times too often)"
        unexpected_text = f"{len(unexpected)} values came out that nothing put in"
        return (
            *findings_of("total-queue:lost", lost_text, list(lost), kind="harness" if may_be_taken else "safety"),
            *findings_of("total-queue:duplicated", repeated_text, counts(repeated)),
            *findings_of("total-queue:unexpected", unexpected_text, unexpected),
        )


def unique_ids(generate: str = "generate") -> CallChecker:
    """Return the checker of ids: no two calls got the same. The finding is ``unique-ids:repeated``.

    >>> calls = [Call("generate", output=7, start=n, end=n + 1) for n in (0, 2)]
    >>> [finding.text for finding in unique_ids().judge(calls)]
    ['1 ids were handed out more than once (id: times): 7: 2']
    """

    def judged(calls: Iterable[Call]) -> Iterable[Finding]:
        given = Counter(
            frozen(call.output) for call in calls if call.function == generate and call.outcome is Outcome.OK
        )
        if not given:
            text = f"no id was handed out, so none can be repeated: write intents and acks of {generate}"
            return (Finding(signature="unique-ids:nothing-to-judge", text=text, kind="harness"),)
        repeated = {each: times for each, times in given.items() if times > 1}
        text = f"{len(repeated)} ids were handed out more than once (id: times)"
        return findings_of("unique-ids:repeated", text, counts(repeated))

    return CallChecker("unique-ids", (generate,), judged)


def counter(add: str = "add", read: str = "read") -> CallChecker:
    """Return the checker of a counter: each read lies between what was and what may be there.

    The lowest value is that of the adds that had ended when the read began, the highest that of
    those that had begun when it ended. The finding is ``counter:out-of-bounds``.

    >>> calls = [Call("add", input=2, start=0, end=1), Call("read", output=1, start=2, end=3)]
    >>> [finding.text for finding in counter().judge(calls)]
    ['1 of 1 reads are out of bounds: 1 at place 3, not within 2 to 2']
    """

    def judged(calls: Iterable[Call]) -> Iterable[Finding]:
        known = [
            call
            for call in calls
            if call.outcome is Outcome.OK or (call.function == add and call.outcome is Outcome.UNKNOWN)
        ]
        reads = sum(call.function == read for call in known)
        if not reads:
            text = "no read of the counter is known, so none can be wrong: write intents and acks of read"
            return (Finding(signature="counter:nothing-to-judge", text=text, kind="harness"),)
        wrong = list(_out_of_bounds(known, read))
        return findings_of("counter:out-of-bounds", f"{len(wrong)} of {reads} reads are out of bounds", wrong)

    return CallChecker("counter", (add, read), judged)


def _out_of_bounds(calls: Sequence[Call], read: str) -> Iterator[Bare]:
    """Yield the reads that no choice of the adds that were open explains."""
    events = [(call.start, 0, call) for call in calls]
    events += [(call.end, 1, call) for call in calls if call.end is not None]
    lowest = highest = 0
    at_begin: dict[int, tuple[int, int]] = {}
    for _, is_end, call in sorted(events, key=lambda each: each[:2]):
        if call.function != read:
            if (call.input > 0) is bool(is_end):
                lowest += call.input
            else:
                highest += call.input
        elif not is_end:
            at_begin[call.start] = (lowest, highest)
        else:
            low, high = min(at_begin[call.start][0], lowest), max(at_begin[call.start][1], highest)
            if not low <= call.output <= high:
                yield Bare(f"{call.output!r} at place {call.start + 1}, not within {low} to {high}")
