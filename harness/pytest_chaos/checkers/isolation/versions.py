"""What a history of transactions shows, before any cycle is searched: the base of both inferences.

A transaction is a call whose input and output are lists of micro-operations ``[function, key,
value]``: ``["append", "x", 1]``, ``["w", "x", 1]``, ``["r", "x", [1, 2]]``. Its number is its place
among the calls, and texts call it ``T7``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_chaos.checkers.isolation.graph import PROCESS, REALTIME, Dependency, DependencyGraph
from pytest_chaos.checkers.isolation.levels import forbidden, still_allowed
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Outcome, calls_of
from pytest_chaos.model.values import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from pytest_chaos.model.calls import Call
    from pytest_chaos.model.history import History
    from pytest_chaos.model.values import Receipt

_SHOWN: Final = 3
_VALUES_SHOWN: Final = 8
_CHARACTERS_SHOWN: Final = 400
FUNCTIONS: Final = ("txn",)


class NamedAnomaly(NamedTuple):
    """An anomaly without a cycle: its name, a sentence, and the transactions it is about."""

    name: str
    text: str
    transactions: tuple[int, ...]


def transactions_of(calls: Iterable[Call], writes: str) -> list[Call]:
    """Return the calls, each checked to be a transaction of reads and ``writes``."""
    transactions = list(calls)
    known = ("r", writes)
    for call in transactions:
        for steps, what in ((call.input, "input"), (call.output if call.outcome is Outcome.OK else (), "output")):
            if not isinstance(steps, list | tuple):
                raise UsageError(_misshapen(call, what, steps, writes))
            for step in steps:
                if not isinstance(step, list | tuple) or len(step) != 3 or step[0] not in known:
                    raise UsageError(_misshapen(call, what, step, writes))
    return transactions


def _misshapen(call: Call, what: str, got: object, writes: str) -> str:
    return (
        f'the {what} of a transaction must be a list of ["r", key, value] and ["{writes}", key, value]; got '
        f"{got!r:.100} at place {call.start + 1} of the history. Give each operation three parts"
    )


class VersionInference:
    """The state of one judgement: transactions, anomalies found, the graph, reasons of edges."""

    writes: str = ""

    def __init__(self, calls: Iterable[Call]) -> None:
        self.calls = transactions_of(calls, self.writes)
        self.graph = DependencyGraph(len(self.calls))
        self.anomalies: list[NamedAnomaly] = []

    def infer(self) -> None:
        """Find anomalies without a cycle, and add the edges of the data."""
        raise NotImplementedError

    def reason(self, edge: Dependency) -> str:
        """Return why an edge of the data is there: ``T2 saw T1's append of 1 to 'x'``."""
        raise NotImplementedError

    def found(self, name: str, text: str, *transactions: int) -> None:
        """Note an anomaly."""
        self.anomalies.append(NamedAnomaly(name, text, transactions))

    def find_lost_updates(self) -> None:
        """Find pairs of committed transactions that read one version of a key and both write it."""
        updates: defaultdict[tuple[object, object], list[int]] = defaultdict(list)
        for number, call in enumerate(self.calls):
            if call.outcome is not Outcome.OK:
                continue
            read: dict[object, object] = {}
            written: set[object] = set()
            for function, key, value in call.output:
                if function == self.writes:
                    if key in read and key not in written:
                        updates[key, read[key]].append(number)
                    written.add(key)
                elif key not in written:
                    read.setdefault(key, self.version(value))
        for (key, _), numbers in updates.items():
            if len(numbers) > 1:
                who = " and ".join(f"T{number}" for number in numbers[:_SHOWN])
                both = f"{who} read the same version of {key!r}, and all wrote it"
                self.found("lost-update", both, *numbers[:_SHOWN])

    def version(self, value: Any) -> object:
        """Return what names the version that a read saw."""
        return value


