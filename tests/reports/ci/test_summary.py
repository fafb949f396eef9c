"""The Markdown of a job summary: short, failures first, appended."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chaos_reports import cli
from chaos_reports.ci import summary
from chaos_reports.ci.summary import to_summary
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.campaign import summarise
from pytest_chaos.model.values import Finding, Verdict

from tests.reports.samples import HEADER, campaign, many, run, write_session

if TYPE_CHECKING:
    import pytest


def test_failures_come_first_with_the_line_that_runs_them_again() -> None:
    """The headline, then what did not hold, then a table of all scenarios."""
    text = to_summary(summarise(campaign()))
    assert text.startswith("## ✗ Chaos matrix: VIOLATED\n")
    places = [
        text.index(each)
        for each in ("4 scenarios, 200 runs", "### ✗ VIOLATED: A sweep", "`chaos replay chaos-results", "| ✓ HELD |")
    ]
    assert places == sorted(places)
    assert text.count("| ✗ VIOLATED |") == 1


def test_hostile_text_stays_text() -> None:
    """A finding makes no heading, no tag, no table cell and no link."""
    evil = Finding(signature="a|b", text="<img src=x>\n# Heading [link](http://there)")
    text = to_summary(summarise(Records(HEADER, (run(verdict=Verdict.VIOLATED, finding=evil),))))
    assert "\\<img" in text
    assert text.count("<img") == 1
    assert "\n# Heading" not in text
    assert "[link](" not in text


def test_a_page_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code hosts refuse what is too long: it is cut at a line, and that is said."""
    assert len(to_summary(summarise(many(1000))).encode()) < summary.BYTES_MAX
    monkeypatch.setattr(summary, "BYTES_MAX", 600)
    cut = to_summary(summarise(campaign()))
    assert len(cut.encode()) < 700
    assert cut.endswith("The rest is left out here; the reports have it.\n")


def test_pages_are_appended(tmp_path: Path) -> None:
    """Other steps of a job write to the same file."""
    file = tmp_path / "step.md"
    file.write_text("# Other step\n")
    folder = str(write_session(tmp_path, campaign()))
    for _ in range(2):
        assert cli.main([folder, "--format", "ctrf", "--summary", str(file)]) == 1
    text = file.read_text()
    assert text.startswith("# Other step\n")
    assert text.count("Chaos matrix: VIOLATED") == 2
    assert (Path(folder) / "matrix.ctrf.json").is_file()


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report itself is written, and the exit code says that something was wrong."""
    folder = str(write_session(tmp_path, campaign()))
    assert cli.main([folder, "--summary", str(tmp_path / "no" / "file.md")]) == 3
    assert "the summary must be a file that can be written; got" in capsys.readouterr().err
    assert (Path(folder) / "matrix.html").is_file()
