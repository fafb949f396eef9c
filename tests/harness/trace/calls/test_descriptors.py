"""A descriptor's target is cached until any change; both filters see the same."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pytest_chaos.trace.calls.table import NAMES
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.seccomp import SeccompRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.trace.recording import Recording as Kept
    from pytest_chaos.trace.source import Observation

LIBC = ctypes.CDLL(None, use_errno=True)
MODE = 0o640
NEW = os.O_WRONLY | os.O_CREAT


class Lab:
    """Watches a program with one of the filters, and records it."""

    def __init__(self, folder: Path, *, closes: bool) -> None:
        self._folder = folder
        self._closes = closes
        self.directory = folder / "watched"
        self.directory.mkdir()

    def record(self, program: Callable[[], object]) -> tuple[Observation, Kept]:
        """Run a program, and return what was seen and what it wrote."""

        def run() -> None:
            program()

        recorder = Recorder(self._folder / "recording", "seccomp")
        with closing(SeccompRunner(lambda *_: run, closes=self._closes)) as runner:
            seen = runner.observe(self.directory, marks=self._folder / "marks", recorder=recorder, timeout_s=30)
        recorder.close()
        assert (seen.failure, seen.exit_code) == ("", 0), seen.output
        return seen, Recording(recorder.folder)

    def writes(self, program: Callable[[], object]) -> list[tuple[str, bytes]]:
        """Return path and bytes of each write."""
        _, recording = self.record(program)
        with recording:
            return [(step.path, recording.content(step)) for step in recording.durable() if step.action == "write"]


@pytest.fixture(params=[True, False], ids=["closes", "plain"])
def lab(tmp_path: Path, request: pytest.FixtureRequest) -> Lab:
    """Return a lab with each of the filters."""
    return Lab(tmp_path, closes=request.param)


def _reuse() -> None:
    first = os.open("a", NEW, MODE)
    os.pwrite(first, b"1", 0)
    os.close(first)
    second = os.open("b", NEW, MODE)
    os.pwrite(second, b"2", 0)
    os.close(second)
    reading, writing = os.pipe()
    os.write(writing, b"none")
    os.close(reading)
    third = os.open("a", os.O_WRONLY)
    os.pwrite(third, b"3", 1)
    assert first == second == reading == third


def test_a_number_that_is_given_again_leads_to_the_new_file(lab: Lab) -> None:
    """Also when it was a pipe's in between."""
    assert lab.writes(_reuse) == [("a", b"1"), ("b", b"2"), ("a", b"3")]


def _replace() -> None:
    first, second = os.open("a", NEW, MODE), os.open("b", NEW, MODE)
    os.write(first, b"1")
    os.write(second, b"2")
    os.dup2(second, first)
    os.write(first, b"3")
    os.dup2(os.open("c", NEW, MODE), first, inheritable=False)
    os.pwrite(first, b"4", 0)
    os.closerange(3, 100)
    fourth = os.open("d", NEW, MODE)
    os.pwrite(fourth, b"5", 0)


def test_a_descriptor_that_was_replaced_leads_to_the_other_file(lab: Lab) -> None:
    """By dup2, dup3 and close_range."""
    assert lab.writes(_replace) == [("a", b"1"), ("b", b"2"), ("b", b"3"), ("c", b"4"), ("d", b"5")]


def _let_a_thread_close() -> None:
    descriptor = os.open("a", NEW, MODE)
    os.pwrite(descriptor, b"1", 0)
    other = threading.Thread(target=lambda: os.close(descriptor))
    other.start()
    other.join()
    assert os.open("b", NEW, MODE) == descriptor
    os.pwrite(descriptor, b"2", 0)
    child = os.fork()
    if child == 0:
        os.dup2(os.open("c", NEW, MODE), descriptor)
        os.pwrite(descriptor, b"3", 0)
        os._exit(0)
    os.waitpid(child, 0)
    os.pwrite(descriptor, b"4", 1)


