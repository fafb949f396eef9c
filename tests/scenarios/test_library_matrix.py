"""The library matrix: the page is of the data, each cell is there or says why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.explore.launch import step_source
from pytest_chaos.explore.target import load_subject

from scenarios.library_matrix import measure, page
from scenarios.library_matrix.__main__ import main
from scenarios.library_matrix.rows import CELLS, read_rows

if TYPE_CHECKING:
    from pathlib import Path

ROWS = read_rows()
MEASURED = measure.read_measured()
NAMED = {"huey", "persist-queue-file", "persist-queue-sqlite", "persist-queue-ack", "diskcache", "tinydb", "shelve"}
NAMED |= {"dbm.dumb", "sqlitedict", "litequeue", "pickledb", "apscheduler", "zodb", "joblib"}
NAMED |= {"langgraph-checkpoint-sqlite", "dbos", "git", "leveldb", "redis-always", "sqlite-wal-full", "lmdb", "duckdb"}


def test_the_page_is_of_the_data() -> None:
    """``python -m scenarios.library_matrix --page`` draws it again."""
    text = page.DOCUMENT.read_text(encoding="utf-8")
    assert page.with_matrix(text, ROWS, MEASURED) == text
    assert set(MEASURED) <= set(ROWS)
    assert set(MEASURED) >= NAMED


@pytest.mark.parametrize("name", MEASURED)
def test_each_cell_is_measured_or_says_why_not(name: str) -> None:
    """A finding has a text and says how it was seen; a cell by design is one that was explored."""
    row, cells = ROWS[name], MEASURED[name].cells
    assert all(cell in cells or cell in row.unexplored or not row.target_of(cell) for cell in CELLS)
    assert set(row.by_design) <= set(cells)
    for cell in cells.values():
        assert (cell.verdict == "VIOLATED") == bool(cell.findings)
        assert all(found.text and (found.label == "modelled" or "confirmed" in found.label) for found in cell.findings)
        assert "pytest-chaos-" not in repr(cell)


@pytest.mark.parametrize("name", ROWS)
def test_each_target_can_be_loaded(name: str) -> None:
    """Whether its library is installed or not."""
    row = ROWS[name]
    for target in {row.target_of(cell) for cell in CELLS} - {""}:
        assert load_subject(target).name
    assert row.promise.endswith(".")
    assert row.source
    assert row.upstream


def test_a_cell_that_is_measured_again_is_as_it_was() -> None:
    """Of a library that is always there: a real exploration, with a real kill."""
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    now = measure.measure_cell(ROWS["dbm.dumb"], "crash", jobs=1)
    before = MEASURED["dbm.dumb"].cells["crash"]
    assert (now.verdict, now.signatures, now.command) == (before.verdict, before.signatures, before.command)
    assert all("--state 'crash:" in found.again for found in now.findings)
    assert any(found.label == "confirmed by a real kill" for found in now.findings)


def test_what_is_by_design_is_no_violation_in_the_report() -> None:
    """And what is not explored says so."""
    cells = {each["library"].split()[0]: each["cells"] for each in page.libraries(ROWS, MEASURED)["rows"]}
    assert cells["tinydb"]["crash"] == page.BY_DESIGN
    assert cells["tinydb"]["crash in recovery"] == measure.NOTHING
    assert cells["dbm.dumb"]["crash"] == "VIOLATED"
    assert cells["langgraph-checkpoint-sqlite"]["power, ext4"] == "HELD"


def test_a_difference_is_told_with_its_command() -> None:
    """Of versions, of verdicts and of findings."""
    row, before = ROWS["dbm.dumb"], MEASURED["dbm.dumb"]
    cell = measure.Cell("HELD", "1 of 1 crash points", "chaos explore x")
    now = measure.Measured({"Python": "4"}, before.day, before.where, {**before.cells, "crash": cell})
    version, verdict = measure.differences(row, before, now)
    assert version.endswith("it is Python 4 here")
    assert verdict == "dbm.dumb, crash was VIOLATED (lost); it is HELD. Look: chaos explore x"
    assert list(measure.differences(row, before, before)) == []
    assert list(measure.differences(row, None, now)) == ["dbm.dumb was not measured before"]


def test_mistakes_are_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not there, a library that is not installed, data that is damaged."""
    unknown = CliRunner().invoke(main, ["nothing", "--check"])
    assert unknown.exit_code == 3
    assert "a library must be one of huey," in unknown.output
    assert "got nothing" in unknown.output
    monkeypatch.setattr(measure, "missing", lambda _: "the Python package huey")
    skipped = CliRunner().invoke(main, ["huey", "--check"])
    assert skipped.exit_code == 2
    assert skipped.output == "skipped    huey: not installed: the Python package huey; pip install -e '.[targets]'\n"
    (tmp_path / "measured.json").write_text("{")
    with pytest.raises(UsageError, match=r"^measured\.json must be what the library matrix has measured; got: "):
        measure.read_measured(tmp_path / "measured.json")
    (tmp_path / "rows.toml").write_text("[[rows]]\nname = 'a'\nby_desing = {}\n")
    with pytest.raises(UsageError, match=r"^rows\.toml must have rows of the library matrix; got: .*by_desing"):
        read_rows(tmp_path / "rows.toml")
