"""Groups of discoveries with one cause: each becomes one finding with variants. Pure.

Texts of the check are compared without numbers and keys, over all families: a job that is lost by a
kill is lost by an I/O error, too. Two kills with the same text at different lines of the program
are two causes, where the lines are known. The effect of a power loss or an I/O error shows later
than the line that caused it, so that line does not tell causes apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pytest_chaos.model.signatures import alike

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_chaos.explore.report import Discovery
    from pytest_chaos.model.values import Finding

VARIANTS_SHOWN_MAX: Final = 20
TEXT_CHARACTERS_MAX: Final = 200
"""A terminal and a page clip longer texts; JSON has all of a text."""
_NOT_WORTH_A_CUT: Final = 25
"""What tells of a cut is as long as this."""
_MODELLED: Final = "modelled"
_OTHERS_SHOWN: Final = 4
_OTHER_CHARACTERS_MAX: Final = 80


class Variant(NamedTuple):
    """One family's view of a cause: its discovery, and the disk models that show it."""

    found: Discovery
    models: tuple[str, ...] = ()

    def told(self, beside: str) -> str:
        """Return the variant as one line; its text is left out if it equals ``beside``."""
        found = self.found
        family = found.code.partition(":")[0]
        models = f" ({', '.join(self.models)})" if self.models else ""
        where = f"{found.state}{f', at {found.line}' if found.line else ''}"
        said = "" if found.text == beside else f"{clipped(one_line(found.text))}: "
        return f"{family}{models}: {said}{where}; {found.label}; seen in {states(found.states)}; --state '{found.code}'"


class Cause(NamedTuple):
    """All discoveries of one cause.

    ``lead`` is the first confirmed one, a run of its own only if there is no other, else the first
    one. ``variants`` are the others, one for each family and signature; ``every`` has all.
    ``others`` is what the check said of other keys, or with other numbers, with the signature of
    the lead.
    """

    lead: Discovery
    variants: tuple[Variant, ...] = ()
    every: tuple[Discovery, ...] = ()
    others: tuple[str, ...] = ()

    def as_finding(self) -> Finding:
        """Return the cause as a run's finding, with its variants beneath, one a line."""
        first = self.lead.as_finding()
        lines = [first.text, *(f"  also {line}" for line in self.variant_lines())]
        return msgspec.structs.replace(first, text="\n".join(lines))

    def variant_lines(self) -> Iterator[str]:
        """Yield a line for other keys, one for each variant, and one for those above the limit."""
        if self.others:
            yield f"said of others: {_some(self.others)}"
        for variant in self.variants[:VARIANTS_SHOWN_MAX]:
            yield variant.told(self.lead.text)
        if (more := len(self.variants) - VARIANTS_SHOWN_MAX) > 0:
            yield f"{more:,} more, which the JSON has"


def causes(discoveries: Iterable[Discovery]) -> tuple[Cause, ...]:
    """Return the discoveries by cause, in the order in which the causes were found."""
    groups: dict[tuple[str, str], list[list[Discovery]]] = {}
    for found in discoveries:
        same = groups.setdefault((found.kind, alike(found.signature)), [])
        group = next((group for group in same if _is_of(found, group)), None)
        if group is None:
            same.append([found])
        else:
            group.append(found)
    return tuple(_cause(group, same) for same in groups.values() for group in same)


def _is_of(found: Discovery, group: list[Discovery]) -> bool:
    """Whether a discovery belongs to a group: no kill in the group was at another line."""
    if not found.line or not found.code.startswith("crash:"):
        return True
    lines = {_own(each.line) for each in group if each.line and each.code.startswith("crash:")}
    return not lines or _own(found.line) in lines


def _own(line: str) -> str:
    """Return a line without the function of a library that was called there."""
    return line.partition(" (")[0]


def _cause(group: list[Discovery], same: list[list[Discovery]]) -> Cause:
    """Return the cause of a group; ``same`` are all groups that are told alike."""
    # No command repeats a run of its own, so it leads only if there is no other.
    lead = min(group, key=lambda found: (found.label == _MODELLED, found.code.startswith("kill:")))
    by_family: dict[tuple[str, str], Variant] = {}
    for found in group:
        key = (found.code.partition(":")[0], found.signature)
        if key in by_family:
            before = by_family[key]
            models = tuple(dict.fromkeys([*before.models, *([found.model] if found.model else [])]))
            by_family[key] = Variant(found=before.found, models=models)
        else:
            by_family[key] = Variant(found=found, models=(found.model,) if found.model else ())
    others = tuple(variant for variant in by_family.values() if variant.found is not lead)
    told = {found.text for each in same for found in each}
    texts = dict.fromkeys(text for found in group if found.signature == lead.signature for text in found.also)
    return Cause(lead, others, tuple(group), tuple(text for text in texts if text not in told))


def _some(texts: Sequence[str]) -> str:
    shown = "; ".join(clipped(one_line(text), _OTHER_CHARACTERS_MAX) for text in texts[:_OTHERS_SHOWN])
    more = len(texts) - _OTHERS_SHOWN
    return shown + (f"; and {more:,} more" if more > 0 else "")


def states(count: int) -> str:
    """Return a count of states in words.

    >>> states(1), states(1200)
    ('1 state', '1,200 states')
    """
    return "1 state" if count <= 1 else f"{count:,} states"


def one_line(text: str) -> str:
    """Return a text on one line."""
    return " ".join(text.split())


def clipped(text: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """Return a text; a long one is cut, with the number of characters that are missing."""
    more = len(text) - characters_max
    if more <= _NOT_WORTH_A_CUT:
        return text
    return f"{text[:characters_max]} ... ({more:,} more character{'' if more == 1 else 's'})"
