"""Find the line of a Python program that makes a step.

System calls do not say which line made them. So the program runs once more up to the step, traces
its own lines into memory shared with this process, and is killed there. That costs a run, so only
findings get their line. For a call into the standard library or an installed package, the line is
the user's line that called it.

A step of another process has the line that ran meanwhile in the program, and says so. A command has
no lines that could be traced. A finding by audit events has the name of the event alone: there is
no recording to run up to.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_chaos.errors import ChaosError
from pytest_chaos.explore.record import prepared
from pytest_chaos.trace.source import KillBefore

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from pytest_chaos.explore.record import Recorded

LINES_MAX: Final = 12
"""At most this many findings get their line: each costs a run."""
TIMEOUT_S: Final = 10.0
"""Limit of such a run: line tracing is slow."""
_BYTES: Final = 4096
_OWN: Final = str(Path(__file__).parents[1]) + os.sep
_FOREIGN: Final = ("site-packages", "dist-packages")
_LIBRARIES: Final = tuple(
    {os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib")}
    | {sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")}
)


def line_at(recorded: Recorded, number: int, folder: Path, *, timeout_s: float) -> str:
    """Return the line that makes this step, as ``file.py:12 in work``; empty if not known."""
    place = folder / "line"
    try:
        with mmap.mmap(-1, _BYTES) as shared:
            directory, marks = prepared(recorded.subject, place, timeout_s=timeout_s), folder / "line.marks"
            program = recorded.subject.program(directory, marks)
            if not callable(program):
                return ""
            seen = recorded.source.observe(
                _traced(program, shared), directory, marks=marks, directive=KillBefore(number=number),
                expected=recorded.recording.steps, timeout_s=min(timeout_s, TIMEOUT_S),
            )  # fmt: skip
            said = shared[:].partition(b"\0")[0].decode(errors="replace")
            if not seen.fired or not said:
                return ""
            made = next(each for each in recorded.recording.steps if each.number == number and not each.is_mark)
            return said if made.process == 1 else f"{said}, by a process that it started"
    except (ChaosError, OSError):  # the line is an extra and changes no verdict
        return ""
    finally:
        shutil.rmtree(place, ignore_errors=True)
        (folder / "line.marks").unlink(missing_ok=True)


def is_of_user(file: str) -> bool:
    """Whether a file is the user's own: not Python's, an installed package's, or pytest_chaos's."""
    if file.startswith((_OWN, "<", *_LIBRARIES)):
        return False
    return not any(f"{os.sep}{name}{os.sep}" in file for name in _FOREIGN)


def _traced(program: Callable[[], None], shared: mmap.mmap) -> Callable[[], None]:
    def run() -> None:
        pid = os.getpid()

        def put(frame: FrameType | None) -> None:
            while frame is not None and not is_of_user(frame.f_code.co_filename):
                frame = frame.f_back
            if frame is not None and os.getpid() == pid:
                code = frame.f_code
                file = code.co_filename.rpartition(os.sep)[2]
                text = f"{file}:{frame.f_lineno} in {code.co_name}".encode()[: _BYTES - 1]
                shared[: len(text) + 1] = text + b"\0"

        def within(frame: FrameType, event: str, _: Any) -> Any:
            put(frame.f_back if event == "return" else frame)
            return within

        def enter(frame: FrameType, event: str, _: Any) -> Any:
            return within if event == "call" and is_of_user(frame.f_code.co_filename) else None

        sys.settrace(enter)
        program()

    return run
