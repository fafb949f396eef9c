"""``chaos report --diff``: what is worse, better and undecided, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from chaos_reports import cli
from chaos_reports.trend.compare import Comparison
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.values import Finding, PlannedRuns, RunRecord, Verdict

from tests.reports.samples import CACHE, HEADER, KILL, run, write_session

H, V, U = Verdict.HELD, Verdict.VIOLATED, Verdict.INCONCLUSIVE


def session(folder: Path, *runs: RunRecord, rate: float = 1.0, planned: int = 0) -> str:
    """Write a session into a folder of its own."""
    planned_runs = (PlannedRuns(scenario=KILL, runs=planned),) if planned else ()
    header = msgspec.structs.replace(HEADER, pass_rate_min=rate, planned=planned_runs)
    return str(write_session(folder, Records(header, runs)))


def some(held: int, violated: int = 0, inconclusive: int = 0, finding: str = "durability.lost") -> list[RunRecord]:
    """Make so many runs of one scenario."""
    verdicts = [H] * held + [V] * violated + [U] * inconclusive
    found = Finding(signature=finding, text="it is lost")
    return [run(KILL, each, place, finding=found if each is V else None) for place, each in enumerate(verdicts)]


CASES = {
    "nothing": (some(20), some(20), 1.0, 0, "same", ""),
    "newly violated": (some(20), some(19, 1), 1.0, 1, "worse", "new finding durability.lost (1 run): it is lost"),
    "mended": (some(19, 1), some(20), 1.0, 0, "better", "finding gone: durability.lost"),
    "another cause": (some(19, 1), some(19, 1, finding="torn"), 1.0, 1, "worse", "new finding torn"),
    "other numbers": (some(19, 1, finding="row:7"), some(19, 1, finding="row:8"), 1.0, 0, "same", ""),
    "rate within chance": (some(99, 1), some(97, 3), 0.9, 0, "same", ""),
    "rate fell": (some(99, 1), some(90, 10), 0.9, 1, "worse", "pass rate 99.0 % of 100 -> 90.0 % of 100"),
    "rate rose": (some(90, 10), some(99, 1), 0.9, 0, "better", "pass rate 90.0 % of 100 -> 99.0 % of 100"),
    "undecided": (some(20), some(10, 0, 10), 1.0, 2, "undecided", "HELD -> INCONCLUSIVE"),
    "gone": (some(2), [run(CACHE)], 1.0, 2, "undecided", "it is not in the later session"),
    "new and violated": ([run(CACHE)], [run(CACHE), *some(1, 1)], 1.0, 1, "worse", "NOT RUN -> VIOLATED"),
    "new and held": ([run(CACHE)], [run(CACHE), *some(2)], 1.0, 0, "changed", "NOT RUN -> HELD"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_difference_has_a_direction_and_a_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Code 1 is for what is worse beyond chance, 2 for what the later session cannot say."""
    before, after, rate, code, direction, text = CASES[case]
    old, new = session(tmp_path / "a", *before, rate=rate), session(tmp_path / "b", *after, rate=rate)
    assert cli.main(["--diff", old, new]) == code
    shown = capsys.readouterr().out
    assert text in shown
    assert shown.splitlines()[-1].startswith(f"{direction.upper()}: ")
    assert cli.main(["--diff", "--json", old, new]) == code
    found = msgspec.json.decode(capsys.readouterr().out, type=Comparison)
    assert found.direction == direction
    assert not list(tmp_path.glob("**/matrix.*"))  # it writes nothing


def test_a_session_that_ended_early_is_never_as_good_as_before(tmp_path: Path) -> None:
    """Runs that were planned and not made leave the difference undecided."""
    old, new = session(tmp_path / "a", *some(5), planned=5), session(tmp_path / "b", *some(3), planned=5)
    assert cli.main(["--diff", old, new]) == 2


def test_versions_that_changed_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another SQLite may be the reason, so it comes before the scenarios."""
    old, new = session(tmp_path / "a", *some(1)), session(tmp_path / "b", *some(1))
    file = Path(new) / "records.jsonl"
    file.write_text(file.read_text().replace("3.40.1", "3.51.3", 1))
    assert cli.main(["--diff", old, new]) == 0
    assert "versions: sqlite 3.40.1 -> 3.51.3" in capsys.readouterr().out


@pytest.mark.parametrize("count", [1, 3])
def test_it_needs_two_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    """Any other number is a mistake in the call, in one sentence."""
    given = [session(tmp_path / str(place), *some(1)) for place in range(count)]
    assert cli.main(["--diff", *given]) == 3
    assert f"must get two sessions, the earlier one first; got {count}" in capsys.readouterr().err


def test_the_report_itself_has_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` prints the same document as the file matrix.json, and nothing else."""
    folder = session(tmp_path, *some(3, 1))
    assert cli.main([folder, "--json"]) == 1
    printed = capsys.readouterr().out
    assert printed == (Path(folder) / "matrix.json").read_text()
    assert json.loads(printed)["scenarios"][0]["passed"] == 3
