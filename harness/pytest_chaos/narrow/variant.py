"""Values: a variant of a run, what its run showed, and what a narrowing is asked and answers."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from pytest_chaos.model.signatures import alike, cause_of
from pytest_chaos.model.story import Curve, Shrunk
from pytest_chaos.model.values import Json, Plan, Verdict
from pytest_chaos.workloads.given import WORKLOAD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_chaos.evidence.open import Pack
    from pytest_chaos.model.values import Finding, RunRecord

FORMAT: Final = 1
_BRACKETS: Final = re.compile(r"\[[^\[\](){}]*\]|\([^\[\](){}]*\)|\{[^\[\](){}]*\}")
_NESTED_MAX: Final = 20


class RunVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A run with other faults or another workload. ``plan`` is None for a test without a plan.

    ``sizes`` and ``drawn`` are by name, in place of what the test asks for. ``survey``: note the
    durable steps and marks of its agents, with the lines of the program.
    """

    plan: Plan | None = None
    sizes: dict[str, int] = {}
    drawn: dict[str, Json] = {}
    survey: bool = False


class TrialOutcome(enum.StrEnum):
    """What a run of a variant says about the finding that is looked for."""

    SAME = "same"
    """It is violated by that finding."""
    OTHER = "other"
    """It is violated by another one alone."""
    HELD = "held"
    UNANSWERED = "unanswered"
    """A fault did not come, say: the run says nothing."""


class AgentMoment(msgspec.Struct, frozen=True, kw_only=True):
    """A durable step or a mark of a survey: ``text`` in words, ``line`` of the program."""

    kind: str
    name: str
    agent: str
    text: str
    operation: str = ""
    line: str = ""


class TrialRun(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a variant showed.

    ``unfired`` counts planned faults without a receipt. ``why`` is the first finding in words.
    ``sizes`` are the number and the least number of each size, by name. ``moments`` are those of a
    survey; ``agents`` the lives of agents in seconds, by name.
    """

    outcome: TrialOutcome
    why: str = ""
    unfired: int = 0
    sizes: dict[str, tuple[int, int]] = {}
    drawn: dict[str, Json] = {}
    moments: tuple[AgentMoment, ...] = ()
    agents: dict[str, float] = {}
    processes: int = 0
    deliveries: int = 0
    problem: str = ""


class NarrowOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a pytest process is to narrow down.

    ``finding`` is the cause of the finding that is looked for; empty for the first one of the
    pack. ``tries`` and ``seconds`` bound it. ``fault`` is the place in the plan of the fault that
    ``explain`` moves, None for its first kill that can be moved. ``each`` is the number of runs at
    each moment, or of the repetitions, which ``stop_at_first`` violation. ``checkout`` is a folder
    from which no module may come.
    """

    kind: Literal["shrink", "explain", "repeat", "sweep"]
    tries: int
    seconds: float
    finding: str = ""
    fault: int | None = None
    each: int = 3
    moments: int = 80
    checkout: str = ""
    stop_at_first: bool = False
    start: RunVariant | None = None
    format: int = FORMAT


class Narrowed(msgspec.Struct, frozen=True, kw_only=True):
    """What a narrowing found.

    ``repeated`` of ``repeats`` runs were violated by the finding; ``where`` says at which moment,
    in a sweep. ``unfired``: in every run that came to no answer, a fault did not come.

    ``outcomes`` counts the runs that were made by outcome. ``problem`` is why nothing was found, in
    one sentence, and ``notes`` are sentences on what else is to be known. ``variant`` is the
    smallest that is violated. ``others`` are other findings that came up.
    """

    outcomes: dict[TrialOutcome, int] = {}
    repeated: int = 0
    repeats: int = 0
    where: str = ""
    unfired: bool = False
    variant: RunVariant | None = None
    shrunk: Shrunk | None = None
    curve: Curve | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    seconds: float = 0.0
    is_whole: bool = True

    @property
    def runs(self) -> int:
        """The number of runs that were made."""
        return sum(self.outcomes.values())


class Heard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the pipe from a pytest process: how far it is, or its answer."""

    runs: int = 0
    text: str = ""
    answer: Narrowed | None = None


def cause(finding: Finding) -> str:
    r"""Return what the same finding has in common in other runs.

    That is its cause. A bare assertion is told from others by what it says, but for the values.

    >>> from pytest_chaos.model.values import Finding
    >>> first = Finding(signature="assertion", text="assert [1, 2] == []\n  where ...")
    >>> cause(first) == cause(Finding(signature="assertion", text="assert [7] == []"))
    True
    >>> cause(first) == cause(Finding(signature="assertion", text="assert kept"))
    False
    """
    if finding.signature != "assertion":
        return cause_of(finding.signature)
    text = finding.text.partition("\n")[0]
    for _ in range(_NESTED_MAX):
        if (bare := _BRACKETS.sub("", text)) == text:
            break
        text = bare
    return f"assertion:{alike(text)}"


def of_pack(pack: Pack) -> RunVariant:
    """Return the run of a pack as a variant: its plan, and the values that it had drawn."""
    return RunVariant(plan=pack.plan, drawn=dict(pack.notes.get(WORKLOAD, {}).get("drawn", {})))


def of_record(record: RunRecord, wanted: str) -> TrialRun:
    """Return what a run says about the finding of this cause."""
    findings, workload = record.findings, record.notes.get(WORKLOAD, {})
    if any(cause(each) == wanted for each in violations(findings)):
        outcome = TrialOutcome.SAME
    else:
        outcome = {Verdict.HELD: TrialOutcome.HELD, Verdict.VIOLATED: TrialOutcome.OTHER}.get(
            record.verdict, TrialOutcome.UNANSWERED
        )
    telling = [each for each in findings if each.verdict is record.verdict]
    return TrialRun(
        outcome=outcome,
        why=telling[0].text.partition("\n")[0] if telling else "",
        unfired=sum(not receipt.fired for receipt in record.receipts if receipt.fault is not None),
        sizes={name: (number, least) for name, (number, least) in workload.get("sizes", {}).items()},
        drawn=dict(workload.get("drawn", {})),
        agents={each.name: each.duration_s for each in reversed(record.agents)},
        processes=len(record.agents),
    )


def violations(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that violate a run."""
    return [each for each in findings if each.verdict is Verdict.VIOLATED]
