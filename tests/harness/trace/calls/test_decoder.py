"""Decoding as a whole: processes, threads, one order of all calls, and what cannot be seen."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pytest_chaos.trace.step import Action

from tests.harness.trace.lab import LIBC, MODE, Lab, ten_checkpoints


def test_sqlite_is_recorded_whole(lab: Lab) -> None:
    """Ten commits in WAL mode: replayed folder, marks between the steps, the shared mapping."""
    observation, recording = lab.record(lambda: ten_checkpoints(lab.marks))
    assert observation.count > 100
    marks = [json.loads(recording.content(step)) for step in recording.steps if step.is_mark]
    assert [(mark["kind"], mark["key"]) for mark in marks[:4]] == [("intent", 0), ("ack", 0), ("intent", 1), ("ack", 1)]
    assert [(spot.what, spot.text, spot.is_denied) for spot in recording.blind_spots] == [
        ("shared-mapping", "a.db-shm", False)
    ]
    between = recording.steps[recording.steps.index(next(step for step in recording.steps if step.is_mark)) :]
    assert any(not step.is_mark and step.action is Action.SYNC_DATA for step in between[1:20])


def test_children_and_threads_are_seen(lab: Lab) -> None:
    """All descendants wear the filter: a shell's children, threads, and what Python forks."""

    def work() -> None:
        subprocess.run(["sh", "-c", "echo one > shell; (echo two > inner)"], check=True)
        threads = [threading.Thread(target=Path(f"thread-{n}").write_bytes, args=(b"x",)) for n in range(3)]
        for thread in threads:
            thread.start()
            thread.join()
        if (pid := os.fork()) == 0:
            Path("forked").write_bytes(b"x")
            os._exit(0)
        os.waitpid(pid, 0)

    observation, _ = lab.record(work)
    made = {step.path for step in observation.steps if step.action is Action.CREATE}
    assert made == {"shell", "inner", "thread-0", "thread-1", "thread-2", "forked"}
    assert len({step.process for step in observation.steps}) >= 3
    assert len({step.thread for step in observation.steps}) >= 6


def test_writers_at_once_have_one_order(lab: Lab) -> None:
    """Four processes append to one file: the recording describes the file that they left."""

    def work() -> None:
        descriptor = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, MODE)
        children = []
        for name in b"abcd":
            if (pid := os.fork()) == 0:
                for count in range(25):
                    os.write(descriptor, bytes([name]) * (count + 1))
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)

    observation, _ = lab.record(work)
    assert len([step for step in observation.steps if step.action is Action.WRITE]) == 100
    assert (lab.directory / "log").stat().st_size == 4 * sum(range(1, 26))


def test_names_that_are_changed_at_once_have_one_order(lab: Lab) -> None:
    """Three processes replace and remove one file: each call waits for the one before it."""

    def replace(name: str) -> None:
        for count in range(20):
            Path(name).write_bytes(name.encode() * (count + 1))
            os.rename(name, "current")
            if count % 3 == 0:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink("current")

    def work() -> None:
        children = []
        for name in ("a", "b", "c"):
            if (pid := os.fork()) == 0:
                replace(name)
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)

    observation, _ = lab.record(work)
    assert observation.exit_code == 0
    assert observation.count > 3 * 20 * 3


def test_a_place_that_processes_share_is_followed(lab: Lab) -> None:
    """Parent and child write through one open file, whose position moves for both."""

    def work() -> None:
        descriptor = os.open("log", os.O_WRONLY | os.O_CREAT, MODE)
        pid = os.fork()
        for count in range(1, 41):
            os.write(descriptor, (b"c" if pid == 0 else b"p") * count)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    lab.record(work)
    assert (lab.directory / "log").stat().st_size == 2 * sum(range(1, 41))


