"""Files that are no data, ignored or volatile: they are named, and stop no exploration."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Exploration, Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Verdict
from pytest_chaos.trace.step import FileKinds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks


def _synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class Logs:
    """Acknowledges a safe file, beside a log and a pid that differ in each run."""

    name = "logs"

    def setup(self, directory: Path) -> None:
        """Leave a log of an earlier run."""
        (directory / "logs").mkdir()
        (directory / "logs" / "old.log").write_text("old")

    def run(self, directory: Path, marks: Marks) -> None:
        """Log, and store the data."""
        drawn = random.SystemRandom().randrange(1, 10_000)
        (directory / "logs" / "old.log").write_text("new" * drawn)
        with (directory / "logs" / "app.log").open("w+b") as file:
            file.truncate(8192)
            with mmap.mmap(file.fileno(), 8192) as memory:
                memory[:8] = b"%08d" % drawn
        (directory / "pid").write_text(str(drawn))
        _synced(directory / "data", "x")
        marks.ack("data")

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Find lost data, and a log that is not whole."""
        found = ["data lost"] if marks and not (directory / "data").exists() else []
        log = directory / "logs" / "app.log"
        if log.exists() and log.stat().st_size < 8192:
            found.append("the log is torn")
        return found


def _explored(target: Any, *families: Family, **chosen: Any) -> Exploration:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    families = families or (Family.CRASH, Family.POWER)
    return launch(subject_of(target), Options(seed="s", families=families, **chosen))


def test_an_ignored_file_is_in_no_step_and_the_report_names_it() -> None:
    """A log and a pid that differ in each run stop nothing once they are ignored;
    what they would have shown is not hidden: without the pattern it is found.
    """
    explored = _explored(Logs(), ignore=("*.log", "/pid"))

    assert explored.verdict is Verdict.HELD
    assert explored.steps == 4
    assert explored.schedules == 1
    (note,) = [note for note in explored.notes if note.startswith("ignored")]
    assert note.endswith(": logs/app.log, logs/old.log, pid")
    assert _explored(Logs(), ignore=("/pid",), schedules=1).verdict is Verdict.VIOLATED


class KeepsLog(Logs):
    """Its check wants the log of before the run for as long as there is no data."""

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Find a log that is not as it was."""
        del marks
        text = (directory / "logs" / "old.log").read_text()
        return [] if text == "old" or (directory / "data").exists() else ["the log was changed"]


def test_an_ignored_file_of_setup_stays_as_it_was() -> None:
    """Each state has the file that was there before the run, unchanged."""
    assert _explored(KeepsLog(), Family.POWER, ignore=("logs", "pid")).verdict is Verdict.HELD
    assert _explored(KeepsLog(), Family.POWER, ignore=("pid",), schedules=1).verdict is Verdict.VIOLATED


class Renames:
    """Writes beside the data, and renames that over the data."""

    name = "renames"

    def __init__(self, write: Callable[[Path, str], object], beside: str = "data.lock") -> None:
        self._write = write
        self._beside = beside

    def run(self, directory: Path, marks: Marks) -> None:
        """Write, rename, acknowledge."""
        beside = directory / self._beside
        beside.parent.mkdir(exist_ok=True)
        self._write(beside, "x")
        beside.rename(directory / "data")
        _sync(directory)
        marks.ack("data")

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Find lost data."""
        there = (directory / "data").read_text() if (directory / "data").exists() else ""
        return ["data lost"] if marks and there != "x" else []


def test_data_that_had_a_volatile_name_is_data() -> None:
    """Git writes an index as ``index.lock``, which is data all the time: it is renamed."""
    held = _explored(Renames(_synced), Family.POWER, volatile=("*.lock",))
    lost = _explored(Renames(Path.write_text), Family.POWER, volatile=("*.lock",))

    assert (held.verdict, lost.verdict) == (Verdict.HELD, Verdict.VIOLATED)


