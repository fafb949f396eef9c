"""The journal: the folder that a run writes, from which an evidence pack can be made any time.

A run may be killed, time out, or lose its controller. Whatever was known is in this folder. The
pack is built from it by the plugin when a run does not hold, by the guardian when the
controller is gone, and by a later session when the guardian is gone, too.

    run.json         the header: identity, seed and plan of the run; written before any process
    marks.jsonl      one line a mark, appended by the agents themselves
    receipts.jsonl   one line a fault that fired (or did not), appended by the controller
    agents.jsonl     one line an agent that started, and one when it ended
    databases.jsonl  paths that ``chaos.database`` named
    agents/NAME.log  the output of each agent
    failure.txt      the failure as pytest shows it
    record.json      the run's record, last
    secrets.json     the secrets that its agents were given, which the maker of the pack masks
    work/            the folder the agents work in; watched for SQLite files
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from pytest_chaos.errors import EvidenceError
from pytest_chaos.model.history import History
from pytest_chaos.model.values import AgentSummary, Json, Plan, Receipt, RunRecord, Scenario

HEADER: Final = "run.json"
MARKS: Final = "marks.jsonl"
MARKS_HEAD: Final = b" \n"
"""The beginning of a mark file, a blank line; a file without it was overwritten."""
RECEIPTS: Final = "receipts.jsonl"
AGENTS: Final = "agents.jsonl"
DATABASES: Final = "databases.jsonl"
OUTPUT: Final = "agents"
FAILURE: Final = "failure.txt"
RECORD: Final = "record.json"
GIVEN_SECRETS: Final = "secrets.json"
WORK: Final = "work"
ATTACHMENTS: Final = "attachments"

Value = TypeVar("Value")


class RunHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The run that a journal belongs to. ``session_folder`` is absolute."""

    run_id: str
    node_id: str
    scenario: Scenario
    seed: str
    session_folder: str
    iteration: int = 0
    plan: Plan | None = None
    started: str = ""
    command: str = ""
    reproduce: str = ""
    root: str = ""
    versions: dict[str, str] = {}
    controller_pid: int = 0
    worker: str = ""


class AgentStarted(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """The start of an agent. ``started_at`` is UTC in ISO 8601; ``command`` is argv or target.

    ``order`` is the number of marks that had been written before it.
    """

    name: str
    pid: int
    command: str
    kwargs: Json = None
    started_at: str = ""
    order: int | None = None


class Journal:
    """One run's folder. Every write is whole and unbuffered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marks_path = folder / MARKS
        self.output_folder = folder / OUTPUT
        self.work_folder = folder / WORK

    def create(self, header: RunHeader) -> None:
        """Make the folder and write the header, before anything is started."""
        self.folder.mkdir(mode=0o700, parents=True)
        self.output_folder.mkdir()
        self.work_folder.mkdir()
        self.marks_path.write_bytes(MARKS_HEAD)
        self.write_header(header)

    def write_header(self, header: RunHeader) -> None:
        """Replace the header in one step, when the plan is known."""
        self._replace(HEADER, msgspec.json.encode(header))

    def header(self) -> RunHeader:
        """Read the header. Raises EvidenceError when the folder is not a journal."""
        try:
            return msgspec.json.decode((self.folder / HEADER).read_bytes(), type=RunHeader)
        except (OSError, msgspec.DecodeError) as error:
            msg = f"{self.folder} must be the journal of a run; got: {error}"
            raise EvidenceError(msg) from error

    def add_receipt(self, receipt: Receipt) -> None:
        """Append the receipt of a fault that fired, or did not."""
        self._append(RECEIPTS, receipt)

    def add_agent(self, agent: AgentStarted | AgentSummary) -> None:
        """Append the start or the end of an agent."""
        self._append(AGENTS, agent)

    def add_database(self, path: Path) -> None:
        """Append the path of a SQLite file outside of ``work``."""
        self._append(DATABASES, str(path))

    def write_secrets(self, values: frozenset[str]) -> None:
        """Write the secrets that must not be in the pack. The folder is this user's alone."""
        self._replace(GIVEN_SECRETS, msgspec.json.encode(sorted(values)))

    def secrets(self) -> tuple[str, ...]:
        """Return the secrets that must not be in the pack; none where the file is torn."""
        try:
            return msgspec.json.decode(self._read(GIVEN_SECRETS) or b"[]", type=tuple[str, ...])
        except msgspec.DecodeError:
            return ()

    def write_failure(self, text: str) -> None:
        """Write the failure as pytest shows it."""
        self._replace(FAILURE, text.encode(errors="replace"))

    def write_record(self, record: RunRecord) -> None:
        """Write the record: the last save."""
        self._replace(RECORD, msgspec.json.encode(record))

    def history(self) -> History:
        """Return the marks and receipts so far."""
        return History.from_lines(self._read(MARKS), receipts=self.receipts())

    def receipts(self) -> tuple[Receipt, ...]:
        """Return the receipts so far."""
        return self._lines(RECEIPTS, Receipt)

    def databases(self) -> tuple[Path, ...]:
        """Return the SQLite files named by the test."""
        return tuple(Path(name) for name in self._lines(DATABASES, str))

    def failure(self) -> str:
        """Return the failure text, or nothing."""
        return self._read(FAILURE).decode(errors="replace")

    def record(self) -> RunRecord | None:
        """Return the record, or ``None`` while the run has none."""
        content = self._read(RECORD)
        return msgspec.json.decode(content, type=RunRecord) if content else None

    def _append(self, name: str, value: object) -> None:
        rest = b"\n" + msgspec.json.encode(value) + b"\n"
        descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            while rest:  # a write may be short, and says so by its number alone
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)

    def _replace(self, name: str, content: bytes) -> None:
        fresh = self.folder / f".{name}.new"
        fresh.write_bytes(content)
        fresh.replace(self.folder / name)

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return b""

    def _lines(self, name: str, kind: type[Value]) -> tuple[Value, ...]:
        return tuple(msgspec.json.decode(line, type=kind) for line in self._read(name).split(b"\n") if line)
