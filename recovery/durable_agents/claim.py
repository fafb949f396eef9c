"""The claim: an exclusive right with an owner, a token and an expiry.

Four things are claims. What they share is here; the rest of each lies in its own module.

| claim | owner | token | expiry | taken over |
|---|---|---|---|---|
| lease (``work.leases``) | a name | rises with every grant | yes | after a sweep |
| key (``once.claims``) | an owner lock | rises with every grant | yes | when its owner dies |
| job (``jobs.queue``) | its monitor process | rises with every start | no | by the reaper |
| lease file (``jobs.lease_files``) | a process | the file itself | no | when its owner dies |

The rules are the same for all:

- A claim is granted in one step (a statement, or a ``link``): of several that try, one gets it.
- A write under a claim names its token. The store compares the token in the same transaction, so
  an owner that was stopped and wakes, a zombie, changes nothing.
- Two clocks decide, and each can only stop the owner earlier. The store compares the expiry with
  the time of leases (``work.lease_time``), or, for a key, with the wall clock. The owner trusts its
  claim until ``trusted_until`` on its monotonic clock, so a clock that is set back revives nothing.
- An owner that is told of its loss gets an error below ``ClaimLost``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Self, TypeVar

import msgspec

from durable_agents.clock import Microseconds, microseconds
from durable_agents.processes import Liveness, look, start_of

if TYPE_CHECKING:
    from durable_agents.errors import ClaimLost

_MARGIN_SHARE: Final = 0.1
_MARGIN_S_MAX: Final = 5.0
_GONE: Final = ""
"""The start of a process that has gone. It equals no process's start."""

LossType = TypeVar("LossType", bound="ClaimLost")


class Owner(msgspec.Struct, frozen=True):
    """A process that owns a claim, named by pid and start.

    The start tells it from a later process with the same pid (D18).
    """

    pid: int
    process_start: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the process that has this pid now."""
        return cls(pid, start_of(pid) or _GONE)

    @classmethod
    def this_process(cls) -> Self:
        """Return the calling process."""
        return cls.of(os.getpid())

    def is_dead(self) -> bool:
        """Whether the process has ended. A stopped process lives."""
        return look(self.pid, self.process_start) is Liveness.DEAD


def expires_at(now: Microseconds, ttl_s: float) -> Microseconds:
    """Return when a claim that is granted or renewed ``now`` ends, by the wall clock.

    From that moment on another process may take it over.
    """
    return now + microseconds(ttl_s)


def trusted_until(began: Microseconds, ttl_s: float) -> Microseconds:
    """Return until when its owner may trust a claim of ``ttl_s`` seconds, on its monotonic clock.

    ``began`` is read *before* the call that grants or renews. The margin is a tenth of the length,
    5 s at most: it covers the difference between two clocks.
    """
    return began + microseconds(ttl_s - min(ttl_s * _MARGIN_SHARE, _MARGIN_S_MAX))


def lost(kind: type[LossType], what: str, state: str, fix: str = "Stop working on it.") -> LossType:
    """Return the error for a claim that is not held any more. ``state`` says what became of it."""
    return kind(f"{what} must be held; got {state}. {fix}")
