"""One cause is one finding: what is alike, what is not, and the line of the user's program."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.causes import Cause, alike, causes
from pytest_chaos.explore.launch import step_source
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, MODELLED, Discovery, Exploration, Family, FamilyResult

if TYPE_CHECKING:
    from pathlib import Path

QUEUE = """
import json
from pathlib import Path


def work(directory):
    path = directory / "queue.json"
    jobs = json.loads(path.read_text()) if path.exists() else ["a", "b"]
    while jobs:
        job = jobs.pop(0)
        path.with_suffix(".new").write_text(json.dumps(jobs))
        path.with_suffix(".new").replace(path)
        with (directory / "report").open("a") as report:
            report.write(job)


class Target:
    def run(self, directory, marks):
        work(directory)

    def recover(self, directory):
        work(directory)

    def check(self, directory, marks):
        path = directory / "report"
        report = path.read_text() if path.exists() else ""
        return [f"job {job} was reported {report.count(job)} times" for job in "ab" if report.count(job) != 1]
"""


def _found(text: str, code: str, *, line: str = "", label: str = MODELLED, model: str = "") -> Discovery:
    return Discovery(
        signature=f"check:{text}", kind="safety", text=text, step=1, code=code, state=f"state {code}", label=label,
        line=line, model=model,
    )  # fmt: skip


def _texts(found: tuple[Cause, ...]) -> list[list[str]]:
    return [[each.text for each in cause.every] for cause in found]


def test_families_and_keys_are_lines_of_one_cause() -> None:
    """Four families and three jobs are one finding, led by what is sure, and none is lost."""
    found = [
        _found(f"job {job} was reported 0 times", f"{family}:1", label=MODELLED if family == "power" else "real")
        for family in ("power", "crash", "io")
        for job in "abc"
    ]
    (cause,) = causes(found)

    assert cause.lead.code == "crash:1"
    assert len(cause.every) == 9
    assert len(list(cause.variant_lines())) == 8
    assert all("seen in 1 state;" in line for line in cause.variant_lines())
    assert len(cause.as_finding().text.splitlines()) == 9


def test_models_of_one_disk_are_one_line() -> None:
    """Strict and ext4 show the same: one line names both, and JSON has two variants."""
    text = "order 3 is lost"
    (cause,) = causes(
        [_found(text, "crash:1"), _found(text, "power:ext4:1", model="ext4"), _found(text, "power:s:1", model="strict")]
    )

    assert [line.partition(":")[0] for line in cause.variant_lines()] == ["power (ext4, strict)"]
    assert len(cause.every) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order 3 is lost", "order 3 was sent twice"),
        ("index.db is torn", "log.txt is torn"),
        ("job a was lost", "job a was doubled"),
    ],
)
def test_other_words_are_another_cause(one: str, other: str) -> None:
    """Only numbers, quoted texts and letters that stand alone are left out."""
    assert alike(one) != alike(other)
    assert _texts(causes([_found(one, "crash:1"), _found(other, "crash:2")])) == [[one], [other]]


def test_kills_at_two_lines_are_two_causes() -> None:
    """What is told alike of two lines of the program has two causes;
    an I/O error shows elsewhere, and joins.
    """
    first, second = _found("1 is lost", "crash:1", line="a.py:3"), _found("2 is lost", "crash:9", line="a.py:7")
    late = _found("1 is lost", "io:4:EIO", line="a.py:9")

    assert [[each.code for each in cause.every] for cause in causes([first, second, late])] == [
        ["crash:1", "io:4:EIO"],
        ["crash:9"],
    ]


def test_what_failed_is_not_worded_like_a_success() -> None:
    """Violated: what, and in how many of how many; coverage alone is for what held."""
    crash = FamilyResult(
        family=Family.CRASH, states=68, points=65, points_total=65, violated=9, coverage="65 of 65 crash points",
        discoveries=(_found("1 is lost", "crash:1", label=CONFIRMED_BY_A_KILL),),
    )  # fmt: skip
    held = FamilyResult(family=Family.IO, states=5, points=5, points_total=5, coverage="5 of 5 I/O errors")

    assert crash.outcome == "9 of 68 crash states violated"
    assert held.outcome == "5 of 5 I/O errors"
    explored = Exploration(target="t", seed="s", families=(crash, held))
    assert explored.outcome == "1 is lost: 9 of 68 crash states violated, 5 of 5 I/O errors held"


def test_a_queue_bug_is_one_finding_at_the_users_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One finding a cause in a pipe: plain lines, the step, the line that makes it,
    and all variants in the JSON.
    """
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.py").write_text(QUEUE)
    assert run(["explore", "jobs.py", "--seed", "s", "--faults", "crash,power", "--json", "out.json"]) == 1

    out = capsys.readouterr().out
    assert out.count("  again: ") == 2
    assert "jobs: it does not start again: recover() raised JSONDecodeError" in out
    assert "was reported 0 times: killed before step" in out  # the other job
    assert "create report, at jobs.py:13 in work" in out
    assert "  also power (" in out
    assert out.isascii()
    assert all(letter.isprintable() or letter == "\n" for letter in out)
    last = out.strip().splitlines()[-1]
    assert last.startswith("VIOLATED: job a was reported 0 times and 1 more finding: ")
    assert "crash points" not in last
    cause, restart = json.loads((tmp_path / "out.json").read_text())["causes"]
    assert {each["family"] for each in restart["variants"]} == {"power"}  # the torn queue, a cause of its own
    assert {each["family"] for each in cause["variants"]} == {"crash", "power"}
    assert cause["line"] == "jobs.py:13 in work"


OTHERS = """
import subprocess, sys

WRITE = "open('b', 'w').write('x'); open('c', 'w').write('y')"

def run(directory, marks):
    subprocess.run([sys.executable, "-c", WRITE], cwd=directory, check=True)

def check(directory, marks):
    return ["half"] if (directory / "b").exists() != (directory / "c").exists() else []
"""


def test_the_line_of_a_step_of_another_process_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line that waits for a program is shown, and not as if it had made the step."""
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others.py").write_text(OTHERS)
    assert run(["explore", "others.py", "--seed", "s", "--faults", "crash"]) == 1
    assert ", at others.py:7 in run, by a process that it started" in capsys.readouterr().out


def test_a_program_without_marks_has_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was promised: a check of acknowledgements has checked nothing, and that is said."""
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    for name, mark, noted in (("quiet", "None", 1), ("loud", "marks.ack('put', 1)", 0)):
        body = f"    (directory / 'a').write_text('x'); {mark}\n"
        check = "def check(directory, marks):\n    return []\n"
        (tmp_path / f"{name}.py").write_text(f"def run(directory, marks):\n{body}{check}")
        assert run(["explore", f"{name}.py", "--seed", "s", "--faults", "crash"]) == 0
        assert capsys.readouterr().out.count("note: the program wrote no mark, so it promised nothing") == noted
