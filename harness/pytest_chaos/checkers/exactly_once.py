"""Exactly once: an effect happens once, though its agent may die at any moment and try again.

Only effects *seen in the world* count (deliveries at a receiver, lines in a ledger outside the
target), never what the target says of itself. An operation without an ack may have had no effect or
one, but not two. Where the world offers no idempotency, the honest bound is one effect more for
each kill: a kill between effect and record cannot be told from a kill before the effect
("Resume Means Resume", arXiv 2608.03836, calls the property *effect exactly once*).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_chaos.checkers import counts, findings_of, undecided_if_torn
from pytest_chaos.model.values import Key, MarkKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.model.history import History
    from pytest_chaos.model.values import Finding


def effects_once(history: History, operation: str, effects: Iterable[Key]) -> tuple[Finding, ...]:
    """Judge the effects of an operation: one entry of ``effects`` for each that was seen.

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
    text = f"{len(repeated)} effects happened more often than {limit} (key: times)"
    return findings_of("exactly-once:repeated", text, counts(repeated))


def _without_effect(history: History, operation: str, seen: Counter[Key]) -> tuple[Finding, ...]:
    missing = [mark for mark in history.acknowledged(operation) if not seen[mark.key]]
    keys = list(dict.fromkeys(mark.key for mark in missing))
    text = f"{len(keys)} acknowledged {operation} had no effect"
    return findings_of("exactly-once:acknowledged-without-effect", text, keys, orders=[mark.order for mark in missing])


def _uncaused(history: History, operation: str, seen: Counter[Key]) -> tuple[Finding, ...]:
    intended = frozenset(mark.key for mark in history.select(MarkKind.INTENT, operation))
    uncaused = [key for key in seen if key not in intended]
    text = f"{len(uncaused)} effects of {operation} that no agent intended"
    return undecided_if_torn(history, findings_of("exactly-once:uncaused", text, uncaused))
