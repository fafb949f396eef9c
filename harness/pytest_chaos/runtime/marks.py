"""Marks: lines that an agent writes before (intent) and after (ack) an operation, and notes.

A mark is one ``write`` of one JSON line to a file opened for appending. No kill can take it back
once the call has returned. Its order is its place in the file, across all agents of a run. An agent
in any language can write marks:

    {"kind": "ack", "operation": "put", "key": 7, "agent": "writer", "pid": 4711}

to the file that ``CHAOS_MARKS`` names; ``CHAOS_AGENT`` is the agent's name. Our own lines start
with a newline as well, so that a line cut short by a kill or a full disk never swallows the next
one. (A pipe was measured to tear or merge 5 % of 6 kB lines from four writers; ``O_APPEND`` none.)
"""

from __future__ import annotations

import enum
import json
import os
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MARKS_VARIABLE: Final = "CHAOS_MARKS"
AGENT_VARIABLE: Final = "CHAOS_AGENT"

MARK_BYTES_MAX: Final = 64 * 1024
"""Limit of one mark: marks say what happened, they do not carry the data."""


class Note(enum.StrEnum):
    """The operations of notes that the harness itself writes inside an agent."""

    FAULT = "chaos.fault"
    """A planned fault fires in this agent now. The key is its place in the plan."""
    POINT = "chaos.point"
    """A crash point was passed. Written only for the prefix ``trace_points``."""
    POINTS_SEEN = "chaos.points-seen"
    """At a normal end: how often each point was passed, of those with a planned point's prefix."""
    RELEASED = "chaos.released"
    """A held call goes on. The key is the place of its hold in the plan."""
    WATCHING = "chaos.watching"
    """The watcher of steps is ready; the value has its filter, or why it cannot be used here."""
    UNWATCHED = "chaos.unwatched"
    """The durable steps of this agent cannot be watched; the value says why."""
    CLOCK_NOT_MOVED = "chaos.clock-not-moved"
    """The clock of a program that the agent has started cannot be moved; the value says why."""
    UPTIME_REFUSED = "chaos.uptime-refused"
    """The monotonic clocks of this agent cannot start elsewhere; the value says why."""
    NETWORK_FELT = "chaos.network-felt"
    """A network call of this agent was answered. The key is the fault's, the value says how."""
    NETWORK_UNFELT = "chaos.network-unfelt"
    """A fault of the network was healed before a call met it. The key is that of the fault."""
    SOMETIMES = "chaos.sometimes"
    """A claim that must hold in some run of a campaign: its name is the key."""
    REACHABLE = "chaos.reachable"
    """A place that some run of a campaign must reach: its name is the key."""
    RAISED = "chaos.raised"
    """The target ended with this exception."""


class Marks:
    """The writer of one agent's marks.

    ``listener``, if set, is called with kind and operation after each mark is in the file; the
    agent's fault triggers use it.

    >>> marks = Marks(os.devnull, agent="writer")
    >>> marks.intent("put", 1)
    >>> # ... store.put(1) ...
    >>> marks.ack("put", 1)
    >>> marks.note("cache", value={"hits": 12})
    """

    def __init__(self, path: str | os.PathLike[str], agent: str = "") -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._agent = agent
        self._pid = os.getpid()
        self.listener: Callable[[str, str], None] | None = None

    @classmethod
    def from_environment(cls) -> Marks:
        """Return the marks of this process's agent; outside of a run they go to ``/dev/null``.

        So a program under test can keep its mark calls in production.
        """
        return cls(os.environ.get(MARKS_VARIABLE, os.devnull), os.environ.get(AGENT_VARIABLE, ""))

    def intent(self, operation: str, key: str | int | None = None, value: Any = None) -> None:
        """Write that ``operation`` is about to be done. Call it before the operation."""
        self._write("intent", operation, key, value)

    def ack(self, operation: str, key: str | int | None = None, value: Any = None) -> None:
        """Write that ``operation`` is done: call it after, when it must not be lost any more."""
        self._write("ack", operation, key, value)

    def note(self, operation: str, key: str | int | None = None, value: Any = None) -> None:
        """Write a fact for a checker or a reader of the evidence."""
        self._write("note", operation, key, value)

    def sometimes(self, name: str, *, holds: bool = True) -> None:
        """Write that this came up: some run of a campaign must have it. See ``chaos.sometimes``."""
        self._write("note", Note.SOMETIMES, name, holds)

    def reachable(self, name: str) -> None:
        """Write that this place was reached, as some run of a campaign must.

        See ``chaos.reachable``.
        """
        self._write("note", Note.REACHABLE, name, True)  # noqa: FBT003 - the value of the mark

    def close(self) -> None:
        """Close the file. A mark after this is an error."""
        os.close(self._descriptor)

    def _write(self, kind: str, operation: str, key: str | int | None, value: Any) -> None:
        if (pid := os.getpid()) != self._pid:  # a child that the agent forked has a pid of its own
            self._pid = pid
        mark = {"kind": kind, "operation": operation, "key": key, "value": value, "agent": self._agent, "pid": pid}
        _write_line(self._descriptor, mark)
        if self.listener is not None:
            self.listener(kind, operation)


def write_mark(path: str | os.PathLike[str], mark: dict[str, Any]) -> None:
    """Append one mark with these fields to the file: what ``chaos mark`` does for a shell."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        _write_line(descriptor, mark)
    finally:
        os.close(descriptor)


def _write_line(descriptor: int, mark: dict[str, Any]) -> None:
    try:
        text = json.dumps(mark, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"the {mark['kind']} mark of {mark['operation']!r} must be JSON; got: {error}. Give plain values"
        raise ValueError(msg) from error
    line = b"\n" + text.encode(errors="replace") + b"\n"
    if len(line) > MARK_BYTES_MAX:
        msg = f"a mark must have at most {MARK_BYTES_MAX} bytes; got {len(line)}. Put a key or a hash into it"
        raise ValueError(msg)
    if os.write(descriptor, line) != len(line):
        msg = "a mark must be written whole; it was cut short, so the disk of the run's folder is full"
        raise OSError(msg)
