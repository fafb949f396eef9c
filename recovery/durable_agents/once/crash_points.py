"""The crash points of this room: audit events whose argument is the stored name of the key."""

from __future__ import annotations

import enum
from typing import Final


class OncePoint(enum.StrEnum):
    """Places where a process can be killed by name, in the order of one execution.

    ``*_UPDATE`` lies between the statement and its COMMIT. A tool's intent is durable at
    BEFORE_EFFECT; its outcome is the end of the claim, which follows AFTER_EFFECT.
    """

    BEFORE_CLAIM = "recovery.claim.before_claim"
    AFTER_CLAIM_UPDATE = "recovery.claim.after_claim_update"
    AFTER_CLAIM = "recovery.claim.after_claim"
    BEFORE_EFFECT = "recovery.tool.before_effect"
    AFTER_EFFECT = "recovery.tool.after_effect"
    BEFORE_END = "recovery.claim.before_end"
    AFTER_END_UPDATE = "recovery.claim.after_end_update"
    AFTER_END = "recovery.claim.after_end"


_ALL: Final[tuple[str, ...]] = tuple(OncePoint)
CLAIM_CRASH_POINTS: Final = _ALL[:3]
TOOL_CRASH_POINTS: Final = _ALL[3:5]
END_CRASH_POINTS: Final = _ALL[5:]
