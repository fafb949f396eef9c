"""What an exploration found: values that go into JSON, into a run's record and onto a terminal. Pure.

The JSON of ``chaos explore`` is a contract (``design.md``, 6): per fault family ``states``,
``confirmed``, ``verdict`` and ``findings``, each of which has signature, step, kind, text, and
whether it was confirmed or modelled.

The ten lines that let somebody see a finding again: what was done, what is on the disk, what the
check says.
"""

from __future__ import annotations

import enum
import shlex
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_chaos.errors import ChaosError
from pytest_chaos.model.values import Finding, FindingKind, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.explore.session import Session
    from pytest_chaos.model.values import Mark

FORMAT: Final = 1

CONFIRMED_BY_A_KILL: Final = "confirmed by a real kill"
CONFIRMED_BY_A_RUN: Final = "confirmed by a real run"
MODELLED: Final = "modelled"
HANGS: Final = "harness:too-many-hangs"
"""The signature of a family that was ended because it waited for timeouts only."""
INTERRUPTED: Final = "harness:interrupted"
"""The signature of an exploration that Ctrl-C has ended."""


class ExplorationError(ChaosError):
    """An exploration cannot decide anything: the program is not deterministic, or a replay is not what really happens.

    ``signature`` is that of the finding it becomes, which leaves the exploration INCONCLUSIVE; it
    is optional only for pickle, which sets it afterwards.
    """

    def __init__(self, text: str, *, signature: str = "") -> None:
        super().__init__(text)
        self.signature = signature


class Family(enum.StrEnum):
    """A kind of fault that is explored."""

    CRASH = "crash"
    RECOVERY = "recovery"
    POWER = "power"
    IO = "io"


class Discovery(msgspec.Struct, frozen=True, kw_only=True):
    """All findings of one family that have one signature, told by the earliest and smallest of them.

    ``step`` is the durable step before which the fault struck, ``code`` names the state for
    ``--state``, ``state`` says it in words, ``states`` counts how many showed the signature.
    ``label`` is how sure it is; ``folder`` is where the failing state was kept, or empty; ``lost``
    is how much of what was pending is missing in it.
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

    @property
    def is_confirmed(self) -> bool:
        """Whether a real process showed it."""
        return self.label != MODELLED

    def as_finding(self) -> Finding:
        """Return it as a run's finding."""
        where = f"[{self.label}] {self.state}: {self.text}"
        return Finding(signature=self.signature, text=where, kind=self.kind, checker="explore")


class FamilyResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one family came to. ``points`` of ``points_total`` is its coverage, ``states`` what was built and judged.

    ``points_total`` is what there is, also where only a sample of it was drawn, or the time was
    over before its end. ``confirmed`` counts the real kills (or runs) that agreed with what was
    built. ``is_sampled`` says that more states, recoveries or errors are possible than were to be
    tried; ``is_complete`` that nothing was left out for want of time; ``is_named`` that the points
    are audit events, which are fewer than the durable steps.
    """

    family: Family
    states: int = 0
    points: int = 0
    points_total: int = 0
    confirmed: int = 0
    is_sampled: bool = False
    is_complete: bool = True
    is_named: bool = False
    discoveries: tuple[Discovery, ...] = ()
    problems: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """VIOLATED with any finding; INCONCLUSIVE when it is incomplete, or something kept it from being judged."""
        found = [each.as_finding().verdict for each in self.discoveries] + [each.verdict for each in self.problems]
        if not self.is_complete or not self.points:
            found.append(Verdict.INCONCLUSIVE)
        return Verdict.worst([*found, Verdict.HELD])

    @property
    def is_hanging(self) -> bool:
        """Whether it was ended because too much of it hung."""
        return any(problem.signature == HANGS for problem in self.problems)

    @property
    def coverage(self) -> str:
        """Say what was covered, as reports do: ``122 of 122 crash points``."""
        part = " so far" if not self.is_complete else " (sampled)" if self.is_sampled else ""
        if self.family is Family.CRASH:
            points = "named events" if self.is_named else "crash points"
            return f"{self.points:,} of {self.points_total:,} {points}"
        if self.family is Family.RECOVERY:
            points = f"{self.points:,} of {self.points_total:,} recoveries{part}"
            return f"{points}, interrupted in {self.states:,} states"
        if self.family is Family.POWER:
            if self.points < self.points_total and self.is_complete:
                part = f" (sampled, at {self.points:,} of {self.points_total:,} moments)"
            whole = " (all there are)" if self.states else ""
            return f"{self.states:,} power-loss states{part or whole}"
        return f"{self.points:,} of {self.points_total:,} I/O errors{part}"


class Exploration(msgspec.Struct, frozen=True, kw_only=True):
    """What came of exploring one target. ``steps`` is the number of durable steps of its clean run."""

    target: str
    seed: str
    steps: int = 0
    marks: int = 0
    source: str = ""
    families: tuple[FamilyResult, ...] = ()
    findings: tuple[Finding, ...] = ()
    """What is about no family: the clean run, a program that is not deterministic, blind spots."""
    notes: tuple[str, ...] = ()
    duration_s: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worst of all; INCONCLUSIVE when nothing was explored."""
        return Verdict.worst([*(each.verdict for each in self.families), *(each.verdict for each in self.findings)])

    @property
    def coverage(self) -> str:
        """Say in one line what was covered: ``122 of 122 crash points, 1,508 power-loss states (sampled)``."""
        return ", ".join(each.coverage for each in self.families) or "nothing"

    @property
    def discoveries(self) -> tuple[Discovery, ...]:
        """The discoveries of all families."""
        return tuple(found for family in self.families for found in family.discoveries)

    @property
    def all_findings(self) -> tuple[Finding, ...]:
        """Everything that keeps this from having held, as a run's findings."""
        own = [finding for family in self.families for finding in family.problems]
        late = [_incomplete(family) for family in self.families if not family.is_complete and not family.is_hanging]
        return (*self.findings, *(found.as_finding() for found in self.discoveries), *own, *late)


