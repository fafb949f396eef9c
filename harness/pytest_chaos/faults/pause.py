"""The faults ``pause`` and ``resume``: SIGSTOP, and SIGCONT, which ends it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pytest_chaos.faults.kind import FaultKind, Parameter
from pytest_chaos.model.plan import BUILDERS, TIME_S_MAX, time_agent
from pytest_chaos.model.values import AfterMark, AtPoint, AtStep, Fault, Now
from pytest_chaos.resources.standing import stopped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import When
    from pytest_chaos.runtime.agent import Agent


def pause(agent: str, when: When | None = None, *, duration_s: float | None = None) -> Fault:
    """Plan that the agent stands still for ``duration_s`` seconds, or until it is resumed.

    >>> pause("writer", duration_s=0.5).parameters
    {'duration_s': 0.5}
    """
    parameters = {} if duration_s is None else {"duration_s": duration_s}
    return Fault(kind=Pause.kind, agent=agent, when=when or Now(), parameters=parameters)


def resume(agent: str, when: When | None = None) -> Fault:
    """Plan that a paused agent goes on: a zombie, if another has taken its lease meanwhile.

    It waits until the agent is paused. ``when`` is ``now()``, ``at_moment(...)``, or a time of
    another agent: a paused one passes no points and writes no marks.

    >>> from pytest_chaos import after_mark, at_moment
    >>> resume("writer", at_moment(0.5, after=after_mark("put"))).kind
    'resume'
    >>> resume("writer", after_mark("taken", agent="second")).kind
    'resume'
    """
    return Fault(kind=Resume.kind, agent=agent, when=when or Now())


class Pause(FaultKind):
    """The process stands still with all that it holds, as on a suspended machine."""

    kind = "pause"
    parameters = {"duration_s": Parameter(float, high=TIME_S_MAX, default=None, may_be_none=True)}
    by_signal = signal.SIGSTOP

    def evidence(self, firing: Firing) -> str | None:
        """See that the kernel has it in state T."""
        firing.agent.is_paused = stopped(firing.agent, firing.agent.pid, firing.agent.state)
        return "process state T (stopped)" if firing.agent.is_paused else None

    def follow_up(self, firing: Firing) -> tuple[float, str] | None:
        """Resume it after its duration."""
        duration_s = firing.fault.parameters.get("duration_s")
        return None if duration_s is None else (duration_s, Resume.kind)


class Resume(FaultKind):
    """The process goes on where it stood and does not know that time has passed."""

    kind = "resume"
    by_signal = signal.SIGCONT
    advice = (
        "A paused agent passes no points and writes no marks: give at_moment(delay_s, after=after_mark(...)), "
        "a time of another agent, or pause(..., duration_s=...)."
    )

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters, and of a time that cannot come."""
        yield from super().problems(fault)
        if isinstance(fault.when, AfterMark | AtPoint | AtStep) and time_agent(fault) == fault.agent:
            rule = "now(), at_moment(...) or a time of another agent (agent=...)"
            yield f"the time of resume must be {rule}; got {BUILDERS[type(fault.when)]}. {self.advice}"

    def can_hit(self, agent: Agent) -> bool:
        """Whether a pause was seen. An earlier SIGCONT would do nothing, or end a pause unseen."""
        return agent.running and agent.is_paused

    def evidence(self, firing: Firing) -> str | None:
        """See that it has left state T."""
        state = firing.agent.state
        firing.agent.is_paused = stopped(firing.agent, firing.agent.pid, state)
        return None if firing.agent.is_paused else f"process state {state} after SIGCONT"
