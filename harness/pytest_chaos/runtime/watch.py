"""The controller's side of the watcher of steps (``trace/watcher.py``): start it, release a call.

There is one in a run whose plan has durable steps. It is a process of the run like any other, and
is ended with it.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_chaos.errors import AgentError, SpawnError, WaitExpired
from pytest_chaos.model.values import Finding
from pytest_chaos.runtime import wire
from pytest_chaos.runtime.marks import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_chaos.model.values import Json
    from pytest_chaos.runtime.agent import Agent
    from pytest_chaos.runtime.child import WatchOrder

_NAME: Final = "step-watcher"
EVENTS: Final = "events.jsonl"
"""The file beside the marks with all that watched agents did to files."""
LINES: Final = ".lines"
_ANSWER_TIMEOUT_S: Final = 10.0
_TARGET: Final = "pytest_chaos.trace.watcher:serve"


class StepWatch:
    """The watcher of one run, started when an agent of the plan needs it."""

    def __init__(self, start: Callable[[str, str, Mapping[str, Json]], Agent], directory: Path) -> None:
        self._start = start
        self._directory = directory
        self._name = f"\0chaos-steps-{secrets.token_hex(8)}"  # no path: those of sockets are short
        self._process: Agent | None = None
        self._filter = ""
        self.events: Path | None = None
        """Where everything is noted that agents do to files, if SQLite is watched."""
        self.needs_database = True
        """Whether a run in which no database was locked is undecided."""
        self.problem = ""
        """Why no steps can be watched, if that is so."""

    def watch(self, trail: Path, *, steps: bool = True, clock: str = "", network: bool = False) -> WatchOrder | None:
        """Return how an agent is watched; None where that is not possible, see ``problem``.

        Its steps go to the file ``trail``. ``clock`` is the cell of a clock that is moved.
        """
        if self._process is None:
            kwargs = {"name": self._name, "directory": str(self._directory), "events": str(self.events or "")}
            try:
                self._process = self._start(_NAME, _TARGET, kwargs)
                (ready, *_) = self._process.wait_for(Note.WATCHING, kind="note")
            except (AgentError, SpawnError, WaitExpired) as error:
                self.problem = f"the watcher of steps could not be started: {error}"
                return None
            self._filter, self.problem = ready.value.get("filter", ""), ready.value.get("problem", "")
        if not self._filter:
            return None
        code = self._filter_of(steps=steps, clock=bool(clock), network=network) if clock or network else b""
        filter_ = base64.b64encode(code).decode() if code else self._filter
        return {"socket": self._name, "filter": filter_, "trail": str(trail), "lines": self.lines}

    def _filter_of(self, *, steps: bool, clock: bool, network: bool) -> bytes:
        """Return the filter for an agent whose clock is moved, or whose network may be cut."""
        is_noted = self.events is not None
        if not clock:
            from pytest_chaos.network.answers import network_filter  # only where a network is cut

            return network_filter(steps=steps or is_noted, closes=is_noted, touches=is_noted)
        from pytest_chaos.clocks.answers import clock_filter  # only where a clock is moved

        others = []
        if network:
            from pytest_chaos.network.answers import TRAPS

            others = list(TRAPS.values())
        return clock_filter(steps=steps or is_noted, closes=is_noted, touches=is_noted, others=others)

    def ask_network(self, order: wire.Message) -> wire.Message:
        """Tell the watcher what is cut, or healed; return its answer. Raises OSError."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as watcher:
            watcher.settimeout(_ANSWER_TIMEOUT_S)
            watcher.connect(self._name)
            wire.send(watcher, {"order": order})
            received = wire.receive(watcher)
        return {"problem": "the watcher hung up without an answer"} if received is None else received[0]

    @property
    def lines(self) -> str:
        """The file in which agents note their lines, or nothing."""
        return f"{self.events}{LINES}" if self.events is not None else ""

    def environment(self, before: Mapping[str, str]) -> dict[str, str]:
        """Return what an agent's environment needs, so that Python programs note their lines."""
        if self.events is None:
            return {}
        from pytest_chaos.trace.survey import noting_environment  # only where SQLite is watched

        return noting_environment(Path(self.lines), before)

    def findings(self) -> tuple[Finding, ...]:
        """Return what the agents did to SQLite, once all of them are gone."""
        if self.events is None:
            return ()
        from pytest_chaos.sqlite.detect import NO_DATABASE, judged  # as above: most runs watch nothing
        from pytest_chaos.trace.calls.touches import EVENTS_MAX, read_events

        if self._process is None and not self.needs_database:
            return ()
        if self.problem or self._process is None:
            return (_not_watched(f"SQLite was not watched: {self.problem or 'no agent was started'}"),)
        events = read_events(self.events)
        found = judged(events, name_of=_name_of)
        if len(events) >= EVENTS_MAX:
            text = "the agents made more calls than are kept, so that what they did last to SQLite was not judged"
            return (*found.findings, _not_watched(text))
        return found.findings if found.databases or not self.needs_database else (_not_watched(NO_DATABASE),)

    def release(self, fault: int) -> None:
        """Let the call pass that is held for the fault at this place of the plan."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as watcher:
            watcher.connect(self._name)
            wire.send(watcher, {"release": fault})

    @property
    def is_used(self) -> bool:
        """Whether steps of this run were watched, or were to be."""
        return self._process is not None or bool(self.problem)

    @property
    def failure(self) -> str:
        """Why what its agents did may be its own fault, if it ended before the run's end."""
        process = self._process
        if process is None or not self._filter or process.ended is None or process.ended_by_harness:
            return ""
        return f"the watcher of steps ended ({process.ended}) before the run, and calls of its agents failed"


def _not_watched(text: str) -> Finding:
    return Finding(signature="harness:not-watched", text=text, kind="harness")


def _name_of(process: str) -> str:
    """Return the name of a process of a watched agent.

    >>> _name_of("worker#1:1"), _name_of("worker#1:2")
    ('worker', 'process 2 of worker')
    """
    agent, _, number = process.partition(":")
    name = agent.partition("#")[0]
    return name if number == "1" else f"process {number} of {name}"
