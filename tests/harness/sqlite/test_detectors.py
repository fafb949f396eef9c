"""Each detector finds its planted program, names both parties, and is silent about the twin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.sqlite import programs
from tests.harness.sqlite.watching import watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("program", programs.PLANTED, ids=lambda program: program.__name__)
def test_a_planted_program_is_found_by_name(program: Callable[[], None], tmp_path: Path) -> None:
    """The finding has the kind, the line of who did it, and that of the other one."""
    kind, *parties = programs.PLANTED[program]
    found = watched(program, tmp_path).findings
    (finding,) = [each for each in found if each.signature.startswith(f"sqlite:{kind}:state.db")]
    assert all(party in finding.text for party in parties), finding.text
    assert "programs.py:" in finding.text
    assert finding.kind == "safety"


@pytest.mark.parametrize("program", programs.SOUND, ids=lambda program: program.__name__)
def test_a_sound_program_is_left_alone(program: Callable[[], None], tmp_path: Path) -> None:
    """It does nearly the same, and nothing is found of any kind."""
    judged = watched(program, tmp_path)
    assert judged.findings == ()
    assert judged.databases


def test_what_follows_a_lost_lock_is_counted(tmp_path: Path) -> None:
    """The writes of the process that has no lock any more, up to its end."""
    (finding,) = watched(programs.peeks, tmp_path).findings
    assert finding.text.endswith("; 4 writes followed without it")
    assert "holds SHARED on it" in finding.text
