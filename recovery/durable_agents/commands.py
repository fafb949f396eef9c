"""Attendants: who starts a program, waits for it, and ends it, where no interrupt can get between.

Python raises KeyboardInterrupt, and whatever a signal's handler raises, in the main thread and
between any two steps of it, so also between the start of a program and the note of its number: such
a program would go on, and nobody would know which it is. In another thread nothing of the kind
happens. So a thread does all that concerns the program, and the caller waits for the thread; a
caller who is interrupted calls the thread off, and waits for it all the same.

The two meet by bare locks, whose calls happen or do not: events, conditions and ``Thread.start``
are made of several steps, and an interrupt between them leaves a lock taken, or released twice.

Commands: a program run to its end or its time limit, with all it put out, and nothing of its group
left behind.

The program gets a session and a process group of its own, and files, not pipes, for its output: it
can put out any amount without waiting for us, and a daemon that it leaves behind, which has our
files open, keeps nobody waiting.

When the program has ended, or its time is over, the whole group is ended by SIGKILL. That happens
while the program is a zombie and so still holds the number of its group, which therefore cannot be
anybody else's. A daemon that has made a session of its own has left the group: it goes on, and what
it puts out later is not part of the output.

An interrupt of the caller ends the group too, wherever it comes, and leaves ``run`` when all of the
group is seen to have ended (``durable_agents.commands``): nobody would ever ask for it again.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from typing import IO, TYPE_CHECKING, Final

import msgspec

from durable_agents.bounds import check_bytes
from durable_agents.clock import SystemClock, is_duration
from durable_agents.errors import ExecutorNotEnded, InvalidRequest, OutputTooLarge, ToolNotStarted
from durable_agents.processes import end_group, start_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CALL_OFF_S_MAX: Final = 10.0
"""How long an interrupt waits for the end of the program, in seconds.

