"""Toxics: the faults of HTTP deliveries, carried out by a fault proxy.

A toxic is a kind of fault like any other, except that the process of the proxy carries it out. The
evidence is the proxy's own note, written once the toxic had its effect: a
reordered delivery that no other overtook, or a truncated body that was empty, has none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from pytest_chaos.errors import UsageError
from pytest_chaos.faults.kind import FaultKind, Parameter
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model.plan import at_delivery, fault_problems
from pytest_chaos.model.values import AtDelivery, Fault
from pytest_chaos.runtime.marks import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.faults.messages import HttpResponse
    from pytest_chaos.faults.proxy_server import PassingDelivery
    from pytest_chaos.model.seed import Stream
    from pytest_chaos.model.values import Json

    Apply: TypeAlias = Callable[..., Coroutine[None, None, HttpResponse]]

_SUFFIX: Final = "-delivery"


def deliver(proxy: str, toxic: str, when: AtDelivery, **parameters: Json) -> Fault:
    """Plan a toxic for deliveries of the proxy of this name.

    ``lose``: it is never carried, and its sender is told ``status`` as if it had been; with None
    the connection is closed without an answer. ``delay``: it is carried ``delay_s`` seconds later.
    ``duplicate``: it is carried ``copies`` times, one after the other or ``at_once``; the sender
    gets the first answer. ``reorder``: ``behind`` later deliveries are carried before it, which are
    waited for at most ``hold_s`` seconds; meanwhile its sender waits for the answer, or was told
    ``status`` at once. ``truncate``: only its first ``bytes_kept`` bytes of body arrive (half
    unless given), under a header that promises all. ``refuse``: its sender is told ``status``,
    though it may have been ``carried``. ``stall``: its sender gets no answer for ``hold_s``
    seconds. ``cut``: the connection is reset, before or after it was
    ``carried``. ``storm``: it is not carried, and its sender is told 429 with Retry-After.
    ``malform``: the JSON text in a ``field`` of its answer is broken. ``cut-stream``: its answer
    ends within an ``event``. ``trickle``: its answer comes in pieces.

    >>> deliver("proxy", "lose", at_delivery(3), status=None).parameters
    {'status': None}

    Raises UsageError for an unknown toxic, or a parameter that it does not have.
    """
    kind = f"{toxic}{_SUFFIX}"
    if kind not in REGISTRY:
        names = ", ".join(sorted(name.removesuffix(_SUFFIX) for name in REGISTRY if name.endswith(_SUFFIX)))
        msg = f"a toxic must be one of {names}; got {toxic!r}"
        raise UsageError(msg)
    defaults = {name: parameter.default for name, parameter in REGISTRY[kind].parameters.items()}
    fault = Fault(kind=kind, agent=proxy, when=when, parameters={**defaults, **parameters})
    for problem in fault_problems(fault, REGISTRY[kind]):
        raise UsageError(problem)
    return fault


def draw_deliveries(
    proxy: str, stream: Stream, *, deliveries: int, share: float, toxics: Sequence[str] = ("lose", "duplicate")
) -> tuple[Fault, ...]:
    """Draw a toxic for each of the first ``deliveries`` with the probability ``share``.

    All ``toxics`` are equally likely. At least one is drawn: a plan of no faults proves nothing.
    Raises UsageError.
    """
    if deliveries < 1 or not 0 <= share <= 1 or not toxics:
        msg = (
            "toxics must be drawn for 1 delivery or more, with a share from 0 to 1 and at least one toxic; "
            f"got {deliveries} deliveries, share {share} and toxics {toxics!r}"
        )
        raise UsageError(msg)
    struck = [number for number in range(1, deliveries + 1) if stream.random() < share]
    struck = struck or [1 + int(stream.random() * deliveries)]
    return tuple(deliver(proxy, toxics[int(stream.random() * len(toxics))], at_delivery(number)) for number in struck)


class Toxic(FaultKind):
    """A kind of fault for deliveries, made by :func:`toxic`. Its name ends in ``-delivery``."""

    takes = frozenset({AtDelivery})
    advice = "A toxic strikes deliveries: give at_delivery(...)."
    needs_life = False

    def __init__(self, kind: str, parameters: Mapping[str, Parameter], apply: Apply) -> None:
        self.kind = kind
        self.parameters = parameters
        self.apply = apply
        self.address = f"{apply.__module__}:{apply.__qualname__}"

    def fire(self, firing: Firing) -> None:
        """Do nothing: the proxy has its part of the plan."""

    def evidence(self, firing: Firing) -> str | None:
        """See that the proxy did it."""
        for mark in firing.agent.marks:
            if mark.operation == Note.FAULT and mark.key == firing.place and isinstance(mark.value, dict):
                return str(mark.value.get("at", "")) or None
        return None


def toxic(kind: str, **parameters: Parameter) -> Callable[[Apply], Toxic]:
    """Make a toxic of a coroutine function, which the proxy's process calls with each delivery.

    The function gets the delivery and the parameters by name, and returns the answer to the sender.
    It calls ``passing.fired`` once it had its effect: that is the receipt.
    """
    return lambda apply: Toxic(kind, parameters, apply)


_STATUS: Final = Parameter(int, 200, 599, default=None, may_be_none=True)
_HOLD: Final = Parameter(float, 0, 3600, default=5.0)
_CARRIED: Final = Parameter(bool, default=False)


@toxic("lose-delivery", status=replace(_STATUS, default=202))
async def lose(passing: PassingDelivery, status: int | None) -> HttpResponse:
    """Never carry it; answer in the server's place, or hang up."""
    told = "told nothing" if status is None else f"told {status}"
    passing.fired(f"was not carried; its sender was {told}")
    return passing.hang_up() if status is None else passing.answer(status)


