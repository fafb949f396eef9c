"""The errors that users of the harness meet: ``<what> must be <rule>; got <value>. <fix>``."""

from __future__ import annotations


class ChaosError(Exception):
    """The root of all errors of the harness. Its text is for the person who can fix it."""


class UsageError(ChaosError):
    """A call that cannot be carried out: an unknown fault, a negative bound, a missing agent."""


class ResultsError(ChaosError):
    """Records or reports that cannot be read or written."""


class EvidenceError(ChaosError):
    """An evidence pack that cannot be made, opened or trusted."""


class SpawnError(ChaosError):
    """An agent that cannot be started: no such module, no such command."""


class AgentError(ChaosError):
    """An agent in another state than the test needs: it ended, or it did not die."""


class GuardianLost(ChaosError):  # noqa: N818 - an event, and no mistake of the user
    """The guardian was killed, and the agents with it: the run is INCONCLUSIVE."""


class WaitExpired(ChaosError):  # noqa: N818 - an answer about the target, and no mistake of the user
    """A wait whose bound expired. It becomes a liveness finding of the run."""


class StepsUnavailable(ChaosError):  # noqa: N818 - a limit of this machine, and no mistake of the user
    """A step source that does not work here: no seccomp, another architecture, another filter."""
