"""Lost, doubled, late, cut and forged-looking deliveries: what befalls HTTP calls between any client and any server.

The courier carries the calls and does it to them (``pytest_chaos.faults.proxy``); here is what the
run knows of it. The evidence is the courier's own note, written when the fate was complete: a
reordered delivery that nobody overtook, or a cut connection whose sender had gone already, has
none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.plan import FATES
from pytest_chaos.model.values import AtDelivery
from pytest_chaos.runtime.child import FAULT_NOTE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.faults.firing import Firing
    from pytest_chaos.model.values import Fault, Json
    from pytest_chaos.runtime.agent import Agent

_HERE: Final = frozenset({"127.0.0.1", "localhost", "::1"})
DELIVERY_NOTE: Final = "delivery"
"""Operation of the note that the courier writes of each delivery, when it is done with it; its key is the number."""
READY_NOTE: Final = "courier-ready"
"""Operation of the courier's first note; its value is the port on which it takes deliveries."""


def check_upstream(upstream: str) -> None:
    """Raise UsageError unless this is the address of a server on loopback, or empty."""
    parts = urlsplit(upstream)
    if upstream and (parts.scheme != "http" or parts.hostname not in _HERE or parts.path not in {"", "/"}):
        msg = f"a courier carries to a server on loopback, such as http://127.0.0.1:8000, and this is {upstream!r}"
        raise UsageError(msg)


def planned(faults: Sequence[Fault], courier: str) -> list[Json]:
    """Return what the courier of this name has to know of the plan."""
    return [
        {
            "fault": place,
            "kind": fault.kind,
            "number": fault.when.number,
            "count": fault.when.count,
            "path": fault.when.path,
            "parameters": {**FATES[fault.kind], **fault.parameters},
        }
        for place, fault in enumerate(faults)
        if fault.agent == courier and isinstance(fault.when, AtDelivery)
    ]


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery, as the courier saw it.

    ``fate`` is ``carried``, the kind of fault that struck it, or ``unreachable`` where no server
    took it. ``status`` is what its sender was told, None if nothing; ``arrivals`` how often the
    server answered a copy of it.
    """

    number: int
    method: str
    path: str
    fate: str
    status: int | None = None
    arrivals: int = 0
    body_bytes: int = 0


class Fate:
    """One of the fates of ``pytest_chaos.model.plan.FATES``."""

    needs_life = False

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def fire(self, firing: Firing) -> None:
        """Do nothing: the courier has it from its plan, and does it when the delivery comes."""

    def evidence(self, firing: Firing) -> str | None:
        """See that the courier did it."""
        for mark in firing.agent.marks:
            if mark.operation == FAULT_NOTE and mark.key == firing.place and isinstance(mark.value, dict):
                return str(mark.value.get("at", "")) or None
        return None


class Courier:
    """The test's side of a courier: where to send to, and what became of each delivery."""

    def __init__(self, agent: Agent, port: int) -> None:
        self.agent = agent
        self.port = port

    @property
    def url(self) -> str:
        """The address that takes the place of the server's: ``http://127.0.0.1:PORT``, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """What became of the deliveries that the courier is done with, by their numbers."""
        notes = [mark for mark in self.agent.marks if mark.operation == DELIVERY_NOTE]
        return tuple(sorted((msgspec.convert(mark.value, Delivery) for mark in notes), key=lambda each: each.number))

    def wait_for_deliveries(self, count: int, *, timeout_s: float = 10.0) -> tuple[Delivery, ...]:
        """Wait until the courier is done with ``count`` deliveries and return them all. Raises WaitExpired."""
        self.agent.wait_for(DELIVERY_NOTE, kind="note", count=count, timeout_s=timeout_s)
        return self.deliveries