def test_what_comes_from_an_ignored_name_counts_as_flushed() -> None:
    """No flush of an ignored file is seen, so none is said to lack."""
    explored = _explored(Renames(Path.write_text, "tmp/new"), Family.CRASH, Family.POWER, ignore=("tmp",))

    assert explored.verdict is Verdict.HELD
    assert explored.steps == 2


class Locks:
    """Maps the lock beside its database, as LMDB does without a folder, and stores in it."""

    name = "locks"

    def __init__(self, lock: str) -> None:
        self._lock = lock

    def run(self, directory: Path, marks: Marks) -> None:
        """Store the pid in the lock, and then write the data."""
        with (directory / self._lock).open("w+b") as file:
            file.truncate(4096)
            with mmap.mmap(file.fileno(), 4096) as memory:
                (directory / "db").touch()
                memory[:8] = b"%08d" % os.getpid()
        _synced(directory / "db", "x")
        marks.ack("db")

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Find lost data."""
        return ["lost"] if marks and not (directory / "db").exists() else []


@pytest.mark.parametrize("lock", ["lock.mdb", "db.pid"])
def test_stores_to_a_volatile_file_are_not_followed(lock: str) -> None:
    """A known lock needs no pattern. What is stored to it is no step, and is not compared."""
    explored = _explored(Locks(lock), volatile=("*.pid",) if lock == "db.pid" else ())

    assert explored.verdict is Verdict.HELD
    assert explored.schedules == 1
    assert any(note.startswith(f"volatile: {lock}: ") for note in explored.notes)


def test_the_lock_beside_a_database_is_known_once_it_is_mapped() -> None:
    """``db-lock`` beside ``db`` is LMDB's. A file of such a name that is not mapped is data."""

    class Mapped(Locks):
        def run(self, directory: Path, marks: Marks) -> None:
            (directory / "db").touch()
            super().run(directory, marks)

    explored = _explored(Mapped("db-lock"))
    assert any(note.startswith("volatile: db-lock: ") for note in explored.notes)
    assert explored.verdict is Verdict.HELD

    plain = _explored(Renames(Path.write_text, "my-lock"), Family.POWER)
    assert plain.verdict is Verdict.VIOLATED
    assert not any(note.startswith("volatile") for note in plain.notes)


def test_a_pattern_that_matches_nothing_is_named() -> None:
    """A typing error is seen in the report."""
    explored = _explored(Renames(_synced), Family.CRASH, ignore=("*.lok",), volatile=("x/**/y",))

    assert "the pattern '*.lok' of ignore matched no file that the program changed" in explored.notes
    assert "the pattern 'x/**/y' of volatile matched no file that the program changed" in explored.notes


@pytest.mark.parametrize("pattern", ["", "/", "../x", "a/./b", 3])
def test_a_pattern_that_can_match_nothing_is_refused(pattern: Any) -> None:
    """In the options, and in the target."""
    with pytest.raises(UsageError, match="ignore must be patterns of paths in the directory"):
        Options(seed="s", ignore=(pattern,))

    class Target(Logs):
        volatile = (pattern,)

    with pytest.raises(UsageError, match=r"Target\.volatile must be patterns of paths"):
        subject_of(Target)


@pytest.mark.parametrize(
    ("pattern", "path", "is_matched"),
    [
        ("*.log", "a/b.log", True),
        ("*.log", "a.log/b", True),
        ("/*.log", "a/b.log", False),
        ("run/*.pid", "run/a.pid", True),
        ("run/*.pid", "x/run/a.pid", False),
        ("run/*.pid", "run/a/b.pid", False),
        ("**/run/*.pid", "x/run/a.pid", True),
        ("run/**/c", "run/c", True),
        ("cache/", "x/cache/y", True),
        ("cache", "cached", False),
        ("[ab]?", "b1", True),
        ("*", "", False),
    ],
)
def test_patterns_match_names_and_paths(pattern: str, path: str, *, is_matched: bool) -> None:
    """A pattern without a slash matches in any folder; a folder's match is one of all in it."""
    assert FileKinds(ignored=(pattern,)).ignores(path) is is_matched
    assert FileKinds(volatile=(pattern,)).is_volatile(path) is is_matched
