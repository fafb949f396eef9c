"""Histories of other tools, as calls: Jepsen's EDN and console logs, elle-cli's JSON, our marks.

An event is a map with ``type`` (invoke, ok, fail, info), ``f``, ``value`` and ``process``; ``key``
and ``time`` (nanoseconds) may be there. ``info`` ends a call as unknown. Events of ``nemesis`` are
faults, and become receipts. Forms stand one a line, within one list, or over several lines.

The order of the events is the only clock. ``time`` is for latencies: a call that ends before it
began by its time is a mistake, like an end without a begin, a second end, or an unknown type. Each
is told with line and field, and nothing is judged. Events are read one by one, so a file may be
larger than memory as long as its calls are not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_chaos.errors import UsageError
from pytest_chaos.model.calls import Call, CallReader, Outcome
from pytest_chaos.model.edn import edn_of, parse_edn
from pytest_chaos.model.values import Json, Mark, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

NEMESIS: Final = "nemesis"
_ENDS: Final = {"ok": Outcome.OK, "fail": Outcome.FAIL, "info": Outcome.UNKNOWN}
_TYPES: Final = ("invoke", *_ENDS)
_BRACKET: Final = re.compile(r'"(?:[^"\\]|\\.)*"|;.*|[{}\[\]()]')
_LOG: Final = re.compile(r"\bjepsen\.util - (\S+)\s+:(\w+)\s+:([\w-]+)\s+(.*)$")
_BLANK: Final = b" \t\r\n,"
_NANOSECONDS: Final = 1e9
_SHOWN: Final = 60
_LOOK_EVERY: Final = 4096
_KEYWORDS: Final = frozenset({*_TYPES, "txn", "append", "r", "w", "read", "write", "cas", "add", "enqueue", "dequeue"})


def read_calls(
    lines: Iterable[bytes],
    *,
    functions: Collection[str] = (),
    is_full: Callable[[], str] = str,
    is_keyed: bool = False,
    receipts: list[Receipt] | None = None,
) -> list[Call]:
    """Return the calls of a history, in the order in which they began.

    ``functions`` are those that may be there; without any, all may. ``is_full`` is asked from time
    to time, and says why no more can be read. ``is_keyed`` takes values as ``[key, value]``.
    ``receipts`` gets the faults. Raises UsageError, with line and field, for what is no history.

    >>> begin = b"{:type :invoke, :f :read, :process 0}"
    >>> print(read_calls([begin, b"{:type :ok, :f :read, :value 3, :process 0}"])[0])
    read() -> 3 by 0
    """
    pairing = _CallPairing(functions, is_keyed=is_keyed)
    marks = CallReader(functions or None)
    for count, (line, event) in enumerate(_events(lines)):
        if not count % _LOOK_EVERY and (why := is_full()):
            msg = f"the history must fit the memory that it may take; got {why} at line {line}. Split it by key"
            raise UsageError(msg)
        if "kind" in event and "type" not in event:
            marks.add(_mark(line, event), count, f"line {line}")
        else:
            pairing.add(line, event)
    found = pairing.calls() or marks.calls
    if marks.calls and found is not marks.calls:
        msg = "the history must hold marks, or events of another tool; got both. Give one of them"
        raise UsageError(msg)
    if receipts is not None:
        receipts += pairing.receipts
    if not found:
        msg = "the history must hold at least one operation; got none. Give a file with events, one map a line"
        raise UsageError(msg)
    return found


def _mark(line: int, event: dict[str, Any]) -> Mark:
    try:
        return msgspec.convert(event, Mark)
    except msgspec.ValidationError as error:
        msg = f"line {line} must be a mark with kind, operation, key, value, agent and pid; got {error}. Correct it"
        raise UsageError(msg) from error


def _events(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each event with the number of its line. Raises UsageError for any other form."""
    for number, text in _forms(lines):
        if isinstance(text, dict):
            yield number, text
            continue
        if match := _LOG.search(text):
            process, kind, function, value = match.groups()
            yield number, {
                "type": kind, "f": function, "value": _decoded(number, value),
                "process": int(process) if process.isdigit() else process.lstrip(":"),
            }  # fmt: skip
            continue
        event = _decoded(number, text)
        if not isinstance(event, dict):
            msg = (
                f"line {number}: an event must be a map with type, f, value and process; got {text[:_SHOWN]!r}. "
                "Give Jepsen's EDN, or JSON"
            )
            raise UsageError(msg)
        yield number, event


