"""The seccomp source: directives, limits, and how a program and its processes end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from pytest_chaos.errors import StepsUnavailable, UsageError
from pytest_chaos.runtime.marks import Marks
from pytest_chaos.trace.recording import Recorder, Recording
from pytest_chaos.trace.source import Directive, InjectError, KillAfterMark, KillBefore, Watch
from pytest_chaos.trace.step import Action

from tests.harness.evidence.replaying import Replay, contents
from tests.harness.trace.lab import LIBC, MODE, Lab, is_gone, said, ten_checkpoints


def test_what_a_process_sets_of_its_own_is_no_stray(lab: Lab) -> None:
    """It is gone with the process: Java sets at each start what its core dump would hold."""

    def name_itself() -> None:
        Path("a").write_bytes(b"x")
        for path in ("/proc/self/comm", f"/proc/{os.getpid()}/comm"):
            Path(path).write_text("worker")
        with Path("/proc/self/coredump_filter").open("r+") as file:
            file.write("0x33")

    observation = lab.watch(name_itself)
    assert (observation.exit_code, observation.strays) == (0, ())


def test_changes_outside_are_strays(lab: Lab) -> None:
    """Changes elsewhere are reported; marks, output and files that are gone again are not."""
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


def test_a_socket_or_what_was_there_outside_is_no_stray(lab: Lab) -> None:
    """Nothing is made where something is, and a socket holds no data, whatever mode it gets.
    Nor does a temporary folder with nothing else in it.
    """
    (lab.folder / "cache").mkdir()
    name = f"{tempfile.gettempdir()}/of-{os.getpid()}"

    def make() -> None:
        Path("a").write_bytes(b"x")
        os.mkdir(name)
        socket.socket(socket.AF_UNIX).bind(f"{name}/listener")
        (lab.folder / "cache").mkdir(exist_ok=True)
        socket.socket(socket.AF_UNIX).bind(str(lab.folder / "socket"))
        os.chmod(lab.folder / "socket", 0o600)

    observation = lab.watch(make)
    shutil.rmtree(name)
    assert (observation.exit_code, observation.strays) == (0, ())


@pytest.mark.parametrize("directive", [KillBefore(number=2), InjectError(number=2, error="EIO"), Watch()])
def test_what_an_ended_program_made_outside_is_removed(lab: Lab, directive: Directive) -> None:
    """It can no longer do that itself. What was there before stays, and what a whole run leaves."""
    (lab.folder / "log").write_bytes(b"old ")

    def make() -> None:
        folder = Path(tempfile.mkdtemp(dir=lab.folder, prefix="of-the-run-"))
        (folder / "file").write_bytes(b"x")
        with (lab.folder / "log").open("ab") as log:
            log.write(b"new")
        Path("a").write_bytes(b"x")

    observation = lab.watch(make, directive=directive)
    left = sorted(path.name for path in lab.folder.glob("of-the-run-*/*"))
    assert left == (["file"] if isinstance(directive, Watch) else [])
    assert bool(list(lab.folder.glob("of-the-run-*"))) is isinstance(directive, Watch)
    assert (lab.folder / "log").read_bytes() == b"old new"
    assert len(observation.temporary) == 2


def test_two_recordings_of_one_program_are_alike(lab: Lab) -> None:
    """Numbers, names, places and lengths: nothing of this run's own."""
    first = lab.watch(lambda: ten_checkpoints(lab.marks))
    lab.again()
    second = lab.watch(lambda: ten_checkpoints(lab.marks), expected=first.steps)
    assert second.diverged_at is None
    assert [step.effect for step in first.steps] == [step.effect for step in second.steps]


