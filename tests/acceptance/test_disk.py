"""A disk that is full, or a folder that cannot be written:
one sentence, and the evidence is kept where it fits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.evidence import open_pack, records, verify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_chaos.model.values import RunRecord

SCENARIO = """
import pytest

@pytest.mark.chaos(id="talks", title="Too much to keep")
def test_talks(chaos):
    chaos.spawn(["sh", "-c", "yes hello | head -c 300000"], name="talker").wait_exit()
    chaos.expect("x", observed=1, holds=False)
"""
QUIET = ("-p", "no:randomly", "-p", "no:cacheprovider", "--chaos-confirm=0")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system with room for records and not for a pack."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "chaos-test", str(folder)]
    if shutil.which("mount") is None or os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write a file until its disk is full."""
    path.touch()
    with pytest.raises(OSError, match="No space"):
        path.write_bytes(b"x" * 100_000)


def only_record(results: Path) -> RunRecord:
    """Return the one record of a session."""
    (run,) = records.read(results).runs
    return run


def test_evidence_that_finds_no_room_is_kept_elsewhere(
    pytester: pytest.Pytester, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pack goes to the folder for temporary files,
    and the line that repeats the run leads there.
    """
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    pytester.makepyfile(SCENARIO)
    result = pytester.runpytest_subprocess(*QUIET, f"--chaos-results={small_disk}")
    assert result.ret == 1
    (pack,) = tmp_path.glob("chaos-evidence-*/*")
    said = f"*evidence pack {small_disk}/* could not be written (No space left on device). *; it is in {pack} for now"
    result.stdout.fnmatch_lines([said, f"VIOLATED *::test_talks: chaos replay {pack}"])
    assert verify(pack) == []
    assert open_pack(pack).reproduce == only_record(small_disk).reproduce == f"chaos replay {pack}"


def test_evidence_that_finds_no_room_anywhere_leaves_the_seed(
    pytester: pytest.Pytester, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record is kept, says what was lost, and names the run by its seed; no half pack stays."""
    monkeypatch.setenv("TMPDIR", str(small_disk))
    pytester.makepyfile(SCENARIO)
    result = pytester.runpytest_subprocess(*QUIET, f"--chaos-results={small_disk}", "--chaos-seed=kept")
    assert result.ret == 1
    run = only_record(small_disk)
    assert run.evidence == ""
    assert run.reproduce == f"pytest {run.node_id} --chaos-seed=kept"
    assert len(run.notes["evidence_problems"]) == 2
    assert list(small_disk.glob("**/manifest.json")) == []
    assert "Traceback" not in result.stdout.str()


def test_a_disk_without_any_room_is_told(pytester: pytest.Pytester, small_disk: Path) -> None:
    """Where not even a record fits, the run is judged all the same and the exit is not green."""
    pytester.makepyfile("def test_x(chaos):\n    chaos.expect('x', observed=1, holds=True)\n")
    fill(small_disk / "filler")
    result = pytester.runpytest_subprocess(*QUIET, f"--chaos-results={small_disk / 'results'}")
    assert result.ret == 1
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["chaos: the results folder * cannot be written (No space left*--chaos-results=DIR"])


@pytest.mark.parametrize("full", [True, False], ids=["a full disk", "a file"])
def test_a_scratch_folder_that_cannot_be_used_is_one_sentence(
    pytester: pytest.Pytester, small_disk: Path, *, full: bool
) -> None:
    """The run is INCONCLUSIVE, and what to do is said without a traceback."""
    pytester.makepyfile("def test_x(chaos):\n    chaos.expect('x', observed=1, holds=True)\n")
    filler = small_disk / "filler"
    fill(filler)
    folder = small_disk if full else filler
    result = pytester.runpytest_subprocess(*QUIET, f"--chaos-scratch={folder}")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"*scratch folder {folder}*--chaos-scratch=DIR*"])
    assert "Error" not in result.stdout.str().partition("chaos matrix")[0]
    result.stdout.fnmatch_lines(["*1 inconclusive in*"])
