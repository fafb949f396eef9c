"""A state machine is explored as drawn workloads; the smallest that fails is kept for next time."""

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

MACHINES = """
import json, os, threading
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

KEYS = st.sampled_from("abc")

def save(path, data):
    fresh = path.with_name("fresh")
    with open(fresh, "w") as file:
        file.write(json.dumps(data))
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)

class Sound(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.path = self.directory / "store.json"
        self.data = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.model = {}

    @rule(key=KEYS, value=st.integers(0, 9))
    def put(self, key, value):
        self.data[key] = value
        save(self.path, self.data)
        self.model[key] = value

    @rule(key=KEYS)
    def remove(self, key):
        self.data.pop(key, None)
        self.save_removal()
        self.model.pop(key, None)

    def save_removal(self):
        save(self.path, self.data)

    @invariant()
    def agrees(self):
        assert self.data == self.model, f"{self.data} is there, and {self.model} should be"

class InTwo(Sound):
    def save_removal(self):
        if self.path.exists():
            self.path.unlink()
            save(self.path, self.data)

class Wrong(Sound):
    def save_removal(self):
        self.data["z"] = 1

class Handles(RuleBasedStateMachine):
    handles = Bundle("handles")

    @rule(target=handles, name=KEYS)
    def make(self, name):
        (self.directory / name).write_text("")
        return (self.directory / name).open("a")

    @rule(handle=handles)
    def append(self, handle):
        handle.write("x")
        handle.flush()

    @invariant()
    def is_there(self):
        assert all(path.read_text().strip("x") == "" for path in self.directory.iterdir())

class NoPickle(Sound):
    def __init__(self):
        super().__init__()
        self.model = threading.Lock()

class NoRules(RuleBasedStateMachine):
    pass

class Idle(RuleBasedStateMachine):
    @rule()
    def nothing(self):
        pass
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    (tmp_path / "machines.py").write_text(MACHINES)
    monkeypatch.chdir(tmp_path)


def _explored(folder: Path, name: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    wanted = ["--seed", "s", "--faults", "crash", "--workloads", "12", "--operations", "5", "--json", "found.json"]
    code = run(["explore", f"machines.py:{name}", *wanted, *arguments])
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return code, found


@pytest.mark.nightly
def test_a_sound_machine_holds(tmp_path: Path) -> None:
    """An operation under way may be done or not; what is done is there."""
    code, found = _explored(tmp_path, "Sound")

    assert (code, found["findings"]) == (HELD, [])
    assert "different workloads of" in found["notes"][0]
    assert "put(" in found["workload"]


def test_the_smallest_workload_that_fails_is_found(tmp_path: Path) -> None:
    """It takes a key, and the removal of another: one operation alone loses nothing."""
    code, found = _explored(tmp_path, "InTwo", "--workloads", "20")

    assert code == VIOLATED
    assert found["workload"] == "put(key='a', value=0); remove(key='b')"
    (cause,) = found["causes"]
    assert cause["signature"] == "invariant:agrees"
    assert "the invariant agrees does not hold: {} is there" in cause["text"]
    assert "1 of 2 operations were done, and remove(key='b') under way" in cause["text"]
    assert " in save" in cause["line"]

    state = cause["code"]
    assert run(["explore", "machines.py:InTwo", "--seed", "s", "--faults", "crash", "--state", state]) == VIOLATED

    code, again = _explored(tmp_path, "InTwo", "--seed", "another", "--workloads", "1")
    assert (code, again["workload"]) == (VIOLATED, found["workload"])  # one is drawn, after those that are kept


def test_what_is_wrong_without_a_fault_is_told_as_such(tmp_path: Path) -> None:
    """With the smallest workload that shows it."""
    code, found = _explored(tmp_path, "Wrong")

    assert code == VIOLATED
    (finding,) = found["findings"]
    assert finding["kind"] == "clean-run"
    assert "without any fault, after remove(key='a'): AssertionError: {'z': 1} is there" in finding["text"]


@pytest.mark.nightly
def test_results_of_rules_are_arguments_of_others(tmp_path: Path) -> None:
    """An object that a rule returns is not pickled: the operation that made it is named."""
    code, found = _explored(tmp_path, "Handles")
    assert code == HELD, found["findings"]
    assert "append(handle=" in found["workload"]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("NoPickle", MISTAKE, "the model of NoPickle must be plain data that can be pickled"),
        ("NoRules", MISTAKE, "NoRules must be a state machine that Hypothesis can run"),
        ("Idle", INCONCLUSIVE, "no workload made a durable step"),
    ],
)
def test_mistakes_are_told(name: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in a sentence."""
    assert run(["explore", f"machines.py:{name}", "--seed", "s", "--workloads", "2"]) == code
    out, err = capsys.readouterr()
    assert said in out + err


def test_bounds_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers below 1 draw nothing."""
    assert run(["explore", "machines.py:Sound", "--workloads", "0", "--operations", "-1"]) == MISTAKE
    err = capsys.readouterr().err
    assert "workloads must be at least 1" in err
    assert "operations must be at least 1" in err
