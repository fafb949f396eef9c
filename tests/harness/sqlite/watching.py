"""Programs that are run once, watched: their events, and what these show."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.sqlite.detect import judged
from pytest_chaos.trace.calls.touches import EventLog
from pytest_chaos.trace.seccomp import SeccompSource
from pytest_chaos.trace.survey import SharedLines, trace_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_chaos.sqlite.detect import SqliteJudgement
    from pytest_chaos.trace.step import Event

TIMEOUT_S = 120.0


def events_of(program: Callable[[], object], folder: Path, directory: Path | None = None) -> list[Event]:
    """Run a program in a folder of its own, or in ``directory``; return its events.

    Skips where no step can be seen.
    """
    source = SeccompSource()
    try:
        source.try_out()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    directory = directory or folder / "watched"
    directory.mkdir(exist_ok=True)
    lines = SharedLines(folder / "lines")
    events: list[Event] = []

    def run() -> None:
        os.chdir(directory)
        trace_lines(lines.put)
        program()

    seen = source.observe(
        run, directory, marks=folder / "marks", lines=lines, events=EventLog(events.append), timeout_s=TIMEOUT_S
    )
    assert (seen.exit_code, seen.failure) == (0, ""), seen.output
    return events


def watched(program: Callable[[], object], folder: Path, directory: Path | None = None) -> SqliteJudgement:
    """Run a program in a folder of its own, or in ``directory``; return what it did to SQLite."""
    return judged(
        events_of(program, folder, directory),
        name_of=lambda process: "" if process == "1" else f"process {process}",
        power=True,
    )
