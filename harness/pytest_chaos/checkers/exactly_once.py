"""Exactly once: an effect happens, and happens once, though the one who causes it may die at any moment and try again.

What counts is the effect *seen in the world* (deliveries at a receiver, lines in a ledger outside
the target), never what the target says of itself. An operation without an ack may have had its
effect or not, but not two. Where the world offers no idempotency, the honest bound is one effect
more for each kill, since a kill between effect and record cannot be told from one before the effect
("Resume Means Resume", arXiv 2608.03836, calls the property *effect exactly once*).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_chaos.checkers import listed, listed_counts
from pytest_chaos.model.values import Finding, Key, MarkKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.model.history import History


def effects_once(history: History, operation: str, effects: Iterable[Key]) -> tuple[Finding, ...]:
    """Judge the effects of an operation, one entry of ``effects`` for each time one was seen in the world.

    ``exactly-once:repeated`` for a key with more than one effect,
    ``exactly-once:acknowledged-without-effect`` for an acknowledged key with none,
    ``exactly-once:uncaused`` for an effect that no agent intended (undecided, of kind ``harness``,
    while torn lines may have said so: ``exactly-once:uncaused-or-torn``).
    """
    seen = Counter(effects)
    return at_most(seen.elements(), 1) + _without_effect(history, operation, seen) + _uncaused(history, operation, seen)


def at_most(effects: Iterable[Key], limit: int) -> tuple[Finding, ...]:
    """Find keys with more effects than ``limit``: ``exactly-once:repeated``.

    For a target whose world has no idempotency, give ``1 +`` the number of kills that hit it.
    """
    repeated = {key: times for key, times in Counter(effects).items() if times > limit}
    if not repeated:
        return ()
    text = f"{len(repeated)} effects happened more often than {limit} (key: times): {listed_counts(repeated)}"
    return (Finding(signature="exactly-once:repeated", text=text),)


def _without_effect(history: History, operation: str, seen: Counter[Key]) -> tuple[Finding, ...]:
    missing = [mark for mark in history.acknowledged(operation) if not seen[mark.key]]
    if not missing:
        return ()
    keys = list(dict.fromkeys(mark.key for mark in missing))
    text = f"{len(keys)} acknowledged {operation} had no effect: {listed(keys)}"
    orders = tuple(mark.order for mark in missing)
    return (Finding(signature="exactly-once:acknowledged-without-effect", text=text, orders=orders),)


def _uncaused(history: History, operation: str, seen: Counter[Key]) -> tuple[Finding, ...]:
    intended = frozenset(mark.key for mark in history.select(MarkKind.INTENT, operation))
    uncaused = [key for key in seen if key not in intended]
    if not uncaused:
        return ()
    text = f"{len(uncaused)} effects of {operation} that no agent intended: {listed(uncaused)}"
    if history.torn:
        torn = f"{text}; but {len(history.torn)} lines of the mark file cannot be read and may have said so"
        return (Finding(signature="exactly-once:uncaused-or-torn", text=torn, kind="harness"),)
    return (Finding(signature="exactly-once:uncaused", text=text),)
