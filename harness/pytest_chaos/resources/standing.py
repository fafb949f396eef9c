"""Whether a process that a witness traces stands still.

The kernel shows a traced process that was stopped by a signal in state ``t``, as one that stops for
a moment at a call. The witness tells them apart: it notes the first kind, and when that goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from pytest_chaos.runtime.agent import Agent

STANDS: Final = "witness.stands"
GOES_ON: Final = "witness.goes-on"
witnesses: Final[WeakKeyDictionary[Agent, Agent]] = WeakKeyDictionary()
"""The newest witness of each agent."""


def stopped(agent: Agent, pid: int, state: str) -> bool:
    """Whether a process of an agent, in this state of the kernel, was stopped by a signal."""
    if state != "t" or agent not in witnesses:
        return state == "T"
    told = (mark.operation for mark in reversed(witnesses[agent].marks) if mark.key == pid)
    return next(told, "") == STANDS
