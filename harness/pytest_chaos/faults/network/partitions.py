"""The faults ``partition``, ``unreachable`` and ``heal``: network calls of agents are answered.

The watcher of steps answers (``network/answers.py``), so the agents may be any programs. A fault
has fired once a call met it: the errno that a program saw, for which call and which other end.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

from pytest_chaos.errors import UsageError
from pytest_chaos.faults.kind import FaultKind, Parameter
from pytest_chaos.model.plan import fault_problems
from pytest_chaos.model.values import Fault, Now
from pytest_chaos.network.cuts import ALL, between, bridged, parsed, ringed, text_of
from pytest_chaos.runtime.marks import Note

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import Json, When
    from pytest_chaos.network.cuts import Cut

ERRORS: Final = ("EHOSTUNREACH", "ECONNREFUSED", "ETIMEDOUT")
_ERROR: Final = Parameter(str, default=ERRORS[0], may_be_none=True)
_DELAY: Final = Parameter(float, 0, 3600, default=0.0)


def partition(
    *groups: Collection[str],
    when: When | None = None,
    error: str | None = ERRORS[0],
    delay_s: float = 0.0,
    one_way: bool = False,
) -> Fault:
    """Plan that agents of different groups no longer reach each other; others reach all.

    A call to connect, send or receive fails with ``error`` (EHOSTUNREACH, ECONNREFUSED or
    ETIMEDOUT), after ``delay_s`` seconds where it may wait; with None it is late and done. With
    ``one_way``, what the first group sends is lost. ``when`` is a time of the first agent by name,
    unless it names another one.

    >>> partition({"a"}, {"b", "c"}).parameters["cuts"]
    'a | b, a | c'

    Raises UsageError for groups that are empty or overlap.
    """
    cuts = between(groups, one_way=one_way)
    return _cut(cuts, when, error, delay_s)


def isolate(agent: str, when: When | None = None, *, error: str | None = ERRORS[0], delay_s: float = 0.0) -> Fault:
    """Plan that an agent reaches no other agent of the run, and none reaches it.

    >>> isolate("a").parameters["cuts"]
    'a | *'
    """
    return _cut([(agent, ALL), (ALL, agent)], when, error, delay_s)


def bridge(
    agents: Sequence[str], when: When | None = None, *, error: str | None = ERRORS[0], delay_s: float = 0.0
) -> Fault:
    """Plan two halves that do not reach each other, with one agent in the middle that reaches all.

    >>> bridge(["a", "b", "c"]).parameters["cuts"]
    'a | c'

    Raises UsageError for fewer than three agents.
    """
    return _cut(bridged(agents), when, error, delay_s)


def majorities_ring(
    agents: Sequence[str], when: When | None = None, *, error: str | None = ERRORS[0], delay_s: float = 0.0
) -> Fault:
    """Plan that each agent hears of a majority, and no two of the same one.

    >>> majorities_ring(["a", "b", "c", "d", "e"]).kind
    'partition'

    Raises UsageError for fewer than three agents.
    """
    return _cut(ringed(agents), when, error, delay_s)


def unreachable(
    agent: str, to: str, when: When | None = None, *, error: str | None = ERRORS[0], delay_s: float = 0.0
) -> Fault:
    """Plan that an agent, with all that it starts, no longer reaches an address.

    ``to`` is ``HOST:PORT``, a host, ``:PORT``, or ``*``. ``error`` and ``delay_s`` as in
    :func:`partition`.

    >>> unreachable("worker", "127.0.0.1:6379", error="ETIMEDOUT", delay_s=0.5).kind
    'unreachable'

    Raises UsageError.
    """
    parameters: dict[str, Json] = {"to": to, "error": error, "delay_s": delay_s}
    return _checked(Fault(kind=UnreachableAddress.kind, agent=agent, when=when or Now(), parameters=parameters))


def heal(agent: str, when: When | None = None) -> Fault:
    """Plan that an agent reaches all again: each partition that it is in ends, for all of it.

    >>> heal("a").kind
    'heal'
    """
    return Fault(kind=Heal.kind, agent=agent, when=when or Now())


def _cut(cuts: Sequence[Cut], when: When | None, error: str | None, delay_s: float) -> Fault:
    text = text_of(cuts)
    agent = min(name for cut in cuts for name in cut if name != ALL)
    parameters: dict[str, Json] = {"cuts": text, "error": error, "delay_s": delay_s}
    return _checked(Fault(kind=Partition.kind, agent=agent, when=when or Now(), parameters=parameters))


def _checked(fault: Fault) -> Fault:
    for problem in fault_problems(fault, _KINDS[fault.kind]()):
        raise UsageError(problem)
    return fault


class _NetworkFault(FaultKind):
    """A message to the watcher, and the notes that it writes of calls that met it."""

    def cuts(self, fault: Fault) -> list[Cut]:  # noqa: ARG002 - a slot with nothing in it
        """Return what is cut between agents."""
        return []

    def cuts_network(self, fault: Fault, name: str) -> bool:
        """Return whether an agent of this name takes part."""
        names = {fault.agent} | {each for cut in self.cuts(fault) for each in cut}
        return name in names or ALL in names

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters: errors are one of a few."""
        yield from super().problems(fault)
        if "error" not in self.parameters:
            return
        error, delay_s = fault.parameters.get("error", ERRORS[0]), fault.parameters.get("delay_s", 0.0)
        if isinstance(error, str) and error not in ERRORS:
            yield f"error must be one of {', '.join(ERRORS)}, or None; got {error!r:.200}. Give such an error"
        if error is None and delay_s == 0:
            yield "delay_s must be more than 0 where error is None; got 0. Give a delay, or an error"

    def fire(self, firing: Firing) -> None:
        """Tell the watcher; an agent that waited for that goes on."""
        agents = {agent.name: agent for agent in firing.context.all_agents}
        names = {firing.fault.agent} | {name for cut in self.cuts(firing.fault) for name in cut} - {ALL}
        if unknown := sorted(names - agents.keys()):
            firing.waits_for = f"agent {unknown[0]!r} must have been started; got {', '.join(sorted(agents))}"
            return
        firing.waits_for = ""
        if ended := [name for name in sorted(names) if not agents[name].running]:
            firing.problem = f"agent {ended[0]!r} must be running; it has ended ({agents[ended[0]].ended})"
            return
        if firing.context.steps.problem:
            firing.problem = firing.context.steps.problem
            return
        identity = secrets.token_hex(8)
        try:
            answer = firing.context.steps.ask_network(self.message(identity, firing.fault))
        except OSError as error:
            firing.problem = f"network calls are not watched here: {error}"
            return
        if waits_for := answer.get("waits_for", ""):  # it is being started, perhaps
            told = f"{waits_for}; they are not. Plan the fault before the agent starts, and see chaos doctor"
            firing.waits_for, firing.problem = told, told if firing.place < 0 else ""
            return
        firing.kept, firing.problem, firing.seen = identity, answer["problem"], answer.get("text", "")
        firing.let_go_on()

    def evidence(self, firing: Firing) -> str | None:
        """Return which call met it, and what it was answered."""
        if firing.kept is None:
            if not firing.problem:
                self.fire(firing)
            return None
        if firing.problem or firing.seen:
            return None if firing.problem else firing.seen
        for agent in firing.context.all_agents:
            for mark in agent.marks:
                if mark.key == firing.kept and mark.operation == Note.NETWORK_FELT:
                    return str(mark.value)
                if mark.key == firing.kept and mark.operation == Note.NETWORK_UNFELT:
                    firing.problem = "it was healed before a call met it"
        return None

    def message(self, identity: str, fault: Fault) -> dict[str, Any]:
        """Return what the watcher is told."""
        defaults: dict[str, Json] = {"to": "", "error": ERRORS[0], "delay_s": 0.0}
        values = {**defaults, **fault.parameters, "cuts": self.cuts(fault)}
        return {"do": "cut", "id": identity, "agent": fault.agent, **values}


