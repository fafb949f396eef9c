"""The story of an exploration: what a failure page knows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.launch import step_source
from pytest_chaos.model.story import Story

if TYPE_CHECKING:
    from pathlib import Path

LEDGER = """
import os

class Ledger:
    def run(self, directory, marks):
        for number in (1, 2):
            print("order", number, "comes")
            marks.intent("order", number)
            with open(directory / "orders", "a") as file:
                file.write(f"{number}\\n")
                file.flush()
                if number == 2:
                    os.fsync(file.fileno())
            marks.ack("order", number)

    def check(self, directory, marks):
        path = directory / "orders"
        there = path.read_text().split() if path.exists() else []
        return [f"order {m.key} is lost" for m in marks if m.kind == "ack" and str(m.key) not in there]


class Torn(Ledger):
    def run(self, directory, marks):
        for number in (1, 2):
            (directory / "state").write_text(f"<{number}>")
            marks.ack("save", number)

    def check(self, directory, marks):
        path = directory / "state"
        return ["the state is torn"] if path.exists() and not path.read_text().endswith(">") else []
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """Explore both targets; return the folder of the results."""
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ledger.py").write_text(LEDGER)
    assert run(["explore", "ledger.py:Ledger", "--seed", "s", "--faults", "power"]) == 1
    assert run(["explore", "ledger.py:Torn", "--seed", "s", "--faults", "crash"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("failure page: ") and line.endswith("states-s.html") for line in lines) == 2
    return tmp_path / "chaos-results/explore"


def story_of(folder: Path, name: str) -> tuple[Story, Path]:
    """Return the story of a target, and its folder."""
    (path,) = folder.glob(f"{name}-*/states-s/story.json")
    assert path.parent.with_suffix(".html").exists()
    return msgspec.json.decode(path.read_bytes(), type=Story), path.parent


def test_a_lost_item_is_joined_to_the_step_that_nothing_synced(told: Path) -> None:
    """The order that was acknowledged before a sync names its write, with the line."""
    story, folder = story_of(told, "Ledger")
    (cause,) = story.causes
    (item,) = cause.lost
    assert (item.mark.operation, item.mark.key) == ("order", 1)
    assert item.text == "write orders 2 bytes at 0"
    assert item.line.startswith("ledger.py:")
    assert not item.is_synced
    assert cause.promised is not None
    assert (folder / cause.promised.folder / "orders").read_text() == "1\n"
    assert (folder / cause.folder / "directory/orders").read_text() == ""
    assert cause.neighbour is not None
    assert cause.neighbour.code.startswith("crash:")
    assert {"power"} == cause.struck.keys()
    assert story.output.splitlines() == ["order 1 comes", "order 2 comes"]
    assert "order 2 comes" in folder.with_suffix(".html").read_text()


def test_the_neighbours_of_a_kill_hold(told: Path) -> None:
    """The states right before and after a torn file are named, judged and kept."""
    story, folder = story_of(told, "Torn")
    (cause,) = story.causes
    assert cause.neighbour is not None
    assert cause.after is not None
    assert cause.neighbour.step < cause.step < cause.after.step
    assert (folder / cause.after.folder / "state").read_text() == "<1>"
    assert cause.step in cause.struck["crash"]
    assert [step.number for step in cause.steps if step.mark is None] == list(range(1, story.steps + 1))
