"""Commands: a program run to its end or its time limit, with all it put out, and nothing of its group left behind.

The program gets a session and a process group of its own, and files, not pipes, for its output: it can put out any
amount without waiting for us, and a daemon that it leaves behind, which has our files open, keeps nobody waiting.

When the program has ended, or its time is over, the whole group is ended by SIGKILL. That happens while the program is
a zombie and so still holds the number of its group, which therefore cannot be anybody else's. A daemon that has made a
session of its own has left the group: it goes on, and what it puts out later is not part of the output.

An interrupt of the caller ends the group too, wherever it comes, and leaves ``run`` when all of the group is seen to
have ended (``recovery.attendants``): nobody would ever ask for it again.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import tempfile
from typing import IO, TYPE_CHECKING, Final

import msgspec

from recovery.attendants import Attendant
from recovery.bounds import check_bytes
from recovery.clock import SystemClock, is_duration
from recovery.errors import InvalidRequest, OutputTooLarge, ToolNotStarted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


class Command(msgspec.Struct, frozen=True):
    """What is to be run. ``environment`` is added to that of this process, and is a part of what the command is.

    ``timeout_s`` bounds how long it runs, in seconds; None is no bound.
    """

    argv: tuple[str, ...]
    directory: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    stdin: bytes = b""
    timeout_s: float | None = None


def run(command: Command, *, bytes_max: int = OUTPUT_BYTES_MAX, pass_fds: Sequence[int] = ()) -> CommandOutput:
    """Run a command to its end. ``bytes_max`` bounds each of the two streams.

    Raises InvalidRequest for a command and InvalidSetting for a bound that cannot be meant, ToolNotStarted when it
    could not be started, and OutputTooLarge when it has run and put out more.
    """
    check_command(command)
    check_bytes("bytes_max", bytes_max)
    clock = SystemClock()
    began = clock.monotonic()
    with contextlib.ExitStack() as stack:
        stdin, stdout, stderr = _files(command.stdin, stack)
        start = functools.partial(_started, command, (stdin, stdout, stderr), pass_fds)
        code, has_timed_out = Attendant(start, command.timeout_s).attend()
        return CommandOutput(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            has_timed_out=has_timed_out,
            stdout=_content(stdout, "standard output", bytes_max),
            stderr=_content(stderr, "standard error", bytes_max),
            duration_us=clock.monotonic() - began,
        )


def check_command(command: Command) -> None:
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

    By place, and not by the file's own offset, which a daemon that goes on writing has in common with us.
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
    command: Command, files: tuple[IO[bytes], IO[bytes], IO[bytes]], pass_fds: Sequence[int]
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
