"""Programs without a check: sound ones hold, planted bugs are found, the rest is INCONCLUSIVE."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.launch import step_source

if TYPE_CHECKING:
    from pathlib import Path

HELD, VIOLATED, INCONCLUSIVE, MISTAKE = range(4)

REPLACES = """
for n in 1 2 3; do
  echo "order $n" > "order-$n.tmp" && mv "order-$n.tmp" "order-$n"
done
"""
"""Sound: what it made once it makes again, whole."""
RESUMES_BY_COUNT = """
touch orders
while [ "$(wc -l < orders)" -lt 3 ]; do echo "order $(wc -l < orders)" >> orders; done
"""
"""Sound: how far it is stands in what it makes."""
DRAWS = """
[ -e id ] || { echo "id $$ $(date +%s%N)" > id.tmp && mv id.tmp id; }
"""
"""Sound: what it keeps is drawn, and kept."""
FORGETS = """
touch orders done
for n in 1 2 3; do
  grep -q "^$n$" done && continue
  echo "order $n" >> orders
  echo "$n" >> done
done
"""
"""Buggy: a kill between the order and its tick makes the order twice."""
TICKS_FIRST = """
touch orders done
for n in 1 2 3; do
  grep -q "^$n$" done && continue
  echo "$n" >> done
  echo "order $n" >> orders
done
"""
"""Buggy: a kill between the tick and its order loses the order."""
IN_PLACE = """
[ -e state ] || { printf 'begun\\n' > state; printf 'ended\\n' >> state; }
"""
"""Buggy: it takes a state that was half written for a whole one."""
LOCKS = """
mkdir lock || { echo "it runs already" >&2; exit 1; }
echo "order" > order
rmdir lock
"""
"""Buggy: a lock that a kill leaves is never released."""
EATS = """
for message in inbox/*; do
  [ -e "$message" ] || continue
  text=$(cat "$message"); rm "$message"; echo "$text" >> eaten
done
sort -o eaten eaten
"""
"""Buggy: a message is removed before it is kept."""
APPENDS = """
echo "run" >> runs
"""
FLIPS = """
echo "$(od -An -N1 -tu1 /dev/urandom)" | awk '{ print ($1 % 2) ? "heads" : "tails" }' > coin
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)


def _explored(folder: Path, script: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    program = folder / "worker"
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    code = run(["explore", "--run", "./worker", "--seed", "s", "--json", "found.json", *arguments])
    return code, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize(
    "script",
    [REPLACES, RESUMES_BY_COUNT, pytest.param(DRAWS, marks=pytest.mark.nightly)],
)
def test_a_program_that_can_be_started_again_holds(tmp_path: Path, script: str) -> None:
    """Each state between two steps leads to the end of an unkilled run."""
    code, found = _explored(tmp_path, script)

    assert (code, found["verdict"]) == (HELD, "HELD"), found["findings"]
    assert found["families"].keys() == {"crash"}


@pytest.mark.parametrize(
    ("script", "setup", "signature", "said"),
    [
        (FORGETS, "", "restart:orders:extra", "orders has 4 lines, an unkilled run 3; too many: order 1"),
        (TICKS_FIRST, "", "restart:orders:missing", "orders has 2 lines, an unkilled run 3; missing: order 1"),
        (IN_PLACE, "", "restart:state:missing", "state has 0 lines, an unkilled run 2; missing: begun; ended"),
        (LOCKS, "", "recovery-fails:exit 1", "it does not start again: a restart ended with exit code 1"),
        (
            EATS, "mkdir inbox; echo tea > inbox/1; echo oil > inbox/2", "restart:eaten:missing",
            "eaten has 1 line, an unkilled run 2; missing: tea",
        ),
    ],
)  # fmt: skip
def test_a_planted_bug_is_found(tmp_path: Path, script: str, setup: str, signature: str, said: str) -> None:
    """Without a check, and without a mark, by what the restart leaves."""
    code, found = _explored(tmp_path, script, *(["--setup", f"sh -c '{setup}'"] if setup else []))

    assert code == VIOLATED
    cause = next(each for each in found["causes"] if each["signature"] == signature)
    assert said in cause["text"]


def test_runs_that_add_up_are_told_apart(tmp_path: Path) -> None:
    """A program that does more on each run has no verdict, until the user says what is meant."""
    code, found = _explored(tmp_path, f"{APPENDS}\n{REPLACES}")
    assert code == INCONCLUSIVE
    (finding,) = found["findings"]
    assert finding["signature"] == "harness:runs-add-up"
    assert "runs has 2 lines, an unkilled run 1" in finding["text"]
    assert "--volatile 'runs'" in finding["text"]

    code, found = _explored(tmp_path, f"{APPENDS}\n{REPLACES}", "--volatile", "runs")
    assert (code, found["findings"]) == (HELD, [])

    code, found = _explored(tmp_path, APPENDS)
    assert code == INCONCLUSIVE
    assert "there is no one end that a restart must come to" in found["findings"][0]["text"]


@pytest.mark.nightly
def test_chance_is_never_blamed_on_a_kill(tmp_path: Path) -> None:
    """A coin falls as it will: clean runs that agreed by chance are followed by more of them."""
    for _ in range(4):
        code, _found = _explored(tmp_path, f"{FLIPS}\n{REPLACES}")
        assert code != VIOLATED


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run", "./worker", "--check", "true", "--oracle", "restart"], "must come with --run alone; got check"),
        (["worker.py:T", "--oracle", "restart"], "--oracle restart must come with --run alone; got TARGET"),
        (["--run", "./worker", "--recover", "true"], "--recover must come with --check; got --run alone"),
        (["--run", "./worker", "--check", "true", "--compare-output"], "--compare-output must come with --run alone"),
    ],
)  # fmt: skip
def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """Each in a sentence."""
    (tmp_path / "worker").write_text("#!/bin/sh\ntrue\n")
    (tmp_path / "worker").chmod(0o755)
    assert run(["explore", *arguments]) == MISTAKE
    assert said in capsys.readouterr().err
