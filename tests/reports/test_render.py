"""The three files of a matrix: what they show, what they escape, how large they get,
what programs may read.
"""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import msgspec
import pytest
from chaos_reports import columns, contract
from chaos_reports.contract import MatrixDocument
from chaos_reports.matrix import DurationBin, view
from chaos_reports.render import to_html, to_json, to_markdown, write
from chaos_reports.terminal import lines
from pytest_chaos.errors import ResultsError
from pytest_chaos.evidence.records import Records, read
from pytest_chaos.model.campaign import MatrixSummary, summarise
from pytest_chaos.model.values import Assertion, Finding, Scenario, Verdict

from tests.reports.samples import HEADER, KILL, campaign, many, run, write_session

if TYPE_CHECKING:
    from pathlib import Path

WHOLENESS_KEYS = {"incomplete", "missing", "skipped", "deselected", "reasons"}
CONTRACT_KEYS = {
    *("id", "title", "why", "steps", "verdict", "runs", "passed", "failed", "inconclusive", "pass_rate", "duration_s"),
    *("faults", "assertions", "failures", "evidence", "pass_rate_lower", "not_begun", "gate"),
}
HOSTILE = (
    "<script>alert('1')</script> \"><img src=x onerror=alert(1)> | a\n| b `c` [d](javascript:e) {{ 7*7 }} \x1b[31m"
)


class Page(HTMLParser):
    """Every tag with its attributes, and the nesting checked."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag; void elements do not nest."""
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "br", "img", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that what closes is what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text.append(data)


def parsed(html: str) -> Page:
    """Parse a page and check that everything was closed."""
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def hostile() -> MatrixSummary:
    """Sum up a session whose every text tries to be something else."""
    scenario = Scenario(id=f"01-{HOSTILE}", title=HOSTILE, why=HOSTILE, steps=(HOSTILE,))
    finding = Finding(signature=HOSTILE, text=HOSTILE, checker=HOSTILE)
    bad = msgspec.structs.replace(
        run(scenario, Verdict.VIOLATED, finding=finding),
        node_id=HOSTILE,
        seed=HOSTILE,
        evidence=f"javascript:{HOSTILE}",
        reproduce=HOSTILE,
        assertions=(Assertion(name=HOSTILE, observed=HOSTILE, holds=False),),
        notes={"crash_points": [HOSTILE], "limitations": [HOSTILE], HOSTILE: 1.0},
    )
    header = msgspec.structs.replace(
        HEADER, command=HOSTILE, seed=HOSTILE, started=HOSTILE, versions={HOSTILE: HOSTILE}
    )
    return summarise(Records(header, (bad,)))


def test_a_page_shows_every_kind_of_verdict_in_words() -> None:
    """Held, tolerated, inconclusive and violated are words and glyphs, not colours alone."""
    html = to_html(summarise(campaign()))
    for glyph, word in (("✓", "HELD"), ("≈", "TOLERATED"), ("?", "INCONCLUSIVE"), ("✗", "VIOLATED")):
        assert f'<b aria-hidden="true">{glyph}</b>{word}</span>' in html


def test_a_row_has_what_an_auditor_asks_for() -> None:
    """Faults with receipts, the rate with its bound, values seen, findings,
    evidence and the line that reproduces.
    """
    html = to_html(summarise(campaign()))
    for expected in (
        "A killed agent resumes from its newest checkpoint",
        "50 of 50",
        "waitpid: signal 9 (pid 4000)",
        "at least 94.2 %",
        "acknowledged checkpoints lost",
        "durability.acknowledged-lost",
        "chaos replay chaos-results/latest/evidence/04-sweep-0",
        'href="./evidence/04-sweep-0"',
        "Crash points, 4 of 5 hit",
        "58 min 00 s",
        "What a green matrix does not prove",
        "Nothing here is about power loss",
        "WAL-reset bug",
        "SHA-256 of the records",
        HEADER.command,
        HEADER.seed,
    ):
        assert expected in html


def test_a_tolerated_matrix_is_never_green() -> None:
    """When all scenarios hold but one by its rate, the whole page says so."""
    records = campaign()
    runs = tuple(each for each in records.runs if each.scenario.id in {"01-kill-9", "03-leases"})
    html = to_html(summarise(Records(HEADER, runs)))
    assert '<span class="pill tolerated large">' in html
    assert '<span class="pill held large">' not in html


