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
from pytest_chaos.model.values import AfterMark, AtDelivery, AtMoment, AtPoint, AtStep, Fault, MarkKind, Now, Plan, When

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

ITERATIONS_MAX: Final = 100_000
"""Most runs of one scenario in a session: each is a test of its own."""

COUNT_MAX: Final = 1_000_000_000
TIME_S_MAX: Final = 1_000_000.0
"""Eleven days, which no wait lasts; poll(2), which all our waits end in, takes no more than 24."""

BUILDERS: Final[Mapping[type[When], str]] = {
    Now: "now()",
    AfterMark: "after_mark(...)",
    AtPoint: "at_point(...)",
    AtStep: "at_step(...)",
    AtMoment: "at_moment(...)",
    AtDelivery: "at_delivery(...)",
}
"""The times with the calls that users write, in the order in which messages list them."""


STEPS: Final = (
    "create", "create_unnamed", "make_folder", "make_node", "symlink", "link", "unlink", "remove_folder", "rename",
    "exchange", "write", "truncate", "allocate", "zero", "change_mode", "sync", "sync_data", "sync_range", "sync_all",
)  # fmt: skip
"""The actions of durable steps at which a fault can come: those of ``trace/step.py``."""
_CALLS: Final = {
    "fsync": "sync", "fdatasync": "sync_data", "mkdir": "make_folder", "rmdir": "remove_folder", "remove": "unlink",
    "replace": "rename", "open": "create", "chmod": "change_mode", "ftruncate": "truncate", "fallocate": "allocate",
}  # fmt: skip
"""The names of calls that users may write in place of an action."""


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


def after_mark(operation: str, *, kind: MarkKind | str = MarkKind.ACK, count: int = 1, agent: str = "") -> AfterMark:
    """Return the time right after the agent's ``count``-th mark of this operation, from 1.

    With ``agent``, it is the mark of that one. A Python agent stands still there until the fault
    was seen to happen.

    >>> describe_when(after_mark("put", count=3))
    'after its 3rd ack of put'
    >>> describe_when(after_mark("got", agent="reader"))
    "after reader's 1st ack of got"

    Raises UsageError for a kind of mark that does not exist.
    """
    try:
        return AfterMark(kind=MarkKind(kind), operation=operation, count=count, agent=agent)
    except ValueError:
        msg = f"the kind of a mark must be one of {', '.join(MarkKind)}; got {kind!r}"
        raise UsageError(msg) from None


def at_point(name: str, *, path: str = "", occurrence: int = 1, agent: str = "") -> AtPoint:
    """Return the ``occurrence``-th time, from 1, that the agent passes this crash point.

    The point is an audit event: the program's own, or one of Python's. With a ``path``, only events
    with such a path among their arguments are counted. A pattern without ``/`` is that of a file's
    name; another one that of a path, relative to the run's directory. ``agent`` as in
    :func:`after_mark`.

    >>> describe_when(at_point("app.saved", occurrence=2))
    'at app.saved (2nd time)'
    >>> describe_when(at_point("os.rename", path="*.json"))
    'at os.rename of *.json'
    """
    return AtPoint(point=name, path=path, occurrence=occurrence, agent=agent)


def at_step(step: str, *, path: str = "", occurrence: int = 1, agent: str = "") -> AtStep:
    """Return the ``occurrence``-th time, from 1, that the agent is about to make this durable step.

    ``step`` is an action, such as ``rename``, ``write``, ``create`` or ``sync`` (of any program, in
    any language): ``chaos points`` lists those of a target. The system call waits, and is not done
    before the fault was seen to happen. Steps are those in the run's directory. ``path`` and
    ``agent`` as in :func:`at_point`; a rename has two paths.

    >>> describe_when(at_step("rename", path="*.json", occurrence=2))
    'at the step rename of *.json (2nd time)'

    Raises UsageError for an unknown action.
    """
    when = AtStep(step=step, path=path, occurrence=occurrence, agent=agent)
    for problem in _when_problems(when):
        raise UsageError(problem)
    return when


def at_moment(delay_s: float, *, after: AfterMark | None = None, agent: str = "") -> AtMoment:
    """Return the time ``delay_s`` seconds after a mark, or after the agent's start without one.

    >>> describe_when(at_moment(0.5))
    '0.5 s after its start'
    """
    return AtMoment(delay_s=delay_s, after=after, agent=agent)


