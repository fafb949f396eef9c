"""Faults of a process. The evidence of each is the kernel's own word, never our having called it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_chaos.faults.firing import Firing
    from pytest_chaos.runtime.agent import Agent


class Kill:
    """SIGKILL: the end that no program can prepare for. The page cache survives it: it is no power loss."""

    kind = "kill"
    needs_life = True

    def fire(self, firing: Firing) -> None:
        """Kill exactly this process; its children live on, as after an out-of-memory kill."""
        firing.agent.send_signal(signal.SIGKILL)

    def evidence(self, firing: Firing) -> str | None:
        """See that it ended by signal 9."""
        return _ended_by(firing.agent, signal.SIGKILL)


class Terminate:
    """SIGTERM: a request to end that the program answers in its own way."""

    kind = "terminate"
    needs_life = True

    def fire(self, firing: Firing) -> None:
        """Ask it to end."""
        firing.agent.send_signal(signal.SIGTERM)

    def evidence(self, firing: Firing) -> str | None:
        """See that it ended, or that the signal is no longer pending though the process handles or ignores it."""
        agent = firing.agent
        if agent.exit_status is not None:
            return f"process ended with {agent.exit_status} after SIGTERM"
        pending, ignored, handled = _signals(agent.pid, "ShdPnd", "SigIgn", "SigCgt")
        if signal.SIGTERM in pending:
            return None
        if signal.SIGTERM in ignored:
            return "SIGTERM was sent, and the process ignores it"
        if signal.SIGTERM in handled:
            return "SIGTERM was taken by the handler that the process has for it"
        return None  # it is about to end: without a handler, the signal is gone from the list before the process is


class Pause:
    """SIGSTOP: the process stands still with all that it holds, as in a long collection or a suspended machine."""

    kind = "pause"
    needs_life = True

    def fire(self, firing: Firing) -> None:
        """Stop it."""
        firing.agent.send_signal(signal.SIGSTOP)

    def evidence(self, firing: Firing) -> str | None:
        """See that the kernel has it in state T."""
        return "process state T (stopped)" if firing.agent.state == "T" else None


class Resume:
    """SIGCONT: it goes on where it stood and does not know that time has passed."""

    kind = "resume"
    needs_life = True

    def fire(self, firing: Firing) -> None:
        """Continue it."""
        firing.agent.send_signal(signal.SIGCONT)

    def evidence(self, firing: Firing) -> str | None:
        """See that it has left state T."""
        state = firing.agent.state
        return f"process state {state} after SIGCONT" if state != "T" else None


class Restart:
    """The process is killed if it still runs, and started again as it was started first."""

    kind = "restart"
    needs_life = False

    def fire(self, firing: Firing) -> None:
        """Kill it, if it runs."""
        firing.agent.send_signal(signal.SIGKILL)

    def evidence(self, firing: Firing) -> str | None:
        """See the old one's end, start the new one, and see its pid."""
        agent = firing.agent
        if agent.exit_status is None:
            return None
        if agent.successor is None:
            agent.successor = firing.stage.start_again(agent)
        return f"pid {agent.pid} ended by {agent.exit_status}, started again as pid {agent.successor.pid}"


def _ended_by(agent: Agent, number: signal.Signals) -> str | None:
    if agent.exit_status is None or agent.exit_status.signal != number:
        return None
    return f"process ended by signal {int(number)}"


def _signals(pid: int, *names: str) -> list[set[int]]:
    """Return the sets of signals of these names that the kernel keeps for a process; empty ones when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        lines = []
    masks = {name: int(value, 16) for name, _, value in (line.partition(":") for line in lines) if name in names}
    return [{number for number in range(1, 65) if masks.get(name, 0) >> (number - 1) & 1} for name in names]
