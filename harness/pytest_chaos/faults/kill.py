"""The fault ``kill``: SIGKILL, the end that no program can prepare for."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from pytest_chaos.faults.kind import FaultKind
from pytest_chaos.model.values import Fault, Now

if TYPE_CHECKING:
    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import When


def kill(agent: str, when: When | None = None) -> Fault:
    """Plan the end that no program can prepare for: SIGKILL.

    >>> from pytest_chaos import at_point
    >>> kill("writer", at_point("app.saved")).kind
    'kill'
    """
    return Fault(kind=Kill.kind, agent=agent, when=when or Now())


class Kill(FaultKind):
    """Exactly this process ends. Its children live on; so does the page cache: this is no loss of power."""

    kind = "kill"
    by_signal = signal.SIGKILL

    def evidence(self, firing: Firing) -> str | None:
        """See that it ended by signal 9."""
        status = firing.agent.exit_status
        return "process ended by signal 9" if status is not None and status.signal == signal.SIGKILL else None
