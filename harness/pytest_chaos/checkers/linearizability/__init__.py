"""Linearizability: as if every operation took effect at one moment between its begin and its end.

    models        what objects promise to one client at a time
    search        whether an order of the calls exists that a model allows

The answer is exact: a finding comes with the longest order that the model allows and with the call
that cannot follow it. A search whose budget ends is INCONCLUSIVE. (Herlihy and Wing,
"Linearizability", 1990; the form of the answer is porcupine's.)
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pytest_chaos.checkers import TIME_IS_UP
from pytest_chaos.checkers.linearizability.models import MODELS, ObjectModel, model_named
from pytest_chaos.checkers.linearizability.search import STATES_KEPT, Decision, SearchLimits, SearchResult, find_order
from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Call, Outcome, calls_of, frozen
from pytest_chaos.model.values import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

    from pytest_chaos.model.history import History
    from pytest_chaos.model.values import Receipt

CONFIGURATIONS_MAX: Final = 50_000_000
MEMORY_BYTES_MAX: Final = 1_000_000_000
_ROUNDS: Final = (20_000, 1_000_000)
"""How many configurations of each part are tried at first, and then."""
_LAST_SHOWN: Final = 8
_PARTS_SHOWN: Final = 3
_CLASSES: Final = {"register": "Register", "cas-register": "CasRegister"}
_SCALARS: Final = frozenset({type(None), bool, int, float, str})


def linearizable(
    model: object,
    functions: Mapping[str, str] | None = None,
    *,
    configurations: int = CONFIGURATIONS_MAX,
    memory_bytes: int = MEMORY_BYTES_MAX,
) -> Linearizability:
    """Return the checker of a model: one of ``models``, its name, or any class with ``step``.

    ``functions`` maps operations of the history to functions of the model:
    ``{"lease": "acquire"}``. Only these are judged then; else those that the model knows. When the
    budget of configurations or memory ends, or the time of ``check_history``, the finding is
    undecided. Raises UsageError for what is no model.

    >>> judge = linearizable("register").judge
    >>> written = Call("write", input=1, process="a", start=0, end=1)
    >>> (finding,) = judge([written, Call("read", output=None, process="b", start=2, end=3)])
    >>> print(finding.text)
    read() -> None by b cannot follow (register; 1 of 2 operations are in order)
      the order ends: write(1) -> None by a
      the state is then: 1
    """
    named = model_named(model) if isinstance(model, str) else model
    made = named() if isinstance(named, type) else named
    if not callable(getattr(made, "step", None)) or not hasattr(made, "initial"):
        msg = f"a model must have initial and step(state, call); got {model!r:.100}. Derive it from models.ObjectModel"
        raise UsageError(msg)
    named_so = (known for known, kind in MODELS.items() if kind is type(made))
    name = model if isinstance(model, str) else next(named_so, type(made).__name__)
    return Linearizability(_Adapted(made), name, functions, configurations, memory_bytes)


class _Part(NamedTuple):
    """The calls that touch one part of an object."""

    name: Hashable
    calls: list[Call]


class _Adapted(ObjectModel):
    """Any model, with what it may have left out."""

    def __init__(self, model: Any) -> None:
        self.initial = model.initial
        self.step = model.step  # type: ignore[method-assign]
        self.functions = frozenset(getattr(model, "functions", ()))
        self.observers = frozenset(getattr(model, "observers", ()))
        self.by_process = getattr(model, "by_process", True)
        self.is_keyed = getattr(model, "is_keyed", True)
        if hasattr(model, "part"):
            self.part = model.part  # type: ignore[method-assign]
        if hasattr(model, "describe"):
            self.describe = model.describe  # type: ignore[method-assign]
        self.other_beginnings: Callable[[Sequence[Call]], Sequence[Any]]
        self.other_beginnings = getattr(model, "other_beginnings", lambda _calls: ())
        if hasattr(model, "leads_to"):
            self.resets = model.resets
            self.leads_to = model.leads_to  # type: ignore[method-assign]


class Linearizability:
    """A checker: call it with a history, or ``judge`` calls from anywhere."""

    def __init__(
        self, model: _Adapted, name: str, functions: Mapping[str, str] | None, configurations: int, memory_bytes: int
    ) -> None:
        self.model = model
        self.name = name
        self.functions = functions
        self.configurations = configurations
        self.memory_bytes = memory_bytes

    def __call__(self, history: History) -> tuple[Finding, ...]:
        """Judge the operations of a history that the model knows."""
        wanted = self.functions if self.functions is not None else (self.model.functions or None)
        return self.judge(calls_of(history, wanted), history.receipts)

    def judge(self, calls: Iterable[Call], receipts: Sequence[Receipt] = ()) -> tuple[Finding, ...]:
        """Judge calls: a finding for each part that has no order, and one for what is undecided.

        Raises UsageError for a call whose function, input or output the model does not know.
        """
        parts = self._parts(self._prepared(calls))
        if not parts:
            text = f"no operation of {self.name} is in the history, so nothing was judged: {self._expected()}"
            return (Finding(signature="linearizability:nothing-to-judge", text=text, kind="harness"),)
        return tuple(self._judged(parts, receipts))

    def _expected(self) -> str:
        names = self.functions or self.model.functions
        return f"write intents and acks of {', '.join(names)}" if names else "write intents and acks"

    def _prepared(self, calls: Iterable[Call]) -> Iterator[Call]:
        """Yield the calls in the words of the model, with inputs and outputs that can be hashed."""
        known = self.model.functions
        for call in calls:
            function = self.functions.get(call.function, call.function) if self.functions else call.function
            if known and function not in known:
                msg = (
                    f"the function of a call must be one of {', '.join(sorted(known))} ({self.name}); got "
                    f"{function!r} at place {call.start + 1} of the history. Map it with functions={{...}}"
                )
                raise UsageError(msg)
            simple = type(call.input) in _SCALARS and type(call.output) in _SCALARS and type(call.key) in _SCALARS
            if simple and function == call.function:
                yield call
                continue
            yield msgspec.structs.replace(
                call, function=function, key=frozen(call.key), input=frozen(call.input), output=frozen(call.output)
            )

    def _parts(self, calls: Iterable[Call]) -> list[_Part]:
        """Return the parts that are judged one by one, the smallest first."""
        model = self.model
        by_key: defaultdict[Hashable, list[Call]] = defaultdict(list)
        for call in calls:
            by_key[call.key if model.is_keyed else None].append(call)
        parts: list[_Part] = []
        for key, own in by_key.items():
            divided: defaultdict[Hashable, list[Call]] = defaultdict(list)
            for call in own:
                if (part := model.part(call)) is None:
                    parts.append(_Part(key, own))
                    break
                divided[part].append(call)
            else:
                parts += [_Part(part if key is None else (key, part), own) for part, own in divided.items()]
        return sorted(parts, key=lambda part: len(part.calls))

    def _judged(self, parts: Sequence[_Part], receipts: Sequence[Receipt]) -> Iterator[Finding]:
        refuted, undecided, reason = self._searched(parts)
        begun = [(part, *self._from_another_beginning(part, found)) for part, found in refuted]
        yield from self._untold([(part, value) for part, value, _ in begun if value is not None])
        refuted = [(part, found) for part, value, found in begun if value is None]
        for part, found in refuted[:_PARTS_SHOWN]:
            yield self._refutation(part, found, len(refuted), receipts)
        if undecided and not refuted:
            text = (
                f"{len(undecided)} of {len(parts)} parts of {self.name} are not decided "
                f"({_of(undecided[0].name)}{len(undecided[0].calls):,} operations: {reason}). Give more "
                "configurations, memory_bytes or time, fewer clients at a time, or keys"
            )
            yield Finding(signature="linearizability:undecided", text=text, kind="harness")

    def _searched(self, parts: Sequence[_Part]) -> tuple[list[tuple[_Part, SearchResult]], Sequence[_Part], str]:
        """Search all parts briefly, then longer what is left, until one is refuted or all is spent.

        One refuted part decides, and it is often a quick one: others may take for ever.
        """
        refuted: list[tuple[_Part, SearchResult]] = []
        left, reason = self.configurations, ""
        for at_most in (*(each for each in _ROUNDS if each < left), left):
            again: list[_Part] = []
            for part in parts:
                limits = SearchLimits(max(1, min(at_most, left)), self.memory_bytes, TIME_IS_UP.get())
                try:
                    found = find_order(part.calls, self.model, limits)
                except (TypeError, ValueError):
                    self._refuse_odd(part.calls)
                    raise
                left -= found.spent
                if found.answer is Decision.NOT_LINEARIZABLE:
                    refuted.append((part, found))
                elif found.answer is Decision.UNKNOWN:
                    again.append(part)
                    reason = found.reason
            parts = again
            if refuted or not parts or left <= 0 or limits.is_over():
                break
        return refuted, parts, reason

    def _from_another_beginning(self, part: _Part, found: SearchResult) -> tuple[Any, SearchResult]:
        """Return the state at first with which a refuted part has an order, ``None`` for none.

        And the refutation that comes furthest.
        """
        limits = SearchLimits(min(self.configurations, _ROUNDS[-1]), self.memory_bytes, TIME_IS_UP.get())
        for value in self.model.other_beginnings(part.calls):
            model = copy.copy(self.model)
            model.initial = value
            other = find_order(part.calls, model, limits)
            if other.answer is Decision.LINEARIZABLE:
                return value, other
            if other.answer is Decision.NOT_LINEARIZABLE and len(other.prefix) > len(found.prefix):
                found = other
        return None, found

    def _untold(self, parts: Sequence[tuple[_Part, Any]]) -> Iterator[Finding]:
        """Yield a finding if parts are in order from another beginning, which nobody told."""
        for part, value in parts[:1]:
            others = f"; {len(parts)} parts are like it" if len(parts) > 1 else ""
            example = f"linearizable(models.{_CLASSES.get(self.name, self.name)}({value!r}))"
            text = (
                f"{self.name}{_of(part.name, ', ')} is in order if it held {value!r} at first, and in none if it held "
                f"nothing{others}: say what it held, {example} "
                f"or chaos check --initial; or let a client write {value!r} first"
            )
            yield Finding(signature="linearizability:beginning-untold", text=text, kind="harness")

    def _refuse_odd(self, calls: Iterable[Call]) -> None:
        """Raise UsageError for the first call that the model cannot judge in any state."""
        for call in calls:
            try:
                self.model.step(self.model.initial, call)
            except (TypeError, ValueError) as error:
                msg = (
                    f"the input and output of a call must be values of {self.name}; got {call} at place "
                    f"{call.start + 1} of the history ({error}). Correct the call, or give another model"
                )
                raise UsageError(msg) from error

    def _refutation(self, part: _Part, found: SearchResult, others: int, receipts: Sequence[Receipt]) -> Finding:
        stuck = found.stuck
        assert stuck is not None  # noqa: S101 - a refuted search has the call that could not return
        count = sum(call.outcome is Outcome.OK for call in part.calls)
        more = f"; {others} parts are like it" if others > 1 else ""
        where = f"{self.name}{_of(part.name, ', ')}; {len(found.prefix)} of {count} operations are in order{more}"
        lines = [f"{stuck} cannot follow ({where})"]
        if found.prefix:
            lines.append(f"the order ends: {'; '.join(map(str, found.prefix[-_LAST_SHOWN:]))}")
        states = " or ".join(f"{self.model.describe(state):.200}" for state in found.states)
        lines.append(f"the state is then: {states}{' or others' if len(found.states) == STATES_KEPT else ''}")
        if found.pending:
            lines.append(f"open at that time: {'; '.join(map(str, found.pending[:_LAST_SHOWN]))}")
        lines += [f"fault: {text}" for text in _faults(stuck, found.pending, receipts)]
        orders = (stuck.start,) if stuck.end is None else (stuck.start, stuck.end)
        return Finding(signature="linearizability:no-order", text="\n  ".join(lines), orders=orders)


def _of(part: Hashable, before: str = "") -> str:
    if part is None:
        return ""
    shown = part[0] if isinstance(part, tuple) and len(part) == 1 else part
    return f"{before}{shown!r}{'' if before else ', '}"


def _faults(stuck: Call, pending: Sequence[Call], receipts: Sequence[Receipt]) -> Iterator[str]:
    """Yield the faults that fired while the call was open; else the last one before it."""
    first = min([stuck.start, *(call.start for call in pending if call.end is not None)])
    last = stuck.end if stuck.end is not None else stuck.start
    fired = [receipt for receipt in receipts if receipt.fired and receipt.order is not None and receipt.order <= last]
    during = [receipt for receipt in fired if receipt.order is not None and receipt.order > first]
    told = (f"{each.kind} {each.agent} {each.when}: {each.evidence}" for each in during[:_LAST_SHOWN] or fired[-1:])
    yield from dict.fromkeys(told)