def time_agent(fault: Fault) -> str:
    """Return the agent whose time the fault's time is: its own, unless the time names another.

    >>> from pytest_chaos import kill
    >>> time_agent(kill("server", after_mark("put", agent="client")))
    'client'
    """
    when = fault.when
    if isinstance(when, AtMoment) and when.after is not None:
        return when.after.agent or fault.agent
    return getattr(when, "agent", "") or fault.agent


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
        case AtPoint(point=name, path=path, occurrence=occurrence, agent=agent):
            return f"at {name}{_of(path, occurrence, agent)}"
        case AtStep(step=name, path=path, occurrence=occurrence, agent=agent):
            return f"at the step {name}{_of(path, occurrence, agent)}"
        case AfterMark(kind=kind, operation=operation, count=count, agent=agent):
            return f"after {_whose(agent)} {_ordinal(count)} {kind} of {operation}"
        case AtMoment(delay_s=delay_s, after=after, agent=agent):
            start = f"after {_whose(agent)} start" if after is None else describe_when(after)
            return f"{_seconds(delay_s)} {start}"
        case AtDelivery(number=number, count=count, path=path):
            of = f" of {path}" if path else ""
            if count is None:
                return f"at every delivery{of}" + (f" from the {number}. on" if number > 1 else "")
            return f"at delivery {number}" + (f" to {number + count - 1}" if count > 1 else "") + of


def _whose(agent: str) -> str:
    return f"{agent}'s" if agent else "its"


def _of(path: str, occurrence: int, agent: str) -> str:
    of = (f" of {path}" if path else "") + (f" ({_ordinal(occurrence)} time)" if occurrence != 1 else "")
    return of + (f", by {agent}" if agent else "")


def _check_types(faults: Iterable[object]) -> None:
    """Raise UsageError for what is no fault, and for a fault whose time is none."""
    for given in faults:
        if not isinstance(given, Fault):
            msg = f"a plan must be made of faults; got {given!r:.200}. Give each by itself: chaos.plan(kill(...), ...)"
            raise UsageError(msg)
        when: object = given.when
        if not isinstance(when, When):
            msg = (
                f"the time of {given.kind} of {given.agent!r} must be at_point(...), at_step(...), after_mark(...), "
                f"at_moment(...) or at_delivery(...); got {when!r:.200}. Call one of them"
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
        builders = [builder for when, builder in BUILDERS.items() if when in rules.takes]
        allowed = " or ".join(part for part in (", ".join(builders[:-1]), builders[-1]) if part)
        yield f"the time of {fault.kind} must be {allowed}; got {BUILDERS[type(fault.when)]}. {rules.advice}"
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
        case AtStep(occurrence=occurrence):
            yield from _step_problems(when)
            yield from _count_problems("occurrence", occurrence)
        case AtPoint(point=point, occurrence=occurrence):
            if not point.strip():
                yield f"the crash point must have a name; got {point!r}. Give the name of an audit event"
            yield from _count_problems("occurrence", occurrence)
        case AfterMark(operation=operation, count=count):
            if not operation.strip():
                yield f"the mark's operation must have a name; got {operation!r}. Give the operation of a mark"
            yield from _count_problems("count", count)
        case AtMoment():
            yield from _moment_problems(when)
        case AtDelivery(number=number, count=limit):
            yield from _count_problems("the number of a delivery", number)
            if limit is not None:
                yield from _count_problems("count", limit)


def _step_problems(when: AtStep) -> Iterator[str]:
    if when.step not in STEPS:
        close = _CALLS.get(when.step) or next(iter(close_matches(when.step, STEPS, n=1)), "")
        fix = f"Did you mean {close!r}?" if close else "chaos points lists the steps of a target"
        yield f"the step must be one of {', '.join(STEPS)}; got {shown(when.step)}. {fix}"
    if when.path.startswith("/"):
        rule = "a pattern relative to the run's directory"
        yield f"the path of a step must be {rule}; got {shown(when.path)}. Let the target work in chaos.directory"


def _moment_problems(when: AtMoment) -> Iterator[str]:
    if when.after is not None and when.agent:
        rule = "a moment after a mark must have the agent of the mark"
        yield f"{rule}; got {when.agent!r}. Give after_mark(..., agent={when.agent!r})"
    if not 0 <= when.delay_s <= TIME_S_MAX:
        rule = f"a finite number of seconds, 0 to {TIME_S_MAX:,.0f}"
        yield f"delay_s must be {rule}; got {shown(when.delay_s)}. Give such a delay"
    if when.after is not None:
        yield from _when_problems(when.after)


def _count_problems(name: str, count: int) -> Iterator[str]:
    if count < 1:
        yield f"{name} must be 1 or more; got {shown(count)}. Count from 1"
    elif count > COUNT_MAX:
        yield f"{name} must be {COUNT_MAX:,} at most; got a larger number. Nothing comes as often"


def close_matches(name: str, known: Collection[str], *, n: int) -> list[str]:
    """Return the known names that are most like a name."""
    import difflib  # only a mistake needs it; every start of pytest would pay for it

    return difflib.get_close_matches(name, known, n=n)


def _closest(name: str, known: Collection[str]) -> str:
    close = close_matches(name, known, n=1)
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
