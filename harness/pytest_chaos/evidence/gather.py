"""The facts of a journal, redacted and bounded, however torn it is.

The journal of a run that was killed ends anywhere: a line cut in half, a record that was never
written. Each part is read on its own. A part that cannot be read becomes a problem of the pack.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from pytest_chaos.errors import EvidenceError
from pytest_chaos.evidence.reading import reading
from pytest_chaos.model.history import TornLine
from pytest_chaos.model.values import AgentSummary, Assertion, Finding, Json, Mark, Receipt, RunRecord, Verdict
from pytest_chaos.runtime.journal import (
    AGENTS,
    DATABASES,
    FAILURE,
    MARKS,
    RECEIPTS,
    RECORD,
    AgentStarted,
    Journal,
    RunHeader,
)

if TYPE_CHECKING:
    from pytest_chaos.evidence.limits import Limits, Problems
    from pytest_chaos.evidence.redact import Redactor

UNKNOWN_OUTCOME: Final = "the run has no record and no failure: it ended before its outcome was written"

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Log:
    """The kept part of one agent's output."""

    agent: str
    file_name: str
    text: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """All facts that a journal has about its run, without secrets."""

    header: RunHeader
    verdict: Verdict
    failure: str
    marks: tuple[Mark, ...]
    torn: tuple[TornLine, ...]
    receipts: tuple[Receipt, ...]
    started: tuple[AgentStarted, ...]
    ended: tuple[AgentSummary, ...]
    logs: tuple[Log, ...]
    databases: tuple[Path, ...]
    findings: tuple[Finding, ...] = ()
    assertions: tuple[Assertion, ...] = ()
    notes: Json = None
    duration_s: float | None = None


