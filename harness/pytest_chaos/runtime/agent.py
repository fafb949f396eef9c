"""The controller's side of an agent: start it, wait for its marks, signal it, see how it ended.

Nothing here has a thread. Each wait drives the rest: it pumps the guardian's messages, the marks
and the faults that are due. A wait has a condition and a bound; an expired bound raises WaitExpired
with what was seen instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from pytest_chaos.errors import AgentError, GuardianLost, SpawnError, UsageError, WaitExpired
from pytest_chaos.evidence.redact import redactor
from pytest_chaos.model.plan import TIME_S_MAX, shown
from pytest_chaos.model.values import AfterMark, AgentSummary, Json, Mark, MarkKind
from pytest_chaos.runtime import owner, processes, wire
from pytest_chaos.runtime.marks import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType


SPAWN_TIMEOUT_S: Final = 30.0
WAIT_TIMEOUT_S: Final = 10.0
END_TIMEOUT_S: Final = 15.0
OUTPUT_BYTES_MAX: Final = 1 << 20
OUTPUT_SHOWN_LINES: Final = 15
_POLLS_S: Final = ((0.05, 0.0005), (0.5, 0.002), (float("inf"), 0.01))
"""Pairs of time waited so far and pause between two looks: long waits look less often."""
_SAMPLE_EVERY_S: Final = 0.1
_REQUESTS_TO_END: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that a program may answer with an end of its own, whatever its exit code."""


class ExitStatus(NamedTuple):
    """How a process ended: with an exit code, or by a signal.

    >>> str(ExitStatus.from_wait(9)), str(ExitStatus.from_wait(256))
    ('signal 9', 'exit code 1')
    """

    code: int | None
    signal: int | None

    @classmethod
    def from_wait(cls, status: int) -> ExitStatus:
        """Read a status as ``os.wait`` returns it."""
        if os.WIFSIGNALED(status):
            return cls(None, os.WTERMSIG(status))
        return cls(os.WEXITSTATUS(status), None)

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0."""
        return self[0] == 0

    def __str__(self) -> str:
        """Return the form that records and messages use."""
        return f"signal {self[1]}" if self[1] is not None else f"exit code {self[0]}"


class _ReadStatus(ExitStatus):
    """An exit status for a test; ``on_read`` is told what the test reads: code, signal or ok."""

    on_read: Callable[[str], None]

    @property
    def code(self) -> int | None:
        """The exit code."""
        self.on_read("code")
        return self[0]

    @property
    def signal(self) -> int | None:
        """The signal's number."""
        self.on_read("signal")
        return self[1]

    @property
    def ok(self) -> bool:
        """Whether it ended with exit code 0."""
        self.on_read("ok")
        return self[0] == 0

    def __eq__(self, other: object) -> bool:
        """Compare as a pair."""
        self.on_read("code")
        return tuple.__eq__(self, other) if isinstance(other, tuple) else False

    def __ne__(self, other: object) -> bool:
        """Compare as a pair."""
        return not self == other

    __hash__ = ExitStatus.__hash__


class Environment(dict[str, Any]):
    """Variables of a process. Its repr, which a traceback may show, has no values.

    >>> Environment(TOKEN="hunter2")
    <1 variable>
    """

    def __repr__(self) -> str:
        """Return the number of variables."""
        return f"<{len(self)} variable{'s' * (len(self) != 1)}>"


class Command(NamedTuple):
    """A Python function of the target, or an argv, to start as an agent."""

    target: str | None
    argv: tuple[str, ...] | None
    kwargs: dict[str, Any]
    fresh: bool = False

    def __str__(self) -> str:
        """Return the target, or the argv as one line, without secrets."""
        return self.target if self.target is not None else " ".join(redactor().words(self.argv or ()))


