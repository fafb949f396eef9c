"""What the step engine cannot see is denied, or reported by its own name, and never ignored."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.explore.launch import launch, step_source
from pytest_chaos.explore.options import Options
from pytest_chaos.explore.report import Family
from pytest_chaos.explore.target import subject_of
from pytest_chaos.model.values import Verdict
from pytest_chaos.trace import mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_chaos.explore.report import Exploration
    from pytest_chaos.model.values import Mark
    from pytest_chaos.runtime.marks import Marks

LIBC = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534


class Doing:
    """Writes a file, and does one thing besides."""

    name = "doing"

    def __init__(self, act: Callable[[], object]) -> None:
        """Keep what is to be done."""
        self._act = act

    def run(self, directory: Path, marks: Marks) -> None:
        """Write, act, acknowledge."""
        Path(directory, "x").write_text("1")
        self._act()
        marks.ack("done")

    def check(self, directory: Path, marks: Sequence[Mark]) -> list[str]:
        """Find nothing, as long as there is a directory."""
        return [] if directory.is_dir() and marks is not None else ["gone"]


def _explore(act: Callable[[], object]) -> Exploration:
    try:
        step_source()
    except StepsUnavailable as error:
        pytest.skip(str(error))
    return launch(subject_of(Doing(act)), Options(seed="s", families=(Family.CRASH, Family.POWER)))


def _signatures(explored: Exploration) -> set[str]:
    return {finding.signature for finding in explored.all_findings}


def test_what_a_mapping_writes_is_named_where_states_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapping that is too large to be followed is written without a call:
    the difference that it makes is put down to it.
    """
    monkeypatch.setattr(mapped, "SHADOW_BYTES_MAX", 0)

    def act() -> None:
        with Path("mapped").open("w+b") as file:
            file.write(b"x" * 8192)
            file.flush()
            with mmap.mmap(file.fileno(), 8192) as memory:
                memory[:3] = b"abc"
                memory.flush()

    explored = _explore(act)
    (finding,) = explored.findings
    assert finding.signature == "harness:blind-spot:shared-mapping"
    assert "mapped differs in page 0" in finding.text


def test_a_process_that_hides_its_memory_is_named() -> None:
    """Of a non-dumpable child of the same user nothing can be read;
    root can, so this is an ordinary user's.
    """
    if os.getuid() != 0:
        explored = _explore(_hide_and_write)
        assert _signatures(explored) == {"harness:blind-spot:unreadable-process"}
        return
    assert _as_nobody(_hide_and_write) == {"harness:blind-spot:unreadable-process"}


def _hide_and_write() -> None:
    LIBC.prctl(4, 0, 0, 0, 0)
    Path("hidden").write_text("hidden")


def _as_nobody(act: Callable[[], object]) -> set[str]:
    """Explore as an ordinary user, in a child; return the signatures, or the words of an error.

    The scratch folder is that of all sessions of this user, in whatever PID namespace: where
    owners were known by pid, sessions removed each other's, and 1 run of 10 failed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            LIBC.prctl(
                4, 1, 0, 0, 0
            )  # a change of users forbids to look into this process, and its children inherit that
            os.write(writing, " ".join(_signatures(_explore(act))).encode())
        except BaseException as error:
            os.write(writing, repr(error).encode())
            raise
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        found = set(answer.read().split())
    os.waitpid(child, 0)
    return found


def test_an_attribute_is_denied_and_a_program_that_needs_it_undecided() -> None:
    """States are built without extended attributes; a run that fails of that denial says nothing of
    the program.
    """
    explored = _explore(lambda: os.setxattr("x", "user.key", b"value"))

    assert _signatures(explored) == {"harness:denied"}
    assert explored.verdict is Verdict.INCONCLUSIVE
    assert "an extended attribute was refused" in explored.notes[0]


def test_a_socket_with_a_name_is_part_of_the_states() -> None:
    """To bind a socket makes something in the folder, as mknod does."""

    def act() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")

    explored = _explore(act)
    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert explored.steps == 3


def test_a_path_that_means_the_caller_is_the_callers() -> None:
    """/proc/self and /dev/fd lead to the files of the program,
    and not to those of who watches it.
    """

    def act() -> None:
        file = os.open("file", os.O_CREAT | os.O_RDWR, 0o600)
        os.write(file, b"hello")
        for path, flags, text in (
            (f"/proc/self/fd/{file}", os.O_TRUNC, b"x"),
            (f"/dev/fd/{file}", os.O_APPEND, b"yy"),
            (f"/proc/thread-self/fd/{file}", os.O_APPEND, b"z"),
        ):
            os.write(os.open(path, os.O_WRONLY | flags), text)

    explored = _explore(act)
    assert explored.verdict is Verdict.HELD, explored.all_findings
    assert explored.steps == 8


def test_what_is_made_outside_and_gone_at_the_end_is_no_harm() -> None:
    """A temporary file, or a lock of multiprocessing, is not kept by the program:
    there is nothing to explore of it.
    """

    def act() -> None:
        with tempfile.NamedTemporaryFile() as file, multiprocessing.get_context("fork").Lock():
            file.write(b"for a moment")

    assert _explore(act).verdict is Verdict.HELD


def test_what_was_there_outside_and_is_removed_is_told(tmp_path: Path) -> None:
    """A file of somebody else's that the program removes is gone at the end, too,
    and is no temporary file.
    """
    somebody = tmp_path / "somebody's"
    somebody.write_text("dear")

    explored = _explore(lambda: somebody.unlink(missing_ok=True))
    assert _signatures(explored) == {"harness:writes-outside"}
    assert str(somebody) in explored.findings[0].text
