"""The errors that a user of the harness may meet. Each says what was expected, what came and what to do."""

from __future__ import annotations


class ChaosError(Exception):
    """The root of all errors of the harness; its text is one sentence for the person who made the mistake."""


class UsageError(ChaosError):
    """The call cannot be carried out as it was made: an unknown fault, a negative bound, a missing agent."""


class ResultsError(ChaosError):
    """Records or reports cannot be read or written."""


class EvidenceError(ChaosError):
    """An evidence pack cannot be made, opened or trusted."""


class SpawnError(ChaosError):
    """An agent could not be started: its module cannot be imported, its command does not exist."""


class AgentError(ChaosError):
    """An agent is not what the test needs: it ended, or it did not die."""


class GuardianLost(ChaosError):  # noqa: N818 - says what happened; nobody made a mistake
    """The process that answers for the agents was killed, and they with it: this run can decide nothing."""


class WaitExpired(ChaosError):  # noqa: N818 - an expired bound is an answer about the target, not a mistake
    """Something that was waited for did not come within its bound. It becomes a liveness finding of the run."""


class StepsUnavailable(ChaosError):  # noqa: N818 - says what this machine lacks; nobody made a mistake
    """A source of steps does not work here: no seccomp, another architecture, a filter that is there already."""
