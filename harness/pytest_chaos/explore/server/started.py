"""One started server: its start, the wait until it is ready, its output, and its end."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.server.ports import free_port, is_in_use, is_listened_at
from pytest_chaos.explore.target import DIRECTORY_VARIABLE, exit_text, print_to_descriptors, raised
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.marks import MARKS_VARIABLE
from pytest_chaos.trace.program import leave
from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import TextIOWrapper

    from pytest_chaos.trace.source import Program

PORT_VARIABLE: Final = "CHAOS_PORT"
FREE_PORT: Final = "port:{port}"
STOP_S: Final = 5.0
"""Time for a server to end after SIGTERM; one that runs on is ended like all that a run leaves."""
_DYING_S: Final = 1.0
_PORT_MAX: Final = 65_535
_LOOKS_S: Final = (0.001, 0.02)
"""Time between two looks for readiness, at first and at most."""
_SHOWN_LINES: Final = 2
_SHOWN_CHARACTERS: Final = 150
_OUTPUT_BYTES: Final = 16 * 1024
_PREFIX: Final = re.compile(r"[a-z]+:")
_ADDRESS_IN_USE: Final = re.compile(rb"address (is )?already in use|EADDRINUSE", re.IGNORECASE)
"""Printed by a server that has a port of its own, which we do not know."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ready(NamedTuple):
    """The condition under which a server is ready. A port 0 is one that is free at the start."""

    kind: Literal["port", "file", "output"]
    text: str = ""
    port: int = 0

    @classmethod
    def read(cls, given: object) -> Ready:
        """Return the condition that a user has given. Raises UsageError.

        >>> Ready.read("output:listening")
        Ready(kind='output', text='listening', port=0)
        """
        if isinstance(given, int) and not isinstance(given, bool):
            given = f"port:{given}"
        if isinstance(given, str | Path):
            kind, _, text = str(given).partition(":")
            if given == FREE_PORT:
                return cls("port")
            if kind == "port" and text.isdecimal() and 0 < int(text) <= _PORT_MAX:
                return cls("port", port=int(text))
            if kind == "output" and text:
                return cls("output", text)
            if given and not _PREFIX.match(str(given)):
                return cls("file", str(given))
        msg = (
            f"ready must be a port number, port:NUMBER, {FREE_PORT}, output:TEXT, or a file name in the directory; "
            f"got {given!r:.100}. Give one of these"
        )
        raise UsageError(msg)


class NotReady(NamedTuple):
    """The reason for which a server is not ready."""

    kind: Literal["ended", "not-ready", "port-taken", "cannot-start"]
    text: str
    exit_code: int = 0


