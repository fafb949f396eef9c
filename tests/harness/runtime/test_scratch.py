"""Each pytest process has a folder of its own, told by its owner, and none stays when its owner is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import evidence
from pytest_chaos.errors import UsageError
from pytest_chaos.evidence import records
from pytest_chaos.model.values import Scenario, Verdict
from pytest_chaos.runtime import processes, scratch
from pytest_chaos.runtime.journal import Journal, RunHeader

if TYPE_CHECKING:
    from pytest_chaos.runtime.processes import Process


def me() -> Process:
    """Return this process."""
    here = processes.read(os.getpid())
    assert here is not None
    return here


def folder_of_a_dead_owner(base: Path) -> Path:
    """Return a folder whose owner was a real process that has ended."""
    script = (
        "import sys, pathlib; from pytest_chaos.runtime import scratch;print(scratch.create(pathlib.Path(sys.argv[1])))"
    )
    made = subprocess.run([sys.executable, "-c", script, str(base)], check=True, capture_output=True, text=True)
    return Path(made.stdout.strip())


def begin_run(folder: Path, results: Path, *, worker: str = "", name: str = "run-1") -> Journal:
    """Write the journal of a run that was cut short."""
    journal = Journal(folder / name)
    journal.create(
        RunHeader(
            run_id=name,
            node_id="test_it.py::test_it",
            scenario=Scenario(id="97-cut-short", title="Cut short"),
            seed="seed",
            session_folder=str(results / "sessions" / "dead"),
            started="2026-01-01T00:00:00+00:00",
            worker=worker,
        )
    )
    journal.marks_path.write_bytes(b'\n{"kind":"ack","operation":"put","key":1,"agent":"writer","pid":1}\n')
    return journal


def test_a_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    """Its name has the owner's pid and start time, and nobody else can look into it."""
    folder = scratch.create(tmp_path)
    assert folder.parent == scratch.home(tmp_path)
    assert folder.name.startswith(f"session-{os.getpid()}-{me().start_ticks}-")
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
    assert scratch.create(tmp_path) != folder


def test_the_last_session_removes_the_home_of_all(tmp_path: Path) -> None:
    """An empty home goes with the last folder in it, and comes back with the next."""
    first, second = scratch.create(tmp_path), scratch.create(tmp_path)
    (first / "deep" / "er").mkdir(parents=True)
    scratch.remove(first)
    assert list(tmp_path.rglob("*")) == [second.parent, second]
    scratch.remove(second)
    assert list(tmp_path.iterdir()) == []
    assert scratch.create(tmp_path).is_dir()


def test_removing_a_folder_leaves_other_homes_alone(tmp_path: Path) -> None:
    """Only a home of ours is removed when it is empty, never the folder of somebody else."""
    (tmp_path / "theirs" / "folder").mkdir(parents=True)
    scratch.remove(tmp_path / "theirs" / "folder")
    assert list(tmp_path.iterdir()) == [tmp_path / "theirs"]


