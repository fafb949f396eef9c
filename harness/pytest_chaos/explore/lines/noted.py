"""Find the lines of a Python program that make its steps.

System calls do not say which line made them. So the program runs once more, and each of its threads
notes its own line in memory that it shares with this process (``trace/survey.py``). That costs a
run, so it is made only where lines are wanted: for a finding, and for call sites.

The steps of that run are matched with those of a recording. Where a program does the same twice
they are equal. Otherwise each thread is matched with one that begins alike. What is left over gets
the lines that made such a step, and there may be several. A step of a compiled program has its
function (``trace.calls.symbols``), and the line that ran meanwhile in the Python program that
started it. A finding by audit events has the name of the event alone.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_chaos.errors import ChaosError
from pytest_chaos.explore.record import prepared
from pytest_chaos.explore.simulate.folder import StateFolder
from pytest_chaos.trace.calls.symbols import CalledFrom
from pytest_chaos.trace.comparison import TraceComparison
from pytest_chaos.trace.survey import SharedLines, trace_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from pytest_chaos.explore.record import Recorded
    from pytest_chaos.explore.target import Subject
    from pytest_chaos.trace.schedule import Schedule
    from pytest_chaos.trace.source import Observation, StepSource
    from pytest_chaos.trace.step import FileKinds, Step

TIMEOUT_S: Final = 10.0
"""Limit of the run that notes lines, which is slow."""
_DIGITS: Final = re.compile(r"\d+")
_NAMED_MAX: Final = 2
"""So many lines of one step are named."""


class NotedRun(NamedTuple):
    """The durable steps of a run, and the line that made each; shorter where the run was ended."""

    steps: Sequence[Step] = ()
    lines: Sequence[str] = ()


def lines_of(recorded: Recorded, folder: Path, *, timeout_s: float) -> Sequence[str]:
    """Return the line of each durable step, as ``file.py:12 in work``; empty if not known."""
    if recorded.lines is None:
        if recorded.noted is None:
            recorded.noted = _noted(recorded, folder, min(timeout_s, TIMEOUT_S))
        recorded.lines = matched(recorded.recording.durable(), recorded.noted, recorded.recording.files)
    return recorded.lines


def line_of(step: Step, recorded: Recorded, folder: Path, *, timeout_s: float) -> str:
    """Return the line that makes a step of another run of the program; empty if not known."""
    lines_of(recorded, folder, timeout_s=timeout_s)
    return "" if recorded.noted is None else matched([step], recorded.noted, recorded.recording.files)[0]


def kind_of(path: str, names: Iterable[str]) -> str:
    """Return a path with ``#`` for numbers, and ``*`` for each of the drawn ``names``.

    >>> kind_of("out/part-12", ()), kind_of("tmpx3yz.new", {"tmpx3yz.new"})
    ('out/part-#', '*')
    """
    return "/".join("*" if name in names else _DIGITS.sub("#", name) for name in path.split("/"))


def matched(steps: Sequence[Step], noted: NotedRun, files: FileKinds) -> Sequence[str]:
    """Return the line of each of the steps, by a run whose lines were noted."""
    comparison = TraceComparison(steps, files)
    if len(steps) <= len(noted.lines) and all(map(comparison.follows, noted.steps[: len(steps)])):
        return noted.lines[: len(steps)]
    kinds = _kinds(steps, noted.steps)
    lines = dict(zip((step.number for step in noted.steps), noted.lines, strict=False))
    threads = list(_by_thread(noted.steps).values())
    found: dict[int, str] = {}
    for own in _by_thread(steps).values():
        for step, like in max((_alike(own, other, kinds) for other in threads), key=len, default=()):
            found[step.number] = lines.get(like.number, "")
    makers: dict[Hashable, dict[str, None]] = {}
    for step in noted.steps:
        makers.setdefault(kinds(step), {})[lines.get(step.number, "")] = None
    return [found.get(step.number) or _any_of([line for line in makers.get(kinds(step), ()) if line]) for step in steps]


def _kinds(steps: Sequence[Step], others: Sequence[Step]) -> Callable[[Step], Hashable]:
    """Return a function that gives equal values for steps of one kind, in two runs.

    A name that only one of the runs has is a drawn one.
    """
    names, known = (_names(each) for each in (steps, others))
    drawn = {name for name in names ^ known if _DIGITS.sub("#", name) not in _numberless(names & known)}

    def kind(step: Step) -> Hashable:
        return (step.action, kind_of(step.path, drawn), kind_of(step.target, drawn))

    return kind


def _names(steps: Sequence[Step]) -> set[str]:
    return {name for step in steps for path in (step.path, step.target) for name in path.split("/")}


def _numberless(names: Iterable[str]) -> set[str]:
    return {_DIGITS.sub("#", name) for name in names}


def _by_thread(steps: Sequence[Step]) -> dict[tuple[int, int], list[Step]]:
    threads: dict[tuple[int, int], list[Step]] = {}
    for step in steps:
        threads.setdefault((step.process, step.thread), []).append(step)
    return threads


def _alike(
    steps: Sequence[Step], others: Sequence[Step], kinds: Callable[[Step], Hashable]
) -> Sequence[tuple[Step, Step]]:
    """Return the pairs of steps, from the first on, that are of one kind."""
    pairs = []
    for step, other in zip(steps, others, strict=False):
        if kinds(step) != kinds(other):
            break
        pairs.append((step, other))
    return pairs


def _any_of(lines: Sequence[str]) -> str:
    """Return the lines of which one made a step.

    >>> _any_of(["a.py:1 in f"]), _any_of(["a.py:1 in f", "a.py:9 in g", "b.py:3 in h"])
    ('a.py:1 in f', 'a.py:1 in f or a.py:9 in g or another line')
    """
    more = ["another line"] if len(lines) > _NAMED_MAX else []
    return " or ".join([*lines[:_NAMED_MAX], *more])


class NotedPlaces(SharedLines):
    """The lines of a Python program, and the functions of compiled ones that it runs or becomes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._compiled = CalledFrom()

    def of(self, thread: int, leader: int = 0) -> str:
        """Return the line or the function that a thread is at, or nothing."""
        if line := super().of(thread):
            return line
        line, place = super().of(thread, leader), self._compiled.of(thread)
        return f"{place}: {line}" if place and line else place or line