def test_a_kill_at_each_step_leaves_the_recorded_state(lab: Lab) -> None:
    """At some steps of SQLite's, first and last too: the real folder is the replayed one."""
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
def test_a_step_fails_with_an_error(lab: Lab, error: str) -> None:
    """The program sees it, the file does not change, and later steps are done."""

    def write() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, MODE)
        try:
            os.write(descriptor, b"lost")
        except OSError as failure:
            os.write(descriptor, errno.errorcode[failure.errno or 0].encode())

    observation = lab.watch(write, directive=InjectError(number=2, error=error))
    assert (observation.fired, observation.exit_code) == (True, 0)
    assert (lab.directory / "a").read_bytes() == error.encode()


def test_an_interrupted_call_is_made_again(lab: Lab) -> None:
    """Python repeats a write after EINTR, and so it is there after all."""
    observation = lab.watch(lambda: Path("a").write_bytes(b"kept"), directive=InjectError(number=2, error="EINTR"))
    assert observation.fired
    assert (lab.directory / "a").read_bytes() == b"kept"


@pytest.mark.parametrize("short_bytes", [0, 1, 3])
def test_a_short_write_is_really_short(lab: Lab, short_bytes: int) -> None:
    """As many bytes are in the file as were reported, and the position has moved by as many."""

    def write() -> None:
        descriptor = os.open("a", os.O_WRONLY | os.O_CREAT, MODE)
        written = os.write(descriptor, b"1234")
        os.write(descriptor, f"|{written}".encode())

    observation = lab.watch(write, directive=InjectError(number=2, short_bytes=short_bytes))
    assert observation.fired
    assert (lab.directory / "a").read_bytes() == b"1234"[:short_bytes] + f"|{short_bytes}".encode()


def test_a_copy_by_the_kernel_fails_where_a_write_is_short(lab: Lab) -> None:
    """It returned 0, which means the end of the file it copies from."""
    (lab.folder / "source").write_bytes(b"1234")

    def copy() -> None:
        source, target = os.open(lab.folder / "source", os.O_RDONLY), os.open("a", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="Input/output"):
            os.sendfile(target, source, 0, 4)

    observation = lab.watch(copy, directive=InjectError(number=2, short_bytes=2))
    assert (observation.fired, observation.exit_code) == (True, 0)


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

    observation = lab.watch(write, directive=InjectError(number=3, error="ENOSPC", times=None))
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

    assert lab.watch(write, directive=InjectError(number=3, error="EIO")).exit_code == errno.EIO


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


def test_a_program_that_does_not_end_is_ended(lab: Lab) -> None:
    """With all its descendants, and said so."""

    def hang() -> None:
        os.fork()
        Path("pid").write_text(str(os.getpid()))
        signal.pause()

    observation = lab.watch(hang, timeout_s=5.0)
    assert (observation.is_timed_out, observation.signal) == (True, signal.SIGKILL)
    assert "did not end within 5 s" in observation.failure
    assert is_gone(int((lab.directory / "pid").read_text()))


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
    assert (len(observation.left), observation.failure) == (1, "")
    assert is_gone(int((lab.directory / "pid").read_text()))


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
    with pytest.raises(UsageError, match=r"cannot watch .*timeout must be > 0 \(got .* s\)"):
        lab.watch(lambda: None, timeout_s=timeout_s)
    with pytest.raises(UsageError, match=r"cannot watch .*missing: it must be a directory"):
        lab.source.observe(lambda: None, lab.folder / "missing", marks=lab.marks)


def test_a_program_dies_with_its_supervisor(lab: Lab) -> None:
    """The observer is killed in the middle: the program is gone, and changes nothing any more."""
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
    while not is_gone(pid) and time.monotonic() < deadline_s:
        os.sched_yield()
    assert is_gone(pid)


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
        observation = lab.watch(lambda: Path("a").write_bytes(b"x"))
        os._exit(0 if (observation.count, observation.exit_code) == (2, 0) else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("count", "pieces"), [(100, 1), (1, 100), (2, 50), (20_000, 0)], ids=["many", "one", "two", "tiny"]
)
def test_who_prints_without_end_is_ended_by_the_byte(lab: Lab, count: int, pieces: int) -> None:
    """A hundred megabytes in any number of calls: the one that passes the limit is not done."""
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
