"""Each pytest process has a folder of its own, told by its owner,
and none stays when its owner is gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos import evidence
from pytest_chaos.errors import UsageError
from pytest_chaos.evidence import records
from pytest_chaos.model.values import Scenario, Verdict
from pytest_chaos.runtime import owner, processes, scratch
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
    assert sorted(tmp_path.rglob("*")) == [second.parent, second, second / owner.FILE]
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
        "for _ in range(200):\n    folder = scratch.create(Path(sys.argv[1]))\n    assert folder.is_dir()\n"
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
    """The evidence of each run is packed, its record is written where nobody else can,
    and the folder goes.
    """
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
    """A folder that any process has locked, and anything that is not ours, stay."""
    mine = scratch.create(tmp_path)
    guarded = folder_of_a_dead_owner(tmp_path)
    owner.hold(guarded)
    (scratch.home(tmp_path) / "something else").mkdir()
    assert scratch.sweep(tmp_path) == []
    assert mine.is_dir()
    assert guarded.is_dir()
    owner.release(guarded)
    assert scratch.sweep(tmp_path) == [guarded]
    assert (scratch.home(tmp_path) / "something else").is_dir()


def test_an_owner_is_not_judged_by_its_pid(tmp_path: Path) -> None:
    """Where nobody has the pid in a folder's name, as in another container,
    the lock alone decides.
    """
    folder = scratch.create(tmp_path)
    elsewhere = folder.with_name("session-4194304-1-0a0a0a0a")  # a pid that the kernel gives to nobody
    folder.rename(elsewhere)
    begin_run(elsewhere, tmp_path / "results")
    assert scratch.sweep(tmp_path) == []
    owner.release(folder)
    assert scratch.sweep(tmp_path) == [elsewhere]


def test_the_owner_file_says_who_made_the_folder(tmp_path: Path) -> None:
    """Pid, PID namespace and boot: what a person needs to find the owner of a folder."""
    said = json.loads((scratch.create(tmp_path) / owner.FILE).read_text())
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert said == {
        "pid": os.getpid(),
        "pid_namespace": Path("/proc/self/ns/pid").stat().st_ino,
        "boot_id": boot,
    }


def test_a_fork_that_is_left_behind_owns_nothing(tmp_path: Path) -> None:
    """A daemon that a dead owner has forked does not keep the folder in use."""
    script = (
        "import os, sys, pathlib, signal; from pytest_chaos.runtime import scratch\n"
        "folder = scratch.create(pathlib.Path(sys.argv[1]))\npid = os.fork()\n"
        "if pid == 0:\n    os.close(1); os.close(2); signal.pause()\nprint(folder, pid)"
    )
    made = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    folder, pid = made.stdout.split()
    try:
        assert scratch.sweep(tmp_path) == [Path(folder)]
    finally:
        os.kill(int(pid), signal.SIGKILL)


def test_what_a_killed_make_or_removal_left_goes(tmp_path: Path) -> None:
    """Before a folder has its name, and after its content went, it may be left without an owner."""
    home = scratch.home(tmp_path)
    empty = home / ".session-1-1-aaaaaaaa"
    empty.mkdir(parents=True)
    staged = home / ".session-1-1-bbbbbbbb"
    staged.mkdir()
    (staged / owner.FILE).touch()
    unknown = home / "session-1-1-cccccccc"
    unknown.mkdir()
    (unknown / "a file").touch()
    scratch.sweep(tmp_path)
    assert list(home.iterdir()) == [unknown]


def test_a_home_of_somebody_else_is_not_swept(tmp_path: Path) -> None:
    """A link in its place, or a folder of another user,
    could name any folder for removal and any for evidence.
    """
    folder = folder_of_a_dead_owner(tmp_path / "other")
    scratch.home(tmp_path).symlink_to(scratch.home(tmp_path / "other"))
    assert scratch.sweep(tmp_path) == []
    assert folder.is_dir()


def test_a_sweep_survives_what_cannot_be_saved(tmp_path: Path) -> None:
    """A results folder in the way, or a header that is no JSON,
    does not keep a new session from starting.
    """
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
