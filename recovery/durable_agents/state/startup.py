"""Start-up: what an agent does before it does anything, in this order, however it ended the last time.

1. *Workspaces* are hydrated: what runs, waits and has ended is known, ghosts have failed.
2. *Runtime state* is loaded: who is not to be asked before when.
3. *Orphans* are recovered: no half of a cycle is taken for a whole one.
4. *Loops* are started, which rely on all of that.

Each step is idempotent, and what it writes is whole at any moment. So a start-up that is killed
anywhere and done again comes to the same state, and one after a clean stop writes nothing. Of two
at once, on one folder, the second waits for the first; and finds nothing left to do.

What cannot be done is a sentence in ``problems``, and the agent starts all the same: without a
store it remembers nothing, in a folder that it cannot write it fails ghosts in its registry alone,
on a full disk likewise.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from durable_agents.errors import RecoveryError
from durable_agents.state.buffers import Buffers, Orphans
from durable_agents.state.crash_points import StateCrashPoint
from durable_agents.state.roots import LOCK_TIMEOUT_S
from durable_agents.state.runtime import RuntimeState, load_runtime
from durable_agents.state.workspaces import Hydration, Workspaces

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durable_agents.state.groups import StateStore


_LOCK: Final = "startup"


class Startable(Protocol):
    """What goes on by itself once it is started: a PeriodicService, or anything with this method."""

    def start(self) -> object:
        """Begin, and return."""
        ...


class Startup(msgspec.Struct, frozen=True):
    """What a start-up found, by its steps; ``problems`` are sentences about what could not be done or is not right."""

    hydration: Hydration
    runtime: RuntimeState
    orphans: Orphans
    problems: tuple[str, ...] = ()


def startup(
    workspaces: Workspaces,
    buffers: Buffers,
    state: StateStore,
    loops: Iterable[Startable] = (),
    *,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> Startup:
    """Do all steps, and return what they found. All three parts have to be of one root.

    Raises FolderLocked when another start-up keeps the folder for longer than ``lock_timeout_s``
    seconds, with nothing started; and what a loop raises that cannot start.
    """
    problems: list[str] = []
    with workspaces.roots.locked(_LOCK, timeout_s=lock_timeout_s):
        sys.audit(StateCrashPoint.STARTUP_BEFORE_HYDRATE)
        hydration = workspaces.hydrate()
        problems += [f"{each.workspace}: {each.problem}: {each.detail}" for each in hydration.problems]
        sys.audit(StateCrashPoint.STARTUP_BEFORE_RUNTIME)
        runtime = _runtime(state, problems)
        sys.audit(StateCrashPoint.STARTUP_BEFORE_ORPHANS)
        orphans = buffers.recover_orphans()
        problems += orphans.problems
    sys.audit(StateCrashPoint.STARTUP_BEFORE_LOOPS)
    for loop in loops:
        loop.start()
    sys.audit(StateCrashPoint.STARTUP_AFTER_LOOPS)
    return Startup(hydration, runtime, orphans, tuple(problems))


def _runtime(state: StateStore, problems: list[str]) -> RuntimeState:
    try:
        return load_runtime(state)
    except RecoveryError as error:
        problems.append(str(error))
        return RuntimeState()
