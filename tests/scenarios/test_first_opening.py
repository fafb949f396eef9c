"""The very first opening of the recovery core's database, killed at every step;
exploring it found a store bricked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_chaos.explore.launch import launch
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Verdict

from scenarios.targets.checkpoints import Checkpoints

if TYPE_CHECKING:
    from pathlib import Path


def test_a_database_whose_making_was_killed_can_be_opened(tmp_path: Path) -> None:
    """At every step of the first opening a real kill leaves something that the next opening can go
    on from.
    """
    explored = launch(
        subject_of(Checkpoints(count=1, first=True)), Options(seed="first", families=(Family.CRASH,), kept=tmp_path)
    )

    assert explored.verdict is Verdict.HELD, explored.all_findings
