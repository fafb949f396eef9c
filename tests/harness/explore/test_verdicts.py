"""A verdict is never made of a mistake: marks that are none, checks that say nothing,
recoveries that fail.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest
from pytest_chaos.cli.main import run
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.judge import Judgement, Pool, StateTask
from pytest_chaos.explore.launch import step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.session import Saved, Session
from pytest_chaos.explore.simulate.state import Item, State
from pytest_chaos.model.values import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HELD, VIOLATED, INCONCLUSIVE, MISTAKE = range(4)

WORKER = """#!/bin/sh
for number in 1 2; do
  echo "$number" >> orders.txt
  MARK
done
"""
GOOD_MARK = 'echo "{\\"kind\\":\\"ack\\",\\"operation\\":\\"order\\",\\"key\\":$number}" >> "$CHAOS_MARKS"'

TARGETS = """
import json
from pathlib import Path

class Base:
    def run(self, directory, marks):
        for number in range(3):
            (Path(directory) / "s.json").write_text(json.dumps({"number": number}))
            marks.ack("s", number)

    def is_bad(self, directory):
        try:
            json.loads((Path(directory) / "s.json").read_text())
        except FileNotFoundError:
            return False
        except ValueError:
            return True
        return False

    def check(self, directory, marks):
        return []

class Assert(Base):
    def check(self, directory, marks): assert not self.is_bad(directory), "the file is torn"

class Bool(Base):
    def check(self, directory, marks): return not self.is_bad(directory)

class Str(Base):
    def check(self, directory, marks): return "torn" if self.is_bad(directory) else ""

class Text(Base):
    def check(self, directory, marks): return "torn" if self.is_bad(directory) else None

class Print(Base):
    def check(self, directory, marks):
        if self.is_bad(directory): print("torn")

class Mapping(Base):
    def check(self, directory, marks): return {"torn": self.is_bad(directory)}

class NoCheck(Base):
    check = None

class TwoArgs(Base):
    def check(self, directory): return []

class OneArg(Base):
    def run(self, directory): pass

class Raises(Base):
    def check(self, directory, marks):
        path = Path(directory) / "s.json"
        return [] if not path.exists() or json.loads(path.read_text()) else ["none"]

class BadRecover(Base):
    def recover(self, directory):
        if (path := Path(directory) / "s.json").exists():
            json.loads(path.read_text())  # it cannot start again

class ExitsInRecover(BadRecover):
    def recover(self, directory):
        raise SystemExit(3 if self.is_bad(directory) else 0)

class AlwaysBadRecover(Base):
    def recover(self, directory):
        import no_such_module

class FullDisk(Base):
    def recover(self, directory):
        if self.is_bad(directory): raise OSError(28, "No space left on device")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("kinds_of_checks", None)
    (tmp_path / "kinds_of_checks.py").write_text(TARGETS)
    for name in ("worker", "check", "recover"):
        _script(tmp_path, name, "exit 0")
    _script(tmp_path, "worker", WORKER.replace("MARK", GOOD_MARK))


def _script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def _commands(*arguments: str) -> int:
    return run(["explore", "--run", "./worker", "--check", "./check", "--seed", "s", "--faults", "crash", *arguments])


def _target(name: str, *arguments: str) -> int:
    return run(["explore", f"kinds_of_checks.py:{name}", "--seed", "s", *arguments])


# Marks


