"""``python -m chaos_reports``: rendering again, merging, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from chaos_reports import cli
from click.testing import CliRunner
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.values import Finding, Verdict

from tests.reports.samples import CACHE, HEADER, KILL, LEASES, campaign, run, write_session

ROOT = Path(__file__).parents[2]


def session(
    folder: Path,
    verdict: Verdict = Verdict.HELD,
    *,
    name: str = "one",
    started: str = "2026-01-01",
    seed: str = "a",
) -> Path:
    """Write a session of one run and return its folder."""
    header = msgspec.structs.replace(HEADER, session=name, started=started, pass_rate_min=1.0)
    return write_session(folder, Records(header, (msgspec.structs.replace(run(KILL, verdict), seed=seed),)))


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.HELD, 0), (Verdict.VIOLATED, 1), (Verdict.INCONCLUSIVE, 2)])
def test_the_exit_code_is_the_verdict(tmp_path: Path, verdict: Verdict, code: int) -> None:
    """A script can tell held from violated from inconclusive."""
    assert cli.main([str(session(tmp_path, verdict))]) == code


def test_python_m_reports_renders_beside_the_records(tmp_path: Path) -> None:
    """A new interpreter needs nothing but the records."""
    folder = write_session(tmp_path, campaign())
    command = [sys.executable, "-W", "error", "-m", "chaos_reports", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert "4 scenarios, 200 runs" in done.stdout
    assert {path.name for path in folder.iterdir()} == {"records.jsonl", "matrix.md", "matrix.html", "matrix.json"}


def test_records_of_earlier_versions_are_masked(tmp_path: Path) -> None:
    """A secret that was written before its shape was known is in no report that is made of it."""
    said = "api_key=aB3dE5fG7hJ9kL2mN4"
    folder = session(tmp_path, Verdict.VIOLATED)
    file = folder / "records.jsonl"
    header, *_ = file.read_bytes().split(b"\n")
    told = msgspec.structs.replace(run(KILL, Verdict.VIOLATED), failure=said, notes={"said": said})
    told = msgspec.structs.replace(told, findings=(Finding(signature="check:it", text=f"it said {said}"),))
    file.write_bytes(b"\n".join([header, msgspec.json.encode(told), b""]))
    assert cli.main([str(folder)]) == 1
    reports = "".join(path.read_text() for path in folder.glob("matrix.*"))
    assert "it said api_key=[redacted]" in reports
    assert "aB3dE5fG7hJ9kL2mN4" not in reports


def test_a_results_folder_stands_for_its_latest_session(tmp_path: Path) -> None:
    """The report goes to the session that was read, and its evidence is linked from there."""
    folder = session(tmp_path, Verdict.VIOLATED)
    (tmp_path / "latest").symlink_to(Path("sessions") / folder.name)
    assert cli.main([str(tmp_path), "--format", "json"]) == 1
    (scenario,) = json.loads((folder / "matrix.json").read_text())["scenarios"]
    assert scenario["evidence"] == ["evidence/01-kill-9-0"]


def test_evidence_is_linked_from_wherever_the_report_is(tmp_path: Path) -> None:
    """With --output, the links lead back to the session's folder."""
    folder = session(tmp_path, Verdict.VIOLATED)
    pack = folder / "evidence" / "01-kill-9-0"
    pack.mkdir(parents=True)
    output = tmp_path / "elsewhere" / "deep"
    assert cli.main([str(folder), "--output", str(output)]) == 1
    (scenario,) = json.loads((output / "matrix.json").read_text())["scenarios"]
    assert (output / scenario["evidence"][0]).resolve() == pack.resolve()


def test_sessions_of_several_machines_make_one_matrix(tmp_path: Path) -> None:
    """Runs of one scenario add up, others stand beside it,
    and the earliest header speaks for all.
    """
    first = session(tmp_path / "a", name="one", started="2026-01-02")
    second = session(tmp_path / "b", Verdict.VIOLATED, name="two", started="2026-01-01", seed="other")
    header = msgspec.structs.replace(HEADER, session="three", started="2026-01-03")
    third = write_session(tmp_path / "c", Records(header, (run(CACHE), run(LEASES, kind="pause"))))
    assert cli.main([str(first), str(second), str(third), "--output", str(tmp_path / "all")]) == 1
    data = json.loads((tmp_path / "all" / "matrix.json").read_text())
    assert data["started"] == "2026-01-01"
    assert {each["id"]: each["runs"] for each in data["scenarios"]} == {
        "01-kill-9": 2,
        "03-leases": 1,
        "05-llm-cache": 1,
    }
    assert data["scenarios"][0]["evidence"] == ["../b/sessions/two/evidence/01-kill-9-0"]


def test_a_session_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its runs would count twice and the bound would be a lie."""
    folder = session(tmp_path)
    assert cli.main([str(folder), str(folder / "records.jsonl")]) == 3
    assert "the same session as" in capsys.readouterr().err


def test_only_the_formats_asked_for_are_written(tmp_path: Path) -> None:
    """Spaces around a comma do no harm."""
    folder = session(tmp_path)
    assert cli.main([str(folder), "--format", "md, json"]) == 0
    assert not (folder / "matrix.html").exists()
    assert (folder / "matrix.md").exists()


def output_taken(folder: Path) -> list[str]:
    """Put a file's child where the report should go."""
    (folder / "taken").write_text("here")
    return [str(session(folder)), "--output", str(folder / "taken" / "below")]


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (output_taken, "the report cannot be written to"),
        (lambda folder: [str(folder / "missing")], "must have run records; got none: "),
        (
            lambda folder: [str(session(folder)), "--format", "pdf"],
            "a report format must be one of md, html, json, ctrf; got 'pdf'",
        ),
        (lambda folder: [str(session(folder)), "--frmat", "md"], "No such option"),
        (lambda _: [], "Missing argument 'RESULTS...'"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arrange: object, message: str
) -> None:
    """Damaged or missing records, an unwritable folder, a wrong option:
    what came, and what to do.
    """
    assert callable(arrange)
    assert cli.main(arrange(tmp_path)) == 3
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_error_of_our_own_is_shown_whole_and_has_its_own_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not the user's mistake is not dressed up as one."""
    folder = session(tmp_path)
    monkeypatch.setitem(cli.EXIT_CODES, Verdict.HELD, None)
    monkeypatch.delitem(cli.EXIT_CODES, Verdict.HELD)
    assert cli.main([str(folder)]) == 4
    assert "KeyError" in capsys.readouterr().err


def test_the_command_works_as_a_part_of_another(tmp_path: Path) -> None:
    """``chaos report`` is the same command, which hands its code to the group it is in."""
    result = CliRunner().invoke(cli.report, [str(session(tmp_path, Verdict.INCONCLUSIVE))])
    assert result.exit_code == 2
    assert "1 scenario, 1 run: 1 inconclusive." in result.output
