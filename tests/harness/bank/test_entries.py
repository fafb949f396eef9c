"""The files of entries: the bank's own are whole, and what is wrong with one is a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pytest_chaos.bank.entries import default_folder, read_bank, read_entry
from pytest_chaos.errors import UsageError

from tests import bank_page

if TYPE_CHECKING:
    from pathlib import Path

ENTRY = """\
title = "A note is lost"
reports = ["owner/repository#1"]
kind = "kill mid-write"
promise = "A note that was saved is there."
engine = "explore"
expects = ["note-lost"]
subject = "own program"
read = "excerpt"
reproduced = "It is written in place."
mended = "It is renamed."
"""
KINDS = {
    "kill mid-write", "kill mid-job", "stuck after kill", "power loss, torn append", "fsync missing", "fsync error",
    "disk full", "config truncated", "WAL starvation", "database is locked", "POSIX lock cancelled",
    "migration half-way", "pid reuse", "clock jump", "lease shorter than work", "duplicate webhook",
    "reordered webhook", "poison message", "orphan process",
}  # fmt: skip


def entry(folder: Path, text: str = ENTRY, *, name: str = "notes") -> Path:
    """Write an entry; return its file."""
    (folder / name).mkdir(parents=True)
    (folder / name / "program.py").write_text("")
    (folder / name / "entry.toml").write_text(text)
    return folder / name / "entry.toml"


def test_the_bank_is_whole_and_its_page_is_up_to_date() -> None:
    """Each entry of the bank can be read, and docs/bank.md has them all."""
    bank = read_bank(default_folder())
    assert {name for name in bank.entries if bank.entries[name].folder.name != name} == set()
    assert {entry.kind for entry in bank.entries.values()} >= KINDS
    text = bank_page.DOCUMENT.read_text(encoding="utf-8")
    assert text == bank_page.with_table(text), "run python -m tests.bank_page"


def test_an_entry_is_what_its_file_says(tmp_path: Path) -> None:
    """Name and folder are the folder's; a form may have requirements of its own."""
    more = f'{ENTRY}requirements = ["a==1"]\nmended_requirements = ["a==2"]\n[options]\nfaults = "crash"\n'
    found = read_entry(entry(tmp_path, more))
    assert (found.name, found.folder, found.file.name) == ("notes", tmp_path / "notes", "program.py")
    assert (found.requirements_of("reported"), found.requirements_of("mended")) == (("a==1",), ("a==2",))
    assert read_entry(entry(tmp_path, ENTRY, name="other")).requirements_of("mended") == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "A note is lost"\n', "", "it misses the required field `title`"),
        ('read = "excerpt"', 'read = "all"', "Invalid enum value 'all'"),
        ('mended = "It is renamed."', 'mended = ""', "mended must say something; got nothing"),
        ("owner/repository#1", "issue 1", "reports must be like owner/repository#1; got 'issue 1'"),
        ('expects = ["note-lost"]', "expects = []", "expects must be signatures of findings; got none"),
        ('engine = "explore"', 'engine = "scenario"', "the engine scenario must have scenario.py; got no such file"),
        ('read = "excerpt"', 'read = "excerpt"\nrequirements = ["huey"]', "must be pinned, like huey==3.5.4; got"),
        ('read = "excerpt"', 'read = "excerpt"\ncolour = "red"', "it contains unknown field `colour`"),
        ('read = "excerpt"', 'read = "excerpt"\nname = "x"', "must leave out name, which its folder says"),
        ('mended = "It is renamed."\n', 'mended = "It is."\n[options]\njobs = 4\n', "options must be some of"),
        ('title = "', "title = ", "docs/bank.md lists them"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    """A wrong field is named, with what it must be, and the file is."""
    assert old in ENTRY
    file = entry(tmp_path, ENTRY.replace(old, new))
    with pytest.raises(UsageError) as caught:
        read_entry(file)
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_everything_wrong_is_reported_together(tmp_path: Path) -> None:
    """Two wrong entries are two sentences; a folder without entries is one; so is a bad name."""
    entry(tmp_path, ENTRY.replace("owner/repository#1", "1"), name="one")
    entry(tmp_path, ENTRY.replace("note-lost", ""), name="two")
    with pytest.raises(UsageError, match=r"reports must be like .*; .*expects must be signatures"):
        read_bank(tmp_path)
    with pytest.raises(UsageError, match=r"where no folder has an entry\.toml"):
        read_bank(tmp_path / "one")
    with pytest.raises(UsageError, match="--bank must be a folder of entries"):
        read_bank(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="must be named in small letters, digits and _; got 'A-b'"):
        read_entry(entry(tmp_path / "more", name="A-b"))
