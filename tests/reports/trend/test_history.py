"""The history of a results folder: each scenario over sessions, and when it began to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from chaos_reports.render import write
from chaos_reports.trend import history
from chaos_reports.trend.history import history_of
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.campaign import summarise
from pytest_chaos.model.values import Finding, PlannedRuns, RunRecord, Verdict

from tests.reports.samples import CACHE, HEADER, KILL, run, write_session

if TYPE_CHECKING:
    from pathlib import Path

H, V, U = Verdict.HELD, Verdict.VIOLATED, Verdict.INCONCLUSIVE


def session(results: Path, day: int, *runs: RunRecord, planned: int = 0) -> Path:
    """Write a session of a day in November."""
    header = msgspec.structs.replace(
        HEADER, session=f"day-{day:02}", started=f"2026-11-{day:02}T04:00:00Z", pass_rate_min=1.0,
        planned=(PlannedRuns(scenario=KILL, runs=planned),) if planned else (),
    )  # fmt: skip
    return write_session(results, Records(header, runs))


def runs(*verdicts: Verdict, finding: str = "durability.lost") -> list[RunRecord]:
    """Make runs of one scenario; violated ones have this finding."""
    found = Finding(signature=finding, text="it is lost")
    return [run(KILL, each, place, finding=found if each is V else None) for place, each in enumerate(verdicts)]


def trend_of(results: Path, *now: RunRecord) -> history.Trend | None:
    """Return the trend of the scenario up to a session of the last day."""
    folder = session(results, 30, *now)
    matrix = summarise(Records(msgspec.structs.replace(HEADER, started="2026-11-30T04:00:00Z"), tuple(now)))
    return history_of(folder).trend(matrix.scenarios[0], matrix.header.started)


@pytest.mark.parametrize(
    ("earlier", "now", "said"),
    [
        ((H, H, H), H, "Not violated in 4 sessions"),
        ((H, H, V), V, "Failing since 2026-11-03 04:00 UTC, for 2 sessions"),
        ((H, H, H), V, "First seen failing in this session"),
        ((V, H, H), V, "First seen failing in this session; it was violated before, first 2026-11-01 04:00 UTC"),
        ((H, V, H), H, "Last violated 2026-11-02 04:00 UTC, first 2026-11-02 04:00 UTC"),
        ((V, V, U), U, "Last violated 2026-11-02 04:00 UTC, first 2026-11-01 04:00 UTC"),
        ((V, V, V), V, "Failing since 2026-11-01 04:00 UTC, for 4 sessions"),
    ],
)
def test_it_is_said_since_when_a_scenario_fails(
    tmp_path: Path, earlier: tuple[Verdict, ...], now: Verdict, said: str
) -> None:
    """A streak of failures has a beginning; one that ended has a first and a last day."""
    for day, verdict in enumerate(earlier, start=1):
        session(tmp_path, day, *runs(verdict))
    trend = trend_of(tmp_path, *runs(now))
    assert trend is not None
    assert trend.failing == said
    assert [each.verdict for each in trend.pasts] == [*earlier, now]


def test_rates_durations_and_bounds_are_those_of_each_session(tmp_path: Path) -> None:
    """Of four runs one was violated: 75 %, with the exact bound; and the seconds add up."""
    session(tmp_path, 1, *runs(H, H, H, V), run(CACHE))
    trend = trend_of(tmp_path, *runs(H))
    assert trend is not None
    first = trend.pasts[0]
    assert (first.held, first.violated, first.rate, round(first.duration_s, 2)) == (3, 1, 0.75, 1.24)
    assert first.lower == pytest.approx(0.2486, abs=1e-4)


def test_runs_that_an_earlier_session_owes_are_no_clean_session(tmp_path: Path) -> None:
    """A session that was interrupted is incomplete in the history, too."""
    session(tmp_path, 1, *runs(H, H), planned=5)
    trend = trend_of(tmp_path, *runs(H))
    assert trend is not None
    assert (trend.pasts[0].verdict, trend.pasts[0].missing) == (U, 3)


def test_a_finding_has_the_day_it_was_first_seen(tmp_path: Path) -> None:
    """Findings that differ in numbers are one cause; another cause has another day."""
    session(tmp_path, 1, *runs(V, finding="lost:7"))
    session(tmp_path, 2, *runs(H))
    trend = trend_of(tmp_path, *runs(V, finding="lost:9"), *runs(V, finding="torn"))
    assert trend is not None
    assert trend.first_seen == {
        "lost:#": "first seen 2026-11-01 04:00 UTC, in 2 of 3 sessions",
        "torn": "first seen in this session",
    }


def test_later_sessions_and_other_folders_are_no_history(tmp_path: Path) -> None:
    """A page that is rendered again has the history that it had; a lone folder has none."""
    first = session(tmp_path, 1, *runs(H))
    session(tmp_path, 2, *runs(V))
    assert history_of(first).sessions == 0
    lone = (tmp_path / "sessions" / "day-02").rename(tmp_path / "lone")
    assert history_of(lone).pasts == {}


def test_a_session_that_cannot_be_read_is_told_on_the_page(tmp_path: Path) -> None:
    """Damaged, empty and foreign records are no clean sessions: each is named."""
    session(tmp_path, 1, *runs(V))
    for day, content in ((2, b""), (3, b'{"no": "header"}\n')):
        (session(tmp_path, day) / "records.jsonl").write_bytes(content)
    torn = session(tmp_path, 4, *runs(H)) / "records.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"scenario": 7}\n')
    folder = session(tmp_path, 30, *runs(H))
    found = history_of(folder)
    assert found.sessions == 1
    assert [problem.split()[2] for problem in found.problems] == ["day-02", "day-03", "day-04"]
    records = Records(msgspec.structs.replace(HEADER, started="2026-11-30T04:00:00Z"), tuple(runs(H)))
    text = write(summarise(records), folder, ["html"], history=found)["html"].read_text()
    assert "Earlier sessions that are not shown" in text
    assert "the session day-04 cannot be read" in text
    assert "Last violated 2026-11-01 04:00 UTC" in text


def test_many_sessions_are_cut_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that is older than what is shown began "at least" then."""
    monkeypatch.setattr(history, "SESSIONS_MAX", 3)
    for day in range(1, 8):
        session(tmp_path, day, *runs(V))
    trend = trend_of(tmp_path, *runs(V))
    assert trend is not None
    assert trend.failing == "Failing since at least 2026-11-05 04:00 UTC, for 4 sessions"
