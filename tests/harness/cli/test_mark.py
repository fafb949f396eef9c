"""``chaos mark`` writes what the Python API writes, from any shell."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from pytest_chaos.cli.main import run
from pytest_chaos.cli.mark import mark
from pytest_chaos.model.history import History

if TYPE_CHECKING:
    from pathlib import Path

HELD, MISTAKE = 0, 3


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be an agent whose marks go to this file."""
    monkeypatch.setenv("CHAOS_MARKS", str(tmp_path / "marks"))
    monkeypatch.setenv("CHAOS_AGENT", "shell")
    return tmp_path / "marks"


def test_an_operation_is_its_intent_and_its_ack(file: Path) -> None:
    """Two calls of one shell are one process's, so the ack belongs to the intent."""
    for kind in ("intent", "ack"):
        assert run(["mark", kind, "order", "7", "--value", '{"bytes": 12}']) == HELD

    history = History.from_lines(file.read_bytes())
    (operation,) = history.operations("order", agent="shell")
    assert operation.acknowledged
    assert (operation.intent.key, operation.intent.value, operation.intent.pid) == (7, {"bytes": 12}, os.getppid())


@pytest.mark.parametrize(("typed", "key"), [("007", "007"), ("-3", -3), ("a b", "a b"), ("1" * 40, "1" * 40)])
def test_a_key_of_digits_is_a_number(file: Path, typed: str, key: str | int) -> None:
    """What would not be written so again stays a text."""
    assert run(["mark", "ack", "order", typed]) == HELD
    assert [each.key for each in History.from_lines(file.read_bytes()).marks] == [key]


@pytest.mark.parametrize("arguments", [["acked", "order"], ["ack"], ["ack", "order", "7", "--value", "{"]])
def test_what_is_no_mark_is_not_written(file: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is told at once, and not by the run."""
    assert run(["mark", *arguments]) == MISTAKE
    assert capsys.readouterr().err
    assert not file.exists()


def test_outside_of_a_run_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script may keep its marks in production."""
    monkeypatch.delenv("CHAOS_MARKS")
    assert run(["mark", "ack", "order", "7"]) == HELD
    assert "CHAOS_MARKS is not set" in capsys.readouterr().err
    assert not file.exists()


def test_the_line_that_help_shows_is_a_mark(file: Path) -> None:
    """Without the command it is one line of a shell."""
    shown = CliRunner().invoke(mark, ["--help"]).output
    (line,) = [line.strip() for line in shown.splitlines() if line.strip().startswith("printf")]
    subprocess.run(["sh", "-c", line], check=True)

    assert [(str(each.kind), each.operation, each.key) for each in History.from_lines(file.read_bytes()).marks] == [
        ("ack", "order", 7)
    ]
