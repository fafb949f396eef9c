"""Toxics: what a fault proxy does to the deliveries that a plan names.

A toxic is a kind of fault like any other, except that the process of the proxy carries it out
(``apply``). The evidence is the proxy's own note, written once the toxic had its effect: a
reordered delivery that no other overtook, or a truncated body that was empty, has none.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.faults.kind import FaultKind, Parameter
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model.plan import at_delivery, fault_problems
from pytest_chaos.model.values import AtDelivery, Fault
from pytest_chaos.runtime.child import FAULT_NOTE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.faults.messages import HttpResponse
    from pytest_chaos.faults.proxy_server import PassingDelivery
    from pytest_chaos.model.seed import Stream
    from pytest_chaos.model.values import Json

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
    seconds. ``cut``: the connection is reset, before or after it was ``carried``.

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
    """A kind of fault that strikes deliveries. Its name ends in ``-delivery``."""

    takes = frozenset({AtDelivery})
    advice = "A toxic strikes deliveries: give at_delivery(...)."
    needs_life = False

    def fire(self, firing: Firing) -> None:
        """Do nothing: the proxy has its part of the plan."""

    def evidence(self, firing: Firing) -> str | None:
        """See that the proxy did it."""
        for mark in firing.agent.marks:
            if mark.operation == FAULT_NOTE and mark.key == firing.place and isinstance(mark.value, dict):
                return str(mark.value.get("at", "")) or None
        return None

    @abc.abstractmethod
    async def apply(self, passing: PassingDelivery, **parameters: Any) -> HttpResponse:
        """Do it to a delivery, in the process of the proxy, and return what its sender is told.

        Call ``passing.fired`` once it had its effect; that is the receipt.
        """


class Lose(Toxic):
    """It is never carried."""

    kind = "lose-delivery"
    parameters: ClassVar = {"status": Parameter(int, 200, 599, default=202, may_be_none=True)}

    async def apply(self, passing: PassingDelivery, **parameters: Any) -> HttpResponse:
        """Answer in the server's place, or hang up."""
        status = parameters["status"]
        told = "told nothing" if status is None else f"told {status}"
        passing.fired(f"was not carried; its sender was {told}")
        return passing.hang_up() if status is None else passing.answer(status)


class Delay(Toxic):
    """It is carried later."""

    kind = "delay-delivery"
    parameters: ClassVar = {"delay_s": Parameter(float, 0, 3600, default=0.2)}

    async def apply(self, passing: PassingDelivery, **parameters: Any) -> HttpResponse:
        """Wait, then carry it."""
        delay_s = parameters["delay_s"]
        await passing.sleep(delay_s)
        answer = await passing.carry()
        passing.fired(f"was carried {delay_s:g} s late")
        return answer


class Duplicate(Toxic):
    """It is carried several times."""

    kind = "duplicate-delivery"
    parameters: ClassVar = {"copies": Parameter(int, 2, 100, default=2), "at_once": Parameter(bool, default=False)}

    async def apply(self, passing: PassingDelivery, **parameters: Any) -> HttpResponse:
        """Carry all copies and return the first answer."""
        copies = parameters["copies"]
        if parameters["at_once"]:
            answers = await passing.carry_at_once(copies)
        else:
            answers = [await passing.carry() for _ in range(copies)]
        statuses = ", ".join(str(answer.status) for answer in answers)
        passing.fired(f"was carried {copies} times and answered {statuses}")
        return answers[0]


class Reorder(Toxic):
    """Later deliveries are carried before it."""

    kind = "reorder-delivery"
    parameters: ClassVar = {
        "behind": Parameter(int, 1, 10_000, default=1),
        "hold_s": Parameter(float, 0, 3600, default=5.0),
        "status": Parameter(int, 200, 599, default=None, may_be_none=True),
    }

    async def apply(self, passing: PassingDelivery, **parameters: Any) -> HttpResponse:
        """Carry it behind the others, while its sender waits or after it was told a status."""
        carrying = self._carry_behind(passing, parameters["behind"], parameters["hold_s"])
        status = parameters["status"]
        return await carrying if status is None else passing.answer_before(carrying, status)

    async def _carry_behind(self, passing: PassingDelivery, behind: int, hold_s: float) -> HttpResponse:
        overtaken = await passing.wait_until_overtaken(behind, hold_s)
        answer = await passing.carry()
        if overtaken:
            passing.fired(f"was carried after {behind} later one(s)")
        return answer


class Truncate(Toxic):
    """Only the first part of its body arrives."""

    kind = "truncate-delivery"
    parameters: ClassVar = {"bytes_kept": Parameter(int, default=None, may_be_none=True)}

    async def apply(self, passing: PassingDelivery, **parameters: Any) -> HttpResponse:
        """Carry the part, then hang up on both sides; a shorter body is carried whole."""
        size, kept = len(passing.request.body), parameters["bytes_kept"]
        kept = size // 2 if kept is None else min(kept, size)
        if kept == size:
            return await passing.carry()
        await passing.carry_part(kept)
        passing.fired(f"arrived with {kept} of {size} bytes of its body")
        return passing.hang_up()


_CARRIED: Final = Parameter(bool, default=False)


class Refuse(Toxic):
    """Its sender is told an error, though it may have been carried."""

    kind = "refuse-delivery"
    parameters: ClassVar = {"status": Parameter(int, 200, 599, default=502), "carried": _CARRIED}

    async def apply(self, passing: PassingDelivery, **parameters: Any) -> HttpResponse:
        """Answer with the error."""
        status = parameters["status"]
        passing.fired(f"{await _carry_if(passing, **parameters)}; its sender was told {status}")
        return passing.answer(status, "refused on its way by the fault proxy\n")


class Stall(Toxic):
    """Its sender gets no answer for a while, and then none at all."""

    kind = "stall-delivery"
    parameters: ClassVar = {"carried": _CARRIED, "hold_s": Parameter(float, 0, 3600, default=60.0)}

    async def apply(self, passing: PassingDelivery, **parameters: Any) -> HttpResponse:
        """Keep the sender waiting, then hang up."""
        passing.fired(f"{await _carry_if(passing, **parameters)}; its sender gets no answer")
        passing.note(None)
        await passing.sleep(parameters["hold_s"])
        return passing.hang_up()


class Cut(Toxic):
    """Its sender's connection is reset."""

    kind = "cut-delivery"
    parameters: ClassVar = {"carried": _CARRIED}

    async def apply(self, passing: PassingDelivery, **parameters: Any) -> HttpResponse:
        """Reset the connection."""
        passing.fired(f"{await _carry_if(passing, **parameters)}; its sender's connection was reset")
        return passing.hang_up(reset=True)


async def _carry_if(passing: PassingDelivery, *, carried: bool, **_: Any) -> str:
    return f"was carried and answered {(await passing.carry()).status}" if carried else "was not carried"
