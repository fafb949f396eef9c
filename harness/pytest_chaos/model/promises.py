"""The steps that acknowledged operations relied on. Pure.

A trail is the durable steps and the marks of a program in one order, each a step or a mark. What an
operation relied on lies between its intent and its ack: the last sync there, or else the last step.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from pytest_chaos.model.values import MarkKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_chaos.model.values import Finding, Mark

_Step = TypeVar("_Step")
_WORD: Final = re.compile(r"[\w.-]+")
_LOSS: Final = re.compile(r"(?i)\b(lost|missing|gone|disappeared|not (there|found))\b")


class Relied(NamedTuple):
    """The place in the trail of the step that an operation relied on, or None; and why, in words.

    ``is_synced`` says whether that step synced it.
    """

    place: int | None
    why: str
    is_synced: bool = False


def relied_on(
    trail: Sequence[tuple[_Step | None, Mark | None]],
    place: int,
    syncs: Callable[[_Step], bool],
    *,
    is_own: Callable[[_Step], bool] = lambda _: True,
) -> Relied:
    """Return what the ack at a place of the trail relied on.

    ``syncs`` tells steps that make earlier writes durable. A step that ``is_own`` was made by the
    process of the ack; other steps count where it made none, as with a client and its server.
    """
    ack = trail[place][1]
    assert ack is not None  # noqa: S101 - the caller's places are those of acks
    between = range(_begin(trail, place, ack) + 1, place)
    steps = [(at, step) for at in between if (step := trail[at][0]) is not None]
    steps = [each for each in steps if is_own(each[1])] or steps
    if synced := [at for at, step in steps if syncs(step)]:
        return Relied(synced[-1], "this step made it durable before it was acknowledged", is_synced=True)
    if steps:
        why = "it was acknowledged after this step, which reached the page cache only: nothing synced it"
        return Relied(steps[-1][0], why)
    after = range(place + 1, len(trail))
    later = next((at for at in after if (step := trail[at][0]) is not None and is_own(step)), None)
    if later is None:
        return Relied(None, "no step was made between its intent and its ack: nothing was written")
    return Relied(later, "it was acknowledged before this step, the next one: nothing had been written")


def _begin(trail: Sequence[tuple[_Step | None, Mark | None]], place: int, ack: Mark) -> int:
    """Return the place of the intent of an ack, or of the ack before it; -1 for neither."""
    for at in range(place - 1, -1, -1):
        mark = trail[at][1]
        if mark is None or mark.agent != ack.agent:
            continue
        if mark.kind is MarkKind.ACK or (mark.operation, mark.key) == (ack.operation, ack.key):
            return at
    return -1


def named(acks: Sequence[Mark], text: str) -> list[Mark]:
    """Return the acks whose operation and key a text names; else those whose key it does.

    A number alone may be a count, so it counts only beside a word of loss.
    """
    words = _WORD.findall(text)
    beside = set(itertools.pairwise(words))
    exact = [mark for mark in acks if mark.key is not None and (mark.operation, str(mark.key)) in beside]
    if exact:
        return exact
    is_loss = _LOSS.search(text) is not None
    known = set(words)
    return [
        mark
        for mark in acks
        if mark.key is not None and str(mark.key) in known and (is_loss or isinstance(mark.key, str))
    ]


def named_by(findings: Iterable[Finding], acks: Sequence[Mark]) -> list[Mark]:
    """Return the acks that findings are about: by the orders they give, else by their words."""
    found: dict[int, Mark] = {}
    for finding in findings:
        orders = set(finding.orders)
        own = [mark for mark in acks if mark.order in orders] or named(acks, finding.text)
        found.update((mark.order, mark) for mark in own)
    return [found[order] for order in sorted(found)]
