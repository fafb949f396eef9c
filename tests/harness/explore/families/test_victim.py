"""One process dies alone, chosen by its name; the others go on."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Exploration, Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Verdict

from tests.harness.explore import parallel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

WORKER = "for number in range(2): open(f'done-{number}', 'w').close()"


class Started:
    """Starts a worker, and another program that makes no step; it looks at neither."""

    name = "started"

    def setup(self, directory: Path) -> None:
        """Put the worker's program there."""
        (directory / "worker.py").write_text(WORKER)

    def run(self, directory: Path, marks: Marks) -> None:
        """Start both, wait for the worker, and acknowledge its files."""
        with subprocess.Popen(["sleep", "100"]) as idle:
            subprocess.run([sys.executable, "-S", "worker.py"], cwd=directory, check=False)
            idle.kill()
        marks.ack("done")

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Find a file that is missing."""
        return ["a file is missing"] if marks and not (directory / "done-1").exists() else []


def _explored(target: type, victim: str) -> Exploration:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    return launch(subject_of(target), Options(seed="s", families=(Family.CRASH,), schedules=1, victim=victim))


@pytest.mark.parametrize("name", ["worker.py", "work*", "python*"])
def test_a_process_is_found_by_the_words_of_its_command_line(name: str) -> None:
    """The script of an interpreter is one of its names."""
    explored = _explored(Started, name)

    assert explored.verdict is Verdict.VIOLATED
    assert {found.code.partition("!")[0] for found in explored.discoveries} <= {"crash:1", "crash:2"}
    assert any(note.startswith("processes that also died alone: ") and "worker.py" in note for note in explored.notes)


def test_only_the_named_process_dies_alone() -> None:
    """One that makes no step can be named, too: what it did is missed by nobody."""
    explored = _explored(Started, "sleep")

    assert explored.verdict is Verdict.HELD
    assert explored.families[0].points > explored.steps


def test_a_forked_process_is_a_child_and_the_first_one_is_main() -> None:
    """A parent that does not look loses what its child had to do; its own death loses nothing."""
    assert _explored(parallel.Blind, "child").verdict is Verdict.VIOLATED
    assert _explored(parallel.Blind, "main").verdict is Verdict.HELD


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    """Nothing is explored in its place."""
    explored = _explored(parallel.Blind, "nobody")

    (finding,) = explored.findings
    assert finding.signature == "harness:unknown-victim"
    assert finding.text == (
        "victim must be all, each, or the name of a process; got 'nobody'. This program has 1 (main), 2 (child)"
    )
    assert not explored.families
