"""Lease files: one holder, and stale ones are reclaimed once, by whoever comes first."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from durable_agents import LeaseFile
from durable_agents.errors import InvalidSetting
from durable_agents.jobs.lease_files import reclaim, reclaim_all_stale_leases
from durable_agents.processes import start_of

if TYPE_CHECKING:
    from pathlib import Path

_TAKER = """
import sys
from durable_agents import LeaseFile
lease = LeaseFile(sys.argv[1], "merge")
sys.stdin.readline()
print(lease.acquire(), flush=True)
sys.stdin.readline()
"""


def takers(folder: Path, count: int) -> list[subprocess.Popen[str]]:
    """Start processes that take the lease when they are told,
    and hold it until their input ends.
    """
    command = [sys.executable, "-c", _TAKER, str(folder)]
    return [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)]


def go(taker: subprocess.Popen[str]) -> None:
    """Let a taker begin."""
    assert taker.stdin is not None
    taker.stdin.write("go\n")
    taker.stdin.flush()


def answer(taker: subprocess.Popen[str]) -> str:
    """Return whether it has the lease."""
    assert taker.stdout is not None
    return taker.stdout.readline().strip()


def test_a_lease_is_held_by_one(tmp_path: Path) -> None:
    """A second one waits for nothing and is told no; after the release it may."""
    with LeaseFile(tmp_path, "merge") as first, LeaseFile(tmp_path, "merge") as second:
        assert (first.held, second.held, first.acquire()) == (True, False, True)
    with LeaseFile(tmp_path, "merge") as third:
        assert third.held
    assert list(tmp_path.iterdir()) == []


def test_a_start_without_leases_reclaims_none(tmp_path: Path) -> None:
    """No file and no folder: 0, and no error."""
    assert reclaim_all_stale_leases(tmp_path) == 0
    assert reclaim_all_stale_leases(tmp_path / "missing") == 0


def test_leases_of_the_dead_are_reclaimed_and_others_stay(tmp_path: Path) -> None:
    """A killed holder's goes; a living one's, a damaged one and files of other names stay."""
    (taker,) = takers(tmp_path, 1)
    go(taker)
    assert answer(taker) == "True"
    taker.kill()
    taker.communicate()
    (tmp_path / "damaged.lease").write_text("{")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "reused.lease").write_text(f'{{"pid": {os.getpid()}, "process_start": "another"}}')
    with LeaseFile(tmp_path, "mine") as mine:
        assert mine.held
        assert reclaim_all_stale_leases(tmp_path) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.lease", "mine.lease", "notes.txt"]


def test_of_many_who_find_a_stale_lease_one_gets_it(tmp_path: Path) -> None:
    """Eight processes at once: one holds it, and none removes the file of the winner."""
    (tmp_path / "merge.lease").write_text('{"pid": 0, "process_start": ""}')
    rivals = takers(tmp_path, 8)
    for rival in rivals:
        go(rival)
    assert sorted(answer(rival) for rival in rivals) == ["False"] * 7 + ["True"]
    assert reclaim(tmp_path / "merge.lease") is False
    for rival in rivals:
        rival.communicate("\n", timeout=60)
    assert reclaim_all_stale_leases(tmp_path) == 1


def test_a_folder_in_the_way_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read is left with a warning, and the rest is reclaimed."""
    (tmp_path / "a.lease").mkdir()
    (tmp_path / "b.lease").symlink_to("/etc/passwd")
    (tmp_path / "c.lease").write_text('{"pid": 1, "process_start": "another"}')
    assert reclaim_all_stale_leases(tmp_path) == 1
    assert "a.lease was left" in caplog.text
    assert start_of(os.getpid()) is not None


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "a\0b"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    """A lease's name is a file name."""
    with pytest.raises(InvalidSetting):
        LeaseFile(tmp_path, name)
