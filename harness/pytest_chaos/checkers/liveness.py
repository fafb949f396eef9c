"""Liveness: once the faults are healed, progress resumes within a bound.

Safety is judged over the whole run, liveness only after the faults were healed (TigerBeetle's
simulator: a safety phase, then heal, then a liveness phase): no program progresses while it is
dead. All findings are of kind ``liveness``, apart from safety: they say "not within this bound",
and the test's author chose the bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_chaos.checkers import Bare, findings_of
from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import Finding, MarkKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_chaos.model.history import History


def progress_after(
    history: History, operation: str, *, healed: int, count: int = 1, agent: str | None = None
) -> tuple[Finding, ...]:
    """Find that fewer than ``count`` acks follow the heal: ``liveness:no-progress``.

    ``healed`` is the number of marks that had been written when the last fault was healed (a
    receipt's ``order``).
    """
    acks = sum(1 for mark in history.acknowledged(operation, agent) if mark.order >= healed)
    if acks >= count:
        return ()
    who = f" by {agent}" if agent is not None else ""
    text = f"{acks} acks of {operation}{who} after the heal (mark {healed}), expected at least {count}"
    return (Finding(signature="liveness:no-progress", text=text, kind="liveness"),)


def eventually(
    history: History, operation: str, holds: Callable[[object], bool], *, healed: int, agent: str | None = None
) -> tuple[Finding, ...]:
    """Find that no value after the heal is as it must become: ``liveness:never``.

    The values are those of the acks and notes of the operation. ``healed`` is as in
    :func:`progress_after`.

    >>> from pytest_chaos import History, Mark
    >>> marks = (Mark(kind=MarkKind.NOTE, operation="leader", value=None, order=0),)
    >>> [finding.signature for finding in eventually(History(marks), "leader", bool, healed=0)]
    ['liveness:never']
    """
    values = [
        mark.value
        for mark in history.select(operation=operation, agent=agent)
        if mark.kind is not MarkKind.INTENT and mark.order >= healed
    ]
    if any(holds(value) for value in values):
        return ()
    last = f"the last of {len(values)} was {values[-1]!r:.80}" if values else "none was seen"
    text = f"{operation} did not become as it must after the heal (mark {healed}): {last}"
    return (Finding(signature="liveness:never", text=text, kind="liveness"),)


def progress_within(name: str, *, observed_s: float | None, bound_s: float) -> tuple[Finding, ...]:
    """Find that an event came too late: ``liveness:bound-expired``.

    ``observed_s`` is ``None`` for an event that never came. Both are seconds since the heal, the
    bound inclusive. Raises UsageError for a bound that is not
    a finite number of 0 or more: a wait without end would never be a finding.
    """
    if not 0 <= bound_s < math.inf:
        msg = f"the bound of {name} must be a finite number of seconds, 0 or more; got {bound_s}. Give such a bound"
        raise UsageError(msg)
    if observed_s is not None and observed_s <= bound_s:
        return ()
    seen = "has not come" if observed_s is None else f"took {observed_s:g} s"
    text = f"{name} {seen}, expected within {bound_s:g} s after the heal"
    return (Finding(signature="liveness:bound-expired", text=text, kind="liveness"),)


def steady_state_regained(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[Finding, ...]:
    """Find observations that changed: ``liveness:steady-state-not-regained``.

    Each is a set of named observations (Chaos Toolkit's steady state hypothesis, seen before and
    after). An observation made only after the faults is no finding.
    """
    changed = [name for name in before if name not in after or after[name] != before[name]]
    shown = [Bare(f"{name} was {before[name]!r}, is {_seen(after, name)}") for name in changed]
    text = f"{len(changed)} observations differ from the steady state"
    return findings_of("liveness:steady-state-not-regained", text, shown, kind="liveness")


def nothing_unfinished(history: History, operation: str, *, healed: int) -> tuple[Finding, ...]:
    """Find intents after the heal that were never acknowledged: ``liveness:unfinished``.

    Before the heal an open intent is only unknown; after it nothing stood in the way.
    """
    open_intents = [
        pair.intent for pair in history.operations(operation) if pair.ack is None and pair.intent.order >= healed
    ]
    text = f"{len(open_intents)} {operation} begun after the heal and not finished"
    orders = [mark.order for mark in open_intents]
    return findings_of("liveness:unfinished", text, [mark.key for mark in open_intents], kind="liveness", orders=orders)


def _seen(after: Mapping[str, object], name: str) -> str:
    return repr(after[name]) if name in after else "not observed"
