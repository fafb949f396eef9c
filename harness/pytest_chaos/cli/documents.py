"""What the small commands print with ``--json``. ``chaos schema`` prints the schema of each.

A new key may come within a format; none changes its meaning. The documents of ``explore``,
``inspect``, ``mutate`` and ``report`` are where they are made.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from pytest_chaos.cli.doctor import Check
from pytest_chaos.cli.listing import ListedScenario
from pytest_chaos.model.story import Curve, Shrunk
from pytest_chaos.model.values import Finding, Json, Verdict

DoctorDocument: TypeAlias = list[Check]
ListDocument: TypeAlias = list[ListedScenario]


class ListedPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A place where the program can be stopped, and the code that stops it there.

    ``times`` is how often the program came there.
    """

    kind: str
    name: str
    path: str
    times: int
    line: str
    code: str


class PointsDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The places of one execution, how it ended, and what could not be seen."""

    places: list[ListedPlace]
    ended: str
    problem: str


class VerifyDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A pack against its manifest: the number of files, and what is not as it was written."""

    pack: str
    files: int
    problems: list[str]


class ReplayDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A replay: its verdict, or None if it has none, pytest's exit code, and its session."""

    pack: str
    verdict: str | None
    pytest_exit_code: int
    session: str


class CheckDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A history that was judged by a model: the verdict, its operations, and what is wrong."""

    history: str
    model: str
    verdict: Verdict
    operations: int
    findings: list[Finding]


class CleanDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions that were removed, and the older ones that were kept for their evidence."""

    results: str
    removed: list[str]
    kept_for_evidence: list[str]


class InitDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The file that was written, the command that explores it, and the verdict of the first time.

    ``verdict`` is empty if it was only written.
    """

    file: str
    again: str
    verdict: str = ""


class MarkDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A mark, and whether it was written: outside of a run there is no file for it."""

    written: bool
    kind: str
    operation: str
    key: str | int | None
    value: Json
    agent: str
    pid: int


class ListedMutant(msgspec.Struct, frozen=True, kw_only=True):
    """A mutant that would be run, as a diff."""

    id: str
    operator: str
    module: str
    function: str
    line: int
    diff: str


MutantsDocument: TypeAlias = list[ListedMutant]


class ShrinkDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A shrunk plan, or None with the problem; the runs, and other findings that came up."""

    pack: str
    problem: str
    shrunk: Shrunk | None
    runs: int
    others: list[str]
    notes: list[str]


class ExplainDocument(msgspec.Struct, frozen=True, kw_only=True):
    """P(violation) against the moment of a fault, or None with the problem; and the runs."""

    pack: str
    problem: str
    curve: Curve | None
    runs: int
    notes: list[str]


class JudgedCommit(msgspec.Struct, frozen=True, kw_only=True):
    """A commit that was judged: good, bad or skipped, and why."""

    commit: str
    subject: str
    verdict: str
    why: str


class BisectDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The commit that brought a violation, or the problem and the commits that may have."""

    pack: str
    first_bad: str
    candidates: list[str]
    judged: list[JudgedCommit]
    problem: str
