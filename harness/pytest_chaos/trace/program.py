"""A watched program: how it is started, and how it is ended with all its processes.

It is forked, in a session of its own, with its output in a file. ``watch`` (an audit hook) is
installed in the child, right before the program's first instruction; with seccomp the child has
inherited a filter (``zygote``).

The observing process adopts orphans, so whatever the program leaves behind becomes its child. The
children that it had before are not touched.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import multiprocessing.process
import multiprocessing.util
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from pytest_chaos.errors import AgentError
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.child import finish
from pytest_chaos.runtime.marks import AGENT_VARIABLE, MARKS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_chaos.trace.source import Program

EXIT_NOT_WATCHED: Final = 126
"""The exit code of a child that could not be watched."""
_EXIT_NOT_FOUND: Final = 127
_END_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 0.01
_SLEEPS_ON_S: Final = 0.1
_RUNS_ON_S: Final = 2.0


def _has_not(wait_s: float) -> bool:
    time.sleep(wait_s)
    return False


class StartedProgram(NamedTuple):
    """A started program. ``reap`` waits for its end and returns its status, as ``waitpid`` does."""

    pid: int
    reap: Callable[[], int]


def launch(program: Program, directory: Path, marks: Path, output: Path, watch: Callable[[], None]) -> StartedProgram:
    """Fork the program. The child never returns; it ends with the code that Python would give."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        become(lambda: _watched(program, directory, marks, output, watch))
    return StartedProgram(pid, lambda: os.waitpid(pid, 0)[1])


def _watched(program: Program, directory: Path, marks: Path, output: Path, watch: Callable[[], None]) -> Program:
    processes.die_with_parent()
    prepare(os.open(output, os.O_RDWR | os.O_APPEND))
    enter(os.fspath(directory), os.fspath(marks))
    watch()
    return program


def prepare(output: int) -> None:
    """Make a fork of this Python process fit to be a program, or to fork some."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    fcntl.fcntl(output, fcntl.F_SETFL, os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for source in {nothing, output} - {0, 1, 2}:
        os.close(source)
    # pytest replaces these objects by its own, which lead to files of the parent.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - until the end
    sys.stdout, sys.stderr = (open(target, "w", closefd=False) for target in (1, 2))  # noqa: SIM115 - as above
    os.environ.setdefault(AGENT_VARIABLE, "target")


def enter(directory: str, marks: str) -> None:
    """Enter a session, the folder and the environment of this one run."""
    os.setsid()
    os.environ[MARKS_VARIABLE] = marks
    os.chdir(directory)


def become(make: Callable[[], Program]) -> NoReturn:
    """Be the program from now on, and end as it does: with its threads and exit functions."""
    code = EXIT_NOT_WATCHED
    _forget_the_parent()
    try:
        program = make()
        if not callable(program):
            argv = [os.fspath(part) for part in program]
            os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
            os.execvp(argv[0], argv)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python itself has it
        program()
        code = 0
    except BaseException as error:  # noqa: BLE001 - this is the end of the process, whatever it was
        code = 1  # also when there is no room to print why
        code = _code_of(error)
    finally:
        finish(code)


def _forget_the_parent() -> None:
    """Forget the exit functions of the process that forked this one, and its children."""
    atexit._clear()  # noqa: SLF001 - there is no other way
    # As multiprocessing does in a process that it forks.
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]  # noqa: SLF001 - as above
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]  # noqa: SLF001 - as above
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]  # noqa: SLF001 - as above


def leave(code: int) -> NoReturn:
    """End a forked process with its output flushed, if there is room; never return.

    On a full disk the flush fails. That exception must not pass, or a second process would go on
    with the parent's code.
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


class ProcessTree:
    """The processes of one run: the program and all its descendants."""

    def __init__(self, started: StartedProgram, others: list[int]) -> None:
        """Take charge of a program; ``others`` are the children that this process had before."""
        self.pid = started.pid
        self._reap_program = started.reap
        self.is_orphaned = False
        self.pidfd = os.pidfd_open(started.pid)
        self.exit_code: int | None = None
        self.signal: int | None = None
        self._others = set(others)

    @property
    def has_ended(self) -> bool:
        """Whether the program itself has ended; its descendants may be alive."""
        return processes.has_ended(self.pidfd)

    def roots(self) -> list[int]:
        """Return the pids of the program and of its orphans, zombies included."""
        return [self.pid, *(pid for pid in processes.children() if pid not in self._others and pid != self.pid)]

    def left(self) -> list[processes.Process]:
        """Return what is alive of that which the program has left behind; collect what is dead."""
        alive = []
        for pid in self.roots()[1:]:
            if (process := processes.read(pid)) is not None and process.alive:
                alive.append(process)
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        return alive

    def wait_for_left(self, deadline_s: float, has_acted: Callable[[float], bool] = _has_not) -> list[str]:
        """Wait until what the program has left ends or is idle; return the names of what is idle.

        ``has_acted`` waits for so many seconds, and returns whether something was done meanwhile.
        A process that sleeps is idle after a moment, one that computes later.
        """
        acted_s = time.monotonic()
        while (left := self.left()) and time.monotonic() < deadline_s:
            patience_s = _RUNS_ON_S if any(process.state == "R" for process in left) else _SLEEPS_ON_S
            if has_acted(_LOOK_S):
                acted_s = time.monotonic()
            elif time.monotonic() - acted_s > patience_s:
                break
        ours = processes.own().name
        return ["child" if process.name == ours else process.name for process in left]  # a fork has our name

    def kill(self) -> None:
        """Kill the program and its session at once."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        # The pid cannot have been reused as a process group: the program is not reaped before
        # ``end``.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> list[str]:
        """End and reap everything; return the processes that the program had left running."""
        had_ended = processes.has_ended(self.pidfd)
        leftovers: list[str] = []
        if not had_ended:
            self.kill()
        self._reap()
        # Children of what is killed come to us only then, so look again until there are none.
        deadline_s = time.monotonic() + _END_TIMEOUT_S
        while (mine := [pid for pid in processes.children() if pid not in self._others]) and (
            time.monotonic() < deadline_s
        ):
            for pid in mine:
                if had_ended and (process := processes.read(pid)) is not None and process.alive:
                    leftovers.append(f"{process.name} (pid {pid})")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in mine:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        os.close(self.pidfd)
        return leftovers

    def _reap(self) -> None:
        try:
            status = self._reap_program()
        except AgentError:  # its parent, the zygote, was killed, so it is our child now
            self.is_orphaned = True
            status = os.waitpid(self.pid, 0)[1]
        if os.WIFSIGNALED(status):
            self.signal = os.WTERMSIG(status)
        else:
            self.exit_code = os.WEXITSTATUS(status)
