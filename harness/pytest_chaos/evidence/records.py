"""Run records: appended while a session goes on, read and merged to render a matrix.

A session's folder is ``RESULTS/sessions/NAME``; its ``records.jsonl`` holds a
:class:`~pytest_chaos.model.values.SessionHeader` line with the runs that were planned, then one
:class:`~pytest_chaos.model.values.RunRecord` a line, and a
:class:`~pytest_chaos.model.values.SessionEnd`. Each line is one ``write`` to a file opened
for appending, so a session that is killed keeps all the lines it had. ``RESULTS/latest`` points at
the newest session.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from pytest_chaos.errors import ResultsError
from pytest_chaos.evidence.reading import reading
from pytest_chaos.evidence.redact import clean
from pytest_chaos.model import campaign
from pytest_chaos.model.values import RECORD_FORMAT, Account, RunRecord, SessionEnd, SessionHeader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FILE_NAME: Final = "records.jsonl"

Line = TypeVar("Line", SessionHeader, RunRecord, SessionEnd)

_UNREAD_SHOWN: Final = 5
_END: Final = b'{"line":"end"'


class Records(NamedTuple):
    """The records of one session, or of several merged ones with the first one's header."""

    header: SessionHeader
    runs: tuple[RunRecord, ...]
    accounts: tuple[Account, ...] = ()
    reasons: tuple[str, ...] = ()


def gathered(header: SessionHeader, runs: tuple[RunRecord, ...], end: SessionEnd | None = None) -> Records:
    """Return the records of a session with an account of the runs that it planned."""
    end = end or SessionEnd()
    return Records(header, runs, campaign.account_for(header, runs, end.skipped), end.reasons)


