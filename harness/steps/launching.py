"""How a watched program is started: forked, in a session of its own, with its output in a file.

What makes it watched (a filter, an audit hook) is put on by the caller's ``watch``, in the child, right before its
first instruction.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from harness.agents.marks import AGENT_VARIABLE, MARKS_VARIABLE
from harness.steps.kernel import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.steps.source import Program

EXIT_OF_A_MISTAKE: Final = 126
"""The exit code of a child that could not be watched."""
_EXIT_NOT_FOUND: Final = 127


class Child(NamedTuple):
    """A child that was forked, and the channel on which ``watch`` may say something."""

    pid: int
    channel: socket.socket


def launch(
    program: Program, directory: Path, marks: Path, output: Path, watch: Callable[[socket.socket], None]
) -> Child:
    """Fork the program. The child never returns; it ends with the program's exit code, as Python itself would."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        theirs.close()
        return Child(pid, ours)
    code = EXIT_OF_A_MISTAKE
    try:
        ours.close()
        _prepare(directory, marks, output)
        watch(theirs)
        theirs.close()
        code = _call(program)
    except BaseException as error:  # noqa: BLE001 - this is the end of the process, whatever it was
        code = 1  # also where there is no room to say why
        code = _code_of(error)
    finally:
        leave(code)


def leave(code: int) -> NoReturn:
    """End a forked process with what it has printed written out, if there is room; never return into its parent's code.

    On a full disk even the last flush fails, and what fails here would go on as a second parent.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _prepare(directory: Path, marks: Path, output: Path) -> None:
    os.setsid()
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    printed = os.open(output, os.O_WRONLY | os.O_APPEND)
    for source, target in ((nothing, 0), (printed, 1), (printed, 2)):
        os.dup2(source, target)
    # whoever has taken the place of these (pytest does) is not there any more
    sys.stdout, sys.stderr = (open(target, "w", closefd=False) for target in (1, 2))  # noqa: SIM115 - until the end
    os.environ[MARKS_VARIABLE] = str(marks)
    os.environ.setdefault(AGENT_VARIABLE, "target")
    os.chdir(directory)


def _call(program: Program) -> int:
    if not callable(program):
        argv = [os.fspath(part) for part in program]
        os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
        os.execvp(argv[0], argv)
    program()
    return 0


def _code_of(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        if isinstance(error.code, int) or error.code is None:
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")  # as Python itself does
        return 1
    traceback.print_exception(error)
    return _EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else 1
