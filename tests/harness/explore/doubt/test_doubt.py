"""A check that looks at everything notices the damages; a blind one lets them pass, by line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.cli.schema import type_of
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.doubt.damages import DamageKind
from pytest_chaos.explore.doubt.result import DamageOutcome, Doubt, DoubtedDamage
from pytest_chaos.explore.launch import step_source

if TYPE_CHECKING:
    from pathlib import Path

HELD, VIOLATED, INCONCLUSIVE, MISTAKE = range(4)

ORDERS = """
import json, os

class Orders:
    def run(self, directory, marks):
        for number in (1, 2):
            marks.intent("save", number)
            self.save(directory, list(range(1, number + 1)))
            marks.ack("save", number)

    def save(self, directory, orders):
        file = os.open(directory / "orders.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(file, json.dumps(orders).encode())
        os.fsync(file)
        os.close(file)
        os.rename(directory / "orders.new", directory / "orders.json")
        folder = os.open(directory, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def check(self, directory, marks):
        path = directory / "orders.json"
        try:
            found = json.loads(path.read_text()) if path.exists() else []
        except ValueError:
            return ["orders.json cannot be read"]
        return [f"order {mark.key} is lost" for mark in marks if mark.kind == "ack" and mark.key not in found]

class Blind(Orders):
    def check(self, directory, marks):
        acked = any(mark.kind == "ack" for mark in marks)
        return ["no orders"] if acked and not (directory / "orders.json").exists() else []

class SyncsTwice(Orders):
    def save(self, directory, orders):
        super().save(directory, orders)
        os.sync()

class Careless(Orders):
    def save(self, directory, orders):
        (directory / "orders.json").write_text(json.dumps(orders))

class Breaks(Orders):
    def check(self, directory, marks):
        path = directory / "orders.json"
        json.loads(path.read_text()) if path.exists() else []
        return super().check(directory, marks)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    (tmp_path / "orders.py").write_text(ORDERS)
    monkeypatch.chdir(tmp_path)


def _doubted(folder: Path, target: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    wanted = ["--seed", "s", "--faults", "crash,power", "--doubt", "--json", "found.json", *arguments]
    code = run(["explore", f"orders.py:{target}", *wanted])
    content = (folder / "found.json").read_bytes()
    msgspec.json.decode(content, type=type_of("explore"))
    found: dict[str, Any] = json.loads(content)
    return code, found


def test_a_check_that_looks_at_everything_notices_each_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lost flush, a lost or halved write, an early rename, an early acknowledgement."""
    code, found = _doubted(tmp_path, "Orders", "--at-least", "1")

    doubt = found["doubt"]
    assert (code, doubt["undecided"]) == (HELD, 0)
    assert doubt["noticed"] == doubt["counted"] >= 15
    kinds = {each["kind"] for each in doubt["damages"] if each["outcome"] == "noticed"}
    assert kinds == set(DamageKind)
    assert f"doubt: your check notices {doubt['counted']} of {doubt['counted']} damages" in capsys.readouterr().out


def test_a_blind_check_is_shown_what_it_lets_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the line of the program, with a state as an example, and with what to assert."""
    code, found = _doubted(tmp_path, "Blind", "--at-least", "0.9")

    out, err = capsys.readouterr()
    assert (code, found["verdict"]) == (VIOLATED, "HELD")  # the exit code says it, and no verdict does
    assert "the check notices" in err
    passed = {each["kind"]: each for each in found["doubt"]["damages"] if each["outcome"] == "let pass"}
    assert passed.keys() == set(DamageKind) - {"nothing", "no-syncs"}
    flush = next(each for each in found["doubt"]["damages"] if "flush orders.new" in each["what"])
    assert flush["line"].startswith("orders.py:14 in save")
    assert (flush["what"], flush["differs"]) == ("does not flush orders.new", "orders.json has 0 bytes, not 6")
    assert "is lost" in flush["state"]
    assert "  let pass: orders.py:14 in save" in out
    assert "    assert that what is acknowledged is there, whole" in out


@pytest.mark.nightly
def test_without_at_least_the_exit_code_is_the_programs(tmp_path: Path) -> None:
    """Doubt is about the check; what the program has earned stays."""
    code, found = _doubted(tmp_path, "Blind")
    assert code == HELD
    assert found["doubt"]["noticed"] < found["doubt"]["counted"]


def test_a_damage_that_changes_no_state_is_not_counted(tmp_path: Path) -> None:
    """A flush beside another one may be left out: no state tells, so no check can."""
    _, found = _doubted(tmp_path, "SyncsTwice")

    doubt = found["doubt"]
    equivalent = [each for each in doubt["damages"] if each["outcome"] == "equivalent"]
    assert doubt["equivalent"] == len(equivalent) > 0
    assert {each["kind"] for each in equivalent} == {"no-sync"}
    assert doubt["noticed"] == doubt["counted"]


def test_a_check_is_not_doubted_where_the_program_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it finds in damaged runs would tell nothing."""
    code, found = _doubted(tmp_path, "Careless", "--at-least", "0.5")
    assert (code, found["doubt"]) == (VIOLATED, None)
    assert "nothing was doubted" in capsys.readouterr().out


@pytest.mark.nightly
def test_a_check_that_breaks_has_not_noticed(tmp_path: Path) -> None:
    """A check that raises would leave an exploration undecided, and so it does a damage."""
    _, found = _doubted(tmp_path, "Breaks")
    doubt = found["doubt"]
    assert doubt["undecided"] > 0
    broken = next(each for each in doubt["damages"] if each["outcome"] == "undecided")
    assert "the check raised JSONDecodeError" in broken["said"]


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a sentence."""
    assert run(["explore", "orders.py:Orders", "--at-least", "0.9"]) == MISTAKE
    assert "--at-least must come with --doubt" in capsys.readouterr().err
    assert run(["explore", "orders.py:Orders", "--doubt", "--at-least", "1.2"]) == MISTAKE
    assert "1.2 is not in the range" in capsys.readouterr().err


def test_the_result_in_words() -> None:
    """One line for each line of the program and kind of damage; what is not counted is told."""
    passed = DoubtedDamage(
        kind="no-write", what="does not write 3 bytes to a", line="a.py:3 in save", at="1",
        outcome=DamageOutcome.LET_PASS, state="it ended", differs="a has 0 bytes, not 3", advice="what a has in it",
    )  # fmt: skip
    doubt = Doubt(noticed=17, counted=19, equivalent=2, temporary=0, undecided=0, damages=(passed, passed))

    assert list(doubt.lines()) == [
        "doubt: your check notices 17 of 19 damages (not counted: 2 equivalent)",
        "  let pass: a.py:3 in save: a program that does not write 3 bytes to a (and 1 more)",
        "    then it ended: a has 0 bytes, not 3",
        "    assert what a has in it",
    ]
    empty = Doubt(noticed=0, counted=0, equivalent=1, temporary=0, undecided=0, damages=())
    assert empty.share == 1
    assert empty.summary == "there is no damage that your check could notice (not counted: 1 equivalent)"