def _decoded(number: int, text: str) -> Json:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return parse_edn(text)
    except ValueError as error:
        msg = f"line {number} must be EDN or JSON; got {text[:_SHOWN]!r} ({error}). Correct the line"
        raise UsageError(msg) from error


def _forms(lines: Iterable[bytes]) -> Iterator[tuple[int, str | dict[str, Any]]]:  # noqa: C901 - one scanner, flat for speed
    """Yield the texts of maps and log lines, or maps; a list around all of them is opened."""
    base = depth = began = number = 0
    parts: list[str] = []
    for number, raw in enumerate(lines, start=1):
        if depth == base and not parts and (whole := _whole(raw.strip(_BLANK), base)):
            event, base = whole
            depth = base
            yield number, event
            continue
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            msg = f"line {number} must be UTF-8; got {raw[:_SHOWN]!r} ({error.reason}). Convert the file"
            raise UsageError(msg) from error
        if not parts and _LOG.search(line):
            yield number, line
            continue
        start = 0
        for match in _BRACKET.finditer(line):
            bracket = match.group()
            if bracket in "{[(":
                if bracket != "{" and depth == base == 0 and not parts:
                    base = depth = 1
                    start = match.end()
                    continue
                if depth == base:
                    _refuse(number, line[start : match.start()])
                    start, began = match.start(), number
                depth += 1
            elif bracket in "}])":
                depth -= 1
                if depth < base:
                    _refuse(number, line[start : match.start()])
                    start, base = match.end(), depth
                elif depth == base:
                    parts.append(line[start : match.end()])
                    start = match.end()
                    yield began, "".join(parts)
                    parts = []
        rest = line[start:]
        if depth > base:
            parts.append(rest)
        else:
            _refuse(number, rest)
    if depth or parts:
        msg = (
            f"line {number}: the history must end with a whole operation; got its end within the one that line {began} "
            "begins. The file was cut short"
        )
        raise UsageError(msg)


def _whole(line: bytes, base: int) -> tuple[dict[str, Any], int] | None:
    """Return the one event in JSON that a line holds, and the depth after it; None for others."""
    if base == 0 and line.startswith(b"["):
        line, base = line[1:], 1
    if base == 1 and line.endswith(b"}]"):
        line, base = line[:-1], 0
    if not line.startswith(b"{"):
        return None
    try:
        return msgspec.json.decode(line, type=dict[str, Any]), base
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _refuse(number: int, between: str) -> None:
    """Raise UsageError for text between forms that is neither blank, a comma nor a comment."""
    if text := re.sub(r";.*|#[A-Za-z][\w./-]*\s*$", "", between).strip(" \t\r\n,"):
        msg = f"line {number} must hold events (maps); got {text[:_SHOWN]!r}. Give Jepsen's EDN, or JSON"
        raise UsageError(msg)


