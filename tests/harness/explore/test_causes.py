"""One cause is one finding: what is alike, what is not, and the line of the user's program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.causes import Cause, causes
from pytest_chaos.explore.launch import step_source
from pytest_chaos.explore.lines.noted import NotedRun, matched
from pytest_chaos.explore.report import CONFIRMED_BY_A_KILL, MODELLED, Discovery, Exploration, Family, FamilyResult
from pytest_chaos.model.signatures import alike
from pytest_chaos.trace.step import KNOWN_FILES, Action, Step

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


@pytest.fixture
def _steps() -> None:
    """Skip a test where no step can be seen."""
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))


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


@pytest.mark.usefixtures("_steps")
def test_a_queue_bug_is_one_finding_at_the_users_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One finding a cause in a pipe: plain lines, the step, the line that makes it,
    and all variants in the JSON.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.py").write_text(QUEUE)
    assert run(["explore", "jobs.py", "--seed", "s", "--faults", "crash,power", "--json", "out.json"]) == 1

    out = capsys.readouterr().out
    assert out.count("  again: ") == 2
    assert "jobs: it does not start again: recover() raised JSONDecodeError" in out
    assert "was reported 0 times: killed before step" in out  # the other job
    assert "create report, at jobs.py:13 in work (pathlib.Path.open)" in out
    assert "  also power (" in out
    assert out.isascii()
    assert all(letter.isprintable() or letter == "\n" for letter in out)
    last = out.strip().splitlines()[-1]
    assert last.startswith("VIOLATED: job a was reported 0 times and 1 more finding: ")
    assert "crash points" not in last
    cause, restart = json.loads((tmp_path / "out.json").read_text())["causes"]
    assert {each["family"] for each in restart["variants"]} == {"power"}  # the torn queue, a cause of its own
    assert {each["family"] for each in cause["variants"]} == {"crash", "power"}
    assert cause["line"] == "jobs.py:13 in work (pathlib.Path.open)"


NOTES = """
def run(directory, marks):
    for word in ("config", "index"):
        marks.intent("put", word)
        (directory / word).touch()
        marks.ack("put", word)
        (directory / word).write_text(word)

def check(directory, marks):
    kept = {each.name: each.read_text() for each in directory.iterdir()}
    return [f"{each.key} is lost" for each in marks if each.kind == "ack" and kept.get(each.key) != each.key]
"""
APART = NOTES.replace(
    "        (directory / word).write_text(word)\n",
    "        if word == 'config':\n            (directory / word).write_text(word)\n"
    "        else:\n            (directory / word).write_text(word)\n",
)


@pytest.mark.usefixtures("_steps")
@pytest.mark.parametrize(
    ("target", "told"),
    [
        pytest.param(NOTES, [("config is lost", "notes.py:7", "said of others: index is lost")], id="one-line"),
        pytest.param(
            APART, [("config is lost", "notes.py:8", ""), ("index is lost", "notes.py:10", "")], id="two-lines"
        ),
    ],
)
def test_what_is_said_of_two_keys_has_one_cause_unless_kills_are_at_two_lines(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    told: list[tuple[str, str, str]],
) -> None:
    """Words that are keys are lines of one finding; two bugs of two keys are not hidden in one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.py").write_text(target)
    assert run(["explore", "notes.py", "--seed", "s", "--json", "out.json"]) == 1
    capsys.readouterr()
    found = json.loads((tmp_path / "out.json").read_text())["causes"]
    assert [(each["text"], each["line"].partition(" ")[0]) for each in found] == [each[:2] for each in told]
    assert all(each["variants"][0]["label"] == CONFIRMED_BY_A_KILL for each in found)
    page = next(tmp_path.glob("chaos-results/explore/notes-*/states-s.html")).read_text()
    for _, _, others in told:
        assert others in page
    assert ("said of others" in page) == any(others for _, _, others in told)


OTHERS = """
import subprocess, sys

WRITE = "open('b', 'w').write('x'); open('c', 'w').write('y')"

def run(directory, marks):
    subprocess.run([sys.executable, "-c", WRITE], cwd=directory, check=True)

def check(directory, marks):
    return ["half"] if (directory / "b").exists() != (directory / "c").exists() else []
"""


@pytest.mark.usefixtures("_steps")
def test_the_line_of_a_step_of_another_process_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line that waits for a program is shown, and not as if it had made the step."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "others.py").write_text(OTHERS)
    assert run(["explore", "others.py", "--seed", "s", "--faults", "crash"]) == 1
    assert "at others.py:7 in run (subprocess.run), by a process that it started" in capsys.readouterr().out


@pytest.mark.usefixtures("_steps")
def test_a_program_without_marks_has_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was promised: a check of acknowledgements has checked nothing, and that is said."""
    monkeypatch.chdir(tmp_path)
    for name, mark, noted in (("quiet", "None", 1), ("loud", "marks.ack('put', 1)", 0)):
        body = f"    (directory / 'a').write_text('x'); {mark}\n"
        check = "def check(directory, marks):\n    return []\n"
        (tmp_path / f"{name}.py").write_text(f"def run(directory, marks):\n{body}{check}")
        assert run(["explore", f"{name}.py", "--seed", "s", "--faults", "crash"]) == 0
        assert capsys.readouterr().out.count("note: the program wrote no mark, so it promised nothing") == noted


THREADS = """
import threading

def save(path):
    with open(path, "w") as file:
        file.write("x")

