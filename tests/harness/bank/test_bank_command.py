"""The command ``chaos bank``: entries of each outcome, really run; and the bank, nightly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from pytest_chaos.bank import forms
from pytest_chaos.bank.entries import default_folder, read_bank
from pytest_chaos.bank.results import BankDocument, BankListDocument
from pytest_chaos.cli import bank, main as cli
from pytest_chaos.errors import UsageError

from tests.harness.bank.test_entries import ENTRY, entry

PROGRAM = """
import os

class Reported:
    def run(self, directory, marks):
        marks.intent("save", 1)
        (directory / "note").write_text("a note")
        marks.ack("save", 1)

    def check(self, directory, marks):
        from pytest_chaos import Finding

        note = directory / "note"
        if note.exists() and note.read_text() != "a note":
            yield Finding(signature="note-lost", text="the note is cut off")

class Mended(Reported):
    def run(self, directory, marks):
        (directory / "new").write_text("a note")
        (directory / "new").rename(directory / "note")
"""
BROKEN = PROGRAM.replace("import os", "import no_such_library")
STILL_BAD = f"{PROGRAM}\nMended = Reported\n"
CRASH = '\n[options]\nfaults = "crash"\n'


def run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any, str]:
    """Run a command with --json; return its exit code, the document, and what it said besides."""
    capfd.readouterr()
    code = cli.run([*map(str, words), "--json"])
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else None, err


def test_each_outcome_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown is green; a mended form that does not hold, a program that fails, and what is
    not there are a sentence each, and a results file has them all.
    """
    monkeypatch.chdir(tmp_path)
    programs = {"shown": PROGRAM, "still_bad": STILL_BAD, "broken": BROKEN, "not_here": PROGRAM}
    for name, program in programs.items():
        more = 'commands = ["no-such-program"]\n' if name == "not_here" else ""
        (entry(tmp_path / "bank", ENTRY + more + CRASH, name=name).parent / "program.py").write_text(program)
    code, found, said = run(capfd, "bank", "run", "--all", "--bank", "bank")
    document = msgspec.convert(found, BankDocument)
    outcomes = {each.name: each.outcome for each in document.entries}
    assert outcomes == {"shown": "shown", "still_bad": "not held", "broken": "undecided", "not_here": "skipped"}
    sentences = {each.name: each.sentence for each in document.entries}
    assert "the mended form must hold; got note-lost: the note is cut off" in sentences["still_bad"]
    assert "No module named 'no_such_library'" in sentences["broken"]
    assert sentences["not_here"] == "the program no-such-program must be installed; it is not here"
    assert (code, document.verdict) == (1, "VIOLATED")
    assert json.loads(Path("chaos-results/bank/bank.json").read_text()) == found
    assert len([line for line in said.splitlines() if line.startswith(("shown", "not held", "undecided"))]) == 3
    assert Path(document.entries[2].reported.folder if document.entries[2].reported else "", "explored.json").exists()


def test_mistakes_are_sentences(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An unknown name, no name, both, and a folder that is no bank: exit code 3."""
    entry(tmp_path, ENTRY)
    for words, said in (
        (("run", "nothing", "--bank", tmp_path), "the name of an entry must be one of the bank; got 'nothing'"),
        (("run", "note", "--bank", tmp_path), "got 'note'. Did you mean notes?"),
        (("run", "--bank", tmp_path), "bank run must get names of entries, or --all; got neither"),
        (("run", "notes", "--all", "--bank", tmp_path), "got both"),
        (("list", "--bank", tmp_path / "nowhere"), "--bank must be a folder of entries"),
    ):
        code, document, err = run(capfd, "bank", *words)
        assert (code, document) == (3, None)
        assert said in err


def test_two_runs_do_not_share_a_results_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The second one is told, and changes nothing."""
    entry(tmp_path / "bank", ENTRY)
    words = ("bank", "run", "notes", "--bank", tmp_path / "bank", "--results", tmp_path)
    with bank._alone_in(tmp_path / "bank"):
        code, document, err = run(capfd, *words)
    assert (code, document) == (3, None)
    assert f"--results must be a folder that no other bank run is using; got {tmp_path}. Wait for that run" in err


def test_the_list_has_every_entry_and_what_was_not_reproduced(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines for people, the document for programs; a name may have hyphens."""
    code, found, _ = run(capfd, "bank", "list")
    document = msgspec.convert(found, BankListDocument)
    bank = read_bank(default_folder())
    assert (code, [each.name for each in document.entries]) == (0, list(bank.entries))
    assert cli.run(["bank", "list", "--long"]) == 0
    printed = capfd.readouterr().out
    assert all(each.reports[0] in printed for each in document.entries)
    assert all(each.report in printed for each in document.not_reproduced)
    assert bank.named(("credits-twice",)) == [bank.entries["credits_twice"]]


def test_a_scenario_is_run_in_real_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both forms of an entry of the bank are run by pytest, under one plan, with receipts."""
    code, found, err = run(capfd, "bank", "run", "credits-twice", "--results", tmp_path)
    assert code == 0, err
    (result,) = msgspec.convert(found, BankDocument).entries
    assert result.reported is not None
    assert result.mended is not None
    assert result.reported.plan == result.mended.plan != "[]"
    assert "was carried 2 times" in result.mended.coverage
    assert not (tmp_path / "bank" / "bank.json").exists()
    assert list(Path(result.reported.folder).glob("sessions/*/evidence/*/manifest.json"))


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form that could write no result says nothing; so the disk is looked at."""
    (tmp_path / "output.txt").write_text("")
    assert forms._last_words(tmp_path).endswith("it said nothing")
    monkeypatch.setattr("pytest_chaos.bank.forms.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    assert f"the disk of {tmp_path} is full" in forms._last_words(tmp_path)
    with pytest.raises(UsageError, match=r"--results must be a folder that can be written; got .*: No space left"):
        bank._write(Path("/dev/full"), b"{}")


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_the_whole_bank_is_shown(tmp_path: Path) -> None:
    """Every entry shows its bug by name and holds once mended; what cannot be had is skipped."""
    command = [sys.executable, "-c", "from pytest_chaos.cli.main import main; main()", "bank", "run", "--all", "--json"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], capture_output=True, env=os.environ, check=False, timeout=1700
    )
    document = msgspec.json.decode(done.stdout, type=BankDocument)
    assert [
        f"{each.name}: {each.sentence}" for each in document.entries if each.outcome not in {"shown", "skipped"}
    ] == []
    assert document.counts["shown"] >= len(document.entries) - 8, "too much could not be installed"
