"""The history of a run: its marks in one order, with intents paired to their acks.

The source is the mark file: JSON lines that any process appends, each with one ``write``. The place
of a line in that file is the only clock, so two agents are ordered without either of them telling
the time. Our own writers begin every line with a newline as well as ending it with one: a line that
a kill or a full disk tore cannot swallow the next.

An unreadable line is kept as a :class:`TornLine`, so that a checker can answer "unknown" and need
not guess from a gap. Only a killed writer may leave a line that is cut short; every other one is
the target's mistake (:func:`not_marks`). An intent without an ack is *unknown*, never failed
(Jepsen's ``:info``): the operation may have happened.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict, deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from pytest_chaos.model.values import Finding, Key, Mark, MarkKind, Operation, Receipt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_DECODER: Final = msgspec.json.Decoder(Mark)
_ENCODER: Final = msgspec.json.Encoder()
NOT_A_MARK: Final = "harness:not-a-mark"
"""The signature of a mark file with malformed lines: the promises of the run are not known."""
MARK_EXAMPLE: Final = '{"kind": "ack", "operation": "order", "key": 7}'
_LINES_SHOWN: Final = 3
_LINE_CHARACTERS_SHOWN: Final = 120
_FIELDS: Final = ("kind", "operation", "key", "value", "agent", "pid")
_KINDS: Final = ", ".join(MarkKind)


class TornLine(msgspec.Struct, frozen=True):
    """A line that is no mark. ``order`` counts the marks before it; ``reason`` is the parser's."""

    order: int
    content: bytes
    reason: str = ""

    @property
    def text(self) -> str:
        """The line as printable text; bytes that are not UTF-8 are escaped."""
        return self.content.decode(errors="backslashreplace")

    @property
    def is_cut(self) -> bool:
        """Whether it is the beginning of a mark: its writer was killed, or its disk was full."""
        text = self.content.strip()
        if not text.startswith(b"{"):
            return False
        for end in (b"", b"0"):  # a number may be cut after its sign, its point or its e
            try:
                msgspec.json.decode(text + end)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                if "truncated" in str(error):
                    return True
        return False

    @property
    def mistake(self) -> str:
        """What is wrong with the line, in the words of the format."""
        try:
            found = msgspec.json.decode(self.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "cut short" if self.is_cut else "not JSON"
        if not isinstance(found, dict):
            return "not a JSON object"
        if missing := [name for name in ("kind", "operation") if name not in found]:
            return " and ".join(f'missing "{name}"' for name in missing)
        if not isinstance(kind := found["kind"], str):
            return f'"kind" must be one of {_KINDS}'
        if kind not in set(MarkKind):
            return f"unknown kind {json.dumps(kind):.40}: one of {_KINDS}"
        if other := [name for name in found if name not in Mark.__struct_fields__]:
            return f"unknown field {json.dumps(other[0]):.40}: known are {', '.join(_FIELDS)}"
        return self.reason[:1].lower() + self.reason[1:]


def not_marks(torn: Sequence[TornLine], *, may_be_cut: bool) -> list[Finding]:
    """Return the finding that lines of the mark file are no marks.

    With ``may_be_cut`` a kill may have cut some, which is no finding. Each line is shown with its
    number (blank lines are not counted), its text and what is wrong.
    """
    wrong = [
        f"line {line.order + place + 1} ({line.mistake}): {_shortened(line.text)}"
        for place, line in enumerate(torn)
        if not (may_be_cut and line.is_cut)
    ]
    if not wrong:
        return []
    are = (
        "1 line of the mark file is no mark" if len(wrong) == 1 else f"{len(wrong)} lines of the mark file are no marks"
    )
    more = f"; and {len(wrong) - _LINES_SHOWN} more" if len(wrong) > _LINES_SHOWN else ""
    text = (
        f"{are}: {'; '.join(wrong[:_LINES_SHOWN])}{more}. A mark is one line such as {MARK_EXAMPLE}; "
        "`chaos mark ack order 7` writes one from a shell"
    )
    return [Finding(signature=NOT_A_MARK, text=text, kind="harness", checker="marks")]


def overwritten() -> Finding:
    """Return the finding that marks were lost because their file was not appended to."""
    text = (
        "the mark file was written over, so marks are lost: open it for appending "
        '(>> "$CHAOS_MARKS" in a shell, never >), or use `chaos mark ack order 7`'
    )
    return Finding(signature="harness:marks-overwritten", text=text, kind="harness", checker="marks")


def _shortened(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text.strip())
    return shown if len(shown) <= _LINE_CHARACTERS_SHOWN else f"{shown[: _LINE_CHARACTERS_SHOWN - 1]}…"


_WRITTEN: Final = "written"
"""The line of a mark as its program wrote it, in the mark's dictionary: it is no field."""


class MarkParser:
    """A parser of a growing mark file: feed it what was appended, in pieces of any size.

    ``count`` is the number of marks so far; ``torn`` holds the other lines.
    """

    def __init__(self) -> None:
        """Start at the beginning of a file."""
        self.count = 0
        self.torn: list[TornLine] = []
        self._tail: list[bytes] = []

    def feed(self, content: bytes) -> list[Mark]:
        """Return the marks whose lines this piece completes; the rest waits for the next piece."""
        lines = content.split(b"\n")
        if len(lines) > 1:
            lines[0] = b"".join((*self._tail, lines[0]))
            self._tail.clear()
        self._tail.append(lines.pop())
        return [mark for line in lines if line and (mark := self._parse(line)) is not None]

    def finish(self) -> list[Mark]:
        """Return the mark that lacks only its newline, if any. Call it at the end of the file."""
        return self.feed(b"\n")

    def _parse(self, line: bytes) -> Mark | None:
        try:
            mark = _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if line.strip():
                self.torn.append(TornLine(self.count, line, str(error)))
            return None
        # Nobody else holds this value yet, and a copy made only to set its place would double the
        # time of a long file.
        msgspec.structs.force_setattr(mark, "order", self.count)
        mark.__dict__[_WRITTEN] = line
        self.count += 1
        return mark


class _Pairing(NamedTuple):
    operations: tuple[Operation, ...]
    strays: tuple[Mark, ...]


_NO_PAIRING: Final = _Pairing((), ())


@dataclass(frozen=True)
class History:
    """The marks of a run in order, the receipts of its faults, and the lines that are no marks.

    A value: it never changes. Its indexes are built at the first question and kept. Marks made by
    hand need their ``order`` for checkers that compare it; :meth:`from_lines` gives each mark its
    own.
    """

    marks: tuple[Mark, ...]
    receipts: tuple[Receipt, ...] = ()
    torn: tuple[TornLine, ...] = ()

    @classmethod
    def from_lines(cls, content: bytes, *, receipts: Iterable[Receipt] = ()) -> History:
        """Read a whole mark file. Never raises: an unreadable line becomes a torn line."""
        parser = MarkParser()
        marks = [*parser.feed(content), *parser.finish()]
        return cls(tuple(marks), tuple(receipts), tuple(parser.torn))

    def to_lines(self) -> bytes:
        """Return a mark file from which :meth:`from_lines` reads the same history again."""
        torn_before = defaultdict(list)
        for line in self.torn:
            torn_before[line.order].append(line.content)
        lines: list[bytes] = []
        for place, mark in enumerate(self.marks):
            lines += torn_before.pop(place, ())
            lines.append(_ENCODER.encode(mark))
        lines += itertools.chain.from_iterable(torn_before.values())
        return b"".join(b"\n" + line + b"\n" for line in lines)

    def to_json_lines(self) -> bytes:
        """Return JSON lines for programs in any language: the marks, without torn lines.

        A mark that was read has the line that the program wrote, with its spaces: a check may look
        for it with grep.
        """
        return b"".join((mark.__dict__.get(_WRITTEN) or _ENCODER.encode(mark)) + b"\n" for mark in self.marks)

    def select(
        self, kind: MarkKind | str | None = None, operation: str | None = None, agent: str | None = None
    ) -> tuple[Mark, ...]:
        """Return the marks of this kind, operation and agent, in order; ``None`` stands for any."""
        marks: Iterable[Mark] = self.marks if operation is None else self._by_operation.get(operation, ())
        return tuple(
            mark for mark in marks if (kind is None or mark.kind == kind) and (agent is None or mark.agent == agent)
        )

    def operations(self, operation: str, agent: str | None = None) -> tuple[Operation, ...]:
        """Return every intent of this operation, in order, with its ack where there is one.

        An ack belongs to the oldest open intent with the same agent, process and key. A restarted
        agent is another process: it never acknowledges what the one before it was about to do.
        """
        pairs = self._pairings.get(operation, _NO_PAIRING).operations
        return tuple(pair for pair in pairs if agent is None or pair.intent.agent == agent)

    def acknowledged(self, operation: str, agent: str | None = None) -> tuple[Mark, ...]:
        """Return the acks of this operation in order, strays included: each is a promise."""
        return self.select(MarkKind.ACK, operation, agent)

    def unknown(self, operation: str, agent: str | None = None) -> tuple[Mark, ...]:
        """Return the intents that were never acknowledged: each may or may not have happened."""
        return tuple(pair.intent for pair in self.operations(operation, agent) if pair.ack is None)

    def strays(self, operation: str, agent: str | None = None) -> tuple[Mark, ...]:
        """Return the acks without an intent: a target whose marks cannot be trusted."""
        strays = self._pairings.get(operation, _NO_PAIRING).strays
        return tuple(mark for mark in strays if agent is None or mark.agent == agent)

    @cached_property
    def _by_operation(self) -> Mapping[str, list[Mark]]:
        index: defaultdict[str, list[Mark]] = defaultdict(list)
        for mark in self.marks:
            index[mark.operation].append(mark)
        return dict(index)

    @cached_property
    def _pairings(self) -> Mapping[str, _Pairing]:
        return {operation: _pair(marks) for operation, marks in self._by_operation.items()}


def _pair(marks: Iterable[Mark]) -> _Pairing:
    intents: list[Mark] = []
    acks: dict[int, Mark] = {}
    strays: list[Mark] = []
    waiting: defaultdict[tuple[str, int, Key], deque[int]] = defaultdict(deque)
    for mark in marks:
        mine = waiting[mark.agent, mark.pid, mark.key]
        if mark.kind is MarkKind.INTENT:
            mine.append(len(intents))
            intents.append(mark)
        elif mark.kind is MarkKind.ACK and mine:
            acks[mine.popleft()] = mark
        elif mark.kind is MarkKind.ACK:
            strays.append(mark)
    return _Pairing(tuple(_operations(intents, acks)), tuple(strays))


def _operations(intents: Iterable[Mark], acks: Mapping[int, Mark]) -> Iterator[Operation]:
    for place, intent in enumerate(intents):
        yield Operation(intent=intent, ack=acks.get(place))
