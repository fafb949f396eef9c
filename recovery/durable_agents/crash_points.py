"""Named crash points: the places where an operation says, through ``sys.audit``, how far it is.

Each room has one enumeration of its points. A point costs well under a microsecond while nobody
listens. A listener (``sys.addaudithook``) may kill or stop the process exactly there.
"""

from __future__ import annotations

import enum
from typing import Self


class CrashPoint(enum.StrEnum):
    """The base of the enumerations of crash points.

    A value reads ``recovery.OPERATION.MOMENT``, and is the name of the audit event.
    """

    @classmethod
    def of(cls, operation: str) -> tuple[Self, ...]:
        """Return the points of one operation, in the order in which it passes them.

        >>> from durable_agents import JobCrashPoint
        >>> [str(point) for point in JobCrashPoint.of("alert")][0]
        'recovery.alert.after_take'
        """
        return tuple(point for point in cls if point.split(".")[1] == operation)
