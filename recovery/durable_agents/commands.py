"""Commands: a program run to its end or time limit, with all its output, leaving no process.

The program gets a session and a process group of its own. Its output goes to files, not pipes: it
can write any amount without waiting for us, and a daemon that inherits the files blocks nobody.

When the program ends, or its time is over, its whole group gets SIGKILL. At that moment the program
is a zombie and still holds the number of its group, so the signal cannot hit another group. A
daemon that made a session of its own has left the group: it goes on, and its later output is not
part of the result.

**The child runner.** Python raises KeyboardInterrupt, and what other signal handlers raise, in the
main thread and between any two steps: also between the start of a program and the note of its pid.
So another thread starts, awaits and ends the program, and the caller waits for that thread. An
interrupted caller calls the thread off and still waits: an interrupt leaves ``run`` when the whole
group has ended. The two threads meet by bare locks. Events, conditions and ``Thread.start`` are
made of several steps, and an interrupt between them leaves a lock taken, or released twice.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
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
from durable_agents.processes import end_group, signal_group, start_of, wait_for_exit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CALL_OFF_S_MAX: Final = 10.0
"""How long an interrupt waits for the program to end, in seconds.

A program outlives it only if we must not signal it (another user's), or it waits for a disk.
"""

_LOOK_S: Final = 0.1
"""How late an interrupt is noticed, in seconds, when it comes just before a wait."""


class ChildRunner:
    """The thread that starts and ends one program. Use it once.

    ``start`` starts the program as the leader of a group. ``timeout_s`` bounds how long it runs.
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

    def run(self) -> tuple[int, bool]:
        """Run the program; return its exit code as in Popen, and whether it timed out.

        An interrupt leaves this call when the whole group has ended. Raises the errors of
        ``start``, and ToolNotStarted when no thread can be started.
        """
        try:
            self._begin()
            while not self._is_over:  # polls: a signal that comes just before the wait does not wake it
                self._over.acquire(timeout=_LOOK_S)
        finally:
            self._call_off()
        if self._error is not None:
            raise self._error
        return self._exit_code, self._timed_out

    def _begin(self) -> None:
        try:
            _thread.start_new_thread(self._work, ())  # not Thread.start: an interrupt would break its event
        except RuntimeError as error:
            message = f"A command must have a thread; got '{error}'. It did not run; end other threads first."
            raise ToolNotStarted(message) from error

    def _call_off(self) -> None:
        """End the program after an interrupt, and wait for its end.

        Further interrupts do not shorten the wait.
        """
        if self._is_over:
            return
        deadline = time.monotonic() + CALL_OFF_S_MAX
        if self._turn.acquire(blocking=False):  # the thread has not begun, and now will not
            self._hang_up()
        while not self._is_over and (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(BaseException):
                self._wires[1].send(b"\0")
                self._over.acquire(timeout=left_s)

    def _work(self) -> None:
        if not self._turn.acquire(blocking=False):
            return
        try:
            process = self._start()
            self._timed_out = self._ended(process)
            self._exit_code = process.returncode
        except BaseException as error:  # noqa: BLE001 - raised by the caller's thread
            self._error = error
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        for wire in self._wires:
            wire.close()
        self._is_over = True
        self._over.release()

    def _ended(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the program, kill its group and reap it; return whether it timed out.

        After a time-out, its whole group is seen dead first: the caller may run it again at once.
        """
        has_ended = False
        try:
            has_ended = wait_for_exit(process.pid, self._timeout_s, self._wires[0].fileno())
        finally:
            signal_group(process.pid, signal.SIGKILL)
            if not has_ended:
                self._see_dead(process.pid)
            process.wait()
        return not has_ended

    def _see_dead(self, pid: int) -> None:
        """Wait until all members of the group have ended: a moment as a rule, and bounded."""
        start = start_of(pid)
        if start is not None:
            with contextlib.suppress(ExecutorNotEnded):
                end_group(pid, start)


OUTPUT_BYTES_MAX: Final = 512 * 1024 * 1024
"""The default bound on each of the two output streams, in bytes."""

_READ_BYTES: Final = 1024 * 1024 * 1024

TIMEOUT_S_MAX: Final = 7 * 24 * 3600.0
"""The longest time limit, in seconds: a week."""


class CommandOutput(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a command, as the kernel reported it.

    ``exit_code`` is None when a ``signal`` ended it.
    """

    exit_code: int | None
    signal: int | None = None
    has_timed_out: bool = False
    stdout: bytes = b""
    stderr: bytes = b""
    duration_us: int = 0

    @property
    def has_failed(self) -> bool:
        """Whether it ended otherwise than with exit code 0."""
        return self.exit_code != 0


class CommandLine(msgspec.Struct, frozen=True):
    """A command to run.

    ``environment`` is added to this process's environment, and is part of the command's identity.
    ``timeout_s`` bounds how long it runs, in seconds; None is no bound.
    """

    argv: tuple[str, ...]
    directory: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    stdin: bytes = b""
    timeout_s: float | None = None


def run(command: CommandLine, *, bytes_max: int = OUTPUT_BYTES_MAX, pass_fds: Sequence[int] = ()) -> CommandOutput:
    """Run a command to its end. ``bytes_max`` bounds each of the two streams.

    >>> run(CommandLine(("sh", "-c", "echo done; exit 3"))).exit_code
    3

    Raises InvalidRequest or InvalidSetting for invalid arguments; ToolNotStarted when it cannot be
    started; OutputTooLarge when it has run and its output exceeds the bound.
    """
    check_command(command)
    check_bytes("bytes_max", bytes_max)
    clock = SystemClock()
    began = clock.monotonic()
    with contextlib.ExitStack() as stack:
        stdin, stdout, stderr = _files(command.stdin, stack)
        start = functools.partial(_started, command, (stdin, stdout, stderr), pass_fds)
        code, has_timed_out = ChildRunner(start, command.timeout_s).run()
        return CommandOutput(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            has_timed_out=has_timed_out,
            stdout=_content(stdout, "standard output", bytes_max),
            stderr=_content(stderr, "standard error", bytes_max),
            duration_us=clock.monotonic() - began,
        )


def check_command(command: CommandLine) -> None:
    """Raise InvalidRequest unless the command has a program, valid texts and a valid time limit."""
    check_words(command.argv, command.stdin)
    texts = [*command.argv, *(text for pair in command.environment for text in pair), command.directory or "."]
    is_text = all(isinstance(text, str) and "\0" not in text for text in texts)
    if not command.argv or not is_text or not command.argv[0]:
        message = f"A command must be a program and its arguments, as text without NUL; got {command.argv!r:.200}."
        raise InvalidRequest(message)
    if wrong := [name for name, _ in command.environment if not name or "=" in name]:
        message = f"Names of environment variables must be non-empty and without '='; got {wrong!r:.200}. Rename them."
        raise InvalidRequest(message)
    timeout_s = command.timeout_s
    if timeout_s is not None and (timeout_s == 0 or not is_duration(timeout_s, 0, TIMEOUT_S_MAX)):
        rule = f"above 0 and at most {TIMEOUT_S_MAX:g}"
        message = f"timeout_s must be {rule}; got {timeout_s!r:.80}. Give seconds, or None for no bound."
        raise InvalidRequest(message)


def check_words(argv: object, stdin: object) -> None:
    """Raise InvalidRequest unless argv is a list of words and the input is bytes.

    A single text would be split into characters, and the first one run as a program.
    """
    if not isinstance(argv, str | bytes) and isinstance(stdin, bytes | bytearray):
        return
    message = (
        f"A command must be a list of words, and its input bytes; got {argv!r:.200} and a "
        f"{type(stdin).__name__}. Give ['sh', '-c', text] for a shell command, and encode text."
    )
    raise InvalidRequest(message)


def _parts(descriptor: int, size_bytes: int) -> Iterator[bytes]:
    """Yield the first ``size_bytes`` of a file in parts.

    One system call returns 2 GiB at most. Read by position: a daemon that goes on writing shares
    the file's offset with us.
    """
    done = 0
    while done < size_bytes and (part := os.pread(descriptor, min(size_bytes - done, _READ_BYTES), done)):
        yield part
        done += len(part)


def _files(content: bytes, stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    """Return temporary files for stdin (holding ``content``), stdout and stderr.

    Raises ToolNotStarted.
    """
    try:
        stdin, stdout, stderr = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))  # noqa: SIM115 - it is
        stdin.write(content)
        stdin.seek(0)
    except OSError as error:
        message = f"A command must have room for its files in {tempfile.gettempdir()}; got '{error}'. Free some."
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
        message = f"{command.argv[0]!r} must be a program that can be started; got '{error}'. It did not run."
        raise ToolNotStarted(message) from error


def _content(file: IO[bytes], name: str, bytes_max: int) -> bytes:
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes > bytes_max:
        message = (
            f"The {name} of a command must have at most {bytes_max} bytes; got {size_bytes}. It has run: find out "
            "what it did, then let it write less, or raise output_bytes_max."
        )
        raise OutputTooLarge(message)
    return b"".join(_parts(file.fileno(), size_bytes))
