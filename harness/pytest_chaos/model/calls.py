"""Calls: the operations of a history as models and checkers see them, whatever tool wrote them.

A call has a function, a key, an input and an output, the process that made it, and the places in
the history where it began and ended. Its outcome is Jepsen's: ``ok`` (it happened), ``fail`` (it
did not happen, and never will), ``unknown`` (it may happen at any later time, or never).

Marks say it so: the intent's operation is the function and its value the input; the ack's value is
the output. A note of the same operation, agent, process and key whose value is ``{"failed": why}``
ends the intent as failed; ``{"unknown": why}`` ends it as unknown, so that the next ack of this key
is not taken for its own.

>>> from pytest_chaos import History
>>> (call,) = calls_of(History.from_lines(b'{"kind": "intent", "operation": "read", "key": "x"}'))
>>> call.function, call.key, str(call.outcome)
('read', 'x', 'unknown')
"""

from __future__ import annotations

import enum
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.values import Json, MarkKind

if TYPE_CHECKING:
    from collections.abc import Collection

    from pytest_chaos.model.history import History
    from pytest_chaos.model.values import Mark

FAILED: Final = "failed"
"""The entry of a note's value that says why its operation did not happen."""

NOT_KNOWN: Final = "unknown"
"""The entry of a note's value that says why nobody knows whether its operation happened."""

Process: TypeAlias = str | int


class Outcome(enum.StrEnum):
    """What is known of a call: whether it took effect."""

    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Call(msgspec.Struct, frozen=True):
    """One operation with its input, output and outcome.

    ``start`` and ``end`` are places in the history; an unknown call has no ``end``. Times are
    seconds of any clock, for latencies alone: they never order anything.
    """

    function: str
    key: Json = None
    input: Json = None
    output: Json = None
    process: Process = ""
    start: int = 0
    end: int | None = None
    outcome: Outcome = Outcome.OK
    start_s: float | None = None
    end_s: float | None = None

    def gave(self, value: object) -> bool:
        """Whether the call may have returned this value: it did, or its output is unknown."""
        return self.outcome is Outcome.UNKNOWN or self.output == value

    def __str__(self) -> str:
        """Return ``read('x') -> 3 by process 2``."""
        given = [repr(value) for value in (self.key, self.input) if value is not None]
        ending = {Outcome.OK: f"-> {self.output!r}", Outcome.FAIL: "failed", Outcome.UNKNOWN: "-> unknown"}
        return f"{self.function}({', '.join(given)}) {ending[self.outcome]} by {self.process}"


def calls_of(history: History, functions: Collection[str] | None = None) -> list[Call]:
    """Return the calls of a history, in the order in which they began; ``None`` for all functions.

    Raises UsageError for an ack without an intent: its input is not known. Torn lines make calls
    whose intent is missing likely, so the text says how many there are.
    """
    reader = CallReader(functions, torn=len(history.torn))
    for place, mark in enumerate(history.marks):
        reader.add(mark, place, f"mark {place + 1}")
    return reader.calls


class CallReader:
    """Calls from marks that come one after the other."""

    def __init__(self, functions: Collection[str] | None = None, *, torn: int = 0) -> None:
        self.calls: list[Call] = []
        self._functions = functions
        self._torn = torn
        self._open: defaultdict[tuple[object, ...], deque[int]] = defaultdict(deque)

    def add(self, mark: Mark, place: int, where: str) -> None:
        """Add the next mark. Raises UsageError, which says ``where``, for one without an intent."""
        if self._functions is not None and mark.operation not in self._functions:
            return
        whose = (mark.operation, mark.agent, mark.pid, mark.key)
        if mark.kind is MarkKind.INTENT:
            self._open[whose].append(len(self.calls))
            self.calls.append(_begun(mark, place))
        elif mark.kind is MarkKind.ACK or _says(mark, FAILED) or _says(mark, NOT_KNOWN):
            if not (waiting := self._open[whose]):
                raise UsageError(_stray(mark, where, self._torn))
            nth = waiting.popleft()
            if not waiting:
                del self._open[whose]
            if not _says(mark, NOT_KNOWN):
                self.calls[nth] = _ended(self.calls[nth], mark, place)


def _begun(mark: Mark, place: int) -> Call:
    process = f"{mark.agent}:{mark.pid}"
    return Call(mark.operation, mark.key, mark.value, None, process, place, None, Outcome.UNKNOWN)


def _ended(call: Call, mark: Mark, place: int) -> Call:
    if mark.kind is MarkKind.ACK:
        return msgspec.structs.replace(call, output=mark.value, end=place, outcome=Outcome.OK)
    return msgspec.structs.replace(call, end=place, outcome=Outcome.FAIL)


def _says(mark: Mark, entry: str) -> bool:
    return mark.kind is MarkKind.NOTE and isinstance(mark.value, dict) and entry in mark.value


def _stray(mark: Mark, where: str, torn: int) -> str:
    lines = f" ({torn} lines of the mark file cannot be read and may have said it)" if torn else ""
    what = "ack" if mark.kind is MarkKind.ACK else "note"
    return (
        f"{where}: the {what} of {mark.operation} {mark.key!r} by {mark.agent!r} (pid {mark.pid}) must follow "
        f"an intent of the same operation, key, agent and pid; got none that is open{lines}. Write the intent first"
    )


def frozen(value: Json) -> Json:
    """Return a value that can be hashed and compared: lists as tuples, objects as sorted pairs."""
    if isinstance(value, list | tuple):
        return tuple(frozen(each) for each in value)
    if isinstance(value, dict):
        return tuple(sorted(((str(name), frozen(each)) for name, each in value.items()), key=repr))
    if isinstance(value, set | frozenset):
        return frozenset(frozen(each) for each in value)
    return value
