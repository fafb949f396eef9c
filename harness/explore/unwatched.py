"""A run that nobody watches, to see that the program does the same then: what is explored is what runs in production.

A program may look for a tracer, a filter or missing privileges, and do less. Its files, its exit and how many marks it
writes can be compared without watching it; contents may differ (SQLite salts its journals).
"""

from __future__ import annotations

import select
import shutil
from typing import TYPE_CHECKING, Final

from harness.explore.recorded import kinds_in, prepared
from harness.explore.result import ExplorationError
from harness.history import History
from harness.steps.family import Family, children
from harness.steps.kernel import adopt_orphans
from harness.steps.launching import launch
from harness.steps.step import readable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.explore.recorded import Recorded
    from harness.explore.target import Subject
    from harness.steps.source import Program

_SHOWN: Final = 5


def compare_unwatched(
    subject: Subject, recorded: Recorded, folder: Path, *, timeout_s: float, drawn: Sequence[str] = ()
) -> None:
    """Run the target unwatched, after a recorded run that ended with 0. Raises ExplorationError where they differ.

    ``drawn`` are names that the recorded run has drawn; in place of them another run has others.
    """
    directory, marks = prepared(subject, folder / "unwatched", timeout_s=timeout_s), folder / "unwatched.marks"
    exit_code = _run(subject.program(directory, marks), directory, marks, timeout_s)
    found = _differences(recorded.left, kinds_in(directory), frozenset(drawn))
    count = len(History.from_lines(marks.read_bytes()).marks)
    shutil.rmtree(directory, ignore_errors=True)
    if count != len(recorded.marks):
        found.append(f"it wrote {count} marks, not {len(recorded.marks)}")
    if exit_code:
        found.append(f"it ended with {exit_code}")
    elif exit_code is None:
        found.append(f"it did not end within {timeout_s:g} s")
    if found:
        text = (
            f"unwatched, the program did something else ({'; '.join(found[:_SHOWN])}): it looks for its watcher, "
            "or is not deterministic; what would be explored is not what runs"
        )
        raise ExplorationError(text, signature="harness:changes-when-watched")


def _differences(watched: Mapping[str, int], unwatched: Mapping[str, int], drawn: frozenset[str]) -> list[str]:
    missing, made = sorted(watched.keys() - unwatched.keys()), sorted(unwatched.keys() - watched.keys())
    are_drawn = all(drawn.intersection(path.split("/")) for path in missing)
    if are_drawn and _shapes(watched, missing) == _shapes(unwatched, made):
        missing = made = []
    found = [f"{path} is not made" for path in missing] + [f"{path} is made" for path in made]
    both = sorted(watched.keys() & unwatched.keys())
    found += [f"{path} is of another kind" for path in both if watched[path] != unwatched[path]]
    return [readable(text) for text in found]


def _shapes(kinds: Mapping[str, int], paths: Sequence[str]) -> list[tuple[int, int]]:
    """Return what is left of paths when their names are anybody's: how deep they are, and what is there."""
    return sorted((path.count("/"), kinds[path]) for path in paths)


def _run(program: Program, directory: Path, marks: Path, timeout_s: float) -> int | None:
    """Run it like a watched one, but for the filter, and return its exit code; None when it had to be ended."""
    adopted_before = adopt_orphans()
    output = marks.with_name(marks.name + ".output")
    for file in (marks, output):
        file.write_bytes(b"")
    others = children()
    family = Family(launch(program, directory, marks, output, lambda: None), others)
    try:
        has_ended = bool(select.select([family.pidfd], [], [], timeout_s)[0])
    finally:
        family.end()
        adopt_orphans(adopts=adopted_before)
    return (family.exit_code if family.exit_code is not None else -1) if has_ended else None
