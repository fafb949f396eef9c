"""How a watched program is started: forked, in a session of its own, with its output in a file.

What makes it watched (a filter, an audit hook) is put on by the caller's ``watch``, in the child,
right before its first instruction.

A program's processes: the one that was forked, and all that descend from it. Ended together, by pid
and pidfd.

The watching process adopts orphans (``kernel.adopt_orphans``), so whatever the program leaves
behind is a child of ours in the end. Children that this process had before are not touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from pytest_chaos.errors import AgentError
from pytest_chaos.runtime.marks import AGENT_VARIABLE, MARKS_VARIABLE
from pytest_chaos.trace.kernel import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pytest_chaos.trace.source import Program

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


_END_TIMEOUT_S: Final = 10.0
_LINKS_OF_ONE_THREAD: Final = 3
"""What ``/proc/self/task`` has of a process with one thread: to list it costs more than what is looked for."""


class Family:
    """The processes of one run."""

    def __init__(self, child: Child, others: list[int]) -> None:
        """Take charge of what was launched; ``others`` are the children that this process had before."""
        self.pid = child.pid
        self._reap_child = child.reap
        self.is_orphaned = False
        self.pidfd = os.pidfd_open(child.pid)
        self.exit_code: int | None = None
        self.signal: int | None = None
        self._others = set(others)
        self._is_reaped = False

    def kill(self) -> None:
        """Kill them all at once: the program's session, and what has left it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> list[str]:
        """End and reap everything; return what was still running when the program itself had ended."""
        had_ended = bool(select.select([self.pidfd], [], [], 0)[0])
        leftovers: list[str] = []
        self.kill_first(had_ended=had_ended)
        deadline_s = time.monotonic() + _END_TIMEOUT_S
        while (mine := self._mine()) and time.monotonic() < deadline_s:
            for pid in mine:
                if had_ended and pid != self.pid and (name := _name(pid)):
                    leftovers.append(f"{name} (pid {pid})")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in mine:
                self._reap(pid)
        os.close(self.pidfd)
        return leftovers

    def kill_first(self, *, had_ended: bool) -> None:
        """Kill the program itself, unless it has ended, and reap it."""
        if not had_ended:
            self.kill()
        self._reap(self.pid)

    def _mine(self) -> list[int]:
        return [pid for pid in children() if pid not in self._others]

    def _reap(self, pid: int) -> None:
        if pid != self.pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        elif not self._is_reaped:
            self._is_reaped = True
            status = self._status()
            if os.WIFSIGNALED(status):
                self.signal = os.WTERMSIG(status)
            else:
                self.exit_code = os.WEXITSTATUS(status)

    def _status(self) -> int:
        try:
            return self._reap_child()
        except AgentError:  # who had started it was killed, and so it has come to us
            self.is_orphaned = True
            return os.waitpid(self.pid, 0)[1]


def children() -> list[int]:
    """Return the children of this process, of all its threads."""
    found: list[int] = []
    only = os.stat("/proc/self/task").st_nlink == _LINKS_OF_ONE_THREAD
    for thread in (os.getpid(),) if only else os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children", "rb") as file:
            found += map(int, file.read().split())
    return found


def _name(pid: int) -> str:
    """Return the name of a process that lives; nothing for a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            before, _, after = file.read().rpartition(b")")
    except OSError:
        return ""
    return "" if after.split()[0] == b"Z" else before.partition(b"(")[2].decode(errors="replace")
