"""What can befall an HTTP delivery on its way, as plain data: fates, when they strike, and how they are drawn. Pure.

The courier (``harness.faults.courier``) carries requests from any client to any server and gives each a number, from 1.
A fate strikes the deliveries that a plan names. The words are those of webhooks, since that is where deliveries are
lost in practice: at least once, in no order, with a sender that gives up (each provider's documentation says so of
itself).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from harness.errors import UsageError
from harness.model import AtDelivery, Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.model import Json
    from harness.seed import Stream

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

``lose``: it is never carried, and its sender is told ``status`` as if it had been; with None it is told nothing, and
the connection is closed. ``delay``: it is carried ``delay_s`` seconds later. ``duplicate``: it is carried ``copies``
times, one after the other or ``at_once``; the sender gets the first answer. ``reorder``: ``behind`` later deliveries
are carried before it, which are waited for at most ``hold_s`` seconds; meanwhile its sender waits for the answer, or
was told ``status`` at once. ``truncate``: only its first ``bytes_kept`` bytes of body arrive (half unless given), under
a header that promises all. ``refuse``: its sender is told ``status``, though it may have been ``carried``. ``stall``:
its sender gets no answer for ``hold_s`` seconds. ``cut``: the connection is reset, before or after it was ``carried``.
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

    They are in ``FATES``, with their parameters. Raises UsageError for an unknown fate, or a parameter that it has not.
    """
    kind = f"{fate}-delivery"
    if kind not in FATES:
        names = ", ".join(name.removesuffix("-delivery") for name in FATES)
        msg = f"there is no fate called {fate!r} for a delivery; there are {names}"
        raise UsageError(msg)
    fault = Fault(kind=kind, agent=courier, when=when, parameters={**FATES[kind], **parameters})
    if problem := next(problems(fault), None):
        msg = f"the fate {fate} of delivery {when.number} cannot be: {problem}"
        raise UsageError(msg)
    return fault


def draw(
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


def problems(fault: Fault) -> Iterator[str]:
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


def describe(when: AtDelivery) -> str:
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
