"""``chaos mutate`` as a user calls it: a small package, its scenarios, and their mutants."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.cli import main

if TYPE_CHECKING:
    from pathlib import Path

SHOP = """\
import os, sys

def save(path, value):
    if value < 0:
        raise ValueError(value)
    with open(path, "w") as file:
        file.write(str(value))

def sell(marks, path, wanted):
    stock = int(open(path).read())
    if stock < wanted:
        return
    save(path, stock - wanted)
    marks.ack("sold", wanted)

def unused(x):
    return x < 3
"""
TESTS = """\
import subprocess, sys
import pytest

@pytest.fixture
def stock(tmp_path):
    (tmp_path / "stock").write_text("3")
    return tmp_path / "stock"

@pytest.mark.chaos(id="agent")
def test_agent(chaos, stock):
    for name in ("one", "two"):
        chaos.spawn("shop:sell", kwargs={"path": str(stock), "wanted": 3}, name=name).wait_exit(timeout_s=20)
    left = stock.read_text()
    chaos.expect("left", observed=left, holds=left == "0")
    sold = chaos.history.acknowledged("sold")
    chaos.expect("sold", observed=len(sold), holds=len(sold) == 1)
"""
SCRIPT_TEST = """\
import subprocess, sys

import pytest

@pytest.mark.chaos(id="script")
def test_script(chaos):
    code = "import shop; print(shop.unused(3))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    chaos.expect("answer", observed=said, holds=said.strip() == "False")
"""


SWEPT_SHOP = """\
import os, sys

def work(folder):
    sys.audit("shop.begun")
    open(folder + "/half", "w").close()
    sys.audit("shop.half")
    os.rename(folder + "/half", folder + "/whole")

def mend(folder, log):
    with open(log, "a") as file:
        file.write("mended\\n")
    if os.path.exists(folder + "/half"):
        finish(folder)

def finish(folder):
    if os.path.exists(folder + "/whole"):
        return
    os.rename(folder + "/half", folder + "/whole")
"""
SWEPT_TEST = """\
import pytest
from pytest_chaos import at_every_point, kill

@pytest.mark.chaos(id="swept")
def test_swept(chaos, tmp_path, request):
    chaos.plan(at_every_point("worker", kill, points="shop.*"))
    chaos.spawn("shop:work", kwargs={"folder": str(tmp_path)}, name="worker").wait_exit(timeout_s=20)
    log = request.config.rootpath / "log"
    chaos.spawn("shop:mend", kwargs={"folder": str(tmp_path), "log": str(log)}, name="mender").wait_exit(timeout_s=20)
    left = [path.name for path in tmp_path.iterdir() if path.name == "half"]
    chaos.expect("left", observed=left, holds=left == [])
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a package, and nothing else; it is the current one."""
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def results(project: Path, name: str = "mutation") -> dict[str, Any]:
    """Return the document of a campaign."""
    found: dict[str, Any] = json.loads((project / f"chaos-results/mutation/{name}.json").read_text())
    return found


def outcomes(document: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Return the outcomes by operator and function."""
    return {(each["operator"], each["function"]): each["outcome"] for each in document["results"]}


def mutate(*arguments: str) -> int:
    """Call ``chaos mutate shop`` in this process; return its exit code."""
    return main.run(["mutate", "shop", *arguments, "--", "pytest", "-m", "chaos", "-q"])


