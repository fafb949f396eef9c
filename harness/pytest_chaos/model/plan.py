"""Plans: which faults meet which agents, and when, fixed as plain data before a run starts.

A plan is written by hand or drawn from a seed, kept in an evidence pack and read from it again; it
is carried out alike. Here are the times of faults (:func:`at_point`, :func:`after_mark`, ...), a
plan in words (:func:`describe`), and :func:`validate`, which finds everything that is wrong with a
plan before the first process starts. This module knows no kind of fault: each kind says itself
which times and parameters it takes (:class:`FaultRules`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import AfterMark, AtDelivery, AtMoment, AtPoint, Fault, MarkKind, Now, Plan, When

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

ITERATIONS_MAX: Final = 100_000
"""Most runs of one scenario in a session: each is a test of its own."""

COUNT_MAX: Final = 1_000_000_000
TIME_S_MAX: Final = 1_000_000.0
"""Eleven days, which no wait lasts; poll(2), which all our waits end in, takes no more than 24."""

_BUILDERS: Final[Mapping[type[When], str]] = {
    Now: "now()",
    AfterMark: "after_mark(...)",
    AtPoint: "at_point(...)",
    AtMoment: "at_moment(...)",
    AtDelivery: "at_delivery(...)",
}
"""The times with the calls that users write, in the order in which messages list them."""


class FaultRules(Protocol):
    """The rules of a kind of fault, as far as a plan has to know them."""

    @property
    def takes(self) -> Collection[type[When]]:
        """The times at which it can fire."""
        ...

    @property
    def advice(self) -> str:
        """A sentence for the error about another time: the alternative."""
        ...

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters."""
        ...


def now() -> Now:
    """Return the time "at once": as soon as the agent runs, or when the test fires the fault.

    >>> describe_when(now())
    'at once'
    """
    return Now()


def after_mark(operation: str, *, kind: MarkKind | str = MarkKind.ACK, count: int = 1) -> AfterMark:
    """Return the time right after the agent's ``count``-th mark of this operation, from 1.

    >>> describe_when(after_mark("put", count=3))
    'after its 3rd ack of put'

    Raises UsageError for a kind of mark that does not exist.
    """
    try:
        return AfterMark(kind=MarkKind(kind), operation=operation, count=count)
    except ValueError:
        msg = f"the kind of a mark must be one of {', '.join(MarkKind)}; got {kind!r}"
        raise UsageError(msg) from None


def at_point(name: str, *, occurrence: int = 1) -> AtPoint:
    """Return the ``occurrence``-th time, from 1, that the agent passes this crash point.

    >>> describe_when(at_point("app.saved", occurrence=2))
    'at app.saved (2nd time)'
    """
    return AtPoint(point=name, occurrence=occurrence)


def at_moment(delay_s: float, *, after: AfterMark | None = None) -> AtMoment:
    """Return the time ``delay_s`` seconds after a mark, or after the agent's start without one.

    >>> describe_when(at_moment(0.5))
    '0.5 s after its start'
    """
    return AtMoment(delay_s=delay_s, after=after)


def at_delivery(number: int = 1, *, count: int | None = 1, path: str = "") -> AtDelivery:
    """Return the time of a delivery, from 1, and of the ``count - 1`` after it.

    With None for ``count``, all after it are meant. With a ``path``, only requests whose path
    begins so are counted.

    >>> describe_when(at_delivery(3, count=2, path="/hooks"))
    'at delivery 3 to 4 of /hooks'

    Raises UsageError.
    """
    when = AtDelivery(number=number, count=count, path=path)
    for problem in _when_problems(when):
        raise UsageError(problem)
    return when


def describe(fault: Fault) -> str:
    """Return a fault in words: ``kill writer at checkpoint.after_commit (2nd time)``."""
    duration_s = fault.parameters.get("duration_s")
    others = ", ".join(
        f"{name}={value if isinstance(value, str) else shown(value)}"
        for name, value in fault.parameters.items()
        if name != "duration_s"
    )
    lasting = "" if duration_s is None else f" for {_seconds(duration_s)}"
    return f"{fault.kind} {fault.agent}{lasting} {describe_when(fault.when)}" + (f" ({others})" if others else "")


def describe_when(when: When) -> str:
    """Return the time of a fault in words: ``after its 3rd ack of put``."""
    match when:
        case Now():
            return "at once"
        case AtPoint(point=point, occurrence=occurrence):
            return f"at {point}" + (f" ({_ordinal(occurrence)} time)" if occurrence != 1 else "")
        case AfterMark(kind=kind, operation=operation, count=count):
            return f"after its {_ordinal(count)} {kind} of {operation}"
        case AtMoment(delay_s=delay_s, after=after):
            start = "after its start" if after is None else describe_when(after)
            return f"{_seconds(delay_s)} {start}"
        case AtDelivery(number=number, count=count, path=path):
            of = f" of {path}" if path else ""
            if count is None:
                return f"at every delivery{of}" + (f" from the {number}. on" if number > 1 else "")
            return f"at delivery {number}" + (f" to {number + count - 1}" if count > 1 else "") + of


