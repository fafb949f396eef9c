"""A worker of a queue that nobody here wrote; its effects are lines of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scenarios.paused.libraries import JOB, LIBRARIES

if TYPE_CHECKING:
    from pytest_chaos import Marks


def put(marks: Marks, library: str, directory: str) -> None:
    """Put the job."""
    LIBRARIES[library].put(Path(directory))
    marks.ack("put", JOB)


def work(marks: Marks, library: str, directory: str, effects: str, name: str) -> None:
    """Do the job, if this worker gets it."""

    def body() -> None:
        marks.ack("took", JOB, value=name)
        marks.intent("effect", JOB)
        with Path(effects).open("a", encoding="utf-8") as file:
            file.write(f"{JOB}\n")
        marks.ack("effect", JOB)

    marks.note("outcome", value=LIBRARIES[library].work(Path(directory), body))
