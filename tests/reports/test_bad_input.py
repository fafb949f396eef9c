"""Records that are damaged, foreign, odd or none: a page that says so, and never green."""

from __future__ import annotations

import html
import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from chaos_reports import cli
from chaos_reports.terminal import lines
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.campaign import summarise
from pytest_chaos.model.values import Assertion, Finding, Scenario, Verdict

from tests.reports.browsing import CHROMIUM, opened
from tests.reports.samples import HEADER, KILL, run, write_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Browser

HELD = tuple(run(KILL, iteration=place) for place in range(3))


def session(folder: Path, *runs: Any) -> Path:
    """Write a session whose runs held; return its file of records."""
    header = msgspec.structs.replace(HEADER, pass_rate_min=1.0)
    return write_session(folder, Records(header, runs or HELD)) / "records.jsonl"


def reported(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, dict[str, Any]]:
    """Render all formats; return the exit code, the text of the page, and matrix.json."""
    code = cli.main([str(file), "--format", "html,md,json,ctrf", "--summary", str(file.with_name("summary.md"))])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    page = re.sub(r"<(style|script)>.*?</\1>", "", file.with_name("matrix.html").read_text(), flags=re.DOTALL)
    return code, html.unescape(page), json.loads(file.with_name("matrix.json").read_text())


def line_changed(number: int, change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Return a change of one line of records, as an object."""

    def changed(content: bytes) -> bytes:
        lines = content.split(b"\n")
        told = json.loads(lines[number])
        change(told)
        lines[number] = json.dumps(told).encode()
        return b"\n".join(lines)

    return changed


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no record": (lambda content: content + b'{"scenario": 3}\n', "line 5 of records.jsonl is no record of a run"),
    "no text": (lambda content: content.replace(b'"node_id":"', b'"node_id":"\xff', 1), "line 2 of records.jsonl"),
    "missing field": (line_changed(2, lambda told: told.pop("run_id")), "missing required field `run_id`"),
    "wrong type": (line_changed(2, lambda told: told.update(duration_s="long")), "line 3 of records.jsonl"),
    "unknown verdict": (line_changed(1, lambda told: told.update(verdict="GREEN")), "line 2 of records.jsonl"),
    "newer records": (line_changed(1, lambda told: told.update(format=99)), "is of format 99, newer than"),
    "newer header": (line_changed(0, lambda told: told.update(format=99)), "is of format 99, newer than"),
    "no header": (lambda content: b"{}\n" + content.partition(b"\n")[2], "has no header that can be read"),
    "twenty bad lines": (lambda content: content + b"[]\n" * 20, "15 more lines of records.jsonl are no records"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_records_have_a_page_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """What can be read is shown, and nothing of it is green: in no format, and in no exit code."""
    file = session(tmp_path)
    change, text = DAMAGE[damage]
    file.write_bytes(change(file.read_bytes()))
    code, page, matrix = reported(file, capsys)
    assert code == 2
    assert matrix["incomplete"]
    assert any(text in reason for reason in matrix["reasons"])
    assert text in page
    assert "INCOMPLETE" in file.with_name("summary.md").read_text()


def test_unknown_fields_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A field that a later version adds within a format is no damage."""
    file = session(tmp_path)
    file.write_bytes(line_changed(1, lambda told: told.update(new_field={"a": [1]}))(file.read_bytes()))
    code, _, matrix = reported(file, capsys)
    assert (code, matrix["incomplete"]) == (0, False)


@pytest.mark.parametrize("content", [b"", b"\n", msgspec.json.encode(HEADER) + b"\n"], ids=["empty", "blank", "header"])
def test_no_run_at_all_has_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    """A session that ended before its first run shows nothing, and says that."""
    file = session(tmp_path)
    file.write_bytes(content)
    code, page, matrix = reported(file, capsys)
    assert (code, matrix["scenarios"]) == (2, [])
    assert "No run was recorded" in page
    assert ">HELD<" not in page


def test_times_that_run_backwards_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A duration below zero comes from a clock that was set back; verdicts do not depend on it."""
    odd = msgspec.structs.replace(HELD[0], duration_s=-3600.0, started="1969-12-31T23:59:59Z")
    code, page, _ = reported(session(tmp_path, odd, *HELD[1:]), capsys)
    assert code == 0
    assert "1 run has a duration below zero: the clock ran backwards" in page


LONG = "unreasonably" * 834


def long_run() -> Any:
    """Make a violated run in which every text has ten thousand characters."""
    scenario = Scenario(id=LONG, title=LONG, why=LONG, steps=(LONG,))
    odd = run(scenario, Verdict.VIOLATED, finding=Finding(signature=LONG, text=LONG, checker=LONG), kind=LONG)
    return msgspec.structs.replace(
        odd, node_id=LONG, seed=LONG, run_id=LONG, failure=LONG, reproduce=LONG,
        notes={LONG: 1.5, "limitations": [LONG]}, evidence=f"evidence/{LONG}",
        assertions=(Assertion(name=LONG, observed=LONG, holds=False),),
        agents=(msgspec.structs.replace(odd.agents[0], name=LONG, exit_status=LONG),),
    )  # fmt: skip


def test_names_of_ten_thousand_characters_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every format stays readable; the table fits the terminal."""
    file = session(tmp_path, long_run())
    code, page, _ = reported(file, capsys)
    assert code == 1
    assert LONG not in page
    assert len(page) < 200_000
    assert all(
        file.with_name(name).stat().st_size < 200_000 for name in ("matrix.md", "summary.md", "matrix.ctrf.json")
    )
    shown = lines(summarise(Records(HEADER, (long_run(),))), width=80)
    assert max(map(len, shown[1:5])) <= 80
    assert cli.main(["--diff", str(file), str(file)]) == 0


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not opened")
def test_a_page_of_long_names_is_no_wider_than_a_phone(browser: Browser, tmp_path: Path) -> None:
    """Nothing pushes the page to the side, with everything open."""
    file = session(tmp_path, long_run(), *HELD)
    cli.main([str(file), "--format", "html"])
    page, _, complaints = opened(browser, file.with_name("matrix.html").as_uri(), 390, "light")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []
    page.close()
