"""Servers as targets: a program that stays, a client that drives it, and a start on each state.

    class Target:
        ready = "port:{port}"                          # this is the default
        def serve(self, directory): ...                # returns the server's command, or a function
        def drive(self, directory, marks): ...         # the client; marks say what it was promised
        def check(self, directory, marks): ...         # may ask the server, at self.port

``ready`` is ``port:{port}`` for a free port (``self.port``, another one at each start), a port
number, ``port:8000``, the name of a file in the directory, or ``output:TEXT`` for a line that the
server prints.

One traced process starts the server, waits until it is ready, drives it, and ends it with SIGTERM.
So the steps of the server and the marks of the client have one order, and a crash ends both at
once. Recovery is the same start on a state: a server that does not come up again is a finding. Then
the check runs, and the server is killed, for nothing that it does after the check matters.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import select
import shlex
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn, cast

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.report import ExplorationError
from pytest_chaos.explore.target import (
    DIRECTORY_VARIABLE,
    CheckError,
    CommandSubject,
    Subject,
    asked,
    exit_text,
    no_restart,
    print_to_descriptors,
    raised,
)
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime import processes
from pytest_chaos.runtime.marks import MARKS_VARIABLE, Marks
from pytest_chaos.trace.program import leave
from pytest_chaos.trace.step import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import TextIOWrapper

    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.source import Observation, Program

PORT_VARIABLE: Final = "CHAOS_PORT"
FREE_PORT: Final = "port:{port}"
_NOT_READY: Final = "liveness:not-ready"
"""The signature of a server that neither ends nor gets ready when it is started on a state."""
STOP_S: Final = 5.0
"""Time for a server to end after SIGTERM; one that runs on is ended like all that a run leaves."""
_DYING_S: Final = 1.0
_PORTS: Final = range(10_240, 32_000)
"""Free ports are taken from here: below those that the kernel gives to clients."""
_PORT_MAX: Final = 65_535
_READY_SHARE: Final = 0.8
"""The share of a time limit in which a server has to get ready: the rest is for the client."""
_LOOKS_S: Final = (0.001, 0.02)
"""Time between two looks for readiness, at first and at most."""
_FAILED: Final = 121
"""Exit code of a traced run that did not get as far as its client's end."""
_SAYS: Final = "chaos: "
_SHOWN_LINES: Final = 2
_SHOWN_CHARACTERS: Final = 150
_OUTPUT_BYTES: Final = 16 * 1024
_SOCK_DIAG, _BY_FAMILY, _REQUEST_DUMP, _LISTEN = 4, 20, 0x301, 10
_ERROR, _DONE = 2, 3
"""Numbers of sock_diag(7), netlink(7) and tcp(7)."""
_ANSWER_BYTES: Final = 32 * 1024
_PREFIX: Final = re.compile(r"[a-z]+:")
_ADDRESS_IN_USE: Final = re.compile(rb"address (is )?already in use|EADDRINUSE", re.IGNORECASE)
"""Printed by a server that has a port of its own, which we do not know."""


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
            self.port, self._reserved = _free_port()

    def start(self, program: Program, directory: Path, marks: str) -> NotReady | None:
        """Start it; return why it could not be started."""
        self._path = directory / self._ready.text
        self._file = _identity(self._path)
        if _is_listened_at(self.port):
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
        if _is_in_use(self.port) or _ADDRESS_IN_USE.search(self._printed_bytes(_OUTPUT_BYTES)):
            return self._taken()
        code = self.exit_code()
        return NotReady("ended", f"the server ended with {exit_text(code)} before it was ready; {self.said()}", code)

    def _taken(self) -> NotReady:
        said = f"; {self.said()}" if self.pid else ""
        text = f"its port ({self.port} of ours) is taken by another program, or by closed connections{said}"
        return NotReady("port-taken", f"{text}: let the server use a free port, {{port}} or self.port")

    def _is_ready(self) -> bool:
        if self._ready.kind == "port":
            return _is_listened_at(self.port)
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


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def _default_signals() -> Iterator[None]:
    """Let a program that is started in this context have the usual answers to signals."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_starts: Final = itertools.count()


def _free_port() -> tuple[int, socket.socket]:
    """Return a port that is free, and a socket that keeps other starts from it until it is closed.

    Names of abstract sockets are unique on a machine, and end with their process.
    """
    first = os.getpid() * 61 + next(_starts) * 7
    for place in range(len(_PORTS)):
        port = _PORTS[(first + place) % len(_PORTS)]
        reserved = socket.socket(socket.AF_UNIX)
        try:
            reserved.bind(f"\0pytest-chaos-port-{port}")
        except OSError:
            reserved.close()
            continue
        if not _is_in_use(port):
            return port, reserved
        reserved.close()
    msg = "this machine has no free port for a server"
    raise CheckError(msg)


def _is_in_use(port: int) -> bool:
    """Whether a port cannot be bound, be it for connections that were closed a moment ago."""
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return True
    return False


def _is_listened_at(port: int) -> bool:
    """Whether a TCP socket listens at a port. It gets no connection: a server may count those."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            return any(_has_listening(kernel, family, port) for family in (socket.AF_INET, socket.AF_INET6))
    except OSError:  # a sandbox without it: its list of all sockets takes longer
        return any(_is_listed(name, port) for name in ("tcp", "tcp6"))