def deadlock_at(
    subject: Subject, source: StepSource, folder: Path, schedule: Schedule | None, *, timeout_s: float
) -> Sequence[str]:
    """Run a program that came into a deadlock again; return who waits for what, at which line.

    Empty if it does not come into one again, or is a command, whose lines cannot be noted.
    """
    try:
        directory = prepared(subject, folder / "deadlock", timeout_s=timeout_s)
        seen = _observed(subject, source, folder, directory, schedule=schedule, timeout_s=min(timeout_s, TIMEOUT_S))
    except ChaosError:
        return ()
    finally:
        shutil.rmtree(folder / "deadlock", ignore_errors=True)
    return seen.waits if seen is not None else ()


def _noted(recorded: Recorded, folder: Path, timeout_s: float) -> NotedRun:
    """Run the program once more, and return its steps with the line that made each."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as name:
        directory = Path(name) / "directory"
        StateFolder(directory).put(recorded.before)
        seen = _observed(recorded.subject, recorded.source, Path(name), directory, timeout_s=timeout_s)
    if seen is None:
        return NotedRun()
    return NotedRun([step for step in seen.steps if not step.is_mark], seen.lines)


def _observed(
    subject: Subject,
    source: StepSource,
    folder: Path,
    directory: Path,
    *,
    timeout_s: float,
    schedule: Schedule | None = None,
) -> Observation | None:
    """Run a program that notes its lines; None for a command, and if that does not work."""
    marks, place = folder / "lines.marks", folder / "lines"
    program = subject.program(directory, marks)
    if not callable(program):
        return None
    lines = NotedPlaces(place)

    def run() -> None:
        trace_lines(lines.put)
        program()

    try:
        return source.observe(run, directory, marks=marks, schedule=schedule, lines=lines, timeout_s=timeout_s)
    except (ChaosError, OSError):  # the lines are an extra and change no verdict
        return None
    finally:
        marks.unlink(missing_ok=True)
        place.unlink(missing_ok=True)
