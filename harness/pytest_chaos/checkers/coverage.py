"""Coverage: findings about crash points and situations that no run has reached.

A crash point that no run passed, or a situation ("a lease was taken over") that never came up,
leaves a scenario green for the wrong reason. TigerBeetle's coverage marks and Antithesis'
``sometimes`` assertions make that visible, over all runs together. These findings are of kind
``harness``: nothing wrong was seen, but nothing is proved, so the result is INCONCLUSIVE.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_chaos.checkers import counts, findings_of
from pytest_chaos.model.values import Finding, MarkKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from pytest_chaos.model.history import History

REACHED = "reached"
"""Operation of the note that an agent reached a place; the note's key names the place."""


def all_reached(expected: Collection[str], reached: Iterable[str], what: str = "points") -> tuple[Finding, ...]:
    """Find places that were expected and never reached in any run: ``coverage:never-reached``.

    Expecting nothing at all is a finding as well (``coverage:nothing-expected``): it would pass
    whatever happens.
    """
    if not expected:
        text = f"no {what} are expected, so none can be missed: name at least one"
        return (Finding(signature="coverage:nothing-expected", text=text, kind="harness"),)
    seen = frozenset(reached)
    missed = [name for name in dict.fromkeys(expected) if name not in seen]
    text = f"{len(missed)} of {len(frozenset(expected))} {what} never reached"
    return findings_of("coverage:never-reached", text, missed, kind="harness")


def sometimes(runs: Iterable[Mapping[str, bool]]) -> tuple[Finding, ...]:
    """Find claims that were made in some run and held in none: ``coverage:never-held``.

    Each run gives its claims by name, with whether they held in it; one run in which a claim holds
    is enough.
    """
    held: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for run in runs:
        asked.update(run.keys())
        held.update(name for name, holds in run.items() if holds)
    never = {name: times for name, times in asked.items() if not held[name]}
    text = f"{len(never)} claims never held in any run (claim: runs that asked)"
    return findings_of("coverage:never-held", text, counts(never), kind="harness")


def places_reached(histories: Iterable[History]) -> frozenset[str]:
    """Return the places that agents of these runs reached: the keys of their ``reached`` notes."""
    return frozenset(
        str(mark.key)
        for history in histories
        for mark in history.select(MarkKind.NOTE, REACHED)
        if mark.key is not None
    )
