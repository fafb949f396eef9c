"""I/O errors at steps that not every run makes, and where no call can fail."""

from __future__ import annotations

import mmap
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.families.io import troubles
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Exploration, Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Verdict
from pytest_chaos.trace.step import Action, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pytest_chaos.runtime.marks import Marks


def _explored(act: Callable[[Path], None], *families: Family, files: Iterable[str] = ()) -> Exploration:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))

    def setup(directory: Path) -> None:
        for name in files:
            (directory / name).write_bytes(bytes(mmap.PAGESIZE))

    def run(directory: Path, marks: Marks) -> None:
        act(directory)
        marks.ack("done")

    target = SimpleNamespace(name="target", setup=setup, run=run, check=lambda *_: [])
    return launch(subject_of(target), Options(seed="s", families=families))


def test_a_run_that_is_shorter_makes_the_errors_a_sample() -> None:
    """A step that no further run comes to cannot fail there, and decides nothing."""
    source, sink = os.pipe()
    os.write(sink, b"123")
    os.close(sink)

    def act(directory: Path) -> None:
        (directory / "a").write_bytes(b"x")
        if os.read(source, 1):  # in the first three runs
            (directory / "b").touch()

    explored = _explored(act, Family.IO)
    os.close(source)
    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert explored.families[0].coverage == "6 of 8 I/O errors (sampled)"


@pytest.mark.parametrize(("call", "has_short"), [("write", True), ("sendfile", False), ("copy_file_range", False)])
def test_a_copy_by_the_kernel_is_never_short(call: str, *, has_short: bool) -> None:
    """A part of it cannot be done in its place, and a copy of nothing would be the file's end."""
    step = Step(number=1, action=Action.WRITE, call=call, length=10)
    assert any(trouble.short_bytes for trouble in troubles(step)) is has_short


def test_a_program_that_stores_through_memory_alone_has_no_call_to_fail() -> None:
    """That is no hole in a verdict: there is nothing to try."""

    def act(directory: Path) -> None:
        with (directory / "a").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[:1] = b"x"

    explored = _explored(act, Family.CRASH, Family.IO, files=["a"])
    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert explored.families[1].judged == "not explored"
    assert "no step is a call that could fail" in explored.coverage
