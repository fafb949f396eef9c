"""The fixture ``explore`` in a project of a user:
verdicts, the matrix, the evidence pack and the replay.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.evidence import records
from pytest_chaos.explore.launch import step_source
from pytest_chaos.model.values import RunRecord, Verdict

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = """
import json
import os
import pytest

class InPlace:
    name = "in place"

    def run(self, directory, marks):
        for number in range(1, 4):
            marks.intent("save", number)
            self.save(directory / "state.json", json.dumps({"number": number}))
            marks.ack("save", number)

    def save(self, path, text):
        path.write_text(text)

    def check(self, directory, marks):
        path = directory / "state.json"
        try:
            found = json.loads(path.read_text())["number"] if path.exists() else 0
        except ValueError:
            return ["unreadable"]
        acknowledged = [mark.key for mark in marks if mark.kind == "ack"]
        return ["lost"] if acknowledged and found < acknowledged[-1] else []

class Synced(InPlace):
    name = "synced"

    def save(self, path, text):
        fresh = path.with_name("fresh")
        with fresh.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def recover(self, directory):
        (directory / "started").touch()

@pytest.mark.chaos(id="60-synced", title="A synced file survives")
def test_synced(explore):
    explore(Synced)

@pytest.mark.chaos(id="61-in-place", title="A file in place survives")
def test_in_place(explore):
    explore(InPlace, faults=("crash", "power"), model="strict")

@pytest.mark.chaos(id="63-sampled", title="A sample of a synced file survives")
def test_sampled(explore):
    explore(Synced, faults=("recovery", "io"), recoveries=2, io_runs=3)

@pytest.mark.chaos(id="62-known", title="It is known what a file in place does")
def test_known(chaos, explore):
    explored = explore(InPlace, faults=("crash",), judge=False)
    found = [each.signature for each in explored.discoveries]
    chaos.expect("what a crash leaves", observed=found, holds=found == ["check:unreadable"])
"""

INTERRUPTED = """
import os, pathlib, signal
import pytest

WHO = os.getpid()

class Interrupts:
    def run(self, directory, marks):
        (directory / "file").write_text("1")

    def check(self, directory, marks):
        if not (directory / "file").exists():
            os.kill(WHO, signal.SIGINT)
        return []

@pytest.mark.chaos(id="70-first", title="It is interrupted")
def test_first(explore):
    explore(Interrupts)

@pytest.mark.chaos(id="71-second", title="It is not run")
def test_second():
    pathlib.Path("second").touch()
"""


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module", params=["alone", "xdist"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose scenarios were run, in one process and in two workers."""
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("project")
    (folder / "test_mine.py").write_text(PROJECT)
    done = _run(folder, "--chaos-confirm=0", *(["-n2"] if request.param == "xdist" else []))
    assert done.returncode == 1, done.stdout + done.stderr
    return folder


def _record(folder: Path, scenario: str) -> RunRecord:
    runs = records.read(folder / "chaos-results" / "latest").runs
    return next(run for run in runs if run.scenario.id == scenario)


def test_verdicts_are_those_of_the_explorations(session: Path) -> None:
    """A sound target holds, another is violated, and a test may expect a violation."""
    verdicts = [_record(session, each).verdict for each in ("60-synced", "61-in-place", "62-known")]

    assert verdicts == [Verdict.HELD, Verdict.VIOLATED, Verdict.HELD]


def test_receipts_and_assertions_have_the_coverage(session: Path) -> None:
    """What was covered is a number in the record: a receipt and a key assertion for each family of
    faults.
    """
    held = _record(session, "60-synced")

    assert [receipt.kind for receipt in held.receipts] == [
        "explore:crash", "explore:recovery", "explore:power", "explore:io"
    ]  # fmt: skip
    assert all(receipt.fired for receipt in held.receipts)
    assert held.assertions[0].observed.endswith("crash points")
    assert "power-loss states" in held.assertions[2].observed
    (note,) = [value for name, value in held.notes.items() if name.startswith("exploration")]
    assert note["coverage"].startswith(held.assertions[0].observed)


@pytest.mark.parametrize("name", ["matrix.md", "matrix.html", "matrix.json"])
def test_reports_have_the_coverage(session: Path, name: str) -> None:
    """Every format of the matrix tells how many crash points and power-loss states there were."""
    text = (session / "chaos-results" / "latest" / name).read_text()

    assert _record(session, "60-synced").assertions[0].observed in text
    assert "power-loss states" in text
    recoveries, errors = [assertion.observed for assertion in _record(session, "63-sampled").assertions]
    assert "2 of 10 recoveries (sampled)" in recoveries
    assert errors.endswith("I/O errors (sampled)")
    assert recoveries in text
    assert errors in text


def test_the_pack_has_recording_state_and_reproduction(session: Path) -> None:
    """What is needed to see the failure again is in the pack, which is as its manifest says."""
    run = _record(session, "61-in-place")
    pack = session / "chaos-results" / "latest" / run.evidence
    attached = pack / "attachments" / "exploration-1"
    manifest: Any = json.loads((pack / "manifest.json").read_text())

    assert (attached / "recording" / "recording.msgpack").stat().st_size > 0
    assert (attached / "crash-2" / "directory" / "state.json").read_bytes() == b""
    assert "confirmed by a real kill: killed before step 2" in (attached / "crash-2.txt").read_text()
    assert "attachments/exploration-1/crash-2.txt" in {entry["path"] for entry in manifest["files"]}
    assert _chaos(session, "evidence", "verify", str(pack)).returncode == 0


def test_the_reproduction_in_the_pack_works_as_it_stands(session: Path) -> None:
    """It names a place in the pack, and a command that shows this one state again;
    ``evidence show`` prints both.
    """
    run = _record(session, "61-in-place")
    pack = session / "chaos-results" / "latest" / run.evidence
    text = (pack / "attachments" / "exploration-1" / "crash-2.txt").read_text()
    named = next(line.partition(": ")[2] for line in text.splitlines() if line.startswith("  the state: "))
    again = next(line.partition(": ")[2] for line in text.splitlines() if line.startswith("  again: "))

    assert (pack / named / "directory" / "state.json").exists()
    assert again in _chaos(session, "evidence", "show", str(pack)).stdout
    done = _chaos(session, *shlex.split(again)[1:])
    assert (done.returncode, "[check:unreadable]" in done.stdout) == (1, True), done.stdout + done.stderr


def test_ctrl_c_ends_the_session_and_not_only_the_test(session: Path, tmp_path: Path) -> None:
    """An exploration that is interrupted is recorded with what it has, and no other test begins."""
    (tmp_path / "test_two.py").write_text(INTERRUPTED)
    done = _run(tmp_path, "-m", "chaos", "--chaos-confirm=0")

    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert "KeyboardInterrupt" in done.stdout
    assert not (tmp_path / "second").exists()


def test_a_replay_explores_again(session: Path) -> None:
    """``chaos replay`` of the pack finds the same."""
    run = _record(session, "61-in-place")
    pack = session / "chaos-results" / "latest" / run.evidence
    done = _chaos(session, "replay", str(pack), "--results", "again", "--", "-p", "no:xdist")

    assert done.returncode == 1, done.stdout + done.stderr
    (again,) = records.read(session / "again" / "latest").runs
    assert {each.signature for each in again.findings} == {each.signature for each in run.findings}


def _chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pytest_chaos.cli.main import main; main()", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
