"""Replicas with one known bug each.

| variant | bug | seen by |
|---|---|---|
| AcknowledgesAlone | a leader that does not reach its peer acknowledges all the same | partition:split-brain |
| TakesStale | a node takes the appends of a leader of an older epoch | partition:stale-write |
"""

from __future__ import annotations

from scenarios.partitions.replica import Replica


class AcknowledgesAlone(Replica):
    """Stays available while it is cut off."""

    def acknowledges_alone(self) -> bool:
        """Acknowledge."""
        return True


class TakesStale(Replica):
    """Has no fencing."""

    def takes(self, epoch: int) -> bool:  # noqa: ARG002 - the bug
        """Take any append."""
        return True