def test_texts_of_a_target_cannot_become_markup() -> None:
    """Every text that comes from outside tries a script, a handler and a link;
    none of them is there.
    """
    page = parsed(to_html(hostile()))
    assert {tag for tag, _ in page.tags} & {"img", "iframe", "object", "form"} == set()
    assert [tag for tag, _ in page.tags].count("script") == 1  # our own, which the policy names by its hash
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        link = attributes.get("href") or "./"
        assert link.startswith(("./", "#", "data:,"))
    shown = "".join(page.text)
    assert "<script>alert('1')</script>" in shown
    assert "{{ 7*7 }}" in shown
    assert "\x1b" not in shown


def test_a_page_fetches_nothing_and_says_so_to_the_browser() -> None:
    """No source, no import, no remote address, and a policy that forbids them."""
    html = to_html(summarise(campaign()))
    page = parsed(html)
    assert not [tag for tag, attributes in page.tags if "src" in attributes or "srcset" in attributes]
    assert not re.search(r"https?://|@import|url\(", html)
    policies = [
        each for tag, each in page.tags if tag == "meta" and each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies[0]["content"] is not None
    assert policies[0]["content"].startswith("default-src 'none'")
    assert "unsafe" not in policies[0]["content"]
    assert not [tag for tag, attributes in page.tags if "style" in attributes]


def test_links_within_the_page_lead_somewhere() -> None:
    """Each anchor that a row links to exists once."""
    page = parsed(to_html(summarise(campaign())))
    targets = [str(each["id"]) for _, each in page.tags if "id" in each]
    links = {str(each["href"])[1:] for _, each in page.tags if str(each.get("href", "")).startswith("#")}
    assert links <= set(targets)
    assert len(targets) == len(set(targets))


def test_markdown_tables_keep_their_shape_whatever_a_text_holds() -> None:
    """Each row of each table has as many cells as its head, and no text makes a tag or a link."""
    columns = 0
    for line in to_markdown(hostile()).splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        columns = columns or cells
        assert cells == columns, line
    outside_code = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", to_markdown(hostile()).replace("\\`", ""))
    assert not re.search(r"(?<!\\)<(?!br>|\./)", outside_code)
    assert not re.search(r"(?<!\\)\]\((?!<\./)", outside_code)


def test_markdown_shows_the_matrix_and_its_details() -> None:
    """The table, the findings, the crash points and the signature are there."""
    text = to_markdown(summarise(campaign()))
    assert "| ≈ **TOLERATED** | 03-leases | A zombie cannot write with the lease it lost | pause 50/50 | 50<br>" in text
    assert "### Violated: durability.acknowledged-lost, 6 runs" in text
    assert "- Reproduce: `chaos replay chaos-results/latest/evidence/04-sweep-0`" in text
    assert "`checkpoint.ack` (not hit)" in text
    assert "\n\n\n" not in text


def test_the_json_keeps_the_contract() -> None:
    """Format 1 has the promised keys, counts that add up, and decodes with the published types."""
    content = to_json(summarise(campaign()))
    data = json.loads(content)
    assert set(data) == {"format", "seed", "started", "versions", "scenarios", *WHOLENESS_KEYS}
    assert not data["incomplete"]
    assert data["format"] == 1
    assert [each["id"] for each in data["scenarios"]] == ["01-kill-9", "03-leases", "04-sweep", "05-llm-cache"]
    assert [each["verdict"] for each in data["scenarios"]] == ["HELD", "HELD", "VIOLATED", "INCONCLUSIVE"]
    assert [each["tolerated"] for each in data["scenarios"]] == [False, True, False, False]
    for each in data["scenarios"]:
        assert set(each) == CONTRACT_KEYS | {"tolerated", "incomplete", "missing"}
        assert each["passed"] + each["failed"] + each["inconclusive"] == each["runs"]
    sweep = msgspec.json.decode(content, type=MatrixDocument).scenarios[2]
    assert (sweep.failures[0].signature, sweep.failures[0].runs) == ("durability.acknowledged-lost", 6)
    assert sweep.assertions[0].observed == ["1", "0"]
    assert (sweep.pass_rate, len(sweep.evidence)) == (0.88, 6)


def test_a_new_column_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """All four writers show a column that only the list knows, and the promised keys stay."""
    added = columns.Column("seen", "Seen <first>", lambda row: [f"a|b {row.summary.runs}"], lambda _: {"seen": "new"})
    for module in (columns, contract):
        monkeypatch.setattr(module, "COLUMNS", (*columns.COLUMNS, added))
    matrix = summarise(campaign())
    assert "Seen &lt;first&gt;</th>" in to_html(matrix)
    assert '<td role="cell" data-label="Seen &lt;first&gt;">a|b 50</td>' in to_html(matrix)
    assert "| Seen \\<first\\> |" in to_markdown(matrix)
    assert "| a\\|b 50 |" in to_markdown(matrix)
    assert "Seen <first>" in "\n".join(lines(matrix, width=200))
    assert [entry["seen"] for entry in json.loads(to_json(matrix))["scenarios"]] == ["new"] * 4
    assert len(msgspec.json.decode(to_json(matrix), type=MatrixDocument).scenarios) == 4


def test_five_thousand_runs_stay_readable() -> None:
    """Lists are cut, every cut is said, and the page stays far below a megabyte."""
    matrix = summarise(many(5_000))
    html, markdown = to_html(matrix), to_markdown(matrix)
    assert len(html) < 200_000
    assert len(markdown) < 50_000
    assert len(to_json(matrix)) < 200_000
    assert "Runs, 50 of 5000 listed" in html
    assert "The other 4,950 are counted above" in html
    assert "and 495 more" in html
    assert "characters more)" in html
    assert "VIOLATED" in html.split('class="runs"')[1].split("</tbody>")[0]


def test_many_scenarios_list_fewer_runs_each() -> None:
    """A hundred scenarios of fifty runs share the number of runs that a page lists."""
    runs = tuple(
        run(Scenario(id=f"{place:03d}-scenario", title="It holds"), iteration=each)
        for place in range(100)
        for each in range(50)
    )
    html = to_html(summarise(Records(HEADER, runs)))
    assert html.count("Runs, 10 of 50 listed") == 100
    assert len(html) < 2_000_000


def test_nothing_recorded_is_inconclusive_and_said() -> None:
    """An empty matrix renders in all formats and proves nothing."""
    matrix = summarise(Records(HEADER, ()))
    assert "No run was recorded" in to_html(matrix)
    assert "INCONCLUSIVE" in to_html(matrix)
    assert "No run was recorded" in to_markdown(matrix)
    assert json.loads(to_json(matrix))["scenarios"] == []


def test_records_alone_are_enough_and_give_the_same_bytes_twice(tmp_path: Path) -> None:
    """A matrix read back from its records is the very same, so two renderings can be compared."""
    records = campaign()
    session = write_session(tmp_path, records)
    first = write(summarise(records), tmp_path / "first")
    again = write(summarise(read(session)), tmp_path / "again")
    assert list(first) == ["md", "html", "json"]
    for name, path in first.items():
        assert path.read_bytes() == again[name].read_bytes()
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["matrix.html", "matrix.json", "matrix.md"]


@pytest.mark.parametrize(("formats", "came"), [(["pdf"], "'pdf'"), ([], "none"), (["md", "x", "y"], "'x', 'y'")])
def test_a_format_that_does_not_exist_is_refused(tmp_path: Path, formats: list[str], came: str) -> None:
    """The sentence names what there is, and nothing is written."""
    expected = rf"^a report format must be one of md, html, json, ctrf; got {came}\. Give for instance md,html$"
    with pytest.raises(ResultsError, match=expected):
        write(summarise(campaign()), tmp_path / "out", formats)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A file where the folder should be: the error names it."""
    (tmp_path / "taken").write_text("here")
    with pytest.raises(ResultsError, match=r"^the report cannot be written to .+taken \(.+\)\. Give a folder"):
        write(summarise(campaign()), tmp_path / "taken")


def test_durations_are_drawn_by_verdict() -> None:
    """All runs are in a bar of their duration and verdict; times that are none are in no bar."""
    times = [0.1, 0.1, 0.5, 1.0, 1.0, 1.0]
    runs = [
        msgspec.structs.replace(run(KILL, Verdict.VIOLATED if place == 2 else Verdict.HELD, place), duration_s=seconds)
        for place, seconds in enumerate([*times, -5.0, math.nan])
    ]
    (row,) = view(summarise(Records(HEADER, tuple(runs)))).scenarios
    assert row.durations is not None
    bins = enumerate(row.durations.bins)
    filled = {place: (each.held, each.violated) for place, each in bins if each != DurationBin()}
    assert filled == {3: (2, 0), 16: (0, 1), 31: (3, 0)}
    found = row.durations
    assert (found.low_s, found.median_s, found.high_s, found.runs_max) == (0.1, 0.5, 1.0, 3)
    assert 'class="spread"' in to_html(summarise(Records(HEADER, tuple(runs))))