def test_mutants_are_caught_or_survive(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Agents get the mutants: some are caught by a finding, one by its crash, one survives.

    Then a reviewed file excuses the survivor, which is run by its id and leaves the other results;
    the clean run is kept; the threshold decides.
    """
    (project / "test_shop.py").write_text(TESTS)
    before = (project / "shop.py").read_bytes()

    assert mutate("--jobs", "2", "--seed", "one") == 0

    document = results(project)
    assert outcomes(document) == {
        ("bound", "save"): "caught",
        ("drop-raise", "save"): "not reached",
        ("return-early", "save"): "caught",
        ("bound", "sell"): "caught",
        ("drop-guard", "sell"): "caught by crash",
        ("commit-early", "sell"): "survived",
        ("return-early", "sell"): "caught",
        ("bound", "unused"): "not reached",
    }
    caught = next(each for each in document["results"] if (each["operator"], each["function"]) == ("bound", "sell"))
    assert (caught["scenario"], caught["signature"]) == ("agent", "expectation:left")
    assert (document["noticed"], document["judged"], document["missing"]) == (5, 8, 0)
    assert (project / "shop.py").read_bytes() == before

    survivor = next(each for each in document["results"] if each["outcome"] == "survived")
    (project / "mutants.toml").write_text(
        f'[[equivalent]]\nid = "{survivor["id"]}"\noperator = "commit-early"\nfunction = "shop:sell"\n'
        'reason = "nobody is killed in between, and the order shows in nothing else"\n'
        '[[equivalent]]\nid = "gone"\noperator = "swap"\nfunction = "shop:sell"\nreason = "it was so in 1.0"\n'
    )
    capsys.readouterr()
    assert mutate("--only", survivor["id"], "--again", "not reached", "--at-least", "0.9") == 1
    said = capsys.readouterr()
    assert "gone (shop:sell) is no mutant any more: review it, and remove it" in said.err
    assert "1 mutants of shop\nclean run: 1 tests pass" in said.out
    assert "(as before)" in said.out
    assert "power: 5 of 7" in said.out


@pytest.mark.nightly
def test_of_a_sweep_those_places_are_run_that_reach_the_mutant(project: Path) -> None:
    """A statement that is reached at one place of two costs the survey and that place."""
    (project / "shop.py").write_text(SWEPT_SHOP)
    (project / "test_shop.py").write_text(SWEPT_TEST)

    assert mutate("--operator", "drop-guard") == 0

    (result,) = results(project)["results"]
    assert (result["function"], result["outcome"]) == ("finish", "survived")
    assert (result["tests"], result["reaching"]) == (1, 1)
    assert len((project / "log").read_text().splitlines()) == 3 + 2  # the clean run has both places


def test_results_stay_and_the_clean_run_is_made_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is run again without need; a changed test makes the clean run anew, and no result."""
    (project / "test_shop.py").write_text(TESTS)
    assert mutate("--jobs", "2", "--seed", "one") == 0
    capsys.readouterr()
    (project / "test_shop.py").write_text(TESTS + "\n# changed\n")
    assert mutate("--at-least", "0.9") == 1
    said = capsys.readouterr()
    assert "8 mutants of shop, 8 of them run before" in said.out
    assert "clean run" not in said.out
    assert "power: 5 of 8" in said.out
    assert mutate("--again", "caught by crash") == 0
    said = capsys.readouterr()
    assert "8 mutants of shop, 7 of them run before" in said.out
    assert "(as before)" not in said.out
    assert "1 caught by crash" in said.out


CONSTANTS = """\
from limits import LIMIT

WAIT_S = 2

def is_over(count):
    return count > LIMIT

class Shop:
    retry_s = 5

def wait():
    return WAIT_S, Shop.retry_s
"""
CONSTANTS_TEST = """\
import pytest, shop
from shop import WAIT_S

@pytest.mark.chaos(id="constants")
def test_constants(chaos):
    chaos.expect("limit", observed=shop.is_over(4), holds=shop.is_over(4) and not shop.is_over(3))
    chaos.expect("wait", observed=WAIT_S, holds=WAIT_S == 2)
    chaos.expect("retry", observed=shop.wait(), holds=shop.wait()[1] == 5)
"""


@pytest.mark.nightly
def test_what_the_tests_have_imported_gets_the_mutant(project: Path) -> None:
    """Functions, constants that a test imports by name, and defaults of classes are changed."""
    (project / "shop.py").write_text(CONSTANTS)
    (project / "limits.py").write_text("LIMIT = 3\n")
    (project / "test_constants.py").write_text(CONSTANTS_TEST)

    assert mutate("--seed", "one", "--at-least", "1") == 0

    found = {each["line"]: each["signature"] for each in results(project)["results"]}
    assert found == {3: "expectation:wait", 6: "expectation:limit", 9: "expectation:retry"}


@pytest.mark.nightly
def test_a_script_of_another_process_gets_the_mutant(project: Path) -> None:
    """A plain ``python -c`` started by a test executes the mutant; what others reach is not run."""
    (project / "test_script.py").write_text(SCRIPT_TEST)

    assert mutate() == 0

    assert outcomes(results(project))["bound", "unused"] == "caught"


HOSTILE = """\
import os, signal

def polite(path, is_good=True, n=1):
    if is_good:
        return
    os.kill(os.getppid(), signal.SIGKILL)

def bounded(path, is_done=True):
    while True:
        if is_done:
            return

def small(path, is_done=True):
    with open(path, "wb") as file:
        while True:
            if is_done:
                break
            file.write(bytes(1 << 24))
"""
HOSTILE_TEST = """\
import pytest, shop

@pytest.mark.chaos(id="hostile")
@pytest.mark.parametrize("name", ["polite", "bounded", "small"])
def test_hostile(chaos, name, tmp_path):
    getattr(shop, name)(tmp_path / "file")
    chaos.expect("alive", observed=1, holds=True)
"""


@pytest.mark.nightly
def test_hostile_mutants_are_bounded_and_told_apart(project: Path) -> None:
    """A mutant that hangs, that fills the disk, or that kills its parent ends as such."""
    (project / "shop.py").write_text(HOSTILE)
    (project / "test_hostile.py").write_text(HOSTILE_TEST)

    assert mutate("--operator", "drop-guard", "--patience", "2s") == 0

    found = {each["function"]: each for each in results(project)["results"]}
    assert found["bounded"]["outcome"] == "caught by time"
    assert found["small"]["outcome"] == "inconclusive"
    assert "File too large" in found["small"]["text"]
    assert (found["polite"]["outcome"], found["polite"]["text"]) == (
        "error", "it killed the process that the tests run in, or its parent"
    )  # fmt: skip


@pytest.mark.nightly
def test_shards_are_disjoint_and_a_budget_leaves_the_rest(project: Path) -> None:
    """Two shards share the mutants; without time none is run, and that is told by the exit code."""
    (project / "test_script.py").write_text(SCRIPT_TEST)

    assert mutate("--shard", "1/2") == mutate("--shard", "2/2") == 0
    assert mutate("--budget", "0s") == 2

    ids = [{each["id"] for each in results(project, f"mutation-{n}-of-2")["results"]} for n in (1, 2)]
    assert not ids[0] & ids[1]
    assert [len(part) for part in ids] == [4, 4]
    assert results(project)["missing"] == 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nosuchpackage", "--", "pytest"], "got 'nosuchpackage', which is not found"),
        (["not a name", "--", "pytest"], "the package must be a dotted name; got 'not a name'"),
        (["_socket", "--", "pytest"], "the package must have Python source"),
        (["broken", "--", "pytest"], "broken must be a module that can be imported; got SyntaxError"),
        (["shop"], "mutate must get the test command after --; got nothing"),
        (["shop", "--", "make", "test"], "must be pytest, or python -m pytest; got 'make'"),
        (["shop", "--shard", "5/4", "--", "pytest"], "--shard must be I/N with 1 <= I <= N; got '5/4'"),
        (["shop", "--only", "x", "--", "pytest"], "--only must name a mutant of the package; got 'x'"),
        (["shop", "--operator", "x", "--", "pytest"], "--operator must be one of sql-drop-conjunct"),
        (["shop", "--where", "x", "--", "pytest"], "the package must have a mutant that is wanted; got none"),
        (["shop", "--", "pytest", "plain.py"], "must run a chaos test; got 1 tests without the marker chaos"),
        (["shop", "--", "pytest", "failing.py"], "the tests must pass without a mutant; got 1 failed"),
        (["shop", "--", "pytest", "--bogus"], "the test command must pass without a mutant; got exit 4"),
        (["shop", "--equivalent", "shop.py", "--", "pytest"], "must be a TOML file with tables [[equivalent]]"),
    ],
)
def test_a_mistake_is_a_sentence(
    arguments: list[str], sentence: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be mutated, or judged, is refused with what to do, and without a traceback."""
    (project / "broken.py").write_text("def f(:\n")
    (project / "plain.py").write_text("def test_plain(): pass\n")
    (project / "failing.py").write_text("def test_failing(): assert 1 > 2\n")

    assert main.run(["mutate", *arguments]) == 3

    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_the_list_shows_diffs_and_runs_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--list`` needs no test command, and leaves nothing behind."""
    assert main.run(["mutate", "shop", "--list", "--operator", "bound"]) == 0

    said = capsys.readouterr().out
    assert "-return x < 3\n+return x <= 3" in said
    assert "3 mutants" in said
    assert sorted(path.name for path in project.iterdir()) == ["pytest.ini", "shop.py"]
