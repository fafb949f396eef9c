"""A kind of fault: its parameters, its times, how it fires, and its evidence.

The harness knows no kind by name. Each is a subclass of :class:`FaultKind`, registered by an entry
point; docs/writing-a-fault.md has a complete example.
"""

from __future__ import annotations

import abc
import contextlib
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from pytest_chaos.model.plan import COUNT_MAX, shown
from pytest_chaos.model.values import AfterMark, AtMoment, AtPoint, AtStep, Now

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from pytest_chaos.clocks.cells import Clocks
    from pytest_chaos.model.values import Fault, Json, Mark, When
    from pytest_chaos.runtime.agent import Agent
    from pytest_chaos.runtime.processes import Process
    from pytest_chaos.runtime.watch import StepWatch

REQUIRED: Final = ...
"""The default of a parameter that has to be given."""

OF_AN_AGENT: Final[frozenset[type[When]]] = frozenset({Now, AfterMark, AtPoint, AtStep, AtMoment})
"""The times that an agent's own life has; deliveries are a fault proxy's."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a fault: a type, bounds (both included), and a default.

    >>> Parameter(float, high=60.0).problem("duration_s", -1)
    'duration_s must be a finite number from 0 to 60; got -1'
    """

    type: type[bool | int | float | str]
    low: float = 0
    high: float = COUNT_MAX
    default: Json = REQUIRED
    may_be_none: bool = False

    def problem(self, name: str, value: Json) -> str | None:
        """Return the problem of a value, or ``None``."""
        return None if self._allows(value) else f"{name} must be {self}; got {shown(value)}"

    def _allows(self, value: Json) -> bool:
        if value is None:
            return self.may_be_none
        if self.type in {bool, str}:
            return isinstance(value, self.type)
        types = int if self.type is int else (int, float)
        is_number = isinstance(value, types) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high  # NaN is in no bounds

    def __str__(self) -> str:
        """Return the rule in words: ``a whole number from 2 to 100``."""
        if self.type is bool:
            rule = "True or False"
        elif self.type is str:
            rule = "text"
        else:
            high = f"{self.high:,}" if isinstance(self.high, int) else f"{self.high:,.15g}"
            rule = f"a {'whole' if self.type is int else 'finite'} number from {self.low:g} to {high}"
        return f"{rule}, or None" if self.may_be_none else rule


class FaultContext(Protocol):
    """The run, as far as a fault may use it."""

    @property
    def directory(self) -> Path:
        """The folder of the run, to which paths in a plan are relative."""
        ...

    def points_passed(self, name: str) -> list[str]:
        """Return the names of the points that agents of this name have passed, each once."""
        ...

    @property
    def steps(self) -> StepWatch:
        """The watcher of durable steps."""
        ...

    def steps_made(self, name: str) -> list[str]:
        """Return the durable steps that watched agents of this name have come to, each once."""
        ...

    @property
    def clocks(self) -> Clocks:
        """The cells by which clocks of agents are moved."""
        ...

    def note(self, name: str, value: Json) -> None:
        """Keep a fact about the run in its record."""
        ...

    @property
    def all_agents(self) -> list[Agent]:
        """The newest incarnation of each agent that a test has started."""
        ...

    def start_again(self, agent: Agent) -> Agent:
        """Start the next incarnation of an agent, as it was started first."""
        ...

    def start_helper(self, name: str, target: str, kwargs: Mapping[str, Json]) -> Agent:
        """Start a process that is part of the fault; it is watched and ended like any agent."""
        ...