class SessionFolder:
    """The folder of one session: its records, reports and evidence."""

    def __init__(self, results: Path, name: str) -> None:
        self.results = results
        self.path = results / "sessions" / name

    @property
    def evidence(self) -> Path:
        """The folder of the session's evidence packs."""
        return self.path / "evidence"

    def create(self, header: SessionHeader) -> None:
        """Make the folder, write the header and let ``latest`` point here.

        Raises ResultsError when the results folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            ignore = self.results / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            self._append(header)
            self._point_latest_here()
        except OSError as error:
            msg = (
                f"the results folder {self.results} cannot be written ({error.strerror or error}). "
                "Give another with --chaos-results=DIR"
            )
            raise ResultsError(msg) from error

    def append(self, record: RunRecord | SessionEnd) -> None:
        """Add one line, whole or (when the disk is full) not at all. Raises ResultsError."""
        try:
            self._append(record)
        except OSError as error:
            msg = f"a record could not be added to {self.path / FILE_NAME}: {error.strerror or error}"
            raise ResultsError(msg) from error

    def add_orphan(self, header: SessionHeader, record: RunRecord) -> None:
        """Add the record of a run whose session died, and the header, unless they are there.

        Several processes that outlived the session may call it at once. Raises ResultsError.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with _locked(self.path):
                if self._cut_torn_line() == 0:
                    self.create(header)
                if all(known.run_id != record.run_id for known in read(self.path).runs):
                    self.append(record)
        except OSError as error:
            msg = f"the record of a run that was cut short could not be added to {self.path}: {error.strerror or error}"
            raise ResultsError(msg) from error

    def _cut_torn_line(self) -> int:
        """Remove a last line that a kill cut off (no other writer is left); return the size."""
        path = self.path / FILE_NAME
        if not path.exists():
            return 0
        size = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, size)
        return size

    def _append(self, value: SessionHeader | RunRecord | SessionEnd) -> None:
        line = msgspec.json.encode(clean(value)) + b"\n"
        descriptor = os.open(self.path / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if (written := os.write(descriptor, line)) != len(line):
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                msg = "the disk is full"
                raise OSError(msg)
        finally:
            os.close(descriptor)

    def _point_latest_here(self) -> None:
        latest = self.results / "latest"
        fresh = self.results / f".latest-{self.path.name}"
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        fresh.symlink_to(Path("sessions") / self.path.name)
        fresh.replace(latest)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl  # rarely needed

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(session: Path) -> Records:
    """Read a session's folder, or the ``records.jsonl`` itself.

    A last line that was cut off by a crash is left out. Raises ResultsError when there are no
    records, when a line is not a record, or when they are of a newer format.
    """
    path, lines = _lines_of(session)
    if not lines:
        msg = f"{path} must have run records; got none, as the session ended before its first line. Give another"
        raise ResultsError(msg)
    header = _decode(lines[0], SessionHeader, path, 1)
    numbered = list(enumerate(lines[1:], start=2))
    runs = tuple(_decode(line, RunRecord, path, number) for number, line in numbered if not line.startswith(_END))
    ends = [_decode(line, SessionEnd, path, number) for number, line in numbered if line.startswith(_END)]
    return gathered(header, runs, ends[-1] if ends else None)


def read_all_that_can_be(session: Path) -> Records:
    """Read a session's folder as far as it can be read, for a report that says what cannot.

    Lines that are no records, records of a newer format, and a header that is none are reasons: the
    records are then not whole, and no report of them is green. Raises ResultsError when there is no
    file at all.
    """
    path, lines = _lines_of(session)
    reasons: list[str] = []
    first, *others = lines or [b""]
    try:
        header = msgspec.json.decode(first, type=SessionHeader)
    except (msgspec.DecodeError, UnicodeError) as error:
        reasons.append(f"{path.name} has no header that can be read ({error}): what was planned is not known")
        header = SessionHeader(session=path.parent.name, seed="not known", started="")
    runs: list[RunRecord] = []
    end: SessionEnd | None = None
    unread = 0
    for number, line in enumerate(others, start=2):
        try:
            if line.startswith(_END):
                end = msgspec.json.decode(line, type=SessionEnd)
            else:
                runs.append(msgspec.json.decode(line, type=RunRecord))
        except (msgspec.DecodeError, UnicodeError) as error:
            unread += 1
            if unread <= _UNREAD_SHOWN:
                reasons.append(f"line {number} of {path.name} is no record of a run ({error}): it is not counted")
    if unread > _UNREAD_SHOWN:
        reasons.append(f"{unread - _UNREAD_SHOWN} more lines of {path.name} are no records")
    newest = max(header.format, *(run.format for run in runs), 0)
    if newest > RECORD_FORMAT:
        reasons.append(
            f"{path.name} is of format {newest}, newer than {RECORD_FORMAT}: only what is known is shown. "
            "Upgrade pytest-chaos"
        )
    found = gathered(header, tuple(runs), end)
    return found._replace(reasons=(*found.reasons, *reasons))


def _lines_of(session: Path) -> tuple[Path, list[bytes]]:
    """Return the file of a session, and its whole lines. Raises ResultsError without a file."""
    path = session / FILE_NAME if session.is_dir() else session
    if not path.exists() and (session / "latest" / FILE_NAME).exists():
        path = session / "latest" / FILE_NAME
    try:
        with reading(path) as stream:  # a pipe would block, a device never end
            *lines, tail = stream.read().split(b"\n")
    except OSError as error:
        what = error.strerror or error
        msg = f"{session} must have run records; got none: {what}. Give a results folder of a chaos session"
        raise ResultsError(msg) from error
    if tail:
        with contextlib.suppress(msgspec.DecodeError, UnicodeError):
            msgspec.json.decode(tail, type=SessionEnd if tail.startswith(_END) else RunRecord)
            lines.append(tail)
    return path, lines


def merge(parts: Iterable[Records]) -> Records:
    """Join the records of several sessions (machines, days) under the earliest header.

    Raises ResultsError when there are none.
    """
    ordered: Sequence[Records] = sorted(parts, key=lambda part: part.header.started)
    if not ordered:
        msg = "records to merge must be at least one; got none. Give a results folder"
        raise ResultsError(msg)
    return Records(
        ordered[0].header,
        tuple(run for part in ordered for run in part.runs),
        campaign.join_accounts(account for part in ordered for account in part.accounts),
        tuple(reason for part in ordered for reason in part.reasons),
    )


def _decode(line: bytes, kind: type[Line], path: Path, number: int) -> Line:
    try:
        value = msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        msg = f"{path}, line {number}, must be a {kind.__name__}; got: {error}. Give an undamaged copy"
        raise ResultsError(msg) from error
    if not isinstance(value, SessionEnd) and value.format > RECORD_FORMAT:
        msg = f"{path} must be of format {RECORD_FORMAT} at most; got {value.format}. Upgrade pytest-chaos"
        raise ResultsError(msg)
    return value
