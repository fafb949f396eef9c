"""A watched folder, a mark file and a step source, for tests of decoding and of seccomp."""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_chaos.runtime.marks import Marks
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.seccomp import SeccompSource
from pytest_chaos.trace.source import Watch

from tests.harness.evidence.replaying import Replay, contents

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.trace.source import Directive, Observation
    from pytest_chaos.trace.step import Step

LIBC = ctypes.CDLL(None, use_errno=True)
MODE = 0o640
WATCH = Watch()


class Lab:
    """A folder to be watched, a mark file, and a source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / "watched"
        self.directory.mkdir()
        self.marks = folder / "marks.jsonl"
        self.marks.touch()
        self.source = SeccompSource()
        self._count = 0

    def watch(
        self,
        program: Callable[[], object] | list[str],
        *,
        directive: Directive = WATCH,
        **options: Any,
    ) -> Observation:
        """Run a program in the watched folder without recording it."""
        called = program if isinstance(program, list) else (lambda: _ignore(program()))
        return self.source.observe(called, self.directory, marks=self.marks, directive=directive, **options)

    def record(self, program: Callable[[], object] | list[str]) -> tuple[Observation, Recording]:
        """Run and record a program; check that the recording describes the folder that it left."""
        self._count += 1
        recorder = Recorder(self.folder / f"recording-{self._count}", "seccomp")
        observation = self.watch(program, recorder=recorder)
        recorder.close()
        recording = Recording(recorder.folder)
        assert observation.failure == ""
        replayed = self.folder / f"replayed-{self._count}"
        Replay(recording, replayed, self.folder / f"store-{self._count}").apply_until(recording.count)
        assert contents(replayed) == contents(self.directory)
        return observation, recording

    def again(self) -> None:
        """Empty the watched folder and the marks."""
        shutil.rmtree(self.directory)
        self.directory.mkdir()
        self.marks.write_bytes(b"")


def _ignore(_: object) -> None:
    """Return nothing, whatever came."""


def said(steps: tuple[Step, ...] | list[Step]) -> list[str]:
    """Return the steps in words, without their numbers."""
    return [str(step).partition(": ")[2] for step in steps if not step.is_mark]


def ten_checkpoints(marks_path: Path, count: int = 10) -> None:
    """Keep ten rows in SQLite, and mark each."""
    marks = Marks(marks_path, "agent")
    connection = sqlite3.connect("a.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, body BLOB)")
    for number in range(count):
        marks.intent("put", number)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows VALUES (?, ?)", (number, b"%06d" % number * 700))
        connection.execute("COMMIT")
        marks.ack("put", number)
    connection.close()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; whose child it is may be for somebody else to see."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] == b"Z"
    except OSError:
        return True
