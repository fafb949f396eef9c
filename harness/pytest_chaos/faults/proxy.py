"""The test's side of a fault proxy: its address, and the outcome of each delivery.

The proxy itself is an agent (``proxy_server.py``). What it does to the deliveries that a plan names
is in ``toxics.py``. The words are those of webhooks, since that is where deliveries are lost in
practice: at least once, in no order, with a sender that gives up (each provider's documentation
says so of itself).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import AtDelivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_chaos.model.values import Fault, Json
    from pytest_chaos.runtime.agent import Agent

TARGET: Final = "pytest_chaos.faults.proxy_server:carry"
DELIVERY_NOTE: Final = "delivery"
"""Operation of the proxy's note about a finished delivery; its key is the delivery's number."""
READY_NOTE: Final = "proxy-ready"
"""Operation of the proxy's first note; its value is the port on which it takes deliveries."""
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery, as the proxy saw it.

    ``outcome`` is ``carried``, the kind of toxic that struck it, or ``unreachable`` where no server
    took it. ``status`` is what its sender was told, None if nothing; ``arrivals`` how often the
    server answered a copy of it.
    """

    number: int
    method: str
    path: str
    outcome: str
    status: int | None = None
    arrivals: int = 0
    body_bytes: int = 0


class FaultProxy:
    """A running fault proxy. Made by ``chaos.proxy``."""

    def __init__(self, agent: Agent, port: int) -> None:
        self.agent = agent
        self.port = port

    @property
    def url(self) -> str:
        """The address to use in place of the server's: ``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """The finished deliveries, by their numbers."""
        notes = [mark for mark in self.agent.marks if mark.operation == DELIVERY_NOTE]
        return tuple(sorted((msgspec.convert(mark.value, Delivery) for mark in notes), key=lambda each: each.number))

    def wait_for_deliveries(self, count: int, *, timeout_s: float = 10.0) -> tuple[Delivery, ...]:
        """Wait until ``count`` deliveries are finished and return them all. Raises WaitExpired."""
        self.agent.wait_for(DELIVERY_NOTE, kind="note", count=count, timeout_s=timeout_s)
        return self.deliveries


def arguments(upstream: str, port: int, faults: Sequence[Fault], name: str) -> dict[str, Json]:
    """Return the arguments of the process of the proxy of this name, with its part of the plan.

    Raises UsageError unless ``upstream`` is the address of a server on loopback, or empty.
    """
    parts = urlsplit(upstream)
    if upstream and (parts.scheme != "http" or parts.hostname not in _LOOPBACK or parts.path not in {"", "/"}):
        msg = (
            f"the server of a fault proxy must be on loopback; got {upstream!r}. "
            "Give an address such as http://127.0.0.1:8000"
        )
        raise UsageError(msg)
    toxics = [
        _planned(place, fault, fault.when)
        for place, fault in enumerate(faults)
        if fault.agent == name and isinstance(fault.when, AtDelivery)
    ]
    return {"upstream": upstream, "port": port, "toxics": toxics}


def _planned(place: int, fault: Fault, when: AtDelivery) -> dict[str, Json]:
    """Return a toxic of the plan in the form that its proxy reads, with its function's name."""
    from pytest_chaos.faults.registry import REGISTRY  # this and the next only where a toxic is planned
    from pytest_chaos.faults.toxics import Toxic

    kind = REGISTRY[fault.kind]
    assert isinstance(kind, Toxic)  # noqa: S101 - the plan was checked
    defaults = {name: parameter.default for name, parameter in kind.parameters.items()}
    return {
        "fault": place,
        "toxic": kind.address,
        "number": when.number,
        "count": when.count,
        "path": when.path,
        "parameters": {**defaults, **fault.parameters},
    }
