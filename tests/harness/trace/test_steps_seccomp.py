"""The seccomp source: every family of calls is seen as it is, and a program is stopped exactly where it was asked for.

The folder that a recording describes is compared with the one that the program left, after each
small program here.

This module is long because there are some forty calls, and each has its ways.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.runtime.marks import Marks
from pytest_chaos.trace.calls import content as copying
from pytest_chaos.trace.kernel import CLONE, CLONE_RANGE
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.seccomp import SeccompSource
from pytest_chaos.trace.source import Answer, KillAfterMark, KillBefore, Watch
from pytest_chaos.trace.step import Action

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
        """Run a program, record it, and see that the recording describes the folder that it left."""
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


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Return a lab in a folder of its own."""
    return Lab(tmp_path)


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


def _write_plainly() -> None:
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, MODE)
    os.write(descriptor, b"hello ")
    os.write(descriptor, b"world")
    os.pwrite(descriptor, b"H", 0)
    os.writev(descriptor, [b"!", b"", b"!!"])
    os.pwritev(descriptor, [b"E", b"L"], 1)
    os.lseek(descriptor, 20, os.SEEK_SET)
    os.write(descriptor, b"far")
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    os.close(descriptor)


def test_writes_go_where_the_kernel_puts_them(lab: Lab) -> None:
    """Positions move, positioned writes do not move them, a hole is zero, and each sync is a step."""
    observation, recording = lab.record(_write_plainly)
    assert said(observation.steps) == [
        "create a",
        "write a 6 bytes at 0",
        "write a 5 bytes at 6",
        "write a 1 bytes at 0",
        "write a 3 bytes at 11",
        "write a 2 bytes at 1",
        "write a 3 bytes at 20",
        "sync a",
        "sync_data a",
    ]
    assert [step.number for step in observation.steps] == list(range(1, 10))
    assert recording.steps[0].mode == MODE & ~_umask()
    assert (lab.directory / "a").read_bytes() == b"HELlo world!!!" + bytes(6) + b"far"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _open_in_all_ways() -> None:
    for name, flags in (("append", os.O_APPEND), ("sync", os.O_SYNC), ("dsync", os.O_DSYNC)):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | flags, MODE)
        os.write(descriptor, b"one")
        os.pwrite(descriptor, b"TWO", 0)
        os.close(descriptor)
    os.close(os.open("append", os.O_WRONLY | os.O_TRUNC))
    os.close(os.open("append", os.O_WRONLY | os.O_TRUNC))
    os.close(os.open("append", os.O_WRONLY | os.O_CREAT))
    os.umask(0o077)
    os.close(os.open("private", os.O_WRONLY | os.O_CREAT, 0o666))


def test_the_flags_of_open_count(lab: Lab) -> None:
    """O_APPEND writes at the end, even what is positioned; O_SYNC and O_DSYNC sync; what changes nothing is no step."""
    observation, recording = lab.record(_open_in_all_ways)
    assert said(observation.steps) == [
        "create append",
        "write append 3 bytes at 0",
        "write append 3 bytes at 3",
        "create sync",
        "write sync 3 bytes at 0",
        "sync sync",
        "write sync 3 bytes at 0",
        "sync sync",
        "create dsync",
        "write dsync 3 bytes at 0",
        "sync_data dsync",
        "write dsync 3 bytes at 0",
        "sync_data dsync",
        "truncate append to 0 bytes",
        "create private",
    ]
    assert recording.steps[-1].mode == 0o600


def _move_names() -> None:
    Path("folder").mkdir()
    Path("folder/a").write_bytes(b"a")
    Path("folder/a").rename("folder/b")
    os.link("folder/b", "c")
    os.symlink("folder/b", "s")
    Path("folder").rename("moved")
    with open("moved/b", "ab") as file:
        file.write(b"more")
    Path("d").write_bytes(b"d")
    Path("d").replace("c")
    Path("moved/b").unlink()
    Path("moved").rmdir()
    os.mkfifo("pipe")
    os.chmod("c", 0o600)
    os.chmod("c", 0o600)