def gather(folder: Path, outcome: str | None, redactor: Redactor, limits: Limits, problems: Problems) -> Facts:
    """Read a journal; ``outcome`` is the failure of a run without a record.

    Raises EvidenceError when the header of the journal cannot be read.
    """
    reader = _Reader(folder, redactor, limits, problems)
    header = Journal(folder).header()
    record = reader.record()
    marks, torn = reader.marks()
    agents = reader.lines(AGENTS, AgentStarted | AgentSummary)
    return Facts(
        header=redactor.clean(header),
        verdict=record.verdict if record else Verdict.INCONCLUSIVE,
        failure=reader.failure(record, outcome),
        marks=marks,
        torn=torn,
        receipts=tuple(redactor.clean(item) for item in reader.lines(RECEIPTS, Receipt) if isinstance(item, Receipt)),
        started=tuple(redactor.clean(agent) for agent in agents if isinstance(agent, AgentStarted)),
        ended=tuple(redactor.clean(agent) for agent in agents if isinstance(agent, AgentSummary)),
        logs=reader.logs(),
        databases=tuple(Path(name) for name in reader.lines(DATABASES, str) if isinstance(name, str)),
        findings=redactor.clean(record.findings) if record else (),
        assertions=redactor.clean(record.assertions) if record else (),
        notes=redactor.json(record.notes) if record else None,
        duration_s=record.duration_s if record else None,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    folder: Path
    redactor: Redactor
    limits: Limits
    problems: Problems

    def record(self) -> RunRecord | None:
        record: RunRecord | None = None
        if content := self._content(RECORD):
            with self.problems.catching(RECORD):
                record = msgspec.json.decode(content, type=RunRecord)
        return record

    def failure(self, record: RunRecord | None, outcome: str | None) -> str:
        shown = self._content(FAILURE).decode(errors="replace") or (record.failure if record else "")
        if record is None:
            shown = "\n\n".join(text for text in (outcome or UNKNOWN_OUTCOME, shown) if text)
        length_max = self.limits.failure_length_max
        if len(shown) > length_max:
            self.problems.cut(FAILURE, f"{len(shown)} characters, of which the last {length_max} are here")
        return self.redactor.text(shown)[-length_max:]

    def marks(self) -> tuple[tuple[Mark, ...], tuple[TornLine, ...]]:
        from pytest_chaos.model.history import History

        history = History.from_lines(self._content(MARKS))
        kept = history.marks[-self.limits.marks_max :]
        if len(kept) < len(history.marks):
            self.problems.cut(MARKS, f"{len(history.marks)} marks, of which the newest {len(kept)} are here")
        torn = tuple(
            TornLine(line.order, self._bytes(line.content), line.reason)
            for line in history.torn[: self.limits.marks_max]
        )
        return tuple(self._mark(mark) for mark in kept), torn

    def lines(self, name: str, kind: object) -> list[object]:
        found: list[object] = []
        for number, line in enumerate(self._content(name).split(b"\n"), start=1):
            if line:
                with self.problems.catching(f"{name}, line {number}"):
                    found.append(msgspec.json.decode(line, type=kind))
        return found

    def logs(self) -> tuple[Log, ...]:
        folder = Journal(self.folder).output_folder
        logs: list[Log] = []
        with self.problems.catching("agents' output"):
            paths = sorted(path for path in folder.glob("*.log"))
            if len(paths) > self.limits.agents_max:
                self.problems.cut("agents", f"{len(paths)} logs, of which {self.limits.agents_max} are here")
            for path in paths[: self.limits.agents_max]:
                with self.problems.catching(f"agents/{path.name}"):
                    logs.append(self._log(path))
        return tuple(logs)

    def _log(self, path: Path) -> Log:
        half = self.limits.log_bytes_max // 2
        with reading(path) as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            head = stream.read(half if size > 2 * half else size)
            stream.seek(max(len(head), size - half))
            tail = stream.read(half)
        if size <= 2 * half:
            text = self.redactor.text((head + tail).decode(errors="backslashreplace"))
        else:
            text = self._around_the_cut(head, tail, size)
            self.problems.cut(f"agents/{path.name}", f"{size} bytes, of which the first and the last {half} are here")
        return Log(path.stem, path.name, text, size)

    def _around_the_cut(self, head: bytes, tail: bytes, size: int) -> str:
        """Join two halves at whole lines: the redactor would not know half of a secret."""
        first = head[: head.rfind(b"\n") + 1].decode(errors="backslashreplace")
        last = tail[tail.find(b"\n") + 1 :].decode(errors="backslashreplace")
        return f"{self.redactor.text(first)}… [cut: {size} bytes of output] …\n{self.redactor.text(last)}"

    def _mark(self, mark: Mark) -> Mark:
        mark = self.redactor.clean(mark)
        return mark if mark.value is None else msgspec.structs.replace(mark, value=self._short(mark.value, mark.order))

    def _short(self, value: Json, order: int) -> Json:
        length = len(msgspec.json.encode(value))
        if length <= self.limits.value_length_max:
            return value
        self.problems.cut(
            f"mark {order}", f"a value of {length} bytes, of which {self.limits.value_length_max} are here"
        )
        return msgspec.json.encode(value)[: self.limits.value_length_max].decode(errors="replace")

    def _bytes(self, content: bytes) -> bytes:
        text = content[: self.limits.value_length_max].decode(errors="backslashreplace")
        return self.redactor.text(text).encode()

    def _content(self, name: str) -> bytes:
        """Return the newest part of a file of the journal; nothing if it cannot be read."""
        path, length_max = self.folder / name, self.limits.journal_file_bytes_max
        if not path.exists():
            return b""
        content = b""
        with self.problems.catching(name), reading(path) as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - length_max))
            content = stream.read(length_max)
            if size > length_max:
                self.problems.cut(name, f"{size} bytes, of which the last {length_max} were read, as if it began there")
                content = content[content.find(b"\n") + 1 :]
        return content


def header_or_none(folder: Path) -> RunHeader | None:
    """Return the header of a journal, or None if it cannot be read."""
    try:
        return Journal(folder).header()
    except EvidenceError:
        return None
