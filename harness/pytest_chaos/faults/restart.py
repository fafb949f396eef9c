"""The fault ``restart``: the process is killed, if it still runs, and started again."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pytest_chaos.faults.kind import FaultKind
from pytest_chaos.model.values import Fault, Now

if TYPE_CHECKING:
    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import When


def restart(agent: str, when: When | None = None) -> Fault:
    """Plan that the agent is killed and started again, as it was started first, in a new process.

    >>> restart("writer").kind
    'restart'
    """
    return Fault(kind=Restart.kind, agent=agent, when=when or Now())


class Restart(FaultKind):
    """The process ends by SIGKILL and its next incarnation starts."""

    kind = "restart"
    needs_life = False
    by_signal = signal.SIGKILL

    def evidence(self, firing: Firing) -> str | None:
        """See the old process end, start the new one, and see its pid."""
        agent = firing.agent
        if agent.ended is None:
            return None
        if agent.successor is None:
            agent.successor = firing.context.start_again(agent)
        return f"pid {agent.pid} ended by {agent.ended}, started again as pid {agent.successor.pid}"