def _check_types(faults: Iterable[object]) -> None:
    """Raise UsageError for what is no fault, and for a fault whose time is none."""
    for given in faults:
        if not isinstance(given, Fault):
            msg = f"a plan must be made of faults; got {given!r:.200}. Give each by itself: chaos.plan(kill(...), ...)"
            raise UsageError(msg)
        when: object = given.when
        if not isinstance(when, When):
            msg = (
                f"the time of {given.kind} of {given.agent!r} must be at_point(...), after_mark(...), at_moment(...) "
                f"or at_delivery(...); got {when!r:.200}. Call one of them"
            )
            raise UsageError(msg)


def validate(plan: Plan, *, kinds: Mapping[str, FaultRules]) -> None:
    """Raise UsageError for a plan that cannot be carried out, before anything is started.

    ``kinds`` are the known faults by name. Raises UsageError with all problems in one text, a line
    each where there are several.
    """
    _check_types(plan.faults)
    try:
        msgspec.convert(msgspec.to_builtins(plan), Plan)
    except (msgspec.ValidationError, TypeError) as error:
        msg = f"a plan must be made of plain values of the right types; got: {error}"
        raise UsageError(msg) from error
    problems = [
        f"fault {place} ({describe(fault)}): {problem}"
        for place, fault in enumerate(plan.faults, start=1)
        for problem in _problems(fault, kinds)
    ]
    if problems:
        head = "the plan cannot be carried out: "
        raise UsageError(head + (problems[0] if len(problems) == 1 else "".join(f"\n- {text}" for text in problems)))


def fault_problems(fault: Fault, rules: FaultRules) -> Iterator[str]:
    """Yield the problems of the time and the parameters of a fault of a known kind."""
    if type(fault.when) not in rules.takes:
        builders = [builder for when, builder in _BUILDERS.items() if when in rules.takes]
        allowed = " or ".join(part for part in (", ".join(builders[:-1]), builders[-1]) if part)
        yield f"the time of {fault.kind} must be {allowed}; got {_BUILDERS[type(fault.when)]}. {rules.advice}"
    yield from _when_problems(fault.when)
    yield from rules.problems(fault)


def _problems(fault: Fault, kinds: Mapping[str, FaultRules]) -> Iterator[str]:
    if fault.kind in kinds:
        yield from fault_problems(fault, kinds[fault.kind])
    else:
        yield f"the fault must be one of {', '.join(sorted(kinds))}; got {fault.kind!r}. {_closest(fault.kind, kinds)}"
        yield from _when_problems(fault.when)


def _when_problems(when: When) -> Iterator[str]:
    match when:
        case AtPoint(point=point, occurrence=occurrence):
            if not point.strip():
                yield f"the crash point must have a name; got {point!r}. Give the name of an audit event"
            yield from _count_problems("occurrence", occurrence)
        case AfterMark(operation=operation, count=count):
            if not operation.strip():
                yield f"the mark's operation must have a name; got {operation!r}. Give the operation of a mark"
            yield from _count_problems("count", count)
        case AtMoment(delay_s=delay_s, after=after):
            if not 0 <= delay_s <= TIME_S_MAX:
                rule = f"a finite number of seconds, 0 to {TIME_S_MAX:,.0f}"
                yield f"delay_s must be {rule}; got {shown(delay_s)}. Give such a delay"
            if after is not None:
                yield from _when_problems(after)
        case AtDelivery(number=number, count=limit):
            yield from _count_problems("the number of a delivery", number)
            if limit is not None:
                yield from _count_problems("count", limit)


def _count_problems(name: str, count: int) -> Iterator[str]:
    if count < 1:
        yield f"{name} must be 1 or more; got {shown(count)}. Count from 1"
    elif count > COUNT_MAX:
        yield f"{name} must be {COUNT_MAX:,} at most; got a larger number. Nothing comes as often"


def _closest(name: str, known: Collection[str]) -> str:
    import difflib  # only a mistake needs it; every start of pytest would pay for it

    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else "Install what brings it, again if it is new"


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _seconds(value: object) -> str:
    return f"{value:g} s" if isinstance(value, float) else f"{shown(value)} s"


def shown(value: object) -> str:
    """Return a value for a message; Python refuses to write out a number of thousands of digits."""
    try:
        return f"{value!r:.200}"
    except ValueError:
        return "a number of more digits than can be shown"