class Partition(_NetworkFault):
    """Agents do not reach each other."""

    kind = "partition"
    parameters: Mapping[str, Parameter] = {"cuts": Parameter(str), "error": _ERROR, "delay_s": _DELAY}

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters, and of what is cut."""
        yield from super().problems(fault)
        try:
            names = {name for cut in self.cuts(fault) for name in cut}
        except UsageError as error:
            yield str(error)
            return
        if names and fault.agent not in names:
            yield f"the agent of a partition must be in it; got {fault.agent!r}. Use partition(...)"

    def cuts(self, fault: Fault) -> list[Cut]:
        """Return what is cut between agents."""
        text = fault.parameters.get("cuts")
        return parsed(text) if isinstance(text, str) else []


class UnreachableAddress(_NetworkFault):
    """An agent does not reach an address."""

    kind = "unreachable"
    parameters: Mapping[str, Parameter] = {"to": Parameter(str), "error": _ERROR, "delay_s": _DELAY}

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters: an address is given."""
        yield from super().problems(fault)
        if isinstance(to := fault.parameters.get("to"), str) and not to.strip():
            yield f"to must be HOST:PORT, a host, :PORT or *; got {to!r}. Give such an address"


class Heal(_NetworkFault):
    """All that parts an agent from others ends; calls that are held go on."""

    kind = "heal"

    def message(self, identity: str, fault: Fault) -> dict[str, Any]:  # noqa: ARG002 - as the others
        """Return what the watcher is told."""
        return {"do": "heal", "agent": fault.agent}


_KINDS: Final = {kind.kind: kind for kind in (Partition, UnreachableAddress, Heal)}
