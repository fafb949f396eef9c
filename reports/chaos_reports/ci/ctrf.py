"""The runs of a session in the Common Test Report Format (CTRF). Pure.

A run is a test. HELD is ``passed``; VIOLATED and INCONCLUSIVE are ``failed``, as pytest has them. A
run that its scenario's pass rate tolerates is ``other``: no failure, and no pass either. Runs that
were planned and not made are one failed test of their scenario. ``rawStatus`` has our own word.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from pytest_chaos.model.values import Verdict

from chaos_reports.figures import clip, plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos.model.campaign import MatrixSummary, ScenarioSummary
    from pytest_chaos.model.values import RunRecord

SPECIFICATION: Final = "0.1.0"
FAILURE_CHARACTERS_MAX: Final = 4_000
FINDINGS_MAX: Final = 10


class CtrfTest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """A run. Times are in milliseconds; ``extra`` has seed, evidence and the line to run again."""

    name: str
    status: str
    duration: int
    start: int | None = None
    stop: int | None = None
    suite: list[str]
    message: str = ""
    trace: str = ""
    raw_status: str
    file_path: str = ""
    extra: dict[str, Any] = {}


class CtrfSummary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The counts; all tests are in one of them."""

    tests: int
    passed: int
    failed: int
    skipped: int
    pending: int
    other: int
    start: int
    stop: int
    suites: int


class CtrfTool(msgspec.Struct, frozen=True, kw_only=True):
    """The program that made the report."""

    name: str
    version: str


class CtrfResults(msgspec.Struct, frozen=True, kw_only=True):
    """The results of one session."""

    tool: CtrfTool
    summary: CtrfSummary
    tests: list[CtrfTest]
    environment: dict[str, Any] = {}


class CtrfDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The whole file."""

    results: CtrfResults
    report_format: str = "CTRF"
    spec_version: str = SPECIFICATION


def to_ctrf(matrix: MatrixSummary) -> str:
    """Render the runs of all scenarios as CTRF."""
    tests = [test for each in matrix.scenarios for test in _tests(each)]
    counts = {status: sum(test.status == status for test in tests) for status in ("passed", "failed", "other")}
    begun = _milliseconds(matrix.header.started) or 0
    ends = [test.stop for test in tests if test.stop is not None]
    header = matrix.header
    found = CtrfDocument(
        results=CtrfResults(
            tool=CtrfTool(name="pytest-chaos", version=header.versions.get("pytest-chaos", "")),
            summary=CtrfSummary(
                tests=len(tests),
                **counts,
                skipped=0,
                pending=0,
                start=begun,
                stop=max([begun, *ends]),
                suites=len(matrix.scenarios),
            ),
            tests=tests,
            environment={"extra": {"seed": header.seed, "versions": header.versions, "command": clip(header.command)}},
        )
    )
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"


def _tests(summary: ScenarioSummary) -> Iterator[CtrfTest]:
    suite = [clip(summary.scenario.id, 120) or "unnamed"]
    for run in summary.records:
        yield _test(run, suite, is_tolerated=summary.tolerated and run.verdict is not Verdict.HELD)
    if summary.missing:
        text = f"{summary.missing} of {plural(summary.planned, 'planned run')} of it were not made"
        yield CtrfTest(
            name=f"{suite[0]}: all planned runs", status="failed", duration=0, suite=suite, message=text,
            raw_status="INCOMPLETE",
        )  # fmt: skip


def _test(run: RunRecord, suite: list[str], *, is_tolerated: bool) -> CtrfTest:
    status = "passed" if run.verdict is Verdict.HELD else "other" if is_tolerated else "failed"
    start, duration = _milliseconds(run.started), max(0, round(run.duration_s * 1000))
    extra: dict[str, Any] = {"seed": run.seed, "verdict": str(run.verdict), "runId": run.run_id}
    if run.evidence:  # a run that held has no pack to be run again from
        extra |= {"reproduce": run.reproduce, "evidence": run.evidence}
    if run.findings:
        extra["findings"] = [clip(each.signature, 200) for each in run.findings[:FINDINGS_MAX]]
    return CtrfTest(
        name=clip(run.node_id, 400) or "unnamed",
        status=status,
        duration=duration,
        start=start,
        stop=None if start is None else start + duration,
        suite=suite,
        message="\n".join(clip(each.text, 400) for each in run.findings[:FINDINGS_MAX]),
        trace="" if status == "passed" else clip(run.failure, FAILURE_CHARACTERS_MAX),
        raw_status="TOLERATED" if is_tolerated else str(run.verdict),
        file_path=clip(run.node_id.partition("::")[0], 400),
        extra=extra,
    )


def _milliseconds(iso: str) -> int | None:
    """Return the milliseconds since 1970 of a moment in ISO 8601; None for any other text."""
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return None
    return max(0, round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000))
