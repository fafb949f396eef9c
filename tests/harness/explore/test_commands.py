"""Commands as targets: what is named from the current folder works in the explored one,
and mistakes are told.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.launch import step_source

HELD, VIOLATED, INCONCLUSIVE, MISTAKE = range(4)

WORKER = """#!/bin/sh
for number in 1 2 3; do
  echo "$number" >> "$1/numbers"
  echo "{\\"kind\\": \\"ack\\", \\"operation\\": \\"put\\", \\"key\\": $number}" >> "$CHAOS_MARKS"
done
"""
CHECK = """#!/bin/sh
acknowledged=$(grep -c ack "$CHAOS_MARKS")
found=$(cat numbers 2> /dev/null | wc -l)
[ "$found" -ge "$acknowledged" ] && exit 0
echo "$acknowledged were acknowledged, and $found are there"
exit 1
"""


TARGET = """
class Target:
    def run(self, directory, marks):
        for number in range(20):
            (directory / str(number)).write_text("x")

    def check(self, directory, marks):
        return []
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    for name, text in (("worker", WORKER), ("check", CHECK)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)


def _explore(program: str, check: str, *arguments: str) -> int:
    return run(["explore", "--run", program, "--check", check, "--seed", "s", *arguments])


def test_programs_of_the_current_folder_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    """A script that is named as in a shell is found, though it works in another folder;
    so is one that sh is given.
    """
    assert _explore("./worker .", "sh check", "--faults", "crash,power") == VIOLATED

    out = capsys.readouterr().out
    assert "4 of 4 crash points" in out
    assert "worker: 1 were acknowledged, and 0 are there" in out
    state = out.partition("--state '")[2].partition("'")[0]
    assert _explore("./worker .", "sh check", "--state", state) == VIOLATED


@pytest.mark.parametrize(
    ("program", "check", "said"),
    [
        ("./no-such-worker", "./check", "--run must name a program that can be executed; got './no-such-worker'"),
        ("./worker .", "no-such-check", "--check must name a program that can be executed; got 'no-such-check'"),
        ("./no-mode", "./check", "got './no-mode'. Make it executable: chmod +x ./no-mode"),
        ("./worker '", "./check", "--run must be a command line; got "),
        ("./worker", "", "--check must be a command"),
    ],
)
def test_commands_that_cannot_run_are_mistakes(
    program: str, check: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that is not there is told before anything runs,
    and not as a target that made no step.
    """
    Path("no-mode").write_text(WORKER)
    assert _explore(program, check) == MISTAKE

    assert said in capsys.readouterr().err


def test_a_check_command_that_hangs_is_a_liveness_finding(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that never ends is bounded like any check."""
    assert _explore("./worker .", "sleep 60", "--faults", "crash", "--check-timeout", "0.2") == VIOLATED

    assert "[liveness:check-hangs]" in capsys.readouterr().out


def test_another_check_begins_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was found by a check that has been mended since is nobody's finding;
    the same one goes on from there.
    """
    strict = (tmp_path / "check").read_text()
    arguments = ("--faults", "crash,power,io", "--budget", "0.001s")
    _explore("./worker .", "sh check", *arguments)
    (progress,) = tmp_path.glob("chaos-results/explore/worker-*/progress-*.json")
    first = json.loads(progress.read_text())["fingerprint"]
    _explore("./worker .", "sh check", *arguments)
    assert json.loads(progress.read_text())["fingerprint"] == first

    (tmp_path / "check").write_text(f"{strict}# mended\n")
    _explore("./worker .", "sh check", *arguments)
    assert json.loads(progress.read_text())["fingerprint"] != first

    (tmp_path / "mine.py").write_text(TARGET)
    assert run(["explore", "mine.py", "--seed", "s", "--faults", "crash,power", "--budget", "0.001s"]) != HELD
    (progress,) = tmp_path.glob("chaos-results/explore/mine-*/progress-*.json")
    first = json.loads(progress.read_text())["fingerprint"]
    (tmp_path / "mine.py").write_text(TARGET.replace("[]", "list(())"))
    sys.modules.pop("mine", None)
    run(["explore", "mine.py", "--seed", "s", "--faults", "crash,power", "--budget", "0.001s"])
    assert not progress.exists() or json.loads(progress.read_text())["fingerprint"] != first
    capsys.readouterr()


def test_a_function_is_no_target_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two functions are the target of their module; naming one of them is told as what it is."""
    (tmp_path / "two.py").write_text("def run(directory, marks): ...\ndef check(directory, marks): ...\n")

    assert run(["explore", "two.py:run"]) == MISTAKE
    assert "got the function run. Give two.py alone" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder for results that cannot be made is told with its option."""
    assert _explore("./worker .", "./check", "--results", "/proc/nowhere") == MISTAKE

    assert "--results" in capsys.readouterr().err


def test_init_runs_a_module_of_the_current_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m`` looks in the folder where it was typed, wherever the target will run it."""
    (tmp_path / "mine.py").write_text("open('data.json', 'w').write('{}')")

    assert run(["init", "--file", "of_a_module.py", "--seed", "s", "--", "python", "-m", "mine"]) == VIOLATED
    assert "data.json is no JSON any more" in capsys.readouterr().out


def test_a_check_may_read_every_line_of_the_marks_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a check command is given has a mark on each line, and no line without one."""
    (tmp_path / "reader.py").write_text(
        "import json, os\nfor line in open(os.environ['CHAOS_MARKS']): json.loads(line)\n"
    )

    assert _explore("./worker .", "python3 reader.py", "--faults", "crash") == HELD, capsys.readouterr().out


def test_a_check_finds_the_marks_as_the_program_wrote_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that looks for them with grep found none, and so held, when spaces were taken out.
    A mark that is written in two pieces, as bash does, is one mark.
    """
    (tmp_path / "work").write_text(
        """#!/bin/sh
        ack() { printf '\n' >> "$CHAOS_MARKS"
          printf '{"kind": "ack", "operation": "put", "key": %d}\n' $1 >> "$CHAOS_MARKS"; }
        ack 7; echo 7 > "$1/numbers"; ack 8\n"""
    )
    (tmp_path / "look").write_text(
        """#!/bin/sh
        grep -q '"operation": "put", "key": 7}$' "$CHAOS_MARKS" && [ ! -s numbers ] && echo "7 is lost" && exit 1
        exit 0\n"""
    )
    for name in ("work", "look"):
        (tmp_path / name).chmod(0o755)

    assert _explore("./work .", "./look", "--faults", "crash,recovery") == VIOLATED
    out = capsys.readouterr().out
    assert "7 is lost" in out
    assert "(3 of 3 recoveries)" in " ".join(out.split())


def test_a_check_that_speaks_on_standard_error_only_decides_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Tools that fail speak there, and those that find fault:
    it is shown, with what a finding is.
    """
    assert _explore("./worker .", "sh -c 'echo page 7 is bad >&2; exit 1'", "--faults", "crash") == INCONCLUSIVE

    out = capsys.readouterr().out
    assert "without any fault" in out
    assert "page 7 is bad" in out


def test_a_check_command_that_raises_decides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python ends with 1 after an exception too: that is a broken check, and no finding."""
    (tmp_path / "broken.py").write_text("raise KeyError('boo')\n")

    assert _explore("./worker .", "python3 broken.py", "--faults", "crash") == INCONCLUSIVE
    assert "KeyError: 'boo'" in capsys.readouterr().out
