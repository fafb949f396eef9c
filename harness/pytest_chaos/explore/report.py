"""The results of an exploration: values for JSON, for a run's record and for a terminal. Pure.

The JSON of ``chaos explore`` is a contract (docs/design.md): per family ``states``, ``confirmed``,
``verdict`` and ``findings``, each with signature, step, kind, text, and ``confirmed`` or modelled.
"""

from __future__ import annotations

import enum
import itertools
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import ChaosError
from pytest_chaos.explore.causes import Cause, causes, clipped, one_line, states as in_states
from pytest_chaos.explore.doubt.result import Doubt
from pytest_chaos.model.signatures import IN_WORDS
from pytest_chaos.model.statistics import unseen_share
from pytest_chaos.model.values import Finding, FindingKind, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.step import Step


CONFIRMED_BY_A_KILL: Final = "confirmed by a real kill"
CONFIRMED_BY_A_RUN: Final = "confirmed by a real run"
MODELLED: Final = "modelled"
HANGS: Final = "harness:too-many-hangs"
"""The signature of a family that was ended because too many of its states hung."""
INTERRUPTED: Final = "harness:interrupted"
"""The signature of an exploration that Ctrl-C has ended."""
CLUSTER_ABSENT: Final = "harness:cluster-absent"
"""The signature of an exploration whose cluster cannot be had."""
CLUSTER_LOST: Final = "harness:cluster-lost"
"""The signature of an exploration whose cluster went away."""
NOT_EXPLORED: Final = "not explored"
"""Shown in place of a verdict for a family that had nothing to explore; its coverage says why."""
STRUCK_MAX: Final = 2000
TEXTS_MAX: Final = 50
KILLS_MAX: Final = 8
"""Lines of the program that are told apart where kills give the same signature."""
_STEPS_SHOWN: Final = 3
_OUTCOME_CHARACTERS_MAX: Final = 80
_MARKS_SHOWN: Final = 2
_MORE: Final = 1000


class ExplorationError(ChaosError):
    """A target that cannot be recorded, so that nothing is decided.

    ``signature`` is that of the finding it becomes, which leaves the exploration INCONCLUSIVE. It
    is optional only for pickle, which sets it afterwards.
    """

    def __init__(self, text: str, *, signature: str = "") -> None:
        super().__init__(text)
        self.signature = signature


class Family(enum.StrEnum):
    """The kinds of states that an exploration builds, in the order in which they are explored."""

    CRASH = "crash"
    RECOVERY = "recovery"
    POWER = "power"
    IO = "io"


_STATES: Final = {
    Family.CRASH: "crash states",
    Family.RECOVERY: "states of interrupted recoveries",
    Family.POWER: "power-loss states",
    Family.IO: "I/O errors",
}


def harness_finding(signature: str, text: str) -> Finding:
    """Return a finding about the exploration itself: it makes the verdict INCONCLUSIVE."""
    return Finding(signature=signature, text=text, kind="harness", checker="explore")


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    """All findings of one family with one signature, represented by the earliest and smallest.

    ``step`` is the durable step before which the fault struck, ``code`` the state code, ``state``
    the state in words; ``states`` counts the states that showed the signature. ``at`` is the step
    in words, and ``line`` the line of the user's program that makes it, where it is known.
    ``label`` is confirmed or modelled; ``folder`` is where the state was kept, or empty; ``lost``
    counts the pending changes that it lacks. ``output`` is the end of what a run with an I/O error
    printed. ``struck`` are the steps before which it showed, at most :data:`STRUCK_MAX`, and
    ``lines`` the program lines that make these steps, each once, where they are known. ``also`` are
    other texts of the check with this signature, which differ in keys or numbers, at most
    :data:`TEXTS_MAX`.
    """

    signature: str
    kind: FindingKind
    text: str
    step: int
    code: str
    state: str
    label: str
    model: str = ""
    marks: int = 0
    lost: int = 0
    states: int = 1
    reproduction: str = ""
    folder: str = ""
    output: str = ""
    at: str = ""
    line: str = ""
    struck: tuple[int, ...] = ()
    lines: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def is_confirmed(self) -> bool:
        """Whether a real kill or a real run showed it."""
        return self.label != MODELLED

    def as_finding(self) -> Finding:
        """Return it as a run's finding."""
        where = f"[{self.label}] {self.state}{f', at {self.line}' if self.line else ''}: {clipped(self.text)}"
        return Finding(signature=self.signature, text=where, kind=self.kind, checker="explore")


class FamilyResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one family.

    ``points`` of ``points_total`` is its coverage; the total includes points outside the sample and
    points that the budget did not reach. ``states`` counts the states that were built and judged,
    ``violated`` those with a finding. ``confirmed`` counts the real kills or runs that agreed with
    the built states. ``is_sampled``: more states were possible than were planned, or tried.
    ``is_complete``: the budget reached all that were planned, or representatives of all.
    ``sites`` of ``sites_total`` call sites had a fault, if faults were tried by call site. The
    states are of so many ``kinds`` (which updates are missing), of which ``kinds_once`` have one
    state, counted in each recording. Of the states that the budget did not reach, at least
    ``unread`` differ from earlier ones only in what a start did not read. ``coverage`` is the
    coverage in words, as reports show it: ``122 of 122 crash points``.
    """

    family: Family
    states: int = 0
    points: int = 0
    points_total: int = 0
    confirmed: int = 0
    violated: int = 0
    kinds: int = 0
    kinds_once: int = 0
    unread: int = 0
    is_sampled: bool = False
    is_complete: bool = True
    coverage: str = ""
    discoveries: tuple[Discovery, ...] = ()
    problems: tuple[Finding, ...] = ()
    sites: int = 0
    sites_total: int = 0
    unexplored: str = ""
    """Why there was nothing to explore. Such a family does not count in the verdict."""

    @property
    def judged(self) -> str:
        """The verdict as reports show it; ``not explored`` if there was nothing to explore."""
        return NOT_EXPLORED if self.unexplored else self.verdict.name

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings; INCONCLUSIVE at best if incomplete, empty or not judged."""
        found = [each.as_finding().verdict for each in self.discoveries] + [each.verdict for each in self.problems]
        if not self.is_complete or not self.points or self.unexplored:
            found.append(Verdict.INCONCLUSIVE)
        return Verdict.worst([*found, Verdict.HELD])

    @property
    def is_hanging(self) -> bool:
        """Whether the family was ended because too many of its states hung."""
        return any(problem.signature == HANGS for problem in self.problems)

    @property
    def unseen(self) -> str:
        """What was not met, where not all was judged: an estimate, or empty."""
        if not self.kinds or (self.is_complete and not self.is_sampled):
            return ""
        more = round(unseen_share(self.kinds_once, self.states) * _MORE)
        return (
            f"{self.family}: the kinds of the {self.states:,} judged states, by what they lack, are {self.kinds:,}, of "
            f"which {self.kinds_once:,} were met once: of {_MORE:,} more states some {more:,} would be of a kind not "
            "met (Good-Turing)"
        )

    @property
    def left_unread(self) -> str:
        """What is known of states that the budget did not reach: an unread difference, or empty."""
        if self.is_complete or not self.unread:
            return ""
        return (
            f"{self.family}: of the states that were not judged, at least {self.unread:,} differ from earlier ones "
            "only in what a start did not read when it was watched; another start may read it"
        )

    @property
    def outcome(self) -> str:
        """The coverage; of a violated family, ``9 of 68 crash states violated``."""
        if not self.discoveries:
            return self.coverage
        states = max(self.states, self.violated, 1)
        return f"{max(self.violated, 1):,} of {states:,} {_STATES[self.family]} violated{self.extent}"

    @property
    def extent(self) -> str:
        """The extent in words: `` so far``, `` (sampled)``, or empty if all was explored."""
        return " so far" if not self.is_complete else " (sampled)" if self.is_sampled else ""


