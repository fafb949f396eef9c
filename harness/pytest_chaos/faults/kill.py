"""The fault ``kill``: SIGKILL, the end that no program can prepare for."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from pytest_chaos.faults.kind import FaultKind, Parameter
from pytest_chaos.model.values import Fault, Now
from pytest_chaos.runtime import processes

if TYPE_CHECKING:
    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import When

TREE = "tree"
_SHOWN_MAX: Final = 8


def kill(agent: str, when: When | None = None, *, tree: bool = False) -> Fault:
    """Plan the end that no program can prepare for: SIGKILL.

    With ``tree``, all descendants of the agent end with it: a server and its workers. A daemon that
    has left its parents is no descendant any more.

    >>> from pytest_chaos import at_point
    >>> kill("writer", at_point("app.saved")).kind
    'kill'
    >>> kill("server", tree=True).parameters
    {'tree': True}
    """
    return Fault(kind=Kill.kind, agent=agent, when=when or Now(), parameters={TREE: True} if tree else {})


class Kill(FaultKind):
    """SIGKILL of exactly this process, or of its tree; the page cache survives it."""

    kind = "kill"
    parameters = {TREE: Parameter(bool, default=False)}
    by_signal = signal.SIGKILL

    def signal_of(self, fault: Fault) -> signal.Signals | None:
        """Let an agent kill itself, unless its descendants are to be killed with it."""
        return None if fault.parameters.get(TREE) else self.by_signal

    def fire(self, firing: Firing) -> None:
        """Kill the process; with ``tree``, first stop all descendants, so that none forks."""
        agent = firing.agent
        if firing.fault.parameters.get(TREE):
            agent.send_signal(signal.SIGSTOP)
            known: set[tuple[int, int]] = set()
            while new := [each for each in processes.descendants(agent.pid) if each[:2] not in known and each.alive]:
                for each in new:
                    known.add(each[:2])
                    if processes.send(each.pid, each.start_ticks, signal.SIGSTOP):
                        firing.victims.append(each)
            for each in firing.victims:
                processes.end(each)
        else:
            firing.children = processes.descendants(agent.pid)
        agent.send_signal(signal.SIGKILL)

    def evidence(self, firing: Firing) -> str | None:
        """See that it ended by signal 9, and which of its descendants have ended, or live on."""
        status = firing.agent.ended
        if status is None or status.signal != signal.SIGKILL:
            return None
        if any(processes.is_running(each.pid, each.start_ticks) for each in firing.victims):
            return None
        alive = [each for each in _descendants(firing) if processes.is_running(each.pid, each.start_ticks)]
        return "process ended by signal 9" + (f"; {_named(alive)}" if alive and not firing.victims else "")


def _descendants(firing: Firing) -> list[processes.Process]:
    """Return the descendants at the time of the kill; one that killed itself has noted them."""
    value = firing.note.value if firing.note is not None else None
    noted = value.get("children", ()) if isinstance(value, dict) else ()
    return firing.children or [each for pid in noted if (each := processes.read(pid)) is not None]


def _named(alive: list[processes.Process]) -> str:
    shown = ", ".join(f"{each.name} (pid {each.pid})" for each in alive[:_SHOWN_MAX])
    more = f" and {len(alive) - _SHOWN_MAX} more" if len(alive) > _SHOWN_MAX else ""
    return f"without tree=True {len(alive)} of its processes live on: {shown}{more}"
