"""Anything for options, plans, marks, records and packs:
no traceback, and no verdict but the rule's.

Some hundred inputs by default; the nightly run sets CHAOS_FUZZ_EXAMPLES to have more than 10,000.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from chaos_reports.render import to_html, to_json, to_markdown
from chaos_reports.terminal import lines
from hypothesis import HealthCheck, given, settings, strategies as st
from pytest_chaos.errors import ResultsError, UsageError
from pytest_chaos.evidence import records
from pytest_chaos.faults.registry import REGISTRY
from pytest_chaos.model import campaign, plan, verdict
from pytest_chaos.model.history import History, MarkParser
from pytest_chaos.model.values import (
    AfterMark,
    AtDelivery,
    AtMoment,
    AtPoint,
    Fault,
    Finding,
    MarkKind,
    Now,
    Plan,
    PlannedRuns,
    RunRecord,
    Scenario,
    SessionEnd,
    SessionHeader,
    Verdict,
)
from pytest_chaos.plugin.options import OPTIONS
from pytest_chaos.plugin.settings import collect

if TYPE_CHECKING:
    from collections.abc import Sequence

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("CHAOS_FUZZ_EXAMPLES", "50")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
FUZZ = settings.get_profile("fuzz")

pytestmark = pytest.mark.timeout(3600)

NUMBERS = st.one_of(st.integers(), st.integers(10**19, 10**21), st.floats())
TEXTS = st.one_of(
    st.text(max_size=30), NUMBERS.map(str), st.sampled_from(["", "1", "1e20", "0.5", "md,html", "²", "\0"])
)
LINES = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b'{"kind":"ack","operation":"put","key":1}',
            b'{"kind":"ack","operation":"put","key":1,"order":99999999999999999999999}',
            b'{"kind":"nack"}',
            b"\xff\xfe",
            b"[" * 3000,
        ]
    ),
)
TIMES: st.SearchStrategy[Any] = st.one_of(
    st.builds(Now),
    st.builds(AtPoint, point=TEXTS, occurrence=st.integers()),
    st.builds(AfterMark, kind=st.sampled_from(MarkKind), operation=TEXTS, count=st.integers()),
    st.builds(AtMoment, delay_s=st.floats()),
    st.builds(AtDelivery, number=st.integers(), count=st.none() | st.integers(), path=TEXTS),
)
VALUES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.lists(st.integers(), max_size=2))
FAULTS = st.builds(
    Fault,
    kind=st.sampled_from(sorted(REGISTRY)) | TEXTS,
    agent=TEXTS,
    when=TIMES,
    parameters=st.dictionaries(
        st.sampled_from(["duration_s", "share", "hold_s", "status"]) | TEXTS, VALUES, max_size=2
    ),
)
COUNTS = st.integers(0, 60)


@FUZZ
@given(st.dictionaries(st.sampled_from([option.name for option in OPTIONS]), TEXTS), st.booleans())
def test_options_are_settings_or_one_sentence(given_options: dict[str, str], quick: bool) -> None:  # noqa: FBT001 - Hypothesis gives it
    """Whatever is written after an option: settings within their bounds,
    or a UsageError of one line a mistake.
    """
    try:
        found = collect(
            command_line=given_options,
            environment={},
            ini=lambda _: "",
            quick=quick,
            scenarios=(),
            replay=None,
            root=Path("/"),
        )
    except UsageError as error:
        said = str(error)
    else:
        said = "it must be settings"
        assert 1 <= found.iterations <= plan.ITERATIONS_MAX
        assert 0 <= found.pass_rate_min <= 1
    assert " must " in said


@FUZZ
@given(st.lists(FAULTS, max_size=3))
def test_a_plan_is_carried_out_or_refused_in_words(faults: list[Fault]) -> None:
    """Any plan is described; it is valid, or its problems are told."""
    for fault in faults:
        assert plan.describe(fault)
    said = "a plan"
    try:
        plan.validate(Plan(seed="s", scenario="x", faults=tuple(faults)), kinds=REGISTRY)
    except UsageError as error:
        said = str(error)
    assert "plan" in said


@FUZZ
@given(st.lists(LINES, max_size=5).map(b"\n".join), st.integers(0, 60))
def test_any_bytes_are_marks_or_torn_lines(content: bytes, cut: int) -> None:
    """Nothing in a mark file raises, and it reads the same in two parts."""
    whole, parser = History.from_lines(content), MarkParser()
    marks = [*parser.feed(content[:cut]), *parser.feed(content[cut:]), *parser.finish()]
    assert whole.marks == tuple(marks)
    assert len(whole.torn) == len(parser.torn)


@FUZZ
@given(st.lists(st.sampled_from(["safety", "liveness", "clean-run", "harness"]), max_size=4))
def test_the_worst_finding_is_the_verdict(kinds: list[Any]) -> None:
    """VIOLATED only by the target's findings, HELD only without any."""
    found = verdict.of_run([Finding(signature="x", text="x", kind=kind) for kind in kinds])
    expected = Verdict.VIOLATED if set(kinds) - {"harness"} else Verdict.INCONCLUSIVE if kinds else Verdict.HELD
    assert found is expected


@FUZZ
@given(COUNTS, COUNTS, COUNTS, COUNTS, st.floats(0, 1))
def test_what_is_missing_is_never_green(held: int, violated: int, inconclusive: int, missing: int, rate: float) -> None:
    """HELD is whole; VIOLATED stays so however the missing runs would have ended."""
    found = campaign.judge(held, violated, inconclusive, rate, missing)
    if found is Verdict.HELD:
        assert not missing
        assert held or (violated and not rate)
    if found is Verdict.VIOLATED:
        assert violated
        assert campaign.judge(held + missing, violated, inconclusive, rate) is Verdict.VIOLATED


def _session(verdicts: Sequence[Verdict], planned: int, skipped: int) -> list[bytes]:
    import msgspec

    scenario = Scenario(id="x", title="x")
    header = SessionHeader(
        session="s", seed="s", started="2026", planned=(PlannedRuns(scenario=scenario, runs=planned, deselected=1),)
    )
    runs = [
        RunRecord(scenario=scenario, node_id="t", run_id=f"t-{place}", seed="s", verdict=each, iteration=place)
        for place, each in enumerate(verdicts)
    ]
    return [msgspec.json.encode(each) for each in (header, *runs, SessionEnd(skipped={"x": skipped}))]


@FUZZ
@given(st.lists(st.sampled_from(Verdict), max_size=4), COUNTS, st.integers(0, 3), st.none() | LINES, st.integers(0, 5))
def test_records_are_a_matrix_or_one_sentence(
    verdicts: list[Verdict], planned: int, skipped: int, noise: bytes | None, place: int
) -> None:
    """Any line between the others: a matrix in four formats that is green only if it is whole,
    or an error.
    """
    content = _session(verdicts, planned, skipped)
    if noise is not None:
        content.insert(place, noise)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "records.jsonl").write_bytes(b"".join(line + b"\n" for line in content))
        try:
            found = records.read(Path(folder))
        except ResultsError as error:
            assert "records.jsonl" in str(error)  # noqa: PT017 - either is right
            return
    matrix = campaign.summarise(found)
    shown = [to_html(matrix), to_markdown(matrix), to_json(matrix), "\n".join(lines(matrix))]
    assert (matrix.missing > 0) == (planned - len(verdicts) - skipped > 0)
    if matrix.missing:
        assert matrix.verdict is not Verdict.HELD
        assert all("not made" in text for text in shown)
