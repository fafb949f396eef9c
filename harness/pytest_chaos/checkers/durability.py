"""Durability: nothing acknowledged is lost, nothing is invented, nothing is half there.

The idea is Jepsen's ``set`` checker: elements are added, and after the faults are healed all are
read once. An acknowledged element that is missing is *lost*; one that was found without ever being
attempted is *unexpected*; an attempt without an ack may be found or not. Wholeness and contiguity
are what atomic commits promise beyond that (ALICE, Pillai et al., OSDI 2014).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from pytest_chaos.checkers import Bare, counts, findings_of, undecided_if_torn
from pytest_chaos.model.values import Key, MarkKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pytest_chaos.model.history import History
    from pytest_chaos.model.values import Finding


class FoundItem(msgspec.Struct, frozen=True):
    """An item that was found afterwards: whether it is whole, and if not, why."""

    key: Key
    whole: bool
    reason: str = ""


def acknowledged_present(history: History, operation: str, found: Collection[Key]) -> tuple[Finding, ...]:
    """Find acknowledged keys that are not there afterwards: ``durability:acknowledged-lost``.

    Torn lines in the history may hide an ack and never add one: these findings are certain.
    """
    there = frozenset(found)
    lost = [mark for mark in history.acknowledged(operation) if mark.key not in there]
    keys = list(dict.fromkeys(mark.key for mark in lost))
    text = f"{len(keys)} acknowledged {operation} lost"
    return findings_of("durability:acknowledged-lost", text, keys, orders=[mark.order for mark in lost])


def nothing_invented(history: History, operation: str, found: Collection[Key]) -> tuple[Finding, ...]:
    """Find keys that no agent ever intended: ``durability:invented``.

    With torn lines in the history the missing intent may be one of them: the finding is undecided,
    of kind ``harness``.
    """
    intended = frozenset(mark.key for mark in history.select(MarkKind.INTENT, operation))
    invented = [key for key in dict.fromkeys(found) if key not in intended]
    text = f"{len(invented)} {operation} found that no agent intended"
    return undecided_if_torn(history, findings_of("durability:invented", text, invented))


def found_once(found: Iterable[Key], what: str = "items") -> tuple[Finding, ...]:
    """Find keys that are there more than once: ``durability:duplicated``."""
    repeated = {key: times for key, times in Counter(found).items() if times > 1}
    text = f"{len(repeated)} {what} found more than once (key: times)"
    return findings_of("durability:duplicated", text, counts(repeated))


def whole(items: Iterable[FoundItem], what: str = "items") -> tuple[Finding, ...]:
    """Find items that are only half there, acknowledged or not: ``durability:half-there``."""
    halves = [Bare(f"{item.key!r}: {item.reason or 'not whole'}") for item in items if not item.whole]
    return findings_of("durability:half-there", f"{len(halves)} {what} half there", halves)


def contiguous(numbers: Collection[int], start: int = 1, what: str = "numbers") -> tuple[Finding, ...]:
    """Find gaps and repetitions in numbers that should run from ``start`` without either.

    Signatures ``durability:number-missing``, ``durability:number-repeated`` and
    ``durability:number-before-start``. Memory and time depend on how many numbers there are, not on
    how large they are.
    """
    counted = Counter(numbers)
    gaps = _gaps(sorted(number for number in counted if number >= start), start)
    repeated = {number: times for number, times in sorted(counted.items()) if times > 1}
    before = sorted(number for number in counted if number < start)
    return (
        *findings_of("durability:number-missing", f"{what} missing", gaps),
        *findings_of("durability:number-repeated", f"{what} repeated (number: times)", counts(repeated)),
        *findings_of("durability:number-before-start", f"{what} before {start}, where they start", before),
    )


def _gaps(ordered: list[int], start: int) -> list[object]:
    gaps: list[object] = []
    expected = start
    for number in ordered:
        if number == expected + 1:
            gaps.append(expected)
        elif number > expected:
            gaps.append(Bare(f"{expected} to {number - 1}"))
        expected = number + 1
    return gaps
