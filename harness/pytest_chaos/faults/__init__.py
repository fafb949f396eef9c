"""Faults: what is injected, one small file each, and the registry that plans are checked against.

A fault is two things: ``fire``, which does it to an agent, and ``evidence``, which says, once it
was *seen* to happen, how it was seen. Without evidence a fault has not fired and its run is
INCONCLUSIVE, whatever the test found. The injector carries out a plan while the test waits. What
can be timed exactly only from within (a crash point, a mark) is fired by the agent itself
(``harness/pytest_chaos/runtime/child.py``); the injector then sees to the evidence alone.

A new family of faults (clock, network) is another module here and its entries in :data:`REGISTRY`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from pytest_chaos.faults import hold_lock as contention, process, toxics as webhooks
from pytest_chaos.model.plan import FATES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_chaos.faults.firing import Firing


class FaultKind(Protocol):
    """What the injector needs of a fault.

    ``kind`` is its name in plans; ``needs_life`` says that it cannot hit an agent that has ended.
    """

    @property
    def kind(self) -> str:
        """The name in plans and reports."""
        ...

    @property
    def needs_life(self) -> bool:
        """Whether the agent has to be running for it to fire."""
        ...

    def fire(self, firing: Firing) -> None:
        """Do it. Called once; must not wait for what it does."""
        ...

    def evidence(self, firing: Firing) -> str | None:
        """Say how it was seen to have happened, or ``None`` as long as it was not."""
        ...


_ALL: Final[tuple[FaultKind, ...]] = (
    process.Kill(),
    process.Terminate(),
    process.Pause(),
    process.Resume(),
    process.Restart(),
    contention.HoldLock(),
    *(webhooks.Fate(kind) for kind in FATES),
)

REGISTRY: Final[Mapping[str, FaultKind]] = {fault.kind: fault for fault in _ALL}
"""Every fault that a plan can name."""
