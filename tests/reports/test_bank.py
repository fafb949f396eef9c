"""The bug bank in the matrix, from the file of ``chaos bank run --all``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
from chaos_reports.beside import BANK
from chaos_reports.power import with_power
from chaos_reports.render import to_html, to_json
from pytest_chaos.bank.results import BankDocument, EntryResult, Outcome
from pytest_chaos.model.campaign import summarise
from pytest_chaos.model.values import Verdict

from tests.reports.samples import campaign, write_session

if TYPE_CHECKING:
    from pathlib import Path

_TRUNCATED = "Input data was truncated"


def entry(name: str, outcome: Outcome, sentence: str = "as it should be") -> EntryResult:
    """Return the result of an entry."""
    return EntryResult(
        name=name, title="", kind="", reports=(), subject="", promise="", expects=(), outcome=outcome, sentence=sentence
    )


def write_bank(results: Path, *entries: EntryResult) -> None:
    """Write the file as the command does."""
    document = BankDocument(
        verdict=Verdict.INCONCLUSIVE, seed="bank", started="2026-11-30T17:00:00+00:00", duration_s=1.0,
        versions={"python": "3.11.7", "kernel": "6.18"}, counts={}, entries=list(entries),
    )  # fmt: skip
    (results / BANK).parent.mkdir(parents=True)
    (results / BANK).write_bytes(msgspec.json.encode(document))


def test_the_matrix_says_where_the_bank_was_run(tmp_path: Path) -> None:
    """How many entries were shown, and what is wrong with the others; nothing without a file."""
    session = write_session(tmp_path, campaign())
    matrix = summarise(campaign())
    assert with_power(matrix, session).bank == ()
    assert "bank" not in json.loads(to_json(matrix))
    write_bank(tmp_path, entry("a", "shown"), entry("b", "shown"), entry("c", "skipped", "no <network>"))
    found = with_power(matrix, session)
    first = "bug bank: 2 of 3 entries shown and held once mended (2026-11-30, Python 3.11.7, Linux 6.18)"
    assert found.bank == (first, "bug bank: c is skipped: no <network>")
    assert json.loads(to_json(found))["bank"] == list(found.bank)
    page = to_html(found)
    assert "Bug bank: 2 of 3 entries shown" in page
    assert "no &lt;network&gt;" in page


def test_a_file_of_something_else_is_told_and_costs_no_matrix(tmp_path: Path) -> None:
    """A damaged file is no bank in which all is well, and the page is written all the same."""
    write_bank(tmp_path, entry("a", "shown"))
    (tmp_path / BANK).write_text("{")
    found = with_power(summarise(campaign()), tmp_path)
    assert found.bank == ()
    assert [table.text for table in found.beside] == [f"bank.json cannot be read: {_TRUNCATED}."]
    assert "bank.json cannot be read" in to_html(found)