@pytest.mark.parametrize(
    ("mark", "wrong"),
    [
        ('echo "ack order $number" >> "$CHAOS_MARKS"', "line 1 (not JSON): ack order 1"),
        (GOOD_MARK.replace("ack", "acked"), 'line 1 (unknown kind "acked": one of intent, ack, note)'),
        (GOOD_MARK.replace("operation", "op"), 'line 1 (missing "operation")'),
        (GOOD_MARK.replace("key", "id"), 'line 1 (unknown field "id": known are kind, operation, key'),
        (GOOD_MARK.replace("}", ""), "line 1 (cut short)"),
        (GOOD_MARK.replace(">>", ">"), "the mark file was written over"),
    ],
)
def test_a_line_that_is_no_mark_is_no_pass(
    tmp_path: Path, mark: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A promise that cannot be read was not checked:
    INCONCLUSIVE, with the line, its number and what is wrong.
    """
    _script(tmp_path, "worker", WORKER.replace("MARK", mark))

    assert _commands() == INCONCLUSIVE
    assert wrong in capsys.readouterr().out


def test_a_line_that_only_an_error_makes_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that an I/O error sends another way may write what is no mark,
    which the clean run did not.
    """
    worker = WORKER.replace("MARK", GOOD_MARK)
    _script(tmp_path, "worker", worker.replace("orders.txt", 'orders.txt || echo failed >> "$CHAOS_MARKS"'))

    assert _commands("--faults", "io") == INCONCLUSIVE
    assert "line 1 (not JSON): failed" in capsys.readouterr().out


# What a check command may answer


@pytest.mark.parametrize(
    ("check", "code", "said"),
    [
        ("exit 0", HELD, "3 of 3 crash points"),
        ("echo all is well >&2", HELD, "on standard error: all is well"),
        ("echo order 1 is lost", INCONCLUSIVE, "printed 'order 1 is lost' and exited 0: exit 1 for findings"),
        ("[ -e orders.txt ] || { echo it is lost; exit 1; }", VIOLATED, "it is lost"),
        ("[ -e orders.txt ] || { echo lost; echo no such file >&2; exit 1; }", VIOLATED, "error: no such file"),
        ("[ -e orders.txt ] || exit 1", INCONCLUSIVE, "exited 1 and printed no finding"),
        ("set -e; cat orders.txt > /dev/null", INCONCLUSIVE, "on standard error: cat:"),
        ("no-such-program orders.txt", INCONCLUSIVE, "exit code 127 (a program that it names was not found)"),
        ("kill -9 $$", INCONCLUSIVE, "ended with signal 9"),
        ("echo lost; exit 2", INCONCLUSIVE, "ended with exit code 2"),
    ],
)
def test_a_check_command_answers_with_its_exit_and_its_lines(
    tmp_path: Path, check: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 0 and silence holds, exit 1 with lines is violated, anything else decides nothing;
    stderr is shown.
    """
    _script(tmp_path, "check", check)

    assert _commands() == code
    assert said in capsys.readouterr().out


def test_a_recover_command_that_fails_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program that does not start again after a crash is violated,
    with its exit and what it said.
    """
    _script(tmp_path, "recover", "[ -e orders.txt ] && exit 0; echo no orders.txt >&2; exit 4")

    assert _commands("--recover", "./recover") == VIOLATED
    out = capsys.readouterr().out
    assert "it does not start again: the recover command ended with exit code 4; it printed: no orders.txt" in out
    assert "again: chaos explore --run ./worker --check ./check --recover ./recover --seed s --state 'crash:1'" in out


@pytest.mark.parametrize("recover", ["exit 1", "no-such-program"])
def test_a_recover_command_that_never_works_decides_nothing(
    tmp_path: Path, recover: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any fault it fails as well, so it may be the command that is wrong."""
    _script(tmp_path, "recover", recover)

    assert _commands("--recover", "./recover") == INCONCLUSIVE
    assert "without any fault" in capsys.readouterr().out


def test_a_setup_command_is_there_before_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it makes is in every state; where it fails nothing is run."""
    _script(tmp_path, "check", "[ -e base ] || { echo no base; exit 1; }")

    assert _commands("--setup", "touch base") == HELD
    assert _commands() == VIOLATED
    assert _commands("--setup", "false") == INCONCLUSIVE
    assert "the setup command ended with exit code 1; nothing was run" in capsys.readouterr().out


def test_a_recovery_that_is_a_command_is_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own steps are crash points as those of a recover() are."""
    _script(tmp_path, "recover", "rm -f orders.txt; echo 0 > orders.txt")
    _script(tmp_path, "check", "[ -s orders.txt ] || { echo no orders; exit 1; }")

    assert _commands("--recover", "./recover", "--faults", "recovery") == HELD
    assert "recoveries, interrupted in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run", "./worker", "--recover", "./recover"], "--recover must come with --check"),
        (["kinds_of_checks.py:Base", "--recover", "./recover"], "--recover must come with --run"),
    ],
)
def test_commands_that_do_not_go_together_are_mistakes(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recover command of a Python target would be left out without a word."""
    assert run(["explore", *arguments]) == MISTAKE
    assert said in capsys.readouterr().err


# What a check in Python may answer


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("Assert", VIOLATED, "the file is torn"),
        ("Text", VIOLATED, "Text: torn"),
        ("Bool", INCONCLUSIVE, "got True (bool). Return [] where all is well"),
        ("Str", INCONCLUSIVE, "answered with an empty text"),
        ("Print", INCONCLUSIVE, "printed 'torn' and returned nothing"),
        ("Mapping", INCONCLUSIVE, "got {'torn': False} (dict)"),
        ("NoCheck", MISTAKE, "NoCheck must have run(directory, marks) and check(directory, marks); got no check"),
        ("TwoArgs", MISTAKE, "TwoArgs.check must take (directory, marks); got (directory)"),
        ("OneArg", MISTAKE, "OneArg.run must take (directory, marks); got (directory)"),
        ("Raises", INCONCLUSIVE, "(at kinds_of_checks.py:54: return [] if not path.exists() or json.loads("),
    ],
)
def test_a_check_in_python_is_understood_or_told(
    target: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each answer has one meaning; one without is a sentence, shows no frame but the user's,
    and is no pass.
    """
    assert _target(target, "--faults", "crash") == code

    out, err = capsys.readouterr()
    assert said in out + err
    assert "Traceback" not in out + err
    assert "target.py" not in out + err


# Recovery


def test_a_recovery_that_raises_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    """It does not start again after the crash: VIOLATED, with the user's line,
    the state and the way to repeat it.
    """
    assert _target("BadRecover", "--faults", "crash") == VIOLATED

    out = capsys.readouterr().out
    assert "it does not start again: recover() raised JSONDecodeError" in out
    assert "(at kinds_of_checks.py:59: json.loads(path.read_text())" in out
    assert "decoder.py" not in out
    assert "the state: chaos-results/" in out
    state = out.partition("--state '")[2].partition("'")[0]
    assert _target("BadRecover", "--state", state) == VIOLATED


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("ExitsInRecover", VIOLATED, "recover() exited with 3"),
        ("AlwaysBadRecover", INCONCLUSIVE, "No module named 'no_such_module' (at kinds_of_checks.py:67: import no_"),
        ("FullDisk", INCONCLUSIVE, "recover() met an error of this machine"),
    ],
)
def test_a_recovery_is_judged_by_how_it_ends(
    target: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exit that is not 0 is a failure; one that comes without any fault, or from the machine,
    decides nothing.
    """
    assert _target(target, "--faults", "crash") == code
    assert said in capsys.readouterr().out


def test_a_family_with_nothing_to_explore_is_not_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recoveries that make no step leave nothing to interrupt:
    that is said, and is a pass of no kind.
    """
    assert _target("Base", "--faults", "crash,recovery", "--json", "found.json") == HELD
    assert "no recovery makes a durable step (" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "found.json").read_text())["families"]["recovery"]["verdict"] == "not explored"

    assert _target("Base", "--faults", "recovery") == INCONCLUSIVE
    assert "nothing was judged: not explored: no recovery " in capsys.readouterr().out


# An exploration that goes on


class _Judge:
    """Stands for the workers: finds fault with every state, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    until_s = 0.0
    save_every_s = Pool.save_every_s
    gone = ""

    def submit(self, task: StateTask, about: tuple[int, State]) -> list[tuple[tuple[int, State], Judgement]]:
        """Judge at once."""
        del task
        self.asked.append(about[1].code)
        return [(about, Judgement(findings=(Finding(signature="lost", text="lost"),)))]

    def drain(self) -> Sequence[tuple[State, Judgement]]:
        """Return nothing: nothing waits."""
        return []


class _LateJudge(_Judge):
    """Answers in the end, the last state first; each state has its own finding of one signature."""

    def __init__(self) -> None:
        super().__init__()
        self._late: list[tuple[tuple[int, State], Judgement]] = []

    def submit(self, task: StateTask, about: tuple[int, State]) -> list[tuple[tuple[int, State], Judgement]]:
        """Keep the answer back."""
        self._late += super().submit(task, about)
        return []

    def drain(self) -> Sequence[tuple[tuple[int, State], Judgement]]:  # type: ignore[override]
        """Return the answers in reverse."""
        late, self._late = self._late[::-1], []
        return late


def test_the_first_of_equal_findings_is_told_however_workers_answer(tmp_path: Path) -> None:
    """States at one step are equally good; the one that was handed in first is shown."""
    states = [State(f"power:{name}", 4, 1, {name: Item("folder", 0o755, number)}) for number, name in enumerate("dcba")]
    codes = []
    for judge in (_Judge(), _LateJudge()):
        options = Options(seed="s", families=(Family.POWER,))
        session = Session(options, judge, tmp_path, saved=Saved(fingerprint="f"))  # type: ignore[arg-type] # a pool
        found = session.collector(Family.POWER, lambda _: "")
        found.judge(states, model="ext4")
        codes.append([(each.code, each.states) for each in found.grouped()])
    assert codes == [[("power:d", 4)], [("power:d", 4)]]


@pytest.mark.parametrize("stopped_after", [0, 1, 3, 4, 6])
def test_a_finding_of_the_second_model_is_not_lost_by_a_stop(tmp_path: Path, stopped_after: int) -> None:
    """A state that was judged before the stop shows its finding in the other model, too,
    as without a stop.
    """
    states = [State(f"power:{number}", number, number, {}) for number in range(4)]

    def explore(saved: Saved, count: int = 8) -> tuple[set[tuple[str, str, int]], int]:
        options = Options(seed="s", families=(Family.POWER,), progress=tmp_path / "progress.json")
        session = Session(options, _Judge(), tmp_path, saved=saved)  # type: ignore[arg-type] # stands for a pool
        found = session.collector(Family.POWER, lambda _: "")
        found.judge(states[:count], model="ext4")
        found.judge(states[: max(0, count - len(states))], model="strict")
        found.save()
        return {(each.signature, each.model, each.states) for each in found.discoveries}, found.states

    whole = explore(Saved(fingerprint="f"))
    assert whole == ({("lost", "ext4", 4), ("lost", "strict", 4)}, 4)

    explore(Saved(fingerprint="f"), stopped_after)
    rest = msgspec.json.decode((tmp_path / "progress.json").read_bytes(), type=Saved)
    assert explore(rest) == whole