def test_names_are_followed(lab: Lab) -> None:
    """Folders, renames over what is there, links of both kinds, pipes and permissions."""
    observation, _ = lab.record(_move_names)
    assert said(observation.steps) == [
        "make_folder folder",
        "create folder/a",
        "write folder/a 1 bytes at 0",
        "rename folder/a -> folder/b",
        "link c",
        "symlink s -> folder/b",
        "rename folder -> moved",
        "write moved/b 4 bytes at 1",
        "create d",
        "write d 1 bytes at 0",
        "rename d -> c",
        "unlink moved/b",
        "remove_folder moved",
        "make_node pipe",
        "change_mode c",
    ]


def _fail_in_all_ways() -> None:
    attempts: list[Callable[[], object]] = [
        lambda: os.mkdir("there"),
        lambda: os.unlink("missing"),
        lambda: os.rename("missing", "x"),
        lambda: os.rmdir("there"),
        lambda: os.link("missing", "x"),
        lambda: os.symlink("x", "there"),
        lambda: os.open("there/file", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        lambda: os.open("nowhere/file", os.O_CREAT | os.O_WRONLY),
        lambda: os.unlink("there"),
        lambda: os.rename("there/file", "there"),
        lambda: os.write(1, b""),
    ]
    for attempt in attempts[:-1]:
        try:
            attempt()
        except OSError:
            continue
        sys.exit("it should have failed")
    attempts[-1]()
    os.rename("there/file", "there/file")
    os.truncate("there/file", 1)


def test_calls_that_fail_or_change_nothing_are_no_steps(lab: Lab) -> None:
    """What exists already, does not exist, is not empty, or stays as it is."""
    (lab.directory / "there").mkdir()
    (lab.directory / "there" / "file").write_bytes(b"x")
    observation, recording = lab.record(_fail_in_all_ways)
    assert (observation.steps, observation.exit_code) == ((), 0)
    assert [(entry.path, entry.kind) for entry in recording.before] == [("there", "folder"), ("there/file", "file")]


def _copy_by_the_kernel() -> None:
    Path("source").write_bytes(b"0123456789")
    with open("source", "rb") as source, open("copy", "wb") as copy:
        os.copy_file_range(source.fileno(), copy.fileno(), 4, 2, 1)
        os.sendfile(copy.fileno(), source.fileno(), 8, 100)
    with open("source", "rb") as source, open("whole", "wb") as whole:
        shutil.copyfileobj(source, whole)


def test_copies_by_the_kernel_are_writes(lab: Lab) -> None:
    """copy_file_range and sendfile: what was copied, where it went, and no more than there is."""
    observation, _ = lab.record(_copy_by_the_kernel)
    copied = [step for step in observation.steps if step.call in {"copy_file_range", "sendfile"}]
    assert said(copied) == ["write copy 4 bytes at 1", "write copy 2 bytes at 0"]


def _resize() -> None:
    with open("a", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 10)
        file.truncate(4)
        file.truncate(4)
        file.truncate(8)
        os.pwrite(file.fileno(), b"12345678", 0)
        assert LIBC.fallocate(file.fileno(), 3, ctypes.c_long(2), ctypes.c_long(3)) == 0
        assert LIBC.fallocate(file.fileno(), 1, ctypes.c_long(0), ctypes.c_long(100)) == 0
        os.fsync(file.fileno())


def test_sizes_are_followed(lab: Lab) -> None:
    """Allocating, cutting, growing and punching."""
    observation, _ = lab.record(_resize)
    assert said(observation.steps) == [
        "create a",
        "allocate a",
        "truncate a to 4 bytes",
        "truncate a to 8 bytes",
        "write a 8 bytes at 0",
        "zero a",
        "sync a",
    ]
    assert (lab.directory / "a").read_bytes() == b"12" + bytes(3) + b"678"


def _use_descriptors_of_folders() -> None:
    os.makedirs("one/two")
    folder = os.open("one", os.O_RDONLY | os.O_DIRECTORY)
    descriptor = os.open("file", os.O_CREAT | os.O_WRONLY, MODE, dir_fd=folder)
    os.write(descriptor, b"x")
    os.mkdir("made", dir_fd=folder)
    os.rename("file", "two/file", src_dir_fd=folder, dst_dir_fd=folder)
    os.symlink("two/file", "link", dir_fd=folder)
    os.unlink("two/file", dir_fd=folder)
    os.chdir("one/two")
    Path("../back").write_bytes(b"y")
    os.fsync(folder)
    os.sync()


def test_paths_relative_to_descriptors_are_resolved(lab: Lab) -> None:
    """The folder that a descriptor leads to, the working folder after chdir, and steps up."""
    observation, _ = lab.record(_use_descriptors_of_folders)
    assert said(observation.steps) == [
        "make_folder one",
        "make_folder one/two",
        "create one/file",
        "write one/file 1 bytes at 0",
        "make_folder one/made",
        "rename one/file -> one/two/file",
        "symlink one/link -> two/file",
        "unlink one/two/file",
        "create one/back",
        "write one/back 1 bytes at 0",
        "sync one",
        "sync_all .",
    ]


def _name_an_unnamed_file() -> None:
    descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY, MODE)
    os.write(descriptor, b"hidden")
    at_working_folder, follow = -100, 0x400
    assert (
        LIBC.linkat(at_working_folder, f"/proc/self/fd/{descriptor}".encode(), at_working_folder, b"named", follow) == 0
    )


