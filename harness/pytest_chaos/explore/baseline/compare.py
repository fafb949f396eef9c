"""Compare the findings of an exploration with those that are known. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.explore.causes import clipped, one_line
from pytest_chaos.explore.report import Discovery, Exploration, Family
from pytest_chaos.model.signatures import cause_of
from pytest_chaos.model.values import Verdict
from pytest_chaos.model.verdict import encodable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_chaos.model.values import Finding

FORMAT: Final = 1
KNOWN: Final = "KNOWN"
"""What takes the place of a verdict if all that was found is known. It is not HELD."""
CLEAN_RUN: Final = "run"
"""The family of a finding that needs no fault: of the clean run, or of a schedule."""
_LINE_NUMBER: Final = re.compile(r":\d+(?= in |$)")
_MORE_LINES: Final = "another line"
_BETWEEN: Final = " or "


class KnownFinding(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A finding by its cause: what a baseline has of it.

    ``model`` is the disk model of a power loss, else empty; ``place`` the file and the function
    that a kill struck, else empty, also where it is not known. ``text`` is for people alone.
    """

    signature: str
    family: str
    model: str = ""
    place: str = ""
    kind: str = "safety"
    text: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What two entries of one cause and family have in common."""
        return self.kind, self.signature, self.family, self.model

    @property
    def where(self) -> str:
        """The family with the disk model or the place, for people."""
        return f"{self.family}{f' ({self.model})' if self.model else f' in {self.place}' if self.place else ''}"


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a target. ``families`` are those that were explored to write it."""

    target: str
    format: int
    families: tuple[str, ...]
    known: tuple[KnownFinding, ...]


class AgainstBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """An exploration against its baseline.

    ``gone``: known, but not found although all of its family was explored. ``unseen``: known and
    not found, in a family that was sampled, ended early, or left out this time. ``verdict`` is that
    of what is new, or KNOWN if only known findings keep the exploration from HELD.
    """

    verdict: str
    new: tuple[KnownFinding, ...] = ()
    known: tuple[KnownFinding, ...] = ()
    gone: tuple[KnownFinding, ...] = ()
    unseen: tuple[KnownFinding, ...] = ()

    def has_new(self, found: Discovery | Finding) -> bool:
        """Whether a discovery, or a finding of no family, has something that is not known."""
        new = {(entry.key, entry.place) for entry in self.new}
        entries = _of_discovery(found) if isinstance(found, Discovery) else _of_finding(found)
        return any((entry.key, entry.place) in new for entry in entries)


def known_findings(explored: Exploration) -> tuple[KnownFinding, ...]:
    """Return the findings of an exploration as entries of a baseline, sorted, each once.

    Of entries that differ in their text alone, it is the first.
    """
    first = {(entry.key, entry.place): entry for entry in reversed([*_entries(explored)])}
    return tuple(sorted(first.values()))


def compared(explored: Exploration, baseline: Baseline) -> AgainstBaseline:
    """Compare what was found with what is known."""
    places: dict[tuple[str, ...], set[str]] = {}
    for entry in baseline.known:
        places.setdefault(entry.key, set()).add(entry.place)
    found = known_findings(explored)
    new = tuple(entry for entry in found if not _is_in(entry, places))
    again: dict[tuple[str, ...], set[str]] = {}
    for entry in found:
        again.setdefault(entry.key, set()).add(entry.place)
    missing = [entry for entry in baseline.known if not _is_in(entry, again)]
    whole = _explored_whole(explored)
    return AgainstBaseline(
        verdict=_verdict(explored, new),
        new=new,
        known=tuple(entry for entry in found if entry not in new),
        gone=tuple(entry for entry in missing if entry.family in whole),
        unseen=tuple(entry for entry in missing if entry.family not in whole),
    )


def _is_in(entry: KnownFinding, places: dict[tuple[str, ...], set[str]]) -> bool:
    """Whether an entry is among others, by key and place; an unknown place is any place."""
    others = places.get(entry.key)
    return others is not None and (not entry.place or "" in others or entry.place in others)


def rest(explored: Exploration) -> Verdict:
    """Return the verdict of what is left of an exploration without what it found of the target.

    HELD if it came to its end, and INCONCLUSIVE if more might have been found: it ended early, or
    the run without any fault was wrong and nothing else was judged.
    """
    return msgspec.structs.replace(
        explored,
        families=tuple(msgspec.structs.replace(each, discoveries=()) for each in explored.families),
        findings=tuple(each for each in explored.findings if each.verdict is not Verdict.VIOLATED),
    ).verdict


def _verdict(explored: Exploration, new: tuple[KnownFinding, ...]) -> str:
    if new or explored.verdict is not Verdict.VIOLATED:
        return str(explored.verdict)
    return KNOWN if rest(explored) is Verdict.HELD else str(Verdict.INCONCLUSIVE)


def _explored_whole(explored: Exploration) -> set[str]:
    """Return the families in which what was not found is not there."""
    if explored.schedules > 1:  # a sample of all orders
        return set()
    whole = {
        str(each.family) for each in explored.families if each.is_complete and not each.is_sampled and not each.problems
    }
    is_undecided = any(each.verdict is Verdict.INCONCLUSIVE for each in explored.findings)
    return whole if is_undecided else whole | {CLEAN_RUN}


def _entries(explored: Exploration) -> Iterator[KnownFinding]:
    for discovery in explored.discoveries:
        yield from _of_discovery(discovery)
    for finding in explored.findings:
        yield from _of_finding(finding)


def _of_finding(finding: Finding) -> Iterator[KnownFinding]:
    if finding.verdict is Verdict.VIOLATED:
        signature, text = encodable(cause_of(finding.signature)), encodable(clipped(one_line(finding.text)))
        yield KnownFinding(signature=signature, family=CLEAN_RUN, kind=finding.kind, text=text)


def _of_discovery(found: Discovery) -> Iterator[KnownFinding]:
    family = found.code.partition(":")[0]
    places = _places(found.lines) if family == Family.CRASH else ("",)
    for place in places:
        yield KnownFinding(
            signature=encodable(cause_of(found.signature)),
            family=family,
            model=found.model if family == Family.POWER else "",
            place=encodable(place),
            kind=found.kind,
            text=encodable(clipped(one_line(found.text))),
        )


def _places(lines: Iterable[str]) -> tuple[str, ...]:
    """Return file and function of each line, without its number.

    >>> _places(["a.py:20 in run (subprocess.run)", "a.py:1 in f or a.py:9 in g or another line"])
    ('a.py in f', 'a.py in g', 'a.py in run')
    >>> _places([])
    ('',)
    """
    each = {place for line in lines for place in line.split(_BETWEEN) if place and place != _MORE_LINES}
    bare = {_LINE_NUMBER.sub("", place.partition(" (")[0]).strip() for place in each}
    return tuple(sorted(bare - {""})) or ("",)
