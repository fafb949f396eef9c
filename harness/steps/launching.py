"""How a watched program is started: forked, in a session of its own, with its output in a file.

What makes it watched (a filter, an audit hook) is put on by the caller's ``watch``, in the child, right before its
first instruction.
"""

from __future__ import annotations

import fcntl
import os
import signal
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
    """A program that was started. ``reap`` waits for its end and returns its status, as ``waitpid`` gives it."""

    pid: int
    reap: Callable[[], int]


def launch(program: Program, directory: Path, marks: Path, output: Path, watch: Callable[[], None]) -> Child:
    """Fork the program. The child never returns; it ends with the program's exit code, as Python itself would."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        become(lambda: _watched(program, directory, marks, output, watch))
    return Child(pid, lambda: os.waitpid(pid, 0)[1])


def _watched(program: Program, directory: Path, marks: Path, output: Path, watch: Callable[[], None]) -> Program:
    die_with_parent()
    prepare(os.open(output, os.O_RDWR | os.O_APPEND))
    enter(os.fspath(directory), os.fspath(marks))
    watch()
    return program


def prepare(output: int) -> None:
    """Make a process that was forked from a Python of ours one that can be a program, or fork some."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    fcntl.fcntl(output, fcntl.F_SETFL, os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for source in {nothing, output} - {0, 1, 2}:
        os.close(source)
    # whoever has taken the place of these (pytest does) is not there any more
    sys.stdout, sys.stderr = (open(target, "w", closefd=False) for target in (1, 2))  # noqa: SIM115 - until the end
    os.environ.setdefault(AGENT_VARIABLE, "target")


def enter(directory: str, marks: str) -> None:
    """Be in a session and in the folder of this one run."""
    os.setsid()
    os.environ[MARKS_VARIABLE] = marks
    os.chdir(directory)


def become(make: Callable[[], Program]) -> NoReturn:
    """Be the program from now on, and end as it does."""
    code = EXIT_OF_A_MISTAKE
    try:
        program = make()
        if not callable(program):
            argv = [os.fspath(part) for part in program]
            os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
            os.execvp(argv[0], argv)
        program()
        code = 0
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


def _code_of(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        if isinstance(error.code, int) or error.code is None:
            return error.code or 0
        sys.stderr.write(f"{error.code}\n")  # as Python itself does
        return 1
    traceback.print_exception(error)
    return _EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else 1
