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

from pytest_chaos.checkers import Bare, listed, listed_counts
from pytest_chaos.model.values import Finding, Key, MarkKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pytest_chaos.model.history import History


class FoundItem(msgspec.Struct, frozen=True):
    """Something that was found afterwards: whether it is whole, and if not, what is wrong with it."""

    key: Key
    whole: bool
    reason: str = ""


def acknowledged_present(history: History, operation: str, found: Collection[Key]) -> tuple[Finding, ...]:
    """Find what was acknowledged and is not among the keys found afterwards: ``durability:acknowledged-lost``.

    Where the history has torn lines an ack may be missing, never one too many: what this finds is
    certain.
    """
    there = frozenset(found)
    lost = [mark for mark in history.acknowledged(operation) if mark.key not in there]
    if not lost:
        return ()
    keys = list(dict.fromkeys(mark.key for mark in lost))
    text = f"{len(keys)} acknowledged {operation} lost: {listed(keys)}"
    return (Finding(signature="durability:acknowledged-lost", text=text, orders=tuple(mark.order for mark in lost)),)


def nothing_invented(history: History, operation: str, found: Collection[Key]) -> tuple[Finding, ...]:
    """Find keys that nobody ever intended: ``durability:invented``.

    With torn lines in the history the missing intent may have been one of them, so the finding is
    of kind ``harness``: undecided.
    """
    intended = frozenset(mark.key for mark in history.select(MarkKind.INTENT, operation))
    invented = [key for key in dict.fromkeys(found) if key not in intended]
    if not invented:
        return ()
    text = f"{len(invented)} {operation} found that no agent intended: {listed(invented)}"
    if history.torn:
        torn = f"{text}; but {len(history.torn)} lines of the mark file cannot be read and may have said so"
        return (Finding(signature="durability:invented-or-torn", text=torn, kind="harness"),)
    return (Finding(signature="durability:invented", text=text),)


def found_once(found: Iterable[Key], what: str = "items") -> tuple[Finding, ...]:
    """Find keys that are there more than once: ``durability:duplicated``."""
    repeated = {key: times for key, times in Counter(found).items() if times > 1}
    if not repeated:
        return ()
    text = f"{len(repeated)} {what} found more than once (key: times): {listed_counts(repeated)}"
    return (Finding(signature="durability:duplicated", text=text),)


def whole(items: Iterable[FoundItem], what: str = "items") -> tuple[Finding, ...]:
    """Find what is only half there, acknowledged or not: ``durability:half-there``."""
    halves = [item for item in items if not item.whole]
    if not halves:
        return ()
    shown = listed([Bare(f"{item.key!r}: {item.reason or 'not whole'}") for item in halves])
    return (Finding(signature="durability:half-there", text=f"{len(halves)} {what} half there: {shown}"),)


def contiguous(numbers: Collection[int], start: int = 1, what: str = "numbers") -> tuple[Finding, ...]:
    """Find gaps and repetitions in numbers that should run from ``start`` without either, in whatever order they come.

    Signatures ``durability:number-missing``, ``durability:number-repeated`` and
    ``durability:number-before-start``. Memory and time depend on how many numbers there are, not on
    how large they are.
    """
    counted = Counter(numbers)
    findings = []
    if gaps := _gaps(sorted(number for number in counted if number >= start), start):
        text = f"{what} missing: {listed(gaps)}"
        findings.append(Finding(signature="durability:number-missing", text=text))
    if repeated := {number: times for number, times in sorted(counted.items()) if times > 1}:
        text = f"{what} repeated (number: times): {listed_counts(repeated)}"
        findings.append(Finding(signature="durability:number-repeated", text=text))
    if before := sorted(number for number in counted if number < start):
        text = f"{what} before {start}, where they start: {listed(before)}"
        findings.append(Finding(signature="durability:number-before-start", text=text))
    return tuple(findings)


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