@dataclass
class Firing:
    """A fault being fired at one incarnation of an agent.

    ``place`` is its place in the plan, negative for a fault fired by hand. ``held_pid`` is the
    process that stands at the planned point until the evidence is there, 0 for none; it is of the
    agent ``stopped``, whose time it is. ``note`` says where it came to the time of the fault.
    ``helper`` is for a process that the fault consists of: if it ends without evidence, the fault
    did not fire.
    """

    fault: Fault
    agent: Agent
    context: FaultContext
    place: int = -1
    held_pid: int = 0
    stopped: Agent | None = None
    note: Mark | None = None
    helper: Agent | None = None
    victims: list[Process] = field(default_factory=list)
    """Other processes that the fault ended with the agent. Each gets a receipt of its own."""
    children: list[Process] = field(default_factory=list)
    """The descendants of the agent that a fault has left alone."""
    kept: Any = None
    """What its kind keeps of it between two looks."""
    seen: str = ""
    """What was seen while the fault was fired, for kinds whose effect is there at once."""
    problem: str = ""
    """Why it cannot happen any more: its receipt says so, and that it did not fire."""

    waits_for: str = ""
    """What it still waits for: its receipt says so if that does not come."""

    def let_go_on(self) -> None:
        """Let the agent that stands at the planned point go on."""
        held, self.held_pid = self.held_pid, 0
        if held and self.stopped is not None and held == self.stopped.pid:
            self.stopped.send_signal(signal.SIGCONT)
        elif held:  # a child of the agent passed the point
            with contextlib.suppress(ProcessLookupError):
                os.kill(held, signal.SIGCONT)


class FaultKind(abc.ABC):
    """One kind of fault. Subclasses override what differs; instances have no state.

    ``kind`` is the name in plans and reports, equal to the name of the entry point.
    """

    kind: str
    parameters: Mapping[str, Parameter] = {}
    """The parameters by name. A plan with any other is refused."""
    takes: frozenset[type[When]] = OF_AN_AGENT
    """The times at which it can fire. Any other is refused, with ``advice``."""
    advice: str = "A fault proxy counts deliveries: give deliver(...)."
    """A sentence for the error about another time: the alternative."""
    needs_life: bool = True
    """Whether it cannot hit an agent that has ended."""
    holds_call: bool = False
    """Whether it holds a call of the agent, which ``steps.release`` lets pass: a hold."""
    moves_clock: bool = False
    """Whether it moves the clock of its agent, which is prepared for that when it is started."""
    by_signal: signal.Signals | None = None
    """The signal that *is* this fault. A Python agent sends it to itself at a point or mark.

    With ``None`` the agent stops there instead, ``fire`` is called, and the agent goes on as soon
    as ``evidence`` was seen.
    """

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters, each with rule, value and remedy."""
        for name, value in fault.parameters.items():
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "no parameters"
                yield f"the parameters of {self.kind} must be {known}; got {name!r}. Leave it out"
            elif problem := self.parameters[name].problem(name, value):
                yield f"{problem}. Give such a value"
        for name, parameter in self.parameters.items():
            if parameter.default is REQUIRED and name not in fault.parameters:
                yield f"{name} must be {parameter}; got none. Give {name}"

    def signal_of(self, fault: Fault) -> signal.Signals | None:  # noqa: ARG002 - parameters may decide
        """Return the signal that is this fault, where an agent can send it to itself."""
        return self.by_signal

    def uptime_s(self, fault: Fault) -> int:  # noqa: ARG002 - a slot with nothing in it
        """Return by how many seconds the monotonic clocks of its agent start elsewhere."""
        return 0

    def cuts_network(self, fault: Fault, name: str) -> bool:  # noqa: ARG002 - a slot with nothing in it
        """Return whether network calls of an agent of this name may be answered by it."""
        return False

    def can_hit(self, agent: Agent) -> bool:
        """Whether a planned fault whose time has come can happen now."""
        return agent.running or not self.needs_life

    def fire(self, firing: Firing) -> None:
        """Fire the fault from the controller. Called once; must not wait for the effect."""
        number = self.signal_of(firing.fault)
        assert number is not None  # noqa: S101 - a fault that is no signal has a method of its own
        firing.agent.send_signal(number)

    @abc.abstractmethod
    def evidence(self, firing: Firing) -> str | None:
        """Return how the effect was seen, or ``None`` as long as it was not."""

    def follow_up(self, firing: Firing) -> tuple[float, str] | None:  # noqa: ARG002 - a slot with nothing in it
        """Return after how many seconds which kind of fault ends this one, if any."""
        return None
