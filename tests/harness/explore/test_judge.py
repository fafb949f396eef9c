"""The workers that judge states: they live on, are replaced when they must,
and leave nothing behind.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.judge import Judgement, Pool, StateTask
from pytest_chaos.explore.launch import step_source
from pytest_chaos.explore.record import Known
from pytest_chaos.explore.simulate.content import Content, PageStore
from pytest_chaos.explore.simulate.folder import MANY_FILES
from pytest_chaos.explore.simulate.state import Item
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Mark, MarkKind
from pytest_chaos.runtime import processes as tree
from pytest_chaos.trace.source import KillBefore, Watch

from tests.harness.explore.explored import Careful

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MARKS = tuple(Mark(kind=MarkKind.ACK, operation="put", key=key, order=key) for key in range(5))


class Told(Careful):
    """Does to its process what the state says."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> Iterator[str]:
        """Look at the state, and obey."""
        word = (directory / "word").read_text()
        if word == "hang":
            signal.pause()
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "chdir":
            os.chdir("/")
        if word == "open":
            self.left_open = (directory / "word").open("rb")
        if word == "grow":
            self.leak = getattr(self, "leak", b"") + b"x" * (600 << 20)
        yield f"{os.getpid()} {word} {len(marks)} {Path.cwd() != Path('/')}"


def _state(word: str) -> dict[str, Item]:
    return {"word": Item("file", 0o644, 2, Content(PageStore()).write(0, word.encode()))}


class Asked:
    """A pool with what it said, in the order of saying."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.pool = Pool(Known(subject_of(Told), _source(), MARKS, ()), folder, **options)
        self.heard: list[tuple[str, Judgement]] = []

    def ask(self, word: str, marks: int = 0) -> None:
        """Have a state judged."""
        self.heard += self.pool.submit(StateTask(_state(word), marks), word)

    def answers(self) -> dict[str, list[str]]:
        """Wait, and return for each word the answers (or the signature of what is about the
        harness).
        """
        self.heard += self.pool.drain()
        found: dict[str, list[str]] = {}
        for word, judgement in self.heard:
            for finding in judgement.findings:
                about_process = finding.signature.startswith(("harness:", "liveness:"))
                found.setdefault(word, []).append(finding.signature if about_process else finding.text)
        return found


def _source() -> Any:
    try:
        return step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    """Give a pool of one worker."""
    asked = Asked(tmp_path, timeout_s=30.0)
    yield asked
    asked.pool.close()


def _pid(answer: str) -> int:
    return int(answer.split()[0])


def test_one_process_judges_many_states(asked: Asked) -> None:
    """States cost a message, not a process; each is told the marks that were seen before it."""
    for marks in range(5):
        asked.ask("look", marks)

    answers = asked.answers()["look"]
    assert len({_pid(answer) for answer in answers}) == 1
    assert [answer.split(" ", 1)[1] for answer in answers] == [f"look {marks} True" for marks in range(5)]


@pytest.mark.parametrize(("word", "signature"), [("hang", "liveness:check-hangs"), ("die", "harness:check-died")])
def test_a_worker_that_is_lost_is_replaced(tmp_path: Path, word: str, signature: str) -> None:
    """The state it was at is told apart, the one that waited behind it is judged by the next
    worker.
    """
    asked = Asked(tmp_path, timeout_s=6.0)
    for each in ("look", word, "after", "after"):
        asked.ask(each)

    answers = asked.answers()
    asked.pool.close()
    assert answers[word] == [signature]
    assert len(answers["after"]) == 2
    assert _pid(answers["look"][0]) != _pid(answers["after"][0])


def test_a_worker_that_has_grown_is_replaced_without_blame(asked: Asked) -> None:
    """A check that leaks half a gigabyte is judged like any other, and its process is let go."""
    for each in ("grow", "after", "after"):
        asked.ask(each)

    answers = asked.answers()
    assert [len(answers[word]) for word in ("grow", "after")] == [1, 2]
    assert _pid(answers["grow"][0]) != _pid(answers["after"][0])


def test_a_check_that_changes_its_folder_does_not_move_the_next(asked: Asked) -> None:
    """The working folder is put back after each check."""
    for each in ("chdir", "look"):
        asked.ask(each)

    answers = asked.answers()
    assert answers["chdir"][0].endswith("False")
    assert answers["look"][0].endswith("True")


@pytest.mark.parametrize("word", ["fine", "open"])
def test_a_file_that_is_left_open_is_told(asked: Asked, word: str) -> None:
    """Of many files the next state keeps some, unless the check may still write to them."""
    others = {f"f{number}": Item("file", 0o644, number, Content(PageStore())) for number in range(3, MANY_FILES + 3)}
    judged = [asked.pool.judge(StateTask({**_state(word), **others})) for _ in range(5)]

    assert not judged[0].is_open, "each folder has had one state"
    assert judged[4].is_open == (word != "fine")


def test_several_workers_share_the_states(tmp_path: Path) -> None:
    """With two jobs two processes judge; nothing is judged twice, or not at all."""
    asked = Asked(tmp_path, jobs=2)
    for _ in range(40):
        asked.ask("look")
    answers = asked.answers()["look"]
    asked.pool.close()

    assert len(answers) == 40
    assert len({_pid(answer) for answer in answers}) == 2


def test_closing_leaves_no_process(tmp_path: Path) -> None:
    """Also with states still waiting, and twice."""
    before = {process.pid for process in tree.descendants(os.getpid())}
    asked = Asked(tmp_path, jobs=2)
    asked.ask("hang")
    asked.pool.close()
    asked.pool.close()

    assert {process.pid for process in tree.descendants(os.getpid()) if process.alive} <= before


def test_a_real_run_is_judged_and_compared_with_its_own_recording(tmp_path: Path) -> None:
    """A worker runs the program under a directive:
    it says whether that fired, and what was left.
    """
    with Pool(Known(subject_of(Careful), _source(), (), ()), tmp_path) as pool:
        killed, whole = [
            pool.judge(StateTask({}, directive=directive, run_timeout_s=60))
            for directive in (KillBefore(number=3), Watch())
        ]

    assert (killed.fired, killed.signal, killed.differences, killed.marks) == (True, 9, (), 1)
    assert (whole.fired, whole.exit_code, whole.findings, whole.marks) == (False, 0, (), 4)
