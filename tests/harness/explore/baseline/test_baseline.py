"""Known findings: what is new fails, what is known is told and is not HELD."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pytest_chaos.cli.baseline import counted, lines_of
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.explore.baseline import (
    BaselineError,
    check_destination,
    compared,
    known_findings,
    read_baseline,
    rest,
    write_baseline,
)
from pytest_chaos.explore.launch import step_source
from pytest_chaos.explore.report import Discovery, Exploration, Family, FamilyResult, harness_finding
from pytest_chaos.model.values import Finding, Verdict

HELD, VIOLATED, INCONCLUSIVE, MISTAKE = range(4)
LOST = "order 7 is lost"
AT = "shop.py:20 in save (open)"
PROGRAM = """
class Target:
    name = "shop"

    def run(self, directory, marks):
        (directory / "begun").touch()
        (directory / "orders").write_text("7")
        self.more(directory)

    def more(self, directory):
        pass

    def check(self, directory, marks):
        path = directory / "orders"
        if (directory / "begun").exists() and (not path.exists() or not path.read_text()):
            yield "order 7 is lost"
"""
"""It begins before it has the order: a kill between the two loses the order."""
WORSE = """
    def more(self, directory):
        (directory / "orders").write_text("7, 8")
"""
"""It loses the same order at another place, too."""


def _found(text: str = LOST, family: str = "crash", *, lines: tuple[str, ...] = (AT,), model: str = "") -> Discovery:
    return Discovery(
        signature=f"check:{text}", kind="safety", text=text, step=1, code=f"{family}:1", state="it", label="modelled",
        model=model, line=lines[0] if lines else "", lines=lines,
    )  # fmt: skip


def _explored(*found: Discovery, findings: tuple[Finding, ...] = (), **changed: object) -> Exploration:
    families = {each.code.partition(":")[0] for each in found} | {"crash"}
    results = tuple(
        FamilyResult(
            family=Family(name), points=1, points_total=1, coverage=f"1 of 1 {name}",
            discoveries=tuple(each for each in found if each.code.startswith(name)),
            **changed,  # type: ignore[arg-type]  # keywords of one test
        )
        for name in sorted(families)
    )  # fmt: skip
    return Exploration(target="shop", seed="1", families=results, findings=findings)


def _written(explored: Exploration, path: Path) -> Path:
    write_baseline(explored, path / "known.json")
    return path / "known.json"


@pytest.mark.parametrize(
    "again",
    [
        _found("order 12 is lost"),
        _found(lines=("shop.py:31 in save (write)",)),
        _found(lines=()),
    ],
    ids=["another key", "a line that moved", "a line that is not known"],
)
def test_a_known_finding_is_known_and_does_not_hold(again: Discovery, tmp_path: Path) -> None:
    """Keys, numbers and line numbers may change, and nothing of it is called HELD."""
    baseline = read_baseline(_written(_explored(_found()), tmp_path), "shop")
    found = compared(_explored(again), baseline)

    assert (found.verdict, found.new, found.gone) == ("KNOWN", (), ())
    assert counted(found, "b") == "nothing new, 1 known (b): "
    assert next(lines_of(found, "b")).startswith("known: order ")


@pytest.mark.parametrize(
    "worse",
    [
        _found("order 7 was sent twice"),
        _found(lines=(AT, "shop.py:9 in cancel")),
        _found(lines=("shop.py:1 in save or shop.py:9 in cancel or another line",)),
        _found(family="power", model="ext4"),
        _found(family="io"),
    ],
    ids=["another loss", "another function, too", "one of two functions", "by a power loss", "by an I/O error"],
)
def test_the_same_loss_is_new_in_another_way(worse: Discovery, tmp_path: Path) -> None:
    """A loss that only a strict disk showed is new when a usual one, or a kill, shows it."""
    known = _explored(_found(), _found(family="power", model="strict"))
    baseline = read_baseline(_written(known, tmp_path), "shop")
    found = compared(_explored(_found(), _found(family="power", model="strict"), worse), baseline)

    assert found.verdict == "VIOLATED"
    assert len(found.new) == 1
    assert found.has_new(worse)
    assert not found.has_new(_found(family="power", model="strict"))


def test_what_is_gone_is_told_where_all_was_explored(tmp_path: Path) -> None:
    """A sample, or a family that was left out, does not show that something is gone."""
    baseline = read_baseline(_written(_explored(_found(), _found(family="power", model="ext4")), tmp_path), "shop")

    whole, sampled = compared(_explored(), baseline), compared(_explored(is_sampled=True), baseline)
    assert (whole.verdict, len(whole.gone), len(whole.unseen)) == ("HELD", 1, 1)
    assert (sampled.verdict, len(sampled.gone), len(sampled.unseen)) == ("HELD", 0, 2)
    assert any(line.startswith("gone: ") for line in lines_of(whole, "b"))


def test_what_was_not_judged_is_not_known(tmp_path: Path) -> None:
    """An exploration that ended early, or whose clean run is wrong, is INCONCLUSIVE at best."""
    clean = Finding(signature="check:it is wrong", kind="clean-run", text="it is wrong")
    nothing = Exploration(target="shop", seed="1", findings=(clean,))
    baseline = read_baseline(_written(_explored(_found(), findings=(clean,)), tmp_path), "shop")

    late = _explored(_found(), is_complete=False)
    own = _explored(_found(), findings=(harness_finding("harness:blind", "something was not seen"),))
    for undecided in (late, own, nothing):
        assert compared(undecided, baseline).verdict == "INCONCLUSIVE"
        assert rest(undecided) is Verdict.INCONCLUSIVE
    assert compared(_explored(_found(), findings=(clean,)), baseline).verdict == "KNOWN"
    assert known_findings(nothing)[0].family == "run"


def test_a_file_that_is_no_baseline_of_the_target_is_refused(tmp_path: Path) -> None:
    """Each is told by a sentence that says what it is, and what to do."""
    path = _written(_explored(_found()), tmp_path)
    text = path.read_text()
    with pytest.raises(
        BaselineError, match=r"^--baseline must be of the target 'till'; got .* of 'shop'\. Give its own"
    ):
        read_baseline(path, "till")
    for damaged in (text[:-20], f"<<<<<<< ours\n{text}", "", "[]", text.replace('"place"', '"plac'), "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(BaselineError, match=r"must be what --write-baseline has written; got .*, damaged: "):
            read_baseline(path, "shop")
    path.write_text(text.replace('"format":1', '"format":2'))
    with pytest.raises(BaselineError, match=r"must be of format 1, that of this version; got .* of format 2"):
        read_baseline(path, "shop")
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match="--baseline must be a file that can be read"):
            read_baseline(missing, "shop")


def test_a_baseline_takes_the_place_of_no_other_file(tmp_path: Path) -> None:
    """A name typed wrongly costs no file; a link stays a link; texts of any kind come back."""
    own = tmp_path / "orders.py"
    own.write_text("print()")
    for wrong in (own, tmp_path, tmp_path / "none" / "b.json"):
        with pytest.raises(UsageError, match="--write-baseline must be "):
            check_destination(wrong)
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    explored = _explored(_found("\udcff \x1b[31m \n lost"))
    write_baseline(explored, link)
    check_destination(link)
    assert link.is_symlink()
    assert compared(explored, read_baseline(real, "shop")).verdict == "KNOWN"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_command_fails_on_what_is_new_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written, explored again, made worse: exit codes 0, 0 and 1, and sentences that say why."""
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "shop.py"
    program.write_text(PROGRAM)
    explore = ["explore", "shop.py:Target", "--seed", "1", "--faults", "crash"]

    assert run([*explore, "--write-baseline", "known.json"]) == HELD
    assert "wrote known.json: 1 known finding; --baseline known.json fails on what is new" in capsys.readouterr().out
    assert run([*explore, "--baseline", "known.json", "--json", "out.json"]) == HELD
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("KNOWN: nothing new, 1 known (known.json): ")
    document = json.loads(Path("out.json").read_text())
    assert (document["verdict"], document["baseline"]["verdict"]) == ("VIOLATED", "KNOWN")

    program.write_text(PROGRAM + WORSE)
    sys.modules.pop("shop")
    assert run([*explore, "--baseline", "known.json"]) == VIOLATED
    assert "new: order 7 is lost: crash in shop.py in more" in capsys.readouterr().out.splitlines()
    assert run([*explore, "--state", "crash:1", "--baseline", "known.json"]) == MISTAKE
    program.write_text(PROGRAM.replace('"shop"', '"till"'))
    sys.modules.pop("shop")
    capsys.readouterr()
    assert run([*explore, "--baseline", "known.json"]) == INCONCLUSIVE
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