def test_a_file_without_a_name_may_get_one(lab: Lab) -> None:
    """O_TMPFILE and a link: the bytes that were written before are under the name then."""
    observation, _ = lab.record(_name_an_unnamed_file)
    assert said(observation.steps)[0] == "create_unnamed ."
    assert said(observation.steps)[2] == "link named"
    assert (lab.directory / "named").read_bytes() == b"hidden"


def test_what_comes_and_goes_is_followed(lab: Lab) -> None:
    """A file that is moved in brings its bytes; one that is moved out is gone; both are strays, too."""
    outside = lab.folder / "outside"
    outside.write_bytes(b"from elsewhere")

    def move() -> None:
        outside.rename(lab.directory / "inside")
        (lab.directory / "inside").rename(lab.directory / "again")
        Path("leaving").write_bytes(b"x")
        Path("leaving").rename(lab.folder / "gone")

    observation, _ = lab.record(move)
    assert observation.strays == (str(outside), str(lab.folder / "gone"))
    assert contents(lab.directory).keys() == {"again"}


def test_what_a_process_sets_of_its_own_is_no_stray(lab: Lab) -> None:
    """It is gone with the process: a Java machine says at each start what a dump of its memory would hold."""

    def name_itself() -> None:
        Path("a").write_bytes(b"x")
        for path in ("/proc/self/comm", f"/proc/{os.getpid()}/comm"):
            Path(path).write_text("worker")
        with Path("/proc/self/coredump_filter").open("r+") as file:
            file.write("0x33")

    observation = lab.watch(name_itself)
    assert (observation.exit_code, observation.strays) == (0, ())


def test_changes_outside_are_strays(lab: Lab) -> None:
    """What is made or removed elsewhere is reported; marks, what is printed, and what is gone again are not."""
    (lab.folder / "elsewhere").write_bytes(b"x")

    def stray() -> None:
        print("hello")
        Marks(lab.marks, "agent").note("something")
        (lab.folder / "elsewhere").unlink()
        (lab.folder / "temporary").write_bytes(b"x")
        (lab.folder / "temporary").unlink()
        os.mkdir(lab.folder / "made")

    observation = lab.watch(stray)
    assert set(observation.strays) == {str(lab.folder / "elsewhere"), str(lab.folder / "made")}
    assert observation.output.strip() == "hello"
    assert [step.action for step in observation.steps] == [Action.MARK]


def test_sqlite_is_recorded_whole(lab: Lab) -> None:
    """Ten commits in WAL mode: the replayed folder is the real one, marks lie between the steps, sharing is named."""
    observation, recording = lab.record(lambda: ten_checkpoints(lab.marks))
    assert observation.count > 100
    marks = [json.loads(recording.content(step)) for step in recording.steps if step.is_mark]
    assert [(mark["kind"], mark["key"]) for mark in marks[:4]] == [("intent", 0), ("ack", 0), ("intent", 1), ("ack", 1)]
    assert [(spot.what, spot.text, spot.is_denied) for spot in recording.blind_spots] == [
        ("shared-mapping", "a.db-shm", False)
    ]
    between = recording.steps[recording.steps.index(next(step for step in recording.steps if step.is_mark)) :]
    assert any(not step.is_mark and step.action is Action.SYNC_DATA for step in between[1:20])


