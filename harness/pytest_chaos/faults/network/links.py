"""What a link does to TCP connections: ``link-latency``, ``-rate``, ``-reset``, ``-cut``, ...

A link (``chaos.link``) stands between a client and a server. A fault is put in force at its time;
it has fired once a connection felt it. So an agent that stands still at the time goes on as soon as
the fault is in force, and its own next bytes may be the ones that feel it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.faults.kind import FaultKind, Parameter
from pytest_chaos.model.plan import close_matches, fault_problems
from pytest_chaos.model.values import Fault, Now
from pytest_chaos.network import link as links
from pytest_chaos.network.link_server import BOTH, TO_CLIENT, TO_SERVER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import Json, When

PREFIX: Final = "link-"
RATE_MAX: Final = 1_000_000_000
_DIRECTIONS: Final = (BOTH, TO_SERVER, TO_CLIENT)
_ENDS: Final = ("client", "server")
_DIRECTION: Final = Parameter(str, default=BOTH)
_CONNECTION: Final = Parameter(int, 1, default=None, may_be_none=True)
_DELAY: Final = Parameter(float, 0, 3600, default=0.1)


def disturb(link: str, kind: str, when: When | None = None, **parameters: Json) -> Fault:
    """Plan what the link of this name does to its TCP connections from this time on.

    ``latency``: bytes are carried ``delay_s`` seconds later, and up to ``jitter_s`` more, by the
    seed. ``rate``: ``bytes_per_s`` are carried. ``black-hole``: nothing is carried until it is
    healed, and new connections are accepted and lead nowhere. ``cut``: ``after_bytes`` are carried,
    then the connection is closed, or reset with ``reset=True``. ``reset``: both ends get RST.
    ``half-open``: the other end is gone, and the end that ``believes`` (``client`` or ``server``)
    is not told. ``heal``: all of it ends.

    With ``direction`` (``to-server`` or ``to-client``) one direction is meant, with ``connection``
    the one of this number, from 1. A reset, a cut and a half-open end strike what is open then,
    else the next connection. ``when`` is a time of the link, or of another agent.

    >>> disturb("to-db", "latency", delay_s=0.05, direction="to-client").kind
    'link-latency'

    Raises UsageError for an unknown kind, or a parameter that it does not have.
    """
    known = {each.kind.removeprefix(PREFIX): each for each in KINDS}
    if kind not in known:
        close = next(iter(close_matches(str(kind), known, n=1)), "")
        fix = f"Did you mean {close!r}?" if close else "See docs/how-to/network.md"
        msg = f"what a link does must be one of {', '.join(sorted(known))}; got {kind!r:.200}. {fix}"
        raise UsageError(msg)
    rules = known[kind]
    defaults = {name: each.default for name, each in rules.parameters.items() if each.default is not ...}
    fault = Fault(kind=rules.kind, agent=link, when=when or Now(), parameters={**defaults, **parameters})
    for problem in fault_problems(fault, rules()):
        raise UsageError(problem)
    return fault


class LinkFault(FaultKind):
    """A fault of a link: put in force by a message to its process, seen when it is felt."""

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters; a text must be one of a few."""
        yield from super().problems(fault)
        for name, allowed in (("direction", _DIRECTIONS), ("believes", _ENDS)):
            value = fault.parameters.get(name, allowed[0])
            if name in self.parameters and isinstance(value, str) and value not in allowed:
                yield f"{name} must be one of {', '.join(allowed)}; got {value!r:.200}. Give such a value"

    def fire(self, firing: Firing) -> None:
        """Tell the link what to do; an agent that waited for that goes on."""
        if not links.is_link(firing.agent):
            firing.problem = (
                f"the agent of {self.kind} must be a link; got {firing.agent.command}. Start chaos.link(...)"
            )
            return
        identity = secrets.token_hex(8)
        try:
            answer = links.ask(firing.agent, self.message(identity, firing.fault))
        except (ConnectionRefusedError, FileNotFoundError):  # it is being started: asked again
            return
        except OSError as error:
            firing.problem = f"the link did not answer: {error}"
            return
        firing.kept, firing.problem, firing.seen = identity, answer["problem"], answer.get("text", "")
        firing.let_go_on()

    def evidence(self, firing: Firing) -> str | None:
        """Return how a connection felt it, by the link's note."""
        if firing.kept is None:
            if not firing.problem and firing.agent.running:
                self.fire(firing)
            return None
        if firing.problem:
            return None
        for mark in reversed(firing.agent.marks):
            if mark.operation == links.FELT_NOTE and mark.key == firing.kept:
                return str(mark.value)
            if mark.operation == links.UNFELT_NOTE and mark.key == firing.kept:
                firing.problem = "it was healed before a connection felt it"
        return firing.seen or None

    def message(self, identity: str, fault: Fault) -> dict[str, Any]:
        """Return what the link is told."""
        defaults = {name: each.default for name, each in self.parameters.items()}
        kind = self.kind.removeprefix(PREFIX)
        return {"do": "disturb", "id": identity, "kind": kind, "parameters": {**defaults, **fault.parameters}}


class LinkLatency(LinkFault):
    """Bytes come later."""

    kind = "link-latency"
    parameters: Mapping[str, Parameter] = {
        "delay_s": _DELAY,
        "jitter_s": Parameter(float, 0, 3600, default=0.0),
        "direction": _DIRECTION,
        "connection": _CONNECTION,
    }


class LinkRate(LinkFault):
    """Bytes come slowly."""

    kind = "link-rate"
    parameters: Mapping[str, Parameter] = {
        "bytes_per_s": Parameter(int, 1, RATE_MAX, default=10_000),
        "direction": _DIRECTION,
        "connection": _CONNECTION,
    }


class LinkBlackHole(LinkFault):
    """Bytes wait, and no end is told."""

    kind = "link-black-hole"
    parameters: Mapping[str, Parameter] = {"direction": _DIRECTION, "connection": _CONNECTION}


class LinkCut(LinkFault):
    """A connection ends after a number of bytes."""

    kind = "link-cut"
    parameters: Mapping[str, Parameter] = {
        "after_bytes": Parameter(int, default=0),
        "reset": Parameter(bool, default=False),
        "direction": _DIRECTION,
        "connection": _CONNECTION,
    }


class LinkReset(LinkFault):
    """Both ends of connections get RST."""

    kind = "link-reset"
    parameters: Mapping[str, Parameter] = {"connection": _CONNECTION}


class LinkHalfOpen(LinkFault):
    """One end is gone, and the other one is not told."""

    kind = "link-half-open"
    parameters: Mapping[str, Parameter] = {"believes": Parameter(str, default="client"), "connection": _CONNECTION}


class LinkHeal(LinkFault):
    """All faults of a link end. What waits is carried, and half-open ends get RST."""

    kind = "link-heal"

    def message(self, identity: str, fault: Fault) -> dict[str, Any]:  # noqa: ARG002 - as the others
        """Return what the link is told."""
        return {"do": "heal"}


KINDS: Final = (LinkLatency, LinkRate, LinkBlackHole, LinkCut, LinkReset, LinkHalfOpen, LinkHeal)