def _has_listening(kernel: socket.socket, family: int, port: int) -> bool:
    """Ask for the listening sockets of a port; see sock_diag(7)."""
    request = struct.pack("=BBxxIH46x", family, socket.IPPROTO_TCP, 1 << _LISTEN, socket.htons(port))
    kernel.send(struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
    has_one = False
    while True:
        answer = kernel.recv(_ANSWER_BYTES)
        while answer:
            length, kind = struct.unpack_from("=IH", answer)
            if kind == _ERROR:
                raise OSError(-struct.unpack_from("=i", answer, 16)[0], "sock_diag")
            if kind == _DONE:
                return has_one
            has_one |= struct.unpack_from("!H", answer, 16 + 4)[0] == port
            answer = answer[(length + 3) & ~3 :]


def _is_listed(name: str, port: int) -> bool:
    """Whether a file of ``/proc/net`` has a listening socket at a port."""
    try:
        lines = Path(f"/proc/net/{name}").read_bytes().splitlines()[1:]
    except OSError:
        return False
    return any(fields[3] == b"0A" and fields[1].endswith(b":%04X" % port) for fields in map(bytes.split, lines))


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


class _Serving(Subject):
    """What servers of both kinds have in common."""

    is_server = True
    _ready: Ready
    _server: Server | None = None
    _is_traced = False

    def _command(self, directory: Path, marks: str) -> Program:
        """Return the server's program."""
        raise NotImplementedError

    def _drive(self, directory: Path, marks: Path) -> str:
        """Run the client; return why it failed."""
        raise NotImplementedError

    def _take_port(self, port: int) -> None:
        """Learn the port of the next start."""
        raise NotImplementedError

    def program(self, directory: Path, marks: Path) -> Program:
        """Return the traced program: server and client together."""
        return lambda: self._serve_and_drive(directory, marks)

    def _serve_and_drive(self, directory: Path, marks: Path) -> None:
        sys.dont_write_bytecode = True
        print_to_descriptors()
        server = Server(self._ready, 1, in_group=True)
        self._take_port(server.port)
        try:
            problem = server.start(self._command(directory, str(marks)), directory, str(marks))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the target's own method raises
            _fail(server, "harness:server-cannot-start", f"serve() raised {raised(error)}")
        if problem := problem or server.wait(self.run_timeout_s * _READY_SHARE):
            _fail(server, f"harness:server-{problem.kind}", problem.text)
        why = self._drive(directory, marks)
        said = server.said("server and client printed")
        if server.ends() if why else server.has_ended and server.exit_code():
            told = f" ({why})" if why else ""
            end = exit_text(server.exit_code())
            sys.stdout.write(f"\nthe server ended by itself with {end} while it was driven{told}; {said}\n")
            raise SystemExit(1)
        if why:
            _fail(server, "harness:client-failed", f"the client failed: {why}; {said}")
        server.stop()

    def explain(self, seen: Observation) -> ExplorationError | None:
        """Return why a run without any fault did not get as far as its client's end."""
        last = seen.output.rstrip("\n").rpartition("\n")[2]
        if seen.exit_code != _FAILED or not last.startswith(_SAYS):
            return None
        signature, _, text = last.removeprefix(_SAYS).partition(" ")
        return ExplorationError(f"{text}; nothing was explored", signature=signature)

    def _start_again(self, directory: Path) -> list[Finding]:
        """Start the server on a state; return a finding if it does not come up."""
        output = 1 if self._is_traced else os.memfd_create("server")
        self._server = server = Server(self._ready, output, in_group=self._is_traced)
        self._take_port(server.port)
        try:
            problem = server.start(self._command(directory, os.devnull), directory, os.devnull)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the target's own method raises
            return [no_restart(f"serve() raised {raised(error)}", type(error).__name__)]
        if not (problem := problem or server.wait(self.check_timeout_s * _READY_SHARE)):
            return []
        if problem.kind in {"port-taken", "cannot-start"}:
            raise CheckError(problem.text)
        if problem.kind == "not-ready":
            text = f"it does not start again: {problem.text} (--check-timeout sets it)"
            return [Finding(signature=_NOT_READY, text=text, kind="liveness")]
        return [no_restart(problem.text, exit_text(problem.exit_code))]

    def _traced(self, program: Callable[[], object]) -> Program:
        def traced() -> None:
            self._is_traced = True
            program()

        return traced

    @contextlib.contextmanager
    def _up(self) -> Iterator[list[Finding]]:
        """End the server after a check; what fails because it ended by itself is its own fault."""
        failure: list[Finding] = []
        try:
            yield failure
        except CheckError as error:
            if self._server is None or not self._server.ends():
                raise
            said, code = self._server.said(), self._server.exit_code()
            text = f"the server, started again, ended with {exit_text(code)} while it was checked ({error}); {said}"
            failure.append(no_restart(text, f"while checked:{exit_text(code)}"))
        finally:
            if self._server is not None:
                self._server.kill()
                if not self._is_traced:
                    os.close(self._server.output)
                self._server = None


def _fail(server: Server, signature: str, text: str) -> NoReturn:
    """End the server and say why; the observing process reads it."""
    server.kill()
    sys.stdout.flush()
    os.write(1, f"\n{_SAYS}{signature} {' '.join(text.split())}\n".encode(errors="replace"))
    raise SystemExit(_FAILED)


class ServerSubject(_Serving):
    """A class whose ``serve`` starts a server that its ``drive`` uses."""

    needed = ("serve", "drive", "check")

    def __init__(self, target: object, name: str, *, place: str = "") -> None:
        self._ready = Ready.read(asked(target, "ready", name) or FREE_PORT)
        self.fixed_port = self._ready.port
        super().__init__(target, name, place=place)

    def _take_port(self, port: int) -> None:
        self._target.port = port

    def _command(self, directory: Path, marks: str) -> Program:
        del marks
        program: Program = self._target.serve(directory)
        if isinstance(program, str):
            return shlex.split(program)
        if not callable(program) and not isinstance(program, list | tuple):
            msg = f"serve() must return a command or a function; got {program!r:.100}"
            raise UsageError(msg)
        return program

    def _drive(self, directory: Path, marks: Path) -> str:
        try:
            self._target.drive(directory, Marks(marks, "client"))
        except SystemExit as error:
            return f"drive() exited with {error.code!r:.100}" if error.code else ""
        except Exception as error:  # noqa: BLE001 - it is told
            return f"drive() raised {raised(error)}"
        return ""

    def recovery(self, directory: Path, marks: Path, seen: Sequence[Mark]) -> Program:
        """Return the start on a state as a program to trace: recovery, start, then check."""
        del marks
        return self._traced(lambda: self._recover_and_look(directory, seen))

    def _recover(self, directory: Path) -> list[Finding]:
        return super()._recover(directory) or self._start_again(directory)

    def examine(self, directory: Path, marks: Sequence[Mark]) -> list[Finding]:
        """Start the server on a state, check, and end it."""
        found: list[Finding] = []
        with self._up() as failure:
            found = super().examine(directory, marks)
        return failure or found


class ServerCommands(_Serving, CommandSubject):
    """A server, its client and its check as command lines; ``{port}`` in them becomes its port."""

    def __init__(
        self, serve: Sequence[str], drive: Sequence[str], check: Sequence[str], *, ready: str = FREE_PORT, **others: Any
    ) -> None:
        self._ready = Ready.read(ready)
        self.fixed_port = self._ready.port
        self._port = 0
        CommandSubject.__init__(self, serve, check, **others)
        self._commands |= {"drive": tuple(drive), "ready": (ready,)}

    def _take_port(self, port: int) -> None:
        self._port = port
        os.environ[PORT_VARIABLE] = str(port)

    def argv(self, name: str, directory: Path, marks: Path) -> list[str]:
        """Return one of the commands with its placeholders filled in."""
        return [part.replace("{port}", str(self._port)) for part in super().argv(name, directory, marks)]

    def _command(self, directory: Path, marks: str) -> Program:
        return self.argv("run", directory, Path(marks))

    def _drive(self, directory: Path, marks: Path) -> str:
        environment = os.environ | {DIRECTORY_VARIABLE: str(directory), MARKS_VARIABLE: str(marks)}
        argv = self.argv("drive", directory, marks)
        try:
            done = subprocess.run(argv, cwd=directory, env=environment, stdin=subprocess.DEVNULL, check=False)
        except OSError as error:
            return f"it cannot be started ({error})"
        return f"it ended with {exit_text(done.returncode)}" if done.returncode else ""

    def recovery(self, directory: Path, marks: Path, seen: Sequence[Mark]) -> Program:
        """Return the start on a state as a program to trace: recovery, start, then check."""
        del seen
        return self._traced(lambda: list(self.check_with_file(directory, marks)))

    def _restart(self, directory: Path, marks: Path) -> list[Finding]:
        return super()._restart(directory, marks) or self._start_again(directory)

    def check_with_file(self, directory: Path, marks: Path) -> list[Finding]:
        """Start the server on a state, check, and end it."""
        found: list[Finding] = []
        with self._up() as failure:
            found = super().check_with_file(directory, marks)
        return failure or found


def serves(target: object, name: str) -> bool:
    """Whether a target is a server: it has ``serve``. Raises UsageError if it has ``run``, too."""
    has_serve, has_run = (callable(asked(target, method, name)) for method in ("serve", "run"))
    if has_serve and has_run and callable(asked(target, "drive", name)):
        msg = f"{name} must have either run, or serve and drive; got all of them. Take out what is not to be explored"
        raise UsageError(msg)
    return has_serve and not has_run