def test_two_recordings_of_one_program_are_alike(lab: Lab) -> None:
    """Numbers, names, places and lengths: nothing of this run's own."""
    first = lab.watch(lambda: ten_checkpoints(lab.marks))
    lab.again()
    second = lab.watch(lambda: ten_checkpoints(lab.marks), expected=first.steps)
    assert second.diverged_at is None
    assert [step.trace for step in first.steps] == [step.trace for step in second.steps]


def test_a_kill_at_each_step_leaves_the_recorded_state(lab: Lab) -> None:
    """At every tenth step of SQLite's, and at the first and the last: the real folder is the replayed one."""
    _, recording = lab.record(lambda: ten_checkpoints(lab.marks, 3))
    for number in sorted({1, 2, 3, recording.count, *range(5, recording.count, 7)}):
        lab.again()
        recorder = Recorder(lab.folder / f"killed-{number}", "seccomp")
        observation = lab.watch(
            lambda: ten_checkpoints(lab.marks, 3),
            directive=KillBefore(number=number),
            expected=recording.steps,
            recorder=recorder,
        )
        recorder.close()
        assert (observation.fired, observation.signal, observation.diverged_at) == (True, signal.SIGKILL, None)
        assert observation.count == number - 1
        replayed = lab.folder / f"until-{number}"
        store = lab.folder / f"store-until-{number}"
        Replay(Recording(recorder.folder), replayed, store).apply_until(number - 1)  # SQLite draws salts for each run
        real = {name: entry for name, entry in contents(lab.directory).items() if not name.endswith("-shm")}
        assert {name: entry for name, entry in contents(replayed).items() if not name.endswith("-shm")} == real


def test_a_kill_after_a_mark_keeps_the_mark(lab: Lab) -> None:
    """The mark is in the file, and nothing that comes after it has happened."""
    observation = lab.watch(lambda: ten_checkpoints(lab.marks), directive=KillAfterMark(count=4))
    assert (observation.fired, observation.signal) == (True, signal.SIGKILL)
    assert len(lab.marks.read_text().split()) == 4


def test_a_write_to_a_synced_file_is_killed_between_write_and_sync(lab: Lab) -> None:
    """Both are one call; stopped before the sync, the bytes are there."""

    def write() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT | os.O_SYNC, MODE)
        os.write(descriptor, b"synced")

    for number, expected in ((2, b""), (3, b"synced")):
        lab.again()
        assert lab.watch(write, directive=KillBefore(number=number)).fired
        assert (lab.directory / "a").read_bytes() == expected


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
def test_a_step_is_answered_with_an_error(lab: Lab, error: str) -> None:
    """The program sees it, the file does not change, and later steps are done."""

    def write() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, MODE)
        try:
            os.write(descriptor, b"lost")
        except OSError as failure:
            os.write(descriptor, errno.errorcode[failure.errno or 0].encode())

    observation = lab.watch(write, directive=Answer(number=2, error=error))
    assert (observation.fired, observation.exit_code) == (True, 0)
    assert (lab.directory / "a").read_bytes() == error.encode()


def test_an_interrupted_call_is_made_again(lab: Lab) -> None:
    """Python repeats a write after EINTR, and so it is there after all."""
    observation = lab.watch(lambda: Path("a").write_bytes(b"kept"), directive=Answer(number=2, error="EINTR"))
    assert observation.fired
    assert (lab.directory / "a").read_bytes() == b"kept"


@pytest.mark.parametrize("short_bytes", [0, 1, 3])
def test_a_short_write_is_really_short(lab: Lab, short_bytes: int) -> None:
    """So many bytes are in the file as the program was told, and the position has moved by as many."""

    def write() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, MODE)
        written = os.write(descriptor, b"1234")
        os.write(descriptor, f"|{written}".encode())

    observation = lab.watch(write, directive=Answer(number=2, short_bytes=short_bytes))
    assert observation.fired
    assert (lab.directory / "a").read_bytes() == b"1234"[:short_bytes] + f"|{short_bytes}".encode()


def test_a_full_disk_stays_full(lab: Lab) -> None:
    """From one step on whatever needs room fails; removing does not, nor does flushing."""

    def write() -> None:
        failed = []
        for name in ("a", "b", "c"):
            try:
                Path(name).write_bytes(b"x")
            except OSError as failure:
                failed.append(failure.errno)
        os.unlink("a")
        sys.exit(0 if failed == [errno.ENOSPC] * 2 else 1)

    observation = lab.watch(write, directive=Answer(number=3, error="ENOSPC", times=None))
    assert (observation.exit_code, observation.fired) == (0, True)
    assert contents(lab.directory) == {}