class GuardianClient:
    """The connection to a guardian, which it starts, and the agents of the current run.

    There is one in a pytest process, made at the first spawn. The guardian removes ``folder``, the
    session's, when it ends.
    """

    def __init__(self, folder: Path, *, watch: processes.Process | None = None) -> None:
        self.folder = folder
        self.agents: dict[int, Agent] = {}
        self.on_pump: Callable[[], None] = lambda: None
        self._serial = 0
        self._ended: wire.Message | None = None
        self._paths: dict[tuple[str, ...], int] = {}
        self._environment = Environment(os.environ)
        ours, theirs = wire.pair()
        self._socket = ours
        self._guardian = -1
        self._pid = 0
        here = os.pidfd_open(os.getpid())
        lock = owner.descriptor_of(folder)
        descriptors = [theirs.fileno(), here, *([lock] if lock is not None else [])]
        arguments = [*map(str, descriptors), *(["-1"] if lock is None else [])]
        with (folder / "guardian.log").open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "pytest_chaos.runtime.guardian", *arguments],
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=self._environment
                    | {"PYTHONPATH": os.pathsep.join(_import_path()), owner.VARIABLE: str(folder.resolve())},
                )
            except OSError as error:
                msg = f"the guardian of the agents could not be started: {error.strerror}. Free memory or processes"
                raise SpawnError(msg) from None  # the frames of subprocess have the whole environment
        theirs.close()
        os.close(here)
        self._poll = select.poll()
        self._poll.register(ours.fileno(), select.POLLIN)
        wire.send(ours, {"do": "folder", "path": str(folder)})
        if watch is not None:
            wire.send(ours, {"do": "watch", "pid": watch.pid, "start_ticks": watch.start_ticks})
        self._wait_until_up()

    @property
    def pid(self) -> int:
        """The process id of the guardian; its parent is the one that stands in for it."""
        return self._pid

    @property
    def alive(self) -> bool:
        """Whether the guardian is still connected."""
        return self._socket.fileno() >= 0

    def begin(self, journal: Path) -> None:
        """Name the journal of the run that begins, to be saved if this process ends early."""
        self._send({"do": "begin", "journal": str(journal)})

    def spawn(
        self,
        name: str,
        command: Command,
        spec: dict[str, Any],
        output: Path,
        *,
        timeout_s: float,
        on_made: Callable[[Agent], None] = lambda _: None,
    ) -> Agent:
        """Start an agent and return it; ``on_made`` gets it before it can do anything.

        Raises SpawnError when it cannot be started within ``timeout_s`` seconds.
        """
        self._serial += 1
        spec = {**spec, "id": self._serial, "name": name, "target": _placed(command.target), "kwargs": command.kwargs}
        spec["argv"] = list(command.argv) if command.argv is not None else None
        spec["path"] = self._path_number()
        spec["environment"] = self._environment_difference(spec["environment"])
        agent = Agent(self, self._serial, name, command, output)
        self.agents[self._serial] = agent
        on_made(agent)
        message = {"do": "spawn", "spec": spec, "output": str(output), "output_bytes_max": OUTPUT_BYTES_MAX}
        try:
            self._send({**message, "fresh": command.fresh, "log": str(self.folder / "zygotes.log")})
        except UsageError:
            self._give_up(agent)
            raise
        deadline = time.monotonic() + timeout_s
        while agent.pid == 0 and not agent.failure:
            if time.monotonic() > deadline:
                agent.failure = f"it did not start within {timeout_s:g} s (an import that hangs?)"
            self.pump(0.05)
        if agent.failure:
            self._give_up(agent)
            msg = f"agent {name!r} ({command}) could not be started: {agent.failure}"
            raise SpawnError(msg)
        return agent

    def _give_up(self, agent: Agent) -> None:
        del self.agents[agent.number]
        agent.may_fail = True  # the SpawnError says it
        agent.ended = agent.ended or ExitStatus(127, None)

    def pump(self, wait_s: float = 0.0) -> None:
        """Handle messages, waiting up to ``wait_s`` for the first, and let due faults fire."""
        if self._socket.fileno() < 0:
            if wait_s:
                time.sleep(wait_s)
        elif self._poll.poll(wait_s * 1000):
            while self._take():
                pass
        self.on_pump()

    def wait_until(
        self, condition: Callable[[], object], *, timeout_s: float, what: str, seen: Callable[[], str], owed: str = ""
    ) -> None:
        """Pump until ``condition`` is true. Raises WaitExpired with ``what`` and ``seen``."""
        check_bound(timeout_s)
        started = time.monotonic()
        while not condition():
            elapsed = time.monotonic() - started
            if elapsed > timeout_s:
                msg = f"waited {timeout_s:g} s for {what}, and it did not come: {seen()}"
                raise WaitExpired(msg, owed=owed)
            pause_s = next(pause for until, pause in _POLLS_S if elapsed < until)
            self.pump(min(pause_s, max(0.0, timeout_s - elapsed) + 1e-4))
            if not self.alive and not condition():
                raise _lost(what)

    def end(self) -> list[int]:
        """End everything that the run started; return the pids that were still alive.

        Raises AgentError when something could not be ended.
        """
        self._ended = None
        self._send({"do": "end"})
        self.on_pump = lambda: None
        answer = self._wait_for_answer()
        for agent in self.agents.values():
            agent.close()
        self.agents = {}
        if answer is None:
            msg = "the guardian of the agents ended or does not answer: processes of this run may be left"
            raise AgentError(msg)
        if answer["left"]:
            msg = f"processes {answer['left']} did not die within {END_TIMEOUT_S:g} s of SIGKILL"
            raise AgentError(msg)
        ended: list[int] = answer["ended"]
        return ended

    def _wait_for_answer(self) -> wire.Message | None:
        deadline_s = time.monotonic() + END_TIMEOUT_S
        while self._ended is None and self.alive and time.monotonic() < deadline_s:
            self.pump(0.05)
        return self._ended

    def close(self) -> None:
        """Let the guardian clean up, and wait for its end."""
        self._lose()
        if self._guardian >= 0:
            self._await_guardian()
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(END_TIMEOUT_S)
        if code != 0:
            self._end_orphans(without=())

    def _await_guardian(self) -> None:
        """Wait for the guardian's end; whatever that was, its stand-in is not needed any more."""
        poll = select.poll()
        poll.register(self._guardian, select.POLLIN)
        if poll.poll(END_TIMEOUT_S * 1000):
            self._process.terminate()
        os.close(self._guardian)
        self._guardian = -1

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _path_number(self) -> int:
        """Return the number of the present import path, which the guardian is told once."""
        path = tuple(sys.path)
        if path not in self._paths:
            self._paths[path] = len(self._paths)
            self._send({"do": "path", "number": self._paths[path], "path": _import_path()})
        return self._paths[path]

    def _environment_difference(self, wanted: Mapping[str, str]) -> dict[str, str | None]:
        """Return the variables to set in the guardian's environment, or (None) to unset."""
        has = self._environment
        difference = Environment({name: value for name, value in wanted.items() if has.get(name) != value})
        difference.update(dict.fromkeys(has.keys() - wanted.keys()))
        if "PYTHONPATH" not in difference:
            difference["PYTHONPATH"] = wanted.get("PYTHONPATH")
        return difference

    def _wait_until_up(self) -> None:
        if self._poll.poll(SPAWN_TIMEOUT_S * 1000) and (up := wire.receive(self._socket)) is not None:
            self._pid = up[0]["pid"]
            with contextlib.suppress(ProcessLookupError):  # it was killed, which the next message tells
                self._guardian = os.pidfd_open(self._pid)
        else:
            self._lose()
            said = (self.folder / "guardian.log").read_text(errors="replace").strip().splitlines()
            msg = f"the guardian of the agents did not start: {said[-1] if said else 'it said nothing'}"
            raise SpawnError(msg)

    def _send(self, message: wire.Message) -> None:
        try:
            wire.send(self._socket, message)
        except wire.MessageTooLarge as error:
            msg = f"arguments and environment of an agent must be small; got {error}. Pass the path of a file instead"
            raise UsageError(msg) from error
        except TypeError as error:
            msg = f"an agent's kwargs must be JSON; got: {error}. Pass plain values or the path of a file"
            raise UsageError(msg) from error
        except OSError:
            self._lose()
            self._end_orphans()

    def _take(self) -> bool:
        try:
            received = wire.receive(self._socket, wait=False)
        except BlockingIOError:
            return False
        if received is None:
            self._lose()
            self._end_orphans()
            return False
        message, descriptors = received
        if message["event"] == "ended":
            self._ended = message
        elif (agent := self.agents.get(message["id"])) is not None:
            agent.handle(message, descriptors)
            return True
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _lose(self) -> None:
        """Disconnect. No agent may outlive its guardian."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._socket.fileno())
            self._socket.close()
        for agent in self.agents.values():
            agent.lose()

    def _end_orphans(self, *, without: Collection[int] | None = None) -> None:
        """End the processes that a killed guardian left behind, daemons among them.

        Its stand-in is left alone until the end: it cleans up if this process is killed meanwhile.
        """
        kept = [self._process.pid] if without is None else without
        processes.end_marked(owner.VARIABLE, str(self.folder.resolve()), without=kept)


class Agent:
    """One real process of the target. ``chaos.spawn`` makes it; its waits pump the whole run.

    Example::

        writer = chaos.spawn("shop.worker:work", name="writer")
        writer.wait_for("put", count=3)      # three acks of the operation "put"
        writer.kill()                        # returns with the receipt: ended by signal 9
        assert writer.exit_status.signal == 9
        again = writer.restart()             # ``writer`` is the same agent: its waits follow
        assert writer.wait_exit().code == 0
    """

    def __init__(self, client: GuardianClient, number: int, name: str, command: Command, output: Path) -> None:
        self._client = client
        self.number = number
        self.name = name
        self.command = command
        self.output_path = output
        self.pid = 0
        self.start_ticks = 0
        self.ended: ExitStatus | None = None
        """How this process ended, for the harness itself; tests read ``exit_status``."""
        self.may_fail = False
        self.signals_sent: set[int] = set()
        """The signals that the harness, or a fault of the plan, has sent to it."""
        self._was_read: set[str] = set()
        self.failure = ""
        self.note = ""
        self.ended_by_harness = False
        self.marks: list[Mark] = []
        self.successor: Agent | None = None
        self.is_paused = False
        self.held: list[Mark] = []
        """The notes of its calls that are held, in order."""
        self.started_s = time.monotonic()
        self.fires_from_within = command.target is not None
        self.fire: Callable[[str, Mapping[str, Json]], object] = self._nobody_fires
        self._pidfd = -1
        self._seen_s: dict[tuple[str, str], list[float]] = {}
        self._usage: wire.Message = {}
        self._duration_s = 0.0
        self._cpu_s = 0.0
        self._memory_bytes_max = 0
        self._open_files_max = 0
        self._sampled_s = 0.0

    @property
    def newest(self) -> Agent:
        """The newest process of this agent: the one after its last restart."""
        agent = self
        while agent.successor is not None:
            agent = agent.successor
        return agent

    @property
    def running(self) -> bool:
        """Whether the end of its newest process has not been seen."""
        return self.newest.ended is None

    @property
    def exit_status(self) -> ExitStatus | None:
        """How its newest process ended, or None. A test that compares it has judged it."""
        return self.newest._read_status()  # noqa: SLF001 - another process of this agent

    @property
    def ended_by_fault(self) -> bool:
        """Whether a fault of the run ended this process: by its signal, or on request."""
        asked = self.signals_sent & _REQUESTS_TO_END
        return self.ended is not None and (self.ended.signal in self.signals_sent or bool(asked))

    @property
    def failed(self) -> bool:
        """Whether this process failed by itself, and nothing in the test said that it may.

        A test that asks only whether it was killed, and starts it again, means planned kills.
        """
        if self.ended is None or self.ended.ok or self.may_fail or self.ended_by_harness or self.ended_by_fault:
            return False
        judged = {"signal"} if self.ended.signal is not None else {"code", "ok"}
        if self.successor is not None:
            judged = judged & {"code"}
        return not judged & self._was_read

    def _read_status(self) -> ExitStatus | None:
        if self.ended is None:
            return None
        status = _ReadStatus(*self.ended)
        status.on_read = self._was_read.add
        return status

    @property
    def state(self) -> str:
        """The kernel's state letter (``R``, ``S``, ``T`` stopped, ``Z``), or its exit status."""
        if self.successor is not None:
            return self.newest.state
        if self.ended is not None:
            return str(self.ended)
        process = processes.read(self.pid)
        return process.state if process is not None and process.start_ticks == self.start_ticks else "gone"

    def output(self) -> str:
        """Return what it has printed so far, up to the kept limit."""
        try:
            return self.output_path.read_text(errors="replace")
        except OSError:
            return ""

    def wait_for(
        self,
        operation: str,
        *,
        count: int = 1,
        kind: MarkKind | str = MarkKind.ACK,
        timeout_s: float = WAIT_TIMEOUT_S,
        owed: str = "",
    ) -> tuple[Mark, ...]:
        """Wait for ``count`` marks of an operation and return all marks of it.

        Raises WaitExpired after ``timeout_s`` seconds, and AgentError as soon as the agent has
        ended without them. Both show the marks seen instead, its last output and its state. They
        leave the run INCONCLUSIVE. With ``owed``, a reason why the target must do it in time, they
        make it VIOLATED.

        Example::

            writer.wait_for("put", count=3)
            (ready,) = server.wait_for("listening", kind="note")
            server.wait_for_port(ready.value)
            worker.wait_for("order", timeout_s=5, owed="an expired lease is taken over in 5 s")
        """
        if self.successor is not None:
            return self.newest.wait_for(operation, count=count, kind=kind, timeout_s=timeout_s, owed=owed)
        wanted = MarkKind(kind)
        what = f"{count} {wanted} mark(s) of {operation!r} from agent {self.name!r}"

        def found() -> tuple[Mark, ...]:
            return tuple(mark for mark in self.marks if mark.operation == operation and mark.kind is wanted)

        self._wait(lambda: len(found()) >= count, timeout_s, what, owed)
        return found()

    def wait_for_output(self, pattern: str, *, timeout_s: float = WAIT_TIMEOUT_S, owed: str = "") -> re.Match[str]:
        """Wait until its output (the first MiB) matches a regular expression; return the match.

        Raises WaitExpired, or AgentError when it ended before; ``owed`` as in :meth:`wait_for`.

        Example::

            port = int(server.wait_for_output("listening on port ([0-9]+)")[1])
        """
        if self.successor is not None:
            return self.newest.wait_for_output(pattern, timeout_s=timeout_s, owed=owed)
        expression = re.compile(pattern, re.MULTILINE)
        matches: list[re.Match[str]] = []

        def found() -> bool:
            if (match := expression.search(self.output())) is not None:
                matches.append(match)
            return bool(matches)

        self._wait(found, timeout_s, f"output of agent {self.name!r} that matches {pattern!r}", owed)
        return matches[0]

    def wait_for_port(
        self, port: int, *, host: str = "127.0.0.1", timeout_s: float = WAIT_TIMEOUT_S, owed: str = ""
    ) -> None:
        """Wait until ``host``:``port`` accepts connections. Raises WaitExpired or AgentError."""
        if self.successor is not None:
            self.newest.wait_for_port(port, host=host, timeout_s=timeout_s, owed=owed)
            return

        def accepts() -> bool:
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=0.5):
                return True
            return False

        self._wait(accepts, timeout_s, f"agent {self.name!r} to accept connections at {host}:{port}", owed)

    def wait_exit(self, *, timeout_s: float = WAIT_TIMEOUT_S, owed: str = "") -> ExitStatus:
        """Wait until its newest process has ended and return how. Raises WaitExpired.

        A process that failed by itself leaves the run INCONCLUSIVE, unless the test compares the
        status (``code``, ``signal``, ``ok``) or the agent may fail (``chaos.spawn``).
        """
        what = f"the end of agent {self.name!r}"
        self._client.wait_until(
            lambda: not self.running,
            timeout_s=timeout_s,
            what=what,
            seen=lambda: str(self.newest.describe()),
            owed=owed,
        )
        status = self.exit_status
        assert status is not None  # noqa: S101 - the condition above
        return status

    def wait_state(self, state: str, *, timeout_s: float = WAIT_TIMEOUT_S, owed: str = "") -> None:
        """Wait until the kernel shows this state letter. Raises WaitExpired or AgentError."""
        if self.successor is not None:
            self.newest.wait_state(state, timeout_s=timeout_s, owed=owed)
            return
        self._wait(lambda: self.state == state, timeout_s, f"state {state} of agent {self.name!r}", owed)

    def wait_stopped(self, *, timeout_s: float = WAIT_TIMEOUT_S, owed: str = "") -> bool:
        """Wait until it is paused, held, or has ended; return whether it is paused or held.

        For a test that is executed at every point, and once without a fault. Raises WaitExpired.
        """
        self._client.wait_until(
            lambda: self.newest.is_paused or bool(self.newest.held) or not self.running,
            timeout_s=timeout_s,
            what=f"agent {self.name!r} to be paused or held, or to end",
            seen=lambda: str(self.newest.describe()),
            owed=owed,
        )
        return self.running

    def kill(self, *, tree: bool = False) -> None:
        """End it with SIGKILL, with ``tree`` its descendants, too, and wait for the receipt.

        Raises WaitExpired.
        """
        self.newest.fire("kill", {"tree": True} if tree else {})

    def terminate(self) -> None:
        """Ask it to end with SIGTERM and wait for the receipt. Raises WaitExpired."""
        self.newest.fire("terminate", {})

    def pause(self) -> None:
        """Stop it with SIGSTOP and wait until the kernel shows state T. Raises WaitExpired."""
        self.newest.fire("pause", {})

    def resume(self) -> None:
        """Let a paused agent go on with SIGCONT. Raises WaitExpired."""
        self.newest.fire("resume", {})

    def release(self) -> None:
        """Let a held call go on, the one held first. Raises WaitExpired."""
        self.newest.fire("release", {})

    def restart(self) -> Agent:
        """Kill it if it runs, start it again with its first arguments, and return the new agent."""
        old = self.newest
        old.fire("restart", {})
        assert old.successor is not None  # noqa: S101 - the receipt names it
        return old.successor

    def add_mark(self, mark: Mark) -> None:
        """Add a mark that the run has read from the mark file."""
        self.marks.append(mark)
        self._seen_s.setdefault((str(mark.kind), mark.operation), []).append(time.monotonic())

    def mark_seen_s(self, when: AfterMark) -> float | None:
        """Return when (monotonic, seconds) the mark of ``when`` was seen, or None."""
        seen = self._seen_s.get((str(when.kind), when.operation), [])
        return seen[when.count - 1] if len(seen) >= when.count else None

    def send_signal(self, number: signal.Signals) -> bool:
        """Send a signal to exactly this process (by pidfd); return whether it was still there."""
        if self._pidfd < 0 or self.ended is not None:
            return False
        self.signals_sent.add(int(number))
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def describe_failure(self) -> str:
        """Return how it failed, with its last output: for a process whose end nothing expected."""
        lines = self.output().rstrip().splitlines()[-OUTPUT_SHOWN_LINES:]
        raised = next((str(mark.value) for mark in self.marks if mark.operation == Note.RAISED), "")
        said = raised or (lines[-1].strip() if lines else "it printed nothing")
        shown = "\n  ".join(["; its last output:", *lines]) if lines else ""
        return f"agent {self.name!r} ended with {self.ended} ({said}), and nothing in the test expects it{shown}"

    def describe(self) -> str:
        """Return state, marks and last output in words, for the message of a failed wait."""
        seen: dict[str, int] = {}
        for mark in self.marks:
            seen[f"{mark.kind} {mark.operation}"] = seen.get(f"{mark.kind} {mark.operation}", 0) + 1
        marks = ", ".join(f"{count} {name}" for name, count in seen.items()) or "no marks"
        lines = self.output().rstrip().splitlines()[-OUTPUT_SHOWN_LINES:]
        shown = "\n  ".join(["; its last output:", *lines]) if lines else "; it printed nothing"
        return f"agent {self.name!r} (pid {self.pid}) is in state {self.state}, with {marks}{shown}"

    def summary(self) -> AgentSummary:
        """Return its entry in the record."""
        return AgentSummary(
            name=self.name,
            target=str(self.command),
            pid=self.pid,
            exit_status="ended by the harness" if self.ended_by_harness or self.ended is None else str(self.ended),
            duration_s=round(self._duration_s, 6),
            cpu_s=round(max(self._cpu_s, self._usage.get("cpu_s", 0.0)), 6),
            memory_bytes_max=max(self._memory_bytes_max, self._usage.get("memory_bytes_max", 0)),
            open_files_max=self._open_files_max,
            output_bytes=self._usage.get("output_bytes", 0),
        )

    def sample(self, *, now_s: float) -> None:
        """Sample its CPU, memory and open files, at most ten times a second."""
        if self.ended is not None or now_s - self._sampled_s < _SAMPLE_EVERY_S:
            return
        self._sampled_s = now_s
        import psutil  # 15 ms, for runs with agents alone

        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            with process.oneshot():
                times = process.cpu_times()
                self._cpu_s = max(self._cpu_s, times.user + times.system)
                self._memory_bytes_max = max(self._memory_bytes_max, process.memory_info().rss)
                self._open_files_max = max(self._open_files_max, process.num_fds())

    def __repr__(self) -> str:
        """Return name, pid and state."""
        return f"<Agent {self.name!r} pid {self.pid} {self.state}>"

    def _wait(self, condition: Callable[[], object], timeout_s: float, what: str, owed: str) -> None:
        """Wait for a condition that only a running agent can bring about."""
        check_bound(timeout_s)

        def met_or_ended() -> bool:
            return bool(condition()) or self.ended is not None

        self._client.wait_until(met_or_ended, timeout_s=timeout_s, what=what, seen=self.describe, owed=owed)
        self._client.pump()
        if not condition():
            if not self._client.alive:
                raise _lost(what)
            by = "a fault of this run ended it before" if self.ended_by_fault else "it ended before"
            msg = f"waited for {what}, and {by}: {self.describe()}"
            raise AgentError(msg, owed=owed, by_fault=self.ended_by_fault)

    def _nobody_fires(self, kind: str, _: Mapping[str, Json]) -> None:
        msg = f"agent {self.name!r} belongs to no run, so {kind} would leave no receipt. Start agents with chaos.spawn"
        raise UsageError(msg)

    def handle(self, message: wire.Message, descriptors: Sequence[int]) -> None:
        """Handle a message of the guardian about this agent."""
        if message["event"] == "spawned":
            self.started_s = time.monotonic()
            self.pid = message["pid"]
            self.start_ticks = message["start_ticks"]
            self.note = message["note"]
            (self._pidfd,) = descriptors
        elif message["event"] == "exited":
            self._usage = message
            self._end(ExitStatus.from_wait(message["status"]))
        else:
            self.failure = message["error"]

    def lose(self) -> None:
        """Kill the agent, because its guardian is gone."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._end(ExitStatus(None, int(signal.SIGKILL)))
        elif not self.failure:
            self.failure = "the guardian of the agents ended"

    def close(self) -> None:
        """Close the pidfd; the object keeps the results of the ended process."""
        if self._pidfd >= 0:
            self._duration_s = time.monotonic() - self.started_s
            os.close(self._pidfd)
            self._pidfd = -1

    def _end(self, status: ExitStatus) -> None:
        self.ended = status
        self.close()


def check_bound(timeout_s: float) -> None:
    """Raise UsageError unless ``timeout_s`` is a positive, finite number of seconds."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= TIME_S_MAX:
        rule = f"a positive, finite number of seconds, {TIME_S_MAX:,.0f} at most"
        msg = f"timeout_s must be {rule}; got {shown(timeout_s)}. Every wait has a bound"
        raise UsageError(msg)


def _lost(what: str) -> GuardianLost:
    return GuardianLost(f"the guardian of the agents was killed, and the agents with it, while {what} was awaited")


def _placed(target: str | None) -> str | None:
    """Return a target with the place of its file: an agent works in another folder."""
    file, separator, function = (target or "").rpartition(":")
    return f"{Path(file).absolute()}{separator}{function}" if file.endswith(".py") and Path(file).is_file() else target


def _import_path() -> list[str]:
    return [str(Path(entry).resolve()) for entry in sys.path if isinstance(entry, str)]
