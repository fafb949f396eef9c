"""Faults that cost a run each are tried at representatives of each call site first."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.families.sites import SitedFaults, settle
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Exploration, Family
from pytest_chaos.explore.target import CommandSubject, subject_of
from pytest_chaos.model.values import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

ROUNDS = 40


class Rounds:
    """Writes many records in a loop that looks for errors, and a last one that does not look."""

    name = "rounds"

    def run(self, directory: Path, marks: Marks) -> None:
        """Write the records, and the last one."""
        file = os.open(directory / "log", os.O_WRONLY | os.O_CREAT)
        for number in range(ROUNDS):
            record = b"%03d\n" % number
            if os.write(file, record) != len(record):
                raise SystemExit(1)
        self.end(file)
        marks.ack("end")

    def end(self, file: int) -> None:
        """Write the last record, and take it that this works."""
        try:
            os.write(file, b"end\n")
        except OSError:
            return

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Find a last record that is lost."""
        return [] if not marks or (directory / "log").read_bytes().endswith(b"end\n") else ["the end is lost"]


class LooksAtTheEnd(Rounds):
    """The same, and the last record is looked at, too."""

    def end(self, file: int) -> None:
        """Write the last record whole."""
        if os.write(file, b"end\n") != 4:
            raise SystemExit(1)


def _explored(target: Any, io_runs: int) -> Exploration:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    return launch(subject_of(target), Options(seed="s", families=(Family.IO,), io_runs=io_runs))


def test_each_line_has_its_representatives() -> None:
    """Of some 200 errors 17 are made, and the one line that does not look is found."""
    explored = _explored(Rounds, 17)

    assert explored.verdict is Verdict.VIOLATED
    assert {found.step for found in explored.discoveries} == {ROUNDS + 2}
    assert explored.families[0].coverage == "17 of 207 I/O errors (sampled), at 3 of 3 call sites"
    assert _explored(LooksAtTheEnd, 17).verdict is Verdict.HELD


def test_a_command_has_call_sites_without_lines() -> None:
    """Call and kind of path decide: the numbers of files make no difference."""
    words = ["sh", "-c", "for n in $(seq 20); do echo x > f$n; done"]
    explored = _explored(CommandSubject(words, ["true"]), 14)

    assert explored.verdict is Verdict.HELD
    assert explored.families[0].coverage == "14 of 140 I/O errors (sampled), at 2 of 2 call sites"


@pytest.mark.parametrize(
    ("tried", "hangs", "is_complete"), [((0, 1), False, True), ((0, 2), False, False), ((0, 1, 2), True, False)]
)
def test_a_budget_that_ends_after_the_representatives_decides(
    tried: Sequence[int], *, hangs: bool, is_complete: bool
) -> None:
    """Then the sample is smaller. Before that, or after hangs, nothing is decided."""
    found: Any = SimpleNamespace(is_complete=False, is_hanging=hangs, is_sampled=False)
    settle(found, SitedFaults(["a", "b", "c"], ["one", "two", "one"], 2), tried)

    assert (found.is_complete, found.is_sampled) == (is_complete, is_complete)
    assert (found.sites, found.sites_total) == (len({"one", "two"} if 1 in tried else {"one"}), 2)
