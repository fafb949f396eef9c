"""The files of a run's folder in its pack: copied within a budget, masked in the index."""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos.evidence import open_pack, verify, write
from pytest_chaos.evidence.limits import DEFAULT
from pytest_chaos.model.values import Scenario
from pytest_chaos.runtime.journal import Journal, RunHeader

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = msgspec.structs.replace(DEFAULT, files_max=20, files_bytes_max=3_000, file_bytes_max=2_000)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A journal whose agents have left files of every kind."""
    made = Journal(tmp_path / "journal")
    scenario = Scenario(id="01-x", title="x")
    made.create(RunHeader(run_id="r", node_id="t.py::t", scenario=scenario, seed="1", session_folder=str(tmp_path)))
    work = made.work_folder
    (work / "a.txt").write_text("order 1\npassword=hunter2hunter2\n")
    (work / "folder").mkdir()
    (work / "folder/page.bin").write_bytes(b"\x00\xff" * 300)
    (work / "large.log").write_text("x\n" * 1_500)
    (work / "link").symlink_to("/etc/passwd")
    os.mkfifo(work / "pipe")
    sqlite3.connect(work / "app.db").execute("CREATE TABLE t (a)").connection.close()
    return made


def test_every_file_is_listed_and_copied_within_the_budget(journal: Journal, tmp_path: Path) -> None:
    """Copies are byte for byte; what is too large, a link or a pipe is described alone."""
    pack = write(journal.folder, tmp_path / "pack", limits=LIMITS)
    files = {row["path"]: row for row in open_pack(pack, whole=True).files}
    assert {path: row["kind"] for path, row in files.items()} == {
        "a.txt": "file",
        "folder/page.bin": "file",
        "large.log": "file",
        "link": "link",
        "pipe": "other",
    }
    assert [path for path, row in files.items() if row["copied"]] == ["a.txt", "folder/page.bin"]
    assert (pack / "files/folder/page.bin").read_bytes() == b"\x00\xff" * 300
    assert files["folder/page.bin"]["head"].startswith("00ff")
    assert files["link"]["target"] == "/etc/passwd"
    assert not (pack / "files/link").exists()
    assert verify(pack) == []


def test_excerpts_hold_no_secret_and_copies_are_as_they_were(journal: Journal, tmp_path: Path) -> None:
    """The index is masked; the copy is the evidence, as the manifest says."""
    pack = write(journal.folder, tmp_path / "pack", limits=LIMITS)
    (excerpt,) = [row["excerpt"] for row in open_pack(pack, whole=True).files if row["path"] == "a.txt"]
    assert "order 1" in excerpt
    assert "hunter2" not in excerpt
    assert "hunter2" in (pack / "files/a.txt").read_text()


def test_what_is_left_out_is_named(journal: Journal, tmp_path: Path) -> None:
    """A budget that is over, and a listing that was cut, are problems of the pack."""
    limits = msgspec.structs.replace(LIMITS, files_max=2)
    texts = [row["text"] for row in open_pack(write(journal.folder, tmp_path / "1", limits=LIMITS)).problems]
    assert any("too large to be copied: large.log" in text for text in texts)
    texts = [row["text"] for row in open_pack(write(journal.folder, tmp_path / "2", limits=limits)).problems]
    assert any("only the first 2 files" in text for text in texts)


def test_a_pack_of_an_earlier_version_has_none(journal: Journal, tmp_path: Path) -> None:
    """A table that an earlier version did not write is empty, and no error."""
    from pytest_chaos.evidence import index, manifest

    pack = write(journal.folder, tmp_path / "pack", limits=LIMITS)
    connection = sqlite3.connect(pack / index.FILE_NAME)
    connection.execute("DROP TABLE files")
    connection.execute("ALTER TABLE agents DROP COLUMN started_order")
    connection.commit()
    connection.close()
    listed = manifest.read(pack)
    (pack / manifest.FILE_NAME).unlink()
    manifest.write(pack, listed)
    assert open_pack(pack, whole=True).files == ()
