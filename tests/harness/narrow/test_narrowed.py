"""A violated run is shrunk and explained on real processes, and its test can be pasted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos.evidence import manifest, records
from pytest_chaos.evidence.open import open_pack
from pytest_chaos.model.story import CURVE_NAME, SHRUNK_NAME, Curve, Shrunk
from pytest_chaos.model.values import Verdict
from pytest_chaos.narrow.add import TEST_NAME

from tests.acceptance.once import made_once
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import json
from pathlib import Path


def save(path, orders):
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(orders))


def work(folder, jobs, marks):
    orders = []
    for number in range(jobs):
        marks.intent("order", number)
        orders.append(number)
        save(Path(folder, "orders.json"), orders)
        marks.ack("order", number)
"""
TEST = """
import json

import pytest
from hypothesis import strategies as st
from pytest_chaos import after_mark, at_point, kill, pause

import orders


@pytest.mark.parametrize("at", [7])
@pytest.mark.chaos(id="orders", title="A killed worker loses no order")
def test_orders(chaos, at):
    extra = chaos.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5), name="extra")
    chaos.plan(
        pause("worker", after_mark("order", count=2), duration_s=0.01),
        kill("worker", at_point("open", path="orders.json", occurrence=at)),
    )
    kwargs = {"folder": str(chaos.directory), "jobs": chaos.size("jobs", 9)}
    chaos.spawn(orders.work, kwargs=kwargs, name="worker").wait_exit()
    path = chaos.directory / "orders.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    lost = [mark.key for mark in chaos.history.acknowledged("order") if mark.key not in kept]
    chaos.expect("orders that are lost", observed=(lost, extra), holds=not lost)
"""
WRONG = "    path.unlink(missing_ok=True)\n    path.write_text(json.dumps(orders))\n"
MENDED = "    path.with_suffix('.new').write_text(json.dumps(orders))\n    path.with_suffix('.new').replace(path)\n"
QUIET = ("-q", "-p", "no:randomly", "-p", "no:cacheprovider")


def environment() -> dict[str, str]:
    """Return the environment of a user's shell, without what is of this session."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return own | {"COLUMNS": "200", "PYTEST_ADDOPTS": " ".join(QUIET[1:])}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the project in its folder."""
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )


def chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the ``chaos`` command in a folder."""
    return run(folder, sys.executable, "-c", "from pytest_chaos.cli.main import main; main()", *arguments)


def project(folder: Path) -> Path:
    """Make a project with a violated run; return its pack."""
    (folder / "orders.py").write_text(PROGRAM)
    (folder / "test_orders.py").write_text(TEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -x\n")
    done = run(folder, sys.executable, "-m", "pytest", *QUIET, "--chaos-seed=shop", "--chaos-confirm=0")
    assert done.returncode == 1, done.stdout
    return only_pack(folder)


def only_pack(folder: Path) -> Path:
    """Return the one pack of a project."""
    (pack,) = (folder / "chaos-results" / "sessions").glob("*/evidence/*")
    return pack


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Return a project, its pack, which is shrunk, and what was printed."""

    def make(folder: Path) -> None:
        pack = project(folder)
        shutil.copytree(folder, folder / "before", symlinks=True)
        done = chaos(folder, "shrink", str(pack), "--seconds", "500")
        assert done.returncode == 0, done.stdout + done.stderr
        (folder / "printed.txt").write_text(done.stdout)

    folder = made_once(tmp_path_factory, "narrowed", make)
    return folder, only_pack(folder), (folder / "printed.txt").read_text()


@pytest.fixture
def before(shrunk: tuple[Path, Path, str], tmp_path: Path) -> tuple[Path, Path]:
    """Return a copy of the project and of its pack, as they were before it was shrunk."""
    folder = shutil.copytree(shrunk[0] / "before", tmp_path / "project", symlinks=True)
    return folder, only_pack(folder)


def of_pack(pack: Path, name: str) -> bytes:
    """Return the content of an attachment."""
    return (pack / "attachments" / name).read_bytes()


def test_the_least_that_is_violated_is_in_the_pack(shrunk: tuple[Path, Path, str]) -> None:
    """One kill of two faults, two of nine jobs, the simplest value; the pack is whole."""
    _, pack, printed = shrunk
    kept = msgspec.json.decode(of_pack(pack, SHRUNK_NAME), type=Shrunk)
    assert kept.faults == ("kill worker at open of orders.json (2nd time)",)
    assert kept.faults_before == 2
    assert kept.sizes == {"jobs": (9, 2)}
    assert kept.drawn["extra"][1] == [0]
    assert kept.necessary[0].endswith("0 of 3 runs violated, all held: it is necessary")
    assert (kept.repeated, kept.replays, kept.is_whole) == (2, 2, True)
    assert "shrunk to 1 fault of 2, in " in printed
    assert "jobs: 9 -> 2" in printed
    assert manifest.verify(pack) == []
    assert open_pack(pack).verdict is Verdict.VIOLATED