def test_a_sync_that_fails_once_succeeds_then(lab: Lab) -> None:
    """The trap that fsync is: the second one says that all is well."""

    def write() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, MODE)
        os.write(descriptor, b"x")
        try:
            os.fsync(descriptor)
        except OSError as failure:
            os.fsync(descriptor)
            sys.exit(failure.errno)

    assert lab.watch(write, directive=Answer(number=3, error="EIO")).exit_code == errno.EIO


def test_a_program_that_behaves_otherwise_has_diverged(lab: Lab) -> None:
    """The first step that differs is named, and the program ended there."""
    expected = lab.watch(lambda: Path("a").write_bytes(b"x")).steps
    lab.again()
    observation = lab.watch(lambda: Path("b").write_bytes(b"x"), expected=expected)
    assert (observation.diverged_at, observation.signal, observation.fired) == (1, signal.SIGKILL, False)
    lab.again()
    longer = lab.watch(_write_and_remove, expected=expected)
    assert longer.diverged_at == 3


def _write_and_remove() -> None:
    Path("a").write_bytes(b"x")
    Path("a").unlink()


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
    """Three processes replace and remove one file: each is looked at once the one before it is done."""

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


def test_a_command_is_watched_like_a_function(lab: Lab) -> None:
    """Any program: here a shell, which Python is not in."""
    observation, _ = lab.record(["/bin/sh", "-c", "echo hello > a && mv a b && rm b && exit 3"])
    assert said(observation.steps) == ["create a", "write a 6 bytes at 0", "rename a -> b", "unlink b"]
    assert observation.exit_code == 3


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this machine")
@pytest.mark.parametrize("flags", [[], ["-static"]])
def test_a_program_in_c_is_watched(lab: Lab, flags: list[str]) -> None:
    """Compiled, and without any library to preload into."""
    source = lab.folder / "program.c"
    source.write_text(
        '#include <fcntl.h>\n#include <unistd.h>\nint main(void) { int f = open("c", O_CREAT|O_WRONLY, 0600);'
        ' return write(f, "hi", 2) != 2 || fsync(f) || close(f); }\n'
    )
    built = subprocess.run(["cc", *flags, "-o", lab.folder / "program", source], capture_output=True, check=False)
    if built.returncode:
        pytest.skip(f"cc cannot link with {flags}")
    observation, _ = lab.record([str(lab.folder / "program")])
    assert said(observation.steps) == ["create c", "write c 2 bytes at 0", "sync c"]


def test_what_cannot_be_seen_is_refused_and_said(lab: Lab) -> None:
    """io_uring and asynchronous input and output: the program is told that there is no such call."""

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


def test_what_is_spliced_from_a_pipe_is_a_write(lab: Lab) -> None:
    """At the file's own place, and at a given one; what stays in the pipe, and what comes out of a file, is none."""

    def work() -> None:
        reading, writing = os.pipe()
        os.write(writing, b"piped, and more")
        with open("a", "wb") as copy:
            assert os.splice(reading, copy.fileno(), 5) == 5
            assert os.splice(reading, copy.fileno(), 100, offset_dst=8) == 10
            copy.seek(0, os.SEEK_END)
            with open("a", "rb") as source:
                assert os.splice(source.fileno(), writing, 4) == 4
            os.close(writing)
            assert os.splice(reading, copy.fileno(), 100) == 4
            assert os.splice(reading, copy.fileno(), 100) == 0
        with open("a", "ab") as appending, pytest.raises(OSError, match="Invalid argument"):
            os.splice(reading, appending.fileno(), 5)

    observation, _ = lab.record(work)
    assert (observation.exit_code, observation.blind_spots) == (0, ())
    writes = [line for line in said(observation.steps) if line.startswith("write")]
    assert writes == ["write a 5 bytes at 0", "write a 10 bytes at 8", "write a 4 bytes at 18"]


