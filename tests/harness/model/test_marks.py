"""A mark is one line that no kill takes back, in an order that nobody disputes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.model.history import History, MarkParser
from pytest_chaos.runtime.marks import AGENT_VARIABLE, MARK_BYTES_MAX, MARKS_VARIABLE, Marks

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_chaos.model.values import Mark


WRITER = """
import sys
from pytest_chaos.runtime.marks import Marks
marks = Marks(sys.argv[1], "writer")
for key in range(int(sys.argv[2])):
    marks.ack("put", key, "x" * 6000)
"""


def start_writer(path: Path, count: int) -> subprocess.Popen[bytes]:
    """Start a process that writes so many large marks."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(count)])


def read(path: Path) -> tuple[Mark, ...]:
    """Return the marks in a file."""
    return History.from_lines(path.read_bytes()).marks


def test_a_mark_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Kind, operation, key, value, agent and process, in the order of writing."""
    marks = Marks(tmp_path / "marks", "writer")
    marks.intent("put", 7)
    marks.ack("put", 7, {"größe": [1, None]})
    marks.note("pragma", "journal_mode", "wal")
    marks.close()
    assert [
        (str(mark.kind), mark.operation, mark.key, mark.value, mark.order) for mark in read(tmp_path / "marks")
    ] == [
        ("intent", "put", 7, None, 0),
        ("ack", "put", 7, {"größe": [1, None]}, 1),
        ("note", "pragma", "journal_mode", "wal", 2),
    ]
    assert {(mark.agent, mark.pid) for mark in read(tmp_path / "marks")} == {("writer", os.getpid())}


@pytest.mark.parametrize("key", ["a 'quoted' \"key\"", "two\nlines", "schlüssel\u2028", "\udce9", ""])
def test_any_text_is_a_key(tmp_path: Path, key: str) -> None:
    """Quotes, newlines and other scripts stay one line;
    what UTF-8 cannot hold becomes a question mark.
    """
    Marks(tmp_path / "marks").ack("put", key)
    (mark,) = read(tmp_path / "marks")
    assert mark.key == key.replace("\udce9", "?")


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}], ids=["object", "nan", "set"])
def test_what_is_not_json_is_refused(tmp_path: Path, value: object) -> None:
    """The mark is named, and the file stays as it was."""
    with pytest.raises(ValueError, match="the ack mark of 'put' must be JSON"):
        Marks(tmp_path / "marks").ack("put", 1, value)
    assert (tmp_path / "marks").read_bytes() == b""


def test_a_mark_has_a_bound(tmp_path: Path) -> None:
    """Marks carry keys and hashes, not the data."""
    marks = Marks(tmp_path / "marks")
    marks.ack("put", 1, "x" * (MARK_BYTES_MAX - 200))
    with pytest.raises(ValueError, match=f"a mark must have at most {MARK_BYTES_MAX} bytes; got [0-9]+"):
        marks.ack("put", 1, "x" * MARK_BYTES_MAX)
    assert len(read(tmp_path / "marks")) == 1


def test_a_full_disk_is_an_error() -> None:
    """A mark that is not in the file must not pass for one."""
    with pytest.raises(OSError, match="No space left"):
        Marks("/dev/full").ack("put", 1)


def test_outside_of_a_run_marks_go_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program keeps its mark calls in production, where no variable names a file."""
    monkeypatch.delenv(MARKS_VARIABLE, raising=False)
    Marks.from_environment().ack("put", 1)
    monkeypatch.setenv(MARKS_VARIABLE, str(tmp_path / "marks"))
    monkeypatch.setenv(AGENT_VARIABLE, "writer")
    Marks.from_environment().ack("put", 1)
    assert [mark.agent for mark in read(tmp_path / "marks")] == ["writer"]


def test_the_listener_hears_of_a_mark_when_it_is_in_the_file(tmp_path: Path) -> None:
    """What a fault does after a mark cannot come before it."""
    marks = Marks(tmp_path / "marks")
    heard: list[tuple[str, str, int]] = []
    marks.listener = lambda kind, operation: heard.append((kind, operation, len(read(tmp_path / "marks"))))
    marks.intent("put", 1)
    marks.ack("put", 1)
    assert heard == [("intent", "put", 1), ("ack", "put", 2)]


def test_marks_of_many_processes_never_mix(tmp_path: Path) -> None:
    """Four writers of 6 kB marks, which a pipe would tear:
    every line is whole, and each writer's are in order.
    """
    path = tmp_path / "marks"
    writers = [start_writer(path, 200) for _ in range(4)]
    assert [writer.wait(30) for writer in writers] == [0] * 4
    history = History.from_lines(path.read_bytes())
    assert len(history.torn) == 0
    assert {mark.pid for mark in history.marks} == {writer.pid for writer in writers}
    for writer in writers:
        assert [mark.key for mark in history.marks if mark.pid == writer.pid] == list(range(200))


def test_marks_survive_a_kill(tmp_path: Path) -> None:
    """What was written before SIGKILL is there after it, and at most the last line is torn."""
    path = tmp_path / "marks"
    path.touch()
    writer = start_writer(path, 1_000_000)
    deadline_s = time.monotonic() + 30
    while path.stat().st_size < 100_000:
        assert time.monotonic() < deadline_s
    writer.kill()
    writer.wait(30)
    history = History.from_lines(path.read_bytes())
    assert [mark.key for mark in history.marks] == list(range(len(history.marks)))
    assert len(history.marks) > 15
    assert len(history.torn) <= 1


def test_a_reader_that_comes_in_between_misses_nothing(tmp_path: Path) -> None:
    """Cut anywhere, the pieces of a mark file make the marks of the whole."""
    path = tmp_path / "marks"
    marks = Marks(path)
    for key in range(20):
        marks.ack("put", key)
    content = path.read_bytes()
    for cut in range(0, len(content), 7):
        parser = MarkParser()
        found = [*parser.feed(content[:cut]), *parser.feed(content[cut:]), *parser.finish()]
        assert [mark.key for mark in found] == list(range(20))
