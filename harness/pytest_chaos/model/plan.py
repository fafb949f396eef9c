"""What can befall an HTTP delivery on its way, as plain data: fates, when they strike, and how they are drawn. Pure.

The courier (``pytest_chaos.faults.proxy``) carries requests from any client to any server and gives
each a number, from 1. A fate strikes the deliveries that a plan names. The words are those of
webhooks, since that is where deliveries are lost in practice: at least once, in no order, with a
sender that gives up (each provider's documentation says so of itself).

Plans: which faults meet which agents, and when, fixed as plain data before a run starts.

A plan can be written by hand (:func:`kill`, :func:`at_point`, ...), drawn from a seed
(:func:`draw`), stored in an evidence pack and read from it again (:func:`to_json`,
:func:`from_json`); it is carried out alike. :func:`validate` finds everything that is wrong with it
before the first process starts. Which kinds of faults exist is not known here: the registry of
faults says so, and a target's capabilities decide which of them it is offered (as Jepsen's ``Kill``
and ``Pause`` do).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import AfterMark, AtDelivery, AtMoment, AtPoint, Fault, MarkKind, Now, Plan, When

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from pytest_chaos.model.seed import Stream
    from pytest_chaos.model.values import Json

FATES: Final[Mapping[str, Mapping[str, Json]]] = {
    "lose-delivery": {"status": 202},
    "delay-delivery": {"delay_s": 0.2},
    "duplicate-delivery": {"copies": 2, "at_once": False},
    "reorder-delivery": {"behind": 1, "hold_s": 5.0, "status": None},
    "truncate-delivery": {"bytes_kept": None},
    "refuse-delivery": {"status": 502, "carried": False},
    "stall-delivery": {"carried": False, "hold_s": 60.0},
    "cut-delivery": {"carried": False},
}
"""The fates with their parameters and what these are unless given.