def test_what_is_spliced_from_an_empty_pipe_is_refused(lab: Lab) -> None:
    """Nobody knows yet what it would be: that is reported, and the program goes on with an error."""

    def ask() -> None:
        reading, _ = os.pipe()
        with open("b", "wb") as copy, pytest.raises(OSError, match="Invalid argument"):
            os.splice(reading, copy.fileno(), 5)

    observation = lab.watch(ask)
    assert observation.exit_code == 0
    assert [(spot.what, spot.is_denied) for spot in observation.blind_spots] == [("splice", True)]


@pytest.mark.parametrize("can", [True, False, None])
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_reflink_is_a_write_where_the_file_system_has_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, can: bool | None, is_whole: bool
) -> None:
    """Elsewhere the kernel says no, and nothing has happened; where nobody can tell, it is refused and reported.

    The call itself fails on the file systems of this machine: what is looked at is what is made of
    it.
    """
    monkeypatch.setattr(copying, "shares_blocks", lambda _: can)

    def ask() -> None:
        Path("a").write_bytes(b"0123456789")
        with open("a", "rb") as source, open("b", "wb") as copy:
            part = struct.pack("qQQQ", source.fileno(), 2, 3, 4)
            request, argument = (CLONE, source.fileno()) if is_whole else (CLONE_RANGE, part)
            with pytest.raises(OSError, match=r"."):
                fcntl.ioctl(copy.fileno(), request, argument)

    observation = lab.watch(ask)
    assert observation.exit_code == 0
    assert [spot.what for spot in observation.blind_spots] == (["reflink"] if can is None else [])
    expected = ["write b 10 bytes at 0" if is_whole else "write b 3 bytes at 4"] if can else []
    assert [line for line in said(observation.steps) if line.startswith("write b")] == expected


