"""Start-up: the steps that an agent takes first, in this order, however it ended the last time.

1. *Workspaces* are hydrated: ghosts have failed, and the rest of the registry is known.
2. *Runtime state* is loaded: which agent type is not to be asked before when.
3. *Orphans* are recovered: no half of a cycle is taken for a whole one.
4. *Loops* are started, which rely on all of that.

Each step is idempotent, and its writes are whole at any moment. So a start-up that is killed
anywhere and repeated comes to the same state, and one after a clean stop writes nothing. Of two
start-ups at once on one folder, the second waits for the first and then finds nothing to do.

A step that fails adds a sentence to ``problems``, and the agent starts all the same. Without a
store it remembers nothing; on a full disk, or in a read-only folder, ghosts fail in the registry
only.
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


class Loop(Protocol):
    """A loop, whose ``start`` returns at once, such as a PeriodicService."""

    def start(self) -> object:
        """Start the loop, and return."""
        ...


class Startup(msgspec.Struct, frozen=True):
    """The results of a start-up, by its steps; ``problems`` are sentences about all of them."""

    hydration: Hydration
    runtime: RuntimeState
    orphans: Orphans
    problems: tuple[str, ...] = ()


def startup(
    workspaces: Workspaces,
    buffers: Buffers,
    state: StateStore,
    loops: Iterable[Loop] = (),
    *,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> Startup:
    """Take all steps, and return their results. All three parts must be of one root.

    Raises FolderLocked if another start-up holds the folder for longer than ``lock_timeout_s``
    seconds, with nothing started; and any exception of a loop's ``start``.
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
