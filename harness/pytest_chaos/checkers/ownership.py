"""Ownership: one holder at a time, tokens that rise with every grant, no write under a stale one.

A lease alone cannot keep two holders apart: a holder that was paused past its expiry wakes and
believes that it still holds (a zombie). The cure is the fencing token that the store checks on each
write (Chubby's sequencers, Burrows, OSDI 2006; Kleppmann, "How to do distributed locking", 2016).
So there are three invariants here, each with a signature of its own.

Times may be orders of a history or instants of a clock, as long as all are of one kind; a grant
that ends where the next one begins does not overlap it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from pytest_chaos.checkers import Bare, findings_of
from pytest_chaos.model.values import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pytest_chaos.model.values import Finding


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """Ownership from grant to release or expiry; ``end`` is ``None`` while it is held."""

    resource: Key
    holder: str
    token: int
    start: float
    end: float | None = None


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt to write under a token; the store decided at ``at`` whether it is ``accepted``."""

    resource: Key
    token: int
    at: float
    accepted: bool


def one_holder(grants: Iterable[Grant]) -> tuple[Finding, ...]:
    """Find resources with two holders at the same time: ``ownership:two-holders``.

    A holder that is granted the same resource again while it holds it counts too: its older
    incarnation may live.
    """
    overlaps = [pair for held in _by_resource(grants).values() for pair in _overlaps(held)]
    shown = [Bare(f"{first.resource!r} by {_said(first)} and {_said(second)}") for first, second in overlaps]
    return findings_of("ownership:two-holders", f"{len(overlaps)} times held by two at once", shown)


def tokens_rise(grants: Iterable[Grant]) -> tuple[Finding, ...]:
    """Find grants whose token is not above the one before: ``ownership:token-not-rising``."""
    wrong = [
        Bare(f"{after.resource!r} {before.token} then {after.token}")
        for held in _by_resource(grants).values()
        for before, after in itertools.pairwise(held)
        if after.token <= before.token
    ]
    return findings_of("ownership:token-not-rising", f"{len(wrong)} tokens did not rise", wrong)


def no_stale_write(grants: Iterable[Grant], writes: Iterable[Write]) -> tuple[Finding, ...]:
    """Find accepted writes under a token that was stale or never granted.

    ``ownership:stale-write`` when a higher token had been granted by then,
    ``ownership:ungranted-write`` when that token had not been granted by then. A write after its
    holder's expiry is no finding while no other was granted: fencing, not the clock, decides.
    """
    granted = _by_resource(grants)
    stale: list[Write] = []
    ungranted: list[Write] = []
    for write in writes:
        if write.accepted:
            tokens = [grant.token for grant in granted.get(write.resource, ()) if grant.start <= write.at]
            if write.token not in tokens:
                ungranted.append(write)
            elif write.token < max(tokens):
                stale.append(write)
    return _write_findings("ownership:stale-write", "under a stale token", stale) + _write_findings(
        "ownership:ungranted-write", "under a token that was not granted", ungranted
    )


def _write_findings(signature: str, how: str, writes: list[Write]) -> tuple[Finding, ...]:
    shown = [Bare(f"{write.resource!r} token {write.token} at {write.at:g}") for write in writes]
    return findings_of(signature, f"{len(writes)} writes accepted {how}", shown)


def _by_resource(grants: Iterable[Grant]) -> Mapping[Key, list[Grant]]:
    held: defaultdict[Key, list[Grant]] = defaultdict(list)
    # Ties keep the order in which they were given: it is the order in which they were granted.
    for grant in sorted(grants, key=lambda grant: grant.start):
        held[grant.resource].append(grant)
    return held


def _overlaps(held: list[Grant]) -> Iterable[tuple[Grant, Grant]]:
    """Yield each grant that overlaps earlier ones, with the earlier one that ends last."""
    longest: Grant | None = None
    for grant in held:
        if longest is not None and (longest.end is None or grant.start < longest.end):
            yield longest, grant
        if longest is None or (longest.end is not None and (grant.end is None or grant.end > longest.end)):
            longest = grant


def _said(grant: Grant) -> str:
    end = "now" if grant.end is None else f"{grant.end:g}"
    return f"{grant.holder} (token {grant.token}, {grant.start:g} to {end})"