class _CallPairing:
    """Calls from events: each end belongs to the open begin of its process."""

    def __init__(self, functions: Collection[str], *, is_keyed: bool) -> None:
        self.functions = frozenset(functions)
        self.is_keyed = is_keyed
        self.found: list[Call | None] = []
        self.open: dict[Any, tuple[int, int, Call]] = {}
        """For each process: the place of its call, the line of its begin, and the call so far."""
        self.receipts: list[Receipt] = []
        self.place = 0

    def add(self, line: int, event: dict[str, Any]) -> None:
        """Add one event. Raises UsageError."""
        process = event.get("process")
        if isinstance(process, str) and process.lstrip(":") == NEMESIS:
            evidence = f"{event.get('value')!r:.200}"
            self.receipts.append(
                Receipt(
                    kind=str(event.get("f")), agent=NEMESIS, when=f"line {line}", fired=True, evidence=evidence,
                    order=self.place,
                )
            )  # fmt: skip
            return
        kind = event.get("type")
        if kind not in _TYPES:
            raise _wrong(line, "type", f"one of {', '.join(_TYPES)}", kind, "Correct the event")
        function = str(event.get("f", "txn"))
        if self.functions and function not in self.functions:
            raise _wrong(line, "f", f"one of {', '.join(sorted(self.functions))}", function, "Choose another --model")
        whose = (process, function) if process is None else process
        if kind == "invoke":
            self._begin(line, whose, function, event)
        else:
            self._end(line, whose, function, str(kind), event)
        self.place += 1

    def _begin(self, line: int, whose: Any, function: str, event: dict[str, Any]) -> None:
        if whose in self.open:
            rule = f"free: its call of line {self.open[whose][1]} has not ended"
            raise _wrong(
                line, "process", rule, event.get("process"), "End each call before the next, with info if unknown"
            )
        key, value = self._split(event)
        process = event.get("process")
        call = Call(
            function, key, value, None, process if isinstance(process, str | int) else "", self.place, None,
            Outcome.UNKNOWN, _seconds(line, event),
        )  # fmt: skip
        self.open[whose] = (len(self.found), line, call)
        self.found.append(None)

    def _end(self, line: int, whose: Any, function: str, kind: str, event: dict[str, Any]) -> None:
        if whose not in self.open:
            rule = "that of a call that is open"
            raise _wrong(line, "process", rule, event.get("process"), "Its invoke is missing, or it has ended before")
        nth, began, call = self.open.pop(whose)
        if function != call.function:
            raise _wrong(line, "f", f"{call.function}, which began at line {began}", function, "Correct the event")
        end_s = _seconds(line, event)
        if end_s is not None and call.start_s is not None and end_s < call.start_s:
            rule = f"at least that of line {began}, where the call began"
            raise _wrong(line, "time", rule, event["time"], "Leave time out, or use one clock that never goes back")
        outcome = _ENDS[kind]
        if outcome is not Outcome.OK:
            end = None if outcome is Outcome.UNKNOWN else self.place
            self.found[nth] = msgspec.structs.replace(call, end=end, outcome=outcome, end_s=end_s)
            return
        key, value = self._split(event)
        if self.is_keyed and key != call.key:
            raise _wrong(line, "value", f"of the key {call.key!r} of line {began}", key, "Correct the event")
        output = None if function in {"write", "cas", "put", "append", "enqueue"} and value == call.input else value
        self.found[nth] = msgspec.structs.replace(call, output=output, end=self.place, outcome=outcome, end_s=end_s)

    def _split(self, event: dict[str, Any]) -> tuple[Json, Json]:
        value = event.get("value")
        if self.is_keyed and isinstance(value, list) and len(value) == 2:
            return value[0], value[1]
        return event.get("key"), value

    def calls(self) -> list[Call]:
        """Return all calls; those that are still open are unknown."""
        for nth, _, call in self.open.values():
            self.found[nth] = call
        return [call for call in self.found if call is not None]


def _seconds(line: int, event: dict[str, Any]) -> float | None:
    time = event.get("time")
    if time is None:
        return None
    if isinstance(time, bool) or not isinstance(time, int | float):
        raise _wrong(line, "time", "a number of nanoseconds", time, "Leave it out if there is no clock")
    return time / _NANOSECONDS


def _wrong(line: int, field: str, rule: str, got: object, remedy: str) -> UsageError:
    return UsageError(f'line {line}: "{field}" must be {rule}; got {got!r:.100}. {remedy}')


def events_of(calls: Iterable[Call]) -> Iterator[dict[str, Json]]:
    """Yield the events of calls, in order: what :func:`read_calls` makes the same calls of.

    >>> [event["type"] for event in events_of([Call("read", output=3, start=0, end=1)])]
    ['invoke', 'ok']
    """
    timed: list[tuple[int, dict[str, Json]]] = []
    for call in calls:
        common: dict[str, Json] = {"f": call.function, "process": call.process}
        if call.key is not None:
            common["key"] = call.key
        timed.append((call.start, {"type": "invoke", **common, "value": call.input, **_time(call.start_s)}))
        if call.end is not None and call.outcome is not Outcome.UNKNOWN:
            kind = "ok" if call.outcome is Outcome.OK else "fail"
            timed.append((call.end, {"type": kind, **common, "value": call.output, **_time(call.end_s)}))
    timed.sort(key=lambda each: each[0])
    for index, (_, event) in enumerate(timed):
        yield {**event, "index": index}


def _time(seconds: float | None) -> dict[str, Json]:
    return {} if seconds is None else {"time": round(seconds * _NANOSECONDS)}


def to_edn(calls: Iterable[Call]) -> Iterator[bytes]:
    """Yield the lines of a history in Jepsen's EDN."""
    for event in events_of(calls):
        yield f"{edn_of(event, _KEYWORDS)}\n".encode()


def to_json(calls: Iterable[Call]) -> Iterator[bytes]:
    """Yield the lines of a history in elle-cli's JSON: one list, an event a line."""
    before = b"["
    for event in events_of(calls):
        yield before + msgspec.json.encode(event)
        before = b",\n"
    yield b"]\n" if before != b"[" else b"[]\n"