@toxic("delay-delivery", delay_s=replace(_HOLD, default=0.2))
async def delay(passing: PassingDelivery, delay_s: float) -> HttpResponse:
    """Carry it later."""
    await passing.sleep(delay_s)
    answer = await passing.carry()
    passing.fired(f"was carried {delay_s:g} s late")
    return answer


@toxic("duplicate-delivery", copies=Parameter(int, 2, 100, default=2), at_once=Parameter(bool, default=False))
async def duplicate(passing: PassingDelivery, copies: int, *, at_once: bool) -> HttpResponse:
    """Carry it several times and return the first answer."""
    answers = await passing.carry_at_once(copies) if at_once else [await passing.carry() for _ in range(copies)]
    statuses = ", ".join(str(answer.status) for answer in answers)
    passing.fired(f"was carried {copies} times and answered {statuses}")
    return answers[0]


@toxic("reorder-delivery", behind=Parameter(int, 1, 10_000, default=1), hold_s=_HOLD, status=_STATUS)
async def reorder(passing: PassingDelivery, behind: int, hold_s: float, status: int | None) -> HttpResponse:
    """Carry it behind later ones, while its sender waits or after it was told a status."""

    async def carry_behind() -> HttpResponse:
        overtaken = await passing.wait_until_overtaken(behind, hold_s)
        answer = await passing.carry()
        if overtaken:
            passing.fired(f"was carried after {behind} later one(s)")
        return answer

    return await carry_behind() if status is None else passing.answer_before(carry_behind(), status)


@toxic("truncate-delivery", bytes_kept=Parameter(int, default=None, may_be_none=True))
async def truncate(passing: PassingDelivery, bytes_kept: int | None) -> HttpResponse:
    """Carry only the first part of its body, then hang up on both sides."""
    size = len(passing.request.body)
    kept = size // 2 if bytes_kept is None else min(bytes_kept, size)
    if kept == size:
        return await passing.carry()
    await passing.carry_part(kept)
    passing.fired(f"arrived with {kept} of {size} bytes of its body")
    return passing.hang_up()


@toxic("refuse-delivery", status=Parameter(int, 200, 599, default=502), carried=_CARRIED)
async def refuse(passing: PassingDelivery, status: int, *, carried: bool) -> HttpResponse:
    """Tell its sender an error, though it may have been carried."""
    passing.fired(f"{await _carry_if(passing, carried=carried)}; its sender was told {status}")
    return passing.answer(status, "refused on its way by the fault proxy\n")


@toxic("stall-delivery", carried=_CARRIED, hold_s=replace(_HOLD, default=60.0))
async def stall(passing: PassingDelivery, hold_s: float, *, carried: bool) -> HttpResponse:
    """Keep its sender waiting, then hang up."""
    passing.fired(f"{await _carry_if(passing, carried=carried)}; its sender gets no answer")
    passing.note(None)
    await passing.sleep(hold_s)
    return passing.hang_up()


@toxic("cut-delivery", carried=_CARRIED)
async def cut(passing: PassingDelivery, *, carried: bool) -> HttpResponse:
    """Reset its sender's connection."""
    passing.fired(f"{await _carry_if(passing, carried=carried)}; its sender's connection was reset")
    return passing.hang_up(reset=True)


async def _carry_if(passing: PassingDelivery, *, carried: bool) -> str:
    return f"was carried and answered {(await passing.carry()).status}" if carried else "was not carried"