``lose``: it is never carried, and its sender is told ``status`` as if it had been; with None it is
told nothing, and the connection is closed. ``delay``: it is carried ``delay_s`` seconds later.
``duplicate``: it is carried ``copies`` times, one after the other or ``at_once``; the sender gets
the first answer. ``reorder``: ``behind`` later deliveries are carried before it, which are waited
for at most ``hold_s`` seconds; meanwhile its sender waits for the answer, or was told ``status`` at
once. ``truncate``: only its first ``bytes_kept`` bytes of body arrive (half unless given), under a
header that promises all. ``refuse``: its sender is told ``status``, though it may have been
``carried``. ``stall``: its sender gets no answer for ``hold_s`` seconds. ``cut``: the connection is
reset, before or after it was ``carried``.
"""

_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "status": (200, 599),
    "copies": (2, 100),
    "behind": (1, 10_000),
    "bytes_kept": (0, math.inf),
    "delay_s": (0.0, 3600.0),
    "hold_s": (0.0, 3600.0),
}


def at_delivery(number: int = 1, *, count: int | None = 1, path: str = "") -> AtDelivery:
    """Say "the delivery of this number", from 1, and the ``count - 1`` after it; with None, all after it.

    With a ``path``, only requests whose path begins so are counted. Raises UsageError.
    """
    when = AtDelivery(number=number, count=count, path=path)
    if problem := next(when_problems(when), None):
        raise UsageError(problem)
    return when


def deliver(courier: str, fate: str, when: AtDelivery, **parameters: Json) -> Fault:
    """Plan a fate for deliveries of the courier of this name: lose, delay, duplicate, reorder, truncate, refuse, ...

    They are in ``FATES``, with their parameters. Raises UsageError for an unknown fate, or a
    parameter that it has not.
    """
    kind = f"{fate}-delivery"
    if kind not in FATES:
        names = ", ".join(name.removesuffix("-delivery") for name in FATES)
        msg = f"there is no fate called {fate!r} for a delivery; there are {names}"
        raise UsageError(msg)
    fault = Fault(kind=kind, agent=courier, when=when, parameters={**FATES[kind], **parameters})
    if problem := next(delivery_problems(fault), None):
        msg = f"the fate {fate} of delivery {when.number} cannot be: {problem}"
        raise UsageError(msg)
    return fault


def draw_deliveries(
    courier: str, stream: Stream, *, deliveries: int, share: float, fates: Sequence[str] = ("lose", "duplicate")
) -> tuple[Fault, ...]:
    """Draw a fate for each of the first ``deliveries`` with the probability ``share``, all ``fates`` alike likely.

    At least one is drawn: a plan of no faults proves nothing. Raises UsageError.
    """
    if deliveries < 1 or not 0 <= share <= 1 or not fates:
        msg = f"fates are drawn for 1 delivery or more, with a share from 0 to 1, not for {deliveries} with {share}"
        raise UsageError(msg)
    struck = [number for number in range(1, deliveries + 1) if stream.random() < share]
    struck = struck or [1 + int(stream.random() * deliveries)]
    return tuple(deliver(courier, fates[int(stream.random() * len(fates))], at_delivery(number)) for number in struck)


def delivery_problems(fault: Fault) -> Iterator[str]:
    """Say what is wrong with a fault of this family, or with one that only claims to be of it."""
    is_delivery = fault.kind in FATES
    if is_delivery != isinstance(fault.when, AtDelivery):
        yield f"{fault.kind} strikes {'at a delivery: give at_delivery(...)' if is_delivery else 'no delivery'}"
    if isinstance(fault.when, AtDelivery):
        yield from when_problems(fault.when)
    if not is_delivery:
        return
    known = FATES[fault.kind]
    for name, value in fault.parameters.items():
        if name not in known:
            yield f"it has no parameter {name!r}, but {', '.join(known)}"
        elif isinstance(known[name], bool):
            if not isinstance(value, bool):
                yield f"{name} is True or False, not {value!r}"
        elif value is None:
            if known[name] is not None and (fault.kind, name) != ("lose-delivery", "status"):
                yield f"{name} must be given"
        else:
            yield from _number_problems(name, value)


def when_problems(when: AtDelivery) -> Iterator[str]:
    """Say what is wrong with the deliveries that are named."""
    if when.number < 1:
        yield f"deliveries are counted from 1, so there is none with the number {when.number}"
    if when.count is not None and when.count < 1:
        yield f"count is 1 or more, or None for all that follow, not {when.count}"


def describe_delivery(when: AtDelivery) -> str:
    """Say in a few words which deliveries: ``at delivery 3 to 5 of /hooks``."""
    of = f" of {when.path}" if when.path else ""
    if when.count is None:
        return f"at every delivery{of}" + (f" from the {when.number}. on" if when.number > 1 else "")
    last = f" to {when.number + when.count - 1}" if when.count > 1 else ""
    return f"at delivery {when.number}{last}{of}"


def _number_problems(name: str, value: Json) -> Iterator[str]:
    low, high = _BOUNDS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        yield f"{name} is a number from {low:g} to {high:g}, not {value!r}"
    elif not name.endswith("_s") and not isinstance(value, int):
        yield f"{name} is a whole number, not {value!r}"


Choice = TypeVar("Choice")


def now() -> Now:
    """Say "at once": as soon as the agent runs, or when the test fires the fault itself."""
    return Now()


def after_mark(operation: str, *, kind: MarkKind | str = MarkKind.ACK, count: int = 1) -> AfterMark:
    """Say "right after the agent's ``count``-th mark of this operation", counted from 1.

    Raises UsageError for a kind of mark that does not exist.
    """
    try:
        return AfterMark(kind=MarkKind(kind), operation=operation, count=count)
    except ValueError:
        msg = f"there is no kind of mark called {kind!r}: give one of {', '.join(MarkKind)}"
        raise UsageError(msg) from None


def at_point(name: str, *, occurrence: int = 1) -> AtPoint:
    """Say "the ``occurrence``-th time the agent passes the crash point of this name", counted from 1."""
    return AtPoint(point=name, occurrence=occurrence)


def at_moment(delay_s: float, *, after: AfterMark | None = None) -> AtMoment:
    """Say "``delay_s`` seconds after that mark", or after the agent's start where no mark is given."""
    return AtMoment(delay_s=delay_s, after=after)


def kill(agent: str, when: When | None = None) -> Fault:
    """Plan the end that no program can prepare for: SIGKILL."""
    return Fault(kind="kill", agent=agent, when=when or Now())