def test_many_sessions_come_and_go_at_once(tmp_path: Path) -> None:
    """While others remove the home, a folder can be made in it all the same."""
    script = (
        "import sys; from pathlib import Path; from pytest_chaos.runtime import scratch\n"
        "for _ in range(500):\n    folder = scratch.create(Path(sys.argv[1]))\n    assert folder.is_dir()\n"
        "    scratch.remove(folder)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(30) for process in running] == [0] * 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("base", ["/proc/nowhere", "/dev/null/x"])
def test_a_base_that_cannot_be_written_is_named(base: str) -> None:
    """The error says which option gives another."""
    with pytest.raises(UsageError, match=f"the scratch folder {base} must be writable; .*--chaos-scratch=DIR"):
        scratch.create(Path(base))


def test_a_home_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    """Who made the folder before us could read and change what is in it."""
    scratch.home(tmp_path).mkdir()
    try:
        os.chown(scratch.home(tmp_path), 12345, -1)
    except PermissionError:
        pytest.skip("only root can give a folder to somebody else")
    with pytest.raises(UsageError, match="must belong to this user"):
        scratch.create(tmp_path)


def test_a_sweep_saves_what_a_dead_owner_left(tmp_path: Path) -> None:
    """The evidence of each run is packed, its record is written where nobody else can, and the folder goes."""
    results = tmp_path / "results"
    folder = folder_of_a_dead_owner(tmp_path)
    begin_run(folder, results)
    begin_run(folder, results, worker="gw0", name="run-2")
    assert scratch.sweep(tmp_path) == [folder]
    assert not folder.parent.exists()
    packs = sorted((results / "sessions" / "dead" / "evidence").iterdir())
    assert [(pack.name, evidence.verify(pack)) for pack in packs] == [("run-1", []), ("run-2", [])]
    found = records.read(results)
    assert found.header.session == "dead"
    assert [(run.run_id, run.verdict, run.evidence) for run in found.runs] == [
        ("run-1", Verdict.INCONCLUSIVE, "evidence/run-1")
    ]


def test_a_sweep_that_comes_again_adds_nothing(tmp_path: Path) -> None:
    """Evidence and record that the guardian saved already are not made a second time."""
    results = tmp_path / "results"
    for _ in range(2):
        begin_run(folder_of_a_dead_owner(tmp_path), results)
        assert len(scratch.sweep(tmp_path)) == 1
    assert len(records.read(results).runs) == 1
    assert len(list((results / "sessions" / "dead" / "evidence").iterdir())) == 1


def test_a_record_follows_those_that_the_session_wrote(tmp_path: Path) -> None:
    """The session's own lines stay, and one that its end cut off is taken back."""
    results = tmp_path / "results"
    begin_run(folder_of_a_dead_owner(tmp_path), results, name="run-1")
    scratch.sweep(tmp_path)
    with (results / "latest" / records.FILE_NAME).open("a") as lines:
        lines.write('{"scenario":{"id":"01","ti')
    begin_run(folder_of_a_dead_owner(tmp_path), results, name="run-2")
    scratch.sweep(tmp_path)
    assert [run.run_id for run in records.read(results).runs] == ["run-1", "run-2"]


def test_a_sweep_leaves_what_is_in_use(tmp_path: Path) -> None:
    """A folder whose owner lives, or whose guardian is still at work, and anything that is not ours, stay."""
    mine = scratch.create(tmp_path)
    guarded = folder_of_a_dead_owner(tmp_path)
    scratch.claim(guarded, me())
    (scratch.home(tmp_path) / "something else").mkdir()
    assert scratch.sweep(tmp_path) == []
    assert mine.is_dir()
    assert guarded.is_dir()
    scratch.claim(guarded, me()._replace(start_ticks=me().start_ticks - 1))
    assert scratch.sweep(tmp_path) == [guarded]
    assert (scratch.home(tmp_path) / "something else").is_dir()


def test_a_sweep_survives_what_cannot_be_saved(tmp_path: Path) -> None:
    """A results folder in the way, or a header that is no JSON, does not keep a new session from starting."""
    (tmp_path / "results").write_text("a file")
    folder = folder_of_a_dead_owner(tmp_path)
    begin_run(folder, tmp_path / "results")
    (begin_run(folder, tmp_path / "results", name="broken").folder / "run.json").write_text("{")
    assert scratch.sweep(tmp_path) == [folder]


def test_nothing_to_sweep_is_no_error(tmp_path: Path) -> None:
    """The first session of all finds no home."""
    assert scratch.sweep(tmp_path / "nowhere") == []


def test_runs_under_way_are_those_of_the_session(tmp_path: Path) -> None:
    """The controller of xdist waits for the evidence of its own runs alone."""
    begin_run(scratch.create(tmp_path), tmp_path / "results")
    assert scratch.runs_under_way(tmp_path, tmp_path / "results" / "sessions" / "dead") == {"test_it.py::test_it"}
    assert scratch.runs_under_way(tmp_path, tmp_path / "results" / "sessions" / "other") == set()