Only what we may not signal (a program of another user), or the kernel cannot end (it waits for a
disk), goes on then.
"""

_LOOK_S: Final = 0.1
"""How late an interrupt may be noticed, in seconds, if it comes at a bad moment."""


class ChildRunner:
    """The thread of one program, to be attended once.

    ``start`` starts the program, as the leader of a group; ``timeout_s`` bounds how long it runs.
    """

    __slots__ = ("_error", "_exit_code", "_is_over", "_over", "_start", "_timed_out", "_timeout_s", "_turn", "_wires")

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]], timeout_s: float | None) -> None:
        """Prepare; nothing is started yet."""
        self._start = start
        self._timeout_s = timeout_s
        self._turn, self._over = _thread.allocate_lock(), _thread.allocate_lock()
        self._over.acquire()
        self._is_over = False
        self._wires = socket.socketpair()
        self._error: BaseException | None = None
        self._exit_code = 0
        self._timed_out = False

    def attend(self) -> tuple[int, bool]:
        """Run the program to its end; return its exit code as Popen has it, and whether its time was over.

        An interrupt leaves this when the whole group of the program has ended. Raises whatever
        ``start`` raises, and ToolNotStarted when there is no room for a thread.
        """
        try:
            self._begin()
            while not self._is_over:  # looks, because a signal between the last look for one and a wait wakes nobody
                self._over.acquire(timeout=_LOOK_S)
        finally:
            self._call_off()
        if self._error is not None:
            raise self._error
        return self._exit_code, self._timed_out

    def _begin(self) -> None:
        try:
            _thread.start_new_thread(self._run, ())  # Thread.start waits for it, by what an interrupt leaves broken
        except RuntimeError as error:
            message = f"Expected to start a thread for a command but {error}; it did not run, end other threads first."
            raise ToolNotStarted(message) from error

    def _call_off(self) -> None:
        """After an interrupt, have the program ended, and wait for that; further interrupts do not cut this short."""
        if self._is_over:
            return
        deadline = time.monotonic() + CALL_OFF_S_MAX
        if self._turn.acquire(blocking=False):  # the thread has not begun, and now will not
            self._hang_up()
        while not self._is_over and (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(BaseException):
                self._wires[1].send(b"\0")
                self._over.acquire(timeout=left_s)

    def _run(self) -> None:
        if not self._turn.acquire(blocking=False):
            return
        try:
            process = self._start()
            self._timed_out = self._ended(process)
            self._exit_code = process.returncode
        except BaseException as error:  # noqa: BLE001 - it is the caller's to raise
            self._error = error
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        for wire in self._wires:
            wire.close()
        self._is_over = True
        self._over.release()

    def _ended(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the program's end, end its group, and reap it; return whether its time was over before.

        A program that did not end by itself has its whole group seen dead: who is told so may run
        it again at once.
        """
        has_ended = False
        try:
            has_ended = self._wait(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            if not has_ended:
                self._see_dead(process.pid)
            process.wait()
        return not has_ended

    def _wait(self, pid: int) -> bool:
        """Wait until the process is a zombie, and leave it one; return whether it is.

        The descriptor of a process is ready when it has ended.
        """
        descriptor = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(self._wires[0], select.POLLIN)
            timeout_ms = None if self._timeout_s is None else max(1, round(self._timeout_s * 1000))
            return any(ready == descriptor for ready, _ in poll.poll(timeout_ms))
        finally:
            os.close(descriptor)

    def _see_dead(self, pid: int) -> None:
        """Wait for the ends of all members of the group, a moment as a rule; what cannot be ended has its bound."""
        start = start_of(pid)
        if start is not None:
            with contextlib.suppress(ExecutorNotEnded):
                end_group(pid, start)


OUTPUT_BYTES_MAX: Final = 512 * 1024 * 1024
"""The largest output, of each stream, that is kept unless told otherwise."""

_READ_BYTES: Final = 1024 * 1024 * 1024

TIMEOUT_S_MAX: Final = 7 * 24 * 3600.0
"""The longest time limit: a week."""


class CommandOutput(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a command. ``exit_code`` is None where a ``signal`` ended it; both are as the kernel gave them."""

    exit_code: int | None
    signal: int | None = None
    has_timed_out: bool = False
    stdout: bytes = b""
    stderr: bytes = b""
    duration_us: int = 0

    @property
    def has_failed(self) -> bool:
        """Whether it did not end by itself with exit code 0."""
        return self.exit_code != 0


class CommandLine(msgspec.Struct, frozen=True):
    """What is to be run. ``environment`` is added to that of this process, and is a part of what the command is.

    ``timeout_s`` bounds how long it runs, in seconds; None is no bound.
    """

    argv: tuple[str, ...]
    directory: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    stdin: bytes = b""
    timeout_s: float | None = None


def run(command: CommandLine, *, bytes_max: int = OUTPUT_BYTES_MAX, pass_fds: Sequence[int] = ()) -> CommandOutput:
    """Run a command to its end. ``bytes_max`` bounds each of the two streams.

    Raises InvalidRequest for a command and InvalidSetting for a bound that cannot be meant,
    ToolNotStarted when it could not be started, and OutputTooLarge when it has run and put out
    more.
    """
    check_command(command)
    check_bytes("bytes_max", bytes_max)
    clock = SystemClock()
    began = clock.monotonic()
    with contextlib.ExitStack() as stack:
        stdin, stdout, stderr = _files(command.stdin, stack)
        start = functools.partial(_started, command, (stdin, stdout, stderr), pass_fds)
        code, has_timed_out = ChildRunner(start, command.timeout_s).attend()
        return CommandOutput(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            has_timed_out=has_timed_out,
            stdout=_content(stdout, "standard output", bytes_max),
            stderr=_content(stderr, "standard error", bytes_max),
            duration_us=clock.monotonic() - began,
        )


def check_command(command: CommandLine) -> None:
    """Raise InvalidRequest for a command that cannot be meant."""
    check_words(command.argv, command.stdin)
    texts = [*command.argv, *(text for pair in command.environment for text in pair), command.directory or "."]
    is_text = all(isinstance(text, str) and "\0" not in text for text in texts)
    if not command.argv or not is_text or not command.argv[0]:
        message = (
            f"Expected a program and its arguments, as text without zeros, but got {command.argv!r:.200}; give it."
        )
        raise InvalidRequest(message)
    if wrong := [name for name, _ in command.environment if not name or "=" in name]:
        message = f"Expected names of environment variables but got {wrong!r:.200}; they are not empty and have no '='."
        raise InvalidRequest(message)
    timeout_s = command.timeout_s
    if timeout_s is not None and (timeout_s == 0 or not is_duration(timeout_s, 0, TIMEOUT_S_MAX)):
        message = (
            f"Expected timeout_s above 0 and at most {TIMEOUT_S_MAX:g} but got {timeout_s!r:.80}; "
            "give seconds, or None for no bound."
        )
        raise InvalidRequest(message)


def check_words(argv: object, stdin: object) -> None:
    """Raise InvalidRequest for a command line that is not split into words, and for an input that is not bytes.

    A text would be taken apart into its characters, and the first of them be run.
    """
    if not isinstance(argv, str | bytes) and isinstance(stdin, bytes | bytearray):
        return
    message = (
        f"Expected a list of a program and its arguments, and bytes as its input, but got {argv!r:.200} and a "
        f"{type(stdin).__name__}; give ['sh', '-c', text] for a shell command, and encode text."
    )
    raise InvalidRequest(message)


def _parts(descriptor: int, size_bytes: int) -> Iterator[bytes]:
    """Yield the first so many bytes of a file, of which one call of the kernel gives 2 GiB at most.

    By place, and not by the file's own offset, which a daemon that goes on writing has in common
    with us.
    """
    done = 0
    while done < size_bytes and (part := os.pread(descriptor, min(size_bytes - done, _READ_BYTES), done)):
        yield part
        done += len(part)


def _files(content: bytes, stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    """Return files for input, output and errors, the first with its content. Raises ToolNotStarted."""
    try:
        stdin, stdout, stderr = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))  # noqa: SIM115 - it is
        stdin.write(content)
        stdin.seek(0)
    except OSError as error:
        message = f"Expected room for a command's input and output in {tempfile.gettempdir()} but {error}; free some."
        raise ToolNotStarted(message) from error
    return stdin, stdout, stderr


def _started(
    command: CommandLine, files: tuple[IO[bytes], IO[bytes], IO[bytes]], pass_fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    stdin, stdout, stderr = files
    try:
        return subprocess.Popen(
            command.argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=command.directory,
            env={**os.environ, **dict(command.environment)},
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except (OSError, UnicodeEncodeError) as error:
        message = f"Expected to start {command.argv[0]!r} but {error}; it did not run."
        raise ToolNotStarted(message) from error


def _content(file: IO[bytes], name: str, bytes_max: int) -> bytes:
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes > bytes_max:
        message = (
            f"Expected at most {bytes_max} bytes of {name} but the command put out {size_bytes}; it has run, so find "
            "out what it did, let it put out less, or raise output_bytes_max."
        )
        raise OutputTooLarge(message)
    return b"".join(_parts(file.fileno(), size_bytes))