class Server:
    """One started server.

    ``output`` is the file to which it prints. A server ``in_group`` is in the process group of its
    starter, which is traced: it dies with it at once.
    """

    def __init__(self, ready: Ready, output: int, *, in_group: bool) -> None:
        self._ready = ready
        self.output = output
        self._in_group = in_group
        self._reserved: socket.socket | None = None
        self._others = set(processes.children())
        self._printed = os.fstat(output).st_size
        self._file: tuple[int, int] | None = None
        self._path = Path()
        self._pidfd = -1
        self.pid = 0
        self.port = ready.port
        if not ready.port:
            self.port, self._reserved = free_port()

    def start(self, program: Program, directory: Path, marks: str) -> NotReady | None:
        """Start it; return why it could not be started."""
        self._path = directory / self._ready.text
        self._file = _identity(self._path)
        if is_listened_at(self.port):
            return self._taken()
        os.environ[PORT_VARIABLE] = str(self.port)
        environment = os.environ | {DIRECTORY_VARIABLE: str(directory), MARKS_VARIABLE: marks}
        environment.setdefault("PYTHONDONTWRITEBYTECODE", "1")
        environment.setdefault("PYTHONUNBUFFERED", "1")
        try:
            self.pid = self._forked(program) if callable(program) else self._spawned(program, directory, environment)
        except OSError as error:
            return NotReady("cannot-start", f"the server cannot be started ({error}): give its command as in a shell")
        self._pidfd = os.pidfd_open(self.pid)
        return None

    def _spawned(self, argv: Sequence[str], directory: Path, environment: dict[str, str]) -> int:
        with _default_signals():
            process = subprocess.Popen(
                [os.fspath(part) for part in argv],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                process_group=None if self._in_group else 0,
            )
        process.returncode = 0  # it is reaped here, not by that object
        return process.pid

    def _forked(self, program: Callable[[], object]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        if pid := os.fork():
            return pid
        code = 1
        try:
            processes.die_with_parent(parent)
            if not self._in_group:
                os.setpgid(0, 0)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.dup2(self.output, 1)
            os.dup2(self.output, 2)
            print_to_descriptors()
            for stream in (sys.stdout, sys.stderr):
                cast("TextIOWrapper", stream).reconfigure(line_buffering=True)
            program()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException as error:  # noqa: BLE001 - the end of this process
            sys.stderr.write(f"{raised(error)}\n")
        finally:
            leave(code)

    @property
    def has_ended(self) -> bool:
        """Whether its first process has ended."""
        return processes.has_ended(self._pidfd)

    def ends(self) -> bool:
        """Whether it has ended, or does in a moment: its client fails before it is gone."""
        return bool(self.pid) and bool(select.select([self._pidfd], [], [], _DYING_S)[0])

    def wait(self, bound_s: float) -> NotReady | None:
        """Wait until it is ready; return why it is not."""
        deadline_s = time.monotonic() + bound_s
        pause_s, longest_s = _LOOKS_S
        while not self._is_ready():
            if self.has_ended:
                return self._ended()
            if time.monotonic() > deadline_s:
                missed = {"port": f"nothing listens at port {self.port}", "file": f"there is no new {self._ready.text}"}
                why = missed.get(self._ready.kind, f"it has not printed {self._ready.text!r}")
                return NotReady("not-ready", f"the server was not ready within {bound_s:g} s: {why}; {self.said()}")
            time.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 1.05)
        return None

    def _ended(self) -> NotReady:
        if is_in_use(self.port) or _ADDRESS_IN_USE.search(self._printed_bytes(_OUTPUT_BYTES)):
            return self._taken()
        code = self.exit_code()
        stays = ": let it stay in the foreground" if code == 0 else ""
        text = f"the server ended with {exit_text(code)} before it was ready{stays}; {self.said()}"
        return NotReady("ended", text, code)

    def _taken(self) -> NotReady:
        said = f"; {self.said()}" if self.pid else ""
        text = f"its port ({self.port} of ours) is taken by another program, or by closed connections{said}"
        return NotReady("port-taken", f"{text}: let the server use a free port, {{port}} or self.port")

    def _is_ready(self) -> bool:
        if self._ready.kind == "port":
            return is_listened_at(self.port)
        if self._ready.kind == "output":
            return self._ready.text.encode() in self._printed_bytes(1 << 20)
        now = _identity(self._path)  # a file of this name may be left from a server that was killed
        return now is not None and now != self._file and (not self._path.is_socket() or _accepts(self._path))

    def said(self, said: str = "it printed") -> str:
        """Return the last of what it has printed, as the end of a sentence."""
        printed = self._printed_bytes(_OUTPUT_BYTES).decode(errors="replace").splitlines()
        lines = [line.strip() for line in printed if line.strip(" \t^~")]  # no marks of a traceback
        shown = [line[:_SHOWN_CHARACTERS] for line in lines[-_SHOWN_LINES:]]
        return f"{said}: {readable(' | '.join(shown)) or 'nothing'}"

    def _printed_bytes(self, most: int) -> bytes:
        size = os.fstat(self.output).st_size
        begin = max(self._printed, size - most)
        return os.pread(self.output, most, begin)

    def exit_code(self) -> int:
        """Wait for its end; return its exit code, as subprocess has it."""
        # It is not reaped yet, so that its pid and its group stay its own.
        end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        if end is None:
            return 0
        return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status

    def stop(self) -> None:
        """End it by SIGTERM, within a bound."""
        if self.pid and not self.has_ended:
            os.kill(self.pid, signal.SIGTERM)
            deadline_s = time.monotonic() + STOP_S
            while not self.has_ended and time.monotonic() < deadline_s:
                time.sleep(_LOOKS_S[0])
        self._close()

    def kill(self) -> None:
        """End it and all its processes at once."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                if self._in_group:
                    os.kill(self.pid, signal.SIGKILL)
                else:
                    os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            # What has left the group comes to this process when its parent dies.
            while left := [pid for pid in processes.children() if pid not in self._others]:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, 0)
        self._close()

    def _close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        self.pid = 0
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None


@contextlib.contextmanager
def _default_signals() -> Iterator[None]:
    """Let a program that is started in this context have the usual answers to signals."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return None if stat.S_ISDIR(status.st_mode) else (status.st_ino, status.st_ctime_ns)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.connect(os.path.relpath(path) if len(str(path)) > 100 else str(path))
        except OSError:
            return False
    return True