class Exploration(msgspec.Struct, frozen=True, kw_only=True):
    """The result of exploring one target. ``steps`` counts the durable steps of its clean run."""

    target: str
    seed: str
    steps: int = 0
    marks: int = 0
    source: str = ""
    families: tuple[FamilyResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    """Findings of no family: the clean runs, races, blind spots."""
    notes: tuple[str, ...] = ()
    duration_s: float = 0.0
    schedules: int = 1
    """The recordings that were explored, each of another order of threads and processes."""
    workload: str = ""
    """The operations of the explored workload, if the target is a state machine."""
    doubt: Doubt | None = None
    """What the check notices of damages, if that was tried. It does not count in the verdict."""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of families and findings; INCONCLUSIVE if nothing was explored."""
        explored = [each.verdict for each in self.families if not each.unexplored]
        return Verdict.worst([*explored, *(each.verdict for each in self.findings)])

    @property
    def coverage(self) -> str:
        """The coverage of all families in one line."""
        covered = ", ".join(each.coverage for each in self.families) or "nothing explored"
        return covered if self.schedules == 1 else f"{covered}, in {self.schedules} schedules"

    @property
    def outcome(self) -> str:
        """The outcome in one line: the first finding, and the coverage."""
        found = [cause.lead.text for cause in self.causes]
        found += [finding.text for finding in self.findings if finding.verdict is Verdict.VIOLATED]
        if not found:
            return self.coverage
        first, *others = found
        more = (
            "" if not others else " and 1 more finding" if len(others) == 1 else f" and {len(others):,} more findings"
        )
        held = (f"{each.outcome}{' held' if each.verdict is Verdict.HELD else ''}" for each in self.families)
        told = ", ".join(held) or "nothing explored"
        schedules = f", in {self.schedules} schedules" if self.schedules > 1 else ""
        return f"{clipped(one_line(first), _OUTCOME_CHARACTERS_MAX)}{more}: {told}{schedules}"

    @property
    def causes(self) -> tuple[Cause, ...]:
        """The discoveries of all families, by cause."""
        return causes(self.discoveries)

    @property
    def discoveries(self) -> tuple[Discovery, ...]:
        """The discoveries of all families."""
        return tuple(found for family in self.families for found in family.discoveries)

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        """All findings that keep the verdict from HELD, as findings of a run."""
        own = [finding for family in self.families for finding in family.problems]
        late = [_incomplete(family) for family in self.families if not family.is_complete and not family.is_hanging]
        if self.families and all(each.unexplored for each in self.families):
            own.append(harness_finding("harness:not-explored", f"nothing was judged: {self.coverage}"))
        empty = [_empty(each) for each in self.families if not each.points and each.is_complete and not each.problems]
        return (*self.findings, *(cause.as_finding() for cause in self.causes), *own, *empty, *late)


def _empty(family: FamilyResult) -> Finding:
    text = f"{family.family} was not explored: there was nothing to try; let run() write more, or leave the family out"
    return harness_finding(f"harness:not-explored:{family.family}", text)


def _incomplete(family: FamilyResult) -> Finding:
    text = f"{family.family}: tried {family.coverage}, and was ended: give a larger budget, or run it again to go on"
    return harness_finding(f"harness:incomplete:{family.family}", text)


def _earlier(one: Discovery, other: Discovery) -> Discovery:
    """Return the better example of two discoveries: confirmed, then earlier, then smaller."""
    ours = (one.label == MODELLED, one.step, one.lost, one.marks)
    first = one if ours <= (other.label == MODELLED, other.step, other.lost, other.marks) else other
    struck = tuple(sorted({*one.struck, *other.struck})[:STRUCK_MAX])
    lines = tuple(sorted({*one.lines, *other.lines})[:STRUCK_MAX])
    also = other_texts(first.text, (*one.also, one.text, *other.also, other.text))
    states = one.states + other.states
    return msgspec.structs.replace(first, states=states, struck=struck, lines=lines, also=also)


def other_texts(text: str, texts: Iterable[str]) -> tuple[str, ...]:
    """Return the texts that are not ``text``, each once, at most :data:`TEXTS_MAX`."""
    return tuple(itertools.islice(dict.fromkeys(each for each in texts if each != text), TEXTS_MAX))


def one_of_each(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the first finding of each signature: a state that lost five orders is one state."""
    return tuple({finding.signature: finding for finding in reversed(tuple(findings))}.values())[::-1]


def grouped(discoveries: Iterable[Discovery]) -> tuple[Discovery, ...]:
    """Return one discovery for each signature and model; of a kill, also for each line.

    What the check says of two keys may be wrong at two lines. Where the line of a kill is not known
    yet, its text stands in, for :data:`KILLS_MAX` texts.
    """
    groups: dict[tuple[str, str], dict[str, Discovery]] = {}
    for each in discoveries:
        group = groups.setdefault((each.signature, each.model), {})
        is_kill = each.code.startswith(f"{Family.CRASH}:") and each.signature.startswith(IN_WORDS)
        place = (each.line or each.text) if is_kill else ""
        if place not in group and len(group) >= KILLS_MAX:
            place = next(iter(group))
        group[place] = _earlier(group[place], each) if place in group else each
    found = (each for group in groups.values() for each in group.values())
    return tuple(sorted(found, key=lambda each: (each.step, each.signature, each.model)))


def together(one: FamilyResult, other: FamilyResult) -> FamilyResult:
    """Return the sum of a family's results in two recordings, with the coverage of the first."""
    return msgspec.structs.replace(
        one,
        states=one.states + other.states,
        points=one.points + other.points,
        points_total=one.points_total + other.points_total,
        confirmed=one.confirmed + other.confirmed,
        violated=one.violated + other.violated,
        kinds=one.kinds + other.kinds,
        kinds_once=one.kinds_once + other.kinds_once,
        unread=one.unread + other.unread,
        is_sampled=one.is_sampled or other.is_sampled,
        is_complete=one.is_complete and other.is_complete,
        discoveries=grouped([*one.discoveries, *other.discoveries]),
        problems=tuple({each.signature: each for each in (*other.problems, *one.problems)}.values()),
        unexplored=one.unexplored if other.unexplored else "",
    )


def reproduction(
    found: Discovery, target: str, steps: Sequence[Step], marks: Sequence[Mark], *, folder: str, again: str
) -> str:
    """Return some ten lines that tell how a finding came about and how to see it again.

    ``folder`` is where the state was kept, or empty; ``again`` is the command that builds it again.
    ``steps`` is empty for a run of its own, of which only the step that met the fault is known.
    """
    lines = [f"{target}: {clipped(one_line(found.text))}", f"  {found.label}: {found.state}"]
    lines += [f"  it had made step {step}" for step in steps[max(0, found.step - 1 - _STEPS_SHOWN) : found.step - 1]]
    line = f", at {found.line}" if found.line else ""
    if found.step <= len(steps):
        lines.append(f"  and was about to make {steps[found.step - 1]}{line}")
    elif found.at and not steps:
        lines.append(f"  its step was {found.at}{line}")
    lines += [f"  it had said {_said(mark)}" for mark in marks[: found.marks][-_MARKS_SHOWN:]]
    lines.append(f"  seen in {in_states(found.states)}{f' under the model {found.model}' if found.model else ''}")
    if folder:
        lines.append(f"  the state: {folder}")
    lines.append(f"  again: {again or 'chaos replay, with the evidence pack that this is in'}")
    return "\n".join(lines) + "\n"


def _said(mark: Mark) -> str:
    return f"{mark.kind} {mark.operation}" + ("" if mark.key is None else f" {mark.key}")
