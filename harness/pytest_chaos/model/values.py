"""The values that travel between the rooms: frozen, typed, and JSON in and out.

Everything here is plain data. A value is built once, checked when it is built or decoded, and never
changed; ``msgspec.structs.replace`` makes a variant. The words are those of docs/glossary.md.

Verdicts compose as in Jepsen (false > unknown > true): the worst wins, and an undecided run is
never a pass.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD_FORMAT: Final = 1
"""Version of a run record; raised when a field changes its meaning."""

Json: TypeAlias = Any
"""A value that JSON can hold."""

Key: TypeAlias = str | int | None
"""The object of an operation: a checkpoint's number, an order's id; ``None`` for none."""


class Verdict(enum.StrEnum):
    """The judgement of a run, a scenario or a whole matrix."""

    HELD = "HELD"
    INCONCLUSIVE = "INCONCLUSIVE"
    VIOLATED = "VIOLATED"

    @staticmethod
    def worst(verdicts: Iterable[Verdict]) -> Verdict:
        """Return the worst of the verdicts; without any, INCONCLUSIVE."""
        return max(verdicts, key=_SEVERITY.__getitem__, default=Verdict.INCONCLUSIVE)


_SEVERITY: Final = {Verdict.HELD: 0, Verdict.INCONCLUSIVE: 1, Verdict.VIOLATED: 2}


class MarkKind(enum.StrEnum):
    """The kind of a mark."""

    INTENT = "intent"
    """It is about to do the operation."""
    ACK = "ack"
    """The operation is done, as far as the agent was told."""
    NOTE = "note"
    """A fact about the agent: its pragmas, the crash points it passed."""


class Mark(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One line that an agent wrote. ``order`` is its place in the mark file, the only clock.

    A field that it does not have is an error: a misspelt ``key`` would be a promise about nothing.
    One that was read from a mark file keeps its line as it was written, beside the fields
    (``History.to_json_lines``).
    """

    kind: MarkKind
    operation: str
    key: Key = None
    value: Json = None
    agent: str = ""
    pid: int = 0
    order: int = -1


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """An intent with its ack. Without an ack its outcome is unknown."""

    intent: Mark
    ack: Mark | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether the agent was told that the operation is done."""
        return self.ack is not None


class Now(msgspec.Struct, frozen=True, kw_only=True, tag="now", tag_field="when"):
    """At once: as soon as the agent runs, or at the moment the test asks for it."""


class AfterMark(msgspec.Struct, frozen=True, kw_only=True, tag="after_mark", tag_field="when"):
    """Right after the agent's ``count``-th mark (from 1) of this kind and operation.

    In each time, an ``agent`` is the one whose time it is; without one, it is the fault's own.
    """

    kind: MarkKind
    operation: str
    count: int = 1
    agent: str = ""


class AtPoint(msgspec.Struct, frozen=True, kw_only=True, tag="at_point", tag_field="when"):
    """At the ``occurrence``-th time (from 1) that the agent passes a named point.

    With a ``path``, only passings with an argument that this pattern matches are counted.
    """

    point: str
    occurrence: int = 1
    path: str = ""
    agent: str = ""


class AtStep(msgspec.Struct, frozen=True, kw_only=True, tag="at_step", tag_field="when"):
    """At the agent's ``occurrence``-th durable step (from 1) of this action, before it is done.

    With a ``path``, only steps whose path or target this pattern matches are counted.
    """

    step: str
    path: str = ""
    occurrence: int = 1
    agent: str = ""


class AtMoment(msgspec.Struct, frozen=True, kw_only=True, tag="at_moment", tag_field="when"):
    """``delay_s`` seconds after a mark, or after the agent started where ``after`` is ``None``."""

    delay_s: float
    after: AfterMark | None = None
    agent: str = ""


class AtDelivery(msgspec.Struct, frozen=True, kw_only=True, tag="at_delivery", tag_field="when"):
    """At the ``number``-th delivery (from 1) of a fault proxy and those after it, ``count`` in all.

    With None for ``count``, all after it. With a ``path``, requests whose path begins so are
    counted, and no others.
    """

    number: int = 1
    count: int | None = 1
    path: str = ""


When: TypeAlias = Now | AfterMark | AtPoint | AtStep | AtMoment | AtDelivery


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One fault of a plan: its kind (an entry of the registry of faults), its agent, and when."""

    kind: str
    agent: str
    when: When = msgspec.field(default_factory=Now)
    parameters: dict[str, Json] = {}


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence for one fault: ``fired`` only if it was seen to happen; ``evidence`` says how.

    ``fault`` is the fault's place in the plan, or ``None`` for one that the test fired by hand;
    ``order`` is the number of marks that had been written when it was seen, ``None`` if it never
    fired.
    """

    kind: str
    agent: str
    when: str
    fired: bool
    evidence: str
    fault: int | None = None
    order: int | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The faults of a run, fixed before it starts. A seed gives the same plan on any machine."""

    seed: str
    scenario: str
    iteration: int = 0
    faults: tuple[Fault, ...] = ()


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A promise of the target under faults.

    ``id`` is a slug, by custom with a number (``01-kill-9``). ``pass_rate_min`` is the scenario's
    own, in place of the session's.
    """

    id: str
    title: str
    why: str = ""
    steps: tuple[str, ...] = ()
    pass_rate_min: float | None = None


FindingKind: TypeAlias = Literal["safety", "liveness", "clean-run", "race", "harness"]
"""Wrong result; nothing in time; also wrong without faults; wrong without faults when threads or
processes come in another order; the harness or the test is at fault.
"""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a checker. Findings with one ``signature`` have one cause."""

    signature: str
    text: str
    kind: FindingKind = "safety"
    checker: str = ""
    orders: tuple[int, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """INCONCLUSIVE for a finding about the harness itself, else VIOLATED."""
        return Verdict.INCONCLUSIVE if self.kind == "harness" else Verdict.VIOLATED


class Assertion(msgspec.Struct, frozen=True, kw_only=True):
    """A key assertion of a run with the value that was seen."""

    name: str
    observed: str
    holds: bool


class AgentSummary(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """One real process after its end. ``exit_status`` reads like ``signal 9``."""

    name: str
    target: str
    pid: int
    exit_status: str
    duration_s: float = 0.0
    cpu_s: float = 0.0
    memory_bytes_max: int = 0
    open_files_max: int = 0
    output_bytes: int = 0


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes that stay from run to run have before a run: pytest's and all below it.

    ``pid`` is that of the process of pytest. ``memory_bytes`` adds up what is resident.
    """

    pid: int
    processes: int
    open_files: int
    memory_bytes: int


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run as the matrix shows it: a line of ``records.jsonl``.

    ``run_id`` is unique within a session and names the evidence folder. ``started`` is UTC in ISO
    8601. ``evidence`` is the path of the pack relative to the session's folder, or empty for a run
    that left none.
    """

    scenario: Scenario
    node_id: str
    run_id: str
    seed: str
    verdict: Verdict
    iteration: int = 0
    plan: Plan | None = None
    receipts: tuple[Receipt, ...] = ()
    findings: tuple[Finding, ...] = ()
    assertions: tuple[Assertion, ...] = ()
    agents: tuple[AgentSummary, ...] = ()
    notes: dict[str, Json] = {}
    started: str = ""
    duration_s: float = 0.0
    failure: str = ""
    evidence: str = ""
    reproduce: str = ""
    worker: str = ""
    level: Level | None = None
    format: int = RECORD_FORMAT


class PlannedRuns(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of runs of a scenario that a session planned, and that the user deselected."""

    scenario: Scenario
    runs: int
    deselected: int = 0


class SessionHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of ``records.jsonl``, common to all records of a session.

    ``planned`` has every scenario that was collected, also those that were deselected as a whole.
    ``prove`` is the rate to prove, if any, ``shard`` the part of a campaign (``2/5``). ``suite`` is
    a digest of the tests that were collected, ``code`` has one of each file of the project that
    was loaded for them, ``commit`` is what git says.
    """

    session: str
    seed: str
    started: str
    iterations: int = 1
    pass_rate_min: float = 1.0
    versions: dict[str, str] = {}
    command: str = ""
    planned: tuple[PlannedRuns, ...] = ()
    prove: float | None = None
    budget_s: float | None = None
    shard: str = ""
    suite: str = ""
    code: dict[str, str] = {}
    commit: str = ""
    format: int = RECORD_FORMAT


class SessionEnd(msgspec.Struct, frozen=True, kw_only=True, tag="end", tag_field="line"):
    """A last line of ``records.jsonl``: what else is known of the runs that were planned.

    ``skipped`` counts by scenario the planned runs that the test skipped: they owe no record.
    ``decided`` and ``over_budget`` count those that were not begun: their rate was proved or
    refuted by then, or the budget was used up. ``reasons`` are sentences on why the session is not
    whole. ``digest`` is that of all lines before this one.
    """

    skipped: dict[str, int] = {}
    reasons: tuple[str, ...] = ()
    decided: dict[str, int] = {}
    over_budget: dict[str, int] = {}
    digest: str = ""


class SessionResumed(msgspec.Struct, frozen=True, kw_only=True, tag="resumed", tag_field="line"):
    """A line of ``records.jsonl``: from here on the session goes on in another process.

    Earlier records of the runs in ``again``, by test and iteration, were cut short and do not
    count.
    """

    started: str
    command: str = ""
    again: tuple[tuple[str, int], ...] = ()


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The planned runs of a scenario, counted by their outcome."""

    scenario: Scenario
    planned: int = 0
    made: int = 0
    skipped: int = 0
    deselected: int = 0
    decided: int = 0
    over_budget: int = 0

    @property
    def missing(self) -> int:
        """The number of planned runs that were not made: the session was interrupted."""
        return max(0, self.planned - self.made - self.skipped - self.decided - self.over_budget)
