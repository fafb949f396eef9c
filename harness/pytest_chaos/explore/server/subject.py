"""Servers as subjects: a class with methods, or three commands."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pytest_chaos.errors import UsageError
from pytest_chaos.explore.report import ExplorationError
from pytest_chaos.explore.server.started import FREE_PORT, PORT_VARIABLE, Ready, Server
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
from pytest_chaos.runtime.marks import MARKS_VARIABLE, Marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence, Set as AbstractSet

    from pytest_chaos.model.values import Mark
    from pytest_chaos.trace.source import Observation, Program

_NOT_READY: Final = "liveness:not-ready"
"""The signature of a server that neither ends nor gets ready when it is started on a state."""
_READY_SHARE: Final = 0.8
"""The share of a time limit in which a server has to get ready: the rest is for the client."""
_FAILED: Final = 121
"""Exit code of a traced run that did not get as far as its client's end."""
_SAYS: Final = "chaos: "


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
            sys.stdout.write(f"\nthe server ended by itself with {end} while it was driven{told}\n")
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

    def examine(self, directory: Path, marks: Sequence[Mark], keys: AbstractSet[str] = frozenset()) -> list[Finding]:
        """Start the server on a state, check, and end it."""
        found: list[Finding] = []
        with self._up() as failure:
            found = super().examine(directory, marks, keys)
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

    def check_with_file(self, directory: Path, marks: Path, keys: AbstractSet[str] = frozenset()) -> list[Finding]:
        """Start the server on a state, check, and end it."""
        found: list[Finding] = []
        with self._up() as failure:
            found = super().check_with_file(directory, marks, keys)
        return failure or found


def serves(target: object, name: str) -> bool:
    """Whether a target is a server: it has ``serve``. Raises UsageError if it has ``run``, too."""
    has_serve, has_run = (callable(asked(target, method, name)) for method in ("serve", "run"))
    if has_serve and has_run and callable(asked(target, "drive", name)):
        msg = f"{name} must have either run, or serve and drive; got all of them. Take out what is not to be explored"
        raise UsageError(msg)
    return has_serve and not has_run
