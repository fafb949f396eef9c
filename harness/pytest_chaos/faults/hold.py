"""The faults ``hold`` and ``release``: a system call that does not return, until it is let go on.

A disk that stalls, a file system of the network that hangs: the call waits, and the rest of the
process goes on. With a release at a time of another agent, it is the deterministic way to build a
race: one agent stands between its check and its act while the other one does both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_chaos.faults.kind import FaultKind
from pytest_chaos.model.plan import time_agent
from pytest_chaos.model.values import AtStep, Fault, Now
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.marks import Note

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import When
    from pytest_chaos.runtime.agent import Agent


def hold(agent: str, when: AtStep) -> Fault:
    """Plan that the system call of a durable step waits, and is not done until it is released.

    Other threads of the agent go on; ``pause`` stops them all. What is held at the end of the run
    ends with it.

    >>> from pytest_chaos import after_mark, at_step
    >>> hold("worker", at_step("rename", path="*.json")).kind
    'hold'
    >>> release("worker", after_mark("read", agent="reader")).kind
    'release'
    """
    return Fault(kind=Hold.kind, agent=agent, when=when)


def release(agent: str, when: When | None = None) -> Fault:
    """Plan that a held call of the agent goes on, the one held first.

    It waits until a call is held. ``when`` may be a time of another agent: ``after_mark("read",
    agent="reader")``. A Python agent stands still there until the call has gone on.
    """
    return Fault(kind=Release.kind, agent=agent, when=when or Now())


class Hold(FaultKind):
    """One system call waits, as on a disk that stalls; the rest of the process goes on."""

    kind = "hold"
    takes = frozenset({AtStep})
    advice = "At another time, pause(...) stops the whole process."
    holds_call = True

    def problems(self, fault: Fault) -> Iterator[str]:
        """Yield the problems of the parameters, and of a step that is not the agent's."""
        yield from super().problems(fault)
        if time_agent(fault) != fault.agent:
            yield f"the step of a hold must be of the agent that is held; got {time_agent(fault)!r}. Hold that one"

    def fire(self, firing: Firing) -> None:
        """Do nothing: the watcher of steps holds the call."""

    def evidence(self, firing: Firing) -> str | None:
        """See that the kernel has the caller asleep in its call."""
        note = firing.note
        assert note is not None  # noqa: S101 - a hold is fired by its note
        thread = processes.read(note.value["thread"])
        if thread is None or thread.state not in {"D", "S"}:
            return None
        firing.agent.held.append(note)
        return f"thread {note.value['thread']} waits in its call, state {thread.state}, from mark {note.order} on"


class Release(FaultKind):
    """A held call is done, and returns."""

    kind = "release"

    def can_hit(self, agent: Agent) -> bool:
        """Whether a call is held."""
        return agent.running and bool(agent.held)

    def fire(self, firing: Firing) -> None:
        """Tell the watcher to let it pass."""
        if firing.agent.held:
            firing.note = firing.agent.held.pop(0)
            firing.context.steps.release(int(firing.note.key or 0))

    def evidence(self, firing: Firing) -> str | None:
        """See the watcher's word that the kernel has let it pass, and its caller was alive."""
        held = firing.note
        for mark in firing.agent.marks:
            if held is not None and mark.operation == Note.RELEASED and mark.key == held.key and mark.value["passed"]:
                seen = f"held for {mark.value['held_s']:.3f} s, from mark {held.order} to {mark.order}"
                return f"pid {held.pid} goes on with {mark.value['at']}, {seen}"
        return None