def test_what_cannot_be_seen_is_refused_and_said(lab: Lab) -> None:
    """io_uring and asynchronous I/O: the program is told that there is no such call."""

    def ask() -> None:
        uring = LIBC.syscall(425, 8, ctypes.create_string_buffer(120))
        asynchronous = LIBC.syscall(1000, 0)
        sys.exit(0 if (uring, asynchronous, ctypes.get_errno()) == (-1, -1, errno.ENOSYS) else 1)

    observation = lab.watch(ask)
    assert observation.exit_code == 0
    assert [(spot.what, spot.is_denied) for spot in observation.blind_spots] == [
        ("io_uring", True),
        ("unknown-call", True),
    ]


def test_an_inode_number_that_is_given_again_is_another_file(lab: Lab) -> None:
    """Removed in the folder, made again outside with the same number: a write there is a stray."""
    outside = lab.folder / "outside"

    def work() -> None:
        for number in range(50):
            Path("a").write_bytes(b"x")
            inode = os.stat("a").st_ino
            os.unlink("a")
            with outside.with_suffix(f".{number}").open("wb", buffering=0) as file:
                same = os.fstat(file.fileno()).st_ino == inode
                file.write(b"outside")
            if same:
                sys.exit(9)

    observation = lab.watch(work)
    if observation.exit_code != 9:
        pytest.skip("this file system does not give inode numbers again at once")
    writes = [step for step in observation.steps if step.action is Action.WRITE]
    assert {step.length for step in writes} == {1}


@pytest.mark.parametrize("numbers", [{"x86_64": 10, "aarch64": 226}, {"x86_64": 329, "aarch64": 288}])
def test_a_mapping_that_becomes_writable_is_followed(lab: Lab, numbers: dict[str, int]) -> None:
    """First mapped for reading, then made writable by one of two calls: later stores are steps."""

    def work() -> None:
        Path("a").write_bytes(bytes(4096))
        with open("a", "r+b") as file:
            LIBC.mmap.restype = ctypes.c_void_p
            address = LIBC.mmap(None, ctypes.c_size_t(4096), 1, 1, file.fileno(), ctypes.c_long(0))
            start, length = ctypes.c_void_p(address), ctypes.c_size_t(4096)
            assert LIBC.syscall(numbers[os.uname().machine], start, length, 3, -1) == 0
            ctypes.memset(address, 1, 8)

    observation, _ = lab.record(work)
    assert str(observation.steps[-1]) == "3: write a 8 bytes at 0 (through memory)"
    assert observation.blind_spots == ()


def test_only_a_synchronous_msync_is_a_flush(lab: Lab) -> None:
    """MS_ASYNC waits for nothing: a step that promises no more than sync_file_range does."""

    def work() -> None:
        Path("a").write_bytes(bytes(4096))
        with open("a", "rb") as file:
            LIBC.mmap.restype = ctypes.c_void_p
            address = LIBC.mmap(None, ctypes.c_size_t(4096), 1, 1, file.fileno(), ctypes.c_long(0))
            for flags in (1, 4):  # MS_ASYNC, MS_SYNC
                assert LIBC.msync(ctypes.c_void_p(address), ctypes.c_size_t(4096), flags) == 0

    steps = lab.watch(work).steps
    assert [step.action for step in steps[-2:]] == [Action.SYNC_RANGE, Action.SYNC_DATA]


def test_a_call_with_wrong_arguments_is_no_blind_spot(lab: Lab) -> None:
    """A closed descriptor, a pointer to nowhere: the call fails by itself, nothing is hidden."""

    def work() -> None:
        closed = os.dup(0)
        os.close(closed)
        for call in (lambda: os.fsync(closed), lambda: os.write(closed, b"x"), lambda: os.ftruncate(closed, 1)):
            with pytest.raises(OSError, match="Bad file descriptor"):
                call()
        assert LIBC.unlink(ctypes.c_void_p(8)) == -1
        with open("a", "wb") as file:
            assert LIBC.write(file.fileno(), ctypes.c_void_p(8), ctypes.c_size_t(5)) == -1

    observation = lab.watch(work)
    assert (observation.exit_code, observation.blind_spots) == (0, ())
