"""Isolation levels, and the anomalies that each forbids.

Names and meaning are Adya's ("Weak consistency: a generalized theory and optimistic
implementations", 1999) as Elle uses them. Operations touch items and no predicates, so
``repeatable-read`` and ``serializable`` forbid the same here.
"""

from __future__ import annotations

from typing import Final

from pytest_chaos.errors import UsageError

_UNCOMMITTED: Final = ("G0", "duplicate-elements", "cyclic-versions", "invented")
_COMMITTED: Final = (
    *_UNCOMMITTED, "G1a", "G1b", "G1c", "dirty-update", "future-read", "incompatible-order",
)  # fmt: skip
_SNAPSHOT: Final = (*_COMMITTED, "internal", "lost-update", "G-single", "G-nonadjacent")
_SERIALIZABLE: Final = (*_SNAPSHOT, "G2-item")
CYCLES: Final = ("G0", "G1c", "G-single", "G-nonadjacent", "G2-item")
"""The anomalies that are cycles, from the worst to the least."""


def _with(anomalies: tuple[str, ...], *suffixes: str) -> frozenset[str]:
    return frozenset(anomalies) | {f"{name}-{end}" for name in anomalies if name in CYCLES for end in suffixes}


LEVELS: Final[dict[str, frozenset[str]]] = {
    "read-uncommitted": frozenset(_UNCOMMITTED),
    "read-committed": frozenset(_COMMITTED),
    "snapshot-isolation": frozenset(_SNAPSHOT),
    "repeatable-read": frozenset(_SERIALIZABLE),
    "serializable": frozenset(_SERIALIZABLE),
    "strong-session-snapshot-isolation": _with(_SNAPSHOT, "process"),
    "strong-snapshot-isolation": _with(_SNAPSHOT, "process", "realtime"),
    "strong-session-serializable": _with(_SERIALIZABLE, "process"),
    "strict-serializable": _with(_SERIALIZABLE, "process", "realtime"),
}
"""The anomalies that each level forbids, from the weakest level to the strongest."""


def forbidden(level: str) -> frozenset[str]:
    """Return the anomalies that a level forbids. Raises UsageError for a name that is none.

    >>> "G2-item" in forbidden("serializable"), "G2-item" in forbidden("snapshot-isolation")
    (True, False)
    """
    if level not in LEVELS:
        msg = f"the level must be one of {', '.join(LEVELS)}; got {level!r}. Give the one that the target promises"
        raise UsageError(msg)
    return LEVELS[level]


def still_allowed(anomalies: frozenset[str], level: str) -> tuple[str, ...]:
    """Return the levels that allow these anomalies, of those that a check of ``level`` can tell.

    >>> still_allowed(frozenset({"lost-update"}), "serializable")
    ('read-uncommitted', 'read-committed')
    """
    return tuple(
        name for name, forbids in LEVELS.items() if not anomalies & forbids and _orders(name) <= _orders(level)
    )


def _orders(level: str) -> frozenset[str]:
    return frozenset(end for end in ("-process", "-realtime") if any(name.endswith(end) for name in LEVELS[level]))