def test_whether_blocks_can_be_shared_is_tried_out(tmp_path: Path) -> None:
    """As the kernel answers for two files with names, and nothing is left in the folder."""
    (tmp_path / "a").write_bytes(b"x")
    with open(tmp_path / "a", "rb") as source, open(tmp_path / "b", "wb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), CLONE, source.fileno())
            can = True
        except OSError:
            can = False
    assert copying.shares_blocks(str(tmp_path)) is can
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert copying.shares_blocks(str(tmp_path / "nothing")) is None


def test_a_program_that_does_not_end_is_ended(lab: Lab) -> None:
    """With all its descendants, and said so."""

    def hang() -> None:
        os.fork()
        Path("pid").write_text(str(os.getpid()))
        signal.pause()

    observation = lab.watch(hang, timeout_s=5.0)
    assert (observation.is_timed_out, observation.signal) == (True, signal.SIGKILL)
    assert "did not end within 5 s" in observation.failure
    assert _is_gone(int((lab.directory / "pid").read_text()))


def _is_gone(pid: int) -> bool:
    """Tell whether a process has ended; whose child it is may be for somebody else to see."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] == b"Z"
    except OSError:
        return True


def test_a_daemon_does_not_get_away(lab: Lab) -> None:
    """It has left the session and its parent: it is ended all the same, and named."""

    def daemonise() -> None:
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                Path("pid").write_text(str(os.getpid()))
                signal.pause()
            os._exit(0)
        while not Path("pid").exists() or not Path("pid").read_text():
            os.sched_yield()

    observation = lab.watch(daemonise)
    assert "it left processes running" in observation.failure
    assert _is_gone(int((lab.directory / "pid").read_text()))


def test_children_that_were_there_before_are_spared(lab: Lab) -> None:
    """Only what the program started is ended."""
    with subprocess.Popen(["sleep", "60"]) as other:
        lab.watch(lambda: Path("a").write_bytes(b"x"))
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        (lambda: sys.exit(5), 5, ""),
        (lambda: sys.exit("a sentence"), 1, "a sentence"),
        (lambda: 1 / 0, 1, "ZeroDivisionError"),
        (["/nowhere/program"], 127, "FileNotFoundError"),
        (["/bin/sh", "-c", "kill -9 $$"], None, ""),
    ],
)
def test_how_a_program_ended_is_known(lab: Lab, program: Any, code: int | None, text: str) -> None:
    """Exit codes, exceptions with their traceback, programs that are not there, signals."""
    observation = lab.watch(program)
    assert observation.exit_code == code
    assert (observation.signal == signal.SIGKILL) == (code is None)
    assert text in observation.output


def test_no_steps_are_no_steps(lab: Lab) -> None:
    """A program that does nothing has none, which is for the caller to find strange."""
    assert lab.watch(lambda: None).count == 0


def test_a_second_supervisor_is_refused(lab: Lab) -> None:
    """The kernel has one listener for a process: the inner one says so, in a sentence."""

    def inner() -> None:
        inside = Lab(Path("inside").absolute())
        try:
            inside.watch(lambda: None)
        except StepsUnavailable as error:
            print(error)
            sys.exit(0)

    Path(lab.directory / "inside").mkdir()
    observation = lab.watch(inner)
    assert observation.exit_code == 0
    assert "a supervisor watches this process already" in observation.output


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_wrong_settings_are_said(lab: Lab, timeout_s: float) -> None:
    """A folder that is none, a time that is none."""
    with pytest.raises(UsageError, match="a folder is watched"):
        lab.watch(lambda: None, timeout_s=timeout_s)
    with pytest.raises(UsageError, match="a folder is watched"):
        lab.source.observe(lambda: None, lab.folder / "missing", marks=lab.marks)


def test_a_program_dies_with_its_supervisor(lab: Lab) -> None:
    """The supervisor is killed in the middle: the program is gone, and has changed nothing any more."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        supervisor = os.fork()
        if supervisor == 0:

            def work() -> None:
                theirs.sendall(b"%d\n" % os.getpid())
                while True:
                    Path("a").write_bytes(b"x")

            lab.watch(work)
            os._exit(0)
        pid = int(ours.recv(32))
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    deadline_s = time.monotonic() + 60
    while not _is_gone(pid) and time.monotonic() < deadline_s:
        os.sched_yield()
    assert _is_gone(pid)


def _be_dumpable(value: int) -> None:
    """Let others of the same user look into this process, or not; a change of users forbids it."""
    LIBC.prctl(4, value, 0, 0, 0)


def test_an_ordinary_user_can_watch(lab: Lab) -> None:
    """Nothing needs root: neither the filter, nor reading the memory of one's own child."""
    if os.getuid() != 0:
        pytest.skip("this is not root, so all the other tests show it")
    os.chmod(lab.folder, 0o777)  # noqa: S103 - so that another user can write there
    for path in (lab.directory, lab.marks):
        os.chmod(path, 0o777)  # noqa: S103 - likewise
    for parent in lab.folder.parents:
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o005:
            parent.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        _be_dumpable(1)
        observation = lab.watch(lambda: _ignore(Path("a").write_bytes(b"x")))
        os._exit(0 if (observation.count, observation.exit_code) == (2, 0) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_an_inode_number_that_is_given_again_is_another_file(lab: Lab) -> None:
    """Removed in the folder, and made again outside of it with the same number: what is written there is a stray."""
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


def test_a_mapping_that_becomes_writable_is_told(lab: Lab) -> None:
    """First mapped for reading only, then made writable by mprotect: from then on nobody sees what is written."""

    def work() -> None:
        Path("a").write_bytes(bytes(4096))
        with open("a", "r+b") as file:
            LIBC.mmap.restype = ctypes.c_void_p
            address = LIBC.mmap(None, ctypes.c_size_t(4096), 1, 1, file.fileno(), ctypes.c_long(0))
            assert LIBC.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 3) == 0

    observation = lab.watch(work)
    assert [(spot.what, spot.text) for spot in observation.blind_spots] == [("shared-mapping", "a")]


def test_a_file_that_is_told_to_append_later_does(lab: Lab) -> None:
    """F_SETFL after open: a positioned write goes to the end then."""

    def work() -> None:
        descriptor = os.open("a", os.O_RDWR | os.O_CREAT, MODE)
        os.pwrite(descriptor, b"12345678", 0)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        os.pwrite(descriptor, b"end", 0)

    observation, _ = lab.record(work)
    assert said(observation.steps)[-1] == "write a 3 bytes at 8"


def test_a_call_with_wrong_arguments_is_no_blind_spot(lab: Lab) -> None:
    """A closed descriptor, a pointer to nowhere: the call fails by itself, and nothing was hidden."""

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


def test_a_large_write_is_kept_whole(lab: Lab) -> None:
    """Forty megabytes in one call, in two pieces."""

    def work() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, MODE)
        os.writev(descriptor, [b"a" * 30_000_000, b"b" * 10_000_000])

    observation, recording = lab.record(work)
    assert observation.steps[-1].length == 40_000_000
    assert len(recording.content(recording.steps[-1])) == 40_000_000