def terminate(agent: str, when: When | None = None) -> Fault:
    """Plan a request to end, SIGTERM, that the program may answer in its own way."""
    return Fault(kind="terminate", agent=agent, when=when or Now())


def pause(agent: str, when: When | None = None, *, duration_s: float | None = None) -> Fault:
    """Plan that the agent's process stands still for ``duration_s`` seconds; ``None`` means until it is resumed."""
    parameters = {} if duration_s is None else {"duration_s": duration_s}
    return Fault(kind="pause", agent=agent, when=when or Now(), parameters=parameters)


def resume(agent: str, when: When | None = None) -> Fault:
    """Plan that a paused agent goes on: a zombie, if what it held has passed to another meanwhile."""
    return Fault(kind="resume", agent=agent, when=when or Now())


def restart(agent: str, when: When | None = None) -> Fault:
    """Plan that the agent is started again as it was started first, in a new process."""
    return Fault(kind="restart", agent=agent, when=when or Now())


def hold_lock(agent: str, when: When | None = None, *, database: str, duration_s: float) -> Fault:
    """Plan that another process takes the write lock of a SQLite file for ``duration_s`` seconds.

    ``agent`` is the one whose marks, or start, say when. ``database`` is relative to the run's
    directory, so that the plan is the same in every run.
    """
    parameters = {"database": str(database), "duration_s": duration_s}
    return Fault(kind="hold-lock", agent=agent, when=when or Now(), parameters=parameters)


def describe(fault: Fault) -> str:
    """Say a fault in a few words: ``kill writer at recovery.checkpoint.after_commit (2nd time)``."""
    duration_s = fault.parameters.get("duration_s")
    others = ", ".join(f"{name}={value}" for name, value in fault.parameters.items() if name != "duration_s")
    lasting = "" if duration_s is None else f" for {_seconds(duration_s)}"
    return f"{fault.kind} {fault.agent}{lasting} {describe_when(fault.when)}" + (f" ({others})" if others else "")


def describe_when(when: When) -> str:
    """Say in a few words when a fault fires: ``after its 3rd ack of put``."""
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
        case AtDelivery():
            return describe_delivery(when)


def validate(plan: Plan, *, kinds: Collection[str], agents: Collection[str] | None = None) -> None:
    """Find everything that makes a plan impossible to carry out, before anything is started.

    ``kinds`` are the names of the known faults; ``agents`` the names of the agents that exist, or
    ``None`` when they are not known yet. Raises UsageError with all problems in one text, a line
    each where there are several.
    """
    try:
        msgspec.convert(msgspec.to_builtins(plan), Plan)
    except (msgspec.ValidationError, TypeError) as error:
        msg = f"the plan is not made of plain values of the right types: {error}"
        raise UsageError(msg) from error
    problems = [
        f"fault {place} ({describe(fault)}): {problem}"
        for place, fault in enumerate(plan.faults, start=1)
        for problem in _problems(fault, kinds, agents)
    ]
    if problems:
        head = "the plan cannot be carried out: "
        raise UsageError(head + (problems[0] if len(problems) == 1 else "".join(f"\n- {text}" for text in problems)))


def to_json(plan: Plan) -> str:
    """Return the plan as JSON text, for people too: indented. Raises UsageError when a parameter is no JSON value."""
    try:
        return msgspec.json.format(msgspec.json.encode(plan), indent=2).decode()
    except (TypeError, UnicodeEncodeError) as error:
        msg = f"the plan holds a value that JSON cannot hold ({error}): use text, numbers, lists and dictionaries"
        raise UsageError(msg) from error