def _incomplete(family: FamilyResult) -> Finding:
    text = f"it was ended after {family.coverage}: give a larger budget, or run it again to go on from there"
    return Finding(signature=f"harness:incomplete:{family.family}", text=text, kind="harness", checker="explore")


def earlier(one: Discovery, other: Discovery) -> Discovery:
    """Return the discovery that tells more: a confirmed one, an earlier one, of two at one step what lost less."""
    ours = (one.label == MODELLED, one.step, one.lost, one.marks)
    first = one if ours <= (other.label == MODELLED, other.step, other.lost, other.marks) else other
    return msgspec.structs.replace(first, states=one.states + other.states)


def one_of_each(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the first finding of each signature: a state that lost five orders is still one state."""
    return tuple({finding.signature: finding for finding in reversed(tuple(findings))}.values())[::-1]


def grouped(discoveries: Iterable[Discovery]) -> tuple[Discovery, ...]:
    """Return one discovery for each signature and model."""
    groups: dict[tuple[str, str], Discovery] = {}
    for each in discoveries:
        key = (each.signature, each.model)
        groups[key] = earlier(groups[key], each) if key in groups else each
    return tuple(sorted(groups.values(), key=lambda each: (each.step, each.signature, each.model)))


def to_json(exploration: Exploration) -> dict[str, object]:
    """Return the value of ``--json``."""
    return {
        "format": FORMAT,
        "target": exploration.target,
        "seed": exploration.seed,
        "verdict": str(exploration.verdict),
        "coverage": exploration.coverage,
        "steps": exploration.steps,
        "source": exploration.source,
        "duration_s": round(exploration.duration_s, 3),
        "findings": [_finding(each) for each in exploration.findings],
        "notes": list(exploration.notes),
        "families": {str(each.family): _family(each) for each in exploration.families},
    }


def _family(result: FamilyResult) -> dict[str, object]:
    return {
        "states": result.states,
        "points": result.points,
        "points_total": result.points_total,
        "confirmed": result.confirmed,
        "sampled": result.is_sampled,
        "complete": result.is_complete,
        "coverage": result.coverage,
        "verdict": str(result.verdict),
        "findings": [_discovery(each) for each in result.discoveries],
        "problems": [_finding(each) for each in result.problems],
    }


def _discovery(found: Discovery) -> dict[str, object]:
    listed: dict[str, object] = msgspec.to_builtins(found)
    return {**listed, "confirmed": found.is_confirmed}


def _finding(finding: Finding) -> dict[str, object]:
    return {"signature": finding.signature, "kind": finding.kind, "text": finding.text}


_BEFORE: Final = 3
_MARKS: Final = 2


def reproduction(session: Session, found: Discovery, *, command: str = "", folder: str = "") -> str:
    """Return the text; ``command`` is the beginning of the command line that explores this target, if there is one."""
    steps = session.recorded.recording.durable()
    marks = session.recorded.marks[: found.marks]
    lines = [f"{session.subject.name}: {found.text}", f"  {found.label}: {found.state}"]
    lines += [f"  it had made step {step}" for step in steps[max(0, found.step - 1 - _BEFORE) : found.step - 1]]
    if found.step <= len(steps):
        lines.append(f"  and was about to make {steps[found.step - 1]}")
    lines += [f"  it had said {_said(mark)}" for mark in marks[-_MARKS:]]
    count = "1 state" if found.states <= 1 else f"{found.states:,} states"
    lines.append(f"  seen in {count}{f' under the model {found.model}' if found.model else ''}")
    if folder:
        lines.append(f"  the state: {folder}")
    again = f"{command} --seed {shlex.quote(session.options.seed)} --state '{found.code}'"
    lines.append(f"  again: {again if command else 'chaos replay, with the evidence pack that this is in'}")
    return "\n".join(lines) + "\n"


def _said(mark: Mark) -> str:
    key = "" if mark.key is None else f" {mark.key}"
    return f"{mark.kind} {mark.operation}{key}"
