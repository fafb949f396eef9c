"""The power of the suite in the matrix, from the files of ``chaos mutate``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from chaos_reports.beside import BANK, LIBRARIES, PLANTED
from chaos_reports.matrix import headline
from chaos_reports.power import FOLDER, with_power
from chaos_reports.render import to_html, to_json
from pytest_chaos.errors import ResultsError
from pytest_chaos.model.campaign import summarise
from pytest_chaos.mutate.planted import Planted, keep

from tests.reports.failure.packs import HOSTILE
from tests.reports.samples import campaign

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, name: str, outcomes: dict[str, str], *, missing: int = 0, digest: str = "d") -> None:
    """Write a file of results, with what the reports read of it."""
    (folder / FOLDER).mkdir(exist_ok=True)
    content = {
        "header": {"package": "shop", "digest": digest, "started": f"2026-01-0{1 + (digest == 'd')}"},
        "missing": missing,
        "results": [{"id": number, "outcome": outcome} for number, outcome in outcomes.items()],
    }
    (folder / FOLDER / name).write_text(json.dumps(content))


def test_the_matrix_has_the_power_of_all_shards(tmp_path: Path) -> None:
    """Shards of one source count together, an older source does not; the verdict stays."""
    matrix = summarise(campaign())
    session = tmp_path / "sessions" / "s"
    assert with_power(matrix, session).power == ()

    write(tmp_path, "mutation-1-of-2.json", {"a": "caught", "b": "equivalent", "c": "survived"})
    write(tmp_path, "mutation-2-of-2.json", {"d": "caught by time", "e": "inconclusive"}, missing=2)
    write(tmp_path, "mutation.json", {"f": "caught"}, digest="older")
    found = with_power(matrix, session)

    assert found.power == ("power: 2 of 4 (shop, 2 mutants not run)",)
    assert headline(found).endswith(" Power: 2 of 4 (shop, 2 mutants not run).")
    assert json.loads(to_json(found))["power"] == list(found.power)
    assert found.verdict is matrix.verdict


def test_a_scenario_shows_the_mutants_that_it_noticed(tmp_path: Path) -> None:
    """Operator, place and finding of each; a death of an agent is noticed, too."""
    told = {"scenario": "01-kill-9", "operator": "drop-call", "module": "shop.store", "function": "save"}
    write(tmp_path, "mutation.json", {"a": "caught", "b": "caught by crash", "c": "survived"})
    path = tmp_path / FOLDER / "mutation.json"
    content = json.loads(path.read_text())
    content["results"] = [each | told | {"line": 7, "signature": "lost"} for each in content["results"]]
    path.write_text(json.dumps(content))
    found = with_power(summarise(campaign()), tmp_path)
    assert found.power == ("power: 2 of 3 (shop)",)
    assert found.noticed == {"01-kill-9": ("drop-call in shop.store:save, line 7: lost",) * 2}
    html = to_html(found)
    assert html.count("<li>drop-call in shop.store:save, line 7: lost</li>") == 2
    assert html.count("Mutants that it noticed, 2") == 1


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """A damaged file is no power of nothing."""
    write(tmp_path, "mutation.json", {})
    (tmp_path / FOLDER / "mutation.json").write_text("{}")
    with pytest.raises(ResultsError, match="must be a file of chaos mutate; got Object missing required field"):
        with_power(summarise(campaign()), tmp_path)


def test_planted_defects_stand_with_the_scenario_that_caught_them(tmp_path: Path) -> None:
    """Each once, however often it was caught; a line that was cut short is left out."""
    caught = Planted(scenario="01-kill-9", defect="store:AckFirst", signature="durability:lost", test="t.py::test_a")
    for each in (caught, caught, msgspec.structs.replace(caught, defect=f"store:{HOSTILE}")):
        keep(tmp_path, each)
    with (tmp_path / PLANTED).open("ab") as stream:
        stream.write(b'{"scenario": "01-k')
    found = with_power(summarise(campaign()), tmp_path)
    assert found.planted["01-kill-9"][1] == "store:AckFirst: durability:lost, in test_a"
    html = to_html(found)
    assert "Planted defects that it caught, 2" in html
    assert HOSTILE not in html
    assert found.verdict is summarise(campaign()).verdict


def test_the_bank_and_the_library_matrix_stand_beside_the_matrix(tmp_path: Path) -> None:
    """What was not shown comes first; without files there is nothing, and a broken one says so."""
    assert with_power(summarise(campaign()), tmp_path).beside == ()
    (tmp_path / "bank").mkdir()
    entries = [{"name": "b", "title": "A lost lock", "outcome": "shown", "sentence": "it came again"},
               {"name": "a", "title": "Old", "outcome": "not shown", "sentence": "a change"}]  # fmt: skip
    (tmp_path / BANK).write_text(json.dumps({"entries": entries, "verdict": "VIOLATED", "format": 1}))
    rows = [{"library": "tinydb 4", "cells": {"crash": "VIOLATED", "power": "HELD"}, "note": "by design"}]
    (tmp_path / LIBRARIES).write_text(json.dumps({"rows": rows}))
    html = to_html(with_power(summarise(campaign()), tmp_path))
    assert "1 of 2 public bugs shown again" in html
    assert html.index("a change") < html.index("it came again")
    assert '<td class="violated">VIOLATED</td><td class="held">HELD</td>' in html
    (tmp_path / BANK).write_text("{")
    assert "bank.json cannot be read" in to_html(with_power(summarise(campaign()), tmp_path))