def from_json(text: str | bytes) -> Plan:
    """Read a plan from the JSON of :func:`to_json`. Raises UsageError that says what was wrong and where."""
    try:
        return msgspec.json.decode(text, type=Plan)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        msg = f"this is not a plan: {error}; expected the JSON of a plan as an evidence pack holds it"
        raise UsageError(msg) from error


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan may be drawn from: what the target can be made to suffer.

    ``points`` are its crash points, each up to its ``occurrence_max``-th time; ``moment_window_s``
    bounds the delay (in seconds, from and to) after the mark ``after``, or after the start. With
    neither points nor a window faults fire at once.
    """

    kinds: tuple[str, ...]
    agents: tuple[str, ...]
    points: tuple[str, ...] = ()
    occurrence_max: int = 1
    moment_window_s: tuple[float, float] | None = None
    after: AfterMark | None = None


def draw(capabilities: Capabilities, stream: Stream, *, count: int = 1) -> tuple[Fault, ...]:
    """Draw ``count`` faults: each with a kind, an agent and a time of its own, all alike likely.

    Where both points and a window are given, each of the two is drawn half of the time. Raises
    UsageError when there is nothing to draw from or a bound makes no sense.
    """
    if problem := _capability_problem(capabilities, count):
        msg = f"no faults can be drawn: {problem}"
        raise UsageError(msg)
    return tuple(
        Fault(
            kind=_choose(capabilities.kinds, stream),
            agent=_choose(capabilities.agents, stream),
            when=_draw_when(capabilities, stream),
        )
        for _ in range(count)
    )


def _draw_when(capabilities: Capabilities, stream: Stream) -> When:
    window_s = capabilities.moment_window_s
    if capabilities.points and (window_s is None or stream.random() < 0.5):
        point = _choose(capabilities.points, stream)
        return AtPoint(point=point, occurrence=1 + int(stream.random() * capabilities.occurrence_max))
    if window_s is None:
        return Now()
    first_s, last_s = window_s
    return AtMoment(delay_s=round(first_s + stream.random() * (last_s - first_s), 6), after=capabilities.after)


def _choose(choices: Sequence[Choice], stream: Stream) -> Choice:
    return choices[int(stream.random() * len(choices))]


def _capability_problem(capabilities: Capabilities, count: int) -> str | None:
    if not capabilities.kinds:
        return "name at least one kind of fault"
    if not capabilities.agents:
        return "name at least one agent"
    if count < 0:
        return f"their number must be 0 or more, not {count}"
    if capabilities.occurrence_max < 1:
        return f"occurrence_max must be 1 or more, not {capabilities.occurrence_max}"
    if capabilities.moment_window_s is not None:
        first_s, last_s = capabilities.moment_window_s
        if not 0 <= first_s <= last_s < math.inf:
            return f"moment_window_s must run from 0 or more to no less, in seconds, not from {first_s} to {last_s}"
    return None


def _problems(fault: Fault, kinds: Collection[str], agents: Collection[str] | None) -> Iterator[str]:
    if fault.kind not in kinds:
        yield f"there is no fault called {fault.kind!r}{_closest(fault.kind, kinds)}"
    if agents is not None and fault.agent not in agents:
        yield f"there is no agent called {fault.agent!r}{_closest(fault.agent, agents)}"
    yield from _when_problems(fault.when)
    yield from delivery_problems(fault)
    duration_s = fault.parameters.get("duration_s", 0.0)
    if isinstance(duration_s, bool) or not isinstance(duration_s, int | float) or not 0 <= duration_s < math.inf:
        yield f"duration_s must be a finite number of seconds, 0 or more, not {duration_s!r}"


def _when_problems(when: When) -> Iterator[str]:
    match when:
        case AtPoint(point=point, occurrence=occurrence):
            if not point.strip():
                yield "the crash point has no name: give the name of an audit event"
            if occurrence < 1:
                yield f"occurrence counts from 1, so it cannot be {occurrence}"
        case AfterMark(operation=operation, count=count):
            if not operation.strip():
                yield "the mark's operation has no name: give the operation that the agent marks"
            if count < 1:
                yield f"count counts from 1, so it cannot be {count}"
        case AtMoment(delay_s=delay_s, after=after):
            if not 0 <= delay_s < math.inf:
                yield f"delay_s must be a finite number of seconds, 0 or more, not {delay_s}"
            if after is not None:
                yield from _when_problems(after)


def _closest(name: str, known: Collection[str]) -> str:
    import difflib  # only a mistake needs it; every start of pytest would pay for it

    close = difflib.get_close_matches(name, known, n=1)
    suggestion = f", did you mean {close[0]!r}?" if close else ":"
    return f"{suggestion} Known: {', '.join(sorted(known))}" if known else ": none is known"


def _ordinal(number: int) -> str:
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _seconds(value: object) -> str:
    return f"{value:g} s" if isinstance(value, int | float) else f"{value!r} s"