def test_another_thread_and_another_process_are_told_apart(lab: Lab) -> None:
    """A thread closes for all of them, a process for itself alone."""
    assert lab.writes(_let_a_thread_close) == [("a", b"1"), ("b", b"2"), ("c", b"3"), ("b", b"4")]


def _become_another() -> None:
    descriptor = os.open("a", NEW, MODE)
    os.pwrite(descriptor, b"1", 0)
    code = f"import os; d = os.open('b', {NEW}, {MODE}); assert d <= {descriptor}; "
    code += f"os.dup2(d, {descriptor}); os.pwrite({descriptor}, b'2', 0)"
    os.execv(sys.executable, [sys.executable, "-S", "-E", "-c", code])


def test_an_exec_closes_what_is_not_inherited(lab: Lab) -> None:
    """The number is free in the new program, whose memory is another, too."""
    assert lab.writes(_become_another) == [("a", b"1"), ("b", b"2")]


def _spawn() -> None:
    actions = [(os.POSIX_SPAWN_OPEN, 1, "spawned", NEW, MODE)]
    child = os.posix_spawn("/bin/echo", ["echo", "said by another"], {}, file_actions=actions)
    assert os.waitpid(child, 0)[1] == 0


def test_a_spawned_program_is_read_from_its_own_memory(lab: Lab) -> None:
    """Its first call is made in its parent's memory, before the exec."""
    assert lab.writes(_spawn) == [("spawned", b"said by another\n")]


def _bind() -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as abstract:
        listening.bind("socket")
        abstract.bind("\0no path, whoever reads this")
    with socket.socket() as inet:
        inet.bind(("127.0.0.1", 0))
    os.unlink("socket")


def test_the_name_of_a_socket_is_a_step(lab: Lab) -> None:
    """It outlives the program, and the next one cannot bind; an abstract name does not."""
    seen, recording = lab.record(_bind)
    recording.close()
    assert [str(step) for step in seen.steps] == ["1: make_node socket", "2: unlink socket"]


def _write_past_append() -> None:
    descriptor = os.open("a", NEW | os.O_APPEND, MODE)
    os.write(descriptor, b"four")
    piece = ctypes.create_string_buffer(b"X", 1)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(piece), 1)
    number, no_append = ctypes.c_long(next(number for number, name in NAMES.items() if name == "pwritev2")), 0x20
    written = LIBC.syscall(number, descriptor, ctypes.byref(vector), 1, ctypes.c_long(0), ctypes.c_long(0), no_append)
    Path("how").write_text(str(written))


def test_a_write_may_ignore_that_a_file_appends(lab: Lab) -> None:
    """RWF_NOAPPEND (Linux 6.9) puts it where it says."""
    seen, recording = lab.record(_write_past_append)
    recording.close()
    if (lab.directory / "how").read_text() != "1":
        pytest.skip("this kernel has no RWF_NOAPPEND")
    assert (lab.directory / "a").read_bytes() == b"Xour"
    assert [step.offset for step in seen.steps if step.path == "a"] == [0, 0, 0]


def _open_by_handle() -> None:
    Path("a").write_bytes(b"kept")
    handle = ctypes.create_string_buffer(136)
    ctypes.c_uint.from_buffer(handle).value = 128
    mount = ctypes.c_int()
    assert LIBC.name_to_handle_at(-100, b"a", handle, ctypes.byref(mount), 0) == 0
    folder = os.open(".", os.O_RDONLY)
    assert LIBC.open_by_handle_at(folder, handle, os.O_WRONLY | os.O_TRUNC) == -1


def test_a_file_that_is_opened_by_a_handle_is_not_emptied_unseen(lab: Lab) -> None:
    """It is refused, and that is said."""
    seen, recording = lab.record(_open_by_handle)
    recording.close()
    assert [spot.what for spot in seen.blind_spots] == ["open-by-handle"]
    assert (lab.directory / "a").read_bytes() == b"kept"