def first(directory):
    save(directory / "a1")

def run(directory, marks):
    threads = [threading.Thread(target=work, args=(directory,)) for work in (first, lambda each: save(each / "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

def check(directory, marks):
    return ["it is empty"] if any(not path.stat().st_size for path in directory.iterdir()) else []
"""


def _step(number: int, path: str, *, thread: int = 1, action: Action = Action.CREATE) -> Step:
    return Step(number=number, action=action, call="openat", process=1, thread=thread, path=path)


def test_steps_of_equal_runs_have_equal_places() -> None:
    """Names that are drawn anew make no difference, nor does a run that goes on."""
    steps = [_step(1, "tmpabcd12"), _step(2, "a")]
    noted = NotedRun([_step(1, "tmpwxyz89"), _step(2, "a"), _step(3, "b")], ["x.py:1 in f", "x.py:2 in f", "x.py:3"])
    assert matched(steps, noted, KNOWN_FILES) == ["x.py:1 in f", "x.py:2 in f"]


def test_threads_that_change_places_keep_their_lines() -> None:
    """Each thread is matched with the one that begins alike, whatever its turn."""
    steps = [_step(1, "b", thread=2), _step(2, "a", thread=1), _step(3, "b", thread=2, action=Action.UNLINK)]
    noted = NotedRun(
        [_step(1, "a", thread=7), _step(2, "b", thread=8), _step(3, "b", thread=8, action=Action.UNLINK)],
        ["x.py:1 in a", "x.py:2 in b", "x.py:3 in b"],
    )
    assert matched(steps, noted, KNOWN_FILES) == ["x.py:2 in b", "x.py:1 in a", "x.py:3 in b"]


def test_a_step_that_several_lines_make_names_them() -> None:
    """Of equal steps of other threads nobody knows which it was, and none is made up."""
    steps = [_step(1, "log"), _step(2, "part-3", action=Action.UNLINK), _step(3, "log"), _step(4, "else")]
    noted = NotedRun(
        [_step(1, "log"), _step(2, "log", thread=2), _step(3, "part-12", action=Action.UNLINK)],
        ["x.py:1 in a", "x.py:2 in b", "x.py:3 in c"],
    )
    lines = matched(steps, noted, KNOWN_FILES)
    assert lines == ["x.py:1 in a", "x.py:3 in c", "x.py:1 in a or x.py:2 in b", ""]


@pytest.mark.usefixtures("_steps")
def test_findings_of_threads_name_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line that opens the file, and not what a path did meanwhile (``__fspath__``).

    Which step is killed, a write or the creation of the other file, is up to the threads.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "threads.py").write_text(THREADS)
    arguments = ["explore", "threads.py", "--seed", "s", "--faults", "crash", "--schedules", "2"]
    assert run(arguments) == 1
    out = capsys.readouterr().out
    assert re.search(r"(create|write) (a1|b).*, at threads.py:5 in save\n", out), out
    assert "__fspath__" not in out


OWN = """
import mmap
import os

RUNS = mmap.mmap(-1, 1)

def save(path):
    with open(path, "w") as file:
        file.write("x")

def run(directory, marks):
    RUNS[0] += 1
    if directory.name.startswith(("clean", "again", "untraced", "repeated")):
        for number in range(RUNS[0] + 1):
            os.mkdir(directory / f"c{number}")
    else:
        save(directory / "a")

def check(directory, marks):
    return ["it is empty"] if any(path.is_file() and not path.stat().st_size for path in directory.iterdir()) else []
"""
"""Each recorded run has one step more, and no fault; all runs of the workers have one."""


@pytest.mark.parametrize("family", ["crash", "io"])
@pytest.mark.usefixtures("_steps")
def test_a_run_of_its_own_names_its_step_and_line(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recording has another step in that place, made by another line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    assert run(["explore", "own.py", "--seed", "s", "--faults", family, "--schedules", "2"]) == 1
    out = capsys.readouterr().out
    assert "  confirmed by a real run: " in out
    assert "  its step was 2: write a 1 bytes at 0, at own.py:8 in save\n" in out, out


WORKER = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((noinline)) void save(int file) { if (write(file, "x", 1) != 1) _exit(3); fsync(file); }
int main(void) { int file = open("a", O_WRONLY | O_CREAT, 0644); save(file); return 0; }
"""


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        (["-pie"], r"save\+0x[0-9a-f]+ in worker"),
        (["-static"], r"save\+0x[0-9a-f]+ in worker"),
        (["-no-pie", "-s"], r"0x[0-9a-f]+ in worker"),
    ],
)
@pytest.mark.usefixtures("_steps")
def test_the_function_of_a_compiled_program_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], place: str
) -> None:
    """By its symbol, or by an offset where the file is stripped. A shell's functions are not."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("there is no C compiler")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worker.c").write_text(WORKER)
    subprocess.run([compiler, "-O1", *flags, "-o", "worker", "worker.c"], check=True)
    check = "sh -c '[ ! -e a ] || [ -s a ] || { echo it is empty; exit 1; }'"
    for command, at in ((str(tmp_path / "worker"), f", at {place}\n"), ("sh -c 'echo > a'", r"\n")):
        assert run(["explore", "--run", command, "--check", check, "--seed", "s", "--faults", "crash"]) == 1
        assert re.search(rf"2: write a 1 bytes at 0{at}", capsys.readouterr().out), command
