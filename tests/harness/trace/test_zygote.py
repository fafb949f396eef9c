"""The zygote: every run begins from the same memory, whatever the run before has done."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.runtime import processes as tree
from pytest_chaos.trace.seccomp import SeccompSource
from pytest_chaos.trace.source import KillBefore, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_chaos.trace.seccomp import SeccompRunner
    from pytest_chaos.trace.source import Directive, Observation, Program

COUNTED: list[int] = []
MODE = 0o640
WATCH = Watch()


class Lab:
    """A program with a zygote, a folder to be watched and a mark file."""

    def __init__(self, folder: Path, act: Callable[[Path], None]) -> None:
        self.directory = folder / "watched"
        self.directory.mkdir()
        self.marks = folder / "marks"
        self.runner: SeccompRunner = SeccompSource().runner(self._make)
        self._act = act

    def _make(self, directory: Path, _: Path) -> Program:
        return lambda: self._act(directory)

    def run(self, directive: Directive = WATCH) -> Observation:
        """Run it once more."""
        return self.runner.observe(self.directory, marks=self.marks, directive=directive, timeout_s=30)


@pytest.fixture
def before() -> Iterator[None]:
    """See that no process is left that was not there before."""
    known = {process.pid for process in tree.descendants(os.getpid())}
    yield
    assert {process.pid for process in tree.descendants(os.getpid())} <= known


@contextlib.contextmanager
def lab(folder: Path, act: Callable[[Path], None]) -> Iterator[Lab]:
    """Return a lab whose program does this, and close it."""
    made = Lab(folder, act)
    with contextlib.closing(made.runner):
        yield made


def _count(directory: Path) -> None:
    COUNTED.append(1)
    (directory / f"run-{len(COUNTED)}").write_bytes(b"")
    print(f"this is run {len(COUNTED)}")


@pytest.mark.usefixtures("before")
def test_every_run_begins_from_the_same_memory(tmp_path: Path) -> None:
    """What one run has changed in its memory, or printed, the next does not have."""
    with lab(tmp_path, _count) as made:
        for _ in range(3):
            seen = made.run()
            assert [step.path for step in seen.steps] == ["run-1"]
            assert seen.output == "this is run 1\n"
            (made.directory / "run-1").unlink()


@pytest.mark.usefixtures("before")
def test_runs_follow_each_other_whatever_ended_the_last(tmp_path: Path) -> None:
    """A kill, an error and a clean end leave no call, no number and no child for the next run."""

    def write(directory: Path) -> None:
        for number in range(3):
            (directory / f"{number}").write_bytes(b"x")
        raise SystemExit(len(os.listdir(directory)))

    with lab(tmp_path, write) as made:
        for number in (2, 4, 6):
            for path in made.directory.iterdir():
                path.unlink()
            killed = made.run(KillBefore(number=number))
            assert (killed.fired, killed.signal, killed.count) == (True, signal.SIGKILL, number - 1)
            assert len(list(made.directory.iterdir())) == number // 2
            whole = made.run()
            assert (whole.exit_code, whole.failure) == (3, "")


def _kill_parent(directory: Path) -> None:
    (directory / "a").write_bytes(b"x")
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()


@pytest.mark.usefixtures("before")
def test_a_program_that_kills_its_parent_is_killed_and_told(tmp_path: Path) -> None:
    """It dies with it, the observation says so, and the next run has a parent again."""
    with lab(tmp_path, _kill_parent) as made:
        for _ in range(2):
            seen = made.run()
            assert "was killed" in seen.failure
            assert seen.signal == signal.SIGKILL
            assert not seen.fired


@pytest.mark.usefixtures("before")
def test_a_zygote_is_replaced_when_it_was_killed_between_runs(tmp_path: Path) -> None:
    """The next run does not notice."""
    with lab(tmp_path, _count) as made:
        made.run()
        zygote = made.runner._zygote
        assert zygote is not None
        os.kill(zygote.pid, signal.SIGKILL)
        os.waitid(os.P_PID, zygote.pid, os.WEXITED | os.WNOWAIT)
        assert made.run().exit_code == 0


def _leave_at_once(directory: Path) -> None:
    if os.fork() == 0:
        os.setsid()
        signal.pause()
    (directory / "a").write_bytes(b"x")


@pytest.mark.usefixtures("before")
def test_a_daemon_of_each_run_is_ended_with_it(tmp_path: Path) -> None:
    """An orphan comes to the watching process though another one had started its parent."""
    with lab(tmp_path, _leave_at_once) as made:
        for _ in range(3):
            seen = made.run()
            assert (len(seen.left), seen.failure) == (1, "")


@pytest.mark.usefixtures("before")
def test_a_hook_at_forks_may_make_calls_that_are_trapped(tmp_path: Path) -> None:
    """It runs in the zygote, which wears the filter too, and would wait for ever."""
    is_on = True
    outside = tmp_path / "outside"

    def write() -> None:
        if is_on:
            with outside.open("a") as file:
                file.write("forked\n")

    os.register_at_fork(before=write, after_in_parent=write)
    try:
        with lab(tmp_path, _count) as made:
            assert made.run().exit_code == 0  # and not None, as it is after the time that a run has
    finally:
        is_on = False
    assert outside.read_text().count("forked") >= 2


def _make_and_remove_a_socket(directory: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        os.unlink("socket")
        descriptor = os.open(directory / "a", os.O_WRONLY | os.O_CREAT, MODE)
        os.write(1, b"printed")
        os.write(descriptor, b"x")


@pytest.mark.usefixtures("before")
def test_a_name_that_nobody_saw_come_may_go(tmp_path: Path) -> None:
    """What is written afterwards to a file that is none of the folder's is not taken for it."""
    with lab(tmp_path, _make_and_remove_a_socket) as made:
        seen = made.run()
        assert (seen.exit_code, seen.failure, seen.output) == (0, "", "printed")
        assert [str(step).partition(": ")[2] for step in seen.steps][-2:] == ["create a", "write a 1 bytes at 0"]
