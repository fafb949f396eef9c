"""The fault ``terminate``: SIGTERM, a request to end that the program answers in its own way."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_chaos.faults.kind import FaultKind
from pytest_chaos.model.values import Fault, Now

if TYPE_CHECKING:
    from pytest_chaos.faults.kind import Firing
    from pytest_chaos.model.values import When


def terminate(agent: str, when: When | None = None) -> Fault:
    """Plan a request to end, SIGTERM, that the program may answer in its own way.

    >>> terminate("writer").kind
    'terminate'
    """
    return Fault(kind=Terminate.kind, agent=agent, when=when or Now())


class Terminate(FaultKind):
    """The process gets SIGTERM."""

    kind = "terminate"
    by_signal = signal.SIGTERM

    def evidence(self, firing: Firing) -> str | None:
        """See that it ended, or that it handles or ignores the signal, which is not pending."""
        agent = firing.agent
        if agent.ended is not None:
            return f"process ended with {agent.ended} after SIGTERM"
        pending, ignored, handled = _signals(agent.pid, "ShdPnd", "SigIgn", "SigCgt")
        if signal.SIGTERM in pending:
            return None
        if signal.SIGTERM in ignored:
            return "SIGTERM was sent, and the process ignores it"
        if signal.SIGTERM in handled:
            return "SIGTERM was taken by the handler that the process has for it"
        return None  # about to end: without a handler the signal leaves the pending set before the process ends


def _signals(pid: int, *names: str) -> list[set[int]]:
    """Return the signal sets of these names in ``/proc/PID/status``; empty for an ended process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        lines = []
    masks = {name: int(value, 16) for name, _, value in (line.partition(":") for line in lines) if name in names}
    return [{number for number in range(1, 65) if masks.get(name, 0) >> (number - 1) & 1} for name in names]