@pytest.mark.parametrize(
    ("count", "pieces"), [(100, 1), (1, 100), (2, 50), (20_000, 0)], ids=["many", "one", "two", "tiny"]
)
def test_who_prints_without_end_is_ended_by_the_byte(lab: Lab, count: int, pieces: int) -> None:
    """A hundred megabytes, in however many calls: what is beyond the limit is never written, nor is anything after."""
    megabyte = b"x" * 1_000_000

    def program() -> None:
        os.close(os.open("a", os.O_WRONLY | os.O_CREAT, MODE))
        for _ in range(count):
            os.writev(1, [megabyte] * pieces) if pieces > 1 else os.write(1, megabyte if pieces else megabyte[:4000])
        os.close(os.open("b", os.O_WRONLY | os.O_CREAT, MODE))

    observation = lab.watch(program)
    assert observation.failure == "it printed more than 64 MiB, and was ended"
    assert (observation.signal, said(observation.steps)) == (signal.SIGKILL, ["create a"])


def test_who_prints_up_to_the_limit_goes_on(lab: Lab) -> None:
    """Sixty megabytes in three calls are much, and allowed; the last of them are shown."""

    def program() -> None:
        for number in range(3):
            os.write(1, b"%d" % number * 20_000_000)
        os.close(os.open("b", os.O_WRONLY | os.O_CREAT, MODE))

    observation = lab.watch(program)
    assert (observation.failure, observation.exit_code, said(observation.steps)) == ("", 0, ["create b"])
    assert set(observation.output) == {"2"}


def _refused(call: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        call()


def test_a_file_whose_removal_was_answered_is_still_watched(lab: Lab) -> None:
    """What is refused is not done: the file is where it was, and what is written to it is a step."""

    def program() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, MODE)
        _refused(lambda: os.unlink("a"))
        os.pwrite(descriptor, b"later", 0)

    seen = lab.watch(program, directive=Answer(number=2, error="EIO"))
    assert said(seen.steps) == ["create a", "write a 5 bytes at 0"]
    assert seen.strays == ()


def test_a_file_whose_rename_was_answered_keeps_its_path(lab: Lab) -> None:
    """A step after a rename that was refused speaks of the old name, of what is in a folder too."""

    def program() -> None:
        os.mkdir("folder")
        descriptor = os.open("folder/a", os.O_WRONLY | os.O_CREAT, MODE)
        _refused(lambda: os.rename("folder", "other"))
        os.pwrite(descriptor, b"later", 0)
        _refused(lambda: os.rename("folder/a", "b"))
        os.pwrite(descriptor, b"later", 5)

    seen = lab.watch(program, directive=Answer(number=3, error="EIO"))
    assert said(seen.steps)[2:] == ["write folder/a 5 bytes at 0", "rename folder/a -> b", "write b 5 bytes at 5"]


def test_a_file_that_was_not_let_in_is_none_of_the_folders(lab: Lab) -> None:
    """A move from outside that is refused leaves the file outside, and writes to it are strays."""
    outside = lab.folder / "outside"

    def program() -> None:
        descriptor = os.open(outside, os.O_WRONLY | os.O_CREAT, MODE)
        _refused(lambda: os.rename(outside, "inside"))
        os.write(descriptor, b"x")
        os.mkdir("end")

    seen = lab.watch(program, directive=Answer(number=1, error="EIO"))
    assert said(seen.steps) == ["make_folder end"]
    assert str(outside) in seen.strays


def test_a_link_that_was_answered_gives_no_name(lab: Lab) -> None:
    """A file without a name stays without one, and is known by its next name."""

    def program() -> None:
        descriptor = os.open(".", os.O_WRONLY | os.O_TMPFILE, MODE)
        os.write(descriptor, b"hidden")
        for name in (b"a", b"b"):
            LIBC.linkat(-100, f"/proc/self/fd/{descriptor}".encode(), -100, name, 0x400)
        os.pwrite(descriptor, b"later", 0)

    seen = lab.watch(program, directive=Answer(number=3, error="EIO"))
    assert said(seen.steps)[2:] == ["link b", "write b 5 bytes at 0"]