class Isolation:
    """A checker of one level: call it with a history, or ``judge`` calls from anywhere."""

    def __init__(
        self, inference: type[VersionInference], level: str, name: str, functions: Collection[str], **options: bool
    ) -> None:
        self.make: Callable[..., VersionInference] = inference
        self.level = level
        self.forbidden = forbidden(level)
        self.name = name
        self.functions = functions
        self.options = options

    def __call__(self, history: History) -> tuple[Finding, ...]:
        """Judge the transactions of a history."""
        return self.judge(calls_of(history, self.functions), history.receipts)

    def judge(self, calls: Iterable[Call], receipts: Sequence[Receipt] = ()) -> tuple[Finding, ...]:
        """Judge transactions: a finding for each kind of anomaly that the level forbids."""
        del receipts
        state = self._begun(calls)
        if not any(call.outcome is Outcome.OK for call in state.calls):
            text = f"no transaction of the history is known to be committed, so {self.name} judged nothing"
            return (Finding(signature="isolation:nothing-to-judge", text=text, kind="harness"),)
        state.infer()
        if not state.anomalies and not any(
            step[0] == "r" for call in state.calls if call.outcome is Outcome.OK for step in call.output
        ):
            text = f"no committed transaction has read anything, so {self.name} judged nothing: let clients read, too"
            return (Finding(signature="isolation:nothing-read", text=text, kind="harness"),)
        found = self._anomalies(state)
        names = frozenset(found)
        findings = tuple(
            self._finding(name, cases, state, names) for name, cases in found.items() if name in self.forbidden
        )
        if not findings and state.graph.is_cut:
            text = (
                "transactions depend on each other in a circle, and not all of it was searched: nothing that "
                f"{self.level} forbids was found so far. Give more time, or judge fewer transactions at once"
            )
            return (Finding(signature="isolation:undecided", text=text, kind="harness"),)
        return findings

    def _begun(self, calls: Iterable[Call]) -> VersionInference:
        return self.make(calls, **self.options)

    def anomalies(self, calls: Iterable[Call]) -> tuple[str, ...]:
        """Return the names of all anomalies that are found, allowed ones included, sorted."""
        state = self._begun(calls)
        state.infer()
        return tuple(sorted(self._anomalies(state)))

    def _anomalies(self, state: VersionInference) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
        """Return the cases of each anomaly: their text and their transactions."""
        if any(name.endswith(("-process", "-realtime")) for name in self.forbidden):
            state.graph.add_sessions(state.calls)
        if any(name.endswith("-realtime") for name in self.forbidden):
            state.graph.add_realtime(state.calls)
        found: defaultdict[str, list[tuple[str, tuple[int, ...]]]] = defaultdict(list)
        for anomaly in state.anomalies:
            found[anomaly.name].append((anomaly.text, anomaly.transactions))
        for component in state.graph.components():
            for cycle in state.graph.cycles(component):
                numbers = tuple(edge.before for edge in cycle.edges)
                found[cycle.anomaly].append(("\n".join(_argument(cycle.edges, state)), numbers))
        return dict(found)

    def _finding(
        self, name: str, cases: Sequence[tuple[str, tuple[int, ...]]], state: VersionInference, names: frozenset[str]
    ) -> Finding:
        text, numbers = min(cases, key=lambda case: len(case[1]))
        allowed = still_allowed(names, self.level)
        more = f" ({len(cases)} found)" if len(cases) > 1 else ""
        best = allowed[-1] if allowed else "no level"
        lines = [f"{name}{more} is forbidden under {self.level}; what was seen allows {best}"]
        lines += [f"T{number} = {_shown(state.calls[number])}" for number in dict.fromkeys(numbers)]
        lines += text.splitlines()
        orders = tuple(sorted(state.calls[number].start for number in set(numbers)))
        return Finding(signature=f"isolation:{name}", text="\n  ".join(lines), orders=orders)


def _argument(edges: Sequence[Dependency], state: VersionInference) -> Iterator[str]:
    for nth, edge in enumerate(edges):
        if edge.kind == PROCESS:
            why = f"process {state.calls[edge.before].process} began it first"
        elif edge.kind == REALTIME:
            why = f"T{edge.before} had ended when T{edge.after} began"
        else:
            why = state.reason(edge)
        is_last = nth == len(edges) - 1
        claim = f"T{edge.before} before T{edge.after}, because {why}"
        yield f"but {claim}: a contradiction" if is_last else f"{claim};"


def _short(step: Sequence[Any]) -> list[Any]:
    """Return an operation whose list, if it is long, has its first and its last values."""
    function, key, value = step
    if isinstance(value, list | tuple) and len(value) > _VALUES_SHOWN:
        value = [*value[:2], f"… {len(value) - _VALUES_SHOWN + 1} more …", *value[-(_VALUES_SHOWN - 3) :]]
    return [function, key, value]


def _shown(call: Call) -> str:
    steps = [_short(step) for step in (call.output if call.outcome is Outcome.OK else call.input)]
    text = json.dumps(steps, default=str, ensure_ascii=False)
    text = text if len(text) <= _CHARACTERS_SHOWN else f"{text[: _CHARACTERS_SHOWN - 1]}…"
    return f"{text} by {call.process}{'' if call.outcome is Outcome.OK else ', outcome unknown'}"
