"""A pack that is not as it was written is noticed, and opening one runs nothing from it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.errors import EvidenceError
from pytest_chaos.evidence import open_pack, verify, write
from pytest_chaos.evidence.manifest import inside
from pytest_chaos.model.values import Scenario
from pytest_chaos.runtime.journal import Journal, RunHeader

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A small whole pack."""
    journal = Journal(tmp_path / "journal")
    scenario = Scenario(id="01-x", title="x")
    journal.create(RunHeader(run_id="r", node_id="t.py::t", scenario=scenario, seed="1", session_folder=str(tmp_path)))
    (journal.output_folder / "a.log").write_text("hello\n")
    return write(journal.folder, tmp_path / "pack")


def edit_manifest(pack: Path, **fields: Any) -> None:
    """Change fields of the manifest."""
    path = pack / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_whole_pack_has_no_problems(pack: Path) -> None:
    """What was just written verifies, and opens."""
    assert verify(pack) == []
    assert open_pack(pack).run_id == "r"


def test_opening_and_verifying_change_nothing(pack: Path) -> None:
    """Looking at a pack leaves no file and no change behind."""
    before = {path: path.stat().st_mtime_ns for path in pack.rglob("*")}
    open_pack(pack)
    verify(pack)
    assert {path: path.stat().st_mtime_ns for path in pack.rglob("*")} == before


def test_missing_changed_and_added_files_are_named(pack: Path) -> None:
    """Each way of not being as written is one sentence with the file's name."""
    (pack / "failure.txt").unlink()
    (pack / "agents/a.log").write_text("HELLO\n")
    (pack / "marks.jsonl").write_text("more")
    (pack / "agents/extra").touch()
    problems = verify(pack)
    assert len(problems) == 4
    assert any("'failure.txt' is missing" in text for text in problems)
    assert any("'agents/a.log' has changed" in text for text in problems)
    assert any("'marks.jsonl' has 4 bytes" in text for text in problems)
    assert any("'agents/extra' is not in the manifest" in text for text in problems)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "agents/../../x", "", ".", "a//b", "./a", "a\0b"])
def test_a_path_that_leaves_the_pack_is_refused_unread(pack: Path, name: str) -> None:
    """A manifest that names files elsewhere was edited; nothing outside is opened for it."""
    assert not inside(name)
    entry = {"path": name, "size_bytes": 0, "sha256": ""}
    edit_manifest(pack, files=[entry])
    assert any("not a path inside a pack" in text for text in verify(pack))


def test_links_in_a_pack_are_not_followed(pack: Path, tmp_path: Path) -> None:
    """A file or folder that was replaced by a link is named, even when the content would match."""
    (pack / "agents").rename(tmp_path / "agents")
    (pack / "agents").symlink_to(tmp_path / "agents")
    (pack / "failure.txt").rename(tmp_path / "failure.txt")
    (pack / "failure.txt").symlink_to(tmp_path / "failure.txt")
    problems = verify(pack)
    assert any("'agents/a.log' is not a file but a link" in text for text in problems)
    assert any("'failure.txt' is not a file but a link" in text for text in problems)
    assert any("'agents' is not in the manifest" in text for text in problems)


def test_a_newer_format_says_to_upgrade(pack: Path) -> None:
    """A pack of a later version is refused by its format, whatever else is in its manifest."""
    edit_manifest(pack, format=99, files="something new")
    with pytest.raises(EvidenceError, match=r"newer format than 1.*Upgrade pytest-chaos"):
        open_pack(pack)
    assert "newer format" in verify(pack)[0]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": "one"}', b"\xff\xfe", b'{"format": 1, "files": [3]}']
)
def test_a_damaged_manifest_is_one_sentence(pack: Path, content: bytes) -> None:
    """Rubbish instead of a manifest is told, not raised as what the parser said."""
    (pack / "manifest.json").write_bytes(content)
    with pytest.raises(EvidenceError, match="cannot be read as a manifest"):
        open_pack(pack)
    assert len(verify(pack)) == 1


def test_what_is_no_pack_says_what_to_give(tmp_path: Path) -> None:
    """An ordinary folder, a missing one and a file are no packs."""
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(EvidenceError, match=r"must be an evidence pack; .* Give the folder"):
            open_pack(path)
        assert len(verify(path)) == 1


def test_an_index_that_was_changed_is_not_opened(pack: Path) -> None:
    """The index is checked before SQLite sees it."""
    with closing(sqlite3.connect(pack / "evidence.sqlite")) as connection:
        connection.execute("UPDATE run SET node_id = 'evil.py::t'")
        connection.commit()
    with pytest.raises(EvidenceError, match=r"cannot be trusted: 'evidence.sqlite' has changed"):
        open_pack(pack)


def test_an_index_of_another_shape_is_one_sentence(pack: Path) -> None:
    """A database that matches its manifest but is no index is refused without a traceback."""
    import hashlib

    (pack / "evidence.sqlite").unlink()
    with closing(sqlite3.connect(pack / "evidence.sqlite")) as connection:
        connection.execute("CREATE TABLE run (x)")
    content = (pack / "evidence.sqlite").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    edit_manifest(pack, files=[{"path": "evidence.sqlite", "size_bytes": len(content), "sha256": digest}])
    with pytest.raises(EvidenceError, match="must be the index of an evidence pack"):
        open_pack(pack)


def test_a_file_that_is_listed_twice_is_named(pack: Path) -> None:
    """Two entries of one name cannot both be right."""
    files = json.loads((pack / "manifest.json").read_text())["files"]
    edit_manifest(pack, files=[*files, files[0]])
    assert any("listed 2 times" in text for text in verify(pack))


def edit_index(pack: Path, script: str) -> None:
    """Change the index of a pack, and its manifest with it, as whoever made up a pack would."""
    path = pack / "evidence.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    listed = json.loads((pack / "manifest.json").read_text())
    content = path.read_bytes()
    for entry in listed["files"]:
        if entry["path"] == path.name:
            entry |= {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(pack, files=listed["files"])


ENDLESS = (
    "DROP TABLE {0}; CREATE VIEW {0} AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT * FROM n"
)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (ENDLESS.format("run"), "the view 'run', where only plain tables"),
        (ENDLESS.format("marks"), "the view 'marks', where only plain"),
        ("DROP TABLE faults; CREATE VIRTUAL TABLE faults USING fts5(kind)", "where only plain tables"),
        ("UPDATE run SET iteration = 9223372036854775807", "iteration 9223372036854775807, which must be 0 to 99999"),
        ("UPDATE run SET iteration = '99999999999999999999'", "which must be 0 to 99999"),
        ("UPDATE run SET node_id = x'ff'", "node_id b'\\xff', which must be a text"),
        ("DELETE FROM run", "must be the index of an evidence pack"),
        ("UPDATE run SET plan = '{\"seed\": 1}'", "must be the index of an evidence pack"),
    ],
)
def test_a_made_up_index_is_refused_in_one_sentence(pack: Path, script: str, said: str) -> None:
    """What would hang the reader, or break it later, is an EvidenceError at once."""
    edit_index(pack, script)
    with pytest.raises(EvidenceError) as caught:
        open_pack(pack)
    assert said in str(caught.value)
