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
    """An agent in an unexpected state: it ended early, or it did not die.

    ``owed`` says why the target had to do what was waited for. ``by_fault``: a fault of the run
    ended the agent.
    """

    def __init__(self, text: str = "", *, owed: str = "", by_fault: bool = False) -> None:
        super().__init__(text)
        self.owed = owed
        self.by_fault = by_fault


class TooLate(AgentError):  # noqa: N818 - an event, as below
    """A fault fired by hand at an agent that has ended."""


class GuardianLost(ChaosError):  # noqa: N818 - an event, and no mistake of the user
    """The guardian was killed, and the agents with it: the run is INCONCLUSIVE."""


class WaitExpired(ChaosError):  # noqa: N818 - an event, and no mistake of the user
    """A wait whose bound expired: INCONCLUSIVE, or a liveness finding where ``owed`` says why."""

    def __init__(self, text: str = "", *, owed: str = "") -> None:
        super().__init__(text)
        self.owed = owed


class StepsUnavailable(ChaosError):  # noqa: N818 - a limit of this machine, and no mistake of the user
    """A step source that does not work here: no seccomp, another architecture, another filter."""


class ClockNotMoved(ChaosError):  # noqa: N818 - as above
    """A clock that cannot be moved: a process without a vDSO, another machine, no ptrace."""