def test_the_test_is_pasted_and_violated_by_the_same_finding(shrunk: tuple[Path, Path, str]) -> None:
    """Below the test that was shrunk, in its file: it runs, and with the smaller workload."""
    folder, pack, _ = shrunk
    code = of_pack(pack, TEST_NAME).decode()
    assert code.startswith("# Paste it into test_orders.py, below test_orders.\ndef test_orders_shrunk(chaos):")
    (folder / "test_pasted.py").write_text(f"{TEST}\n\n{code}")
    results = ("--chaos-results=pasted", "--chaos-confirm=0")
    done = run(folder, sys.executable, "-m", "pytest", *QUIET, "test_pasted.py", "-k", "shrunk", *results)
    (folder / "test_pasted.py").unlink()
    assert done.returncode == 1, done.stdout
    (again,) = records.read(folder / "pasted").runs
    assert [each.signature for each in again.findings] == ["expectation:orders that are lost"]
    assert again.notes["workload"] == {"sizes": {"jobs": [2, 1]}, "drawn": {"extra": [0]}}
    assert [receipt.fired for receipt in again.receipts] == [True]


def test_what_was_found_before_is_not_overwritten(shrunk: tuple[Path, Path, str]) -> None:
    """A second time needs --again; a wrong finding is a mistake that names the right ones."""
    folder, pack, _ = shrunk
    before = of_pack(pack, SHRUNK_NAME)
    done = chaos(folder, "shrink", str(pack))
    assert (done.returncode, of_pack(pack, SHRUNK_NAME)) == (3, before)
    assert "has attachments/shrunk.json already" in done.stderr
    done = chaos(folder, "shrink", str(pack), "--again", "--finding", "other")
    assert done.returncode == 3
    assert "There are: expectation:orders that are lost" in done.stderr


def test_the_moment_that_is_fatal_is_named_with_its_line(shrunk: tuple[Path, Path, str]) -> None:
    """The curve is in the pack, and the neighbour that holds is the step before."""
    folder, pack, _ = shrunk
    done = chaos(folder, "explain", str(pack), "--each", "1", "--seconds", "500", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    curve = msgspec.json.decode(of_pack(pack, CURVE_NAME), type=Curve)
    assert json.loads(done.stdout)["curve"]["neighbours"] == list(curve.neighbours)
    if not any("create" in point.text for point in curve.points):
        pytest.skip("no step can be seen here")
    first = curve.neighbours[0]
    assert "survives at moment " in first
    assert "create orders.json (orders.py:8 in save (pathlib.Path.write_text))" in first
    assert "The kill comes after step " in first
    assert "unlink orders.json, orders.py:7 in save" in first
    fatal = [point for point in curve.points if point.violated]
    assert len(fatal) < len(curve.points)
    assert manifest.verify(pack) == []


def test_a_violation_that_does_not_come_back_is_said(before: tuple[Path, Path]) -> None:
    """The program was mended since: exit 2, one sentence, nothing in the pack."""
    folder, pack = before
    files = sorted(path.name for path in pack.rglob("*"))
    (folder / "orders.py").write_text(PROGRAM.replace(WRONG, MENDED))
    done = chaos(folder, "shrink", str(pack))
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("chaos: the violation did not come back: of 5 runs 5 ")
    assert "\n" not in done.stderr.strip()
    assert sorted(path.name for path in pack.rglob("*")) == files


@pytest.mark.nightly
def test_a_test_that_is_not_there_any_more_is_said(before: tuple[Path, Path]) -> None:
    """It was renamed: exit 2, with what pytest says of it."""
    folder, pack = before
    (folder / "test_orders.py").write_text(TEST.replace("def test_orders", "def test_renamed"))
    done = chaos(folder, "explain", str(pack))
    assert done.returncode == 2
    assert "ended without an answer (exit code 4): ERROR: " in done.stderr


@pytest.mark.nightly
def test_an_interrupt_leaves_nothing_behind(before: tuple[Path, Path]) -> None:
    """Ctrl-C in the middle: exit 2, the pack as it was, and no process."""
    folder, pack = before
    began = folder / "began"
    noted = f"    open({str(began)!r}, 'a').write('x')\n    orders = []\n"
    (folder / "orders.py").write_text(PROGRAM.replace("    orders = []\n", noted))
    process = subprocess.Popen(
        [sys.executable, "-c", "from pytest_chaos.cli.main import main; main()", "shrink", str(pack)],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    until(lambda: began.exists() and len(began.read_text()) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert said.strip().endswith("chaos: interrupted")
    assert not (pack / "attachments" / SHRUNK_NAME).exists()
    assert manifest.verify(pack) == []
    until(lambda: not is_group(process.pid))


def is_group(number: int) -> bool:
    """Whether a process of this group is there."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.nightly
def test_a_session_shrinks_and_explains_what_it_found(tmp_path: Path) -> None:
    """With the two options the failure itself says what is enough, and which step is fatal."""
    project(tmp_path)
    options = ("--chaos-seed=shop", "--chaos-confirm=1", "--chaos-shrink", "--chaos-explain")
    done = run(tmp_path, sys.executable, "-m", "pytest", *QUIET, *options)
    assert done.returncode == 1
    assert "shrunk to 1 fault of 2, in " in done.stdout
    assert "survives at moment " in done.stdout
    (pack,) = (tmp_path / "chaos-results" / "latest" / "evidence").iterdir()
    assert {SHRUNK_NAME, CURVE_NAME} <= {path.name for path in (pack / "attachments").iterdir()}
    (page,) = (tmp_path / "chaos-results" / "latest" / "failures").glob("*.html")
    assert "1 fault of 2 is enough" in page.read_text()
