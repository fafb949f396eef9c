"""Targets that a sceptical user brings: each comes to a sentence and a verdict, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import StepsUnavailable
from harness.explore.launch import launch, step_source
from harness.explore.result import Family
from harness.explore.session import Options
from harness.explore.target import subject_of
from harness.model import Verdict
from harness.steps.launching import launch as start
from tests.harness.explored import Careful, KillsItsParent, KillsTheExplorer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.agents.marks import Marks
    from harness.explore.result import Exploration
    from harness.model import Finding, Mark

CRASH, RECOVERY, POWER, IO = Family.CRASH, Family.RECOVERY, Family.POWER, Family.IO


@pytest.fixture(autouse=True)
def _steps() -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))


def _explore(target: object, *families: Family, tmp_path: Path, **options: Any) -> Exploration:
    chosen = Options(seed="test", families=families or tuple(Family), **options)
    return launch(subject_of(target), chosen, kept=tmp_path / "kept", progress=tmp_path / "progress.json")


def _signatures(explored: Exploration) -> set[str]:
    return {finding.signature for finding in explored.all_findings}


class OddNames(Careful):
    """Has a file whose name is no UTF-8, and whose check speaks of it."""

    odd = os.fsdecode(b"odd \xff\n\x1b[31m")

    def run(self, directory: Path, marks: Marks) -> None:
        """Write a file that can only be named by bytes."""
        (directory / self.odd).write_text("1")
        marks.ack("save", 0)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Find it missing by its name."""
        if marks and not (directory / self.odd).exists():
            yield f"{self.odd} is gone"


def test_names_that_are_no_text_are_explored(tmp_path: Path) -> None:
    """A file name is bytes: what is no UTF-8 is recorded, rebuilt and told of, and its finding can be kept."""
    explored = _explore(OddNames, CRASH, POWER, tmp_path=tmp_path)

    crash, power = explored.families
    assert crash.verdict is Verdict.HELD, explored.all_findings
    assert {found.text for found in power.discoveries} == {"odd \\xff\n\x1b[31m is gone"}
    assert (Path(power.discoveries[0].folder) / "directory").is_dir()


def test_a_process_with_no_room_for_its_last_words_still_ends(tmp_path: Path) -> None:
    """A full disk fails even the last flush; the child must end there, and not run on as a second parent."""
    here = os.getpid()
    try:
        child = start(lambda: print("x" * 100_000), tmp_path, tmp_path / "marks", Path("/dev/full"), lambda: None)
    finally:
        if os.getpid() != here:
            os._exit(77)

    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 1


class LosesFive(Careful):
    """Acknowledges five numbers and keeps none of them on the disk."""

    def run(self, directory: Path, marks: Marks) -> None:
        """Write what is never synced."""
        with (directory / "numbers").open("w") as file:
            for number in range(5):
                print(number, file=file, flush=True)
        for number in range(5):
            marks.ack("save", number)

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterable[Finding | str]:
        """Find each number that is not there."""
        path = directory / "numbers"
        found = path.read_text(errors="replace").split() if path.exists() else []
        return [f"lost {mark.key}" for mark in marks if str(mark.key) not in found]


def test_a_state_counts_once_for_a_signature(tmp_path: Path) -> None:
    """A state in which five numbers are lost is one state, and not five."""
    explored = _explore(LosesFive, POWER, tmp_path=tmp_path, models=("ext4",))

    (power,) = explored.families
    assert len(power.discoveries) == 1
    assert power.discoveries[0].states < power.states


def test_a_check_that_raises_is_told_with_the_state_that_made_it(tmp_path: Path) -> None:
    """Whoever mends the check wants to see the state: the finding names the code that builds it."""

    class Raises(Careful):
        def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
            return [(directory / "state.json").read_text()] * (len(marks) > 99)

    explored = _explore(Raises, CRASH, tmp_path=tmp_path)

    (problem,) = explored.families[0].problems
    assert explored.verdict is Verdict.INCONCLUSIVE
    assert "--state 'crash:1" in problem.text


def test_a_target_that_kills_its_parent_is_inconclusive(tmp_path: Path) -> None:
    """Its run was not seen to the end, which says nothing of what it keeps."""
    explored = _explore(KillsItsParent, tmp_path=tmp_path)

    assert _signatures(explored) == {"harness:run-not-seen"}
    assert explored.verdict is Verdict.INCONCLUSIVE


def test_a_target_that_kills_the_explorer_is_inconclusive(tmp_path: Path) -> None:
    """Who asked is another process: it learns of the end, and nothing is left."""
    base = tmp_path / "scratch"
    base.mkdir()
    explored = launch(subject_of(KillsTheExplorer), Options(seed="s"), base=base)

    assert _signatures(explored) == {"harness:explorer-killed"}
    assert explored.verdict is Verdict.INCONCLUSIVE
    assert list(base.iterdir()) == []
