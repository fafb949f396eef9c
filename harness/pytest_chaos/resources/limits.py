"""Bounds of the kernel on a live process (prlimit(2)), and what of them is in use.

Only the soft bound is set: the hard one stays, so that every bound can be lifted again without
privilege. Processes that the agent starts later inherit the bound.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

if TYPE_CHECKING:
    from pytest_chaos.runtime.agent import Agent

_OVERRIDES_PROCESSES: Final = 1 << 21 | 1 << 24
"""CAP_SYS_ADMIN and CAP_SYS_RESOURCE: the kernel does not bound the processes of such a program."""


class Bound(NamedTuple):
    """One bound: its number and name for the kernel, and the error of a call that meets it."""

    number: int
    name: str
    error: int


BOUNDS: Final = {
    "files": Bound(resource.RLIMIT_NOFILE, "RLIMIT_NOFILE", errno.EMFILE),
    "processes": Bound(resource.RLIMIT_NPROC, "RLIMIT_NPROC", errno.EAGAIN),
    "file-size": Bound(resource.RLIMIT_FSIZE, "RLIMIT_FSIZE", errno.EFBIG),
    "address-space": Bound(resource.RLIMIT_AS, "RLIMIT_AS", errno.ENOMEM),
}
"""What can be bounded, by the word that plans use."""

_before: Final[WeakKeyDictionary[Agent, dict[int, int]]] = WeakKeyDictionary()
"""The soft bounds that agents had before ours."""
felt: Final[WeakSet[Agent]] = WeakSet()
"""The agents with a bound in force that was felt."""


def lower(agent: Agent, what: str, most: int) -> str:
    """Set a soft bound of a running agent and read it back; return what the kernel says.

    Raises OSError, and ValueError for a bound above the hard one.
    """
    number, name, _ = BOUNDS[what]
    soft, hard = resource.prlimit(agent.pid, number)
    if hard != resource.RLIM_INFINITY and most > hard:
        msg = f"the bound of {what} must be at most the hard one, {hard:,}; got {most:,}. Give less"
        raise ValueError(msg)
    _before.setdefault(agent, {}).setdefault(number, soft)
    resource.prlimit(agent.pid, number, (most, hard))
    read, _ = resource.prlimit(agent.pid, number)
    used = in_use(agent.pid, what)
    below = f", with {used:,} in use" if used is not None else ""
    return f"{name} is {read:,}{below}"


def lift(agent: Agent) -> list[str]:
    """Give an agent back the soft bounds that it had, and read them back; return what changed."""
    lifted = []
    felt.discard(agent)
    for number, soft in _before.pop(agent, {}).items():
        lowered, hard = resource.prlimit(agent.pid, number)
        resource.prlimit(agent.pid, number, (soft, hard))
        now, _ = resource.prlimit(agent.pid, number)
        name = next(each.name for each in BOUNDS.values() if each.number == number)
        lifted.append(f"{name} went from {lowered:,} to {_shown(now)}")
    return lifted


def in_use(pid: int, what: str) -> int | None:
    """Return how much of a bound a process uses, or None where only the kernel knows."""
    if what == "files":
        return len(os.listdir(f"/proc/{pid}/fd"))
    if what == "address-space":
        return memory(pid, "VmSize")
    return None


def memory(pid: int, row: str) -> int:
    """Return memory of a process in bytes: ``VmSize``, ``VmRSS`` or its peak, ``VmHWM``."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{row}:"):
            return int(line.split()[1]) << 10
    return 0  # a process that is ending has no memory any more


def why_unbounded(pid: int, what: str) -> str:
    """Return why the kernel does not hold a process to a bound, or nothing."""
    if what != "processes":
        return ""
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    if rows["Uid"].split()[0] == "0":
        return "the kernel does not bound the processes of root: run the agent as another user"
    if int(rows["CapEff"], 16) & _OVERRIDES_PROCESSES:
        return "the kernel does not bound the processes of a program with CAP_SYS_RESOURCE or CAP_SYS_ADMIN"
    return ""


def _shown(bound: int) -> str:
    return "unlimited" if bound == resource.RLIM_INFINITY else f"{bound:,}"
