"""The watcher of steps: a process of a run in whose plan agents come to durable steps.

Such an agent has the filter of ``kernel`` on before its first instruction, and gives the listener
to the watcher. From then on each call that could change a file, of the agent and of all that it
starts, waits until it was looked at here. All are let pass, but for the one of which the plan says:

    a kill, or another signal    the signal is sent, and the call is not done
    a hold                       the call waits until it is released; other threads go on
    any other fault              the process is stopped in front of the call, until the injector has
                                 fired the fault, seen it happen, and lets the process go on

The watcher writes the agent's note that it came to the time of a fault, as a Python agent does by
itself at a point. Nothing is refused, and nothing is recorded: several agents change one folder,
some of them unwatched, so what is where is looked up when it matters.

When the watcher is killed, calls of its agents fail with ENOSYS, and the run is INCONCLUSIVE.
"""

from __future__ import annotations

import base64
import contextlib
import os
import select
import signal
import socket
import stat
import struct
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from pytest_chaos.errors import StepsUnavailable
from pytest_chaos.model.paths import path_matches
from pytest_chaos.runtime import processes, wire
from pytest_chaos.runtime.child import STEPS
from pytest_chaos.runtime.marks import MARKS_VARIABLE, Note, write_mark
from pytest_chaos.runtime.watch import LINES
from pytest_chaos.trace import memory
from pytest_chaos.trace.calls.base import NOTHING
from pytest_chaos.trace.calls.decoder import Decoder
from pytest_chaos.trace.calls.symbols import CalledFrom
from pytest_chaos.trace.calls.table import filter_code
from pytest_chaos.trace.calls.touches import EventLog
from pytest_chaos.trace.folder import WatchedFolder, lstat
from pytest_chaos.trace.kernel import Filter, Listener, unavailable
from pytest_chaos.trace.memory import Failing, Unreadable
from pytest_chaos.trace.step import Action, readable
from pytest_chaos.trace.survey import SharedLines, Survey

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_chaos.clocks.answers import ClockAnswers
    from pytest_chaos.network.answers import Network
    from pytest_chaos.runtime.child import Trigger
    from pytest_chaos.runtime.marks import Marks
    from pytest_chaos.trace.kernel import Notification
    from pytest_chaos.trace.step import Step

_CREDENTIALS: Final = struct.Struct("3i")
_BACKLOG: Final = 64
_SCANS_MAX: Final = 5
_STEPS_KEPT_MAX: Final = 200
_BY_DESCRIPTOR: Final = frozenset(
    {Action.WRITE, Action.TRUNCATE, Action.ALLOCATE, Action.ZERO, Action.CHANGE_MODE}
    | {Action.SYNC, Action.SYNC_DATA, Action.SYNC_RANGE}
)
"""Steps whose call names no path: that of an open file may be another one by now."""


class _SharedDecoder(Decoder):
    """Decodes calls in a folder that others change, too: what is not known is looked for there."""

    def _node(self, thread: int, status: os.stat_result) -> int:
        node = super()._node(thread, status)
        is_candidate = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
        if node or status.st_dev != self.folder.device or not is_candidate or not status.st_nlink:
            return node
        self.look_again()
        return self.folder.node(status)

    def look_again(self) -> None:
        """Take over what is in the folder now, and where."""
        for _ in range(_SCANS_MAX):  # a file may go while the folder is read
            with contextlib.suppress(OSError):
                for entry in self.folder.scan(None):
                    if self.folder.path(entry.node) != entry.path:
                        self.folder.move(entry.node, entry.path)
                return

    def path_of(self, step: Step) -> str:
        """Return the path of a step's object now: another agent may have moved it."""
        if step.action not in _BY_DESCRIPTOR:
            return step.path
        there = lstat(os.path.join(self.folder.root, step.path))
        if there is None or self.folder.node_of((there.st_dev, there.st_ino)) != step.node:
            self.look_again()
            return self.folder.path(step.node) or step.path
        return step.path


