"""One preloaded process, and the runs of pytest that are forked from it, watched from outside.

A run ends when its tests have ended, when the campaign has seen enough, when a test takes longer
than its bound, or when the process is gone. Whatever it leaves behind is ended before the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias

from pytest_chaos.runtime import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

INSIDE: Final = Path(__file__).with_name("inside")
FILE_BYTES_MAX: Final = 256 * 1024 * 1024
"""Bound on each file that the tests and their agents write: a mutant must not fill the disk."""
FOLDER_BYTES_MAX: Final = 2 * FILE_BYTES_MAX
"""Bound on all files of one run, looked at every few seconds."""
START_S_MAX: Final = 120.0
_MARK: Final = "CHAOS_MUTATE_PROCESS"
"""The variable by which the processes of one preloaded process are found when it was killed."""
_LOOK_EVERY_S: Final = 2.0
_UNFIT: Final = 86
"""As ``UNFIT`` in ``inside/chaos_mutate_server.py``, which nothing of ours may be imported by."""
_ENDED_S_MAX: Final = 30.0

Event: TypeAlias = dict[str, Any]


class RunEnd(NamedTuple):
    """How a run of pytest ended.

    ``why`` is ended, stopped (by the campaign), time, size, lost, or unfit (this process cannot run
    it); ``status`` its exit status if it ended by itself. ``output`` is the end of what it printed.
    """

    why: str
    status: int | None
    output: str


class PytestCommand(NamedTuple):
    """The command after ``--``. ``with_directory``: it was ``python -m pytest``."""

    arguments: tuple[str, ...]
    with_directory: bool = False


class PreloadedPytest:
    """A process that forks one pytest at a time. Use it as a context manager.

    ``modules`` are imported before. With ``collected``, the arguments of pytest, it collects the
    tests before, and a run begins with its first test.
    """

    def __init__(
        self,
        command: PytestCommand,
        package: str,
        modules: Sequence[str] = (),
        *,
        seed: str,
        collected: Sequence[str] | None = None,
    ) -> None:
        self._command = command
        self._package = package
        self._modules = list(modules)
        self._collected = list(collected) if collected is not None else None
        self._seed = seed
        self._process: subprocess.Popen[bytes] | None = None
        self._events = -1
        self._is_unfit = False
        self._folder = Path(tempfile.mkdtemp(prefix="chaos-mutate-", dir=_memory()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(
        self,
        folder: Path | None,
        arguments: Sequence[str],
        bound_s: Callable[[Event], float],
        on_event: Callable[[Event], bool],
        *,
        only: Mapping[str, Sequence[str] | None] | None = None,
        environment: dict[str, str] | None = None,
        constants: bool = False,
    ) -> RunEnd:
        """Run pytest; ``on_event`` gets each event and returns whether to go on.

        ``folder`` has the compiled modules. ``bound_s`` says, after an event, how long the next one
        may take. ``only`` are the tests to run, in this order, each with the places of its sweep or
        None for all of them. ``constants``: what differs in the modules is outside of functions.
        """
        self._scratch.mkdir(exist_ok=True)
        process = self._started()
        if process is None:
            return RunEnd("unfit", None, self._output())
        request = self._request(folder, arguments)
        request["constants"] = constants
        request["environment"].update(environment or {})
        if only is not None:
            (self._folder / "only.json").write_text(json.dumps(only))
            request["environment"]["CHAOS_MUTATE_ONLY"] = str(self._folder / "only.json")
        with contextlib.suppress(FileNotFoundError):
            os.truncate(request["output"], 0)
        assert process.stdin is not None  # noqa: S101 - a pipe
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            why, status = self._follow(process, self._scratch, bound_s, on_event)
        except BrokenPipeError:
            why, status = "lost", None
        finally:
            self._end_what_is_left(process)
            shutil.rmtree(self._scratch, ignore_errors=True)
        if why == "ended" and status == _UNFIT and self._collected is not None:
            why = "unfit"
        return RunEnd(why, status, self._output())

    @property
    def _scratch(self) -> Path:
        return self._folder / "run"

    def _request(self, folder: Path | None, arguments: Sequence[str]) -> Event:
        return {
            "folder": str(folder) if folder is not None else "",
            "arguments": [*arguments, *self._own_arguments()],
            "output": str(self._folder / "output.txt"),
            "environment": {"TMPDIR": str(self._scratch)},
            "file_bytes_max": FILE_BYTES_MAX,
            "with_directory": self._command.with_directory,
        }

    def _own_arguments(self) -> list[str]:
        given = [
            f"--chaos-results={self._scratch / 'results'}", f"--chaos-scratch={self._scratch}", "--chaos-confirm=0",
            "--chaos-report=json", f"--chaos-seed={self._seed}", "-pno:cacheprovider", "-pno:randomly",
            "-pchaos_mutate_tests",
            "-Wignore::pytest.PytestAssertRewriteWarning",  # a preloaded library may import a plugin
        ]  # fmt: skip
        is_without_xdist = any("no:xdist" in word for word in self._command.arguments)
        return given if is_without_xdist else [*given, "-n0"]

    def _started(self) -> subprocess.Popen[bytes] | None:
        """Return the process, started if need be, or None if it cannot be forked."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        if self._collected is not None:
            return self._started_with_tests(self._collected)
        for modules in (self._modules, []):
            process, said = self._start({"modules": modules})
            if not said.get("loaded") and said.get("threads") == 1:
                break
            self._end()  # what was preloaded has started threads, or imports the package
        self._process = process
        return process

    def _started_with_tests(self, arguments: Sequence[str]) -> subprocess.Popen[bytes] | None:
        if self._is_unfit:
            return None
        process, said = self._start({"collect": self._request(None, arguments)})
        if said.get("threads") == 1:
            return process
        self._is_unfit = True  # collecting them fails, or has started threads
        self._end()
        return None

    def _start(self, first: Event) -> tuple[subprocess.Popen[bytes], Event]:
        self._events, theirs = os.pipe()
        os.set_blocking(self._events, False)
        environment = {
            **os.environ,
            "CHAOS_MUTATE_TELL": str(theirs),
            _MARK: self._folder.name,
            "PYTHONPATH": os.pathsep.join([str(INSIDE), *filter(None, [os.environ.get("PYTHONPATH", "")])]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        environment.pop("CHAOS_MUTATE", None)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, theirs)
            log = stack.enter_context((self._folder / "server.txt").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-P", str(INSIDE / "chaos_mutate_server.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                pass_fds=[theirs],
                bufsize=0,
            )
        self._process = process
        assert process.stdin is not None  # noqa: S101 - a pipe
        process.stdin.write(json.dumps({"package": self._package, **first}).encode() + b"\n")
        return process, self._answer(process, START_S_MAX)

    def _answer(self, process: subprocess.Popen[bytes], timeout_s: float) -> Event:
        """Return the next answer of the process, or nothing when it is gone or silent."""
        assert process.stdout is not None  # noqa: S101 - a pipe
        if not select.select([process.stdout], [], [], timeout_s)[0]:
            return {}
        line = process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else {}

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        scratch: Path,
        bound_s: Callable[[Event], float],
        on_event: Callable[[Event], bool],
    ) -> tuple[str, int | None]:
        deadline = time.monotonic() + bound_s({"event": "begun"})
        assert process.stdout is not None  # noqa: S101 - a pipe
        waiting, rest = [process.stdout.fileno(), self._events], b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return "time", None
            ready = select.select(waiting, [], [], min(left, _LOOK_EVERY_S))[0]
            if not ready and _size(scratch) > FOLDER_BYTES_MAX:
                return "size", None
            if self._events in ready:
                lines = (rest + os.read(self._events, 1 << 20)).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    event = json.loads(line)
                    deadline = time.monotonic() + bound_s(event)
                    if not on_event(event):
                        return "stopped", None
            elif ready:
                answer = self._answer(process, 0)
                if not answer:
                    return "lost", None
                if "status" in answer:
                    return "ended", int(answer["status"])

    def _end_what_is_left(self, process: subprocess.Popen[bytes]) -> None:
        """End all processes below the preloaded one, and read what it has to say about them."""
        processes.end_all(process.pid, reap=lambda: None)
        if not self._is_idle(process):
            self._end()
            return
        with contextlib.suppress(BlockingIOError):
            while os.read(self._events, 1 << 20):
                continue

    def _is_idle(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the preloaded process answers, after it has reaped what was ended."""
        assert process.stdin is not None  # noqa: S101 - a pipe
        deadline = time.monotonic() + _ENDED_S_MAX
        try:
            process.stdin.write(b'{"ping": true}\n')
        except BrokenPipeError:  # its mutant has killed it
            return False
        while answer := self._answer(process, max(0.0, deadline - time.monotonic())):
            if "pong" in answer:
                return True
        return False

    def _output(self) -> str:
        with contextlib.suppress(OSError), (self._folder / "output.txt").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            return file.read().decode(errors="replace")
        return ""

    def _end(self) -> None:
        """End the preloaded process, and all below it."""
        if (process := self._process) is not None:
            self._process = None
            process.send_signal(signal.SIGKILL)
            process.wait()
            processes.end_marked(_MARK, self._folder.name)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if self._events >= 0:
            os.close(self._events)
            self._events = -1


def _memory() -> str | None:
    folder = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it, with mode 0700
    return str(folder) if os.access(folder, os.W_OK | os.X_OK) else None


def _size(folder: Path) -> int:
    """Return the bytes of all files below a folder; files may vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512  # noqa: PTH118 - a race is expected
    return total
