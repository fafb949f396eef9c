"""The matrix as lines of text."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos_reports.terminal import FAILURES_SHOWN_MAX, lines, short_lines
from pytest_chaos.evidence.records import Records
from pytest_chaos.model.campaign import summarise
from pytest_chaos.model.values import Finding, Scenario, Verdict

from tests.reports.samples import HEADER, campaign, run


def test_the_table_names_verdicts_findings_and_the_page() -> None:
    """Everything that a reader needs next is in the terminal, down to the line to paste."""
    text = "\n".join(lines(summarise(campaign()), width=120, page=Path("chaos-results/latest/matrix.html")))
    for expected in (
        "4 scenarios, 200 runs: 1 held, 1 held with tolerated failures, 1 violated, 1 inconclusive.",
        "✗ VIOLATED",
        "≈ TOLERATED",
        "? INCONCLUSIVE",
        "98.0 % (≥ 90.9 %)",
        "fired: kill 30/50; 4/5 points",
        "04-sweep: durability.acknowledged-lost (safety, 6 runs): checkpoint 7 was acknowledged",
        "    reproduce: chaos replay chaos-results/latest/evidence/04-sweep-0",
        "chaos matrix: chaos-results/latest/matrix.html",
    ):
        assert expected in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    """No line of the table is wider than the terminal."""
    shown = lines(summarise(campaign()), width=width)
    table = shown[1 : next(place for place, line in enumerate(shown) if line.startswith("03-leases: "))]
    assert table
    assert max(len(line) for line in table) <= width


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_word_is_broken(width: int) -> None:
    """Lines are wrapped at spaces: each word of a title, and each fault, is whole on one line."""
    title = "Every acknowledged checkpoint-and-lease of uncooperative reconciliation workers is whole, again and again"
    scenario = Scenario(id="02-concurrent-checkpoints-of-many-writers", title=title)
    kinds = ("refuse-delivery", "hold-lock-for-a-long-time", "pause-and-resume")
    runs = tuple(run(scenario, kind=each, iteration=place) for place, each in enumerate(kinds))
    shown = lines(summarise(Records(HEADER, runs)), width=width)
    words = {word for line in shown for word in line.split()}
    assert {*title.split(), *kinds, scenario.id} <= words
    assert max(map(len, shown)) <= width


def test_figures_of_one_column_end_at_one_place() -> None:
    """Header, rule and rows are of one width; a title has a line of its own."""
    shown = lines(summarise(campaign()), width=80)
    header, rule, first, title, faults = shown[1:6]
    assert header.split() == ["Verdict", "Scenario", "Runs", "Pass", "rate", "Duration"]
    assert len(header) == len(rule) == len(first)
    assert title.strip() == "A killed agent resumes from its newest checkpoint"
    assert faults.strip() == "fired: kill 50/50; 4/5 points"


def test_an_ascii_terminal_gets_ascii() -> None:
    """Where the terminal cannot encode it, no glyph is lost: each has a plain form."""
    matrix = summarise(campaign())
    assert all(line.isascii() for line in [*lines(matrix, ascii_only=True), *short_lines(matrix, ascii_only=True)])


def test_colour_is_only_there_when_asked_for() -> None:
    """Escape sequences come with colour and not without."""
    matrix = summarise(campaign())
    assert "\x1b[" in "".join(lines(matrix, colour=True))
    assert "\x1b[" not in "".join(lines(matrix))


def test_texts_of_a_target_cannot_style_the_terminal() -> None:
    """Neither escape sequences nor the markup of the library that draws the table are obeyed."""
    scenario = Scenario(id="[red]01[/red]", title="\x1b[2Jgone [bold")
    finding = Finding(signature="\x1b]0;title\x07", text="two\nlines")
    text = "\n".join(lines(summarise(Records(HEADER, (run(scenario, Verdict.VIOLATED, finding=finding),))), width=120))
    assert "[red]01[/red]" in text
    assert "\\x1b[2Jgone [bold" in text
    assert "\x1b" not in text
    assert "two lines" in text


def test_quiet_is_one_line_per_scenario() -> None:
    """With -q nothing but the verdicts is left."""
    assert short_lines(summarise(campaign())) == [
        "✓ HELD 01-kill-9: 50 runs, pass rate 100 %",
        "≈ TOLERATED 03-leases: 50 runs, pass rate 98.0 %",
        "✗ VIOLATED 04-sweep: 50 runs, pass rate 88.0 %",
        "? INCONCLUSIVE 05-llm-cache: 50 runs, pass rate 100 %",
    ]


def test_many_findings_are_cut_and_counted() -> None:
    """A scenario with a hundred signatures does not scroll the verdict away."""
    findings = [Finding(signature="a" * place + "s", text="t") for place in range(100)]
    runs = tuple(run(verdict=Verdict.VIOLATED, iteration=place, finding=each) for place, each in enumerate(findings))
    shown = lines(summarise(Records(HEADER, runs)))
    assert sum("(safety, 1 run)" in line for line in shown) == FAILURES_SHOWN_MAX
    assert "01-kill-9: 90 more signatures in the report" in shown