class _Held(NamedTuple):
    """A call that is held, since when (monotonic, seconds), and the mark that it leaves."""

    call: Notification
    since_s: float
    mark: dict[str, Any]


class _Watched:
    """One agent, with all that it starts."""

    def __init__(
        self,
        here: wire.Message,
        listener: int,
        folder: WatchedFolder,
        marks: str,
        noted: Noted | None,
        network: Network | None,
    ) -> None:
        self._noted = noted
        self._last = NOTHING
        self.name: str = here["agent"]
        self.listener = Listener(listener)
        self._marks = marks
        self._triggers: list[Trigger] = list(here["triggers"])
        self._decoder = _SharedDecoder(
            folder,
            noted.log.keeping(None) if noted is not None else None,
            leader=here["pid"],
            umask=memory.umask_of(here["pid"]),
            sees_closes=noted is not None,
            marks=os.stat(marks),
            output=os.stat(os.devnull),
        )
        self._decoder.prefix = f"{self.name}#{here['pid']}:"
        self._decoder.look_again()
        steps = Path(marks).with_name(STEPS)
        self._clock: ClockAnswers | None = None
        if here["clock"]:
            from pytest_chaos.clocks.answers import ClockAnswers  # only where a clock is moved

            self._clock = ClockAnswers(here["clock"], self.listener, self._not_moved)
        self._network = None
        if network is not None:
            from pytest_chaos.network.answers import NetworkAnswers  # only where a network is cut

            self._network = NetworkAnswers(self.name, here["pid"], self.listener, network)
        self._steps = os.open(steps, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._kept: set[tuple[str, str]] = set()
        self._survey = Survey(here["survey"], self.name) if here["survey"] else None
        self._functions = CalledFrom()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._stopped: dict[int, tuple[int, list[int]]] = {}
        """Calls in front of which a thread was stopped, and which it is going to make again."""
        self._number = 0
        self._decoded = 0
        """The steps of the call at hand."""
        self.held: dict[int, _Held] = {}
        """Calls that are held, by the place of their fault in the plan."""

    def take(self, call: Notification) -> None:
        """Let a call pass, or do what the plan says."""
        if self._clock is not None and self._clock.answer(call):
            return
        if self._network is not None and self._network.answer(call):
            return
        again = self._stopped.pop(call.thread, None) == (call.number, call.arguments)
        if (again and self._noted is None) or not (self._triggers or self._survey or self._noted):
            self._let_pass(call)
            return
        found = None
        try:
            found = self._due(call, again=again)
        except (Failing, Unreadable, OSError) as error:  # its caller was killed meanwhile
            print(f"{self.name}: call {call.number} was not understood: {error}")  # noqa: T201 - the helper's log
        if found is None:
            self._note(call)
            self._let_pass(call)
        else:
            self._fire(call, *found)

    def _let_pass(self, call: Notification) -> None:
        if self._clock is None:
            self.listener.let_pass(call)
        else:
            self._clock.let_pass(call)

    def _not_moved(self, problem: str) -> None:
        """Note a program whose clock cannot be moved."""
        write_mark(
            self._marks, {"kind": "note", "operation": str(Note.CLOCK_NOT_MOVED), "value": problem, "agent": self.name}
        )

    def _note(self, call: Notification) -> None:
        """Note a call that was decoded, if SQLite is watched."""
        if self._noted is not None:
            self._noted.log.note(self._decoder, call, self._last, self._noted.lines.of(call.thread))

    def ended(self) -> None:
        """Note that the agent, and all that it has started, is gone."""
        if self._clock is not None:
            self._clock.close()
        if self._noted is not None:
            self._noted.log.ended(self._decoder.prefix)

    def _due(self, call: Notification, *, again: bool = False) -> tuple[Trigger, Step, str] | None:
        """Return the planned fault that is due at this call, with the step and its path."""
        due = None
        self._last = NOTHING  # if it cannot be decoded
        self._last = decoded = self._decoder.decode(call, self._number + 1)
        if decoded.mark is not None and self._survey is not None and not again:
            line = self._survey.lines.of(call.thread)
            self._survey.add_mark(os.stat(self._marks).st_size, decoded.mark.length, line)
        self._decoded = len(decoded.steps)
        for step in decoded.steps:
            self._number = step.number
            if again:  # it was looked at when its thread was stopped
                continue
            self._keep(step, call.thread)
            wanted = [trigger for trigger in self._triggers if trigger["step"] == step.action]
            if not wanted:
                continue
            path = self._decoder.path_of(step)
            counted = {trigger["path"] for trigger in wanted if self._matches(trigger["path"], path, step.target)}
            self._counts.update((step.action, pattern) for pattern in counted)
            for trigger in wanted:
                is_now = self._counts[step.action, trigger["path"]] == trigger["count"]
                if due is None and trigger["path"] in counted and is_now:
                    due = trigger, step, path
        return due

    def _keep(self, step: Step, thread: int) -> None:
        """Write the first of all equal steps to a file beside the marks, for receipts."""
        where = step.target or step.path
        if self._survey is not None:
            line = self._survey.lines.of(thread) or self._functions.of(thread)  # of a compiled program
            self._survey.add("step", step.action, readable(where), line)
        if len(self._kept) < _STEPS_KEPT_MAX and (kept := (step.action, where)) not in self._kept:
            self._kept.add(kept)
            os.write(self._steps, os.fsencode(f"{self.name}\t{step.action} {readable(where) or '.'}\n"))

    def _matches(self, pattern: str, *paths: str) -> bool:
        root = self._decoder.folder.root
        return not pattern or any(path_matches(pattern, f"{root}/{path}", root) for path in paths if path)

    def _fire(self, call: Notification, trigger: Trigger, step: Step, path: str) -> None:
        self._triggers.remove(trigger)
        self._decoder.take_back()  # it is not done now, and decoded again when it is
        if self._survey is not None:
            self._survey.take_back(self._decoded)
        process = memory.process_of(call.thread)
        where = f"{path} -> {step.target}" if step.target else path
        at = f"{step.call}: {step.action} {readable(where) or '.'}"
        value: dict[str, Any] = {"kind": trigger["kind"], "at": at, "thread": call.thread}
        if trigger["signal"] == signal.SIGKILL:
            value["children"] = [each.pid for each in processes.descendants(process) if each.alive]
        mark = {"kind": "note", "operation": str(Note.FAULT), "key": trigger["fault"], "value": value}
        mark |= {"agent": self.name, "pid": process}
        write_mark(self._marks, mark)
        if trigger["signal"] == 0:
            self.held[trigger["fault"]] = _Held(call, time.monotonic(), mark)
        elif trigger["signal"] == signal.SIGSTOP:
            self._stopped[call.thread] = (call.number, call.arguments)
            self.listener.stop(call, process)
        elif _has_handler(process, trigger["signal"]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, trigger["signal"])
            self.listener.let_pass(call)  # or the call would fail with EINTR, as no file's does
        else:
            self.listener.end(call, process, trigger["signal"])

    def release(self, fault: int) -> None:
        """Let a held call pass, and say so."""
        held = self.held.pop(fault, None)
        if held is None:
            return
        with contextlib.suppress(Failing, Unreadable, OSError):
            self._last = self._decoder.decode(held.call, self._number + 1)
            self._note(held.call)
        value = {"held_s": round(time.monotonic() - held.since_s, 6), "at": held.mark["value"]["at"]}
        value["passed"] = self.listener.let_pass(held.call)
        write_mark(self._marks, {**held.mark, "operation": str(Note.RELEASED), "value": value})


def _has_handler(process: int, number: int) -> bool:
    """Whether a process handles, ignores or blocks a signal, so that it does not end it here."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/status") as file:
        for line in file:
            name, _, mask = line.partition(":")
            if name in {"SigBlk", "SigIgn", "SigCgt"} and int(mask, 16) >> (number - 1) & 1:
                return True
    return False


class _Watcher:
    """The loop over the agents' listeners, and over what the controller and the agents say."""

    def __init__(self, server: socket.socket, directory: Path, marks: str, noted: Noted | None) -> None:
        self._noted = noted
        self._folder = WatchedFolder(directory) if noted is not None else None
        """One for all agents: what they note has to be told apart."""
        self._of: dict[int, _Watched] = {}
        self._server = server
        self._directory = directory
        self._marks = marks
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._watched: list[_Watched] = []
        self._network: Network | None = None
        self._register(server.fileno(), self._accept)

    def work(self) -> None:
        """Work until the run's end, which ends this process."""
        while True:
            for descriptor, event in self._poll.poll():
                handler = self._handlers.get(descriptor)
                if handler is None:
                    continue
                if event & select.POLLIN:
                    handler()
                else:  # no process with the filter is left, or the other side has gone
                    self._forget(descriptor)

    def _register(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def _forget(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._handlers[descriptor]
        os.close(descriptor)
        if (gone := self._of.pop(descriptor, None)) is not None:
            gone.ended()

    def _accept(self) -> None:
        end, _ = self._server.accept()
        credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != os.getuid():
            end.close()
            return
        with end:
            received = wire.receive(end)
            if received is None:
                return
            message, descriptors = received
            if "release" in message:
                for watched in self._watched:
                    watched.release(message["release"])
            elif "order" in message:
                none = {"problem": "", "waits_for": "network calls of an agent must be watched"}
                wire.send(end, self._network.told(message["order"]) if self._network is not None else none)
            elif "error" in message:
                self._refused(message)
            else:
                self._watch(message, descriptors[0])
                end.send(b"+")

    def _watch(self, message: wire.Message, listener: int) -> None:
        os.set_inheritable(listener, False)  # noqa: FBT003 - its name says it
        folder = self._folder or WatchedFolder(self._directory)
        network = None
        if message["network"]:
            from pytest_chaos.network.answers import Network  # only where a network is cut

            self._network = network = self._network or Network(self._marks)
        watched = _Watched(message, listener, folder, self._marks, self._noted, network)
        self._watched.append(watched)
        self._of[listener] = watched

        def take() -> None:
            if (call := watched.listener.receive()) is not None:
                watched.take(call)

        self._register(listener, take)

    def _refused(self, message: wire.Message) -> None:
        mark = {"kind": "note", "operation": str(Note.UNWATCHED), "value": str(unavailable(message["error"]))}
        write_mark(self._marks, mark | {"agent": message["agent"], "pid": message["pid"]})


class Noted(NamedTuple):
    """What is noted of all agents: their events, each with the line of its thread."""

    log: EventLog
    lines: SharedLines

    @staticmethod
    def at(path: str) -> Noted:
        """Append events to the file at a path; the lines are in one beside it."""
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        encode = msgspec.json.Encoder().encode
        return Noted(
            EventLog(lambda event: _ignored(os.write(file, encode(event) + b"\n"))), SharedLines(Path(path + LINES))
        )


def _ignored(_: int) -> None:
    """Return nothing: an append of a line is done whole, or the disk is full."""


def serve(marks: Marks, name: str, directory: str, events: str = "") -> None:
    """Watch the agents that say so at the abstract socket of this name, until the run ends.

    With ``events``, all that they do to files of the directory is appended to the file of this
    name.
    """
    try:
        if number := Filter(filter_code(closes=False)).refusal():  # one that traps no exit: the child that tries exits
            raise unavailable(number)
        code = filter_code(closes=bool(events), touches=bool(events))
    except StepsUnavailable as error:
        marks.note(Note.WATCHING, value={"problem": str(error)})
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(name)
        server.listen(_BACKLOG)
        noted = Noted.at(events) if events else None
        watcher = _Watcher(server, Path(directory), os.environ[MARKS_VARIABLE], noted)
        marks.note(Note.WATCHING, value={"filter": base64.b64encode(code).decode()})
        watcher.work()
